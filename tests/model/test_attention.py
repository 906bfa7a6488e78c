"""Attention over blocks of the cache against a softmax over all keys, written out in float64."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from model.attention import Attention
from model.attention_plan import AttentionPlanner, ByChunk, ByToken
from model.batch import Chunk, pack
from model.cache import MIN_RUN_TOKENS, PagedCache
from model.config import ModelConfig
from model.linear import TILE_ROWS, prepare
from model.rope import RotaryTable
from tests.running import CPU

# Letters: T new tokens, P all tokens, D model dimension, N heads, K key-value heads, H dimensions
# of a head.

CONFIG = ModelConfig(
    dim=24,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    hidden_dim=16,
    vocab_size=10,
    norm_eps=1e-5,
    rope_theta=1e4,
    context_tokens=2_000,
    dtype="float32",
)
LAYER = 1
BLOCK_TOKENS = 16
MANY_TOKENS = 900
LONG_RUN = MIN_RUN_TOKENS // BLOCK_TOKENS


def weight(num_rows: int, dim: int, seed: int) -> Tensor:
    weight_ND = torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed))
    return weight_ND.div(dim**0.5)


WQ, WK, WV = weight(48, 24, seed=1), weight(16, 24, seed=2), weight(16, 24, seed=3)
WO = weight(24, 48, seed=4)
ROTARY = RotaryTable(CONFIG, torch.float32, CPU)


@dataclass(frozen=True)
class Piece:
    """A sequence of which the first `num_past` tokens are computed, and the rest is to be."""

    x_TD: Tensor
    num_past: int
    blocks: list[int]


def piece(num_past: int, num_new: int, blocks: list[int], seed: int) -> Piece:
    generator = torch.Generator().manual_seed(seed)
    return Piece(torch.randn(num_past + num_new, 24, generator=generator), num_past, blocks)


def in_pieces(num_blocks: int, run_blocks: int, seed: int) -> list[int]:
    """Blocks in shuffled runs of `run_blocks` neighbours."""
    runs = [
        [*range(first, min(first + run_blocks, num_blocks))]
        for first in range(0, num_blocks, run_blocks)
    ]
    random.Random(seed).shuffle(runs)
    return [block for run in runs for block in run]


def attention_of(tile_rows: int | None = None) -> Attention:
    wqkv = prepare(WQ, WK, WV, tile_rows=tile_rows)
    return Attention(wqkv, prepare(WO, tile_rows=tile_rows), 6, 2, 8)


def new_cache(num_blocks: int) -> PagedCache:
    """A cache of which nothing but what is written can be read without a trace."""
    cache = PagedCache(CONFIG, num_blocks, BLOCK_TOKENS, torch.float32, CPU)
    slots = torch.arange(num_blocks * BLOCK_TOKENS)
    rubbish = torch.full((len(slots), 2, 8), 1e4)
    cache.write(LAYER, slots, rubbish, rubbish)
    return cache


def attend(
    attention: Attention,
    planner: AttentionPlanner,
    cache: PagedCache,
    chunks: Sequence[tuple[Piece, range]],
) -> list[Tensor]:
    """One step of the layer; each chunk's rows."""
    batch = pack(
        [Chunk([0] * len(rows), rows.start, piece.blocks) for piece, rows in chunks], cache, planner
    )
    x_TD = torch.cat([piece.x_TD[rows.start : rows.stop] for piece, rows in chunks])
    y_TD = attention.forward(LAYER, x_TD, ROTARY.at(batch.positions_T), batch, cache)
    return list(torch.split(y_TD, [len(rows) for _, rows in chunks]))


def after_its_past(pieces: Sequence[Piece], planner: AttentionPlanner) -> list[Tensor]:
    """The new tokens of several sequences, in one step, after a step for the past of each."""
    attention = attention_of()
    cache = new_cache(1 + max(block for piece in pieces for block in piece.blocks))
    for own in pieces:
        if own.num_past:
            # What is cached does not depend on what was attended to.
            attend(attention, ByChunk(None, CPU), cache, [(own, range(own.num_past))])
    chunks = [(own, range(own.num_past, len(own.x_TD))) for own in pieces]
    return attend(attention, planner, cache, chunks)


