"""Every query sees exactly the keys that causality and the window let it see."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.attention_plan import (
    MAX_BUNDLED_TOKENS,
    MIN_BUNDLED,
    AttentionPlan,
    ByChunk,
    ByToken,
    Queries,
    QueryGroup,
    Span,
)
from model.cache import MIN_RUN_TOKENS, BlockList, Slots
from tests.running import CPU

BLOCK_TOKENS = 4
# Positions 0 to 11 lie in the slots 20 to 23, 4 to 7 and 12 to 15.
SCATTERED = BlockList([5, 1, 3], 0, BLOCK_TOKENS, CPU)
# Positions 0 to 9 lie in the slots 0 to 9.
IN_ORDER = BlockList([0, 1, 2], 0, BLOCK_TOKENS, CPU)


def as_list(slots: Slots) -> list[int]:
    return [*range(slots.start, slots.stop)] if isinstance(slots, slice) else slots.tolist()


def visible(slots: list[int], mask_P: Tensor) -> list[int]:
    """Slots that a row of a mask lets through; the mask holds nothing but 0 and -inf."""
    assert mask_P.dtype == torch.float32
    values = mask_P.tolist()
    assert {*values} <= {0.0, -torch.inf}
    return [slot for slot, value in zip(slots, values, strict=True) if value == 0]


def seen_through(span: Span, group: QueryGroup) -> list[list[int]]:
    """For each query of the group, the slots that it sees in one span."""
    slots, num_queries = as_list(span.slots), group.end - group.first
    if span.is_causal:
        assert span.mask_CP is None
        assert len(slots) == num_queries
        return [slots[: query + 1] for query in range(num_queries)]
    if span.mask_CP is None:
        return [slots] * num_queries
    assert len(span.mask_CP) == num_queries
    return [visible(slots, mask_P) for mask_P in span.mask_CP]


def seen(plan: AttentionPlan) -> dict[int, Counter[int]]:
    """For each row of the step, how often it sees each slot; a row is in one place only."""
    found: dict[int, Counter[int]] = {}
    for group in plan.groups:
        rows = range(group.first, group.end)
        assert found.keys().isdisjoint(rows)
        found |= {row: Counter() for row in rows}
        for span in group.spans:
            for row, slots in zip(rows, seen_through(span, group), strict=True):
                found[row].update(slots)
    if plan.bundle is not None:
        for row, slots_P, mask_P in zip(
            plan.bundle.rows_B.tolist(), plan.bundle.slots_BP, plan.bundle.mask_BP, strict=True
        ):
            assert row not in found
            found[row] = Counter(visible(slots_P.tolist(), mask_P))
    return found


def wanted(step: list[Queries], window_tokens: int | None) -> dict[int, Counter[int]]:
    """Each row sees itself and, of its own sequence, the window before it: each key once."""
    found = {}
    for queries in step:
        for row, position in enumerate(queries.positions, start=queries.first_row):
            first = 0 if window_tokens is None else max(0, position - window_tokens + 1)
            table = queries.table
            found[row] = Counter(
                table.blocks[(key - table.first) // table.size] * table.size + key % table.size
                for key in range(first, position + 1)
            )
    return found


def span_slots(plan: AttentionPlan) -> list[list[int]]:
    """The slots of each span of a plan's only group."""
    [group] = plan.groups
    return [as_list(span.slots) for span in group.spans]


def decode_at(position: int, row: int = 0, table: BlockList = SCATTERED) -> Queries:
    return Queries(table, range(position, position + 1), row)


@pytest.mark.parametrize(
    ("positions", "slots", "is_causal"),
    [
        (range(3), [[0, 1, 2]], [True]),
        (range(1, 3), [[0], [1, 2]], [False, True]),
        (range(8, 9), [[5, 6, 7, 8]], [False]),
        (range(6, 9), [[3, 4, 5, 6, 7, 8]], [False]),
    ],
    ids=["0 to 2", "1 and 2", "8 alone", "6 to 8"],
)
def test_the_worked_example_of_the_docstring(
    positions: range, slots: list[list[int]], is_causal: list[bool]
) -> None:
    plan = ByChunk(4, CPU).plan([Queries(IN_ORDER, positions, 0)])

    assert span_slots(plan) == slots
    assert [span.is_causal for span in plan.groups[0].spans] == is_causal
    is_masked = [span.mask_CP is not None for span in plan.groups[0].spans]
    assert is_masked == [positions == range(6, 9)] * len(slots)


