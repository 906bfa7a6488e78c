"""Shows how far the training is: a bar on a terminal, else one plain line every half minute."""

import sys
import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a progress line says."""

    progress: float
    step: int
    num_tokens: int
    context_tokens: int
    answer_loss: float
    tokens_per_s: float

    def __str__(self) -> str:
        return (
            f"done={self.progress:.1%} step={self.step} tokens={self.num_tokens / 1e6:.1f}M "
            f"context={self.context_tokens} answer_loss={self.answer_loss:.4f} "
            f"tokens_per_s={self.tokens_per_s:.0f}"
        )


class ProgressDisplay:
    """A context manager that is told the state after every step."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout)
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self._console,
        )
        self._task = self._bar.add_task("", total=1.0)
        self._next_line_s = 0.0

    def __enter__(self) -> "ProgressDisplay":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def update(self, report: Report) -> None:
        """Show the state; plain lines are thinned out."""
        if self._console.is_terminal:
            self._bar.update(self._task, completed=report.progress, description=str(report))
        elif time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + _LINE_EVERY_S
            print(report, flush=True)

    def say(self, line: str) -> None:
        """Print one line above the bar, or between the plain lines."""
        if self._console.is_terminal:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, flush=True)
