"""Opening files of a checkpoint folder: only regular files, only inside the folder.

A Hugging Face hub cache is the one exception: files of `snapshots/<revision>` are links into the
same repository's `blobs`.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.checkpoint.strict_json import parse_object
from model.errors import CheckpointError, shorten

MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 8 << 20
MAX_NAME_CHARS = 255

# What a file that is not what its name says often is, by its first bytes.
_LOOKS_LIKE = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file; run `git lfs pull`"),
    (b"<", "an HTML or XML page, not the file; download it again"),
    (b"PK\x03\x04", "a pickle archive of PyTorch, which can run code; convert it to safetensors"),
    (b"\x80", "a pickle, which can run code; convert it to safetensors"),
    (b"GGUF", "a GGUF file; use the original safetensors"),
)


def list_names(folder: Path) -> frozenset[str]:
    """Give the names in a folder."""
    with errors_of(folder):
        return frozenset(os.listdir(folder))


@contextmanager
def open_regular(folder: Path, name: str) -> Iterator[int]:
    """Open a file of a checkpoint folder for reading; gives the descriptor.

    Raises:
        CheckpointError: the name is a path, leads out of the folder, or is not a regular file.
    """
    path = _resolve(folder, name)
    with errors_of(folder / name):
        # Without O_NONBLOCK, opening a FIFO that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError(str(folder / name), "not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def read_object(folder: Path, name: str, max_bytes: int) -> dict[str, object]:
    """Read a JSON file of the folder that holds one object of at most `max_bytes`."""
    where = str(folder / name)
    with open_regular(folder, name) as descriptor, errors_of(folder / name):
        text = read_at(descriptor, 0, max_bytes + 1)
    if len(text) > max_bytes:
        raise CheckpointError(where, f"larger than {max_bytes} bytes")
    if what := looks_like(text):
        raise CheckpointError(where, f"this is {what}")
    return parse_object(text, where)


def read_at(descriptor: int, start: int, num_bytes: int) -> bytes:
    """Read up to `num_bytes` from `start`; fewer only at the end of the file."""
    pieces = []
    while num_bytes > 0 and (piece := os.pread(descriptor, num_bytes, start)):
        pieces.append(piece)
        start += len(piece)
        num_bytes -= len(piece)
    return b"".join(pieces)


def looks_like(head: bytes) -> str | None:
    """Say what a file is that begins so, if it is one of the usual mistakes."""
    return next((what for magic, what in _LOOKS_LIKE if head.lstrip().startswith(magic)), None)


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Turn the system's errors into ours, naming the path."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(str(path), error.strerror or str(error)) from error


def _resolve(folder: Path, name: str) -> Path:
    is_path = name in ("", ".", "..") or "/" in name or "\\" in name
    if is_path or not name.isprintable() or len(name) > MAX_NAME_CHARS:
        problem = f"file name '{shorten(name)}': a plain name is wanted, not a path"
        raise CheckpointError(str(folder), problem)
    with errors_of(folder):
        home = folder.resolve()
        path = Path(os.path.realpath(home / name))
    if not any(path.is_relative_to(allowed) for allowed in _allowed(home)):
        raise CheckpointError(str(folder / name), f"leads out of the folder, to {path}")
    return path


def _allowed(home: Path) -> tuple[Path, ...]:
    if home.parent.name == "snapshots":
        return home, home.parent.parent / "blobs"
    return (home,)
