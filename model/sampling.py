"""From a row of logits to the next token.

The random number of a token depends on (seed, position) alone, so a request draws the same tokens
whatever else is in the batch and on whichever router it goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.sampling_params import SamplingParams

# Letters: B sequences, V vocabulary.

_MASK_64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Sample:
    """A chosen token; log-probabilities are of the model's own distribution, natural logarithm."""

    token_id: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


def sample(
    logits_BV: Tensor, params: Sequence[SamplingParams], positions: Sequence[int]
) -> list[Sample]:
    """Choose one token for each row of float32 logits.

    Args:
        positions: the position that each new token takes in its sequence.
    """
    greedy_ids = logits_BV.argmax(dim=-1).tolist()
    return [
        _sample_row(logits_BV[row], greedy_ids[row], params[row], positions[row])
        for row in range(len(params))
    ]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone: SplitMix64 (Steele et al. 2014)."""
    state = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & _MASK_64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return ((state ^ (state >> 31)) >> 11) / 2**53


def _sample_row(logits_V: Tensor, greedy_id: int, params: SamplingParams, position: int) -> Sample:
    token_id = greedy_id
    if params.temperature > 0:
        token_id = _draw(logits_V, params, uniform(params.seed, position))
    if params.num_logprobs is None:
        return Sample(token_id, None, ())
    logprobs_V = torch.log_softmax(logits_V, dim=-1)
    top = logprobs_V.topk(min(params.num_logprobs, len(logprobs_V)))
    return Sample(
        token_id,
        float(logprobs_V[token_id]),
        tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)),
    )


def _draw(logits_V: Tensor, params: SamplingParams, number: float) -> int:
    """Invert the cumulative distribution of the nucleus (Holtzman et al. 2020) at `number`."""
    scaled_V = (logits_V.double() - logits_V.max()) / params.temperature
    probabilities_V, ids_V = torch.softmax(scaled_V, dim=-1).sort(descending=True, stable=True)
    cumulative_V = probabilities_V.cumsum(dim=-1)
    nucleus = int((cumulative_V < params.top_p).sum()) + 1
    nucleus = min(nucleus, len(ids_V))
    target = number * float(cumulative_V[nucleus - 1])
    index = int(torch.searchsorted(cumulative_V[:nucleus], target, right=True))
    return int(ids_V[min(index, nucleus - 1)])
