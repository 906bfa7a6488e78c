"""What goes into the engine and what comes out of it. Token ids only, no text; no torch."""

from dataclasses import dataclass, field
from typing import Literal

from model.sampling_params import SamplingParams

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """One sequence to generate.

    Attributes:
        prompt_ids: the prompt, with the beginning-of-sequence id if the model wants one.
        output_ids: ids generated before, on a router that was lost; generation goes on after them
            and they count towards `params.max_tokens`.
        priority: lower ones run first, equal ones in the order in which they came.
        cache_salt: requests share what they have computed of a prompt with those of equal salt.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    output_ids: tuple[int, ...] = field(default=())
    priority: int = 0
    cache_salt: str = ""

    def __post_init__(self) -> None:
        assert self.prompt_ids, self.request_id

    @property
    def max_total_tokens(self) -> int:
        """Most tokens that this sequence can ever hold."""
        return len(self.prompt_ids) + self.params.max_tokens


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token. The last one of a request carries the finish reason.

    Attributes:
        logprob: natural logarithm of the token's probability before temperature and top_p, if
            log-probabilities were asked for.
        top_logprobs: (token id, log-probability), most likely first.
    """

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
