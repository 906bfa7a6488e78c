"""Mixtral and dense Mistral: everything of the model but the experts.

The forward pass is a generator (see `routing.experts`): it yields what the experts must compute
and returns the logits. It knows nothing of where experts live.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.attention import Attention
from model.attention_plan import AttentionPlanner, ByChunk, ByToken
from model.batch import ForwardBatch
from model.cache import PagedCache
from model.config import ModelConfig
from model.feed_forward import DenseFeedForward, MoeFeedForward, swiglu
from model.linear import TILE_ROWS, prepare
from model.norm import Norm, prepare_norm
from model.rope import RotaryTable
from routing.experts import Forward

# Letters: T tokens of the step, D model dimension, V vocabulary, B rows of logits.


@dataclass(frozen=True, slots=True)
class Block:
    """One layer."""

    attention_norm: Norm
    attention: Attention
    ffn_norm: Norm
    feed_forward: DenseFeedForward | MoeFeedForward


class Transformer:
    """The router's share of a model.

    Attributes:
        planner: how a step's attention is to be parted into groups.

    Args:
        weights: by our names (`model.checkpoint.names`); experts are not among them.
        is_deterministic: a token's logits depend, to the bit, on its sequence alone.
    """

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], is_deterministic: bool = False
    ) -> None:
        self.config = config
        self._embeddings_VD = weights["tok_embeddings.weight"]
        self._norm = prepare_norm(weights["norm.weight"], config.norm_eps, is_deterministic)
        output_VD = self._embeddings_VD if config.tied_embeddings else weights["output.weight"]
        tile_rows = TILE_ROWS if is_deterministic else None
        self._output = prepare(output_VD, tile_rows=tile_rows)
        self._rotary = RotaryTable(config, self.dtype, self.device)
        self._blocks = [
            _block(config, weights, layer, tile_rows) for layer in range(config.num_layers)
        ]
        self.planner: AttentionPlanner = (
            ByToken(config.window_tokens)
            if is_deterministic
            else ByChunk(config.window_tokens, self.device)
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights, activations and caches."""
        return self._embeddings_VD.dtype

    @property
    def device(self) -> torch.device:
        """Where weights and caches live."""
        return self._embeddings_VD.device

    def forward(self, batch: ForwardBatch, cache: PagedCache) -> Forward[Tensor]:
        """Run one step; yields each layer's expert call, returns (B, V) float32 logits."""
        x_TD = F.embedding(batch.token_ids_T, self._embeddings_VD)
        rotation = self._rotary.at(batch.positions_T)
        for layer, block in enumerate(self._blocks):
            h_TD = block.attention_norm(x_TD)
            x_TD = x_TD + block.attention.forward(layer, h_TD, rotation, batch, cache)
            h_TD = block.ffn_norm(x_TD)
            x_TD = x_TD + (yield from block.feed_forward.forward(layer, h_TD))
        h_BD = self._norm(x_TD[batch.logit_rows_B])
        return self._output(h_BD).float()


def _block(
    config: ModelConfig, weights: Mapping[str, Tensor], layer: int, tile_rows: int | None
) -> Block:
    def weight(name: str) -> Tensor:
        return weights[f"layers.{layer}.{name}.weight"]

    def norm(name: str) -> Norm:
        return prepare_norm(weight(name), config.norm_eps, is_deterministic=tile_rows is not None)

    wq, wk, wv, wo = (weight(f"attention.{name}") for name in ("wq", "wk", "wv", "wo"))
    feed_forward: DenseFeedForward | MoeFeedForward
    if config.is_moe:
        feed_forward = MoeFeedForward(
            prepare(weight("gate").float(), tile_rows=tile_rows), config.top_k
        )
    else:
        w1, w2, w3 = (weight(f"feed_forward.{name}") for name in ("w1", "w2", "w3"))
        feed_forward = DenseFeedForward(swiglu(w1, w2, w3, tile_rows=tile_rows))
    return Block(
        norm("attention_norm"),
        Attention(
            prepare(wq, wk, wv, tile_rows=tile_rows),
            prepare(wo, tile_rows=tile_rows),
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
        ),
        norm("ffn_norm"),
        feed_forward,
    )
