"""How many prompt tokens go beside decodes, and who gets them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.engine.pace import MAX_SLOWDOWN, MIN_PROMPT_TOKENS, Pace, complete, share


def trained(decode_s: float, prompt_token_s: float, step_tokens: int = 512) -> Pace:
    """A pace that saw what these cost."""
    pace = Pace(step_tokens)
    pace.observe(4, 0, decode_s)
    pace.observe(0, 100, 100 * prompt_token_s)
    return pace


def test_before_anything_is_known_a_step_is_filled() -> None:
    pace = Pace(512)

    assert (pace.prompt_tokens(0), pace.prompt_tokens(12)) == (512, 500)


def test_without_decodes_nobody_is_held_up_and_a_step_is_filled() -> None:
    assert trained(0.010, 0.001).prompt_tokens(0) == 512


def test_beside_decodes_prompts_take_four_fifths_of_a_plain_step() -> None:
    assert trained(0.010, 0.0001).prompt_tokens(4) == 80


def test_prompts_get_on_however_slow_they_are() -> None:
    assert trained(0.010, 1.0).prompt_tokens(4) == MIN_PROMPT_TOKENS


@pytest.mark.parametrize("num_decodes", [10, 11, 64])
def test_a_prompt_token_goes_even_beside_decodes_that_fill_a_step(num_decodes: int) -> None:
    assert Pace(10).prompt_tokens(num_decodes) == 1
    assert trained(0.010, 0.001, step_tokens=10).prompt_tokens(num_decodes) == 1


def test_the_decodes_of_a_mixed_step_are_not_charged_to_its_prompt_tokens() -> None:
    pace = Pace(512)
    pace.observe(4, 0, 0.010)

    pace.observe(4, 40, 0.018)

    assert pace.prompt_tokens(4) == 40


def test_a_step_faster_than_expected_still_costs_something() -> None:
    pace = Pace(512)
    pace.observe(4, 0, 0.010)

    pace.observe(4, 8, 0.004)

    assert pace.prompt_tokens(4) == 160


def test_one_slow_step_counts_for_a_quarter() -> None:
    pace = trained(0.010, 0.0001)

    pace.observe(4, 0, 0.050)

    assert pace.prompt_tokens(4) == 160


@given(
    decode_s=st.floats(0.001, 10),
    prompt_token_s=st.floats(1e-6, 10),
    num_decodes=st.integers(1, 64),
)
def test_a_step_is_never_slowed_more_than_is_said_but_for_the_fewest_tokens(
    decode_s: float, prompt_token_s: float, num_decodes: int
) -> None:
    num_tokens = trained(decode_s, prompt_token_s).prompt_tokens(num_decodes)

    is_few = num_tokens <= MIN_PROMPT_TOKENS
    assert is_few or decode_s + num_tokens * prompt_token_s <= MAX_SLOWDOWN * decode_s * 1.0001
    assert 1 <= num_tokens <= 512 - num_decodes


def test_the_worked_example_of_the_docstring() -> None:
    assert share([4000, 90, 20], 100) == [50, 30, 20]


@pytest.mark.parametrize(
    ("wanted", "budget", "granted"),
    [
        ([], 10, []),
        ([3], 10, [3]),
        ([30], 10, [10]),
        ([30, 30], 1, [1, 0]),
        ([2, 30], 10, [2, 8]),
        ([30, 2], 10, [8, 2]),
        ([30, 8, 8], 10, [5, 5, 0]),
        ([100, 3, 2, 4], 9, [5, 2, 2, 0]),
    ],
)
def test_shares_by_hand(wanted: list[int], budget: int, granted: list[int]) -> None:
    assert share(wanted, budget) == granted


@given(wanted=st.lists(st.integers(1, 500), max_size=12), budget=st.integers(1, 600))
def test_a_budget_is_spent_whole_and_the_oldest_gets_half(wanted: list[int], budget: int) -> None:
    granted = share(wanted, budget)

    assert all(0 <= got <= want for got, want in zip(granted, wanted, strict=True))
    assert sum(granted) == min(budget, sum(wanted))
    assert not wanted or granted[0] >= min(wanted[0], budget / 2)


def test_the_worked_example_of_completing() -> None:
    assert complete([50, 30, 20], [200, 90, 20], 200) == [50, 90, 20]


@given(
    wanted=st.lists(st.integers(1, 300), max_size=12),
    budget=st.integers(1, 600),
    most=st.integers(0, 600),
)
def test_completing_takes_nothing_away_and_keeps_to_the_most(
    wanted: list[int], budget: int, most: int
) -> None:
    granted = share(wanted, budget)

    completed = complete(granted, wanted, most)

    pairs = list(zip(granted, completed, wanted, strict=True))
    assert all(after in (before, want) for before, after, want in pairs)
    assert completed == granted or sum(completed) <= most
