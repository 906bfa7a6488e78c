"""SwiGLU feed-forward (Shazeer 2020): one dense network, or a gate before a mixture of them."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from routing.experts import ExpertCall, Forward
from routing.gating import top_k_gating

# Letters: T tokens, D model dimension, F hidden dimension, E experts.


@dataclass(frozen=True, slots=True)
class SwiGLU:
    """One network: `w1` (gate) and `w3` (up) are (F, D), `w2` (down) is (D, F)."""

    w1: Tensor
    w2: Tensor
    w3: Tensor

    def __call__(self, x_TD: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x_TD, self.w1)) * F.linear(x_TD, self.w3), self.w2)


@dataclass(frozen=True, slots=True)
class DenseFeedForward:
    """A layer of dense Mistral; needs no experts."""

    network: SwiGLU

    def forward(self, layer: int, x_TD: Tensor) -> Forward[Tensor]:
        yield from ()
        return self.network(x_TD)


@dataclass(frozen=True, slots=True)
class MoeFeedForward:
    """A layer of Mixtral: `gate` (E, D) chooses, whoever drives the generator computes."""

    gate: Tensor
    top_k: int

    def forward(self, layer: int, x_TD: Tensor) -> Forward[Tensor]:
        routes = top_k_gating(F.linear(x_TD, self.gate), self.top_k)
        return (yield ExpertCall(layer, x_TD, routes))
