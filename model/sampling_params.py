"""How the next token of a request is chosen. No torch, so clients and the API stay light."""

from dataclasses import dataclass

from model.errors import SamplingError

MAX_SEED = 2**63 - 1
MAX_LOGPROBS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Sampling of one request; checked once, when made.

    Attributes:
        temperature: 0 is greedy; 1 samples from the model's own distribution.
        top_p: keep the smallest set of tokens whose probability reaches this.
        seed: with the token's position, the only source of randomness.
        max_tokens: most tokens to generate.
        stop_token_ids: generation ends after one of these (the end-of-sequence id is one).
        num_logprobs: how many most likely tokens to report at each position, None for none at all;
            0 reports the chosen token's alone.

    Raises:
        SamplingError: a value is out of range; names the field.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 16
    stop_token_ids: tuple[int, ...] = ()
    num_logprobs: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 2.0:
            raise SamplingError("temperature", self.temperature, "a number from 0 to 2")
        if not 0.0 < self.top_p <= 1.0:
            raise SamplingError("top_p", self.top_p, "a number above 0, up to 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise SamplingError("seed", self.seed, f"a whole number from 0 to {MAX_SEED}")
        if self.max_tokens < 1:
            raise SamplingError("max_tokens", self.max_tokens, "a whole number from 1")
        if self.num_logprobs is not None and not 0 <= self.num_logprobs <= MAX_LOGPROBS:
            raise SamplingError("logprobs", self.num_logprobs, f"from 0 to {MAX_LOGPROBS}")
