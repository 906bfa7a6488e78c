"""Top-k gating against the other order of operations, and at its edges."""

import pytest
import torch

from routing.gating import top_k_gating


@pytest.mark.parametrize("top_k", [1, 2, 3, 8])
def test_softmax_over_the_chosen_equals_softmax_over_all_renormalised(top_k: int) -> None:
    logits_TE = torch.randn(200, 8, generator=torch.Generator().manual_seed(top_k))

    routes = top_k_gating(logits_TE, top_k)

    weights_TK, expert_ids_TK = torch.softmax(logits_TE, dim=-1).topk(top_k, dim=-1)
    assert routes.expert_ids_TK.equal(expert_ids_TK)
    wanted_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(routes.weights_TK, wanted_TK, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_weights_of_a_token_sum_to_one(scale: float) -> None:
    logits_TE = scale * torch.randn(100, 8, generator=torch.Generator().manual_seed(1))

    routes = top_k_gating(logits_TE, 2)

    torch.testing.assert_close(routes.weights_TK.sum(-1), torch.ones(100), atol=1e-6, rtol=0)


def test_the_best_expert_comes_first() -> None:
    routes = top_k_gating(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), 2)

    assert routes.expert_ids_TK.tolist() == [[1, 3]]
    assert routes.weights_TK[0, 0] > routes.weights_TK[0, 1]


def test_as_many_choices_as_experts_choose_every_expert() -> None:
    routes = top_k_gating(torch.randn(50, 4), 4)

    assert routes.expert_ids_TK.sort(dim=-1).values.tolist() == [[0, 1, 2, 3]] * 50


def test_a_tie_is_broken_alike_whatever_else_is_in_the_batch() -> None:
    tie_1E = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0, 2.0, 1.0, 1.0]])
    others_TE = torch.randn(63, 8, generator=torch.Generator().manual_seed(2))

    alone = top_k_gating(tie_1E, 2)
    among = top_k_gating(torch.cat([others_TE, tie_1E, others_TE]), 2)

    assert among.expert_ids_TK[63].equal(alone.expert_ids_TK[0])
    assert alone.weights_TK.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_computed_in_float32_whatever_the_logits_are(dtype: torch.dtype) -> None:
    logits_TE = torch.randn(100, 8, generator=torch.Generator().manual_seed(3)).to(dtype)

    routes = top_k_gating(logits_TE, 2)

    assert routes.weights_TK.dtype == torch.float32
    assert routes.weights_TK.equal(top_k_gating(logits_TE.float(), 2).weights_TK)
