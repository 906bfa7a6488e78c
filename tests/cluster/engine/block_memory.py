"""What lies in each block, on paper: finds blocks that were shared, kept or overwritten wrongly."""

from collections.abc import Iterable

from cluster.engine.block_tables import BlockTable, Copy

SPOILT = 0


class BlockMemory:
    """Stands for the keys and values: a slot holds a hash of the salt and of all tokens so far.

    What is computed at a position depends on those tokens and on nothing else, so a sequence that
    reads any other hash than its own would read another's keys.
    """

    def __init__(self, block_tokens: int, window_tokens: int | None) -> None:
        self._block_tokens = block_tokens
        self._window_tokens = window_tokens
        self._slots: dict[tuple[int, int], int] = {}

    def copy(self, copies: Iterable[Copy]) -> None:
        for source, target in copies:
            for offset in range(self._block_tokens):
                self._slots[target, offset] = self._slots.get((source, offset), SPOILT)

    def write(self, table: BlockTable, token_ids: list[int], positions: range) -> None:
        for position in positions:
            self._slots[self._slot(table, position)] = _content(table, token_ids, position)

    def spoil(self, table: BlockTable, positions: range) -> None:
        """Leave rubbish, as a step does that fails after it wrote."""
        for position in positions:
            self._slots[self._slot(table, position)] = SPOILT

    def check(self, table: BlockTable, token_ids: list[int], positions: range) -> None:
        """Read all that the tokens at these positions see."""
        for seen in range(self._first_seen(positions.start), positions.stop):
            slot = self._slot(table, seen)
            assert self._slots[slot] == _content(table, token_ids, seen), (slot, seen, table)

    def _first_seen(self, position: int) -> int:
        return 0 if self._window_tokens is None else max(0, position - self._window_tokens + 1)

    def _slot(self, table: BlockTable, position: int) -> tuple[int, int]:
        index = position // self._block_tokens - table.first
        assert 0 <= index < len(table.blocks), (position, table)
        return table.blocks[index], position % self._block_tokens


def _content(table: BlockTable, token_ids: list[int], position: int) -> int:
    return hash((table.salt, *token_ids[: position + 1]))
