"""Grouped-query attention (Ainslie et al. 2023) over blocks of the cache."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.attention_plan import Bundle, QueryGroup, Span
from model.batch import ForwardBatch
from model.cache import PagedCache
from model.linear import Linear
from model.rope import Rotation

# Letters: T tokens of the step, D model dimension, C tokens of a group, B sequences of a bundle,
# P keys, K key-value heads, G query heads of each, N heads in all, H dimensions of a head.


@dataclass(frozen=True, slots=True)
class Attention:
    """The projections of one layer: `wqkv` gives queries, keys and values side by side."""

    wqkv: Linear
    wo: Linear
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def forward(
        self, layer: int, x_TD: Tensor, rotation: Rotation, batch: ForwardBatch, cache: PagedCache
    ) -> Tensor:
        """Attend within each sequence; writes the step's keys and values into the cache."""
        num_rotated = self.num_heads + self.num_kv_heads
        qkv = self.wqkv(x_TD).view(len(x_TD), num_rotated + self.num_kv_heads, self.head_dim)
        rotated = rotation.apply(qkv[:, :num_rotated])
        queries_TNH, keys_TKH = rotated[:, : self.num_heads], rotated[:, self.num_heads :]
        cache.write(layer, batch.slots_T, keys_TKH, qkv[:, num_rotated:])
        queries_TKGH = queries_TNH.view(len(x_TD), self.num_kv_heads, -1, self.head_dim)
        attended_TD = x_TD.new_empty(len(x_TD), self.num_heads * self.head_dim)
        for group in batch.attention.groups:
            attended_TD[group.first : group.end] = _attend(queries_TKGH, layer, group, cache)
        if (bundle := batch.attention.bundle) is not None:
            attended_TD[bundle.rows_B] = _attend_bundle(queries_TKGH, layer, bundle, cache)
        return self.wo(attended_TD)


def _attend_bundle(queries_TKGH: Tensor, layer: int, bundle: Bundle, cache: PagedCache) -> Tensor:
    """Softmax attention of one query each of several sequences, (B, N * H)."""
    keys_BKPH, values_BKPH = cache.gather(layer, bundle.slots_BP)
    queries_BKGH = queries_TKGH[bundle.rows_B]
    mask = bundle.mask_BP[:, None, None]
    output_BKGH, _ = _softmax_attention(queries_BKGH, keys_BKPH, values_BKPH, mask=mask)
    return output_BKGH.flatten(1)


def _attend(queries_TKGH: Tensor, layer: int, group: QueryGroup, cache: PagedCache) -> Tensor:
    """Softmax attention of one group; heads side by side in the result, (C, N * H)."""
    queries_KGCH = queries_TKGH[group.first : group.end].permute(1, 2, 0, 3)
    parts = [
        _attend_span(queries_KGCH, *cache.read(layer, span.slots), span) for span in group.spans
    ]
    output_KGCH = parts[0][0] if len(parts) == 1 else _merge(parts)
    return output_KGCH.permute(2, 0, 1, 3).flatten(1)


def _attend_span(
    queries_KGCH: Tensor, keys_KPH: Tensor, values_KPH: Tensor, span: Span
) -> tuple[Tensor, Tensor]:
    """Attend to one span: the output and, for `_merge`, the logarithm of the softmax's sum."""
    num_kv, group, num_queries, _ = queries_KGCH.shape
    if span.is_causal or span.mask_CP is not None:
        # Heads of a group read the same keys, without a copy: they are expanded, with stride 0.
        expanded = (-1, group, -1, -1)
        return _softmax_attention(
            queries_KGCH,
            keys_KPH.unsqueeze(1).expand(expanded),
            values_KPH.unsqueeze(1).expand(expanded),
            span.is_causal,
            span.mask_CP,
        )
    # Where all queries see all keys, those of a group are more rows of one product.
    output, sums = _softmax_attention(
        queries_KGCH.reshape(1, num_kv, group * num_queries, -1),
        keys_KPH.unsqueeze(0),
        values_KPH.unsqueeze(0),
    )
    return output.view(queries_KGCH.shape), sums.view(num_kv, group, num_queries)


def _softmax_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    is_causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(H)) v and the log of its denominators, over (batch, heads, rows, H)."""
    if mask is not None:
        mask = mask.to(queries.dtype)
    if queries.device.type == "cpu":
        output, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, 0.0, is_causal, attn_mask=mask
        )
        return output, sums
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    if mask is not None:
        scores = scores + mask
    scores = scores.float()
    return torch.softmax(scores, dim=-1).to(values.dtype) @ values, scores.logsumexp(dim=-1)


def _merge(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Join attention over parts of the keys to attention over all of them, in float32.

    Each part counts by its share of the softmax's denominator (Dao et al. 2022, section 3.1).
    """
    sums = torch.stack([part_sums for _, part_sums in parts])
    shares = torch.softmax(sums, dim=0).unsqueeze(-1)
    outputs = torch.stack([output for output, _ in parts])
    return (outputs.float() * shares).sum(dim=0).to(outputs.dtype)
