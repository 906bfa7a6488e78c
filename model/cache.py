"""The keys and values of all sequences, in blocks of one pool, and where a sequence's lie.

A slot is one position's place: block b holds slots b * block_tokens on. Blocks that lie side by
side are read as they are, without a copy; only scattered ones are gathered.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from model.config import ModelConfig

# Letters: L layers, N key-value heads, S slots of the pool, H dimensions of a head, T tokens of
# the step, B sequences, P positions.

# A run of this many positions is worth an attention call of its own (15 us at least on 2 CPU
# cores); shorter ones are gathered into one, at about half the cost of attending to them.
MIN_RUN_TOKENS = 256

Slots = slice | Tensor
"""Slots side by side, or any others (int64)."""


@dataclass(frozen=True, slots=True)
class BlockList:
    """The blocks of one sequence: block i of `blocks` holds its positions `first` + i * size on.

    Slots are given on `device`.
    """

    blocks: Sequence[int]
    first: int
    size: int
    device: torch.device

    def slots(self, positions: range) -> list[int]:
        """Give the slot of each of these positions."""
        return list(chain(*(range(*span) for span in self._spans(positions))))

    def runs(self, positions: range) -> list[Slots]:
        """Give all slots of these positions: long runs as slices, the rest as one tensor."""
        spans = self._spans(positions)
        if len(spans) == 1:
            return [slice(*spans[0])]
        long = [span for span in spans if span[1] - span[0] >= MIN_RUN_TOKENS]
        short = [range(*span) for span in spans if span[1] - span[0] < MIN_RUN_TOKENS]
        runs: list[Slots] = [slice(*span) for span in long]
        return [*runs, int64_tensor(chain(*short), self.device)] if short else runs

    def one_run(self, positions: range) -> Slots:
        """Give all slots of these positions, in their order, as one slice if they lie so."""
        spans = self._spans(positions)
        return (
            slice(*spans[0])
            if len(spans) == 1
            else int64_tensor(self.slots(positions), self.device)
        )

    def _spans(self, positions: range) -> list[tuple[int, int]]:
        """Slots side by side, as (first, past the last), in the order of the positions."""
        begin, end = positions.start - self.first, positions.stop - self.first
        spans: list[tuple[int, int]] = []
        for index in range(begin // self.size, -(-end // self.size)):
            slot = self.blocks[index] * self.size
            first = slot + max(begin - index * self.size, 0)
            last = slot + min(end - index * self.size, self.size)
            if spans and spans[-1][1] == first:
                first = spans.pop()[0]
            spans.append((first, last))
        return spans


class PagedCache:
    """Keys and values of `num_blocks` blocks; memory is taken when a block is first written.

    Attributes:
        block_tokens: positions of one block.
        device: where keys and values lie.
        probe_block: one more block that no sequence is given.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_tokens = block_tokens
        self.device = device
        self.probe_block = num_blocks
        num_slots = (num_blocks + 1) * block_tokens
        shape = (config.num_layers, config.num_kv_heads, num_slots, config.head_dim)
        self._keys_LNSH = torch.empty(shape, dtype=dtype, device=device)
        self._values_LNSH = torch.empty(shape, dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values together, once all of it is in use."""
        return self._keys_LNSH.nbytes + self._values_LNSH.nbytes

    def table(self, blocks: Sequence[int], first_block: int) -> BlockList:
        """Describe a sequence's blocks, of which the first is block `first_block` of it."""
        first = first_block * self.block_tokens
        return BlockList(blocks, first, self.block_tokens, self.device)

    def copy(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Copy blocks, (from, to), in every layer."""
        for source, target in pairs:
            for cache_LNSH in (self._keys_LNSH, self._values_LNSH):
                cache_LNSH[:, :, self._block(target)] = cache_LNSH[:, :, self._block(source)]

    def write(self, layer: int, slots_T: Tensor, keys_TNH: Tensor, values_TNH: Tensor) -> None:
        """Store the step's keys and values."""
        self._keys_LNSH[layer].index_copy_(1, slots_T, keys_TNH.transpose(0, 1))
        self._values_LNSH[layer].index_copy_(1, slots_T, values_TNH.transpose(0, 1))

    def gather(self, layer: int, slots_BP: Tensor) -> tuple[Tensor, Tensor]:
        """Give copies of keys and values of several sequences, (B, N, P, H)."""
        keys_NSH, values_NSH = self._keys_LNSH[layer], self._values_LNSH[layer]
        slots, shape = slots_BP.flatten(), (len(keys_NSH), *slots_BP.shape, -1)
        return (
            keys_NSH.index_select(1, slots).view(shape).transpose(0, 1),
            values_NSH.index_select(1, slots).view(shape).transpose(0, 1),
        )

    def read(self, layer: int, slots: Slots) -> tuple[Tensor, Tensor]:
        """Give keys and values of some slots, (N, slots, H): views for a slice, else copies."""
        keys_NSH, values_NSH = self._keys_LNSH[layer], self._values_LNSH[layer]
        if isinstance(slots, slice):
            return keys_NSH[:, slots], values_NSH[:, slots]
        return keys_NSH.index_select(1, slots), values_NSH.index_select(1, slots)

    def _block(self, block: int) -> slice:
        return slice(block * self.block_tokens, (block + 1) * self.block_tokens)


def int64_tensor(values: Iterable[int], device: torch.device) -> Tensor:
    """Give whole numbers as a tensor; many times faster than `torch.tensor` for long lists."""
    return torch.frombuffer(array("q", values), dtype=torch.int64).to(device)
