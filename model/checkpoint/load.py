"""Opening a checkpoint folder: everything is checked first, then tensors are handed out.

Nothing in a checkpoint is ever executed or unpickled, and no weight is read before every file's
header agrees with the configuration.
"""

import ctypes
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from model.checkpoint import consolidated, huggingface
from model.checkpoint.files import list_names
from model.checkpoint.header import Entry
from model.checkpoint.layout import Index, Layout
from model.checkpoint.parts import Source
from model.checkpoint.shard import TORCH_DTYPES, Shard
from model.checkpoint.unsupported import refuse_unsupported, refuse_without_weights
from model.config import DTYPES, Dtype, ModelConfig
from model.errors import (
    CheckpointError,
    ConfigError,
    MissingTensor,
    ShapeMismatch,
    UnexpectedTensor,
    shorten,
)

Progress = Callable[[int, int], None]
Built = TypeVar("Built")


@dataclass(frozen=True, slots=True)
class _Stored:
    """A stored tensor and the file that holds it."""

    shard: Shard
    entry: Entry


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one of our tensors was found."""

    shard: Shard
    entry: Entry
    source: Source


class Checkpoint:
    """A checked checkpoint folder; made by `open_checkpoint`.

    Attributes:
        digest: sha256, in hexadecimal, of the configuration, of every stored tensor's name, data
            type and shape, and of each file's bytes: all of a file below 64 MiB, 4 KiB at every
            16 MiB of a larger one. Two processes with equal digests hold the same model, unless
            somebody means to deceive them.
    """

    def __init__(
        self, folder: Path, config: ModelConfig, places: Mapping[str, _Place], digest: str
    ) -> None:
        self.folder = folder
        self.config = config
        self.digest = digest
        self._places = places

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.folder)!r}, tensors={len(self._places)}, {self.digest[:12]})"

    def tensors(
        self,
        names: Iterable[str],
        dtype: str,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """Give these tensors, by our names, in the order asked for.

        On CPU and in the stored data type a tensor is a view into the file: it takes memory when
        it is touched, and the system may take that memory back. All are contiguous.

        Args:
            progress: told the bytes done and the bytes in all, after each tensor.

        Raises:
            CheckpointError: a file has changed since it was opened, or a gate or norm holds a
                number that is not finite.
        """
        wanted = [(name, self._place(name)) for name in names]
        torch_dtype = TORCH_DTYPES[_known_dtype(dtype)]
        for shard in {id(place.shard): place.shard for _, place in wanted}.values():
            shard.check_unchanged()
        num_bytes = sum(_num_bytes(place) for _, place in wanted)
        done = 0
        found: dict[str, Tensor] = {}
        for name, place in wanted:
            stored = place.shard.tensor(place.entry)
            found[name] = place.source.view(stored, self.config).to(device, torch_dtype)
            _check_finite(name, found[name], place)
            done += _num_bytes(place)
            if progress is not None:
                progress(done, num_bytes)
        return found

    def build(
        self,
        make: Callable[[Mapping[str, Tensor]], Built],
        groups: Sequence[Sequence[str]],
        dtype: str,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Iterator[Built]:
        """Give what `make` makes of each group of tensors, with one group in memory at a time.

        Args:
            make: the memory of the tensors is given back behind it; what it keeps of them without a
                copy is read from the file again.
            progress: told the bytes done and the bytes in all, after each group.

        Raises:
            CheckpointError: as from `tensors`.
        """
        places = [[self._place(name) for name in names] for names in groups]
        num_bytes = sum(_num_bytes(place) for group in places for place in group)
        done = 0
        for names, group in zip(groups, places, strict=True):
            built = make(self.tensors(names, dtype, device))
            for place in group:
                place.shard.release(place.entry)
                done += _num_bytes(place)
            _trim_heap()
            if progress is not None:
                progress(done, num_bytes)
            yield built

    def _place(self, name: str) -> _Place:
        if name not in self._places:
            raise MissingTensor(str(self.folder), name)
        return self._places[name]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a folder in Hugging Face's or Mistral's layout; if it holds both, Hugging Face's.

    Raises:
        CheckpointError: the folder, a file or a tensor cannot be used; names it.
        ConfigError: a value in config.json or params.json cannot be served; names file and key.
    """
    names = list_names(folder)
    refuse_unsupported(folder, names)
    layout = huggingface.find(folder, names) or consolidated.find(folder, names)
    if layout is None:
        refuse_without_weights(folder, names)
    shards = [Shard(folder, name) for name in layout.shard_names]
    stored = _stored(shards)
    if layout.index is not None:
        _check_index(layout.index, stored)
    places = _places(folder, layout, stored)
    config = layout.config
    if not layout.says_dtype:
        config = replace(config, dtype=places["tok_embeddings.weight"].entry.dtype)
    return Checkpoint(folder, config, places, _digest(config, shards))


