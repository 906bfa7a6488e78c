"""One contestant's turn: its process is started, measures its cells, is looked at, and is ended."""

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import BrokenBarrierError

from loadtest.bench.answer import Answer, parse_answer
from loadtest.bench.cells import Cell, Job
from loadtest.bench.child import REPOSITORY, Child, ContestantFailed
from loadtest.bench.contestants import Contestant
from loadtest.bench.memory import Memory
from loadtest.bench.serving import WrongLength, is_ready, measure_server
from loadtest.streaming_client import StreamFailure

Heard = Callable[[Answer], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ways:
    """How every turn is run.

    Attributes:
        tokenizer: of the model, for prompts of servers.
        log: gets what contestants say beside their answers.
    """

    threads: int
    num_hosts: int
    router_threads: int
    host_threads: int
    timeout_s: float
    tokenizer: Path
    log: Path


@dataclass(slots=True)
class TurnResult:
    """What came of a turn; `error` is what ended it before its time."""

    answers: list[Answer] = field(default_factory=list)
    memory_bytes: int = 0
    num_processes: int = 0
    seconds: float = 0.0
    error: str | None = None

    def look(self, memory: Memory, own_peak_bytes: int | None) -> None:
        """Keep the most that was seen; a contestant whose process is gone by now says it itself."""
        self.memory_bytes = max(self.memory_bytes, own_peak_bytes or memory.taken_bytes)
        self.num_processes = max(self.num_processes, memory.num_processes)


def take_turn(
    contestant: Contestant, cells: Sequence[Cell], seed: int, ways: Ways, heard: Heard
) -> TurnResult:
    """Run one contestant on those of the cells that it can do.

    Args:
        seed: of random prompts.
        heard: told each answer as it comes.
    """
    mine = contestant.cells_of(cells)
    result = TurnResult()
    started_s = time.monotonic()
    try:
        if contestant.is_server:
            _serve(contestant, mine, seed, ways, result, heard)
        else:
            _work(contestant, _job(contestant, mine, seed, ways), ways, result, heard)
    except ContestantFailed as error:
        result.error = str(error)
    except OSError as error:
        result.error = f"could not be started: {type(error).__name__}"
    result.seconds = time.monotonic() - started_s
    return result


def _job(contestant: Contestant, cells: tuple[Cell, ...], seed: int, ways: Ways) -> Job:
    return Job(
        model=str(contestant.model),
        cells=cells,
        seed=seed,
        threads=ways.threads,
        num_hosts=ways.num_hosts,
        router_threads=ways.router_threads,
        host_threads=ways.host_threads,
    )


def _work(contestant: Contestant, job: Job, ways: Ways, result: TurnResult, heard: Heard) -> None:
    """Let a process measure itself, and look at it after each cell."""
    with _child(contestant, contestant.command_with(job=job.to_json()), ways) as child:
        for line in child.lines():
            answer = parse_answer(line)
            if answer is not None:
                result.answers.append(answer)
                result.look(child.memory(), answer.peak_bytes)
                heard(answer)
                child.go_on()


def _serve(
    contestant: Contestant,
    cells: tuple[Cell, ...],
    seed: int,
    ways: Ways,
    result: TurnResult,
    heard: Heard,
) -> None:
    """Bring a server up and measure it from here."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with _child(contestant, contestant.command_with(port=port), ways) as child:
        child.wait_until(lambda: is_ready(url))
        for cell in cells:
            answer = _measured(url, cell, ways.tokenizer, seed)
            result.answers.append(answer)
            result.look(child.memory(), None)
            heard(answer)


def _measured(url: str, cell: Cell, tokenizer: Path, seed: int) -> Answer:
    try:
        values = measure_server(url, cell, tokenizer, seed)
    except (StreamFailure, WrongLength, BrokenBarrierError) as error:
        return Answer(cell=cell.name, error=type(error).__name__)
    return Answer(cell=cell.name, values={name: list(each) for name, each in values.items()})


def _child(contestant: Contestant, command: list[str], ways: Ways) -> Child:
    # A rival must not find this repository's generic names (`model`, `cluster`) on its path.
    folder = REPOSITORY if contestant.is_ours else ways.log.parent
    return Child(command, folder, ways.log, ways.timeout_s)


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
