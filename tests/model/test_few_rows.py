"""The compiled products of few rows: their numbers, and doing without them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model import few_rows, linear
from model.feed_forward import SwiGLU, compute_networks, swiglu
from model.few_rows import MAX_ROWS as FEW
from model.linear import DenseLinear, PackedLinear, PanelLinear, prepare
from model.norm import FewRowsNorm, RmsNorm, prepare_norm

SHAPES = [(64, 64), (192, 128), (128, 4_160)]

compiled = pytest.mark.skipif(
    few_rows.few_rows() is None, reason="no compiler, or no AVX-512 for bfloat16"
)


def normal(rows: int, columns: int, std: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    return (std * torch.randn(rows, columns, generator=generator)).bfloat16()


def network_of(dim: int, hidden_dim: int) -> tuple[SwiGLU, tuple[Tensor, Tensor, Tensor]]:
    w1, w2, w3 = normal(hidden_dim, dim, 0.2), normal(dim, hidden_dim, 0.2), normal(hidden_dim, dim)
    return swiglu(w1, w2, w3), (w1, w2, w3)


def assert_rounded(y: Tensor, expected: Tensor) -> None:
    """Equal to what is computed in float64, but for rounding to bfloat16 on the way."""
    error = (y.double() - expected).abs().max()
    assert error <= 2**-7 * expected.abs().max(), float(error)


@compiled
@pytest.mark.parametrize("num_rows", range(1, FEW + 1))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_of_few_rows_is_that_of_the_weight(num_rows: int, shape: tuple[int, int]) -> None:
    weight_NK, x_RK = normal(*shape), normal(num_rows, shape[1])
    product = prepare(weight_NK)

    assert isinstance(product, PanelLinear)
    assert_rounded(product(x_RK), x_RK.double() @ weight_NK.double().T)


@compiled
def test_rows_that_do_not_lie_together_are_multiplied_too() -> None:
    weight_NK, wide = normal(64, 128), normal(3, 300)
    x_RK = wide[:, 50:178]

    assert torch.equal(prepare(weight_NK)(x_RK), prepare(weight_NK)(x_RK.clone()))


@compiled
def test_a_row_has_the_same_bits_whatever_rows_are_with_it() -> None:
    product, x_RK = prepare(normal(128, 4_160)), normal(FEW, 4_160)

    together = product(x_RK)

    for row in range(FEW):
        assert torch.equal(product(x_RK[row : row + 1]), together[row : row + 1])


@compiled
@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_any_number_of_threads_shares_the_panels_out(num_threads: int) -> None:
    weight_NK, x_RK = normal(320, 128), normal(3, 128)
    threads = torch.get_num_threads()

    torch.set_num_threads(num_threads)
    y_RN = prepare(weight_NK)(x_RK)
    torch.set_num_threads(threads)

    assert_rounded(y_RN, x_RK.double() @ weight_NK.double().T)


@compiled
def test_networks_of_few_and_many_rows_each_compute_their_own() -> None:
    networks, weights = zip(*(network_of(128, 192) for _ in range(4)), strict=True)
    ends = [0, 1, FEW, 3 * FEW, 3 * FEW + 5]
    spans = list(zip(networks, ends[:-1], ends[1:], strict=True))
    x_RD = normal(ends[-1], 128)

    y_RD = compute_networks(x_RD, spans)

    for (w1, w2, w3), first, end in zip(weights, ends[:-1], ends[1:], strict=True):
        x = x_RD[first:end].double()
        expected = F.silu(x @ w1.double().T) * (x @ w3.double().T) @ w2.double().T
        assert_rounded(y_RD[first:end], expected)


@compiled
@pytest.mark.parametrize("value", [0.0, 1e-3, 20.0, 120.0, -20.0, -120.0, 1e18, -3e38])
def test_silu_is_right_far_from_zero_too(value: float) -> None:
    """With weights of one on the diagonal, the network computes silu(x) * x."""
    network = swiglu(*(torch.eye(64).bfloat16() for _ in range(3)))
    x_RD = torch.full((1, 64), value).bfloat16()

    y_RD = compute_networks(x_RD, [(network, 0, 1)])

    expected = F.silu(x_RD.float()) * x_RD.float()
    assert torch.allclose(y_RD.float(), expected.bfloat16().float(), rtol=2**-7)


@compiled
def test_what_is_not_a_number_stays_so() -> None:
    network = swiglu(*(torch.eye(64).bfloat16() for _ in range(3)))
    x_RD = torch.full((2, 64), torch.nan).bfloat16()
    x_RD[1] = 1.0

    y_RD = compute_networks(x_RD, [(network, 0, 2)])

    assert y_RD[0].isnan().all()
    assert not y_RD[1].isnan().any()


@compiled
def test_a_weight_that_does_not_lie_as_expected_is_left_to_onednn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(prepare(normal(128, 128)), PanelLinear)

    monkeypatch.setattr(linear.PanelLinear, "__call__", lambda self, x_RK: normal(len(x_RK), 128))

    assert isinstance(prepare(normal(128, 128)), PackedLinear)


def test_weights_that_are_no_whole_panels_are_left_to_onednn() -> None:
    assert isinstance(prepare(normal(72, 64)), PackedLinear | DenseLinear)
    assert isinstance(prepare(normal(64, 72)), PackedLinear | DenseLinear)


@compiled
def test_the_library_is_built_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    assert few_rows.load(folder) is not None
    [library] = folder.iterdir()

    monkeypatch.setattr(few_rows, "_run", None)

    assert few_rows.load(folder) is not None
    assert library.suffix == ".so"


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_working_compiler_there_are_no_such_products(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_rows, "COMPILE", (compiler,))

    assert few_rows.load(tmp_path) is None
    assert not list(tmp_path.glob("**/*.so"))


def test_without_such_products_weights_are_packed_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "few_rows", lambda: None)
    weight_NK, x_RK = normal(128, 64), normal(3, 64)

    product = prepare(weight_NK)

    assert isinstance(product, PackedLinear | DenseLinear)
    assert_rounded(product(x_RK), x_RK.double() @ weight_NK.double().T)


@compiled
@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize("std", [1e-6, 1.0, 1e4])
def test_normalised_rows_are_those_of_pytorch(num_rows: int, std: float) -> None:
    weight_D, x_RD = normal(1, 128)[0], normal(num_rows, 128, std)
    norm = prepare_norm(weight_D, 1e-5, is_deterministic=False)

    y_RD = norm(x_RD)

    assert isinstance(norm, FewRowsNorm)
    # At most the last bit, where float32's sum comes out otherwise.
    assert torch.allclose(y_RD.float(), RmsNorm(weight_D, 1e-5)(x_RD).float(), rtol=2**-7, atol=0)


def test_a_deterministic_norm_is_the_same_for_any_number_of_rows() -> None:
    assert isinstance(prepare_norm(normal(1, 128)[0], 1e-5, is_deterministic=True), RmsNorm)
