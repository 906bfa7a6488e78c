"""A run as a page of Markdown: figures, ratios within a round, shares of the floor, what failed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from loadtest.bench.cells import ITL_S, TOKENS_PER_S, TTFT_S, Cell
from loadtest.bench.comparison import (
    FLOOR,
    Spread,
    figures,
    limits_of,
    memory_bytes,
    ratios,
)
from loadtest.bench.contestants import HTTP, LINKED, OURS
from loadtest.bench.record import BenchRecord

EMPTY = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of one cell, and the unit in which it is shown."""

    cell: Cell
    metric: str
    title: str
    scale: float = 1.0


def page(record: BenchRecord) -> str:
    """Write the whole page."""
    setting = record.setting
    names = record.contestants
    columns = columns_of(setting.cells)
    rates = [column for column in columns if column.metric == TOKENS_PER_S]
    theirs = [name for name in names if not name.startswith(OURS)]
    ours = [name for name in names if name.startswith(OURS)]
    sections = (
        _head(record),
        *_section("Figures", _figures(record, [FLOOR, *names], columns)),
        *_section("mixray / rival, same round", _ratios(record, ours, theirs, columns)),
        *_section("HTTP / the same engine without it, same round", _served(record, columns)),
        *_section("Share of the floor", _ratios(record, names, [FLOOR], rates)),
        "\n".join(_facts(record)),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def columns_of(cells: Sequence[Cell]) -> list[Column]:
    """Give a column for each rate, and for a server's two latencies."""
    columns: list[Column] = []
    for cell in cells:
        columns.append(Column(cell, TOKENS_PER_S, f"{cell.title}, tokens/s"))
        if cell.kind == "server":
            columns.append(Column(cell, TTFT_S, "TTFT, ms", 1e3))
            columns.append(Column(cell, ITL_S, "ITL, ms", 1e3))
    return columns


def number(value: float) -> str:
    """Three digits, or all before the point: 0.123, 1.23, 12.3, 123, 1234."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def spread(values: Spread | None, scale: float = 1.0) -> str:
    """The median, and how far apart the rounds were if there were several."""
    if values is None:
        return EMPTY
    middle = number(values.median * scale)
    if values.num_rounds == 1:
        return middle
    return f"{middle} ({number(values.lowest * scale)}..{number(values.highest * scale)})"


def _head(record: BenchRecord) -> str:
    setting, num_rounds = record.setting, len(record.rounds)
    return (
        f"# `{setting.size.name}`, {setting.size.parameters / 1e6:,.0f} million parameters\n\n"
        f"{setting.hardware}; {setting.threads} threads. Commit {setting.commit}, "
        f"{setting.recorded_at[:10]}, `{setting.command}`.\n"
        f"Everybody in turn in each of {num_rounds} rounds; median (lowest..highest) of rounds. "
        "Warm-up is not counted."
    )


def _section(title: str, rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A heading and a table, unless there is nothing below the table's head."""
    head, *body = rows
    if body:
        yield f"## {title}"
        yield markdown([head, *body])


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """A table; the first row is its head, the first column names the rows."""
    head, *body = rows
    aligned = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, aligned, *body))


def _figures(
    record: BenchRecord, names: Sequence[str], columns: Sequence[Column]
) -> Iterator[list[str]]:
    yield ["", *(column.title for column in columns), "memory, GB"]
    for name in names:
        cells = [_figure(record, name, column) for column in columns]
        taken = memory_bytes(record, name)
        memory = EMPTY if taken is None else f"{taken / 1e9:.2f}"
        if any(cell != EMPTY for cell in cells):
            yield [name, *cells, memory]


def _figure(record: BenchRecord, name: str, column: Column) -> str:
    by_round = figures(record, name, column.cell, column.metric)
    if by_round:
        return spread(Spread.of(list(by_round.values())), column.scale)
    failed = {(each.contestant, each.cell) for each in record.failures}
    return "failed" if (name, column.cell.name) in failed else EMPTY


def _ratios(
    record: BenchRecord,
    numerators: Sequence[str],
    denominators: Sequence[str],
    columns: Sequence[Column],
) -> Iterator[list[str]]:
    yield ["", *(_without_unit(column.title) for column in columns)]
    for numerator in numerators:
        for denominator in denominators:
            cells = [_ratio(record, numerator, denominator, column) for column in columns]
            if any(cell != EMPTY for cell in cells):
                yield [f"{numerator} / {denominator}", *cells]


def _without_unit(title: str) -> str:
    return title.removesuffix(", tokens/s").removesuffix(", ms")


def _served(record: BenchRecord, columns: Sequence[Column]) -> Iterator[list[str]]:
    """What HTTP and Ray leave of the engine's own rate, both asked for the same."""
    bursts = {each.workload: each for each in record.setting.cells if each.kind == "burst"}
    served = [
        column
        for column in columns
        if (column.cell.kind, column.metric) == ("server", TOKENS_PER_S)
        and column.cell.workload in bursts
    ]
    yield ["", *(_without_unit(column.title) for column in served)]
    values = [
        Spread.of(
            ratios(
                figures(record, HTTP, column.cell, TOKENS_PER_S),
                figures(record, LINKED, bursts[column.cell.workload], TOKENS_PER_S),
            )
        )
        for column in served
    ]
    if any(values):
        yield [f"{HTTP} / {LINKED}", *(spread(each) for each in values)]


def _ratio(record: BenchRecord, numerator: str, denominator: str, column: Column) -> str:
    over, under = (
        figures(record, name, column.cell, column.metric) for name in (numerator, denominator)
    )
    return spread(Spread.of(ratios(over, under)))


def _facts(record: BenchRecord) -> Iterator[str]:
    yield from _limits(record)
    yield (
        "- Memory: peak resident size of one process, proportional size (at the end of a cell) of "
        "several."
    )
    for name, command in record.setting.commands.items():
        versions = record.versions.get(name, {})
        said = ", ".join(f"{package} {version}" for package, version in versions.items())
        yield f"- {name}: `{command}`" + (f"; {said}" if said else "")
    notes = sorted(
        {(each.contestant, each.cell, each.note) for each in record.samples if each.note}
    )
    yield from (f"- {name}, {cell}: fastest was {note}" for name, cell, note in notes)
    yield from (f"- {name}: not measured, {why}" for name, why in record.setting.absent.items())
    failures: dict[tuple[int, str, str], list[str]] = {}
    for each in record.failures:
        failures.setdefault((each.round, each.contestant, each.reason), []).append(each.cell)
    for (number_, name, reason), cells in failures.items():
        yield f"- round {number_}, {name}: failed, {reason} ({', '.join(filter(None, cells))})"


def _limits(record: BenchRecord) -> Iterator[str]:
    limits = list(limits_of(record).values())
    reads = spread(Spread.of([each.read_bytes_per_s for each in limits]), 1e-9)
    products = spread(Spread.of([each.operations_per_s for each in limits]), 1e-9)
    yield (
        f"- Floor: weights read at {reads} GB/s, or products at {products} GFLOP/s, whichever "
        "takes longer; experts touched 8 (1 - 0.75^B). Weights that stay in a cache can beat it."
    )
