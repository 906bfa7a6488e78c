from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.bench.answer import Answer
from loadtest.bench.cells import LIMITS, TOKENS_PER_S, Cell
from loadtest.bench.contestants import OFFLINE, Contestant
from loadtest.bench.progress import Progress, describe, time_left_s
from loadtest.bench.record import BenchRecord
from loadtest.bench.run import Plan, order_of_round, run
from loadtest.bench.turn import Heard, TurnResult
from tests.loadtest.bench.records import DECODE, small_record


def contestant(name: str) -> Contestant:
    return Contestant(name=name, kinds=OFFLINE, command=("run",), model=Path("m"))


PLAN = Plan(
    limits=Contestant(name="limits", kinds=("limits",), command=("run",), model=Path("m")),
    contestants=[contestant("a"), contestant("b")],
    cells=[DECODE],
    num_rounds=2,
)


class FakeTurns:
    """Takes turns at once; `b` fails in round 2."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int, list[str]]] = []

    def take(
        self, contestant: Contestant, cells: Sequence[Cell], seed: int, heard: Heard
    ) -> TurnResult:
        self.taken.append((contestant.name, seed, [cell.name for cell in cells]))
        result = TurnResult(memory_bytes=10, num_processes=1, seconds=1.0)
        if (contestant.name, seed) == ("b", 2):
            result.error = "ended with status 1"
        else:
            answer = Answer(cell=cells[0].name, values={TOKENS_PER_S: [1.0]}, versions={"x": "1"})
            result.answers.append(answer)
            heard(answer)
        return result


def test_the_limits_come_first_and_the_others_are_shifted_by_one_a_round() -> None:
    orders = [order_of_round(["a", "b", "c"], number) for number in (1, 2, 3, 4)]

    assert [order[0] for order in orders] == ["limits"] * 4
    assert ["".join(order[1:]) for order in orders] == ["abc", "bca", "cab", "abc"]


def test_nobody_but_the_machine_may_be_measured() -> None:
    assert order_of_round([], 2) == ["limits"]


def test_everybody_gets_the_round_s_number_to_draw_prompts_with(tmp_path: Path) -> None:
    turns, record = FakeTurns(), BenchRecord(setting=small_record().setting)

    run(PLAN, record, turns.take, Progress(Console(quiet=True)), tmp_path / "record.json")

    assert turns.taken == [
        ("limits", 1, [LIMITS.name]),
        ("a", 1, [DECODE.name]),
        ("b", 1, [DECODE.name]),
        ("limits", 2, [LIMITS.name]),
        ("b", 2, [DECODE.name]),
        ("a", 2, [DECODE.name]),
    ]


def test_the_record_holds_samples_turns_and_failures(tmp_path: Path) -> None:
    record, path = BenchRecord(setting=small_record().setting), tmp_path / "record.json"

    run(PLAN, record, FakeTurns().take, Progress(Console(quiet=True)), path)

    [failure] = record.failures
    assert (failure.round, failure.contestant, failure.cell) == (2, "b", DECODE.name)
    assert len(record.samples) == 5
    assert len(record.turns) == 6
    assert BenchRecord.from_json(path.read_text()) == record


def test_a_run_that_is_broken_off_leaves_what_it_had(tmp_path: Path) -> None:
    record, path = BenchRecord(setting=small_record().setting), tmp_path / "record.json"
    turns = FakeTurns()

    def take(contestant: Contestant, cells: Sequence[Cell], seed: int, heard: Heard) -> TurnResult:
        if contestant.name == "b":
            raise KeyboardInterrupt
        return turns.take(contestant, cells, seed, heard)

    with pytest.raises(KeyboardInterrupt):
        run(PLAN, record, take, Progress(Console(quiet=True)), path)

    written = BenchRecord.from_json(path.read_text())
    assert [each.contestant for each in written.samples] == ["limits", "a"]


def test_who_had_a_turn_will_take_as_long_again_and_others_the_mean() -> None:
    taken_s = {"a": [1.0, 2.0], "b": [4.0]}

    assert time_left_s(taken_s, ["a", "b", "c"]) == 2.0 + 4.0 + 3.0
    assert time_left_s({}, ["a"]) is None


def test_an_answer_is_described_by_what_is_worth_a_look() -> None:
    answer = Answer(cell="c", values={TOKENS_PER_S: [9.0, 1.0, 2.0], "itl_s": [0.01]}, note="eager")

    assert describe(answer) == "2.0 tokens/s, ITL 10.0 ms, eager"
    assert describe(Answer(cell="c", error="ValueError")) == "failed: ValueError"
