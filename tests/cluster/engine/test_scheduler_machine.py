"""Whatever comes, goes, fails or runs out: blocks are conserved and everybody finishes in turn."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.engine.pace import Pace
from cluster.engine.request import GenerateRequest
from cluster.engine.sequence import ScheduledChunk, ScheduledStep, Sequence
from cluster.errors import EngineBusy, RequestTooLarge
from model.sampling_params import SamplingParams
from tests.cluster.engine.block_memory import BlockMemory
from tests.cluster.engine.scheduling import BLOCK_TOKENS, scheduler

MAX_WAITING = 6
STEPS_AT_MOST = 3_000


def positions(chunk: ScheduledChunk) -> range:
    first = chunk.sequence.num_computed
    return range(first, first + chunk.num_tokens)


class SchedulerMachine(RuleBasedStateMachine):
    """Plays the engine, with the cache kept on paper."""

    @initialize(
        num_blocks=st.integers(4, 24),
        window_tokens=st.none() | st.integers(1, 12),
        max_running=st.integers(1, 5),
        step_tokens=st.integers(1, 20),
    )
    def start(
        self, num_blocks: int, window_tokens: int | None, max_running: int, step_tokens: int
    ) -> None:
        self.num_blocks, self.window_tokens = num_blocks, window_tokens
        self.max_running, self.step_tokens = max_running, step_tokens
        self.queue = scheduler(window_tokens, max_running, MAX_WAITING, step_tokens, num_blocks)
        self.pace = Pace(step_tokens)
        self.memory = BlockMemory(BLOCK_TOKENS, window_tokens)
        self.live: list[Sequence] = []
        self.num_added = self.num_copied = self.num_refused = 0

    @rule(
        num_prompt=st.sampled_from([4, 8, 8, 16]) | st.integers(1, 40),
        token_id=st.integers(1, 2),
        max_tokens=st.integers(1, 14),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "", "other"]),
    )
    def add(
        self, num_prompt: int, token_id: int, max_tokens: int, priority: int, salt: str
    ) -> None:
        self.num_added += 1
        request = GenerateRequest(
            request_id=str(self.num_added),
            prompt_ids=(token_id,) * num_prompt,
            params=SamplingParams(max_tokens=max_tokens),
            priority=priority,
            cache_salt=salt,
        )
        try:
            self.live.append(self.queue.add(request))
        except RequestTooLarge:
            self.num_refused += 1
            assert self.window_tokens is None
            assert num_prompt + max_tokens > self.num_blocks * BLOCK_TOKENS
        except EngineBusy:
            self.num_refused += 1
            assert self.queue.num_waiting >= MAX_WAITING

    @precondition(lambda self: self.live)
    @rule(at=st.integers(0, 99))
    def cancel(self, at: int) -> None:
        self.queue.remove(self.live.pop(at % len(self.live)))

    @rule(token_id=st.integers(1, 2), step_s=st.floats(0.01, 1))
    def step(self, token_id: int, step_s: float) -> None:
        step = self.schedule()
        self.memory.copy(step.copies)
        for chunk in step.chunks:
            self.memory.write(chunk.sequence.table, chunk.sequence.token_ids, positions(chunk))
        for chunk in step.chunks:
            self.memory.check(chunk.sequence.table, chunk.sequence.token_ids, positions(chunk))
        if step.chunks:
            self.pace.observe(step.num_decodes, step.num_prompt_tokens, step_s)
        sampled = [chunk.sequence for chunk in step.chunks if chunk.is_last]
        self.queue.commit(step)
        for sequence in sampled:
            sequence.is_suspect = False
            if sequence.append(token_id) is not None:
                self.queue.remove(sequence)
                self.live.remove(sequence)

    @rule(does_copy=st.booleans())
    def fail_a_step(self, does_copy: bool) -> None:
        step = self.schedule()
        if does_copy:
            self.memory.copy(step.copies)
        for chunk in step.chunks:
            self.memory.spoil(chunk.sequence.table, positions(chunk))
        for chunk in step.chunks:
            if len(step.chunks) == 1:
                self.queue.remove(chunk.sequence)
                self.live.remove(chunk.sequence)
            else:
                self.queue.restart(chunk.sequence)

    def schedule(self) -> ScheduledStep:
        """The next step, checked for all that can be said of any step."""
        before = list(self.queue.running)
        step = self.queue.schedule(self.pace)
        self.num_copied += len(step.copies)
        running, planned = self.queue.running, [chunk.sequence for chunk in step.chunks]
        assert bool(step.chunks) == bool(self.live)
        assert len({*planned}) == len(planned)
        assert {*planned} <= {*running}
        assert all(0 < chunk.num_tokens <= chunk.sequence.num_left for chunk in step.chunks)
        num_prompt_tokens = max(self.step_tokens - step.num_decodes, 1)
        assert step.num_prompt_tokens <= num_prompt_tokens
        self.check_nobody_was_overtaken(before)
        if any(sequence.is_suspect for sequence in running):
            assert [sequence.is_suspect for sequence in planned] == [True]
        else:
            self.check_decodes(planned)
        return step

    def check_nobody_was_overtaken(self, running_before: list[Sequence]) -> None:
        """Who starts comes before all who wait."""
        waiting = [sequence for sequence in self.live if sequence not in self.queue.running]
        for sequence in self.queue.running:
            if sequence not in running_before:
                assert all(sequence.order < other.order for other in waiting)

    def check_decodes(self, planned: list[Sequence]) -> None:
        """They come first, and only the last in order is ever left out, for want of a block."""
        decoding = [sequence for sequence in self.queue.running if sequence.num_left == 1]
        left_out = [sequence for sequence in decoding if sequence not in planned]
        assert planned[: len(decoding) - len(left_out)] == decoding[: len(decoding) - len(left_out)]
        if left_out:
            assert left_out == self.queue.running[-1:]
            assert self.queue.kv_tokens_used == self.num_blocks * BLOCK_TOKENS

    @invariant()
    def blocks_are_conserved(self) -> None:
        held = {block for sequence in self.live for block in sequence.table.blocks}
        assert self.queue.kv_tokens_used == len(held) * BLOCK_TOKENS

    @invariant()
    def all_run_in_order_or_wait(self) -> None:
        orders = [sequence.order for sequence in self.queue.running]
        assert orders == sorted(orders)
        assert len(orders) <= self.max_running
        assert self.queue.num_waiting + len(orders) == len(self.live)
        for sequence in self.live:
            if sequence not in self.queue.running:
                assert (sequence.num_computed, sequence.table.blocks) == (0, [])

    def teardown(self) -> None:
        if not hasattr(self, "queue"):
            return
        left = list(self.live)
        for _ in range(STEPS_AT_MOST):
            if not self.live:
                break
            self.step(1, 0.1)
        assert self.live == []
        assert all(s.num_generated == s.request.params.max_tokens for s in left)
        assert (self.queue.running, self.queue.num_waiting) == ([], 0)
        assert self.queue.kv_tokens_used == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(("num_blocks", "window_tokens"), [(12, None), (8, 9)])
def test_the_machine_preempts_reuses_copies_and_refuses(
    num_blocks: int, window_tokens: int | None
) -> None:
    machine, rng = SchedulerMachine(), random.Random(0)
    machine.start(num_blocks, window_tokens, max_running=4, step_tokens=16)

    for _ in range(1_000):
        prompt = rng.choice([4, 8, 8, 16, rng.randint(1, 40)])
        machine.add(prompt, 1, rng.randint(1, 14), rng.randint(0, 2), rng.choice(["", "other"]))
        machine.step(1, 0.1)
        if rng.random() < 0.1:
            machine.fail_a_step(True)
    machine.teardown()

    assert machine.queue.num_preempted > 10
    assert machine.queue.num_reused_tokens > 100
    assert machine.num_copied > 10
    assert machine.num_refused > 10
