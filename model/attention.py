"""Grouped-query attention over each sequence's own cache (Ainslie et al. 2023)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.batch import ForwardBatch, PackedChunk
from model.rope import Rotation

# Letters: T tokens of the step, D model dimension, C tokens of a chunk, P keys that a chunk sees,
# N heads, H dimensions of a head.


@dataclass(frozen=True, slots=True)
class Attention:
    """The projections of one layer, each (output dimension, input dimension)."""

    wq: Tensor
    wk: Tensor
    wv: Tensor
    wo: Tensor
    head_dim: int

    def forward(self, layer: int, x_TD: Tensor, rotation: Rotation, batch: ForwardBatch) -> Tensor:
        """Attend within each sequence; writes the step's keys and values into the caches."""
        queries_TNH = rotation.apply(self._project(x_TD, self.wq))
        keys_TNH = rotation.apply(self._project(x_TD, self.wk))
        values_TNH = self._project(x_TD, self.wv)
        attended = [
            _attend(
                queries_TNH[chunk.first : chunk.end],
                *chunk.cache.extend(
                    layer,
                    chunk.plan,
                    keys_TNH[chunk.first : chunk.end],
                    values_TNH[chunk.first : chunk.end],
                ),
                chunk,
            )
            for chunk in batch.chunks
        ]
        return F.linear(torch.cat(attended), self.wo)

    def _project(self, x_TD: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x_TD, weight).view(len(x_TD), -1, self.head_dim)


def _attend(
    queries_CNH: Tensor, keys_PNH: Tensor, values_PNH: Tensor, chunk: PackedChunk
) -> Tensor:
    """Softmax attention of one chunk; heads side by side in the result, (C, N * H)."""
    output_NCH = F.scaled_dot_product_attention(
        queries_CNH.transpose(0, 1).unsqueeze(0),
        keys_PNH.transpose(0, 1).unsqueeze(0),
        values_PNH.transpose(0, 1).unsqueeze(0),
        attn_mask=chunk.plan.mask_CP,
        enable_gqa=True,
    ).squeeze(0)
    return output_NCH.transpose(0, 1).flatten(1)