def test_the_mask_of_the_worked_example() -> None:
    plan = ByChunk(4, CPU).plan([Queries(IN_ORDER, range(6, 9), 0)])

    mask_CP = plan.groups[0].spans[0].mask_CP
    assert mask_CP is not None
    assert (mask_CP == 0).int().tolist() == [
        [1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1],
    ]


def test_keys_of_scattered_blocks_are_found() -> None:
    plan = ByChunk(None, CPU).plan([Queries(SCATTERED, range(6, 10), 0)])

    assert span_slots(plan) == [[20, 21, 22, 23, 4, 5], [6, 7, 12, 13]]


def test_a_chunk_that_ends_with_the_window_needs_no_mask() -> None:
    spans = ByChunk(8, CPU).plan([Queries(SCATTERED, range(5, 8), 0)]).groups[0].spans

    assert [span.mask_CP for span in spans] == [None, None]


def test_long_runs_are_spans_of_their_own() -> None:
    table = BlockList([0, 3, 7, 5], 0, MIN_RUN_TOKENS, CPU)
    plan = ByChunk(None, CPU).plan([decode_at(4 * MIN_RUN_TOKENS - 1, table=table)])

    assert [span.slots for span in plan.groups[0].spans] == [
        slice(block * MIN_RUN_TOKENS, (block + 1) * MIN_RUN_TOKENS) for block in (0, 3, 7, 5)
    ]


def test_short_sequences_that_decode_are_bundled_and_padded() -> None:
    step = [decode_at(1, row=0), decode_at(4, row=1), decode_at(0, row=2)]

    plan = ByChunk(None, CPU).plan(step)

    assert plan.groups == ()
    assert plan.bundle is not None
    assert plan.bundle.rows_B.tolist() == [0, 1, 2]
    assert plan.bundle.slots_BP.tolist() == [
        [20, 21, 20, 20, 20],
        [20, 21, 22, 23, 4],
        [20, 20, 20, 20, 20],
    ]
    assert (plan.bundle.mask_BP == 0).int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0],
    ]


def test_chunks_and_long_sequences_stay_out_of_the_bundle() -> None:
    long = BlockList([9], 0, 1_000, CPU)
    step = [
        Queries(SCATTERED, range(2), 0),
        decode_at(3, row=2),
        decode_at(MAX_BUNDLED_TOKENS, row=3, table=long),
        decode_at(5, row=4),
        decode_at(MAX_BUNDLED_TOKENS - 1, row=5, table=long),
    ]

    plan = ByChunk(None, CPU).plan(step)

    assert [(group.first, group.end) for group in plan.groups] == [(0, 2), (3, 4)]
    assert plan.bundle is not None
    assert plan.bundle.rows_B.tolist() == [2, 4, 5]


def test_a_window_makes_a_long_sequence_short_enough_for_the_bundle() -> None:
    long = BlockList([9], 0, 10_000, CPU)
    step = [decode_at(9_000 + row, row, long) for row in range(3)]

    plan = ByChunk(MAX_BUNDLED_TOKENS, CPU).plan(step)

    assert plan.groups == ()


def test_too_few_for_a_bundle_are_groups() -> None:
    step = [decode_at(3, row) for row in range(MIN_BUNDLED - 1)]

    plan = ByChunk(None, CPU).plan(step)

    assert plan.bundle is None
    assert [(group.first, group.end) for group in plan.groups] == [(0, 1), (1, 2)]