def written_out(own: Piece, window_tokens: int | None) -> Tensor:
    """What the new tokens give, by softmax(q k^T / sqrt(H)) v over all keys, in float64."""
    x_PD, positions_P = own.x_TD, torch.arange(len(own.x_TD))
    x_TD, positions_T = x_PD[own.num_past :], positions_P[own.num_past :]
    q_TNH = ROTARY.at(positions_T).apply((x_TD @ WQ.T).view(-1, 6, 8)).double()
    k_PKH = ROTARY.at(positions_P).apply((x_PD @ WK.T).view(-1, 2, 8)).double()
    v_PKH = (x_PD @ WV.T).view(-1, 2, 8).double()
    k_PNH, v_PNH = k_PKH.repeat_interleave(3, 1), v_PKH.repeat_interleave(3, 1)
    scores_NTP = torch.einsum("tnh,pnh->ntp", q_TNH, k_PNH) / 8**0.5
    age_TP = positions_T.unsqueeze(1) - positions_P
    hidden_TP = age_TP < 0
    if window_tokens is not None:
        hidden_TP |= age_TP >= window_tokens
    shares_NTP = scores_NTP.masked_fill(hidden_TP, -torch.inf).softmax(-1)
    y_TD = torch.einsum("ntp,pnh->tnh", shares_NTP, v_PNH).flatten(1) @ WO.T.double()
    return y_TD.float()


@pytest.mark.parametrize("window_tokens", [None, 50, 400])
@pytest.mark.parametrize("run_blocks", [1, LONG_RUN, 100], ids=["scattered", "runs", "in order"])
@pytest.mark.parametrize("num_new", [1, 7, 300])
def test_a_sequence_attends_to_all_that_it_may_see(
    num_new: int, run_blocks: int, window_tokens: int | None
) -> None:
    blocks = in_pieces(-(-MANY_TOKENS // BLOCK_TOKENS), run_blocks, seed=5)
    own = piece(MANY_TOKENS - num_new, num_new, blocks, seed=6)

    for planner in (ByChunk(window_tokens, CPU), ByToken(window_tokens)):
        [y_TD] = after_its_past([own], planner)

        torch.testing.assert_close(y_TD, written_out(own, window_tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window_tokens", [None, 20])
def test_sequences_of_one_step_attend_to_their_own_keys_only(window_tokens: int | None) -> None:
    sizes = [(0, 1), (3, 1), (40, 9), (255, 1), (256, 1), (0, 30), (90, 1), (16, 1), (15, 1)]
    blocks = in_pieces(80, 1, seed=7)
    pieces = []
    for seed, (num_past, num_new) in enumerate(sizes):
        num_blocks = -(-(num_past + num_new) // BLOCK_TOKENS)
        pieces.append(piece(num_past, num_new, blocks[:num_blocks], seed))
        del blocks[:num_blocks]

    for planner in (ByChunk(window_tokens, CPU), ByToken(window_tokens)):
        for own, y_TD in zip(pieces, after_its_past(pieces, planner), strict=True):
            torch.testing.assert_close(y_TD, written_out(own, window_tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window_tokens", [None, 50])
def test_by_token_no_bit_depends_on_cuts_or_places_or_company(window_tokens: int | None) -> None:
    num_tokens, planner, attention = 150, ByToken(window_tokens), attention_of(TILE_ROWS)
    whole = piece(0, num_tokens, [*range(10)], seed=8)
    other = piece(0, num_tokens, [*range(10, 20)], seed=9)
    scattered = Piece(whole.x_TD, 0, in_pieces(10, 1, seed=10))
    [alone_TD] = attend(attention, planner, new_cache(10), [(whole, range(num_tokens))])

    cache, rows_TD = new_cache(20), []
    for first, end in [(0, 1), (1, 40), (40, 41), (41, 100), (100, 150)]:
        chunks = [(other, range(first, end)), (scattered, range(first, end))]
        rows_TD.append(attend(attention, planner, cache, chunks)[1])

    assert torch.equal(torch.cat(rows_TD), alone_TD)
