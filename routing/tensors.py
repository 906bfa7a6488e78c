"""Rows of tensors to bytes and back, without a copy on the CPU."""

import torch
from torch import Tensor

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of `dtype` on the wire and in settings."""
    return str(dtype).removeprefix("torch.")


def to_bytes(x_RD: Tensor) -> memoryview:
    """View rows as bytes; copies only what is not contiguous or not on the CPU."""
    flat = x_RD.detach().cpu().contiguous().view(torch.uint8)
    return flat.numpy().data.cast("B")


def from_bytes(payload: memoryview, dtype: str, dim: int) -> Tensor:
    """View a writable payload as rows (R, dim)."""
    return torch.frombuffer(payload, dtype=TORCH_DTYPES[dtype]).view(-1, dim)
