"""The experts that one process holds, and their computation on rows sorted by expert."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from model.feed_forward import SwiGLU

# Letters: R rows sorted by expert, D model dimension.


class ExpertShard:
    """Any subset of a model's experts, by (layer, expert).

    Experts may be added and removed by one thread while another computes: each is one entry of
    a dictionary, put in place whole.
    """

    def __init__(self) -> None:
        self._networks: dict[tuple[int, int], SwiGLU] = {}

    @property
    def expert_ids(self) -> tuple[int, ...]:
        """The logical experts held, ascending."""
        return tuple(sorted({expert_id for _, expert_id in list(self._networks)}))

    def add(self, weights: Mapping[str, Tensor], layers: int, expert_ids: Iterable[int]) -> None:
        """Take experts out of `weights`, by our names, in every layer."""
        for expert_id in expert_ids:
            for layer in range(layers):
                prefix = f"layers.{layer}.experts.{expert_id}"
                w1, w2, w3 = (weights[f"{prefix}.{name}.weight"] for name in ("w1", "w2", "w3"))
                self._networks[layer, expert_id] = SwiGLU(w1, w2, w3)

    def remove(self, expert_ids: Iterable[int]) -> None:
        """Drop experts in every layer."""
        dropped = set(expert_ids)
        for key in [key for key in self._networks if key[1] in dropped]:
            del self._networks[key]

    def compute_rows(
        self, layer: int, x_RD: Tensor, slices: Mapping[int, tuple[int, int]]
    ) -> Tensor:
        """Run each expert on its slice of rows; one product per touched expert and matrix.

        Raises:
            KeyError: an expert is not held here.
        """
        y_RD = torch.empty_like(x_RD)
        for expert_id, (first, end) in slices.items():
            y_RD[first:end] = self._networks[layer, expert_id](x_RD[first:end])
        return y_RD
