"""Rotary position embedding (Su et al. 2021), half-split pairing.

Dimension i of a head is rotated together with dimension i + head_dim / 2, as Hugging Face stores
the weights. Mistral's own files pair neighbours (2i, 2i + 1); they are permuted when loaded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig

# Letters: P positions, T tokens, N heads, H dimensions of a head.


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of a step's positions, each (T, 1, H), in the model's dtype."""

    cos_T1H: Tensor
    sin_T1H: Tensor

    def apply(self, x_TNH: Tensor) -> Tensor:
        """Rotate queries or keys to their positions."""
        first, second = x_TNH.chunk(2, dim=-1)
        return x_TNH * self.cos_T1H + torch.cat((-second, first), dim=-1) * self.sin_T1H


class RotaryTable:
    """The rotations of every position that a model knows, computed once."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        """Angles are position * theta ** (-2i / head_dim), computed in float32."""
        exponents = torch.arange(0, config.head_dim, 2, device=device).float()
        frequencies = 1.0 / config.rope_theta ** (exponents / config.head_dim)
        positions = torch.arange(config.context_tokens, device=device).float()
        angles_PH = torch.outer(positions, frequencies).repeat(1, 2)
        self._cos_PH = angles_PH.cos().to(dtype)
        self._sin_PH = angles_PH.sin().to(dtype)

    def at(self, positions_T: Tensor) -> Rotation:
        """Look up the rotations of a step's positions."""
        return Rotation(
            self._cos_PH[positions_T].unsqueeze(1), self._sin_PH[positions_T].unsqueeze(1)
        )
