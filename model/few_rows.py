"""The compiled products of few rows, `few_rows.c`: building them, and calling them.

They need Linux, a CPU with AVX-512 for bfloat16, and once a C compiler: what it builds is kept in
the user's cache folder. Where anything is missing there are no such products, and PyTorch's serve.
"""

import ctypes
import hashlib
import logging
import os
import subprocess
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
COMPILE = ("cc", "-O3", "-fno-math-errno", "-mavx512f", "-mavx512bf16", "-fopenmp", "-fPIC", "-c")
LINK = ("cc", "-shared")
COMPILE_TIMEOUT_S = 60.0

PANEL = 64

# Beyond these oneDNN's own products are as fast, sooner so where there are matrix units (AMX).
MAX_ROWS = 16
MAX_ROWS_WITH_AMX = 8

# Letters: R rows, K numbers of an input row, N of an output row, D model dimension, F hidden.


@dataclass(frozen=True, slots=True)
class FewRows:
    """The compiled functions; all tensors are bfloat16 on CPU, with up to `max_rows` rows."""

    functions: ctypes.CDLL
    max_rows: int

    def linear(self, x_RK: Tensor, address: int, num_outputs: int) -> Tensor:
        """Multiply rows with the weight that lies packed at an address: (R, N)."""
        x_RK = x_RK.contiguous()
        y_RN = x_RK.new_empty(len(x_RK), num_outputs)
        self.functions.few_rows_linear(
            x_RK.data_ptr(), address, y_RN.data_ptr(), len(x_RK), x_RK.shape[1], num_outputs
        )
        return y_RN

    def norm(self, x_RD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Normalise rows by their root mean square: (R, D)."""
        x_RD = x_RD.contiguous()
        y_RD = torch.empty_like(x_RD)
        self.functions.few_rows_norm(
            x_RD.data_ptr(), weight_D.data_ptr(), y_RD.data_ptr(), *x_RD.shape, eps
        )
        return y_RD

    def swiglu(
        self, x_RD: Tensor, networks: Sequence[tuple["Panels", int, int]], y_RD: Tensor
    ) -> None:
        """Run each network on its rows, from the first up to the last, into those of `y_RD`."""
        x_RD = x_RD.contiguous()
        hidden_dim = networks[0][0].hidden_dim
        h_RF = x_RD.new_empty(len(x_RD), hidden_dim)
        parts = array("q")
        for panels, first, end in networks:
            parts.extend((panels.gate_up, panels.down, first, end))
        self.functions.few_rows_swiglu(
            x_RD.data_ptr(),
            parts.buffer_info()[0],
            len(networks),
            h_RF.data_ptr(),
            y_RD.data_ptr(),
            x_RD.shape[1],
            hidden_dim,
        )


@dataclass(frozen=True, slots=True)
class Panels:
    """One SwiGLU network's packed weights: their addresses, and how they are used.

    Attributes:
        is_tiled: many rows are computed as several times few, so that a row's bits are its own.
    """

    few: FewRows
    gate_up: int
    down: int
    hidden_dim: int
    is_tiled: bool

    def tiles(self, first: int, end: int) -> Iterator[tuple["Panels", int, int]]:
        """Part rows `first` to `end` into few each; nothing if there are too many for that."""
        if self.is_tiled or end - first <= self.few.max_rows:
            for start in range(first, end, self.few.max_rows):
                yield self, start, min(start + self.few.max_rows, end)


@cache
def few_rows() -> FewRows | None:
    """Give the compiled functions; None where they cannot be had."""
    try:
        return load(Path.home() / ".cache" / "mixray")
    except RuntimeError:  # nobody's home
        return None


def load(folder: Path) -> FewRows | None:
    """Load the functions from a folder, building them if need be; None where that fails."""
    if not torch.cpu._is_avx512_bf16_supported():
        return None
    try:
        library = _declared(ctypes.CDLL(str(_built(folder))))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("decoding will be slower: %s could not be built (%s)", SOURCE.name, error)
        return None
    return FewRows(library, MAX_ROWS_WITH_AMX if torch.cpu._is_amx_tile_supported() else MAX_ROWS)


def _built(folder: Path) -> Path:
    """Build the library into a folder unless it is there.

    Raises:
        OSError: there is no compiler, or the folder cannot be written to.
        SubprocessError: the compiler fails.
    """
    fingerprint = hashlib.sha256(SOURCE.read_bytes() + repr((COMPILE, LINK)).encode()).hexdigest()
    library = folder / f"few_rows-{fingerprint[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        unlinked, linked = Path(scratch, "few_rows.o"), Path(scratch, "few_rows.so")
        _run(*COMPILE, str(SOURCE), "-o", str(unlinked))
        _run(*LINK, str(unlinked), "-o", str(linked))
        # Whole or not at all, however many processes build at once.
        os.replace(linked, library)
    return library


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_TIMEOUT_S)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_long
    library.few_rows_linear.argtypes = [pointer] * 3 + [number] * 3
    library.few_rows_swiglu.argtypes = [pointer, pointer, number, pointer, pointer, number, number]
    library.few_rows_norm.argtypes = [pointer] * 3 + [number] * 2 + [ctypes.c_float]
    for function in (library.few_rows_linear, library.few_rows_swiglu, library.few_rows_norm):
        function.restype = None
    return library
