"""Muon for stacked matrices: momentum whose singular values are all set near one.

As `torch.optim.Muon` (Jordan et al. 2024), but all matrices of one shape go through one batched
product; on a CPU that is several times faster than one matrix after another.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_MOMENTUM = 0.95


class Muon:
    """Updates every matrix of the last two dimensions of its parameters on its own."""

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.weight_decay = weight_decay
        self.momenta = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Apply the gradients, which stay as they are."""
        directions = defaultdict(list)
        for parameter, momentum in zip(self.parameters, self.momenta, strict=True):
            assert parameter.grad is not None, parameter.shape
            momentum.lerp_(parameter.grad, 1 - _MOMENTUM)
            nesterov = parameter.grad.lerp(momentum, _MOMENTUM)
            wide = _make_wide(nesterov).reshape(-1, *sorted(parameter.shape[-2:]))
            directions[wide.shape[1:]].append((parameter, wide))
        for group in directions.values():
            flat = orthogonalize(torch.cat([wide for _, wide in group]))
            updates = torch.split(flat, [len(wide) for _, wide in group])
            for (parameter, _), update in zip(group, updates, strict=True):
                self._apply(parameter, update, learning_rate)

    def _apply(self, parameter: nn.Parameter, update: Tensor, learning_rate: float) -> None:
        rows, columns = parameter.shape[-2:]
        if rows > columns:
            update = update.transpose(-1, -2)
        scale = max(1.0, rows / columns) ** 0.5
        parameter.mul_(1 - learning_rate * self.weight_decay)
        parameter.add_(update.reshape(parameter.shape), alpha=-learning_rate * scale)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Newton-Schulz iteration on a stack (N, rows, columns) with rows <= columns."""
    a, b, c = _COEFFICIENTS
    x: Tensor = matrices.bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()


def _make_wide(matrices: Tensor) -> Tensor:
    rows, columns = matrices.shape[-2:]
    return matrices.transpose(-1, -2) if rows > columns else matrices
