"""What the two layouts of a checkpoint folder have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.files import MAX_INDEX_BYTES, read_object
from model.checkpoint.parts import Source
from model.config import ModelConfig
from model.errors import CheckpointError, shorten


@dataclass(frozen=True, slots=True)
class Index:
    """Which file holds which stored tensor, as an index file claims."""

    path: Path
    weight_map: Mapping[str, str]
    total_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where a folder keeps a model, before any weights file was opened.

    Attributes:
        sources: for each of our names, where it may be stored.
        ignored: stored names that are known and not needed.
        says_dtype: whether the configuration states the data type of the weights.
    """

    config: ModelConfig
    shard_names: tuple[str, ...]
    index: Index | None
    sources: Mapping[str, tuple[Source, ...]]
    ignored: frozenset[str]
    says_dtype: bool


def read_index(folder: Path, name: str) -> Index:
    """Read an index file, `model.safetensors.index.json` or its like."""
    path = folder / name
    content = read_object(folder, name, MAX_INDEX_BYTES)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(str(path), "want weight_map, an object of tensor and file names")
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            problem = f"weight_map: tensor {shorten(tensor)} must name a file"
            raise CheckpointError(str(path), problem)
    return Index(path, weight_map, _total_bytes(content, path))


def check_no_other_shards(folder: Path, wanted: set[str], found: set[str]) -> None:
    """Refuse files that look like shards of this model and are in no index."""
    if others := sorted(found - wanted):
        listed = ", ".join(shorten(name) for name in others[:5])
        raise CheckpointError(str(folder), f"weights files of no use here: {listed}; remove them")


def _total_bytes(content: Mapping[str, object], path: Path) -> int | None:
    metadata = content.get("metadata")
    if not isinstance(metadata, dict) or "total_size" not in metadata:
        return None
    total = metadata["total_size"]
    if type(total) is not int and not (isinstance(total, float) and total.is_integer()):
        raise CheckpointError(str(path), "metadata.total_size must be a whole number")
    return int(total)
