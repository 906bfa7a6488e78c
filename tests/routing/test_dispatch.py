"""Dispatch and combine undo each other, and neither knows where an expert sits."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from routing.dispatch import plan_dispatch
from routing.gating import Routes, top_k_gating


def routes_of(num_tokens: int, num_experts: int, top_k: int, seed: int) -> tuple[Tensor, Routes]:
    """Tokens of dimension 6 and the routes of random logits."""
    generator = torch.Generator().manual_seed(seed)
    logits_TE = torch.randn(num_tokens, num_experts, generator=generator)
    return torch.randn(num_tokens, 6, generator=generator), top_k_gating(logits_TE, top_k)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Numbers of tokens, experts and choices, and a seed."""
    num_experts = draw(st.integers(1, 16))
    top_k = draw(st.integers(1, num_experts))
    return draw(st.integers(1, 40)), num_experts, top_k, draw(st.integers(0, 2**31))


@given(shapes())
def test_combine_of_dispatch_is_identity_times_the_sum_of_weights(
    shape: tuple[int, int, int, int],
) -> None:
    x_TD, routes = routes_of(*shape)
    weights_TK = torch.ones_like(routes.weights_TK)
    plan = plan_dispatch(routes)

    combined_TD = plan.combine(plan.dispatch(x_TD), weights_TK)

    torch.testing.assert_close(combined_TD, x_TD * shape[2], atol=1e-5, rtol=1e-5)


@given(shapes())
def test_the_slices_part_the_rows_by_expert_without_a_gap(
    shape: tuple[int, int, int, int],
) -> None:
    _, routes = routes_of(*shape)

    plan = plan_dispatch(routes)

    expert_ids_R = routes.expert_ids_TK.flatten()[plan.order_R]
    end_before = 0
    for expert_id, (first, end) in plan.slices.items():
        assert first == end_before < end
        assert set(expert_ids_R[first:end].tolist()) == {expert_id}
        end_before = end
    assert end_before == routes.expert_ids_TK.numel()


@given(shapes())
def test_renaming_the_experts_does_not_change_one_bit(shape: tuple[int, int, int, int]) -> None:
    num_experts = shape[1]
    x_TD, routes = routes_of(*shape)
    names_E = torch.randperm(num_experts, generator=torch.Generator().manual_seed(shape[3]))
    renamed = Routes(names_E[routes.expert_ids_TK], routes.weights_TK)

    outputs = []
    for some_routes, factors in ((routes, names_E + 1), (renamed, torch.arange(num_experts) + 1)):
        plan = plan_dispatch(some_routes)
        rows_RD = plan.dispatch(x_TD)
        for expert_id, (first, end) in plan.slices.items():
            rows_RD[first:end] *= factors[expert_id] / 7
        outputs.append(plan.combine(rows_RD, some_routes.weights_TK))

    assert outputs[0].equal(outputs[1])


@given(shapes())
def test_with_two_choices_their_order_does_not_change_one_bit(
    shape: tuple[int, int, int, int],
) -> None:
    x_TD, routes = routes_of(shape[0], shape[1] + 1, 2, shape[3])
    swapped = Routes(routes.expert_ids_TK.flip(1), routes.weights_TK.flip(1))

    plan, swapped_plan = plan_dispatch(routes), plan_dispatch(swapped)
    combined_TD = plan.combine(plan.dispatch(x_TD).sin(), routes.weights_TK)
    swapped_TD = swapped_plan.combine(swapped_plan.dispatch(x_TD).sin(), swapped.weights_TK)

    assert combined_TD.equal(swapped_TD)


def test_the_worked_example_of_the_docstring_is_true() -> None:
    plan = plan_dispatch(Routes(torch.tensor([[2, 0], [0, 1]]), torch.ones(2, 2)))

    assert plan.order_R.tolist() == [1, 2, 3, 0]
    assert plan.tokens_R.tolist() == [0, 1, 1, 0]
    assert plan.slices == {0: (0, 2), 1: (2, 3), 2: (3, 4)}


def test_combine_sums_in_float32_and_answers_in_the_dtype_of_the_rows() -> None:
    plan = plan_dispatch(Routes(torch.tensor([[0, 1]]), torch.ones(1, 2)))
    rows_RD = torch.tensor([[256.0], [1.0]], dtype=torch.bfloat16)

    combined_TD = plan.combine(rows_RD, torch.tensor([[1.0, 3.0]]))

    # 256 + 3 = 259 lies between 258 and 260 in bfloat16; 3 x 1 added to 256 in bfloat16 steps of 2
    # would have been rounded twice.
    assert combined_TD.dtype == torch.bfloat16
    assert combined_TD.item() == 260.0


def test_a_row_that_is_not_finite_reaches_its_own_token_only() -> None:
    x_TD, routes = routes_of(8, 4, 2, 5)
    plan = plan_dispatch(routes)
    rows_RD = plan.dispatch(x_TD)
    rows_RD[plan.tokens_R == 3] = float("nan")

    combined_TD = plan.combine(rows_RD, routes.weights_TK)

    assert combined_TD.isnan().any(dim=1).tolist() == [token == 3 for token in range(8)]
