"""Training batches: conversations of like length side by side, so that little is padding."""

# B rows, S tokens of a row

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from model.demo.template import Encoded, encode
from model.demo.text import training_conversations

STEP_TOKENS = 6_144
_BATCH_TOKENS = 3_072
# Prompts teach the model what text looks like; answers are what it is for.
_PROMPT_WEIGHT = 0.1
_PAD_ID = 0
# Few different widths: the CPU library compiles a product anew for every new shape.
_WIDTH_MULTIPLE = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one padded batch; `weights_BS[:, i]` weighs the prediction of `ids_BS[:, i + 1]`."""

    ids_BS: Tensor
    weights_BS: Tensor
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
    return [pad(group) for group in _groups(drawn)]


def pad(rows: Sequence[Encoded]) -> Batch:
    """One batch of all `rows`, as wide as the longest, rounded up."""
    width = _width(max(len(row.ids) for row in rows))
    ids_BS = torch.full((len(rows), width), _PAD_ID)
    weights_BS = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        ids_BS[i, : len(row.ids)] = torch.tensor(row.ids)
        targets = torch.tensor(row.answers[1:])
        weights_BS[i, : len(targets)] = torch.where(targets >= 0, 1.0, _PROMPT_WEIGHT)
    return Batch(ids_BS, weights_BS, torch.tensor([len(row.ids) for row in rows]))


def _groups(rows: Sequence[Encoded]) -> list[list[Encoded]]:
    """Cut rows sorted by length into groups of at most `_BATCH_TOKENS` padded tokens."""
    groups: list[list[Encoded]] = [[]]
    for row in rows:
        if groups[-1] and (len(groups[-1]) + 1) * _width(len(row.ids)) > _BATCH_TOKENS:
            groups.append([])
        groups[-1].append(row)
    return groups


def _width(num_tokens: int) -> int:
    return -(-num_tokens // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
