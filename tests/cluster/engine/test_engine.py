"""The engine on a real tiny model: whatever happens to others, a request's tokens stay the same."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from cluster.engine.engine import Engine
from cluster.errors import EngineBusy, EngineStopped, RequestFailed, RequestTooLarge
from model.config import ModelConfig
from routing.errors import ExpertUnavailable
from tests.checkpoints import TINY_DENSE, TINY_MOE
from tests.cluster.engine.running import (
    POISON_ID,
    SEEDED,
    WINDOWED_MOE,
    PoisonedRunner,
    ScriptedRunner,
    add,
    add_all,
    assert_nothing_is_left,
    engine_of,
    finish,
    golden,
    golden_of_all,
    prompt_of,
)

CONFIGS = [TINY_MOE, TINY_DENSE, WINDOWED_MOE]


@contextmanager
def running(engine: Engine) -> Iterator[threading.Thread]:
    """The engine in a thread of its own, stopped at the end."""
    thread = threading.Thread(target=engine.run, name="engine", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        engine.stop()
        thread.join(timeout=30)


@pytest.mark.parametrize("config", CONFIGS, ids=["moe", "dense", "windowed"])
@pytest.mark.parametrize("step_tokens", [512, 5])
def test_concurrent_requests_give_the_tokens_that_each_gives_alone(
    config: ModelConfig, step_tokens: int
) -> None:
    engine = engine_of(config, step_tokens=step_tokens)

    recorders = add_all(engine)
    finish(engine)

    assert [recorder.ids for recorder in recorders] == golden_of_all(config)
    assert_nothing_is_left(engine)


@pytest.mark.parametrize("num_micro_batches", [2, 3, 8])
def test_tokens_do_not_depend_on_the_number_of_micro_batches(num_micro_batches: int) -> None:
    engine = engine_of(TINY_MOE, num_micro_batches=num_micro_batches)

    recorders = add_all(engine)
    finish(engine)

    assert [recorder.ids for recorder in recorders] == golden_of_all(TINY_MOE)


def test_seeded_tokens_do_not_depend_on_the_company() -> None:
    alone, crowded = engine_of(TINY_MOE), engine_of(TINY_MOE, step_tokens=6, num_micro_batches=2)
    single = add(alone, "a", prompt_of(9), max_tokens=15, **SEEDED)

    add_all(crowded)
    accompanied = add(crowded, "a", prompt_of(9), max_tokens=15, **SEEDED)
    finish(alone)
    finish(crowded)

    assert accompanied.ids == single.ids
    assert single.ids != golden(TINY_MOE, prompt_of(9), 15)


def test_a_request_joins_while_others_run() -> None:
    engine = engine_of(TINY_MOE)
    early = add(engine, "early", prompt_of(5), max_tokens=20)
    for _ in range(3):
        engine.step()

    late = add(engine, "late", prompt_of(4), max_tokens=2)
    engine.step()

    assert len(late.ids) == 1
    assert len(early.ids) == 4


def test_a_long_prompt_does_not_hold_up_those_who_decode() -> None:
    engine = engine_of(TINY_MOE, step_tokens=8)
    decoding = add(engine, "decoding", prompt_of(3), max_tokens=20)
    engine.step()

    prefilling = add(engine, "prefilling", prompt_of(30), max_tokens=1)
    for _ in range(4):
        engine.step()

    assert len(decoding.ids) == 5
    assert prefilling.ids == []


def test_a_stop_id_ends_a_request() -> None:
    ids = golden(TINY_MOE, prompt_of(6), 8)
    stop_id = ids[4]
    engine = engine_of(TINY_MOE)

    recorder = add(engine, "a", prompt_of(6), max_tokens=8, stop_token_ids=(stop_id,))
    finish(engine)

    assert recorder.ids == ids[: ids.index(stop_id) + 1]
    assert recorder.finish_reason == "stop"


def test_max_tokens_ends_a_request() -> None:
    engine = engine_of(TINY_MOE)

    recorder = add(engine, "a", prompt_of(6), max_tokens=3)
    finish(engine)

    assert len(recorder.ids) == 3
    assert [event.finish_reason for event in recorder.events] == [None, None, "length"]


@pytest.mark.parametrize("params", [{}, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("num_before", [1, 6, 11])
def test_a_resumed_request_goes_on_with_the_same_tokens(
    params: dict[str, float], num_before: int
) -> None:
    whole_engine, engine = engine_of(WINDOWED_MOE), engine_of(WINDOWED_MOE)
    whole = add(whole_engine, "a", prompt_of(10), max_tokens=12, **params)
    finish(whole_engine)

    resumed = add(engine, "a", prompt_of(10), whole.ids[:num_before], max_tokens=12, **params)
    finish(engine)

    assert resumed.ids == whole.ids[num_before:]
    assert resumed.finish_reason == "length"


def test_log_probabilities_are_given_when_asked_for() -> None:
    engine = engine_of(TINY_MOE)

    asking = add(engine, "a", prompt_of(6), max_tokens=2, num_logprobs=3)
    silent = add(engine, "b", prompt_of(6), max_tokens=2)
    finish(engine)

    assert [len(event.top_logprobs) for event in asking.events] == [3, 3]
    assert asking.events[0].top_logprobs[0][0] == asking.ids[0]
    assert [event.logprob for event in silent.events] == [None, None]


def test_a_cancelled_request_frees_its_blocks_and_hears_nothing_more() -> None:
    engine = engine_of(TINY_MOE, max_running=1)
    running_one = add(engine, "running", prompt_of(5), max_tokens=50)
    waiting_one = add(engine, "waiting", prompt_of(5), max_tokens=50)
    engine.step()

    engine.cancel("running")
    engine.cancel("waiting")
    engine.step()

    assert (len(running_one.events), len(waiting_one.events)) == (1, 0)
    assert running_one.errors == waiting_one.errors == []
    assert_nothing_is_left(engine)


def test_a_cancel_lets_the_next_request_in_at_once() -> None:
    engine = engine_of(TINY_MOE, kv_tokens=20, block_tokens=4)
    add(engine, "first", prompt_of(13), max_tokens=7)
    second = add(engine, "second", prompt_of(13), max_tokens=7)
    engine.step()
    assert second.events == []

    engine.cancel("first")
    engine.step()

    assert len(second.events) == 1


def test_cancelling_what_is_over_or_unknown_does_no_harm() -> None:
    engine = engine_of(TINY_MOE)
    recorder = add(engine, "a", prompt_of(5), max_tokens=1)
    finish(engine)

    engine.cancel("a")
    engine.cancel("nobody")
    engine.step()

    assert recorder.finish_reason == "length"


def test_refusals_reach_the_listener() -> None:
    engine = engine_of(TINY_MOE, max_running=1, max_waiting=1, kv_tokens=30, block_tokens=5)

    too_large = add(engine, "a", prompt_of(10), max_tokens=21)
    add(engine, "running", prompt_of(4), max_tokens=1)
    add(engine, "b", prompt_of(4), max_tokens=1)
    one_too_many = add(engine, "c", prompt_of(4), max_tokens=1)
    finish(engine)

    assert [type(error) for error in too_large.errors] == [RequestTooLarge]
    assert [type(error) for error in one_too_many.errors] == [EngineBusy]
    assert_nothing_is_left(engine)


@pytest.mark.parametrize("config", CONFIGS, ids=["moe", "dense", "windowed"])
@pytest.mark.parametrize("step_tokens", [512, 6])
def test_a_poisoned_request_fails_alone(config: ModelConfig, step_tokens: int) -> None:
    engine = engine_of(config, PoisonedRunner, step_tokens=step_tokens, num_micro_batches=2)
    recorders = add_all(engine)
    for _ in range(4):
        engine.step()

    poisoned = add(engine, "poisoned", [*prompt_of(9), POISON_ID, 5], max_tokens=8)
    finish(engine)

    assert [type(error) for error in poisoned.errors] == [RequestFailed]
    assert poisoned.events == []
    assert [recorder.ids for recorder in recorders] == golden_of_all(config)
    assert_nothing_is_left(engine)


def test_seeded_tokens_survive_a_poisoned_neighbour() -> None:
    calm, shaken = engine_of(TINY_MOE), engine_of(TINY_MOE, PoisonedRunner)
    expected = add(calm, "a", prompt_of(9), max_tokens=12, **SEEDED)
    finish(calm)

    recorder = add(shaken, "a", prompt_of(9), max_tokens=12, **SEEDED)
    for _ in range(5):
        shaken.step()
    add(shaken, "poisoned", [1, POISON_ID], max_tokens=8)
    finish(shaken)

    assert recorder.ids == expected.ids


def test_requests_run_together_again_after_a_poisoned_one_is_gone() -> None:
    engine = engine_of(TINY_MOE, PoisonedRunner)
    recorders = [add(engine, name, prompt_of(4), max_tokens=20) for name in "ab"]
    add(engine, "poisoned", [1, POISON_ID], max_tokens=8)
    for _ in range(4):
        engine.step()

    before = [len(recorder.ids) for recorder in recorders]
    engine.step()

    assert [len(recorder.ids) for recorder in recorders] == [seen + 1 for seen in before]


def test_a_passing_fault_of_a_shared_step_costs_no_request() -> None:
    kind = partial(ScriptedRunner, at=3, error=RuntimeError("on purpose"))
    engine = engine_of(TINY_MOE, kind)

    recorders = add_all(engine)
    finish(engine)

    assert [recorder.ids for recorder in recorders] == golden_of_all(TINY_MOE)
    assert all(recorder.errors == [] for recorder in recorders)


def test_an_unavailable_expert_fails_the_step_and_the_engine_goes_on() -> None:
    kind = partial(ScriptedRunner, at=2, error=ExpertUnavailable("expert 3"))
    engine = engine_of(TINY_MOE, kind, max_running=2)

    in_the_step = [add(engine, name, prompt_of(5), max_tokens=9) for name in "ab"]
    waiting = add(engine, "c", prompt_of(5), max_tokens=9)
    finish(engine)

    assert [[type(e) for e in r.errors] for r in in_the_step] == [[ExpertUnavailable]] * 2
    assert [len(recorder.ids) for recorder in in_the_step] == [2, 2]
    assert waiting.ids == golden(TINY_MOE, prompt_of(5), 9)
    assert_nothing_is_left(engine)


def test_statistics_count_requests_and_positions_of_whole_blocks() -> None:
    engine = engine_of(TINY_MOE, max_running=1, kv_tokens=67, block_tokens=4)
    add(engine, "a", prompt_of(5), max_tokens=10)
    add(engine, "b", prompt_of(5), max_tokens=10)

    engine.step()
    engine.step()

    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (1, 1)
    assert (stats.kv_tokens_used, stats.kv_tokens) == (8, 68)


def test_a_thread_serves_requests_of_other_threads() -> None:
    engine = engine_of(TINY_MOE)

    with running(engine):
        recorders = add_all(engine)
        engine.probe().result(timeout=30)
        while not all(recorder.is_over for recorder in recorders):
            engine.probe().result(timeout=30)

    assert [recorder.ids for recorder in recorders] == golden_of_all(TINY_MOE)


def test_stop_fails_what_is_left() -> None:
    engine = engine_of(TINY_MOE, max_running=1)
    recorders = [add(engine, name, prompt_of(4), max_tokens=10_000) for name in "ab"]

    with running(engine) as thread:
        engine.probe().result(timeout=30)

    assert not thread.is_alive()
    assert [[type(e) for e in r.errors] for r in recorders] == [[EngineStopped]] * 2
    assert_nothing_is_left(engine)


def test_a_request_that_comes_with_the_stop_hears_of_it() -> None:
    engine = engine_of(TINY_MOE)
    engine.stop()
    late = add(engine, "late", prompt_of(4), max_tokens=4)

    engine.run()

    assert late.is_over


def test_an_engine_that_is_over_fails_newcomers_at_once() -> None:
    engine = engine_of(TINY_MOE)
    with running(engine):
        pass

    late = add(engine, "late", prompt_of(4), max_tokens=10)

    assert [type(error) for error in late.errors] == [EngineStopped]
    assert engine.stats().num_waiting == 0
