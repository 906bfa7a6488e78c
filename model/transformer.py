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
from model.batch import ForwardBatch
from model.config import ModelConfig
from model.feed_forward import DenseFeedForward, MoeFeedForward, SwiGLU
from model.norm import rms_norm
from model.rope import rotation_at
from routing.experts import Forward

# Letters: T tokens of the step, D model dimension, V vocabulary, B rows of logits.


@dataclass(frozen=True, slots=True)
class Block:
    """One layer."""

    attention_norm: Tensor
    attention: Attention
    ffn_norm: Tensor
    feed_forward: DenseFeedForward | MoeFeedForward


class Transformer:
    """The router's share of a model.

    Args:
        weights: by our names (`model.checkpoint.names`); experts are not among them.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self._embeddings_VD = weights["tok_embeddings.weight"]
        self._norm_D = weights["norm.weight"]
        self._output_VD = (
            self._embeddings_VD if config.tied_embeddings else weights["output.weight"]
        )
        self._blocks = [_block(config, weights, layer) for layer in range(config.num_layers)]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights, activations and caches."""
        return self._embeddings_VD.dtype

    @property
    def device(self) -> torch.device:
        """Where weights and caches live."""
        return self._embeddings_VD.device

    def forward(self, batch: ForwardBatch) -> Forward[Tensor]:
        """Run one step; yields each layer's expert call, returns (B, V) float32 logits."""
        config = self.config
        x_TD = F.embedding(batch.token_ids_T, self._embeddings_VD)
        rotation = rotation_at(batch.positions_T, config.head_dim, config.rope_theta, x_TD.dtype)
        for layer, block in enumerate(self._blocks):
            h_TD = rms_norm(x_TD, block.attention_norm, config.norm_eps)
            x_TD = x_TD + block.attention.forward(layer, h_TD, rotation, batch)
            h_TD = rms_norm(x_TD, block.ffn_norm, config.norm_eps)
            x_TD = x_TD + (yield from block.feed_forward.forward(layer, h_TD))
        for chunk in batch.chunks:
            chunk.cache.advance(chunk.end - chunk.first)
        h_BD = rms_norm(x_TD[batch.logit_rows_B], self._norm_D, config.norm_eps)
        return F.linear(h_BD, self._output_VD).float()


def _block(config: ModelConfig, weights: Mapping[str, Tensor], layer: int) -> Block:
    def weight(name: str) -> Tensor:
        return weights[f"layers.{layer}.{name}.weight"]

    wq, wk, wv, wo = (weight(f"attention.{name}") for name in ("wq", "wk", "wv", "wo"))
    feed_forward: DenseFeedForward | MoeFeedForward
    if config.is_moe:
        feed_forward = MoeFeedForward(weight("gate"), config.top_k)
    else:
        w1, w2, w3 = (weight(f"feed_forward.{name}") for name in ("w1", "w2", "w3"))
        feed_forward = DenseFeedForward(SwiGLU(w1, w2, w3))
    return Block(
        weight("attention_norm"),
        Attention(wq, wk, wv, wo, config.head_dim),
        weight("ffn_norm"),
        feed_forward,
    )
