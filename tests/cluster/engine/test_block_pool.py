"""Blocks are conserved, kept by content, and taken where there is room to grow."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.engine.block_pool import ROOM_BLOCKS, BlockPool


def remembering(num_blocks: int, *keys: bytes) -> BlockPool:
    """A pool that remembers these keys in its first blocks, released in their order."""
    pool = BlockPool(num_blocks)
    blocks: list[int] = []
    for key in keys:
        blocks.append(pool.allocate(blocks[-1] if blocks else None))
        pool.remember(blocks[-1], key)
    for block in blocks:
        pool.release([block])
    return pool


def test_a_sequence_grows_into_the_neighbouring_block() -> None:
    pool = BlockPool(100)
    first = pool.allocate()

    second = pool.allocate(after=first)

    assert (first, second) == (0, 1)


def test_a_sequence_that_starts_elsewhere_leaves_room_to_grow_to_both() -> None:
    pool = BlockPool(100)
    early, late = [pool.allocate()], [pool.allocate()]

    for _ in range(ROOM_BLOCKS - 1):
        early.append(pool.allocate(after=early[-1]))
        late.append(pool.allocate(after=late[-1]))

    assert early == [*range(early[0], early[0] + ROOM_BLOCKS)]
    assert late == [*range(late[0], late[0] + ROOM_BLOCKS)]


def test_gaps_are_used_when_there_is_no_room_left() -> None:
    pool = BlockPool(ROOM_BLOCKS + 1)
    blocks = [pool.allocate(after=block - 1 if block else None) for block in range(ROOM_BLOCKS)]
    pool.release(blocks[3:4])

    assert pool.allocate() == 3


def test_the_last_block_has_no_neighbour() -> None:
    pool = BlockPool(2)
    pool.release([pool.allocate()])
    assert pool.allocate(after=0) == 1

    assert pool.allocate(after=1) == 0


def test_remembered_blocks_are_free_and_taken_last() -> None:
    pool = remembering(3, b"a")

    assert (pool.num_used, pool.num_free) == (0, 3)
    assert [pool.allocate() for _ in range(2)] == [1, 2]
    assert pool.find(b"a") == 0


def test_the_block_unused_for_longest_is_forgotten_first() -> None:
    pool = remembering(2, b"a", b"b")
    pool.share(0)
    pool.release([0])

    assert pool.allocate() == 1
    assert (pool.find(b"a"), pool.find(b"b")) == (0, None)


def test_a_remembered_block_comes_back_with_its_content() -> None:
    pool = remembering(2, b"a")

    pool.share(0)

    assert (pool.find(b"a"), pool.num_used, pool.is_shared(0)) == (0, 1, False)


def test_a_block_is_free_only_when_its_last_reader_has_gone() -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    pool.share(block)

    pool.release([block])
    assert (pool.num_used, pool.is_shared(block)) == (1, False)

    pool.release([block])
    assert pool.num_used == 0


def test_of_two_blocks_with_equal_content_the_first_is_found() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()

    pool.remember(first, b"a")
    pool.remember(second, b"a")
    pool.release([first, second])

    assert pool.find(b"a") == first
    assert pool.allocate() == second


def test_a_block_that_is_to_be_written_is_found_no_more() -> None:
    pool = remembering(1, b"a")
    pool.share(0)

    pool.own(0)

    assert pool.find(b"a") is None


@pytest.mark.parametrize("misuse", ["allocate", "release", "share", "own"])
def test_mistakes_of_ours_are_found(misuse: str) -> None:
    pool = BlockPool(1)
    block = pool.allocate()
    if misuse == "own":
        pool.share(block)
    elif misuse != "allocate":
        pool.release([block])

    with pytest.raises(AssertionError):
        if misuse == "allocate":
            pool.allocate()
        elif misuse == "release":
            pool.release([block])
        else:
            getattr(pool, misuse)(block)


def test_its_state_can_be_read() -> None:
    pool = remembering(5, b"a")
    pool.allocate()

    assert repr(pool) == "BlockPool(blocks=5, used=1, remembered=1)"


class PoolMachine(RuleBasedStateMachine):
    """Any sequence of calls, against references and contents kept on paper."""

    @initialize(num_blocks=st.integers(1, 40))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.references: dict[int, int] = {}
        self.contents: dict[int, bytes] = {}

    def any_used(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.references)))

    @precondition(lambda self: self.pool.num_free)
    @rule(after=st.none() | st.integers(0, 39))
    def allocate(self, after: int | None) -> None:
        block = self.pool.allocate(after)
        assert block not in self.references
        self.references[block] = 1
        self.contents.pop(block, None)

    @precondition(lambda self: self.references)
    @rule(data=st.data(), key=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def remember(self, data: st.DataObject, key: bytes) -> None:
        block = self.any_used(data)
        is_news = block not in self.contents and key not in self.contents.values()
        self.pool.remember(block, key)
        if is_news:
            self.contents[block] = key

    @precondition(lambda self: self.references or self.contents)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted({*self.references, *self.contents})))
        self.pool.share(block)
        self.references[block] = self.references.get(block, 0) + 1

    @precondition(lambda self: self.references)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = self.any_used(data)
        self.pool.release([block])
        self.references[block] -= 1
        if not self.references[block]:
            del self.references[block]

    @precondition(lambda self: 1 in self.references.values())
    @rule(data=st.data())
    def own(self, data: st.DataObject) -> None:
        alone = sorted(block for block, number in self.references.items() if number == 1)
        block = data.draw(st.sampled_from(alone))
        self.pool.own(block)
        self.contents.pop(block, None)

    @invariant()
    def blocks_are_conserved(self) -> None:
        assert self.pool.num_used == len(self.references)
        assert self.pool.num_used + self.pool.num_free == self.pool.num_blocks
        for block, number in self.references.items():
            assert self.pool.is_shared(block) == (number > 1)

    @invariant()
    def a_key_names_the_block_with_its_content(self) -> None:
        block_of = {key: block for block, key in self.contents.items()}
        for key in (b"a", b"b", b"c", b"d"):
            assert self.pool.find(key) == block_of.get(key)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
