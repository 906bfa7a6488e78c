"""The paged cache: where positions lie, and that what is read is what was written there."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.cache import MIN_RUN_TOKENS, BlockList, PagedCache, Slots, int64_tensor
from tests.checkpoints import TINY_MOE
from tests.running import CPU

CONFIG = replace(TINY_MOE, num_layers=2, num_heads=3, num_kv_heads=3, head_dim=2)
BLOCK_TOKENS = 4


def blocks_of(*blocks: int, first: int = 0, size: int = BLOCK_TOKENS) -> BlockList:
    return BlockList(blocks, first, size, CPU)


def new_cache(num_blocks: int = 5) -> PagedCache:
    return PagedCache(CONFIG, num_blocks, BLOCK_TOKENS, torch.float32, CPU)


def as_list(slots: Slots) -> list[int]:
    """The slots, in their order."""
    if isinstance(slots, slice):
        assert slots.step is None
        return [*range(slots.start, slots.stop)]
    assert slots.dtype == torch.int64
    return slots.tolist()


def numbered(slots: list[int], layer: int) -> Tensor:
    """Keys of which each number tells layer, slot, head and dimension: (slots, 3, 2)."""
    heads_NH = torch.arange(6.0).view(3, 2)
    return torch.tensor(slots).view(-1, 1, 1) * 10.0 + heads_NH + 1_000.0 * layer


def write(cache: PagedCache, slots: list[int], sign: int = 1) -> None:
    """Write numbered keys, and their negatives as values, into every layer."""
    for layer in range(CONFIG.num_layers):
        keys_TNH = sign * numbered(slots, layer)
        cache.write(layer, int64_tensor(slots, CPU), keys_TNH, -keys_TNH)


def check(cache: PagedCache, slots: Slots, content: list[int], sign: int = 1) -> None:
    """Every layer holds, at the slots, what was numbered for the slots `content`."""
    for layer in range(CONFIG.num_layers):
        keys_NPH, values_NPH = cache.read(layer, slots)
        wanted_NPH = sign * numbered(content, layer).transpose(0, 1)
        assert torch.equal(keys_NPH, wanted_NPH)
        assert torch.equal(values_NPH, -wanted_NPH)


def test_a_position_lies_in_its_block_at_its_place() -> None:
    blocks = blocks_of(7, 2, 3)

    assert blocks.slots(range(12)) == [28, 29, 30, 31, 8, 9, 10, 11, 12, 13, 14, 15]
    assert blocks.slots(range(3, 6)) == [31, 8, 9]


def test_blocks_that_were_given_back_need_not_be_known() -> None:
    blocks = blocks_of(7, 2, first=40)

    assert blocks.slots(range(42, 46)) == [30, 31, 8, 9]


def test_neighbouring_blocks_are_one_run() -> None:
    blocks = blocks_of(5, 6, 7, 1)

    assert blocks.runs(range(2, 12)) == [slice(22, 32)]
    assert blocks.one_run(range(2, 12)) == slice(22, 32)
    assert blocks.one_run(range(4, 5)) == slice(24, 25)


def test_a_block_before_the_last_one_is_no_neighbour() -> None:
    [scattered] = blocks_of(6, 5).runs(range(8))

    assert as_list(scattered) == [24, 25, 26, 27, 20, 21, 22, 23]
    assert not isinstance(scattered, slice)


def test_long_runs_are_read_as_they_are_and_short_ones_together() -> None:
    size = MIN_RUN_TOKENS // 2
    blocks = blocks_of(9, 0, 1, 5, 3, 4, size=size)

    long, long_too, scattered = blocks.runs(range(1, 6 * size))

    assert (long, long_too) == (slice(0, 2 * size), slice(3 * size, 5 * size))
    assert as_list(scattered) == [*range(9 * size + 1, 10 * size), *range(5 * size, 6 * size)]


@pytest.mark.parametrize(("missing", "is_slice"), [(0, True), (1, False)])
def test_a_run_is_long_from_its_number_of_tokens_on(missing: int, is_slice: bool) -> None:
    blocks = blocks_of(0, 7, size=MIN_RUN_TOKENS)

    runs = blocks.runs(range(missing, MIN_RUN_TOKENS + 1))

    assert isinstance(runs[0], slice) == is_slice
    assert len(runs) == 1 + is_slice


def test_where_all_runs_are_long_nothing_is_gathered() -> None:
    blocks = blocks_of(0, 7, size=MIN_RUN_TOKENS)

    runs = blocks.runs(range(2 * MIN_RUN_TOKENS))

    assert runs == [
        slice(0, MIN_RUN_TOKENS),
        slice(7 * MIN_RUN_TOKENS, 8 * MIN_RUN_TOKENS),
    ]


def test_one_run_keeps_the_order_of_positions_across_gaps() -> None:
    size = MIN_RUN_TOKENS
    slots = blocks_of(2, 0, size=size).one_run(range(2 * size))

    assert as_list(slots) == [*range(2 * size, 3 * size), *range(size)]


@settings(deadline=None)
@given(data=st.data(), size=st.integers(1, 60), num_blocks=st.integers(1, 14))
def test_every_position_is_found_once_whichever_way_it_is_asked_for(
    data: st.DataObject, size: int, num_blocks: int
) -> None:
    blocks = data.draw(st.permutations(range(20)))[:num_blocks]
    # Sorted and cut once, so that there are long runs of neighbours too.
    if data.draw(st.booleans()):
        cut = data.draw(st.integers(0, num_blocks))
        blocks = [*sorted(blocks)[cut:], *sorted(blocks)[:cut]]
    first = data.draw(st.integers(0, 5)) * size
    start = data.draw(st.integers(first, first + num_blocks * size - 1))
    positions = range(start, data.draw(st.integers(start + 1, first + num_blocks * size)))
    table = blocks_of(*blocks, first=first, size=size)

    wanted = [blocks[(position - first) // size] * size + position % size for position in positions]

    assert table.slots(positions) == wanted
    assert as_list(table.one_run(positions)) == wanted
    runs = table.runs(positions)
    assert sorted(slot for run in runs for slot in as_list(run)) == sorted(wanted)
    assert sum(not isinstance(run, slice) for run in runs) <= 1


def test_what_is_read_is_what_was_written() -> None:
    cache = new_cache()

    write(cache, [3, 17, 4, 5])

    check(cache, slice(3, 6), [3, 4, 5])
    check(cache, int64_tensor([17, 3], CPU), [17, 3])


def test_slots_side_by_side_are_read_without_a_copy() -> None:
    cache = new_cache()
    write(cache, [*range(8)])
    keys_NPH, values_NPH = cache.read(1, slice(2, 6))

    write(cache, [*range(8)], sign=-1)

    assert torch.equal(keys_NPH, -numbered([2, 3, 4, 5], 1).transpose(0, 1))
    assert torch.equal(values_NPH, -keys_NPH)


def test_writing_leaves_all_other_slots_alone() -> None:
    cache = new_cache()
    write(cache, [*range(20)])

    write(cache, [6, 9], sign=-1)

    check(cache, int64_tensor([6, 9], CPU), [6, 9], sign=-1)
    check(
        cache,
        int64_tensor([*range(6), 7, 8, *range(10, 20)], CPU),
        [*range(6), 7, 8, *range(10, 20)],
    )


def test_keys_of_several_sequences_are_gathered_side_by_side() -> None:
    cache = new_cache()
    write(cache, [*range(20)])
    slots = [[3, 4, 5], [19, 0, 0]]

    keys_BNPH, values_BNPH = cache.gather(1, torch.tensor(slots))

    wanted_BNPH = torch.stack([numbered(own, 1).transpose(0, 1) for own in slots])
    assert torch.equal(keys_BNPH, wanted_BNPH)
    assert torch.equal(values_BNPH, -wanted_BNPH)


def test_a_copied_block_holds_what_the_first_held_in_every_layer() -> None:
    cache = new_cache()
    write(cache, [*range(20)])

    cache.copy([(1, 3)])

    check(cache, slice(12, 16), [4, 5, 6, 7])
    check(cache, slice(0, 12), [*range(12)])
    check(cache, slice(16, 20), [*range(16, 20)])


def test_copies_are_made_one_after_the_other() -> None:
    cache = new_cache()
    write(cache, [*range(20)])

    cache.copy([(0, 1), (2, 0), (1, 4)])

    check(cache, slice(16, 20), [0, 1, 2, 3])
    check(cache, slice(0, 4), [8, 9, 10, 11])


def test_the_probe_has_a_block_of_its_own() -> None:
    cache = new_cache(num_blocks=5)
    table = cache.table([cache.probe_block], first_block=0)
    write(cache, [*range(20)])

    write(cache, table.slots(range(BLOCK_TOKENS)), sign=-1)

    check(cache, slice(0, 20), [*range(20)])


def test_a_table_starts_where_its_first_block_does() -> None:
    cache = new_cache()

    assert cache.table([4, 2], first_block=3).slots(range(13, 17)) == [17, 18, 19, 8]


@pytest.mark.parametrize(("dtype", "num_bytes"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_memory_is_that_of_all_blocks_and_the_probe(dtype: torch.dtype, num_bytes: int) -> None:
    cache = PagedCache(CONFIG, 5, BLOCK_TOKENS, dtype, CPU)

    # 2 layers, 3 heads of 2 numbers, keys and values.
    assert cache.num_bytes == 6 * BLOCK_TOKENS * 2 * 3 * 2 * 2 * num_bytes


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_whole_numbers_survive_as_a_tensor(values: list[int]) -> None:
    assert int64_tensor(values, CPU).tolist() == values
