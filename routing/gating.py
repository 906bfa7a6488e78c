"""Top-k gating: from gate logits to each token's experts and their weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Letters: T tokens, E logical experts, K experts per token.


@dataclass(frozen=True, slots=True)
class Routes:
    """The experts of each token: `expert_ids_TK` int64 and `weights_TK` float32, best first."""

    expert_ids_TK: Tensor
    weights_TK: Tensor


def top_k_gating(logits_TE: Tensor, top_k: int) -> Routes:
    """Choose each token's experts and their weights.

    The weights are a softmax over the chosen K logits only, in float32 (Jiang et al. 2024,
    "Mixtral of Experts", section 2.1), so each row of `weights_TK` sums to 1.
    """
    chosen_TK, expert_ids_TK = logits_TE.float().topk(top_k, dim=-1)
    return Routes(expert_ids_TK, torch.softmax(chosen_TK, dim=-1))
