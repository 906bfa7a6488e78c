"""A whole run: everybody in turn, round after round, one at a time, and everything written down.

The record is written after every turn, so a run that is broken off leaves what it had.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.answer import Answer
from loadtest.bench.cells import LIMITS, LIMITS_NAME, Cell
from loadtest.bench.contestants import Contestant
from loadtest.bench.progress import Progress
from loadtest.bench.record import BenchRecord, Failure, Sample, Turn
from loadtest.bench.turn import Heard, TurnResult

TakeTurn = Callable[[Contestant, Sequence[Cell], int, Heard], TurnResult]
"""Takes the round's number, with which prompts are drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Who runs, and how often. Each contestant can do some of the cells."""

    limits: Contestant
    contestants: Sequence[Contestant]
    cells: Sequence[Cell]
    num_rounds: int

    def turns(self) -> list[tuple[int, Contestant]]:
        """Give every turn with its round, in order."""
        by_name = {each.name: each for each in self.contestants}
        names = list(by_name)
        by_name[LIMITS_NAME] = self.limits
        rounds = range(1, self.num_rounds + 1)
        return [
            (number, by_name[name]) for number in rounds for name in order_of_round(names, number)
        ]


def order_of_round(names: Sequence[str], round_number: int) -> list[str]:
    """Give a round's order: the machine's limits first, then everybody, shifted by one a round.

    Of a, b, c: round 1 is a b c, round 2 is b c a, so that none always runs on a warm machine or
    after the same neighbour.
    """
    first = (round_number - 1) % len(names) if names else 0
    return [LIMITS_NAME, *names[first:], *names[:first]]


def run(
    plan: Plan, record: BenchRecord, take_turn: TakeTurn, progress: Progress, path: Path
) -> None:
    """Go through the plan and fill the record; `path` is where it is kept."""
    turns = plan.turns()
    for index, (number, contestant) in enumerate(turns):
        rest = [each.name for _, each in turns[index + 1 :]]
        progress.begin(f"round {number} of {plan.num_rounds}", contestant.name, rest)
        cells = [LIMITS] if contestant is plan.limits else plan.cells
        result = take_turn(contestant, cells, number, progress.heard)
        progress.end(contestant.name, result)
        note(record, number, contestant.name, contestant.cells_of(cells), result)
        path.write_text(record.to_json())


def note(
    record: BenchRecord, number: int, name: str, cells: Sequence[Cell], result: TurnResult
) -> None:
    """Put what came of a turn into the record."""
    for answer in result.answers:
        _note_answer(record, number, name, answer)
    if result.error is not None:
        answered = {answer.cell for answer in result.answers}
        missing = [cell.name for cell in cells if cell.name not in answered]
        record.failures.extend(
            Failure(round=number, contestant=name, reason=result.error, cell=cell)
            for cell in missing or [""]
        )
    record.turns.append(
        Turn(
            round=number,
            contestant=name,
            seconds=result.seconds,
            memory_bytes=result.memory_bytes,
            num_processes=result.num_processes,
        )
    )


def _note_answer(record: BenchRecord, number: int, name: str, answer: Answer) -> None:
    record.versions.setdefault(name, {}).update(answer.versions)
    if answer.error is not None:
        failure = Failure(round=number, contestant=name, reason=answer.error, cell=answer.cell)
        record.failures.append(failure)
    else:
        record.samples.append(
            Sample(
                round=number,
                contestant=name,
                cell=answer.cell,
                values=answer.values,
                note=answer.note,
            )
        )
