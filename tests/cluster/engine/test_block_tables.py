"""Tables that grow, share, copy and shrink: every position reads what was written for it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.engine.block_tables import BlockTable, BlockTables, Copy
from tests.cluster.engine.block_memory import BlockMemory

BLOCK_TOKENS = 4


def tables_of(num_blocks: int = 100, window_tokens: int | None = None) -> BlockTables:
    return BlockTables(num_blocks, BLOCK_TOKENS, window_tokens)


def computed(
    tables: BlockTables, token_ids: list[int], chunk_tokens: int = 1_000, salt: str = ""
) -> BlockTable:
    """The table of a sequence of which all is computed, in chunks."""
    table = BlockTable(salt)
    for first in range(0, len(token_ids), chunk_tokens):
        end = min(first + chunk_tokens, len(token_ids))
        tables.grow(table, first, end - first)
        tables.commit(table, token_ids, end)
    return table


def remembering(
    token_ids: list[int], window_tokens: int | None = None, chunk_tokens: int = 1_000
) -> BlockTables:
    """Tables whose pool remembers one sequence that has gone."""
    tables = tables_of(window_tokens=window_tokens)
    tables.release(computed(tables, token_ids, chunk_tokens))
    return tables


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(1, 1), (4, 1), (5, 2), (400, 100)])
def test_a_sequence_needs_its_tokens_in_whole_blocks(num_tokens: int, num_blocks: int) -> None:
    assert tables_of().blocks_for(num_tokens) == num_blocks


@pytest.mark.parametrize(
    ("window_tokens", "num_tokens", "num_blocks"),
    [(8, 4, 1), (8, 12, 3), (8, 13, 3), (8, 400, 3), (9, 400, 4), (1, 400, 2), (3, 400, 2)],
)
def test_a_windowed_sequence_needs_its_window_and_one_block_more(
    window_tokens: int, num_tokens: int, num_blocks: int
) -> None:
    assert tables_of(window_tokens=window_tokens).blocks_for(num_tokens) == num_blocks


def test_a_table_grows_only_when_its_last_block_is_full() -> None:
    tables, table = tables_of(), BlockTable()

    num_missing = [tables.num_missing(table, 0, 3)]
    tables.grow(table, 0, 3)
    num_missing += [tables.num_missing(table, 3, 1), tables.num_missing(table, 3, 2)]
    tables.grow(table, 3, 6)

    assert num_missing == [1, 0, 1]
    assert (len(table.blocks), table.end) == (3, 3)


def test_what_fits_is_what_is_free_and_the_rest_of_the_last_block() -> None:
    tables, table = tables_of(num_blocks=3), BlockTable()
    tables.grow(table, 0, 3)

    assert tables.num_fitting(table, 3) == 9
    tables.grow(table, 3, 9)
    assert tables.num_fitting(table, 12) == 0


def test_whole_blocks_of_an_equal_beginning_are_reused() -> None:
    tables = remembering([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    table = BlockTable()

    num_tokens = tables.reuse(table, [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0])

    assert (num_tokens, table.blocks, tables.pool.num_used) == (8, [0, 1], 2)


def test_a_block_counts_only_with_all_that_is_before_it() -> None:
    tables = remembering([1, 2, 3, 4, 5, 6, 7, 8])

    assert tables.reuse(BlockTable(), [0, 2, 3, 4, 5, 6, 7, 8, 9]) == 0


def test_another_salt_shares_nothing() -> None:
    tables = remembering([1, 2, 3, 4, 5])

    assert tables.reuse(BlockTable("other"), [1, 2, 3, 4, 5]) == 0


def test_blocks_of_running_sequences_are_shared() -> None:
    tables = tables_of()
    first, second = computed(tables, [1, 2, 3, 4, 5]), BlockTable()

    tables.reuse(second, [1, 2, 3, 4, 6])
    tables.grow(second, 4, 1)

    assert first.blocks[0] == second.blocks[0]
    assert first.blocks[1] != second.blocks[1]
    assert tables.pool.num_used == 3


def test_the_last_token_of_a_known_prompt_is_computed_anew_in_the_block_it_is_in() -> None:
    tables = remembering([1, 2, 3, 4, 5, 6, 7, 8])
    table = BlockTable()

    num_tokens = tables.reuse(table, [1, 2, 3, 4, 5, 6, 7, 8])
    copies = tables.grow(table, num_tokens, 1)

    assert (num_tokens, copies, table.blocks) == (7, [], [0, 1])


def test_a_block_that_another_reads_is_copied_before_it_is_written() -> None:
    tables = tables_of()
    reader, writer = computed(tables, [1, 2, 3, 4]), BlockTable()

    num_tokens = tables.reuse(writer, [1, 2, 3, 4])
    num_missing = tables.num_missing(writer, num_tokens, 1)
    [(source, target)] = tables.grow(writer, num_tokens, 1)

    assert (num_tokens, num_missing) == (3, 1)
    assert (reader.blocks, writer.blocks) == ([source], [target])
    assert source != target


def test_the_last_of_two_readers_need_not_copy() -> None:
    tables = tables_of()
    first = computed(tables, [1, 2, 3, 4])
    second = BlockTable()
    tables.reuse(second, [1, 2, 3, 4])

    tables.release(first)

    assert tables.grow(second, 3, 1) == []


def test_nothing_fits_where_a_copy_has_no_room() -> None:
    tables = tables_of(num_blocks=1)
    computed(tables, [1, 2, 3, 4])
    table = BlockTable()

    tables.reuse(table, [1, 2, 3, 4])

    assert tables.num_fitting(table, 3) == 0
    assert tables.num_missing(table, 3, 1) == 1


def test_what_was_not_committed_is_not_reused() -> None:
    tables, table = tables_of(), BlockTable()
    tables.grow(table, 0, 8)
    tables.release(table)

    assert tables.reuse(BlockTable(), [1, 2, 3, 4, 5, 6, 7, 8, 9]) == 0


def test_of_a_released_sequence_the_end_is_forgotten_first() -> None:
    tables = tables_of(num_blocks=3)
    tables.release(computed(tables, [*range(12)]))

    computed(tables, [99])

    assert tables.reuse(BlockTable(), [*range(13)]) == 8


def test_blocks_that_left_the_window_are_given_back() -> None:
    tables = tables_of(window_tokens=8)

    table = computed(tables, [*range(30)], chunk_tokens=5)

    # The next token, at position 30, sees 23 on, which are in blocks 5 to 7.
    assert (table.first, len(table.blocks), tables.pool.num_used) == (5, 3, 3)


def test_a_window_that_ends_with_a_block_keeps_nothing_it_does_not_need() -> None:
    tables = tables_of(window_tokens=1)

    table = computed(tables, [*range(8)])

    assert (table.first, table.blocks, tables.pool.num_used) == (2, [], 0)


@given(
    window_tokens=st.integers(1, 40),
    chunks=st.lists(st.integers(1, 30), min_size=1, max_size=20),
)
def test_a_windowed_sequence_never_holds_more_than_its_window_and_its_chunk(
    window_tokens: int, chunks: list[int]
) -> None:
    tables, table = tables_of(window_tokens=window_tokens), BlockTable()
    token_ids = [*range(sum(chunks))]
    num_computed = 0

    for num_new in chunks:
        tables.grow(table, num_computed, num_new)
        assert len(table.blocks) <= tables.blocks_for(10_000) + -(-num_new // BLOCK_TOKENS)
        num_computed += num_new
        tables.commit(table, token_ids, num_computed)
        assert tables.pool.num_used == len(table.blocks) <= tables.blocks_for(10_000)


@pytest.mark.parametrize(
    ("num_tokens", "num_reused", "blocks"),
    [(21, 20, [3, 4]), (20, 19, [3, 4]), (17, 16, [2, 3]), (15, 0, [])],
)
def test_a_windowed_prompt_needs_only_its_window_remembered(
    num_tokens: int, num_reused: int, blocks: list[int]
) -> None:
    tables = remembering([*range(20)], window_tokens=8)
    # Blocks 0 and 1 left the window first, so they are the first that are forgotten.
    taken = [tables.pool.allocate() for _ in range(97)]
    assert taken[-2:] == [0, 1]
    table = BlockTable()

    assert tables.reuse(table, [*range(num_tokens)]) == num_reused
    assert table.blocks == blocks
    assert table.first == (blocks[0] if blocks else 0)


def world(
    rng: random.Random, tables: BlockTables, memory: BlockMemory, num_steps: int
) -> tuple[int, int]:
    """Play a scheduler that does what it likes; give how many blocks were reused and copied."""
    running: list[tuple[BlockTable, list[int], int]] = []
    num_reused = num_copied = 0
    for _ in range(num_steps):
        if rng.random() < 0.5 and len(running) < 5:
            table = BlockTable(rng.choice(["", "", "other"]))
            # Few prompts, so that many are equal; most are of whole blocks of any size up to 5.
            token_ids = [rng.randrange(2)] * rng.choice([4, 12, 20, 60, rng.randrange(1, 22)])
            needed = tables.blocks_for(len(token_ids))
            if needed <= tables.pool.num_free:
                num_computed = tables.reuse(table, token_ids)
                num_reused += num_computed
                running.append((table, token_ids, num_computed))
        rng.shuffle(running)
        copies: list[Copy] = []
        chunks: list[tuple[BlockTable, list[int], range]] = []
        waiting = []
        for table, token_ids, num_computed in running:
            fate = rng.random()
            num_fitting = tables.num_fitting(table, num_computed)
            if fate < 0.1:  # preempted or cancelled, also while others of the step have grown
                tables.release(table)
            elif fate < 0.2 or num_fitting == 0:
                waiting.append((table, token_ids, num_computed))
            else:
                num_new = min(rng.randrange(1, 12), num_fitting)
                missing = len(token_ids), num_computed + num_new
                token_ids = token_ids + [rng.randrange(2) for _ in range(*missing)]
                assert tables.num_missing(table, num_computed, num_new) <= tables.pool.num_free
                copies += tables.grow(table, num_computed, num_new)
                chunks.append((table, token_ids, range(num_computed, num_computed + num_new)))
        num_copied += len(copies)
        memory.copy(copies)
        running = waiting
        if rng.random() < 0.15:  # the step fails
            for table, _, positions in chunks:
                memory.spoil(table, positions)
                tables.release(table)
            continue
        for table, token_ids, positions in chunks:
            memory.write(table, token_ids, positions)
        for table, token_ids, positions in chunks:
            memory.check(table, token_ids, positions)
            tables.commit(table, token_ids, positions.stop)
            running.append((table, token_ids, positions.stop))
        held = {block for table, _, _ in running for block in table.blocks}
        assert tables.pool.num_used == len(held)
    for table, _, _ in running:
        tables.release(table)
    return num_reused, num_copied


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_blocks=st.integers(3, 40),
    block_tokens=st.integers(1, 5),
    window_tokens=st.none() | st.integers(1, 12),
)
def test_every_position_reads_what_was_written_for_it(
    seed: int, num_blocks: int, block_tokens: int, window_tokens: int | None
) -> None:
    tables = BlockTables(num_blocks, block_tokens, window_tokens)

    world(random.Random(seed), tables, BlockMemory(block_tokens, window_tokens), num_steps=40)

    assert tables.pool.num_used == 0


@pytest.mark.parametrize("window_tokens", [None, 9])
def test_the_test_above_reuses_and_copies(window_tokens: int | None) -> None:
    tables = BlockTables(30, BLOCK_TOKENS, window_tokens)
    memory = BlockMemory(BLOCK_TOKENS, window_tokens)

    num_reused, num_copied = world(random.Random(0), tables, memory, num_steps=1_500)

    assert num_reused > 100
    assert num_copied > 10
