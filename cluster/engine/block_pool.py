"""Which blocks of the KV cache are empty, in use, or remembered for their content.

Pure bookkeeping: a block is a number, its content a key. A block in use has one reference for each
sequence that reads it. When the last one goes, a block whose key is known stays remembered until
its place is needed, the one unused for longest first.
"""

from collections import OrderedDict
from collections.abc import Iterable

# A sequence that starts somewhere new looks for so many empty blocks in a row, to grow into.
ROOM_BLOCKS = 16

_EMPTY, _REMEMBERED, _USED = 0, 1, 2


class BlockPool:
    """Mutable state: each block's state, references and key; the block of each known key."""

    def __init__(self, num_blocks: int) -> None:
        self._states = bytearray(num_blocks)
        self._references = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._block_of_key: dict[bytes, int] = {}
        self._remembered: OrderedDict[int, None] = OrderedDict()
        self._num_used = 0

    def __repr__(self) -> str:
        return (
            f"BlockPool(blocks={len(self._states)}, used={self._num_used}, "
            f"remembered={len(self._remembered)})"
        )

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return len(self._states)

    @property
    def num_used(self) -> int:
        """Blocks that some sequence holds."""
        return self._num_used

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated, those remembered included."""
        return len(self._states) - self._num_used

    def allocate(self, after: int | None = None) -> int:
        """Take a free block, the one next to `after` if it is empty; the caller made sure of one.

        Neighbours are read as one piece, so a sequence that has to start elsewhere starts where
        there is room to grow.
        """
        assert self.num_free, self
        block = self._neighbour(after)
        if block == -1:
            block = self._roomy_start()
        if block == -1:
            block = self._states.find(_EMPTY)
        if block == -1:
            block, _ = self._remembered.popitem(last=False)
        self._use(block)
        self.own(block)
        return block

    def share(self, block: int) -> None:
        """Add a reference to a block that is in use or remembered."""
        if self._states[block] == _REMEMBERED:
            del self._remembered[block]
            self._use(block)
        else:
            assert self._states[block] == _USED, block
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Take back one reference to each block."""
        for block in blocks:
            assert self._references[block] > 0, block
            self._references[block] -= 1
            if self._references[block] == 0:
                self._unuse(block)

    def remember(self, block: int, key: bytes) -> None:
        """Note what a block in use holds, unless another block is known to hold the same."""
        if self._keys[block] is None and key not in self._block_of_key:
            self._keys[block] = key
            self._block_of_key[key] = block

    def find(self, key: bytes) -> int | None:
        """Give the block that is known to hold this content."""
        return self._block_of_key.get(key)

    def is_shared(self, block: int) -> bool:
        """Whether more than one sequence reads a block."""
        return self._references[block] > 1

    def own(self, block: int) -> None:
        """Forget the key of a block in use, since its one holder will write into it."""
        assert self._references[block] == 1, block
        key = self._keys[block]
        if key is not None:
            del self._block_of_key[key]
            self._keys[block] = None

    def _neighbour(self, after: int | None) -> int:
        """The block next to `after` if it is empty, else -1."""
        if after is None or after + 1 >= len(self._states) or self._states[after + 1] != _EMPTY:
            return -1
        return after + 1

    def _roomy_start(self) -> int:
        """An empty block with room to grow, leaving as much to the one before it, else -1."""
        gap = self._states.find(bytes(2 * ROOM_BLOCKS))
        return gap + ROOM_BLOCKS if gap > 0 else gap

    def _use(self, block: int) -> None:
        self._states[block] = _USED
        self._references[block] = 1
        self._num_used += 1

    def _unuse(self, block: int) -> None:
        self._num_used -= 1
        self._states[block] = _EMPTY if self._keys[block] is None else _REMEMBERED
        if self._keys[block] is not None:
            self._remembered[block] = None
