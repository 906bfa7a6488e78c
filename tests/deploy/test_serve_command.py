"""`mixray serve` as a user runs it: a process in the foreground, looked at and stopped."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.checkpoints import write_serving_checkpoint
from tests.serving import free_port, wait_until


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_serving_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


def mixray(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "deploy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@contextmanager
def serving(log: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`mixray serve` in the background, from ready on; killed with all it started at the end."""
    command = [sys.executable, "-m", "deploy", "serve", *arguments]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            wait_until(lambda: "Ctrl-C to stop" in log.read_text(), 90)
            yield process
        finally:
            for child in family(process.pid):
                child.kill()


def ray_address(log: Path) -> str:
    """The cluster that a server started: others may run on this machine."""
    found = re.search(r"Ray at (\S+)", log.read_text())
    assert found is not None
    return found[1]


def family(pid: int) -> list[psutil.Process]:
    if not psutil.pid_exists(pid):
        return []
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def test_serve_answers_shows_itself_and_leaves_no_process_after_ctrl_c(
    checkpoint: Path, tmp_path: Path
) -> None:
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    with serving(tmp_path / "log", "--model", str(checkpoint), "--port", port) as process:
        answer = mixray("generate", "Hello", "--url", url, "--max-tokens", "5")
        raw = mixray("generate", "Hello", "--url", url, "--max-tokens", "5", "--raw")
        address = ray_address(tmp_path / "log")
        table = mixray("status", "--address", address)
        as_json = mixray("status", "--address", address, "--json")
        status: dict[str, Any] = json.loads(as_json.stdout)
        second = mixray("serve", "--address", address, "--port", str(free_port()))
        again = mixray("generate", "Hello", "--url", url, "--max-tokens", "5")
        everybody = family(process.pid)

        os.kill(process.pid, signal.SIGINT)

        process.wait(30)
        _, alive = psutil.wait_procs(everybody, timeout=10)

    assert answer.returncode == raw.returncode == 0 and answer.stdout.strip()
    assert second.returncode == 2 and "serves mixray already" in second.stderr
    assert again.stdout == answer.stdout
    assert table.returncode == 0 and "expert hosts" in table.stdout
    hosts = status["expert_hosts"]
    assert sorted(expert for host in hosts for expert in host["experts"]) == list(range(8))
    assert {"id", "pid", "node", "address", "experts"} <= set(hosts[0])
    assert {host["pid"] for host in hosts} <= {member.pid for member in everybody}
    assert len(status["routers"]) == 1
    assert alive == []
    assert f"curl {url}/v1/chat/completions" in (tmp_path / "log").read_text()


def test_stop_ends_a_server_in_the_foreground(checkpoint: Path, tmp_path: Path) -> None:
    port = str(free_port())
    flags = ("--model", str(checkpoint), "--port", port, "--expert-hosts", "0")
    with serving(tmp_path / "log", *flags) as process:
        stopped = mixray("stop", "--address", ray_address(tmp_path / "log"))

        assert stopped.returncode == 0, stopped.stderr
        assert process.wait(30) == 0


def test_looking_at_nothing_says_so(tmp_path: Path) -> None:
    answer = mixray("status", "--address", "127.0.0.1:1")

    assert answer.returncode == 2
    assert "mixray:" in answer.stderr and "Traceback" not in answer.stderr
