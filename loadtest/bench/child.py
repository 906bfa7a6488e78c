"""A contestant's process: started in a session of its own, read line by line, surely ended."""

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from loadtest.bench.memory import Memory, Process, kill_left, memory_of, processes_below

REPOSITORY = Path(__file__).resolve().parent.parent.parent
STOP_TIMEOUT_S = 20.0


class ContestantFailed(Exception):
    """It ended early, or took too long; says which, and nothing that names this machine."""


class Child:
    """Runs `command` inside a `with` block.

    Args:
        folder: it starts in.
        log: gets its standard error.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        log: Path,
        timeout_s: float,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command = command
        self._folder = folder
        self._log = log
        self._timeout_s = timeout_s
        self._now_s = now_s
        self._known: set[Process] = set()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def __enter__(self) -> "Child":
        self._deadline_s = self._now_s() + self._timeout_s
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it and all it started: asked first, then killed."""
        self._look()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        kill_left(list(self._known))

    def lines(self) -> Iterator[str]:
        """Give each line of its output, until it ends well.

        Raises:
            ContestantFailed: its time is up, or it ended with a fault.
        """
        while True:
            try:
                line = self._lines.get(timeout=max(self._deadline_s - self._now_s(), 0.0))
            except queue.Empty:
                raise self._too_slow() from None
            if line is None:
                self._check_end(self._process.wait())
                return
            yield line

    def go_on(self) -> None:
        """Answer a line, for which it waits."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def wait_until(self, holds: Callable[[], bool], period_s: float = 0.3) -> None:
        """Look again and again until something holds.

        Raises:
            ContestantFailed: its time is up, or it ended.
        """
        while not holds():
            if self._process.poll() is not None:
                raise ContestantFailed(f"ended early with status {self._process.returncode}")
            if self._now_s() > self._deadline_s:
                raise self._too_slow()
            time.sleep(period_s)

    def memory(self) -> Memory:
        """What it and all it started take at this moment."""
        return memory_of(self._look())

    def _look(self) -> list[Process]:
        processes = processes_below(self._process.pid)
        self._known.update(processes)
        return processes

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._lines.put(line.decode(errors="replace"))
        self._lines.put(None)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _check_end(self, status: int) -> None:
        if status != 0:
            raise ContestantFailed(f"ended with status {status}")

    def _too_slow(self) -> ContestantFailed:
        return ContestantFailed(f"took longer than {self._timeout_s:.0f} s")
