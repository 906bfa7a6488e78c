"""The experts that one process holds, and their computation on rows sorted by expert."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from model.feed_forward import SwiGLU

# Letters: R rows sorted by expert, D model dimension.


class ExpertShard:
    """Any subset of a model's experts, each in every layer.

    Experts may be added and removed by one thread while another computes: each is one entry of
    a dictionary, put in place whole.
    """

    def __init__(self) -> None:
        self._networks: dict[int, list[SwiGLU]] = {}

    @property
    def expert_ids(self) -> tuple[int, ...]:
        """The logical experts held, ascending."""
        return tuple(sorted(self._networks))

    def add(self, weights: Mapping[str, Tensor], layers: int, expert_ids: Iterable[int]) -> None:
        """Take experts out of `weights`, by our names, in every layer."""
        for expert_id in expert_ids:
            self._networks[expert_id] = [
                _network(weights, f"layers.{layer}.experts.{expert_id}") for layer in range(layers)
            ]

    def remove(self, expert_ids: Iterable[int]) -> None:
        """Drop experts in every layer."""
        for expert_id in expert_ids:
            self._networks.pop(expert_id, None)

    def compute_rows(
        self, layer: int, x_RD: Tensor, slices: Mapping[int, tuple[int, int]]
    ) -> Tensor:
        """Run each expert on its slice of rows; one product per touched expert and matrix.

        Raises:
            KeyError: an expert is not held here.
        """
        y_RD = torch.empty_like(x_RD)
        for expert_id, (first, end) in slices.items():
            y_RD[first:end] = self._networks[expert_id][layer](x_RD[first:end])
        return y_RD


def _network(weights: Mapping[str, Tensor], prefix: str) -> SwiGLU:
    w1, w2, w3 = (weights[f"{prefix}.{name}.weight"] for name in ("w1", "w2", "w3"))
    return SwiGLU(w1, w2, w3)
