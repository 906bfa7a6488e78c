"""What one forward pass works on: chunks of several sequences, packed without padding."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from model.attention_plan import AttentionPlan, AttentionPlanner, Queries
from model.cache import PagedCache, int64_tensor

# Letters: T tokens of the step, B rows of logits.


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of one sequence: one when it decodes, several when it prefills.

    Attributes:
        start: position of the first of them.
        blocks: the sequence's blocks that hold every position the chunk sees, and its own.
        first_block: which block of the sequence `blocks` starts with.
    """

    token_ids: Sequence[int]
    start: int
    blocks: Sequence[int]
    first_block: int = 0

    @property
    def positions(self) -> range:
        """Where the tokens stand in their sequence."""
        return range(self.start, self.start + len(self.token_ids))


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step of the model.

    Attributes:
        token_ids_T: int64.
        positions_T: int64, each token's position in its own sequence.
        slots_T: int64, where each token's key and value go in the cache.
        attention: which keys each row sees.
        logit_rows_B: rows whose logits are wanted, int64.
    """

    token_ids_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    attention: AttentionPlan
    logit_rows_B: Tensor


def pack(
    chunks: Sequence[Chunk],
    cache: PagedCache,
    planner: AttentionPlanner,
    *,
    all_logits: bool = False,
) -> ForwardBatch:
    """Pack `chunks` into one batch; logits of each chunk's last token, or of all of them."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    step: list[Queries] = []
    for chunk in chunks:
        table = cache.table(chunk.blocks, chunk.first_block)
        step.append(Queries(table, chunk.positions, len(token_ids)))
        token_ids.extend(chunk.token_ids)
        positions.extend(chunk.positions)
        slots.extend(table.slots(chunk.positions))
    last = [queries.first_row + len(queries.positions) - 1 for queries in step]
    rows = list(range(len(token_ids))) if all_logits else last
    token_ids_T, positions_T, slots_T, logit_rows_B = (
        int64_tensor(ints, cache.device) for ints in (token_ids, positions, slots, rows)
    )
    return ForwardBatch(token_ids_T, positions_T, slots_T, planner.plan(step), logit_rows_B)
