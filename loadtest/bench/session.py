"""From options to files: make the model, find the contestants, run, write what came of it."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from rich.console import Console

from loadtest.bench.cells import KINDS, Cell, Kind, cells_of
from loadtest.bench.checkpoints import Progress as Written
from loadtest.bench.checkpoints import ensure_checkpoint
from loadtest.bench.contestants import Contestant, Environments, chosen, everybody, limits
from loadtest.bench.gguf import ConversionFailed, ensure_gguf
from loadtest.bench.plot import draw_run
from loadtest.bench.progress import Progress
from loadtest.bench.publish import file_of, publish
from loadtest.bench.record import BenchRecord, Setting
from loadtest.bench.run import Plan, run
from loadtest.bench.sizes import SIZES, Size
from loadtest.bench.table import page
from loadtest.bench.turn import Heard, TurnResult, Ways, take_turn
from loadtest.results import commit, hardware, result_stem

LOG_LINES = 15


class OptionError(Exception):
    """An option has a value that means nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the command line says; paths may be relative. `command` is how it is shown."""

    command: str
    model: str
    num_rounds: int
    kinds: tuple[str, ...]
    only: tuple[str, ...]
    folder: Path
    results: Path
    threads: int
    num_hosts: int
    router_threads: int
    host_threads: int
    spin_count: str
    serve_settings: tuple[str, ...]
    timeout_s: float
    transformers_python: Path | None
    vllm_python: Path | None
    llama_cpp: Path | None
    llama_convert: Path | None

    @property
    def size(self) -> Size:
        """The model's."""
        if self.model not in SIZES:
            raise OptionError(f"--model: got {self.model}, want one of {', '.join(SIZES)}")
        return SIZES[self.model]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells of the kinds asked for."""
        for kind in self.kinds:
            if kind not in KINDS:
                raise OptionError(f"--cells: got {kind}, want some of {', '.join(KINDS)}")
        return cells_of(self.size, cast(tuple[Kind, ...], self.kinds))


def run_session(options: Options, console: Console) -> None:
    """Do it all.

    Raises:
        OptionError: an option has a value that means nothing.
    """
    cells = options.cells
    progress = Progress(console)
    with tempfile.TemporaryDirectory(prefix="mixray-bench-") as scratch:
        log = Path(scratch) / "log"
        environments = _environments(options, log, console)
        plan, absent = _plan(options, environments, cells)
        for name, why in absent.items():
            progress.say(f"{name} will not be measured: {why}")
        record = BenchRecord(setting=_setting(options, plan, absent))
        options.results.mkdir(parents=True, exist_ok=True)
        stem = options.results / result_stem(f"bench-{options.size.name}")
        ways = _ways(options, environments.model, log)

        def take(
            contestant: Contestant, cells: Sequence[Cell], seed: int, heard: Heard
        ) -> TurnResult:
            result = take_turn(contestant, cells, seed, ways, heard)
            if result.error is not None or any(answer.error for answer in result.answers):
                progress.say(_tail(log))
            return result

        run(plan, record, take, progress, file_of(stem, "json"))
    publish(stem, page(record), record.to_json(), lambda path: draw_run(record, path), progress.say)


def _environments(options: Options, log: Path, console: Console) -> Environments:
    """Write the model if it is not there, in llama.cpp's format too if that is wanted."""
    folder = options.folder.absolute()
    with _showing_writing(console, options.size.name) as written:
        checkpoint = ensure_checkpoint(folder, options.size, written)
    gguf = None
    if options.llama_cpp is not None:
        try:
            with console.status(f"converting {options.size.name} for llama.cpp"):
                python = _absolute(options.transformers_python)
                gguf = ensure_gguf(checkpoint, _absolute(options.llama_convert), python, log)
        except ConversionFailed as error:
            console.print(f"llama.cpp: {error}\n{_tail(log)}")
    return Environments(
        model=checkpoint,
        threads=options.threads,
        num_hosts=options.num_hosts,
        spin_count=options.spin_count,
        serve_settings=options.serve_settings,
        transformers_python=_absolute(options.transformers_python),
        vllm_python=_absolute(options.vllm_python),
        llama_cpp=_absolute(options.llama_cpp),
        gguf=gguf,
    )


def _plan(
    options: Options, environments: Environments, cells: tuple[Cell, ...]
) -> tuple[Plan, dict[str, str]]:
    present, absent = everybody(environments)
    try:
        contestants = chosen(present, options.only)
    except ValueError as error:
        raise OptionError(f"--only: {error}") from error
    plan = Plan(
        limits=limits(environments),
        contestants=[each for each in contestants if set(each.kinds) & set(options.kinds)],
        cells=cells,
        num_rounds=options.num_rounds,
    )
    return plan, absent


def _setting(options: Options, plan: Plan, absent: dict[str, str]) -> Setting:
    return Setting(
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        hardware=hardware(),
        command=options.command,
        threads=options.threads,
        size=options.size,
        cells=tuple(plan.cells),
        commands={each.name: each.shown for each in plan.contestants},
        absent=absent,
    )


def _ways(options: Options, checkpoint: Path, log: Path) -> Ways:
    return Ways(
        threads=options.threads,
        num_hosts=options.num_hosts,
        router_threads=options.router_threads,
        host_threads=options.host_threads,
        timeout_s=options.timeout_s,
        tokenizer=checkpoint / "tokenizer.model",
        log=log,
    )


@contextmanager
def _showing_writing(console: Console, name: str) -> Iterator[Written]:
    """Show how far the writing of a model is."""
    with console.status(f"looking for {name}") as status:
        yield lambda done, total: status.update(
            f"writing {name}: {done / 1e9:.1f} of {total / 1e9:.1f} GB"
        )


def _absolute(path: Path | None) -> Path | None:
    """Without following links: a virtual environment's Python is one."""
    return None if path is None else path.absolute()


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"        {line}" for line in lines[-LOG_LINES:])
