"""A run as a picture: each contestant's share of the floor in each cell, rounds as error bars."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.bench.cells import TOKENS_PER_S, Cell
from loadtest.bench.comparison import FLOOR, Spread, figures, ratios
from loadtest.bench.record import BenchRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES_PER_CELL = 1.8
INCHES_BESIDE = 3.0
HEIGHT_INCHES = 4.5
GROUP_WIDTH = 0.84


class NoPlots(Exception):
    """matplotlib is not installed."""


def figure_class() -> type["Figure"]:
    """Give matplotlib's figure, which belongs to an optional extra and is slow to import.

    Raises:
        NoPlots: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoPlots("matplotlib is not installed: pip install 'mixray[bench]'") from error
    return Figure


def draw_run(record: BenchRecord, path: Path) -> None:
    """Draw into a file; its ending says the format.

    Raises:
        NoPlots: matplotlib is not installed.
    """
    cells, names = record.setting.cells, record.contestants
    inches = (INCHES_PER_CELL * len(cells) + INCHES_BESIDE, HEIGHT_INCHES)
    figure = figure_class()(inches, dpi=120, layout="constrained")
    axes = figure.subplots()
    groups = [_shares(record, cell) for cell in cells]
    for index, name in enumerate(names):
        _bars(axes, name, f"C{index}", groups)
    axes.axhline(100, color="black", linewidth=1)
    axes.set_xticks(range(len(cells)), [cell.title.replace(", ", "\n") for cell in cells])
    axes.set_ylabel("tokens/s, % of the machine's floor")
    axes.set_title(f"{record.setting.size.name} on {record.setting.hardware}", fontsize="medium")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path)


def _shares(record: BenchRecord, cell: Cell) -> dict[str, Spread]:
    """Give the share of the floor of everybody who has one in this cell."""
    under = figures(record, FLOOR, cell, TOKENS_PER_S)
    found = {
        name: Spread.of(
            [100 * ratio for ratio in ratios(figures(record, name, cell, TOKENS_PER_S), under)]
        )
        for name in record.contestants
    }
    return {name: share for name, share in found.items() if share is not None}


def _bars(axes: "Axes", name: str, color: str, groups: Sequence[Mapping[str, Spread]]) -> None:
    """One contestant's bars, beside the others' in each group that it is in."""
    width = GROUP_WIDTH / max(1, *(len(group) for group in groups))
    drawn = [
        (place + (list(group).index(name) - (len(group) - 1) / 2) * width, group[name])
        for place, group in enumerate(groups)
        if name in group
    ]
    if not drawn:
        return
    axes.bar(
        [x for x, _ in drawn],
        [share.median for _, share in drawn],
        width,
        color=color,
        label=name,
        yerr=[
            [share.median - share.lowest for _, share in drawn],
            [share.highest - share.median for _, share in drawn],
        ],
        error_kw={"linewidth": 0.8},
    )
