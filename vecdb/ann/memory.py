"""Large arrays in anonymous memory with huge pages.

A graph walk touches rows at random: with 4 KiB pages most of them miss the TLB too.  Memory for rows, codes, links
and marks is therefore mapped anonymously and advised to huge pages (THP is often ``madvise`` only).  Pages are
zero and take no memory until they are touched, so an array of a segment's whole capacity costs what is in it.
"""

import mmap
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

HUGE_PAGE = 2 << 20
_ALIGN = 64


def allocate(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a zeroed, writable, C-contiguous array of ``shape``, 64-byte aligned.

    From two huge pages upwards it lies on huge-page boundaries of its own mapping, which lives as long as the
    array; below that it is an ordinary aligned array.  A system without ``madvise`` gets plain pages.
    """
    dims = (shape,) if isinstance(shape, int) else shape
    kind = np.dtype(dtype)
    size = prod(dims) * kind.itemsize
    if size < 2 * HUGE_PAGE:
        raw = np.zeros(size + _ALIGN, np.uint8)
        start = -raw.ctypes.data % _ALIGN
    else:
        mapping = _map(size + HUGE_PAGE)
        raw = np.frombuffer(mapping, np.uint8)
        start = -raw.ctypes.data % HUGE_PAGE
    return raw[start:start + size].view(kind).reshape(dims)


def _map(size: int) -> mmap.mmap:
    flags = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0) | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        mapping = mmap.mmap(-1, size, flags=flags)
    except OSError:  # a kernel that refuses NORESERVE still maps ordinarily
        mapping = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # compiled without THP
            return mapping
    return mapping
