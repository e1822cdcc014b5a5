"""Bitsets of live ordinals: uint64 words, bit ``i`` is ``words[i >> 6] >> (i & 63) & 1``.

A bitset that a view holds is never written again: a change is a copy (a million records are 125 KB).
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[np.uint64]

_ALL = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


def full(count: int) -> Bits:
    """Bits 0..count-1 set, the rest of the last word clear."""
    words = np.full((count + 63) >> 6, _ALL, np.uint64)
    if count & 63:
        words[-1] = np.uint64((1 << (count & 63)) - 1)
    return words


def extended(bits: Bits, count: int) -> Bits:
    """``bits`` if it has room for ``count``, else a copy of at least half as much again, with every new bit set."""
    words = (count + 63) >> 6
    if words <= len(bits):
        return bits
    out = np.full(max(words, len(bits) * 3 // 2), _ALL, np.uint64)
    out[: len(bits)] = bits
    return out


def cleared(bits: Bits, ordinals: npt.NDArray[np.integer[Any]]) -> Bits:
    """A copy of ``bits`` without the given ordinals."""
    out = bits.copy()
    where = ordinals.astype(np.uint64)
    masks = ~(np.uint64(1) << (where & np.uint64(63)))
    np.bitwise_and.at(out, (where >> np.uint64(6)).astype(np.int64), masks)
    return out


def head(bits: Bits, count: int) -> Bits:
    """The first ``count`` bits; a copy only if a word has to be cut."""
    words = bits[: (count + 63) >> 6]
    if count & 63 and len(words):
        words = words.copy()
        words[-1] &= np.uint64((1 << (count & 63)) - 1)
    return words


def members(bits: Bits, count: int) -> npt.NDArray[np.int64]:
    """Ascending ordinals below ``count`` whose bit is set."""
    flags = np.unpackbits(bits.view(np.uint8), count=count, bitorder="little")
    return np.flatnonzero(flags)


def has(bits: Bits, ordinals: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Whether each ordinal's bit is set."""
    where = ordinals.astype(np.uint64)
    words = bits[(where >> np.uint64(6)).astype(np.int64)]
    return ((words >> (where & np.uint64(63))) & np.uint64(1)).astype(np.bool_)


def size(bits: Bits) -> int:
    """How many bits are set."""
    return int(np.bitwise_count(bits).sum())
