"""Postings: for each of some sorted keys the ordinals that have it, and any range of keys as one bitmap.

Ordinals of all keys lie one behind the other in key order (``starts[i]:starts[i + 1]`` are key i's, ascending), so a
range of keys is one slice.  A key held by more than one record in 32 is *dense*: four bytes an ordinal would be
more than a bit a record, so its rows are a serialised roaring bitmap instead and its slice is empty.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from vecdb.metadata import bits
from vecdb.metadata.bits import Ordinals
from vecdb.metadata.layout import Arrays

_DENSE_FRACTION = 32
_DENSE_LEAST = 256
_FEW_KEYS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Postings:
    """``starts`` uint32 (keys + 1,), ``ordinals`` uint32, both borrowed from the buffer they were read from.

    ``dense`` uint32: the dense keys, ascending, and ``bitmaps`` their rows, never to be changed.
    """

    count: int
    starts: npt.NDArray[np.uint32]
    ordinals: Ordinals
    dense: npt.NDArray[np.uint32]
    bitmaps: tuple[BitMap, ...]

    @property
    def keys(self) -> int:
        return len(self.starts) - 1

    def range(self, low: int, high: int) -> BitMap:
        """Return the rows of keys ``low`` up to, not including, ``high``."""
        if low >= high:
            return BitMap()
        start, stop = int(self.starts[low]), int(self.starts[high])
        found = bits.from_ordinals(self.ordinals[start:stop], self.count)
        first, last = np.searchsorted(self.dense, (low, high)).tolist()
        return BitMap.union(found, *self.bitmaps[first:last])

    def of(self, keys: npt.NDArray[np.int64]) -> BitMap:
        """Return the rows of some keys (distinct, any order)."""
        if len(keys) <= _FEW_KEYS:
            return BitMap.union(BitMap(), *(self.range(key, key + 1) for key in keys.tolist()))
        wanted = np.zeros(self.keys, dtype=np.bool_)
        wanted[keys] = True
        picked = self.ordinals[np.flatnonzero(np.repeat(wanted, np.diff(self.starts)))]
        dense = np.flatnonzero(wanted[self.dense]).tolist()
        return BitMap.union(bits.from_ordinals(picked, self.count), *(self.bitmaps[place] for place in dense))

    def entries(self) -> tuple[npt.NDArray[np.int64], Ordinals]:
        """Return every (number of key, ordinal), the dense ones last."""
        numbers = [np.repeat(np.arange(self.keys), np.diff(self.starts))]
        ordinals = [self.ordinals]
        for key, bitmap in zip(self.dense.tolist(), self.bitmaps, strict=True):
            rows = bits.to_ordinals(bitmap)
            numbers.append(np.full(len(rows), key, dtype=np.int64))
            ordinals.append(rows)
        return np.concatenate(numbers), np.concatenate(ordinals)


def build(numbers: npt.NDArray[np.int64], ordinals: Ordinals, keys: int, count: int, name: str) -> Arrays:
    """Return the arrays of the postings of entries (number of key, ordinal), in any order, repeats allowed."""
    # Key and ordinal in one word: one sort of integers orders by both, and repeats become neighbours
    packed = (numbers.astype(np.uint64) << np.uint64(32)) | ordinals.astype(np.uint64)
    packed.sort()
    if len(packed):
        packed = packed[np.concatenate(([True], packed[1:] != packed[:-1]))]
    numbers = (packed >> np.uint64(32)).astype(np.int64)
    rows = packed.astype(np.uint32)  # the low half
    sizes = np.bincount(numbers, minlength=keys)
    dense = np.flatnonzero((sizes >= _DENSE_LEAST) & (sizes * _DENSE_FRACTION > count))
    ends = np.cumsum(sizes)
    blobs: list[bytes] = []
    keep = np.ones(len(rows), dtype=np.bool_)
    for key in dense.tolist():
        part = slice(int(ends[key] - sizes[key]), int(ends[key]))
        bitmap = bits.from_ordinals(rows[part], count)
        bitmap.run_optimize()
        blobs.append(bitmap.serialize())
        keep[part] = False
    sizes[dense] = 0
    return {
        f"{name}.starts": np.concatenate(([0], np.cumsum(sizes))).astype("<u4"),
        f"{name}.ordinals": rows[keep].astype("<u4", copy=False),
        f"{name}.dense": dense.astype("<u4"),
        f"{name}.blob_at": np.concatenate(([0], np.cumsum([len(blob) for blob in blobs]))).astype("<u8"),
        f"{name}.blob": np.frombuffer(b"".join(blobs), dtype=np.uint8),
    }


def read(arrays: Arrays, name: str, keys: int, count: int) -> Postings:
    """Return the postings in a region's arrays; raises ValueError or KeyError if they cannot be right."""
    starts, ordinals, dense, blob_at, blob = (
        arrays[f"{name}.{part}"] for part in ("starts", "ordinals", "dense", "blob_at", "blob"))
    _check(rising(starts, len(ordinals)) and len(starts) == keys + 1, f"{name}.starts")
    _check(not len(ordinals) or int(ordinals.max()) < count, f"{name}.ordinals")
    _check(not len(dense) or (int(dense[-1]) < keys and bool((dense[1:] > dense[:-1]).all())), f"{name}.dense")
    _check(rising(blob_at, len(blob)) and len(blob_at) == len(dense) + 1, f"{name}.blob_at")
    bitmaps = tuple(bits.load(blob[start:stop], count) for start, stop in pairwise(blob_at.tolist()))
    return Postings(count, starts, ordinals, dense, bitmaps)


def rising(starts: npt.NDArray[np.integer], end: int) -> bool:
    """Whether ``starts`` goes from 0 to ``end`` without a step back."""
    return (len(starts) > 0 and int(starts[0]) == 0 and int(starts[-1]) == end
            and bool((starts[1:] >= starts[:-1]).all()))


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"array {what!r} is not well formed")
