"""Rotary position embedding (Su et al. 2021), half-split pairing.

Dimension i of a head is rotated together with dimension i + head_dim / 2, as Hugging Face stores
the weights. Mistral's own files pair neighbours (2i, 2i + 1); they are permuted when loaded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Letters: T tokens, N heads, H dimensions of a head.


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of a step's positions, each (T, 1, H), in the model's dtype."""

    cos_T1H: Tensor
    sin_T1H: Tensor

    def apply(self, x_TNH: Tensor) -> Tensor:
        """Rotate queries or keys to their positions."""
        first, second = x_TNH.chunk(2, dim=-1)
        return x_TNH * self.cos_T1H + torch.cat((-second, first), dim=-1) * self.sin_T1H


def rotation_at(positions_T: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
    """Angles of `positions_T`: position * theta ** (-2i / head_dim), computed in float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions_T.device)
    frequencies = 1.0 / theta ** (exponents.float() / head_dim)
    angles = positions_T.float().unsqueeze(-1) * frequencies
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))
