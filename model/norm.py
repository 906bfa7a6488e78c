"""Root-mean-square normalisation (Zhang and Sennrich 2019)."""

import torch
from torch import Tensor


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Divide each row by its root mean square, in float32, and scale it by `weight_D`."""
    x32_TD = x_TD.float()
    x32_TD = x32_TD * torch.rsqrt(x32_TD.pow(2).mean(-1, keepdim=True) + eps)
    return weight_D * x32_TD.to(x_TD.dtype)
