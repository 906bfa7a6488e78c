"""The most that the machine allows: tokens per second if memory or arithmetic were all there is.

A step takes at least the time to read its weights once, and at least that of its matrix products.
Pure arithmetic on the limits that `limits.py` measures.
"""

from dataclasses import dataclass

from loadtest.bench.cells import Cell
from loadtest.bench.sizes import Size

READ = "read_bytes_per_s"
PRODUCTS = "operations_per_s"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine did in one round, at best."""

    read_bytes_per_s: float
    operations_per_s: float


def floor_tokens_per_s(size: Size, cell: Cell, limits: Limits) -> float:
    """Give the rate that no contestant can pass.

    Prefill counts prompt tokens, the others generated ones. It can be passed all the same where
    rows choose the same experts, or weights stay in a cache from step to step.
    """
    if cell.kind == "decode":
        return cell.batch / _decode_step_s(size, cell.batch, limits)
    prompt_s = _prompt_s(size, cell.prompt_tokens, limits)
    if cell.kind == "prefill":
        return cell.prompt_tokens / prompt_s
    # All prompts first, then every stream decodes.
    decode_s = cell.new_tokens * _decode_step_s(size, cell.batch, limits)
    return cell.batch * cell.new_tokens / (cell.batch * prompt_s + decode_s)


def _decode_step_s(size: Size, batch: int, limits: Limits) -> float:
    read_s = size.decode_bytes(batch) / limits.read_bytes_per_s
    return max(read_s, size.operations(batch, batch) / limits.operations_per_s)


def _prompt_s(size: Size, num_tokens: int, limits: Limits) -> float:
    return size.operations(num_tokens, 1) / limits.operations_per_s
