"""Root-mean-square normalisation (Zhang and Sennrich 2019)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.few_rows import PANEL, FewRows, few_rows

# Letters: T tokens, D model dimension.

Norm = Callable[[Tensor], Tensor]
"""x_TD -> its normalised rows, (T, D)."""


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Divides each row by its root mean square, in float32, and scales it by `weight_D`."""

    weight_D: Tensor
    eps: float

    def __call__(self, x_TD: Tensor) -> Tensor:
        x32_TD = x_TD.float()
        x32_TD = x32_TD * torch.rsqrt(x32_TD.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight_D * x32_TD.to(x_TD.dtype)


@dataclass(frozen=True, slots=True)
class FewRowsNorm:
    """The same, compiled for few rows of bfloat16: eight operations in one."""

    norm: RmsNorm
    few: FewRows

    def __call__(self, x_TD: Tensor) -> Tensor:
        if len(x_TD) <= self.few.max_rows:
            return self.few.norm(x_TD, self.norm.weight_D, self.norm.eps)
        return self.norm(x_TD)


def prepare_norm(weight_D: Tensor, eps: float, is_deterministic: bool) -> Norm:
    """Choose the fastest way; a deterministic one is the same for any number of rows."""
    norm, few = RmsNorm(weight_D, eps), few_rows()
    is_fit = weight_D.is_cpu and weight_D.dtype == torch.bfloat16 and len(weight_D) % PANEL == 0
    return norm if few is None or is_deterministic or not is_fit else FewRowsNorm(norm, few)