def _stored(shards: Sequence[Shard]) -> dict[str, _Stored]:
    found: dict[str, _Stored] = {}
    for shard in shards:
        for name, entry in shard.entries.items():
            if name in found:
                problem = f"tensor {shorten(name)} is also in {found[name].shard.path.name}"
                raise CheckpointError(str(shard.path), problem)
            found[name] = _Stored(shard, entry)
    return found


def _check_index(index: Index, stored: Mapping[str, _Stored]) -> None:
    for name, file in index.weight_map.items():
        if name not in stored or stored[name].shard.path.name != file:
            raise CheckpointError(str(index.path), f"tensor {shorten(name)} is not in {file}")
    for name, each in stored.items():
        if name not in index.weight_map:
            problem = f"tensor {shorten(name)} of {each.shard.path.name} is not listed"
            raise CheckpointError(str(index.path), problem)
    found = sum(each.entry.stop - each.entry.start for each in stored.values())
    if index.total_bytes is not None and index.total_bytes != found:
        problem = f"total_size is {index.total_bytes}, the tensors have {found} bytes"
        raise CheckpointError(str(index.path), problem)


def _places(folder: Path, layout: Layout, stored: Mapping[str, _Stored]) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    missing: list[str] = []
    for name, sources in layout.sources.items():
        present = [source for source in sources if source.stored in stored]
        if not present:
            missing.append(sources[0].stored)
            continue
        if len(present) > 1:
            problem = f"{present[0].stored} and {present[1].stored} hold the same weights"
            raise CheckpointError(str(folder), problem)
        each = stored[present[0].stored]
        places[name] = _Place(each.shard, each.entry, present[0])
    if missing:
        raise MissingTensor(str(folder), *missing)
    _check_unexpected(folder, layout, stored, places)
    _check_shapes(places)
    return places


def _check_unexpected(
    folder: Path,
    layout: Layout,
    stored: Mapping[str, _Stored],
    places: Mapping[str, _Place],
) -> None:
    used = {place.source.stored for place in places.values()}
    if unexpected := sorted(stored.keys() - used - layout.ignored):
        raise UnexpectedTensor(str(stored[unexpected[0]].shard.path), *unexpected)


def _check_shapes(places: Mapping[str, _Place]) -> None:
    for place in places.values():
        if place.entry.shape != place.source.shape:
            raise ShapeMismatch(
                str(place.shard.path), place.entry.name, place.entry.shape, place.source.shape
            )


def _digest(config: ModelConfig, shards: Iterable[Shard]) -> str:
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for shard in shards:
        tensors = [(each.name, each.dtype, each.shape) for each in shard.entries.values()]
        digest.update(json.dumps(sorted(tensors)).encode())
        digest.update(shard.sample_digest)
    return digest.hexdigest()


def _known_dtype(name: str) -> Dtype:
    for dtype in DTYPES:
        if name == dtype:
            return dtype
    raise ConfigError("dtype", name, f"one of {', '.join(DTYPES)}")


def _num_bytes(place: _Place) -> int:
    return place.entry.stop - place.entry.start


def _check_finite(name: str, tensor: Tensor, place: _Place) -> None:
    """Gates and norms are small and spoil every token, so they are looked at; the rest is not."""
    is_small = name.endswith(("gate.weight", "norm.weight"))
    if is_small and not bool(torch.isfinite(tensor).all()):
        problem = f"tensor {place.entry.name} holds a number that is not finite"
        raise CheckpointError(str(place.shard.path), problem)


def _trim_heap() -> None:
    """Give freed memory back to the system, which glibc would keep where it lies between blocks.

    Without it bfloat16 experts of 25 MB took 33 MB each.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
