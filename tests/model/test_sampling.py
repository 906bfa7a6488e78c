"""Sampling: greedy, nucleus, seeds. Statistics are on fixed seeds, so a test never flickers."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from model.sampling import Sample, SampleRow, sample, uniform
from model.sampling_params import MAX_SEED, SamplingParams

# 99.9 % of chi-square values with 99 degrees of freedom are below this.
CHI_SQUARE_99 = 148.2
PROBABILITIES = [0.5, 0.3, 0.15, 0.05]


def logits_of(probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities).log()


def sample_one(logits_V: Tensor, position: int = 0, **params: float) -> Sample:
    row = SampleRow(SamplingParams(**params), position, (), ())  # type: ignore[arg-type]
    [chosen] = sample(logits_V.unsqueeze(0), [row])
    return chosen


def draws(logits_V: Tensor, num: int, **params: float) -> Counter[int]:
    """How often each id is drawn at `num` positions."""
    return Counter(sample_one(logits_V, position, **params).token_id for position in range(num))


def chi_square(numbers: list[float], num_bins: int = 100) -> float:
    counts = Counter(int(number * num_bins) for number in numbers)
    expected = len(numbers) / num_bins
    return sum((counts[index] - expected) ** 2 / expected for index in range(num_bins))


def test_greedy_takes_the_most_likely_token_of_each_row() -> None:
    logits_BV = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))

    chosen = sample(logits_BV, [SampleRow(SamplingParams(), 0, (), ())] * 5)

    assert [each.token_id for each in chosen] == logits_BV.argmax(dim=-1).tolist()


def test_greedy_does_not_depend_on_the_seed() -> None:
    logits_V = logits_of(PROBABILITIES)

    assert {sample_one(logits_V, seed=seed).token_id for seed in range(20)} == {0}


def test_no_rows_give_no_samples() -> None:
    assert sample(torch.empty(0, 7), []) == []


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e-4])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits_V = torch.randn(40, generator=torch.Generator().manual_seed(1))

    seen = draws(logits_V, 50, temperature=temperature)

    assert set(seen) == {int(logits_V.argmax())}


def test_equal_arguments_give_equal_numbers_and_others_other_ones() -> None:
    grid = {
        (seed, position): uniform(seed, position) for seed in range(40) for position in range(40)
    }

    assert all(uniform(*key) == number for key, number in grid.items())
    assert len(set(grid.values())) == len(grid)


@pytest.mark.parametrize("seed", [0, 1, 2**32, MAX_SEED])
def test_numbers_are_from_zero_to_below_one(seed: int) -> None:
    numbers = [uniform(seed, position) for position in range(2_000)]

    assert 0.0 <= min(numbers) and max(numbers) < 1.0


@pytest.mark.parametrize("seed", [0, 1, 12_345, MAX_SEED])
def test_numbers_of_one_seed_are_spread_evenly_over_positions(seed: int) -> None:
    numbers = [uniform(seed, position) for position in range(20_000)]

    assert chi_square(numbers) < CHI_SQUARE_99


@pytest.mark.parametrize("position", [0, 1, 4_096])
def test_numbers_of_one_position_are_spread_evenly_over_seeds(position: int) -> None:
    numbers = [uniform(seed, position) for seed in range(20_000)]

    assert chi_square(numbers) < CHI_SQUARE_99


def test_neighbouring_positions_are_independent() -> None:
    numbers = [uniform(9, position) for position in range(20_001)]
    pairs = [int(a * 10) * 10 + int(b * 10) for a, b in zip(numbers, numbers[1:], strict=False)]

    assert chi_square([(pair + 0.5) / 100 for pair in pairs]) < CHI_SQUARE_99


def test_frequencies_are_those_of_the_softmax() -> None:
    num = 6_000

    seen = draws(logits_of(PROBABILITIES), num, temperature=1.0, seed=3)

    for token_id, probability in enumerate(PROBABILITIES):
        four_sigma = 4 * math.sqrt(probability * (1 - probability) / num)
        assert abs(seen[token_id] / num - probability) < four_sigma


def test_temperature_sharpens_and_flattens() -> None:
    num = 3_000
    squared = [probability**2 for probability in PROBABILITIES]
    expected = [value / sum(squared) for value in squared]

    seen = draws(logits_of(PROBABILITIES), num, temperature=0.5, seed=4)

    for token_id, probability in enumerate(expected):
        four_sigma = 4 * math.sqrt(probability * (1 - probability) / num)
        assert abs(seen[token_id] / num - probability) < four_sigma


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [
        (0.001, {0}),
        (0.49, {0}),
        (0.51, {0, 1}),
        (0.79, {0, 1}),
        (0.81, {0, 1, 2}),
        (0.94, {0, 1, 2}),
        (0.96, {0, 1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(
    top_p: float, nucleus: set[int]
) -> None:
    seen = draws(logits_of(PROBABILITIES), 400, temperature=1.0, top_p=top_p, seed=5)

    assert set(seen) == nucleus


def test_a_set_that_reaches_top_p_exactly_is_enough() -> None:
    seen = draws(torch.zeros(4), 400, temperature=1.0, top_p=0.5, seed=5)

    assert set(seen) == {0, 1}


def test_within_the_nucleus_probabilities_keep_their_proportions() -> None:
    num = 3_000
    expected = 0.5 / 0.8

    seen = draws(logits_of(PROBABILITIES), num, temperature=1.0, top_p=0.8 - 1e-6, seed=6)

    assert abs(seen[0] / num - expected) < 4 * math.sqrt(expected * (1 - expected) / num)


def test_an_impossible_token_is_never_drawn() -> None:
    logits_V = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0])

    seen = draws(logits_V, 300, temperature=2.0, seed=7)

    assert set(seen) == {1, 3}


def test_the_only_possible_token_is_certain() -> None:
    logits_V = torch.full((9,), -torch.inf)
    logits_V[4] = -3.0

    chosen = sample_one(logits_V, temperature=1.0, num_logprobs=2)

    assert (chosen.token_id, chosen.logprob) == (4, 0.0)
    assert chosen.top_logprobs[0] == (4, 0.0)
    assert chosen.top_logprobs[1][1] == -math.inf


def test_no_log_probabilities_are_given_unless_asked_for() -> None:
    chosen = sample_one(logits_of(PROBABILITIES))

    assert (chosen.logprob, chosen.top_logprobs) == (None, ())


def test_zero_log_probabilities_are_those_of_the_chosen_token_alone() -> None:
    chosen = sample_one(logits_of(PROBABILITIES), num_logprobs=0)

    assert chosen.logprob == pytest.approx(math.log(0.5))
    assert chosen.top_logprobs == ()


def test_log_probabilities_are_ordered_and_those_of_the_model_itself() -> None:
    logits_V = logits_of([0.05, 0.5, 0.15, 0.3])

    chosen = sample_one(logits_V, temperature=0.3, top_p=0.2, num_logprobs=20)

    token_ids, logprobs = zip(*chosen.top_logprobs, strict=True)
    assert token_ids == (1, 3, 2, 0)
    assert logprobs == pytest.approx([math.log(p) for p in PROBABILITIES])
    assert sum(map(math.exp, logprobs)) == pytest.approx(1.0)
