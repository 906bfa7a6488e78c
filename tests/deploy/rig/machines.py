"""Hosts with sshd in network namespaces, and a machine to launch clusters from; see nethosts.sh.

Everything, the launching machine included, lies in pid namespaces of its own: `ray stop` ends every
Ray process it can see.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
NETHOSTS = ROOT / "tests" / "deploy" / "rig" / "nethosts.sh"
VENV = Path(sys.prefix)
PROGRAMS = ("ip", "ss", "unshare", "nsenter", "ssh", "/usr/sbin/sshd", "rsync", "curl", "ps")
MISSING = [
    program for program in (*PROGRAMS, str(VENV / "bin/mixray")) if shutil.which(program) is None
]
COMMAND_TIMEOUT_S = 120

needs_machines = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {' '.join(MISSING)}"),
]


class CommandFailed(Exception):
    """A command on a machine ended with an error."""


class Machines:
    """Machine 0 launches, machines 1, 2, ... are the hosts.

    Attributes:
        started: commands that go on until their machine ends.
    """

    def __init__(self, folder: Path) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self._folder = folder

    def home(self, machine: int = 0) -> Path:
        """Root's home on a machine, as seen from outside."""
        return self._folder / str(machine) / "home"

    def run(self, *command: str, machine: int = 0) -> str:
        """Run a command in the machine's home; its standard output.

        Raises:
            CommandFailed: it ended with an error.
        """
        done = subprocess.run(
            self._on(machine, command),
            cwd=self.home(machine),
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            output = done.stdout[-4_000:] + done.stderr[-4_000:]
            raise CommandFailed(f"{' '.join(command)}: {done.returncode}\n{output}")
        return done.stdout

    def start(self, *command: str, machine: int) -> None:
        """Start a command that goes on; `log` has what it says."""
        with (self.home(machine) / "log").open("wb") as log:
            process = subprocess.Popen(
                self._on(machine, command), cwd=self.home(machine), stdout=log, stderr=log
            )
        self.started.append(process)

    def log(self, machine: int) -> str:
        """What the started command has said, the end of it."""
        return (self.home(machine) / "log").read_text(errors="replace")[-4_000:]

    def ask(self, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask a server from the launching machine: POST a body, GET without one.

        Raises:
            CommandFailed: it did not answer, or refused.
        """
        options = ["-H", "content-type: application/json"]
        if body is not None:
            options += ["-d", json.dumps(body)]
        answer = self.run("curl", "-sS", "--fail", "--max-time", "30", *options, url)
        content = json.loads(answer)
        assert isinstance(content, dict)
        return content

    def can_ask(self, url: str, body: dict[str, Any] | None = None) -> bool:
        """Whether `ask` gets an answer."""
        try:
            self.ask(url, body)
        except CommandFailed:
            return False
        return True

    def _on(self, machine: int, command: tuple[str, ...]) -> list[str]:
        return [str(NETHOSTS), "exec", str(self._folder), str(machine), *command]


@contextmanager
def machines(num_hosts: int) -> Iterator[Machines]:
    """Make them, and end all that runs on them."""
    # Not below /tmp: every machine has another one.
    folder = Path(tempfile.mkdtemp(prefix="mixray-rig-", dir="/var/tmp"))
    rig = Machines(folder)
    try:
        command = [NETHOSTS, "up", folder, VENV, str(num_hosts)]
        subprocess.run(command, cwd=ROOT, check=True, timeout=60)
        yield rig
    finally:
        subprocess.run([NETHOSTS, "down", folder], check=True, timeout=60)
        for process in rig.started:
            process.wait(10)
        shutil.rmtree(folder)


def wait_until(claim: Callable[[], bool], timeout_s: float) -> None:
    """Ask once a second."""
    deadline_s = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s"
        time.sleep(1)
