"""Which tokens each limit keeps, and that sorting only some of them draws the same."""

import math

import pytest
import torch
from torch import Tensor

from model import drawing
from model.drawing import draw
from model.sampling_params import SamplingParams

GRID = [step / 200 for step in range(200)]
PROBABILITIES = [0.05, 0.4, 0.15, 0.3, 0.1]


def logits_of(probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def shares(probabilities: list[float], **limits: float) -> dict[int, float]:
    """What share of evenly spread numbers draws each id."""
    params = SamplingParams(temperature=1.0, **limits)  # type: ignore[arg-type]
    logits_RV = logits_of(probabilities).expand(len(GRID), -1)
    ids = draw(logits_RV, [params] * len(GRID), GRID)
    return {token_id: ids.count(token_id) / len(GRID) for token_id in sorted(set(ids))}


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [
        (1, {1: 1.0}),
        (2, {1: 4 / 7, 3: 3 / 7}),
        (3, {1: 40 / 85, 2: 15 / 85, 3: 30 / 85}),
        (5, {0: 0.05, 1: 0.4, 2: 0.15, 3: 0.3, 4: 0.1}),
        (6, {0: 0.05, 1: 0.4, 2: 0.15, 3: 0.3, 4: 0.1}),
        (10**30, {0: 0.05, 1: 0.4, 2: 0.15, 3: 0.3, 4: 0.1}),
        (0, {0: 0.05, 1: 0.4, 2: 0.15, 3: 0.3, 4: 0.1}),
    ],
)
def test_top_k_keeps_the_likeliest_in_proportion(top_k: int, expected: dict[int, float]) -> None:
    assert shares(PROBABILITIES, top_k=top_k) == pytest.approx(expected, abs=0.0051)


def test_of_equal_tokens_top_k_keeps_the_lower_ids() -> None:
    assert set(shares([0.25, 0.25, 0.25, 0.25], top_k=2)) == {0, 1}


@pytest.mark.parametrize(
    ("min_p", "kept"),
    [
        (0.0, {0, 1, 2, 3, 4}),
        (0.12, {0, 1, 2, 3, 4}),
        (0.13, {1, 2, 3, 4}),
        (0.26, {1, 2, 3}),
        (0.74, {1, 3}),
        (0.76, {1}),
        (1.0, {1}),
    ],
)
def test_min_p_keeps_what_is_likely_beside_the_likeliest(min_p: float, kept: set[int]) -> None:
    assert set(shares(PROBABILITIES, min_p=min_p)) == kept


def test_min_p_of_one_keeps_all_that_are_as_likely_as_the_likeliest() -> None:
    assert set(shares([0.3, 0.3, 0.3, 0.1], min_p=1.0)) == {0, 1, 2}


def test_top_p_is_a_share_of_what_top_k_kept() -> None:
    # The three likeliest have 0.85: 0.7 of the whole is 0.82 of them.
    assert set(shares(PROBABILITIES, top_k=3, top_p=0.83)) == {1, 2, 3}
    assert set(shares(PROBABILITIES, top_k=3, top_p=0.81)) == {1, 3}
    assert set(shares(PROBABILITIES, top_p=0.71)) == {1, 2, 3}


def test_the_strictest_limit_counts() -> None:
    assert set(shares(PROBABILITIES, top_k=4, top_p=0.5, min_p=0.2)) == {1, 3}
    assert set(shares(PROBABILITIES, top_k=1, top_p=0.9, min_p=0.2)) == {1}
    assert set(shares(PROBABILITIES, top_k=4, top_p=0.9, min_p=0.8)) == {1}


def test_temperature_comes_before_min_p() -> None:
    params = SamplingParams(temperature=2.0, min_p=math.sqrt(0.05 / 0.4) - 1e-9)

    ids = draw(logits_of(PROBABILITIES).expand(len(GRID), -1), [params] * len(GRID), GRID)

    assert set(ids) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("num_sorted_first", [1, 2, 7, 50])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("is_rounded", [False, True], ids=["distinct", "ties"])
def test_sorting_only_some_tokens_draws_the_same(
    monkeypatch: pytest.MonkeyPatch, num_sorted_first: int, spread: float, is_rounded: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits_RV = torch.randn(240, 300, generator=generator, dtype=torch.float64) * spread
    logits_RV = logits_RV.round(decimals=0 if is_rounded else 9)
    numbers = torch.rand(240, generator=generator, dtype=torch.float64).tolist()
    numbers[:24] = [0.0] * 12 + [1 - 2**-53] * 12
    params = [
        SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        for temperature in (0.5, 1.0)
        for top_k in (0, 1, 5, 60, 300)
        for top_p in (1.0, 0.99, 0.5)
        for min_p in (0.0, 0.001, 0.1, 0.9)
    ] * 2
    monkeypatch.setattr(drawing, "NUM_SORTED_FIRST", 300)
    expected = draw(logits_RV, params, numbers)

    monkeypatch.setattr(drawing, "NUM_SORTED_FIRST", num_sorted_first)

    assert draw(logits_RV, params, numbers) == expected
