import time
from pathlib import Path

import pytest
import torch

from loadtest.bench.checkpoints import ensure_checkpoint
from loadtest.bench.curves import (
    Curve,
    Overhead,
    ScalingRecord,
    draw_curves,
    scaling_page,
    spread_ms,
)
from loadtest.bench.engine_adapter import Limits, RandomWeights, config_of, timed_engine
from loadtest.bench.scaling import (
    NUM_ROUNDS,
    NUM_STEPS,
    WARM_UP_STEPS,
    begin,
    prompts,
    rounds_of,
    step_times,
    waiting_steps,
)
from tests.loadtest.bench.engines import FakeEngine
from tests.loadtest.bench.records import SIZE

RECORD = ScalingRecord(
    recorded_at="2026-11-24T22:00:00+00:00",
    commit="abc1234",
    hardware="a machine",
    threads=2,
    torch="2.13",
    curves=[
        Curve(against="sequences at once", model="demo", steps_s={1: [0.001] * 3, 2: [0.002] * 3}),
        Curve(against="sequences at once", model="tiny", steps_s={2: [0.004] * 3}),
        Curve(against="requests waiting", model="demo", steps_s={0: [0.001, 0.003]}),
    ],
    overhead=Overhead(model="demo", batch=16, steps_s=[0.005, 0.005], model_s=[0.004, 0.004]),
)


def test_a_step_is_timed_from_one_reading_of_the_clock_to_the_next() -> None:
    engine = FakeEngine()

    assert step_times(engine, 3, engine.now_s) == [1.0, 1.0, 1.0]


def test_every_group_is_measured_in_every_round_and_warm_up_is_not() -> None:
    engine = FakeEngine()
    asked = {number: prompts(number, 4, vocab_size=100) for number in (1, 2)}

    steps_s = rounds_of(engine, asked, engine.now_s)

    assert [len(each) for each in steps_s.values()] == [NUM_ROUNDS * NUM_STEPS] * 2
    assert len(engine.streams) == NUM_ROUNDS * 3
    assert engine.unfinished == []
    assert len(engine.streams[0].times_s) == 1 + WARM_UP_STEPS + NUM_STEPS


def test_requests_that_wait_are_there_while_the_others_are_measured() -> None:
    engine = FakeEngine(max_running=2)

    steps_s = waiting_steps(engine, prompts(2, 4, 100), [[1]] * 5, engine.now_s)

    assert len(steps_s) == NUM_STEPS
    assert [len(stream.times_s) for stream in engine.streams[2:]] == [0] * 5


def test_curves_against_the_same_share_a_table() -> None:
    text = scaling_page(RECORD)

    assert "| 1 | 1.00 (1.00..1.00) | - |\n| 2 | 2.00 (2.00..2.00) | 4.00 (4.00..4.00) |" in text
    assert text.count("## Against") == 2


def test_the_engine_s_overhead_is_the_step_less_the_model() -> None:
    row = "| demo, 16 sequences | 5.00 (5.00..5.00) | 4.00 (4.00..4.00) | 1.00 (1.00..1.00) |"

    assert row in scaling_page(RECORD)


def test_the_spread_leaves_out_the_outermost_tenths() -> None:
    assert spread_ms([each / 1e3 for each in range(1, 20)]) == "10.0 (2.00..18.0)"


def test_a_record_of_curves_survives_being_written() -> None:
    assert ScalingRecord.from_json(RECORD.to_json()) == RECORD


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "curves.png"

    draw_curves(RECORD, path)

    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_model_s_time_is_part_of_the_step_s(tmp_path: Path) -> None:
    folder = ensure_checkpoint(tmp_path, SIZE)
    engine, model_time, vocab_size = timed_engine(folder, Limits(kv_tokens=1_024))

    began_s = time.perf_counter()
    begin(engine, prompts(2, 4, vocab_size), 1)

    assert 0 < model_time.seconds < time.perf_counter() - began_s


def test_random_weights_are_the_same_whenever_they_are_asked_for() -> None:
    weights = RandomWeights(config_of(SIZE, 64, None), torch.device("cpu"))

    assert set(weights) >= {"norm.weight", "layers.0.experts.3.w2.weight"}
    for name in ("norm.weight", "layers.0.experts.3.w2.weight"):
        assert torch.equal(weights[name], weights[name])
    assert not torch.equal(
        weights["layers.0.experts.0.w1.weight"], weights["layers.1.experts.0.w1.weight"]
    )
