"""Each sequence's blocks of the KV cache: prefix reuse, growth, copy-on-write, windows.

A block's key is a hash of every token up to its end and of the request's salt, so equal keys mean
equal content, and a tenant with a salt of its own neither finds nor feeds others' blocks. Knows
tokens and block numbers; never sees a tensor.
"""

import hashlib
from array import array
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

from cluster.engine.block_pool import BlockPool

Copy = tuple[int, int]
"""(from, to): copy a block's content before the step writes anything."""


@dataclass(slots=True)
class BlockTable:
    """Where one sequence's keys and values lie.

    Attributes:
        salt: part of every key.
        first: index, in the sequence, of the first block still held; 0 but in windowed models.
        blocks: the blocks from there on; block i holds positions (first + i) * block_tokens on.
        num_remembered: how many of the sequence's blocks the pool was told the keys of.
        keys: of the sequence's full blocks, as far as they were needed; outlive the blocks.
    """

    salt: str = ""
    first: int = 0
    blocks: list[int] = field(default_factory=list)
    num_remembered: int = 0
    keys: list[bytes] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Index past the last block."""
        return self.first + len(self.blocks)


class BlockTables:
    """Hands out the blocks of one pool.

    Args:
        window_tokens: how far back a token sees, None for all the way; blocks that no later token
            sees are given back.
    """

    def __init__(self, num_blocks: int, block_tokens: int, window_tokens: int | None) -> None:
        self.pool = BlockPool(num_blocks)
        self._block_tokens = block_tokens
        self._window_tokens = window_tokens

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that a sequence of so many tokens cannot do without.

        A window of W tokens ends anywhere in a block, so it touches up to W / block_tokens + 1.
        """
        num_blocks = -(-num_tokens // self._block_tokens)
        if self._window_tokens is None:
            return num_blocks
        return min(num_blocks, -(-self._window_tokens // self._block_tokens) + 1)

    def reuse(self, table: BlockTable, token_ids: Ids[int]) -> int:
        """Fill an empty table with what is remembered of `token_ids`; give the tokens it covers.

        The last token is never covered, since its logits are wanted.
        """
        self._extend_keys(table, token_ids)
        found = [self.pool.find(key) for key in table.keys]
        end = self._longest_usable(found)
        table.first = self._first_needed(end)
        table.blocks = [block for block in found[table.first : end] if block is not None]
        for block in table.blocks:
            self.pool.share(block)
        num_tokens = min(end * self._block_tokens, len(token_ids) - 1)
        table.num_remembered = num_tokens // self._block_tokens
        return num_tokens

    def num_missing(self, table: BlockTable, num_computed: int, num_new: int) -> int:
        """Blocks to allocate before `num_new` tokens can be written after `num_computed`."""
        missing = -(-(num_computed + num_new) // self._block_tokens) - table.end
        return max(missing, 0) + self._must_copy(table, num_computed)

    def num_fitting(self, table: BlockTable, num_computed: int) -> int:
        """Most tokens that can be written after `num_computed` with the blocks that are free."""
        num_free = self.pool.num_free - self._must_copy(table, num_computed)
        if num_free < 0:
            return 0
        return (table.end + num_free) * self._block_tokens - num_computed

    def grow(self, table: BlockTable, num_computed: int, num_new: int) -> list[Copy]:
        """Make room for `num_new` tokens; the caller made sure there are blocks enough."""
        copies: list[Copy] = []
        if self._must_copy(table, num_computed):
            shared = table.blocks[-1]
            table.blocks[-1] = self.pool.allocate()
            self.pool.release([shared])
            copies.append((shared, table.blocks[-1]))
        elif self._writes_last(table, num_computed):
            self.pool.own(table.blocks[-1])
        for _ in range(self.num_missing(table, num_computed, num_new)):
            table.blocks.append(self.pool.allocate(table.blocks[-1] if table.blocks else None))
        return copies

    def commit(self, table: BlockTable, token_ids: Ids[int], num_computed: int) -> None:
        """Remember the blocks that are full now; give back those that left the window."""
        num_full = num_computed // self._block_tokens
        if num_full > table.num_remembered:
            self._extend_keys(table, token_ids)
            for index in range(max(table.num_remembered, table.first), num_full):
                self.pool.remember(table.blocks[index - table.first], table.keys[index])
            table.num_remembered = num_full
        num_left = max(self._first_seen(num_computed) - table.first, 0)
        if num_left:
            self.pool.release(table.blocks[:num_left])
            del table.blocks[:num_left]
            table.first += num_left

    def release(self, table: BlockTable) -> None:
        """Give all blocks back; the last first, so that it is forgotten first."""
        self.pool.release(reversed(table.blocks))
        table.first, table.blocks, table.num_remembered = 0, [], 0

    def _writes_last(self, table: BlockTable, num_computed: int) -> bool:
        """Whether the next token goes into the last block of the table."""
        return bool(table.blocks) and num_computed < table.end * self._block_tokens

    def _must_copy(self, table: BlockTable, num_computed: int) -> bool:
        """Whether the next token goes into a block that others read too."""
        return self._writes_last(table, num_computed) and self.pool.is_shared(table.blocks[-1])

    def _longest_usable(self, found: Ids[int | None]) -> int:
        """Blocks of the longest prefix of which all that the next token sees is remembered."""
        longest, run = 0, 0
        for end, block in enumerate(found, start=1):
            run = 0 if block is None else run + 1
            if run >= end - self._first_needed(end):
                longest = end
        return longest

    def _first_needed(self, end: int) -> int:
        """The first block that is seen by the last token of block `end` - 1, or by any later."""
        return self._first_seen(max(end * self._block_tokens - 1, 0))

    def _first_seen(self, position: int) -> int:
        """The first block of which a token at `position`, or after it, sees anything."""
        if self._window_tokens is None:
            return 0
        return max(0, position - self._window_tokens + 1) // self._block_tokens

    def _extend_keys(self, table: BlockTable, token_ids: Ids[int]) -> None:
        for index in range(len(table.keys), len(token_ids) // self._block_tokens):
            ids = token_ids[index * self._block_tokens : (index + 1) * self._block_tokens]
            before = table.keys[-1] if table.keys else _digest(table.salt.encode())
            table.keys.append(_digest(before + array("q", ids).tobytes()))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
