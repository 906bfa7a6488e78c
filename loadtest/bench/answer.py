"""What a contestant's process says: one line of JSON for each cell.

Then it waits to be told to go on, while whoever started it looks at its memory. Other lines on
standard output are noise.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.bench.cells import Cell, Job

Values = Mapping[str, Sequence[float]]
"""Samples by what they measure; names carry the unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One line.

    Attributes:
        error: why there are no values, if there are none; a kind, not a message.
        note: which of several ways was the fastest, say.
        peak_bytes: of a process that is gone by now; None: look for yourself.
    """

    cell: str
    values: dict[str, list[float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    note: str = ""
    peak_bytes: int | None = None


def parse_answer(line: str) -> Answer | None:
    """Read a line; None for noise."""
    try:
        return Answer(**json.loads(line))
    except (ValueError, TypeError):
        return None


def compete(measure: Callable[[Cell], Values], job: Job, versions: dict[str, str]) -> None:
    """Measure every cell of the job; one that fails does not end the others."""
    for cell in job.cells:
        line: dict[str, Any] = {"cell": cell.name, "versions": versions}
        try:
            line["values"] = {name: list(samples) for name, samples in measure(cell).items()}
        except Exception as error:  # whatever it is, the table says so
            print(f"{cell.name}: {error!r}", file=sys.stderr, flush=True)
            line["error"] = type(error).__name__
        print(json.dumps(line), flush=True)
        sys.stdin.readline()