def test_by_token_each_row_is_a_group_with_one_span_in_the_order_of_positions() -> None:
    plan = ByToken(4).plan([Queries(SCATTERED, range(2, 5), 0), decode_at(0, row=3)])

    assert [(group.first, group.end) for group in plan.groups] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [[as_list(span.slots) for span in group.spans] for group in plan.groups] == [
        [[20, 21, 22]],
        [[20, 21, 22, 23]],
        [[21, 22, 23, 4]],
        [[20]],
    ]
    assert all(
        span == Span(span.slots, is_causal=False, mask_CP=None)
        for group in plan.groups
        for span in group.spans
    )


@st.composite
def steps(draw: st.DrawFn, window_tokens: int | None) -> list[Queries]:
    """Chunks of several sequences, whose blocks are anywhere and nobody else's."""
    size = draw(st.sampled_from([1, 3, 8, 64, 300]))
    lengths = draw(
        st.lists(
            st.tuples(st.integers(0, 700) | st.integers(0, 40), st.just(1) | st.integers(1, 70)),
            min_size=1,
            max_size=6,
        )
    )
    num_blocks = [-(-(past + num_new) // size) for past, num_new in lengths]
    is_scattered = draw(st.booleans())
    free = [*range(sum(num_blocks) + 3)]
    if is_scattered:
        draw(st.randoms(use_true_random=False)).shuffle(free)
    step: list[Queries] = []
    row = 0
    for (past, num_new), num_own in zip(lengths, num_blocks, strict=True):
        blocks = [free.pop() if is_scattered else free.pop(0) for _ in range(num_own)]
        # Blocks that no token of the chunk sees may have been given back.
        first_seen = 0 if window_tokens is None else max(0, past - window_tokens + 1)
        first = draw(st.integers(0, first_seen // size))
        table = BlockList(blocks[first:], first * size, size, CPU)
        step.append(Queries(table, range(past, past + num_new), row))
        row += num_new
    return step


windows = st.none() | st.integers(1, 600) | st.integers(1, 12)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), window_tokens=windows)
def test_by_chunk_every_query_sees_itself_and_the_window_before_it_once(
    data: st.DataObject, window_tokens: int | None
) -> None:
    step = data.draw(steps(window_tokens))

    plan = ByChunk(window_tokens, CPU).plan(step)

    assert seen(plan) == wanted(step, window_tokens)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), window_tokens=windows)
def test_by_token_every_query_sees_itself_and_the_window_before_it_once(
    data: st.DataObject, window_tokens: int | None
) -> None:
    step = data.draw(steps(window_tokens))

    plan = ByToken(window_tokens).plan(step)

    assert seen(plan) == wanted(step, window_tokens)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), window_tokens=windows)
def test_masks_are_only_where_a_window_cuts_through_a_group(
    data: st.DataObject, window_tokens: int | None
) -> None:
    step = data.draw(steps(window_tokens))

    for queries in step:
        [group] = ByChunk(window_tokens, CPU).plan([queries]).groups

        cuts = window_tokens is not None and queries.positions.stop > window_tokens
        is_masked = any(span.mask_CP is not None for span in group.spans)
        assert is_masked == (cuts and len(queries.positions) > 1)


@settings(max_examples=100, deadline=None)
@given(
    num_tokens=st.integers(1, 120),
    cuts=st.lists(st.integers(1, 119), max_size=8),
    window_tokens=st.none() | st.integers(1, 40),
)
def test_what_a_query_sees_does_not_depend_on_how_the_prompt_was_cut(
    num_tokens: int, cuts: list[int], window_tokens: int | None
) -> None:
    table = BlockList([*range(40, 10, -1)], 0, BLOCK_TOKENS, CPU)
    ends = sorted({*(cut for cut in cuts if cut < num_tokens), num_tokens})
    whole = seen(ByChunk(window_tokens, CPU).plan([Queries(table, range(num_tokens), 0)]))

    pieces: dict[int, Counter[int]] = {}
    for first, end in pairwise([0, *ends]):
        pieces |= seen(ByChunk(window_tokens, CPU).plan([Queries(table, range(first, end), first)]))

    assert pieces == whole
