"""SwiGLU feed-forward (Shazeer 2020): one dense network, or a gate before a mixture of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.few_rows import Panels
from model.linear import Linear, PanelLinear, prepare
from routing.experts import ExpertCall, Forward
from routing.gating import top_k_gating

# Letters: T tokens, R rows, D model dimension, F hidden dimension, G gate and up (2F), E experts.


@dataclass(frozen=True, slots=True)
class SwiGLU:
    """One network; made by `swiglu`.

    Attributes:
        gate_up: the gate (w1) and up (w3) products in one, (R, D) to (R, G).
        activation: silu(gate) * up, (R, G) to (R, F).
        down: w2, (R, F) to (R, D).
        panels: how to compute all of it at once for few rows; None where that cannot be.
    """

    gate_up: Linear
    activation: Callable[[Tensor], Tensor]
    down: Linear
    panels: Panels | None = None

    def __call__(self, x_RD: Tensor) -> Tensor:
        return self.down(self.activation(self.gate_up(x_RD)))


def swiglu(w1: Tensor, w2: Tensor, w3: Tensor, *, tile_rows: int | None = None) -> SwiGLU:
    """Prepare a network: `w1` (gate) and `w3` (up) are (F, D), `w2` (down) is (D, F).

    Args:
        tile_rows: make a row's bits depend on nothing but the row; see `model.linear`.
    """
    gate_up, down = prepare(w1, w3, tile_rows=tile_rows), prepare(w2, tile_rows=tile_rows)
    panels = None
    if isinstance(gate_up, PanelLinear) and isinstance(down, PanelLinear):
        addresses = (gate_up.address, down.address)
        panels = Panels(gate_up.few, *addresses, len(w1), is_tiled=tile_rows is not None)
    return SwiGLU(gate_up, _gated if tile_rows is None else _gated_by_row, down, panels)


def compute_networks(x_RD: Tensor, networks: Iterable[tuple[SwiGLU, int, int]]) -> Tensor:
    """Run each network on its rows, from the first up to the last; together they cover all."""
    y_RD = torch.empty_like(x_RD)
    few: list[tuple[Panels, int, int]] = []
    for network, first, end in networks:
        tiles = list(network.panels.tiles(first, end)) if network.panels is not None else []
        if tiles:
            few += tiles
        else:
            y_RD[first:end] = network(x_RD[first:end])
    if few:
        few[0][0].few.swiglu(x_RD, few, y_RD)
    return y_RD


def _gated(h_RG: Tensor) -> Tensor:
    gate_RF, up_RF = h_RG.chunk(2, dim=-1)
    return F.silu(gate_RF).mul_(up_RF)


def _gated_by_row(h_RG: Tensor) -> Tensor:
    """Do as `_gated`, with the same bits however many rows and threads there are.

    PyTorch computes silu in vectors and what is left over one by one, with another last bit. Where
    the left-over numbers lie depends on the shape and on the threads, but a row below 32,768
    numbers is never parted among threads.
    """
    return torch.cat([_gated(row_1G) for row_1G in torch.split(h_RG, 1)])


@dataclass(frozen=True, slots=True)
class DenseFeedForward:
    """A layer of dense Mistral; needs no experts."""

    network: SwiGLU

    def forward(self, layer: int, x_TD: Tensor) -> Forward[Tensor]:
        yield from ()
        return self.network(x_TD)


@dataclass(frozen=True, slots=True)
class MoeFeedForward:
    """A layer of Mixtral: `gate`, in float32, chooses; whoever drives the generator computes."""

    gate: Linear
    top_k: int

    def forward(self, layer: int, x_TD: Tensor) -> Forward[Tensor]:
        routes = top_k_gating(self.gate(x_TD.float()), self.top_k)
        return (yield ExpertCall(layer, x_TD, routes))
