"""The rolling buffer: which slots a chunk reads and writes, and what its queries see."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.cache import KVCache, cache_slots
from model.config import ModelConfig
from tests.checkpoints import TINY_MOE
from tests.running import CPU

CONFIG = replace(TINY_MOE, num_layers=2, num_kv_heads=1, head_dim=2)


def windowed(window_tokens: int | None) -> ModelConfig:
    return replace(CONFIG, window_tokens=window_tokens)


def new_cache(window_tokens: int | None, max_tokens: int = 100) -> KVCache:
    return KVCache(windowed(window_tokens), max_tokens, torch.float32, CPU)


def numbered(first: int, num: int) -> Tensor:
    """Keys that tell their positions: (num, 1, 2)."""
    return torch.arange(first, first + num, dtype=torch.float32).view(-1, 1, 1).expand(-1, 1, 2)


def extend(cache: KVCache, num_new: int) -> list[list[int]]:
    """Write a chunk into both layers; for each of its queries the positions that it sees."""
    plan = cache.plan(num_new)
    for layer in range(CONFIG.num_layers):
        keys_CNH = numbered(cache.num_tokens, num_new) + 1_000 * layer
        keys_PNH, values_PNH = cache.extend(layer, plan, keys_CNH, -keys_CNH)
        assert torch.equal(values_PNH, -keys_PNH)
    positions = (keys_PNH[:, 0, 0] - 1_000).int().tolist()
    cache.advance(num_new)
    if plan.mask_CP is None:
        return [positions] * num_new
    return [
        [position for position, is_seen in zip(positions, row, strict=True) if is_seen]
        for row in plan.mask_CP.tolist()
    ]


def test_the_worked_example_of_the_docstring() -> None:
    cache = new_cache(window_tokens=4)
    extend(cache, 6)

    plan = cache.plan(2)

    assert plan.past_slots is not None and plan.mask_CP is not None
    assert plan.past_slots.tolist() == [2, 3, 0, 1]
    assert plan.new_slots.tolist() == [2, 3]
    assert plan.mask_CP.int().tolist() == [[0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]]
    assert plan.end == 8


def test_the_queries_of_the_worked_example_see_their_windows() -> None:
    cache = new_cache(window_tokens=4)
    extend(cache, 6)

    assert extend(cache, 2) == [[3, 4, 5, 6], [4, 5, 6, 7]]


def test_past_and_chunk_lie_side_by_side_until_something_is_overwritten() -> None:
    cache = new_cache(window_tokens=8)
    extend(cache, 3)

    plan = cache.plan(5)

    assert plan.past_slots is None
    assert plan.new_slots.tolist() == [3, 4, 5, 6, 7]


def test_a_decoded_token_needs_no_mask_before_the_window_is_full() -> None:
    cache = new_cache(window_tokens=4)
    extend(cache, 3)

    assert cache.plan(1).mask_CP is None


def test_a_decoded_token_leaves_the_oldest_out_once_the_window_is_full() -> None:
    cache = new_cache(window_tokens=4)
    extend(cache, 4)

    assert extend(cache, 1) == [[1, 2, 3, 4]]


def test_of_a_chunk_longer_than_the_window_the_last_tokens_are_kept() -> None:
    cache = new_cache(window_tokens=4)
    extend(cache, 10)

    assert extend(cache, 1) == [[7, 8, 9, 10]]


def test_a_model_without_a_window_sees_everything() -> None:
    cache = new_cache(window_tokens=None, max_tokens=12)
    extend(cache, 9)

    assert extend(cache, 3) == [[*range(10)], [*range(11)], [*range(12)]]


@pytest.mark.parametrize(
    ("window_tokens", "max_tokens", "slots"), [(None, 50, 50), (32, 50, 32), (32, 20, 20)]
)
def test_slots_never_exceed_the_window_nor_the_sequence(
    window_tokens: int | None, max_tokens: int, slots: int
) -> None:
    config = windowed(window_tokens)
    num_bytes = 2 * CONFIG.num_layers * slots * CONFIG.num_kv_heads * CONFIG.head_dim * 4

    assert cache_slots(config, max_tokens) == slots
    assert KVCache(config, max_tokens, torch.float32, CPU).num_bytes == num_bytes


@settings(max_examples=150, deadline=None)
@given(
    window_tokens=st.none() | st.integers(1, 12),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=10),
)
def test_every_query_sees_itself_and_the_window_before_it(
    window_tokens: int | None, chunks: list[int]
) -> None:
    cache = new_cache(window_tokens, max_tokens=sum(chunks))
    window = window_tokens or sum(chunks)

    seen = [positions for num_new in chunks for positions in extend(cache, num_new)]

    assert seen == [
        [*range(max(0, position - window + 1), position + 1)] for position in range(sum(chunks))
    ]
    assert cache.num_tokens == sum(chunks)
