"""What changes logits before a token is chosen: biases and penalties, in place.

Only the logits that a rule names are touched, so rows without the rule cost nothing. A row's result
does not depend on the other rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Letters: R rows, V vocabulary, N logits that a rule touches, each at most once.


def add_biases(logits_RV: Tensor, biases: Sequence[Sequence[tuple[int, float]]]) -> None:
    """Add to each row its (token id, bias) pairs, as OpenAI's logit_bias; no id twice in a row."""
    rows = [row for row, pairs in enumerate(biases) for _ in pairs]
    if rows:
        ids, values = zip(*(pair for pairs in biases for pair in pairs), strict=True)
        logits_RV[rows, list(ids)] += logits_RV.new_tensor(values)


def penalise_repetition(
    logits_RV: Tensor, seen_ids: Sequence[Sequence[int]], penalties: Sequence[float]
) -> None:
    """Divide positive logits of seen tokens by the row's penalty, multiply negative ones by it.

    CTRL's rule (Keskar et al. 2019) as Transformers' RepetitionPenaltyLogitsProcessor and vLLM have
    it.
    """
    if not any(seen_ids):
        return
    row_N, id_N, _ = _count(logits_RV, seen_ids)
    penalty_N = logits_RV.new_tensor(penalties)[row_N]
    logit_N = logits_RV[row_N, id_N]
    logits_RV[row_N, id_N] = torch.where(logit_N > 0, logit_N / penalty_N, logit_N * penalty_N)


def penalise_counts(
    logits_RV: Tensor,
    output_ids: Sequence[Sequence[int]],
    frequency: Sequence[float],
    presence: Sequence[float],
) -> None:
    """Subtract `frequency` for each time that a token was generated, then `presence` once.

    OpenAI's rule: logit[j] -= count[j] * frequency + (count[j] > 0) * presence.
    """
    if not any(output_ids):
        return
    row_N, id_N, count_N = _count(logits_RV, output_ids)
    logit_N = logits_RV[row_N, id_N] - logits_RV.new_tensor(frequency)[row_N] * count_N
    logits_RV[row_N, id_N] = logit_N - logits_RV.new_tensor(presence)[row_N]


def _count(logits_RV: Tensor, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Give row, token id and count of each token that occurs.

    Example: V 100, ids [[7, 7, 3], [5]]: places 7, 7, 3, 105; so rows [0, 0, 1], ids [3, 7, 5],
    counts [1, 2, 1].
    """
    vocab_size = logits_RV.shape[-1]
    places = [
        torch.tensor(each, dtype=torch.int64) + row * vocab_size
        for row, each in enumerate(ids)
        if each
    ]
    place_N, count_N = torch.unique(torch.cat(places).to(logits_RV.device), return_counts=True)
    return place_N // vocab_size, place_N % vocab_size, count_N
