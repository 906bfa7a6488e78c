"""Prepared products: what they compute, when they are packed, and rows whose bits are their own."""

import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.linear import TILE_ROWS, DenseLinear, Linear, Pack, PackedLinear, TiledLinear, prepare

TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}

every_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def can_pack(dtype: torch.dtype) -> bool:
    return isinstance(prepare(normal(1024, 1024, dtype)), PackedLinear)


def normal(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, columns, generator=generator).to(dtype)


def no_operator(weight_NK: Tensor) -> Linear:
    raise AttributeError("no such operator")


def refused(weight_NK: Tensor) -> Linear:
    raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512_core")


def wrong_numbers(weight_NK: Tensor) -> Linear:
    return lambda x_RK: F.linear(x_RK, weight_NK) + 1


def assert_close(y_RN: Tensor, expected_RN: Tensor, tolerance: float) -> None:
    error = (y_RN.double() - expected_RN).abs().max()
    assert error <= tolerance * expected_RN.abs().max(), float(error)


@every_dtype
@pytest.mark.parametrize("rows", [1, 2, 17, 200])
@pytest.mark.parametrize("shape", [(96, 64), (1031, 1024)], ids=str)
@pytest.mark.parametrize("tile_rows", [None, TILE_ROWS])
def test_a_product_is_that_of_the_dense_weight(
    dtype: torch.dtype, rows: int, shape: tuple[int, int], tile_rows: int | None
) -> None:
    weight_NK, x_RK = normal(*shape, dtype), normal(rows, shape[1], dtype)

    y_RN = prepare(weight_NK, tile_rows=tile_rows)(x_RK)

    assert y_RN.dtype == dtype
    assert_close(y_RN, x_RK.double() @ weight_NK.double().T, TOLERANCES[dtype])


@every_dtype
@pytest.mark.parametrize("tile_rows", [None, TILE_ROWS])
def test_fused_weights_give_their_products_side_by_side(
    dtype: torch.dtype, tile_rows: int | None
) -> None:
    first_NK, second_NK, x_RK = normal(96, 64, dtype), normal(32, 64, dtype), normal(5, 64, dtype)

    y_RN = prepare(first_NK, second_NK, tile_rows=tile_rows)(x_RK)

    assert_close(y_RN[:, :96], x_RK.double() @ first_NK.double().T, TOLERANCES[dtype])
    assert_close(y_RN[:, 96:], x_RK.double() @ second_NK.double().T, TOLERANCES[dtype])


@pytest.mark.parametrize("tile_rows", [None, TILE_ROWS])
def test_no_rows_give_no_rows(tile_rows: int | None) -> None:
    for weight_NK in (normal(96, 64), normal(1024, 1024), normal(96, 64, torch.bfloat16)):
        no_rows_RK = torch.empty(0, weight_NK.shape[1], dtype=weight_NK.dtype)

        assert prepare(weight_NK, tile_rows=tile_rows)(no_rows_RK).shape == (0, len(weight_NK))


@pytest.mark.skipif(not can_pack(torch.float32), reason="this PyTorch cannot pack")
def test_small_float32_weights_stay_dense_and_large_ones_are_packed() -> None:
    assert isinstance(prepare(normal(256, 128)), DenseLinear)
    assert isinstance(prepare(normal(1023, 1024)), DenseLinear)
    assert isinstance(prepare(normal(1024, 1024)), PackedLinear)


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU cannot pack bfloat16")
def test_bfloat16_weights_are_packed_whatever_their_size() -> None:
    assert isinstance(prepare(normal(8, 16, torch.bfloat16)), PackedLinear)


@every_dtype
@pytest.mark.parametrize("broken", [no_operator, refused, wrong_numbers])
def test_weights_stay_dense_where_packing_does_not_work(dtype: torch.dtype, broken: Pack) -> None:
    weight_NK, x_RK = normal(1024, 1024, dtype), normal(3, 1024, dtype)

    linear = prepare(weight_NK, pack=broken)

    assert torch.equal(linear(x_RK), F.linear(x_RK, weight_NK))


@pytest.mark.skipif(not can_pack(torch.float32), reason="this PyTorch cannot pack")
def test_a_packed_weight_cannot_be_pickled() -> None:
    linear = prepare(normal(1024, 1024))

    with pytest.raises(NotImplementedError, match="storage"):
        pickle.dumps(linear)


@every_dtype
@pytest.mark.parametrize("shape", [(96, 80), (1024, 1024)], ids=str)
def test_a_tiled_row_has_the_same_bits_whatever_rows_are_with_it(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    linear = prepare(normal(*shape, dtype), tile_rows=TILE_ROWS)
    x_RK = normal(70, shape[1], dtype)
    alone_RN = torch.cat([linear(row_1K) for row_1K in torch.split(x_RK, 1)])

    for rows in range(1, 71):
        assert torch.equal(linear(x_RK[:rows]), alone_RN[:rows]), rows


@every_dtype
def test_a_tiled_row_has_the_same_bits_wherever_it_lies(dtype: torch.dtype) -> None:
    linear = prepare(normal(96, 80, dtype), tile_rows=TILE_ROWS)
    x_RK = normal(41, 80, dtype)
    y_RN = linear(x_RK)

    for shift in range(1, 41):
        assert torch.equal(linear(x_RK.roll(shift, 0)), y_RN.roll(shift, 0)), shift


@pytest.mark.skipif(not can_pack(torch.float32), reason="dense products may depend on threads")
@every_dtype
def test_a_tiled_row_has_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    linear, x_RK = prepare(normal(1024, 2048, dtype), tile_rows=TILE_ROWS), normal(40, 2048, dtype)
    threads = torch.get_num_threads()
    found = []

    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        found.append(linear(x_RK))
    torch.set_num_threads(threads)

    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_tiles_all_have_the_same_number_of_rows() -> None:
    seen: list[Tensor] = []

    def note(x_RK: Tensor) -> Tensor:
        seen.append(x_RK)
        return x_RK

    x_RK = normal(11, 3)
    y_RK = TiledLinear(note, 4)(x_RK)

    assert torch.equal(y_RK, x_RK)
    assert [tuple(tile_RK.shape) for tile_RK in seen] == [(4, 3), (4, 3), (4, 3)]
    assert not seen[2][3:].any()
