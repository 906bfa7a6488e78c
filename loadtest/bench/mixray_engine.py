"""mixray's engine without Ray and HTTP, in one process or as a router and expert hosts.

`python -m loadtest.bench.mixray_engine local|linked JOB`. The hosts of a linked engine are the
router's children, with AF_UNIX sockets between them. A host reads what it is to hold from its
standard input, says `ready` once it serves, and ends when its input does.
"""

import importlib.metadata
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from loadtest.bench.answer import compete
from loadtest.bench.cells import Job
from loadtest.bench.driving import Driver
from loadtest.bench.engine_adapter import DrivenEngine, local_engine
from loadtest.bench.link_adapter import (
    HostAt,
    expert_server,
    experts_of_hosts,
    linked_engine,
    num_experts_of,
)

STOP_TIMEOUT_S = 10.0


class HostFailed(Exception):
    """An expert host did not come up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HostJob:
    """What one host is to do. `key` is the cluster's, in hexadecimal."""

    model: str
    host: HostAt
    key: str
    threads: int

    def to_json(self) -> str:
        """Write it in one line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "HostJob":
        """Read what `to_json` wrote."""
        data = json.loads(text)
        return HostJob(**{**data, "host": HostAt(**data["host"])})


def main(role: str, *job: str) -> None:
    """Entry point of each of the processes."""
    if role == "host":
        serve_experts(HostJob.from_json(sys.stdin.readline()))
    elif role == "linked":
        run_linked(Job.from_json(job[0]))
    else:
        run_local(Job.from_json(job[0]))


def run_local(job: Job) -> None:
    """Measure an engine that holds its experts itself."""
    torch.set_num_threads(job.threads)
    _measure(job, *local_engine(Path(job.model)))


def run_linked(job: Job) -> None:
    """Measure an engine whose experts are in other processes."""
    torch.set_num_threads(job.router_threads)
    model, key, run = Path(job.model), secrets.token_bytes(32), secrets.token_hex(8)
    hosts = [
        HostAt(f"host-{number}", f"unix:mixray-bench-{run}-{number}", expert_ids)
        for number, expert_ids in enumerate(experts_of_hosts(num_experts_of(model), job.num_hosts))
    ]
    with ExitStack() as stack:
        for host in hosts:
            told = HostJob(model=job.model, host=host, key=key.hex(), threads=job.host_threads)
            stack.enter_context(running_host(told))
        _measure(job, *linked_engine(model, hosts, key))


def serve_experts(job: HostJob) -> None:
    """Be an expert host until the standard input ends."""
    torch.set_num_threads(job.threads)
    server = expert_server(Path(job.model), job.host, bytes.fromhex(job.key))
    server.start()
    print("ready", flush=True)
    sys.stdin.read()
    server.stop()


@contextmanager
def running_host(job: HostJob) -> Iterator[None]:
    """Run one host while the block does.

    Raises:
        HostFailed: it ended before it served.
    """
    command = [sys.executable, "-m", "loadtest.bench.mixray_engine", "host"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(job.to_json() + "\n")
            process.stdin.flush()
            if process.stdout.readline() != "ready\n":
                raise HostFailed(f"exit status {process.wait(STOP_TIMEOUT_S)}")
            yield
        finally:
            process.stdin.close()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _measure(job: Job, engine: DrivenEngine, vocab_size: int) -> None:
    driver = Driver(engine, vocab_size, job.seed, time.perf_counter)
    compete(driver.measure, job, {"torch": importlib.metadata.version("torch")})


if __name__ == "__main__":
    main(*sys.argv[1:])
