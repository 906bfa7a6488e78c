"""Everything side by side in one run: `python -m loadtest.bench`, or `make bench`."""

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtest.bench.cells import KINDS
from loadtest.bench.session import OptionError, Options, run_session
from loadtest.bench.sizes import SIZES
from loadtest.results import RESULTS

CACHE = Path.home() / ".cache" / "mixray" / "bench"
NUM_CPUS = os.cpu_count() or 1
# What `mixray serve` gives its routers and expert hosts: see deploy/app.py.
SPIN_COUNT = "10000"
PATH_OPTIONS = (
    "--folder",
    "--results",
    "--transformers-python",
    "--vllm-python",
    "--llama-cpp",
    "--llama-convert",
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model: Annotated[str, typer.Option(help=f"one of {', '.join(SIZES)}")] = "mid",
    rounds: Annotated[int, typer.Option(min=1, help="turns of everybody")] = 3,
    cells: Annotated[str, typer.Option(help="kinds of cells")] = ",".join(KINDS),
    only: Annotated[str, typer.Option(help="contestants, by how their names begin")] = "",
    folder: Annotated[Path, typer.Option(help="models go here: 3 GB, real2 13 GB")] = CACHE,
    results: Annotated[Path, typer.Option(help="table, record and plot go here")] = RESULTS,
    threads: Annotated[int, typer.Option(min=1, help="of everybody")] = NUM_CPUS,
    expert_hosts: Annotated[int, typer.Option(min=1, help="mixray linked and HTTP")] = 2,
    router_threads: Annotated[int, typer.Option(help="mixray linked; 0: all")] = 0,
    host_threads: Annotated[int, typer.Option(help="mixray linked; 0: all")] = 0,
    spin_count: Annotated[
        str, typer.Option(envvar="GOMP_SPINCOUNT", help="mixray local and linked")
    ] = SPIN_COUNT,
    serve_set: Annotated[
        list[str] | None, typer.Option(help="mixray HTTP: name=value for its --set")
    ] = None,
    limit_s: Annotated[float, typer.Option(help="of one contestant's turn")] = 900.0,
    transformers_python: Annotated[
        Path | None,
        typer.Option(envvar="MIXRAY_BENCH_TRANSFORMERS", help="a Python with transformers"),
    ] = None,
    vllm_python: Annotated[
        Path | None, typer.Option(envvar="MIXRAY_BENCH_VLLM", help="a Python with vLLM for CPU")
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option(envvar="MIXRAY_BENCH_LLAMA_CPP", help="folder with llama-bench and others"),
    ] = None,
    llama_convert: Annotated[
        Path | None,
        typer.Option(
            envvar="MIXRAY_BENCH_LLAMA_CONVERT",
            help="convert_hf_to_gguf.py; runs under --transformers-python, which needs gguf too",
        ),
    ] = None,
) -> None:
    """Measure the machine, mixray and every rival that is here, in turn, some rounds."""
    options = Options(
        command=shown_command(sys.argv[1:]),
        model=model,
        num_rounds=rounds,
        kinds=tuple(cells.split(",")),
        only=tuple(name for name in only.split(",") if name),
        folder=folder,
        results=results,
        threads=threads,
        num_hosts=expert_hosts,
        router_threads=router_threads or threads,
        host_threads=host_threads or threads,
        spin_count=spin_count,
        serve_settings=tuple(serve_set or ()),
        timeout_s=limit_s,
        transformers_python=transformers_python,
        vllm_python=vllm_python,
        llama_cpp=llama_cpp,
        llama_convert=llama_convert,
    )
    # Whoever ends this run ends the contestant too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run_session(options, Console(highlight=False))
    except OptionError as error:
        raise typer.BadParameter(str(error)) from error


def shown_command(arguments: Sequence[str]) -> str:
    """This run's command as it goes into the record: where things lie here is nobody's business."""
    shown: list[str] = []
    rest = iter(arguments)
    for word in rest:
        name, is_whole, _ = word.partition("=")
        if name not in PATH_OPTIONS:
            shown.append(word)
        elif not is_whole:
            next(rest, None)
    return shlex.join(["python", "-m", "loadtest.bench", *shown])


if __name__ == "__main__":
    app()
