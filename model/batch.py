"""What one forward pass works on: chunks of several sequences, packed without padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.cache import ChunkPlan, KVCache

# Letters: T tokens of the step, B rows of logits.


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of one sequence: one when it decodes, several when it prefills."""

    cache: KVCache
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """A chunk's place in the packed step: rows `first` to `end` of T."""

    cache: KVCache
    plan: ChunkPlan
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step of the model.

    Attributes:
        token_ids_T: int64.
        positions_T: int64, each token's position in its own sequence.
        chunks: one for each sequence, in the order of the rows.
        logit_rows_B: rows whose logits are wanted, int64.
    """

    token_ids_T: Tensor
    positions_T: Tensor
    chunks: tuple[PackedChunk, ...]
    logit_rows_B: Tensor


def pack(
    chunks: Sequence[Chunk], device: torch.device, *, all_logits: bool = False
) -> ForwardBatch:
    """Pack `chunks` into one batch; logits of each chunk's last token, or of all of them."""
    token_ids: list[int] = []
    positions: list[int] = []
    packed: list[PackedChunk] = []
    for chunk in chunks:
        first, start, length = len(token_ids), chunk.cache.num_tokens, len(chunk.token_ids)
        token_ids.extend(chunk.token_ids)
        positions.extend(range(start, start + length))
        packed.append(PackedChunk(chunk.cache, chunk.cache.plan(length), first, len(token_ids)))
    rows = range(len(token_ids)) if all_logits else [chunk.end - 1 for chunk in packed]
    return ForwardBatch(
        torch.tensor(token_ids, device=device),
        torch.tensor(positions, device=device),
        tuple(packed),
        torch.tensor(list(rows), device=device),
    )
