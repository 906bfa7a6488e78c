"""The engine's cache on a real tiny model: shared, copied, preempted, windowed, never poisoned."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from cluster.config import EngineConfig
from cluster.engine.block_tables import Copy
from cluster.engine.engine import Engine
from cluster.engine.model_runner import ModelRunner
from cluster.errors import RequestFailed
from model.batch import Chunk
from model.config import ModelConfig
from model.transformer import Transformer
from routing.experts import Done, ExpertCall, Experts, PendingCall
from tests.checkpoints import TINY_DENSE, TINY_MOE
from tests.cluster.engine.running import (
    SEEDED,
    WINDOWED_MOE,
    Recorder,
    add,
    add_all,
    assert_nothing_is_left,
    engine_of,
    finish,
    golden,
    golden_of_all,
    prompt_of,
    runner_of,
)

BLOCK_TOKENS = 4


class CopyingRunner(ModelRunner):
    """Keeps the copies of every step, and what the copied blocks held before and after it."""

    def __init__(self, transformer: Transformer, experts: Experts, config: EngineConfig) -> None:
        super().__init__(transformer, experts, config)
        self.copies: list[Copy] = []
        self.held: list[tuple[Tensor, Tensor]] = []

    def run(self, chunks: Sequence[Chunk], copies: Sequence[Copy] = ()) -> Tensor:
        self.copies += copies
        before = [self._content(source) for source, _ in copies]
        logits_BV = super().run(chunks, copies)
        self.held += zip(before, (self._content(source) for source, _ in copies), strict=True)
        return logits_BV

    def _content(self, block: int) -> Tensor:
        slots = slice(*(edge * self._cache.block_tokens for edge in (block, block + 1)))
        layers = range(self.config.num_layers)
        return torch.stack([part for n in layers for part in self._cache.read(n, slots)])


class NanExperts:
    """Experts that answer with numbers that are none, while they are `ill`."""

    def __init__(self, experts: Experts) -> None:
        self.is_ill = False
        self._experts = experts

    def start(self, call: ExpertCall) -> PendingCall:
        if self.is_ill:
            return Done(torch.full_like(call.x_TD, torch.nan))
        return self._experts.start(call)


class IllRunner(ModelRunner):
    """Computes the step number `at`, counted from 0, with experts that are ill."""

    def __init__(
        self, transformer: Transformer, experts: Experts, config: EngineConfig, *, at: int
    ) -> None:
        self._nan_experts = NanExperts(experts)
        super().__init__(transformer, self._nan_experts, config)
        self._num_steps = 0
        self._at = at

    def run(self, chunks: Sequence[Chunk], copies: Sequence[Copy] = ()) -> Tensor:
        self._nan_experts.is_ill = self._num_steps == self._at
        self._num_steps += 1
        return super().run(chunks, copies)


class SpoilingRunner(ModelRunner):
    """Raises in the step number `at`, after it wrote rubbish where keys and values were to be."""

    def __init__(
        self, transformer: Transformer, experts: Experts, config: EngineConfig, *, at: int
    ) -> None:
        super().__init__(transformer, experts, config)
        self._num_steps = 0
        self._at = at

    def run(self, chunks: Sequence[Chunk], copies: Sequence[Copy] = ()) -> Tensor:
        self._num_steps += 1
        if self._num_steps - 1 != self._at:
            return super().run(chunks, copies)
        for chunk in chunks:
            table = self._cache.table(chunk.blocks, chunk.first_block)
            slots_T = torch.tensor(table.slots(chunk.positions))
            shape = (len(slots_T), self.config.num_kv_heads, self.config.head_dim)
            rubbish = torch.full(shape, 1e4)
            for layer in range(self.config.num_layers):
                self._cache.write(layer, slots_T, rubbish, rubbish)
        raise RuntimeError("on purpose")


def ask(engine: Engine, name: str, num_prompt: int, num_answer: int = 8) -> Recorder:
    """Queue a greedy request; all prompts begin alike."""
    return add(engine, name, prompt_of(num_prompt), max_tokens=num_answer)


def finished(engine: Engine, name: str, num_prompt: int, num_answer: int = 8) -> list[int]:
    """Greedy ids of a request, computed to its end."""
    recorder = ask(engine, name, num_prompt, num_answer)
    finish(engine)
    assert recorder.errors == []
    return recorder.ids


@pytest.mark.parametrize(
    ("config", "kv_tokens"),
    [(TINY_MOE, 60), (TINY_DENSE, 48), (WINDOWED_MOE, 16)],
    ids=["moe", "dense", "windowed"],
)
@pytest.mark.parametrize("step_tokens", [512, 6])
def test_tokens_are_the_same_when_requests_are_preempted(
    config: ModelConfig, kv_tokens: int, step_tokens: int
) -> None:
    engine = engine_of(
        config, kv_tokens=kv_tokens, step_tokens=step_tokens, block_tokens=BLOCK_TOKENS
    )

    recorders = add_all(engine)
    finish(engine)

    assert engine.stats().num_preempted > 0
    assert [recorder.ids for recorder in recorders] == golden_of_all(config)
    assert_nothing_is_left(engine)


def test_seeded_tokens_are_the_same_after_a_preemption() -> None:
    roomy, narrow = (
        engine_of(TINY_MOE),
        engine_of(TINY_MOE, kv_tokens=40, block_tokens=BLOCK_TOKENS),
    )
    expected = add(roomy, "seeded", prompt_of(9), max_tokens=15, **SEEDED)
    finish(roomy)

    # The seeded one is the last in order, so it is the one that gives its blocks back.
    ask(narrow, "first", num_prompt=4, num_answer=30)
    recorder = add(narrow, "seeded", prompt_of(9), max_tokens=15, **SEEDED)
    finish(narrow)

    assert narrow.stats().num_preempted > 0
    assert recorder.ids == expected.ids
    assert recorder.finish_reason == "length"


def test_a_preempted_request_hears_each_token_once() -> None:
    engine = engine_of(TINY_MOE, kv_tokens=40, block_tokens=BLOCK_TOKENS)
    ask(engine, "first", num_prompt=4, num_answer=30)
    preempted = ask(engine, "second", num_prompt=9, num_answer=15)

    while not engine.stats().num_preempted:
        engine.step()
    before = list(preempted.ids)
    finish(engine)

    expected = golden(TINY_MOE, prompt_of(9), 15)
    assert 0 < len(before) < 15
    assert (before, preempted.ids) == (expected[: len(before)], expected)


@pytest.mark.parametrize(
    "config", [TINY_MOE, TINY_DENSE, WINDOWED_MOE], ids=["moe", "dense", "windowed"]
)
def test_an_equal_beginning_is_reused_and_gives_the_same_tokens(config: ModelConfig) -> None:
    engine = engine_of(config, block_tokens=BLOCK_TOKENS)

    ids = [finished(engine, str(num), num) for num in (18, 18, 30, 11)]

    assert ids == [golden(config, prompt_of(num), 8) for num in (18, 18, 30, 11)]
    # 4 blocks of 18 tokens, again 4 of the 30, and 2 of the 11.
    assert engine.stats().num_reused_tokens == 16 + 16 + 8


def test_a_prefix_that_another_still_computes_with_is_shared() -> None:
    engine = engine_of(TINY_MOE, block_tokens=BLOCK_TOKENS)
    first = ask(engine, "first", num_prompt=18)
    engine.step()

    second = ask(engine, "second", num_prompt=19)
    engine.step()
    used = engine.stats().kv_tokens_used
    finish(engine)

    # 4 blocks together, and one each.
    assert used == 6 * 4
    assert first.ids == golden(TINY_MOE, prompt_of(18), 8)
    assert second.ids == golden(TINY_MOE, prompt_of(19), 8)


def test_an_answer_is_reused_by_the_next_turn() -> None:
    engine = engine_of(TINY_MOE, block_tokens=BLOCK_TOKENS)
    answer = finished(engine, "first", num_prompt=18, num_answer=8)
    next_turn = [*prompt_of(18), *answer, 5, 6, 7]

    recorder = add(engine, "second", next_turn, max_tokens=8)
    finish(engine)

    # Of 26 tokens the last was never computed; 6 blocks are full.
    assert engine.stats().num_reused_tokens == 24
    assert recorder.ids == golden(TINY_MOE, next_turn, 8)


def test_seeded_tokens_are_the_same_from_a_known_prefix() -> None:
    fresh, engine = engine_of(TINY_MOE), engine_of(TINY_MOE, block_tokens=BLOCK_TOKENS)
    expected = add(fresh, "a", prompt_of(18), max_tokens=12, **SEEDED)
    finish(fresh)
    finished(engine, "before", num_prompt=18)

    recorder = add(engine, "a", prompt_of(18), max_tokens=12, **SEEDED)
    finish(engine)

    assert engine.stats().num_reused_tokens == 16
    assert recorder.ids == expected.ids


def test_requests_of_different_salt_share_nothing() -> None:
    engine = engine_of(TINY_MOE, block_tokens=BLOCK_TOKENS)

    salted = []
    for name, salt in [("a", ""), ("b", "tenant 1"), ("c", "tenant 2")]:
        salted.append(add(engine, name, prompt_of(18), cache_salt=salt, max_tokens=8))
        finish(engine)
    reused_by_others = engine.stats().num_reused_tokens
    salted.append(add(engine, "d", prompt_of(18), cache_salt="tenant 1", max_tokens=8))
    finish(engine)

    assert reused_by_others == 0
    assert engine.stats().num_reused_tokens == 16
    assert [recorder.ids for recorder in salted] == [golden(TINY_MOE, prompt_of(18), 8)] * 4


def test_a_block_that_another_reads_is_copied_and_not_written() -> None:
    config = EngineConfig(block_tokens=BLOCK_TOKENS)
    runner = runner_of(TINY_MOE, config, CopyingRunner)
    assert isinstance(runner, CopyingRunner)
    engine = Engine(runner, config)
    first = ask(engine, "first", num_prompt=16)
    engine.step()

    # The prompt fills its blocks; the second computes its last token anew, in a block of its own.
    second = ask(engine, "second", num_prompt=16)
    finish(engine)

    expected = golden(TINY_MOE, prompt_of(16), 8)
    assert len(runner.copies) == 1
    [(before, after)] = runner.held
    assert torch.equal(before, after)
    assert (first.ids, second.ids) == (expected, expected)
    assert engine.stats().num_reused_tokens == 15
    assert_nothing_is_left(engine)


def test_urgent_requests_overtake_those_that_wait() -> None:
    engine = engine_of(TINY_MOE, max_running=1)
    running = ask(engine, "running", num_prompt=4, num_answer=3)
    engine.step()
    plain = add(engine, "plain", prompt_of(5), max_tokens=2)
    urgent = add(engine, "urgent", prompt_of(6), max_tokens=2, priority=-1)

    engine.step()
    engine.step()
    assert running.is_over
    engine.step()
    engine.step()

    assert (urgent.is_over, plain.events) == (True, [])
    finish(engine)
    assert plain.ids == golden(TINY_MOE, prompt_of(5), 2)


def test_a_windowed_model_holds_its_window_however_long_the_request() -> None:
    engine = engine_of(WINDOWED_MOE, kv_tokens=400, step_tokens=8, block_tokens=BLOCK_TOKENS)
    recorder = ask(engine, "long", num_prompt=40, num_answer=60)

    used = []
    while not recorder.is_over:
        engine.step()
        used.append(engine.stats().kv_tokens_used)

    # A window of 8 tokens touches up to 3 blocks of 4.
    assert max(used) <= 12
    assert recorder.ids == golden(WINDOWED_MOE, prompt_of(40), 60)


def test_a_windowed_request_longer_than_the_cache_gives_the_same_tokens() -> None:
    engine = engine_of(WINDOWED_MOE, kv_tokens=12, block_tokens=BLOCK_TOKENS)

    assert finished(engine, "long", 40, 60) == golden(WINDOWED_MOE, prompt_of(40), 60)


@pytest.mark.parametrize("kind", [IllRunner, SpoilingRunner])
@pytest.mark.parametrize("at", [0, 1, 2], ids=["first chunk", "middle chunk", "last chunk"])
def test_what_a_failed_step_wrote_is_never_reused(
    kind: Callable[..., ModelRunner], at: int
) -> None:
    engine = engine_of(TINY_MOE, partial(kind, at=at), step_tokens=8, block_tokens=BLOCK_TOKENS)
    failed = ask(engine, "failed", num_prompt=24)
    finish(engine)

    ids = finished(engine, "again", num_prompt=24)

    assert [type(error) for error in failed.errors] == [RequestFailed]
    assert ids == golden(TINY_MOE, prompt_of(24), 8)
    assert engine.stats().num_reused_tokens == 8 * at
    assert_nothing_is_left(engine)


@pytest.mark.parametrize("kind", [IllRunner, SpoilingRunner])
def test_a_remembered_block_that_a_failed_step_wrote_into_is_forgotten(
    kind: Callable[..., ModelRunner],
) -> None:
    engine = engine_of(TINY_MOE, partial(kind, at=1), block_tokens=BLOCK_TOKENS)
    finished(engine, "before", num_prompt=16, num_answer=1)

    # All blocks are known; the last token is computed anew, in the last of them, in step 1.
    failed = ask(engine, "failed", num_prompt=16)
    finish(engine)
    reused = engine.stats().num_reused_tokens
    ids = finished(engine, "again", num_prompt=16)

    assert [type(error) for error in failed.errors] == [RequestFailed]
    assert reused == 15
    assert engine.stats().num_reused_tokens == reused + 12
    assert ids == golden(TINY_MOE, prompt_of(16), 8)


@pytest.mark.parametrize("kind", [IllRunner, SpoilingRunner])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_fault_of_a_shared_step_changes_no_tokens_then_or_later(
    kind: Callable[..., ModelRunner], at: int
) -> None:
    engine = engine_of(TINY_MOE, partial(kind, at=at), step_tokens=20, block_tokens=BLOCK_TOKENS)

    recorders = add_all(engine)
    finish(engine)
    later = add_all(engine)
    finish(engine)

    for recorder in [*recorders, *later]:
        assert recorder.errors == []
    assert [recorder.ids for recorder in recorders] == golden_of_all(TINY_MOE)
    assert [recorder.ids for recorder in later] == golden_of_all(TINY_MOE)
    assert_nothing_is_left(engine)


def test_a_request_cancelled_amid_its_prompt_gives_all_blocks_back() -> None:
    engine = engine_of(TINY_MOE, step_tokens=8, block_tokens=BLOCK_TOKENS)
    cancelled = ask(engine, "cancelled", num_prompt=40)
    engine.step()
    engine.step()
    used = engine.stats().kv_tokens_used

    engine.cancel("cancelled")
    engine.step()

    assert (used, cancelled.events, cancelled.errors) == (16, [], [])
    assert_nothing_is_left(engine)


def test_what_a_cancelled_request_had_computed_is_reused() -> None:
    engine = engine_of(TINY_MOE, step_tokens=8, block_tokens=BLOCK_TOKENS)
    ask(engine, "cancelled", num_prompt=40)
    engine.step()
    engine.step()
    engine.cancel("cancelled")
    engine.step()

    ids = finished(engine, "again", num_prompt=40)

    assert engine.stats().num_reused_tokens == 16
    assert ids == golden(TINY_MOE, prompt_of(40), 8)
