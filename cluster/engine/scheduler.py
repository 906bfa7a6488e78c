"""Which requests run in the next step, and how many tokens of each.

The scheduler knows tokens and cache slots; it never sees a tensor, a clock or a network. Every
sequence is a list of token ids of which some are computed; a step computes more of them, and when
all are, a new one is sampled. Decoding and prefilling are the same thing at different lengths.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cluster.config import EngineConfig
from cluster.engine.request import FinishReason, GenerateRequest
from cluster.errors import EngineBusy, RequestTooLarge


class Sequence:
    """A request on its way through the engine.

    Mutable state: `token_ids` grows by one a step, `num_computed` follows it; `is_suspect` says
    that a step with this sequence in it failed, so that it now runs alone.
    """

    def __init__(self, request: GenerateRequest, num_slots: int) -> None:
        self.request = request
        self.num_slots = num_slots
        self.token_ids = [*request.prompt_ids, *request.output_ids]
        self.num_computed = 0
        self.is_suspect = False

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
        end = self.sequence.num_computed + self.num_tokens
        return end == len(self.sequence.token_ids)


class Scheduler:
    """First come, first served. Mutable state: `waiting` and `running`."""

    def __init__(self, config: EngineConfig, slots_for: Callable[[int], int]) -> None:
        """`slots_for` gives the cache slots of a sequence of at most so many tokens."""
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._config = config
        self._slots_for = slots_for

    @property
    def kv_tokens_used(self) -> int:
        """Cache slots that running sequences have reserved."""
        return sum(sequence.num_slots for sequence in self.running)

    def add(self, request: GenerateRequest) -> Sequence:
        """Queue a request.

        Raises:
            RequestTooLarge: it could never fit into the cache.
            EngineBusy: the queue is full.
        """
        num_slots = self._slots_for(request.max_total_tokens)
        if num_slots > self._config.kv_tokens:
            raise RequestTooLarge(request.max_total_tokens, self._config.kv_tokens)
        # Several may arrive between two steps; those that could run by now do not wait.
        self._admit()
        if len(self.waiting) >= self._config.max_waiting:
            raise EngineBusy(len(self.waiting))
        sequence = Sequence(request, num_slots)
        self.waiting.append(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that is finished or cancelled."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def schedule(self) -> list[ScheduledChunk]:
        """Choose the next step: running sequences first, newcomers while budgets last."""
        self._admit()
        suspect = next((s for s in self.running if s.is_suspect), None)
        if suspect is not None:
            return [self._chunk(suspect, self._config.step_tokens)]
        # Decodes go first, so that a long prompt takes what they leave and holds nobody up.
        by_length = sorted(self.running, key=lambda s: len(s.token_ids) - s.num_computed > 1)
        chunks: list[ScheduledChunk] = []
        budget = self._config.step_tokens
        for sequence in by_length:
            if budget == 0:
                break
            chunks.append(self._chunk(sequence, budget))
            budget -= chunks[-1].num_tokens
        return chunks

    def _admit(self) -> None:
        free = self._config.kv_tokens - self.kv_tokens_used
        while self.waiting and len(self.running) < self._config.max_running:
            if self.waiting[0].num_slots > free:
                return
            free -= self.waiting[0].num_slots
            self.running.append(self.waiting.popleft())

    def _chunk(self, sequence: Sequence, budget: int) -> ScheduledChunk:
        left = len(sequence.token_ids) - sequence.num_computed
        return ScheduledChunk(sequence, min(left, budget))
