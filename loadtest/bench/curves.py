"""Curves of step times: as data, as a page of Markdown, as a picture. Knows no engine."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

from loadtest.bench.plot import figure_class
from loadtest.bench.record import rounded
from loadtest.bench.table import EMPTY, markdown, number

MS = 1e3


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Seconds of single steps of one model, by what they are drawn against.

    Attributes:
        against: as in "sequences at once"; curves with the same one share a table.
    """

    against: str
    model: str
    steps_s: dict[int, list[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Overhead:
    """Seconds of each decode step, and of the model's share of it."""

    model: str
    batch: int
    steps_s: list[float]
    model_s: list[float]

    @property
    def rest_s(self) -> list[float]:
        """What the engine takes beside the model."""
        return [step - model for step, model in zip(self.steps_s, self.model_s, strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingRecord:
    """One run."""

    recorded_at: str
    commit: str
    hardware: str
    threads: int
    torch: str
    curves: list[Curve]
    overhead: Overhead

    def to_json(self) -> str:
        """Write everything."""
        return json.dumps(rounded(asdict(self)), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> "ScalingRecord":
        """Read what `to_json` wrote."""
        data = json.loads(text)
        curves = [
            Curve(
                against=each["against"],
                model=each["model"],
                steps_s={int(x): steps_s for x, steps_s in each["steps_s"].items()},
            )
            for each in data.pop("curves")
        ]
        return ScalingRecord(curves=curves, overhead=Overhead(**data.pop("overhead")), **data)


def spread_ms(seconds: Sequence[float]) -> str:
    """The median, and the tenth and ninetieth percentile, of at least two values."""
    tenths = quantiles(seconds, n=10)
    low, high = number(MS * tenths[0]), number(MS * tenths[-1])
    return f"{number(MS * median(seconds))} ({low}..{high})"


def scaling_page(record: ScalingRecord) -> str:
    """Write the whole page."""
    head = (
        "# How long a step takes\n\n"
        f"{record.hardware}; {record.threads} threads, torch {record.torch}. "
        f"Commit {record.commit}, {record.recorded_at[:10]}.\n"
        "One process, experts and all. Milliseconds of single decode steps: median (10 %..90 %). "
        "Warm-up is not counted."
    )
    sections = [head]
    for against, curves in grouped(record.curves).items():
        sections += [f"## Against {against}", markdown(_rows(against, curves))]
    overhead = record.overhead
    rows = [
        ["", "step, ms", "the model's share", "the rest"],
        [
            f"{overhead.model}, {overhead.batch} sequences",
            *(spread_ms(each) for each in (overhead.steps_s, overhead.model_s, overhead.rest_s)),
        ],
    ]
    sections += ["## The engine beside the model", markdown(rows)]
    return "\n\n".join(sections) + "\n"


def draw_curves(record: ScalingRecord, path: Path) -> None:
    """Draw a panel for each thing that steps were measured against.

    Raises:
        NoPlots: matplotlib is not installed.
    """
    groups = grouped(record.curves)
    figure = figure_class()((5.0 * len(groups), 4.0), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (against, curves) in zip(panels, groups.items(), strict=True):
        for curve in curves:
            tenths = [quantiles(steps_s, n=10) for steps_s in curve.steps_s.values()]
            middles = [median(steps_s) for steps_s in curve.steps_s.values()]
            axes.errorbar(
                list(curve.steps_s),
                [MS * middle for middle in middles],
                [
                    [MS * (middle - low[0]) for middle, low in zip(middles, tenths, strict=True)],
                    [
                        MS * (high[-1] - middle)
                        for middle, high in zip(middles, tenths, strict=True)
                    ],
                ],
                marker=".",
                capsize=2,
                label=curve.model,
            )
        # Linear up to 1, so that zero has a place.
        axes.set_xscale("symlog", base=10, linthresh=1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(against)
        axes.set_ylabel("decode step, ms")
        axes.legend(fontsize="small")
    figure.savefig(path)


def grouped(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """Put those together that are drawn against the same."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(curve.against, []).append(curve)
    return groups


def _rows(against: str, curves: Sequence[Curve]) -> Iterator[list[str]]:
    yield [against, *(curve.model for curve in curves)]
    for x in sorted({x for curve in curves for x in curve.steps_s}):
        cells = [spread_ms(c.steps_s[x]) if x in c.steps_s else EMPTY for c in curves]
        yield [f"{x:,}", *cells]
