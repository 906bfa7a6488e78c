"""Which requests run in the next step, and how many tokens of each.

The scheduler knows tokens and blocks; it never sees a tensor, a clock or a network. Sequences are
served by priority, then by arrival. Those that decode go first; prompts take what the step's budget
leaves. When blocks run out, the last in order gives its own back and is computed anew later.
"""

import heapq

from cluster.config import EngineConfig
from cluster.engine.block_tables import BlockTables
from cluster.engine.pace import Pace, complete, share
from cluster.engine.request import GenerateRequest
from cluster.engine.sequence import ScheduledChunk, ScheduledStep, Sequence
from cluster.errors import EngineBusy, RequestTooLarge


class Scheduler:
    """Mutable state: who waits, who runs (in order), and the blocks of those that run."""

    def __init__(self, config: EngineConfig, window_tokens: int | None) -> None:
        self.running: list[Sequence] = []
        self.num_preempted = 0
        self.num_reused_tokens = 0
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []
        self._num_arrived = 0
        self._config = config
        self._tables = BlockTables(config.num_blocks, config.block_tokens, window_tokens)

    @property
    def num_waiting(self) -> int:
        """Requests that do not run yet."""
        return len(self._waiting)

    @property
    def kv_tokens_used(self) -> int:
        """Positions of the blocks that running sequences hold."""
        return self._tables.pool.num_used * self._config.block_tokens

    def add(self, request: GenerateRequest) -> Sequence:
        """Queue a request.

        Raises:
            RequestTooLarge: it could never fit into the cache.
            EngineBusy: the queue is full.
        """
        if self._tables.blocks_for(request.max_total_tokens) > self._config.num_blocks:
            limit_tokens = self._config.num_blocks * self._config.block_tokens
            raise RequestTooLarge(request.max_total_tokens, limit_tokens)
        # Several may arrive between two steps; those that could run by now do not wait.
        self._admit()
        if self.num_waiting >= self._config.max_waiting:
            raise EngineBusy(self.num_waiting)
        self._num_arrived += 1
        sequence = Sequence(request, self._num_arrived)
        self._wait(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that is finished or cancelled."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._tables.release(sequence.table)
        else:
            self._waiting = [entry for entry in self._waiting if entry[1] is not sequence]
            heapq.heapify(self._waiting)

    def restart(self, sequence: Sequence) -> None:
        """Have a running sequence computed anew, alone, as what it has may be spoilt."""
        self._forget_computed(sequence)
        sequence.is_suspect = True

    def commit(self, step: ScheduledStep) -> None:
        """Count a step as computed."""
        for chunk in step.chunks:
            sequence = chunk.sequence
            sequence.num_computed += chunk.num_tokens
            self._tables.commit(sequence.table, sequence.token_ids, sequence.num_computed)

    def schedule(self, pace: Pace) -> ScheduledStep:
        """Choose the next step, with as many prompt tokens as `pace` allows.

        The first in order can always go on, since all others can be made to give their blocks back.
        """
        self._admit()
        while self.running:
            step = self._try_schedule(pace)
            if step.chunks:
                return step
            self._preempt(self.running[-1])
        return ScheduledStep([], [])

    def _try_schedule(self, pace: Pace) -> ScheduledStep:
        step = ScheduledStep([], [])
        suspects = [sequence for sequence in self.running if sequence.is_suspect]
        for sequence in suspects[:1]:
            self._grant(step, sequence, self._config.step_tokens)
            return step
        for sequence in [sequence for sequence in self.running if sequence.num_left == 1]:
            self._make_room(sequence)
            self._grant(step, sequence, 1)
        prompts = [sequence for sequence in self.running if sequence.num_left > 1]
        for sequence, num_tokens in zip(prompts, self._shares(prompts, step, pace), strict=True):
            self._grant(step, sequence, num_tokens)
        return step

    def _shares(self, prompts: list[Sequence], step: ScheduledStep, pace: Pace) -> list[int]:
        """How many tokens of each prompt go beside the decodes that are in the step already."""
        wanted = [sequence.num_left for sequence in prompts]
        num_decodes = len(step.chunks)
        granted = share(wanted, pace.prompt_tokens(num_decodes))
        is_short = [sequence.prefill_tokens <= pace.short_tokens for sequence in prompts]
        short = [want if short else 0 for want, short in zip(wanted, is_short, strict=True)]
        return complete(granted, short, pace.tokens_at_once(num_decodes))

    def _grant(self, step: ScheduledStep, sequence: Sequence, max_tokens: int) -> None:
        """Put as many tokens of a running sequence into the step as there are blocks for."""
        table, num_computed = sequence.table, sequence.num_computed
        fitting = self._tables.num_fitting(table, num_computed)
        num_tokens = min(max_tokens, sequence.num_left, fitting)
        if num_tokens > 0 and sequence in self.running:
            step.copies.extend(self._tables.grow(table, num_computed, num_tokens))
            step.chunks.append(ScheduledChunk(sequence, num_tokens))

    def _make_room(self, sequence: Sequence) -> None:
        """Preempt sequences after this one in order until its next token fits."""
        while self._tables.num_fitting(sequence.table, sequence.num_computed) < 1:
            if self.running[-1].order <= sequence.order:
                return
            self._preempt(self.running[-1])

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preempted += 1
        self.running.remove(sequence)
        self._forget_computed(sequence)
        self._wait(sequence)

    def _forget_computed(self, sequence: Sequence) -> None:
        self._tables.release(sequence.table)
        sequence.num_computed = 0

    def _wait(self, sequence: Sequence) -> None:
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def _admit(self) -> None:
        """Let those in front run, as long as the blocks last for all prompts that run."""
        while self._waiting and len(self.running) < self._config.max_running:
            sequence = self._waiting[0][1]
            if not self._has_room(sequence):
                return
            heapq.heappop(self._waiting)
            self._start(sequence)

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether all that running sequences and this one have to compute now would fit."""
        promised = sum(self._num_promised(running) for running in self.running)
        needed = self._tables.blocks_for(len(sequence.token_ids))
        return not self.running or promised + needed <= self._tables.pool.num_free

    def _num_promised(self, sequence: Sequence) -> int:
        """Blocks that a running sequence will still ask for; no more at a time than a window's."""
        missing = self._tables.num_missing(sequence.table, sequence.num_computed, sequence.num_left)
        return min(missing, self._tables.blocks_for(len(sequence.token_ids)))

    def _start(self, sequence: Sequence) -> None:
        sequence.num_computed = self._tables.reuse(sequence.table, sequence.token_ids)
        self.num_reused_tokens += sequence.num_computed
        sequence.prefill_tokens = sequence.num_left
        self.running.append(sequence)
        self.running.sort(key=lambda running: running.order)
