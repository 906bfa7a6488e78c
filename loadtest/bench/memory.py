"""How much memory a process and all that it started take. Reads Linux' /proc, nothing else.

The peak resident size is exact for one process, yet counts pages that several share once for each.
The proportional size (Pss) shares them out, yet is known only of the moment when one looks.
"""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
KILL_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Of all processes together, in bytes."""

    num_processes: int
    peak_rss_bytes: int
    pss_bytes: int

    @property
    def taken_bytes(self) -> int:
        """The figure to compare: the peak of one process, the proportional size of several."""
        return self.peak_rss_bytes if self.num_processes == 1 else self.pss_bytes


@dataclass(frozen=True, slots=True)
class Process:
    """A process, and when it started, since numbers are used again."""

    pid: int
    started: str


def processes_below(pid: int, proc: Path = PROC) -> list[Process]:
    """Give a process and all its descendants, itself first; empty if it is gone."""
    found = dict(_processes(proc))
    tree = [pid] if pid in found else []
    for parent in tree:
        tree.extend(child for child, (_, its_parent) in found.items() if its_parent == parent)
    return [Process(each, found[each][0]) for each in tree]


def memory_of(processes: list[Process], proc: Path = PROC) -> Memory:
    """Add up what these processes take; those that are gone take nothing."""
    peak = sum(_kilobytes(proc / str(each.pid) / "status", "VmHWM") for each in processes)
    pss = sum(_kilobytes(proc / str(each.pid) / "smaps_rollup", "Pss") for each in processes)
    return Memory(len(processes), 1024 * peak, 1024 * pss)


def kill_left(processes: list[Process], proc: Path = PROC) -> int:
    """Kill those of our processes that still run, and wait for their end; give their number."""
    running = dict(_processes(proc))
    left = [each for each in processes if running.get(each.pid, ("", 0))[0] == each.started]
    for each in left:
        with suppress(ProcessLookupError):
            _kill(each.pid)
    return len(left)


def _kill(pid: int) -> None:
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        # Readable once the process has ended, whoever its parent is.
        select.select([descriptor], [], [], KILL_TIMEOUT_S)
    finally:
        os.close(descriptor)


def _processes(proc: Path) -> Iterator[tuple[int, tuple[str, int]]]:
    """Each process's number with its start and its parent's number; zombies are none."""
    for path in proc.glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything; state, parent and so on follow it.
            after_name = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if after_name[0] != "Z":
            yield int(path.parent.name), (after_name[19], int(after_name[1]))


def _kilobytes(path: Path, key: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)
