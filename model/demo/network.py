"""Mixtral's forward pass for training: many rows at once, all experts in one process.

Matrix products run in the data type that the network is made with, everything else in float32.
Serving has its own forward pass; the two only share the checkpoint.
"""

# T tokens packed row after row, B rows, S tokens of the longest row, D hidden size, V vocabulary
# H query heads, G key and value heads, A head size, E experts, K experts per token, F expert size

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROW_MULTIPLE = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of the demo model."""

    vocab_size: int
    context_tokens: int
    dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    hidden_dim: int = 256
    num_experts: int = 8
    top_k: int = 2
    norm_eps: float = 1e-5
    rope_theta: float = 1e6


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each packed token stands: only attention sees rows, and pads them itself.

    Two rows of lengths 2 and 3 have the slots [0, 1, 3, 4, 5] of a grid of 2 x 3.
    """

    num_rows: int
    width: int
    slot_T: Tensor
    cos_TA: Tensor
    sin_TA: Tensor


class Attention(nn.Module):
    """Causal grouped-query attention with half-split rotary embedding."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.wq = _matrix(shape.num_heads * shape.head_dim, shape.dim)
        self.wk = _matrix(shape.num_kv_heads * shape.head_dim, shape.dim)
        self.wv = _matrix(shape.num_kv_heads * shape.head_dim, shape.dim)
        self.wo = _zeros(shape.dim, shape.num_heads * shape.head_dim)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        """Mix the tokens of each row; pads follow the text, so causality hides them."""
        shape = self.shape
        group = shape.num_heads // shape.num_kv_heads
        heads = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
        qkv = _linear(x_TD, torch.cat((self.wq, self.wk, self.wv)), self.dtype)
        q_THA, k_TGA, v_TGA = torch.split(qkv.view(len(x_TD), -1, shape.head_dim), heads, dim=1)
        k_THA = _rotate(k_TGA, layout).repeat_interleave(group, dim=1)
        v_THA = v_TGA.repeat_interleave(group, dim=1)
        out_THA = _attend(_rotate(q_THA, layout), k_THA, v_THA, layout)
        return _linear(out_THA.flatten(1), self.wo, self.dtype)


class Experts(nn.Module):
    """A gate and its SwiGLU experts; weights are stacked over the experts."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__()
        self.top_k, self.dtype = shape.top_k, dtype
        self.gate = _matrix(shape.num_experts, shape.dim)
        self.w1 = _matrix(shape.num_experts, shape.hidden_dim, shape.dim)
        self.w2 = _zeros(shape.num_experts, shape.dim, shape.hidden_dim)
        self.w3 = _matrix(shape.num_experts, shape.hidden_dim, shape.dim)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Give the weighted sum of the chosen experts, and the load-balancing loss (a scalar)."""
        logits_TE = F.linear(x_TD, self.gate)
        chosen_TK, expert_TK = logits_TE.topk(self.top_k, dim=-1)
        weights_TK = chosen_TK.softmax(dim=-1)
        slot_N, counts = _expert_slots(expert_TK.flatten(), len(self.gate))
        rows_ND = x_TD.to(self.dtype).repeat_interleave(self.top_k, dim=0)
        in_RD = rows_ND.new_zeros(sum(counts), x_TD.shape[1]).index_copy(0, slot_N, rows_ND)
        weights = (w.to(self.dtype).unbind() for w in (self.w1, self.w2, self.w3))
        out = [_swiglu(*parts) for parts in zip(torch.split(in_RD, counts), *weights, strict=True)]
        out_TKD = torch.cat(out)[slot_N].view(len(x_TD), self.top_k, -1)
        y_TD = (out_TKD * weights_TK.unsqueeze(2)).sum(dim=1)
        return y_TD, _balance_loss(logits_TE, expert_TK)


class Block(nn.Module):
    """Attention, then experts, each behind a norm and added to the stream."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = shape.norm_eps
        self.attention_norm = nn.Parameter(torch.ones(shape.dim))
        self.attention = Attention(shape, dtype)
        self.ffn_norm = nn.Parameter(torch.ones(shape.dim))
        self.experts = Experts(shape, dtype)

    def forward(self, x_TD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Give the new stream and the load-balancing loss."""
        x_TD = x_TD + self.attention(_rms_norm(x_TD, self.attention_norm, self.eps), layout)
        y_TD, balance = self.experts(_rms_norm(x_TD, self.ffn_norm, self.eps))
        return x_TD + y_TD, balance


class Network(nn.Module):
    """Token ids to next-token logits."""

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.embedding = nn.Parameter(torch.randn(shape.vocab_size, shape.dim) * 0.5)
        self.blocks = nn.ModuleList(Block(shape, dtype) for _ in range(shape.num_layers))
        self.norm = nn.Parameter(torch.ones(shape.dim))
        self.output = nn.Parameter(torch.randn(shape.vocab_size, shape.dim) * 0.01)

    def forward(self, ids_T: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Give normed hidden states (T, D) and the mean load-balancing loss.

        `ids_T` holds rows of `lengths_B` tokens back to back. The caller applies `logits` to the
        hidden states that it needs.
        """
        layout = _layout(lengths_B, self.shape)
        x_TD = F.embedding(ids_T, self.embedding)
        balance = torch.zeros(())
        for block in self.blocks:
            x_TD, loss = block(x_TD, layout)
            balance = balance + loss / len(self.blocks)
        return _rms_norm(x_TD, self.norm, self.shape.norm_eps), balance

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Float32 logits (N, V) of any N hidden states."""
        return _linear(hidden_ND, self.output, self.dtype).float()


def _matrix(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*sizes) * sizes[-1] ** -0.5)


def _zeros(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(*sizes))


def _linear(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return F.linear(x.to(dtype), weight.to(dtype))


def _swiglu(x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)


def _expert_slots(expert_N: Tensor, num_experts: int) -> tuple[Tensor, list[int]]:
    """Sort N chosen pairs by expert: the slot of each pair and the padded rows of each expert.

    Experts' rows are padded to a multiple of 128, since the CPU library compiles a product anew
    for every shape that it has not seen. With 4 as the multiple, experts [1, 0, 1] of two give
    slots [4, 0, 5] and rows [4, 4].
    """
    counts_E = expert_N.bincount(minlength=num_experts)
    padded_E = (counts_E + _ROW_MULTIPLE - 1) // _ROW_MULTIPLE * _ROW_MULTIPLE
    order_N = expert_N.argsort(stable=True)
    shift_E = (padded_E - counts_E).cumsum(0) - (padded_E - counts_E)
    slot_N = torch.empty_like(order_N)
    slot_N[order_N] = torch.arange(len(order_N)) + shift_E[expert_N[order_N]]
    return slot_N, padded_E.tolist()


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def _layout(lengths_B: Tensor, shape: Shape) -> Layout:
    """Slots and rotary tables; the tables' second half repeats the first, as Hugging Face's do."""
    width = int(lengths_B.max())
    row_T = torch.arange(len(lengths_B)).repeat_interleave(lengths_B)
    position_T = torch.arange(len(row_T)) - (lengths_B.cumsum(0) - lengths_B)[row_T]
    frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles_TA = torch.outer(position_T, frequencies).repeat(1, 2)
    return Layout(
        len(lengths_B), width, row_T * width + position_T, angles_TA.cos(), angles_TA.sin()
    )


def _rotate(x_THA: Tensor, layout: Layout) -> Tensor:
    first, second = x_THA.float().chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    cos_T1A, sin_T1A = layout.cos_TA.unsqueeze(1), layout.sin_TA.unsqueeze(1)
    return (x_THA * cos_T1A + rotated * sin_T1A).to(x_THA.dtype)


def _to_grid(x_THA: Tensor, layout: Layout) -> Tensor:
    """Packed tokens to padded rows (B, H, S, A)."""
    grid = x_THA.new_zeros(layout.num_rows * layout.width, *x_THA.shape[1:])
    grid = grid.index_copy(0, layout.slot_T, x_THA)
    return grid.view(layout.num_rows, layout.width, *x_THA.shape[1:]).transpose(1, 2)


def _attend(q_THA: Tensor, k_THA: Tensor, v_THA: Tensor, layout: Layout) -> Tensor:
    """Causal attention; up to 512 tokens, plain products beat PyTorch's CPU kernel threefold."""
    q_BHSA, k_BHSA, v_BHSA = (_to_grid(x, layout) for x in (q_THA, k_THA, v_THA))
    if layout.width > 512:
        out_BHSA = F.scaled_dot_product_attention(q_BHSA, k_BHSA, v_BHSA, is_causal=True)
    else:
        out_BHSA = _attend_plainly(q_BHSA, k_BHSA, v_BHSA)
    return out_BHSA.transpose(1, 2).flatten(0, 1)[layout.slot_T]


def _attend_plainly(q_BHSA: Tensor, k_BHSA: Tensor, v_BHSA: Tensor) -> Tensor:
    width, head_dim = q_BHSA.shape[-2:]
    future_SS = q_BHSA.new_full((width, width), -1e9).triu(1)
    k_NAS = k_BHSA.flatten(0, 1).transpose(1, 2)
    scores_NSS = torch.baddbmm(future_SS, q_BHSA.flatten(0, 1), k_NAS, alpha=head_dim**-0.5)
    out_NSA = scores_NSS.softmax(dim=-1) @ v_BHSA.flatten(0, 1)
    return out_NSA.view(q_BHSA.shape)


def _balance_loss(logits_TE: Tensor, expert_TK: Tensor) -> Tensor:
    """Share of tokens times mean probability per expert (Fedus et al. 2021, equation 4).

    It is `top_k` when every expert gets the same share.
    """
    num_experts = logits_TE.shape[1]
    share_E = F.one_hot(expert_TK, num_experts).sum(1).float().mean(0)
    probability_E = logits_TE.softmax(dim=-1).mean(0)
    return num_experts * (share_E * probability_E).sum()
