"""Measure the machine's limits: `python -m loadtest.bench.limits JOB`, once a round.

Reading: the best of a sum over 2 GiB and of products of a few rows with packed weights that take
turns, since neither alone is always at the limit. Arithmetic: 512 rows times 4096 x 14336 in
bfloat16.
"""

import importlib.metadata
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from loadtest.bench.answer import Values, compete
from loadtest.bench.cells import Cell, Job
from loadtest.bench.floor import PRODUCTS, READ

# Larger than any cache of a machine this is meant for.
SUM_BYTES = 2 * 2**30
SHAPE = (14_336, 4_096)
NUM_WEIGHTS = 6
ROWS_READ = (1, 4)
ROWS_COMPUTED = 512
REPEATS = 5

Product = Callable[[Tensor], Tensor]


def measure(cell: Cell) -> Values:
    """Give the best of each, since whatever else runs can only make it slower."""
    with torch.inference_mode():
        reads = [*_sums(SUM_BYTES), *_products_reading(SHAPE, NUM_WEIGHTS)]
        computed = _products_computing(SHAPE)
    return {READ: [max(reads)], PRODUCTS: [max(computed)]}


def _sums(num_bytes: int) -> list[float]:
    buffer = torch.ones(num_bytes // 4)
    return [buffer.nbytes / seconds for seconds in _times(lambda: buffer.sum())]


def _products_reading(shape: tuple[int, int], num_weights: int) -> list[float]:
    weights = [torch.randn(shape).bfloat16() for _ in range(num_weights)]
    num_bytes = sum(weight.nbytes for weight in weights)
    products = [_product(weight) for weight in weights]
    rates: list[float] = []
    for rows in ROWS_READ:
        x = torch.randn(rows, shape[1]).bfloat16()
        rates += [num_bytes / seconds for seconds in _times(partial(_all, products, x))]
    return rates


def _products_computing(shape: tuple[int, int]) -> list[float]:
    weight = torch.randn(shape).bfloat16()
    x = torch.randn(ROWS_COMPUTED, shape[1]).bfloat16()
    operations = 2.0 * ROWS_COMPUTED * shape[0] * shape[1]
    packed = _product(weight)
    seconds = [*_times(lambda: F.linear(x, weight)), *_times(lambda: packed(x))]
    return [operations / each for each in seconds]


def _product(weight: Tensor) -> Product:
    """Multiply with a packed copy where torch can, else with the weight as it is."""
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 4)
    except (AttributeError, RuntimeError):
        return lambda x: F.linear(x, weight)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _all(products: Sequence[Product], x: Tensor) -> None:
    for product in products:
        product(x)


def _times(work: Callable[[], object]) -> list[float]:
    """Seconds of each of some runs, after one that does not count."""
    work()
    seconds: list[float] = []
    for _ in range(REPEATS):
        started_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started_s)
    return seconds


def main() -> None:
    """Entry point of the process."""
    job = Job.from_json(sys.argv[1])
    torch.set_num_threads(job.threads)
    compete(measure, job, {"torch": importlib.metadata.version("torch")})


if __name__ == "__main__":
    main()
