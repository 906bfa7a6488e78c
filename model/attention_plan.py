"""Which keys the tokens of a step attend to, decided once and used in every layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.cache import BlockList, Slots, int64_tensor

# Letters: T tokens of the step, C tokens of a group, P keys of a span, B sequences of a bundle.

# An attention call costs 25 us with all around it (2 CPU cores), gathering 256 keys of 1 KB 20 us.
MAX_BUNDLED_TOKENS = 256
MIN_BUNDLED = 3


@dataclass(frozen=True, slots=True)
class Span:
    """Keys that a group of queries attends to.

    Attributes:
        is_causal: the keys are the group's own, and a query sees itself and those before it.
        mask_CP: 0 where a query sees a key and -inf where not, float32; None where it sees all.
    """

    slots: Slots
    is_causal: bool = False
    mask_CP: Tensor | None = None


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """Rows `first` to `end` of T, of one sequence, and all the keys that they see."""

    first: int
    end: int
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Bundle:
    """One query each of several sequences with few keys, which are gathered and padded.

    Attributes:
        rows_B: int64, of T.
        slots_BP: int64; the slots of absent keys may be anybody's.
        mask_BP: 0 where a key is the sequence's own, -inf where it is absent, float32.
    """

    rows_B: Tensor
    slots_BP: Tensor
    mask_BP: Tensor


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Every row of the step in one group or in the bundle."""

    groups: tuple[QueryGroup, ...]
    bundle: Bundle | None = None


@dataclass(frozen=True, slots=True)
class Queries:
    """What is to be planned for: tokens of one sequence, in rows from `first_row` on."""

    table: BlockList
    positions: range
    first_row: int


class AttentionPlanner(Protocol):
    """A way to part a step into groups."""

    def plan(self, step: Sequence[Queries]) -> AttentionPlan:
        """Plan for all of a step's sequences."""


@dataclass(frozen=True, slots=True)
class ByChunk:
    """The fast way: a sequence's tokens are one group, and short ones that decode are bundled.

    Masks only where a window cuts through a group. Positions 0 to 9 in a window of 4 tokens:

        a chunk of 0 to 2        itself, causal
        a chunk of 1 and 2       0, whole; itself, causal
        a chunk of 8 alone       5 to 8, whole
        a chunk of 6 to 8        3 to 8, masked to 4 each
    """

    window_tokens: int | None
    device: torch.device

    def plan(self, step: Sequence[Queries]) -> AttentionPlan:
        short = [queries for queries in step if self._is_short(queries)]
        if len(short) < MIN_BUNDLED:
            return AttentionPlan(tuple(self._group(queries) for queries in step))
        groups = tuple(self._group(queries) for queries in step if not self._is_short(queries))
        return AttentionPlan(groups, self._bundle(short))

    def _is_short(self, queries: Queries) -> bool:
        return len(queries.positions) == 1 and len(self._past(queries)) < MAX_BUNDLED_TOKENS

    def _past(self, queries: Queries) -> range:
        start = queries.positions.start
        return range(_first_seen(start, self.window_tokens), start)

    def _bundle(self, step: Sequence[Queries]) -> Bundle:
        slots = [
            queries.table.slots(range(self._past(queries).start, queries.positions.stop))
            for queries in step
        ]
        longest = max(map(len, slots))
        padded = [slot for own in slots for slot in (*own, *(own[:1] * (longest - len(own))))]
        num_keys_B = int64_tensor(map(len, slots), self.device)
        is_absent_BP = torch.arange(longest, device=self.device) >= num_keys_B.unsqueeze(1)
        return Bundle(
            int64_tensor((queries.first_row for queries in step), self.device),
            int64_tensor(padded, self.device).view(len(slots), longest),
            _additive(is_absent_BP),
        )

    def _group(self, queries: Queries) -> QueryGroup:
        end_row = queries.first_row + len(queries.positions)
        return QueryGroup(queries.first_row, end_row, self._spans(queries))

    def _spans(self, queries: Queries) -> tuple[Span, ...]:
        table, own, past = queries.table, queries.positions, self._past(queries)
        if len(own) == 1:
            return _whole(table, range(past.start, own.stop))
        if self.window_tokens is not None and own.stop > self.window_tokens:
            seen = range(past.start, own.stop)
            return (Span(table.one_run(seen), mask_CP=self._mask(own, seen, self.window_tokens)),)
        return (*_whole(table, past), Span(table.one_run(own), is_causal=True))

    def _mask(self, own: range, seen: range, window_tokens: int) -> Tensor:
        queries_C1 = torch.arange(own.start, own.stop, device=self.device).unsqueeze(1)
        age_CP = queries_C1 - torch.arange(seen.start, seen.stop, device=self.device)
        return _additive((age_CP < 0) | (age_CP >= window_tokens))


@dataclass(frozen=True, slots=True)
class ByToken:
    """The deterministic way: each token alone over one span of all that it sees.

    What is computed for a token, down to the shapes, depends on its position alone, so neither
    the size of chunks nor the place of blocks changes a bit of it.
    """

    window_tokens: int | None

    def plan(self, step: Sequence[Queries]) -> AttentionPlan:
        return AttentionPlan(
            tuple(
                QueryGroup(row, row + 1, (self._span(queries.table, position),))
                for queries in step
                for row, position in enumerate(queries.positions, start=queries.first_row)
            )
        )

    def _span(self, table: BlockList, position: int) -> Span:
        first = _first_seen(position, self.window_tokens)
        return Span(table.one_run(range(first, position + 1)))


def _first_seen(position: int, window_tokens: int | None) -> int:
    return 0 if window_tokens is None else max(0, position - window_tokens + 1)


def _whole(table: BlockList, positions: range) -> tuple[Span, ...]:
    return tuple(Span(slots) for slots in table.runs(positions)) if positions else ()


def _additive(is_hidden: Tensor) -> Tensor:
    """A mask to add to scores: -inf where hidden."""
    return torch.zeros(is_hidden.shape, device=is_hidden.device).masked_fill_(is_hidden, -torch.inf)
