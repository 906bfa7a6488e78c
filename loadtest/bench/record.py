"""Everything that one run measured, as data: written, read again, and looked into.

Holds no path and no host name: commands are shown without folders, failures by their kind.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest.bench.cells import Cell
from loadtest.bench.sizes import Size

SIGNIFICANT_DIGITS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What one contestant measured for one cell in one round; names of values carry the unit."""

    round: int
    contestant: str
    cell: str
    values: dict[str, list[float]]
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One contestant's turn in one round: how long, and the most memory it was seen to take."""

    round: int
    contestant: str
    seconds: float
    memory_bytes: int
    num_processes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Something that has no values; `cell` is empty if a process only ended badly."""

    round: int
    contestant: str
    reason: str
    cell: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What was measured, on what, by which command."""

    recorded_at: str
    commit: str
    hardware: str
    command: str
    threads: int
    size: Size
    cells: tuple[Cell, ...]
    commands: dict[str, str]
    absent: dict[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRecord:
    """One run. The lists grow while it goes on."""

    setting: Setting
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def to_json(self) -> str:
        """Write everything, one line for each sample, turn and failure."""
        parts = [f'"setting": {json.dumps(asdict(self.setting), indent=1)}']
        parts.append(f'"versions": {json.dumps(self.versions, indent=1)}')
        for name in ("samples", "turns", "failures"):
            lines = ",\n".join(json.dumps(rounded(asdict(each))) for each in getattr(self, name))
            parts.append(f'"{name}": [\n{lines}\n]')
        return "{\n" + ",\n".join(parts) + "\n}\n"

    @staticmethod
    def from_json(text: str) -> "BenchRecord":
        """Read what `to_json` wrote."""
        data = json.loads(text)
        setting = data["setting"]
        setting["size"] = Size(**setting["size"])
        setting["cells"] = tuple(Cell(**cell) for cell in setting["cells"])
        return BenchRecord(
            setting=Setting(**setting),
            versions=data["versions"],
            samples=[Sample(**each) for each in data["samples"]],
            turns=[Turn(**each) for each in data["turns"]],
            failures=[Failure(**each) for each in data["failures"]],
        )

    @property
    def contestants(self) -> list[str]:
        """Names, in the order of the first round."""
        return list(self.setting.commands)

    @property
    def rounds(self) -> list[int]:
        """Numbers of the rounds in which anything happened."""
        return sorted({each.round for each in _all(self.samples, self.failures)})


def _all(*lists: Iterable[Any]) -> Iterable[Any]:
    return (each for one in lists for each in one)


def rounded(value: Any) -> Any:
    """Cut floats to the digits that mean anything."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return value
