"""One safetensors file, mapped: a tensor is a view into the file and costs memory when touched."""

import hashlib
import mmap
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint.files import errors_of, open_regular, read_at
from model.checkpoint.header import ITEM_BYTES, Entry, read_header
from model.config import Dtype
from model.errors import CheckpointError

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# A file below the first is hashed whole, a larger one by a sample at every stride.
WHOLE_BYTES = 64 << 20
STRIDE_BYTES = 16 << 20
SAMPLE_BYTES = 4 << 10

# Linux refuses a private mapping larger than its memory, since every page could be written to,
# unless told not to reserve any. Python 3.11 has no name for it.
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What changes when a file is replaced or written to."""

    device: int
    inode: int
    num_bytes: int
    modified_ns: int


class Shard:
    """A checked and mapped file of a checkpoint.

    Tensors stay valid when the file is deleted or another takes its name. Nothing can protect them
    from a program that writes into this very file or shortens it.

    Attributes:
        entries: the tensors in the file, by stored name.
        sample_digest: sha256 of the whole file below 64 MiB, else of 4 KiB at every 16 MiB.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / name
        with open_regular(folder, name) as descriptor, errors_of(self.path):
            self._stamp = _stamp(os.fstat(descriptor))
            self.entries = read_header(descriptor, self._stamp.num_bytes, str(self.path))
            self.sample_digest = _sample_digest(descriptor, self._stamp.num_bytes)
            self._mapping = mmap.mmap(
                descriptor,
                self._stamp.num_bytes,
                flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )

    def check_unchanged(self) -> None:
        """Refuse to go on when the file is no longer the one that was checked."""
        with errors_of(self.path):
            now = _stamp(os.stat(self.path))
        if now != self._stamp:
            raise CheckpointError(str(self.path), "has changed since it was opened; open it again")

    def tensor(self, entry: Entry) -> Tensor:
        """Give a stored tensor as a view into the file; writing to it never reaches the file."""
        item_bytes = ITEM_BYTES[entry.dtype]
        buffer, start = memoryview(self._mapping), entry.start
        if start % item_bytes:
            # Old writers did not pad the header: kernels want aligned numbers, so copy.
            buffer, start = memoryview(bytearray(buffer[start : entry.stop])), 0
        flat = torch.frombuffer(
            buffer,
            dtype=TORCH_DTYPES[entry.dtype],
            count=(entry.stop - entry.start) // item_bytes,
            offset=start,
        )
        return flat.view(entry.shape)

    def release(self, entry: Entry) -> None:
        """Give back the memory of a stored tensor's pages; a view of it reads them again.

        What was written to them is lost.
        """
        start = entry.start - entry.start % mmap.PAGESIZE
        if entry.stop > start:
            self._mapping.madvise(mmap.MADV_DONTNEED, start, entry.stop - start)


def _stamp(status: os.stat_result) -> _Stamp:
    return _Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _sample_digest(descriptor: int, file_bytes: int) -> bytes:
    is_small = file_bytes < WHOLE_BYTES
    stride, length = (1 << 20, 1 << 20) if is_small else (STRIDE_BYTES, SAMPLE_BYTES)
    digest = hashlib.sha256()
    for start in range(0, file_bytes, stride):
        digest.update(read_at(descriptor, start, length))
    return digest.digest()
