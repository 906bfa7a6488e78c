"""Dispatch and combine: tokens to rows sorted by expert, and the rows' outputs back to tokens.

A token that chose K experts becomes K rows. Rows of one expert are contiguous, so that an expert
is one matrix product, and a host's share of the rows is a list of slices.
"""

from dataclasses import dataclass

from torch import Tensor

from routing.gating import Routes

# Letters: T tokens, E logical experts, K experts per token, D model dimension, R = T * K rows.


@dataclass(frozen=True, slots=True)
class DispatchPlan:
    """Where each row comes from and goes to.

    Two tokens, three experts, K = 2, token 0 chose (2, 0) and token 1 chose (0, 1):

        row of (token, choice), flat   0:(0, e2)  1:(0, e0)  2:(1, e0)  3:(1, e1)
        order_R  (sorted by expert)    [1, 2, 3, 0]
        tokens_R (order_R // K)        [0, 1, 1, 0]
        places_R (order_R inverted)    [3, 0, 1, 2]
        slices                         {0: (0, 2), 1: (2, 3), 2: (3, 4)}

    Attributes:
        order_R: for each sorted row, its place in the flat (token, choice) order; int64.
        tokens_R: for each sorted row, its token; int64.
        places_R: for each place in the flat order, its sorted row; int64.
        slices: (first, past the last) sorted row of each expert that has any, by expert id.
    """

    order_R: Tensor
    tokens_R: Tensor
    places_R: Tensor
    slices: dict[int, tuple[int, int]]

    def dispatch(self, x_TD: Tensor) -> Tensor:
        """Copy each token into its rows, sorted by expert: (R, D)."""
        return x_TD.index_select(0, self.tokens_R)

    def combine(self, rows_RD: Tensor, weights_TK: Tensor) -> Tensor:
        """Sum each token's rows, weighted, in float32, and return them in the rows' dtype: (T, D).

        The sum runs over a token's choices in their own order, never in the order in which hosts
        answer, so it does not depend on where the experts sit.
        """
        # Converted first: PyTorch multiplies mixed dtypes ten times slower.
        choices_RD = rows_RD.index_select(0, self.places_R).float()
        choices_TKD = choices_RD.view(*weights_TK.shape, -1).mul_(weights_TK.unsqueeze(-1))
        return choices_TKD.sum(dim=1).to(rows_RD.dtype)


def plan_dispatch(routes: Routes) -> DispatchPlan:
    """Sort the rows of `routes` by expert; rows of one expert keep their tokens' order."""
    flat_R = routes.expert_ids_TK.flatten()
    order_R = flat_R.argsort(stable=True)
    slices: dict[int, tuple[int, int]] = {}
    first = 0
    for expert_id, num_rows in enumerate(flat_R.bincount().tolist()):
        if num_rows:
            slices[expert_id] = (first, first + num_rows)
        first += num_rows
    tokens_R = order_R // routes.expert_ids_TK.shape[1]
    return DispatchPlan(order_R, tokens_R, order_R.argsort(), slices)
