"""Products of rows with weights that never change, made ready once when a model is loaded.

On CPU a weight is packed into the layout that oneDNN's kernels read. The operators that do so are
private to PyTorch, so they are tried before they are used, and they are named in this file only.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from model.few_rows import PANEL, FewRows, few_rows
from model.huge_pages import use_huge_pages

# Letters: R rows, K numbers of an input row, N numbers of an output row.

Linear = Callable[[Tensor], Tensor]
"""x_RK -> y_RN, contiguous."""

Pack = Callable[[Tensor], Linear]
"""weight_NK -> its product, which holds a copy of its own."""

TILE_ROWS = 32
"""Rows of a product in deterministic mode; see `TiledLinear`."""

_WORTH_PACKING = 1 << 20
_ROUNDING = 2**-6


@dataclass(frozen=True, slots=True)
class DenseLinear:
    """A product with a weight as it is stored."""

    weight_NK: Tensor

    def __call__(self, x_RK: Tensor) -> Tensor:
        return F.linear(x_RK, self.weight_NK)


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A product with a packed weight, which cannot be pickled: its layout is this process's own."""

    packed_NK: Tensor

    def __call__(self, x_RK: Tensor) -> Tensor:
        y_RN: Tensor = torch.ops.mkldnn._linear_pointwise(
            x_RK, self.packed_NK, None, "none", [], ""
        )
        return y_RN


@dataclass(frozen=True, slots=True)
class PanelLinear:
    """A packed weight that `few_rows.c` can read too, at `address`, for products of few rows.

    Attributes:
        is_tiled: many rows are computed as several times few, so that a row's bits are its own.
    """

    packed: PackedLinear
    few: FewRows
    address: int
    num_outputs: int
    is_tiled: bool = False

    def __call__(self, x_RK: Tensor) -> Tensor:
        max_rows = self.few.max_rows
        if 0 < len(x_RK) <= max_rows:
            return self.few.linear(x_RK, self.address, self.num_outputs)
        if self.is_tiled and len(x_RK):
            return torch.cat([self(tile_RK) for tile_RK in torch.split(x_RK, max_rows)])
        return self.packed(x_RK)


@dataclass(frozen=True, slots=True)
class TiledLinear:
    """A product in tiles of exactly `tile_rows` rows, the last one filled up with zeros.

    Kernels sum in an order that depends on the number of rows. With a fixed number the bits of an
    output row depend on its input row alone: not on the other rows, nor on its place among them.
    Up to 32 rows they do not depend on the number of threads either; from 64 on oneDNN may part
    the sum among threads (bfloat16, K = 2048, 2 threads: 8 of 65,536 numbers differ).
    """

    linear: Linear
    tile_rows: int

    def __call__(self, x_RK: Tensor) -> Tensor:
        num_rows, dim = x_RK.shape
        num_tiles = -(-num_rows // self.tile_rows)
        # Always a copy: the kernels may also look at how the memory is aligned.
        padded_RK = x_RK.new_zeros(num_tiles * self.tile_rows, dim)
        padded_RK[:num_rows] = x_RK
        tiles = [self.linear(tile_RK) for tile_RK in torch.split(padded_RK, self.tile_rows)]
        return torch.cat(tiles)[:num_rows]


def pack(weight_NK: Tensor) -> PackedLinear | PanelLinear:
    """Pack a weight for oneDNN; the weight itself is no longer needed.

    Raises:
        AttributeError: this PyTorch lacks the operator.
        RuntimeError: this CPU, or this PyTorch, cannot do it in the weight's dtype.
    """
    packed = PackedLinear(torch.ops.mkldnn._reorder_linear_weight(weight_NK, None))
    address: int = torch.ops.mkldnn.data_ptr(packed.packed_NK)
    use_huge_pages(address, torch.ops.mkldnn._nbytes(packed.packed_NK))
    few, (num_outputs, num_inputs) = few_rows(), weight_NK.shape
    if (
        few is None
        or weight_NK.dtype != torch.bfloat16
        or num_outputs % PANEL
        or num_inputs % PANEL
    ):
        return packed
    panels = PanelLinear(packed, few, address, num_outputs)
    # How oneDNN packs is nowhere promised, so it is tried: a wrong guess gives other numbers.
    x_2K = torch.randn(2, num_inputs, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected_2N = packed(x_2K)
    error = (panels(x_2K) - expected_2N).abs().max()
    return panels if error <= _ROUNDING * expected_2N.abs().max() else packed


def prepare(*weights_NK: Tensor, tile_rows: int | None = None, pack: Pack = pack) -> Linear:
    """Fuse weights by rows into one product.

    Weights on CPU are packed where that works: bfloat16 always, float32 and float16 from 2^20
    numbers on, and whatever is tiled.

    Args:
        tile_rows: make a row's bits its own, by tiles of this many rows where the kernels need it.
    """
    weight_NK = weights_NK[0] if len(weights_NK) == 1 else torch.cat(weights_NK)
    is_worth_packing = (
        tile_rows is not None
        or weight_NK.dtype == torch.bfloat16
        or weight_NK.numel() >= _WORTH_PACKING
    )
    is_packed = is_worth_packing and weight_NK.is_cpu and _works(pack, weight_NK.dtype)
    linear = pack(weight_NK) if is_packed else DenseLinear(weight_NK)
    if tile_rows is None:
        return linear
    if isinstance(linear, PanelLinear):
        # Its sums run in one order for any number of rows, as long as they are few.
        return replace(linear, is_tiled=True)
    return TiledLinear(linear, tile_rows)


def _works(pack: Pack, dtype: torch.dtype) -> bool:
    """Try it on a small matrix of ones."""
    ones = torch.ones(16, 16, dtype=dtype)
    try:
        return bool((pack(ones)(ones) == 16).all())
    except (AttributeError, RuntimeError, TypeError):
        return False
