"""A request on its way through the engine, and the piece of it that one step computes."""

from dataclasses import dataclass

from cluster.engine.block_tables import BlockTable, Copy
from cluster.engine.request import FinishReason, GenerateRequest


class Sequence:
    """A list of token ids of which some are computed: decode and prefill at different lengths.

    Mutable state: `token_ids` grows by one a step, `num_computed` follows it, `table` says where
    the computed ones lie; `prefill_tokens` is what was left to compute when it last began to run;
    `is_suspect` says that a step with this sequence in it failed, so that it now runs alone.
    """

    def __init__(self, request: GenerateRequest, arrival: int) -> None:
        self.request = request
        self.order = (request.priority, arrival)
        self.token_ids = [*request.prompt_ids, *request.output_ids]
        self.num_computed = 0
        self.prefill_tokens = 0
        self.table = BlockTable(request.cache_salt)
        self.is_suspect = False

    @property
    def num_left(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed

    @property
    def num_generated(self) -> int:
        """Tokens generated so far, also on routers that ran the request before."""
        return len(self.token_ids) - len(self.request.prompt_ids)

    def append(self, token_id: int) -> FinishReason | None:
        """Take a sampled token; say whether and why it is the last."""
        self.token_ids.append(token_id)
        if token_id in self.request.params.stop_token_ids:
            return "stop"
        return "length" if self.num_generated >= self.request.params.max_tokens else None


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """The tokens of one sequence that a step computes: `num_tokens` after those computed."""

    sequence: Sequence
    num_tokens: int

    @property
    def token_ids(self) -> list[int]:
        """The chunk's ids."""
        first = self.sequence.num_computed
        return self.sequence.token_ids[first : first + self.num_tokens]

    @property
    def is_last(self) -> bool:
        """Whether the step computes all that is left, so that a token can be sampled."""
        return self.num_tokens == self.sequence.num_left


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """What the next step computes: `copies` of blocks first, then the chunks."""

    chunks: list[ScheduledChunk]
    copies: list[Copy]

    @property
    def num_decodes(self) -> int:
        """Sequences of which one token is left to compute."""
        return sum(chunk.sequence.num_left == 1 for chunk in self.chunks)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all the others."""
        return sum(chunk.num_tokens for chunk in self.chunks) - self.num_decodes
