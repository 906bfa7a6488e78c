"""Mixtral 8x7B's true shapes on a GPU: `python -m loadtest.bench.gpu`, or `make bench-gpu`.

Random weights, made on the card, in as many layers as fit; one process, experts and all. Beside it
what the card itself does: bytes copied, products of matrices. Nobody has run it on a GPU yet.
"""

import importlib.metadata
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from loadtest.bench.answer import Values
from loadtest.bench.cells import LIMITS, LIMITS_NAME, Cell
from loadtest.bench.driving import Driver, Steps
from loadtest.bench.engine_adapter import Limits, random_engine
from loadtest.bench.floor import PRODUCTS, READ
from loadtest.bench.plot import draw_run
from loadtest.bench.publish import publish
from loadtest.bench.record import BenchRecord, Sample, Setting
from loadtest.bench.sizes import BYTES_PER_PARAMETER, Size
from loadtest.bench.table import page
from loadtest.results import RESULTS, commit, hardware, result_stem, slug

MIXTRAL_8X7B = Size(
    name="mixtral-8x7b",
    hidden=4_096,
    ffn=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
)
NAME = "mixray-local"
COMMAND = "python -m loadtest.bench.gpu"
DECODE_BATCHES = (1, 4, 16, 64)

CELLS = (
    *(
        Cell(kind="decode", batch=batch, prompt_tokens=16, new_tokens=64)
        for batch in DECODE_BATCHES
    ),
    Cell(kind="prefill", batch=1, prompt_tokens=512, new_tokens=1, repeats=3),
    Cell(kind="prefill", batch=1, prompt_tokens=4_096, new_tokens=1, repeats=3),
)
ENGINE_LIMITS = Limits(kv_tokens=16_384, step_tokens=4_096)

# The rest is for the cache, for activations, and for weights while they are made.
SHARE_FOR_WEIGHTS = 0.8
COPIED_BYTES = 2**30
MATRIX_ROWS = 8_192
REPEATS = 10


class NoRoom(Exception):
    """Not one layer fits."""


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    results: Annotated[Path, typer.Option(help="table, record and plot go here")] = RESULTS,
) -> None:
    """Measure on the first CUDA device; exit status 1 where there is none."""
    if not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)
        raise typer.Exit(1)
    console = Console(highlight=False)
    try:
        size = fitting(MIXTRAL_8X7B, torch.cuda.mem_get_info()[0])
    except NoRoom as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from error
    console.print(f"making {size.num_layers} of {MIXTRAL_8X7B.num_layers} layers")
    engine, vocab_size = random_engine(size, ENGINE_LIMITS, device="cuda")
    card = torch.cuda.get_device_name()
    record = BenchRecord(setting=setting_of(size, CELLS, f"{card}; {hardware()}"))
    record.versions[NAME] = {"torch": importlib.metadata.version("torch")}
    for number in range(1, rounds + 1):
        console.print(f"round {number} of {rounds}")
        note(record, number, LIMITS_NAME, LIMITS, card_limits(torch.device("cuda")))
        measure_round(record, number, engine, vocab_size)
    publish(
        results / result_stem(f"gpu-{slug(card)}"),
        page(record),
        record.to_json(),
        lambda path: draw_run(record, path),
        lambda text: console.print(text, markup=False, soft_wrap=True),
    )


def fitting(size: Size, free_bytes: int) -> Size:
    """Take away layers until the weights fit.

    Raises:
        NoRoom: not one layer would be left.
    """
    room = SHARE_FOR_WEIGHTS * free_bytes / BYTES_PER_PARAMETER - 2 * size.head_parameters
    layer = size.shared_parameters + size.num_experts * size.expert_parameters
    num_layers = min(size.num_layers, int(room // layer))
    if num_layers < 1:
        raise NoRoom(f"{free_bytes / 1e9:.1f} GB are free; a layer takes {2 * layer / 1e9:.1f} GB")
    if num_layers == size.num_layers:
        return size
    return replace(size, name=f"{size.name}, {num_layers} layers", num_layers=num_layers)


def setting_of(size: Size, cells: Sequence[Cell], machine: str) -> Setting:
    """Say what is measured, and on what."""
    return Setting(
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        hardware=machine,
        command=COMMAND,
        threads=torch.get_num_threads(),
        size=size,
        cells=tuple(cells),
        commands={NAME: COMMAND},
        absent={},
    )


def measure_round(record: BenchRecord, number: int, engine: Steps, vocab_size: int) -> None:
    """Measure every cell once, with prompts of this round's own."""
    driver = Driver(engine, vocab_size, number, time.perf_counter)
    for cell in record.setting.cells:
        note(record, number, NAME, cell, driver.measure(cell))


def note(record: BenchRecord, number: int, name: str, cell: Cell, values: Values) -> None:
    """Put one cell's values into the record."""
    lists = {metric: list(samples) for metric, samples in values.items()}
    record.samples.append(Sample(round=number, contestant=name, cell=cell.name, values=lists))


def card_limits(
    device: torch.device, copied_bytes: int = COPIED_BYTES, rows: int = MATRIX_ROWS
) -> Values:
    """Give the best copy, its bytes read and written, and the best product of square matrices."""
    source = torch.ones(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    square = torch.randn(rows, rows, device=device).bfloat16()
    product = torch.empty_like(square)
    with torch.inference_mode():
        copy_s = best_s(lambda: target.copy_(source), device)
        product_s = best_s(lambda: torch.mm(square, square, out=product), device)
    return {READ: [2 * copied_bytes / copy_s], PRODUCTS: [2.0 * rows**3 / product_s]}


def best_s(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    seconds: list[float] = []
    for _ in range(1 + REPEATS):
        _wait_for(device)
        started_s = time.perf_counter()
        work()
        _wait_for(device)
        seconds.append(time.perf_counter() - started_s)
    return min(seconds[1:])


def _wait_for(device: torch.device) -> None:
    """A card computes while the program goes on; wait until it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    typer.run(main)
