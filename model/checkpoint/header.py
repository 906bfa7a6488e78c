"""The header of a safetensors file, checked before any tensor is touched.

The library accepts a name twice and keeps the last; this reader refuses that, and all else that a
file written by the library never has: holes, overlaps, bytes after the last tensor.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from model.checkpoint.files import looks_like, read_at
from model.checkpoint.parts import Shape
from model.checkpoint.strict_json import parse_object
from model.config import Dtype
from model.errors import CheckpointError, shorten

PREFIX_BYTES = 8
# The header of Mixtral 8x22B in a single file has about 260 KB.
MAX_HEADER_BYTES = 4 << 20
MAX_RANK = 8

DTYPES: Mapping[str, Dtype] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
ITEM_BYTES: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored tensor; `start` and `stop` are byte offsets in its file."""

    name: str
    dtype: Dtype
    shape: Shape
    start: int
    stop: int


def read_header(descriptor: int, file_bytes: int, where: str) -> dict[str, Entry]:
    """Read and check the header of an open file, by tensor name.

    Raises:
        CheckpointError: the file is not exactly one header and the bytes that it describes.
    """
    header_bytes = _header_bytes(descriptor, file_bytes, where)
    text = read_at(descriptor, PREFIX_BYTES, header_bytes)
    fields = parse_object(text, where)
    fields.pop("__metadata__", None)
    data_start = PREFIX_BYTES + header_bytes
    entries = [_entry(name, value, data_start, where) for name, value in fields.items()]
    _check_cover(entries, data_start, file_bytes, where)
    return {entry.name: entry for entry in entries}


def _header_bytes(descriptor: int, file_bytes: int, where: str) -> int:
    head = read_at(descriptor, 0, 64)
    header_bytes = int.from_bytes(head[:PREFIX_BYTES], "little")
    room = file_bytes - PREFIX_BYTES
    if room >= 2 and header_bytes <= min(room, MAX_HEADER_BYTES):
        return header_bytes
    if what := looks_like(head):
        raise CheckpointError(where, f"this is {what}")
    if room < 2:
        raise CheckpointError(where, f"{file_bytes} bytes are too few for a safetensors file")
    if header_bytes > MAX_HEADER_BYTES:
        problem = f"header too large: {header_bytes} bytes, at most {MAX_HEADER_BYTES} are read"
        raise CheckpointError(where, problem)
    raise CheckpointError(
        where, f"the header calls for {header_bytes} bytes, the file has {room}; is it cut short?"
    )


def _entry(name: str, value: object, data_start: int, where: str) -> Entry:
    label = f"tensor {shorten(name)}"
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(where, f"{label}: want dtype, shape and data_offsets")
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        found = shorten(str(value["dtype"]))
        raise CheckpointError(where, f"{label}: dtype is {found}, want one of {', '.join(DTYPES)}")
    shape = _counts(value["shape"], f"{label}: shape", where)
    offsets = _counts(value["data_offsets"], f"{label}: data_offsets", where)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(where, f"{label}: data_offsets are {list(offsets)}, want a range")
    start, stop = offsets
    if math.prod(shape) * ITEM_BYTES[dtype] != stop - start:
        problem = f"{label}: shape {list(shape)} of {dtype} does not fill {stop - start} bytes"
        raise CheckpointError(where, problem)
    return Entry(name, dtype, shape, data_start + start, data_start + stop)


def _counts(value: object, label: str, where: str) -> tuple[int, ...]:
    counts = tuple(value) if isinstance(value, list) else ()
    is_count = all(type(item) is int and 0 <= item < 2**63 for item in counts)
    if not isinstance(value, list) or len(counts) > MAX_RANK or not is_count:
        found = shorten(str(value))
        raise CheckpointError(where, f"{label} is {found}, want a list of whole numbers")
    return counts


def _check_cover(entries: list[Entry], data_start: int, file_bytes: int, where: str) -> None:
    position = data_start
    for entry in sorted(entries, key=lambda each: (each.start, each.stop)):
        if entry.start != position:
            fault = "overlaps another tensor" if entry.start < position else "follows a gap"
            raise CheckpointError(where, f"tensor {shorten(entry.name)} {fault}")
        position = entry.stop
    if position != file_bytes:
        problem = f"tensors end at byte {position}, the file at {file_bytes}"
        hint = "; is it cut short?" if position > file_bytes else ""
        raise CheckpointError(where, problem + hint)
