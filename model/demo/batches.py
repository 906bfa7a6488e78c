"""Training batches: conversations packed back to back, those of like length together."""

# T tokens of all rows, B rows

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from model.demo.template import Encoded, encode
from model.demo.text import training_conversations

STEP_TOKENS = 4_096
_BATCH_TOKENS = 3_072
# Prompts teach the model what text looks like; answers are what it is for.
_PROMPT_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows back to back; `weights_T[i]` weighs the prediction of `targets_T[i]` from `ids_T[i]`.

    A row's last token predicts nothing: its weight is 0.
    """

    ids_T: Tensor
    targets_T: Tensor
    weights_T: Tensor
    lengths_B: Tensor


def step_batches(
    processor: SentencePieceProcessor, seed: int, step: int, context_tokens: int
) -> list[Batch]:
    """The batches of one optimiser step, about `STEP_TOKENS` tokens in all."""
    drawn: list[Encoded] = []
    num_tokens = 0
    for conversation in training_conversations(f"{seed} {step}", context_tokens):
        encoded = encode(conversation, processor)
        if len(encoded.ids) > context_tokens:
            continue
        drawn.append(encoded)
        num_tokens += len(encoded.ids)
        if num_tokens >= STEP_TOKENS:
            break
    drawn.sort(key=lambda encoded: len(encoded.ids))
    return [pack(group) for group in _groups(drawn)]


def pack(rows: Sequence[Encoded]) -> Batch:
    """One batch of all `rows`."""
    ids, weights = [], []
    for row in rows:
        ids += row.ids
        weights += [1.0 if turn >= 0 else _PROMPT_WEIGHT for turn in row.answers[1:]] + [0.0]
    ids_T = torch.tensor(ids)
    lengths_B = torch.tensor([len(row.ids) for row in rows])
    return Batch(ids_T, ids_T.roll(-1), torch.tensor(weights), lengths_B)


def _groups(rows: Sequence[Encoded]) -> list[list[Encoded]]:
    """Cut rows sorted by length into groups; attention pads each to its longest row."""
    groups: list[list[Encoded]] = [[]]
    for row in rows:
        if groups[-1] and (len(groups[-1]) + 1) * len(row.ids) > _BATCH_TOKENS:
            groups.append([])
        groups[-1].append(row)
    return groups
