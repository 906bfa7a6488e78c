import pytest

from loadtest.bench.cells import TOKENS_PER_S, Cell
from loadtest.bench.driving import (
    BOS_ID,
    WARM_UP_TOKENS,
    Driver,
    NotAnswered,
    decode_rate,
)
from tests.loadtest.bench.engines import FakeEngine
from tests.loadtest.bench.records import cell


def measure(engine: FakeEngine, of: Cell, seed: int = 1) -> list[float]:
    return list(Driver(engine, 100, seed, engine.now_s).measure(of)[TOKENS_PER_S])


def test_decode_counts_tokens_after_every_stream_has_its_first() -> None:
    assert measure(FakeEngine(), cell("decode")) == [2.0]


def test_prefill_counts_prompt_tokens_until_the_first_answer() -> None:
    assert measure(FakeEngine(), cell("prefill")) == [10.0]


def test_a_burst_counts_all_tokens_from_the_asking_to_the_last() -> None:
    assert measure(FakeEngine(), cell("burst", batch=3)) == [3.0]


def test_a_cell_is_measured_as_often_as_it_asks_after_a_warm_up() -> None:
    engine = FakeEngine()
    of = Cell(kind="burst", batch=1, prompt_tokens=5, new_tokens=4, repeats=2)

    rates = measure(engine, of)

    assert rates == [1.0, 1.0]
    assert [stream.num_tokens for stream in engine.streams] == [WARM_UP_TOKENS, 4, 4]


def test_prompts_are_random_and_another_seed_gives_others() -> None:
    first, same, other = FakeEngine(), FakeEngine(), FakeEngine()

    for engine, seed in ((first, 1), (same, 1), (other, 2)):
        measure(engine, cell("decode"), seed)

    assert first.prompts == same.prompts != other.prompts
    assert all(prompt[0] == BOS_ID and len(prompt) == 5 for prompt in first.prompts)
    assert len({tuple(prompt) for prompt in first.prompts}) == len(first.prompts)
    assert all(3 <= token_id < 100 for prompt in first.prompts for token_id in prompt[1:])


def test_a_stream_that_fails_ends_the_cell() -> None:
    with pytest.raises(NotAnswered, match="no more steps"):
        measure(FakeEngine(max_steps=4), cell("decode"))


def test_the_decode_rate_begins_when_the_last_stream_does() -> None:
    assert decode_rate([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]) == pytest.approx(1.5)
