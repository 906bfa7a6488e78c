"""The record of one run: what was measured, with what, on what. JSON, and a row for a table.

Hardware and versions are those of the machine that sends the load; `note` says what serves.
"""

import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
COLUMNS = (
    "| workload | users | answered | failed | tokens/s | TTFT p50 / p99, ms | ITL p50 / p99, ms |",
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One run.

    Attributes:
        config: users, seed and whatever else was asked of Locust.
        numbers: of `Tally.numbers`.
    """

    recorded_at: str
    commit: str
    hardware: str
    versions: dict[str, str]
    workload: str
    config: dict[str, Any]
    note: str
    numbers: dict[str, Any]

    def to_json(self) -> str:
        """Write everything."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def to_markdown(self) -> str:
        """Write the row of a table with `COLUMNS`."""
        numbers = self.numbers
        cells = (
            self.workload,
            str(self.config["users"]),
            str(numbers["answered_requests"]),
            str(sum(numbers["failed_requests"].values())),
            f"{numbers['output_tokens_per_s']:.1f}",
            _milliseconds(numbers["ttft_s"]),
            _milliseconds(numbers["itl_s"]),
        )
        return "| " + " | ".join(cells) + " |"


def make_record(
    workload: str, config: dict[str, Any], note: str, numbers: dict[str, Any]
) -> Record:
    """Add what this machine knows of itself."""
    return Record(
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        hardware=hardware(),
        versions={"python": platform.python_version(), "locust": version("locust")},
        workload=workload,
        config=config,
        note=note,
        numbers=numbers,
    )


def _milliseconds(distribution: dict[str, float]) -> str:
    if not distribution:
        return "-"
    return f"{1e3 * distribution['p50']:.1f} / {1e3 * distribution['p99']:.1f}"


def commit() -> str:
    """Name the commit of this checkout; a `-dirty` one has changes. Unknown outside a checkout."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> str:
    """Describe the machine: processor, how many, memory."""
    return f"{_cpu_name()}, {os.cpu_count()} CPUs, {_memory_gib():.0f} GiB"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def result_stem(theme: str, now: datetime | None = None) -> str:
    """Name a file of results: theme, hardware, year and month, commit."""
    return f"{theme}_{slug(hardware())}_{(now or datetime.now(UTC)):%Y%m}_{commit()}"


def slug(text: str) -> str:
    """Small letters and digits, with single hyphens between."""
    plain = text.replace("(R)", "").replace("(TM)", "").lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
