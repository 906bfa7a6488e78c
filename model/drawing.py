"""One token from each row of logits: temperature, top-k, top-p, min-p, and a number in [0, 1).

All three limits keep a head of the tokens, sorted by falling probability, the lower id first among
equals; what the number falls on in the cumulative distribution of the head is drawn, in float64.
Sorting is what costs, and a few hundred tokens nearly always settle the draw: a row whose other
tokens could change it is sorted whole. So the token is the same either way, whatever rows are
beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.sampling_params import SamplingParams

# Letters: R rows, V vocabulary, K sorted tokens of a row.

NUM_SORTED_FIRST = 256
# Rounding moves the sum of all probabilities of a row by far less than this.
SUM_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class _Limits:
    """Where each row's head ends, and the number that draws from it; `top_k_R` is V where off."""

    top_k_R: Tensor
    top_p_R: Tensor
    min_p_R: Tensor
    number_R: Tensor

    def of_rows(self, row_R: Tensor) -> "_Limits":
        return _Limits(
            self.top_k_R[row_R], self.top_p_R[row_R], self.min_p_R[row_R], self.number_R[row_R]
        )


def draw(
    logits_RV: Tensor, params: Sequence[SamplingParams], numbers: Sequence[float]
) -> list[int]:
    """Draw one token from each row of logits, float32 or float64; temperatures are above 0.

    Top-k comes first; top-p (nucleus, Holtzman et al. 2020) is a share of what top-k kept; min-p
    (Nguyen et al. 2024) is relative to the likeliest token.
    """
    vocab_size = logits_RV.shape[-1]
    peak_R1 = logits_RV.amax(dim=-1, keepdim=True).double()
    temperature_R1 = peak_R1.new_tensor([[each.temperature] for each in params])
    scaled_RV = (logits_RV - peak_R1).div_(temperature_R1)
    probabilities_RV = torch.softmax(scaled_RV, dim=-1)
    limits = _limits(params, numbers, vocab_size)
    id_R, is_settled_R = _draw_among(probabilities_RV, limits, min(NUM_SORTED_FIRST, vocab_size))
    open_R = (~is_settled_R).nonzero().flatten()
    if len(open_R):
        open_RV = probabilities_RV[open_R.to(probabilities_RV.device)]
        id_R[open_R], _ = _draw_among(open_RV, limits.of_rows(open_R), vocab_size)
    ids: list[int] = id_R.tolist()
    return ids


def _limits(params: Sequence[SamplingParams], numbers: Sequence[float], vocab_size: int) -> _Limits:
    return _Limits(
        torch.tensor([min(each.top_k or vocab_size, vocab_size) for each in params]),
        torch.tensor([each.top_p for each in params], dtype=torch.float64),
        torch.tensor([each.min_p for each in params], dtype=torch.float64),
        torch.tensor(numbers, dtype=torch.float64),
    )


def _draw_among(
    probabilities_RV: Tensor, limits: _Limits, num_sorted: int
) -> tuple[Tensor, Tensor]:
    """Give ids, and whether they are settled: true of all once the whole vocabulary is sorted."""
    value_RK, id_RK = _sort(probabilities_RV, num_sorted)
    cumulative_RK = value_RK.cumsum(dim=-1)
    total_R2 = _bound_total(value_RK, cumulative_RK, limits, probabilities_RV.shape[-1])
    # A number below 1 times a total is below the total, rounded too: the place is inside the head.
    target_R2 = limits.number_R[:, None] * total_R2
    low_R, high_R = torch.searchsorted(cumulative_RK, target_R2, right=True).unbind(dim=-1)
    is_settled_R = low_R == high_R
    if num_sorted < probabilities_RV.shape[-1]:
        # Which of the tokens with the lowest sorted probability came in, and which not, is chance.
        is_settled_R &= low_R < (value_RK > value_RK[:, -1:]).sum(dim=-1)
    return _at(id_RK, low_R.clamp(max=num_sorted - 1)), is_settled_R


def _sort(probabilities_RV: Tensor, num_sorted: int) -> tuple[Tensor, Tensor]:
    """Give the likeliest tokens' probabilities and ids, on the CPU, where sums have one order."""
    if num_sorted == probabilities_RV.shape[-1]:
        value_RV, id_RV = probabilities_RV.sort(dim=-1, descending=True, stable=True)
        return value_RV.cpu(), id_RV.cpu()
    value_RK, id_RK = probabilities_RV.topk(num_sorted, dim=-1, sorted=False)
    id_RK, by_id_RK = id_RK.cpu().sort(dim=-1)
    value_RK = value_RK.cpu().gather(-1, by_id_RK)
    value_RK, by_value_RK = value_RK.sort(dim=-1, descending=True, stable=True)
    return value_RK, id_RK.gather(-1, by_value_RK)


def _bound_total(
    value_RK: Tensor, cumulative_RK: Tensor, limits: _Limits, vocab_size: int
) -> Tensor:
    """Give the least and the greatest that the head's probability can be, (R, 2).

    They are equal if the head ends among the sorted tokens.
    """
    num_sorted = value_RK.shape[-1]
    is_whole_R = limits.top_k_R == vocab_size
    # Of a top-k that is not all sorted this is too little, and the head at least what it gives.
    top_k_mass_R = _at(cumulative_RK, limits.top_k_R.clamp(max=num_sorted) - 1)
    goal_R = limits.top_p_R * top_k_mass_R.masked_fill(is_whole_R, 1.0)
    num_top_p_R = (cumulative_RK < goal_R[:, None]).sum(dim=-1) + 1
    floor_R1 = limits.min_p_R[:, None] * value_RK[:, :1]
    num_min_p_R = (value_RK >= floor_R1).sum(dim=-1)
    num_min_p_R.masked_fill_(num_min_p_R == num_sorted, vocab_size)
    num_kept_R = limits.top_k_R.minimum(num_top_p_R).minimum(num_min_p_R)
    is_known_R = (num_kept_R <= num_sorted) & (is_whole_R | (limits.top_k_R <= num_sorted))
    is_all_R = ~is_known_R & is_whole_R & (limits.top_p_R == 1.0) & (limits.min_p_R == 0.0)
    low_R = _at(cumulative_RK, num_kept_R.clamp(max=num_sorted) - 1)
    high_R = torch.where(is_known_R, low_R, 1.0 + SUM_SLACK)
    return torch.stack([low_R.masked_fill(is_all_R, 1.0 - SUM_SLACK), high_R], dim=-1)


def _at(values_RK: Tensor, index_R: Tensor) -> Tensor:
    return values_RK.gather(-1, index_R[:, None]).squeeze(-1)
