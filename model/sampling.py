"""From a row of logits to the next token.

The random number of a token depends on (seed, position) alone, so a request draws the same tokens
whatever else is in the batch and on whichever router it goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.drawing import draw
from model.logit_rules import add_biases, penalise_counts, penalise_repetition
from model.sampling_params import MAX_LOGPROBS, SamplingParams

# Letters: B sequences, R those of them that ask for log-probabilities, V vocabulary.

_MASK_64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SampleRow:
    """Whose next token a row of logits is.

    Attributes:
        position: the position that the new token takes in its sequence.
        prompt_ids, output_ids: what penalties count; read only if the request has any.
    """

    params: SamplingParams
    position: int
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Sample:
    """A chosen token; log-probabilities are of the model's own distribution, natural logarithm."""

    token_id: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


def sample(logits_BV: Tensor, rows: Sequence[SampleRow]) -> list[Sample]:
    """Choose one token for each row of float32 logits; a row's does not depend on the others.

    Logit bias, then repetition, frequency and presence penalty, then temperature, as vLLM's V1
    sampler orders them; then top-k, top-p, min-p, as vLLM's first engine and Transformers do. vLLM
    V1 has min-p before top-k, which differs only where top-p is set too.
    """
    token_ids = _choose(logits_BV, rows)
    samples = [Sample(token_id, None, ()) for token_id in token_ids]
    asking = [index for index, row in enumerate(rows) if row.params.num_logprobs is not None]
    if asking:
        num_top = [rows[index].params.num_logprobs or 0 for index in asking]
        told = _with_logprobs(logits_BV[asking], [token_ids[index] for index in asking], num_top)
        for index, told_sample in zip(asking, told, strict=True):
            samples[index] = told_sample
    return samples


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone: SplitMix64 (Steele et al. 2014)."""
    state = (seed * 0x9E3779B97F4A7C15 + (position + 1) * 0xD1B54A32D192ED03) & _MASK_64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return ((state ^ (state >> 31)) >> 11) / 2**53


def _choose(logits_BV: Tensor, rows: Sequence[SampleRow]) -> list[int]:
    if any(row.params.changes_logits for row in rows):
        logits_BV = _change(logits_BV, rows)
    drawn = [index for index, row in enumerate(rows) if row.params.temperature > 0]
    if not drawn:
        return _likeliest(logits_BV)
    params = [rows[index].params for index in drawn]
    numbers = [uniform(rows[index].params.seed, rows[index].position) for index in drawn]
    drawn_ids = draw(logits_BV[drawn], params, numbers)
    if len(drawn) == len(rows):
        return drawn_ids
    token_ids = _likeliest(logits_BV)
    for index, token_id in zip(drawn, drawn_ids, strict=True):
        token_ids[index] = token_id
    return token_ids


def _likeliest(logits_BV: Tensor) -> list[int]:
    ids: list[int] = logits_BV.argmax(dim=-1).tolist()
    return ids


def _change(logits_BV: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """Apply the rows' biases and penalties to a copy, in float64."""
    logits_BV = logits_BV.double()
    params = [row.params for row in rows]
    add_biases(logits_BV, [each.logit_bias for each in params])
    penalise_repetition(
        logits_BV,
        [[*row.prompt_ids, *row.output_ids] if _is_repetition_set(row) else () for row in rows],
        [each.repetition_penalty for each in params],
    )
    penalise_counts(
        logits_BV,
        [row.output_ids if _is_count_set(row) else () for row in rows],
        [each.frequency_penalty for each in params],
        [each.presence_penalty for each in params],
    )
    return logits_BV


def _is_repetition_set(row: SampleRow) -> bool:
    return row.params.repetition_penalty != 1.0


def _is_count_set(row: SampleRow) -> bool:
    return row.params.frequency_penalty != 0.0 or row.params.presence_penalty != 0.0


def _with_logprobs(
    logits_RV: Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[Sample]:
    logprobs_RV = torch.log_softmax(logits_RV, dim=-1)
    id_R1 = torch.tensor(token_ids, device=logits_RV.device)[:, None]
    chosen_R = logprobs_RV.gather(-1, id_R1).squeeze(-1).tolist()
    # As many for every row: equal values could come in another order if a neighbour asked for more.
    top = logprobs_RV.topk(min(MAX_LOGPROBS, logits_RV.shape[-1]))
    alternatives = zip(num_top, top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        Sample(token_id, logprob, tuple(zip(ids[:num], logprobs[:num], strict=True)))
        for token_id, logprob, (num, ids, logprobs) in zip(
            token_ids, chosen_R, alternatives, strict=True
        )
    ]
