"""Figures over the rounds of a run: medians, spreads, and ratios of what ran in the same round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from loadtest.bench.cells import LIMITS, LIMITS_NAME, TOKENS_PER_S, Cell
from loadtest.bench.floor import PRODUCTS, READ, Limits, floor_tokens_per_s
from loadtest.bench.record import BenchRecord

FLOOR = "floor"


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure of some rounds."""

    median: float
    lowest: float
    highest: float
    num_rounds: int

    @staticmethod
    def of(values: Sequence[float]) -> "Spread | None":
        """Sum up; None for no values."""
        if not values:
            return None
        return Spread(median(values), min(values), max(values), len(values))


ByRound = Mapping[int, float]


def figures(record: BenchRecord, contestant: str, cell: Cell, metric: str) -> ByRound:
    """Give each round's figure: the median of its samples. The floor is a contestant too."""
    if contestant == FLOOR:
        return _floors(record, cell) if metric == TOKENS_PER_S else {}
    return {
        sample.round: median(sample.values[metric])
        for sample in record.samples
        if (sample.contestant, sample.cell) == (contestant, cell.name) and sample.values.get(metric)
    }


def ratios(numerators: ByRound, denominators: ByRound) -> list[float]:
    """Divide what was measured in the same round: a ratio of two quiet minutes is no result."""
    common = sorted(numerators.keys() & denominators.keys())
    return [numerators[number] / denominators[number] for number in common]


def limits_of(record: BenchRecord) -> dict[int, Limits]:
    """Give each round's limits of the machine."""
    reads = figures(record, LIMITS_NAME, LIMITS, READ)
    products = figures(record, LIMITS_NAME, LIMITS, PRODUCTS)
    return {number: Limits(reads[number], products[number]) for number in reads.keys() & products}


def memory_bytes(record: BenchRecord, contestant: str) -> int | None:
    """Give the most that a contestant took in any round; None if it was never seen."""
    taken = [turn.memory_bytes for turn in record.turns if turn.contestant == contestant]
    return max(taken, default=0) or None


def _floors(record: BenchRecord, cell: Cell) -> dict[int, float]:
    size = record.setting.size
    return {
        number: floor_tokens_per_s(size, cell, limits)
        for number, limits in limits_of(record).items()
    }
