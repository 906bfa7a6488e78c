"""Rows as bytes and back."""

import pytest
import torch

from routing.tensors import TORCH_DTYPES, dtype_name, from_bytes, to_bytes
from routing.wire import DTYPE_BYTES


@pytest.mark.parametrize("name", TORCH_DTYPES)
def test_rows_survive_the_way_through_bytes(name: str) -> None:
    x_RD = torch.randn(5, 3).to(TORCH_DTYPES[name])

    y_RD = from_bytes(memoryview(bytearray(to_bytes(x_RD))), name, 3)

    assert y_RD.equal(x_RD)
    assert dtype_name(y_RD.dtype) == name


def test_every_dtype_on_the_wire_has_the_size_that_torch_gives_it() -> None:
    sizes = {name: dtype.itemsize for name, dtype in TORCH_DTYPES.items()}

    assert sizes == DTYPE_BYTES


def test_contiguous_rows_are_not_copied() -> None:
    x_RD = torch.zeros(2, 3)
    payload = to_bytes(x_RD)

    x_RD[0, 0] = 1.0

    assert bytes(payload[:4]) == b"\x00\x00\x80\x3f"


def test_rows_that_are_not_contiguous_are_copied_in_their_order() -> None:
    x_RD = torch.arange(6.0).view(3, 2).T

    y_RD = from_bytes(memoryview(bytearray(to_bytes(x_RD))), "float32", 3)

    assert y_RD.equal(x_RD)


def test_a_payload_is_viewed_and_not_copied() -> None:
    buffer = bytearray(24)
    x_RD = from_bytes(memoryview(buffer), "float32", 3)

    buffer[:4] = b"\x00\x00\x80\x3f"

    assert x_RD[0, 0] == 1.0
