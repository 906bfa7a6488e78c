"""Which part of a stored tensor is one of ours, and how to view it.

Layouts store experts one by one, stacked, or with two matrices fused, and rotate queries and keys
in two conventions. All of that is undone here, without a copy wherever a view can express it.
"""

from dataclasses import dataclass
from enum import Enum, auto

from torch import Tensor

from model.config import ModelConfig

# Letters: E experts, F rows of w1, D model dimension.

Shape = tuple[int, ...]


class Part(Enum):
    """How a stored tensor holds one of ours."""

    WHOLE = auto()
    INTERLEAVED = auto()  # query or key rows, rotary pairs (2i, 2i + 1) side by side
    OF_STACK = auto()  # (E, ...), ours is one expert's
    GATE_OF_STACK = auto()  # (E, 2F, D), ours is the first half: w1
    UP_OF_STACK = auto()  # (E, 2F, D), ours is the second half: w3
    OF_ROWS = auto()  # (E * F, D), ours is one expert's rows
    OF_ROWS_TRANSPOSED = auto()  # (E * F, D), ours is (D, F)


@dataclass(frozen=True, slots=True)
class Source:
    """A stored tensor's name and shape, and the part of it that is ours."""

    stored: str
    shape: Shape
    part: Part
    expert: int

    def view(self, stored: Tensor, config: ModelConfig) -> Tensor:
        """Give our tensor, contiguous; only INTERLEAVED and OF_ROWS_TRANSPOSED copy."""
        match self.part:
            case Part.WHOLE:
                return stored
            case Part.INTERLEAVED:
                return half_split(stored, config.head_dim)
            case Part.OF_STACK:
                return stored[self.expert]
            case Part.GATE_OF_STACK:
                return stored[self.expert, : config.hidden_dim]
            case Part.UP_OF_STACK:
                return stored[self.expert, config.hidden_dim :]
            case Part.OF_ROWS:
                return stored.view(config.num_experts, config.hidden_dim, -1)[self.expert]
            case Part.OF_ROWS_TRANSPOSED:
                rows = stored.view(config.num_experts, config.hidden_dim, -1)
                return rows[self.expert].T.contiguous()


def stored_shape(part: Part, shape: Shape, num_experts: int) -> Shape:
    """Give the shape of the stored tensor that holds ours of `shape` as `part`."""
    match part:
        case Part.OF_STACK:
            return (num_experts, *shape)
        case Part.GATE_OF_STACK | Part.UP_OF_STACK:
            return (num_experts, 2 * shape[0], shape[1])
        case Part.OF_ROWS:
            return (num_experts * shape[0], shape[1])
        case Part.OF_ROWS_TRANSPOSED:
            return (num_experts * shape[1], shape[0])
        case Part.WHOLE | Part.INTERLEAVED:
            return shape


def half_split(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder each head's rows so that rotary pairs (2i, 2i + 1) become (i, i + head_dim / 2).

    Rows of a head of 4: 0 1 2 3 become 0 2 1 3. Mistral's own files pair neighbours, ours and
    Hugging Face's pair halves; queries and keys reordered alike have the same dot products.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(rows // head_dim, head_dim // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)
