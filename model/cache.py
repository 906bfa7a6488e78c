"""The keys and values of one sequence: whole, or a rolling buffer for windowed models.

In a rolling buffer of W slots position i lies in slot i mod W, so the cache never grows past W
(Jiang et al. 2023, "Mistral 7B", section 2). A chunk may be longer than W: its queries see what
the buffer held before it together with the chunk itself, and the chunk's last W are kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import ModelConfig

# Letters: L layers, S cache slots, C tokens of the chunk, P = past plus chunk, N heads, H head dim.


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """What one chunk reads and writes; the same in every layer.

    A buffer of 4 slots that holds positions 2 to 5 takes a chunk of two, positions 6 and 7:

        slots                4  5  2  3      (slot = position mod 4)
        past_slots           [2, 3, 0, 1]    positions 2, 3, 4, 5
        new_slots            [2, 3]          positions 6, 7 overwrite 2, 3
        mask, query 6        0 1 1 1 1 0     keys 2 3 4 5 6 7, a window of 4
        mask, query 7        0 0 1 1 1 1

    Attributes:
        end: positions written once the chunk is in.
        past_slots: slots read before the chunk is written, oldest first; None while nothing has
            been overwritten, when past and chunk lie side by side in the buffer.
        new_slots: slots that take the chunk's last tokens.
        mask_CP: True where a query of the chunk may see a key of past plus chunk; None where it
            may see all of them.
    """

    end: int
    past_slots: Tensor | None
    new_slots: Tensor
    mask_CP: Tensor | None


class KVCache:
    """Keys and values of one sequence.

    Attributes:
        num_tokens: positions written so far.
    """

    def __init__(
        self, config: ModelConfig, max_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_tokens = 0
        self._num_slots = cache_slots(config, max_tokens)
        self._window_tokens = config.window_tokens or max_tokens
        shape = (config.num_layers, self._num_slots, config.num_kv_heads, config.head_dim)
        self._keys_LSNH = torch.empty(shape, dtype=dtype, device=device)
        self._values_LSNH = torch.empty(shape, dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values together."""
        return self._keys_LSNH.nbytes + self._values_LSNH.nbytes

    def plan(self, num_new: int) -> ChunkPlan:
        """Plan for the next `num_new` tokens."""
        end = self.num_tokens + num_new
        past = min(self.num_tokens, self._num_slots)
        has_wrapped = end > self._num_slots
        return ChunkPlan(
            end,
            self._slots(self.num_tokens - past, self.num_tokens) if has_wrapped else None,
            self._slots(end - min(num_new, self._num_slots), end),
            self._mask(past, num_new),
        )

    def extend(
        self, layer: int, plan: ChunkPlan, keys_CNH: Tensor, values_CNH: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write a chunk into `layer` and return the (P, N, H) keys and values its queries see."""
        return (
            _extend(self._keys_LSNH[layer], plan, keys_CNH),
            _extend(self._values_LSNH[layer], plan, values_CNH),
        )

    def advance(self, num_new: int) -> None:
        """Count a chunk as written, after the last layer."""
        self.num_tokens += num_new

    def _slots(self, first: int, end: int) -> Tensor:
        return torch.arange(first, end, device=self._keys_LSNH.device) % self._num_slots

    def _mask(self, past: int, num_new: int) -> Tensor | None:
        """A query sees keys that are not after it and less than a window before it."""
        if num_new == 1 and past < self._window_tokens:
            return None
        device = self._keys_LSNH.device
        queries_C1 = torch.arange(past, past + num_new, device=device).unsqueeze(1)
        age_CP = queries_C1 - torch.arange(past + num_new, device=device)
        return (age_CP >= 0) & (age_CP < self._window_tokens)


def cache_slots(config: ModelConfig, max_tokens: int) -> int:
    """Slots that a sequence of at most `max_tokens` needs."""
    return min(max_tokens, config.window_tokens or max_tokens)


def _extend(buffer_SNH: Tensor, plan: ChunkPlan, chunk_CNH: Tensor) -> Tensor:
    kept_CNH = chunk_CNH[-len(plan.new_slots) :]
    if plan.past_slots is None:
        buffer_SNH[plan.new_slots] = kept_CNH
        return buffer_SNH[: plan.end]
    seen_PNH = torch.cat((buffer_SNH[plan.past_slots], chunk_CNH))
    buffer_SNH[plan.new_slots] = kept_CNH
    return seen_PNH
