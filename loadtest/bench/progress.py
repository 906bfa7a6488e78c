"""Shows what runs now, what came of it, and how long is left."""

import time
from collections.abc import Mapping, Sequence
from statistics import fmean, median

from rich.console import Console
from rich.status import Status

from loadtest.bench.answer import Answer
from loadtest.bench.cells import ITL_S, TOKENS_PER_S
from loadtest.bench.floor import PRODUCTS, READ
from loadtest.bench.turn import TurnResult

# Values worth a look while a run goes on, and how they read.
SHOWN = {
    TOKENS_PER_S: ("{:.1f} tokens/s", 1.0),
    ITL_S: ("ITL {:.1f} ms", 1e3),
    READ: ("{:.1f} GB/s", 1e-9),
    PRODUCTS: ("{:.0f} GFLOP/s", 1e-9),
}


class Progress:
    """Mutable state: how long each contestant's turns took, and the line at the bottom."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._taken_s: dict[str, list[float]] = {}
        self._status = Status("", console=console)

    def begin(self, where: str, name: str, rest: Sequence[str]) -> None:
        """A turn begins; `rest` are the turns after it."""
        left_s = time_left_s(self._taken_s, [name, *rest])
        left = "" if left_s is None else f", about {left_s / 60:.0f} min left"
        line = f"{where}: {name}{left}"
        if self._console.is_terminal:
            self._status.update(line)
            self._status.start()
        else:
            self._console.print(time.strftime("%H:%M:%S"), line)

    def heard(self, answer: Answer) -> None:
        """A cell is measured."""
        self._console.print(f"    {answer.cell:12} {describe(answer)}")

    def end(self, name: str, result: TurnResult) -> None:
        """A turn is over."""
        self._status.stop()
        self._taken_s.setdefault(name, []).append(result.seconds)
        if result.error is not None:
            self._console.print(f"    {name} failed: {result.error}")

    def say(self, text: str) -> None:
        """Something that is worth a line of its own."""
        self._console.print(text, markup=False, soft_wrap=True)


def time_left_s(taken_s: Mapping[str, Sequence[float]], rest: Sequence[str]) -> float | None:
    """Estimate how long the turns in `rest` take; None while nothing is known at all.

    Somebody who has had a turn will take as long again, somebody who has not, as long as the mean.
    """
    if not taken_s:
        return None
    mean_s = fmean(seconds[-1] for seconds in taken_s.values())
    return sum(taken_s[name][-1] if name in taken_s else mean_s for name in rest)


def describe(answer: Answer) -> str:
    """One line about an answer."""
    if answer.error is not None:
        return f"failed: {answer.error}"
    parts = [
        form.format(scale * median(answer.values[name]))
        for name, (form, scale) in SHOWN.items()
        if answer.values.get(name)
    ]
    return ", ".join([*parts, answer.note] if answer.note else parts)
