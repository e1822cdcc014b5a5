"""Between the three shapes of a set of ordinals: roaring bitmap, bitset of words, array of ordinals.

Both directions go through roaring's portable serialised form (the public RoaringFormatSpec), because
its containers *are* pieces of a bitset or sorted arrays: building a bitmap of half a million ordinals
one by one costs 20 ms, laying out its containers with NumPy well under one.  The form, little endian:

    cookie  12346 and a container count, or 12347 with count - 1 above it and a bit per run container
    keys    (key, cardinality - 1) uint16 pairs, the high halves of the values
    offsets uint32 per container, absent with runs and fewer than four containers
    bodies  array: sorted uint16; bitmap (cardinality > 4096): 1024 words; run: a count and (start, length - 1) pairs
"""

import array
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

Words: TypeAlias = npt.NDArray[np.uint64]
Ordinals: TypeAlias = npt.NDArray[np.uint32]

_COOKIE_PLAIN = 12346
_COOKIE_RUNS = 12347
_NO_OFFSETS_BELOW = 4
_ARRAY_MAX = 4_096
_CONTAINER_WORDS = 1_024
_CONTAINER_BITS = 65_536
_FEW = 512
"""Below so many ordinals pyroaring's own constructor is quicker than laying out containers."""


def word_count(count: int) -> int:
    """Return the words of a bitset over ``count`` ordinals."""
    return (count + 63) >> 6


def to_words(bitmap: BitMap, count: int) -> Words:
    """Return ``bitmap`` as a new bitset, uint64 (ceil(count / 64),); ordinals of ``count`` and above are left out."""
    padded = -(-count // _CONTAINER_BITS)
    words = np.zeros(padded * _CONTAINER_WORDS, dtype=np.uint64)
    if padded:
        _scatter(bitmap.serialize(), words.reshape(padded, _CONTAINER_WORDS))
    words = words[: word_count(count)]
    if count & 63 and len(words):
        words[-1] &= np.uint64((1 << (count & 63)) - 1)
    return words


def _scatter(data: bytes, out: npt.NDArray[np.uint64]) -> None:
    """Write the containers of a serialised bitmap into ``out`` (containers, 1024); keys beyond it are skipped."""
    cookie = int.from_bytes(data[:4], "little")
    runs: npt.NDArray[np.uint8] | None = None
    if cookie & 0xFFFF == _COOKIE_RUNS:
        size = (cookie >> 16) + 1
        flags = (size + 7) >> 3
        runs = np.unpackbits(np.frombuffer(data, np.uint8, flags, 4), bitorder="little")
        at = 4 + flags
    else:
        size = int.from_bytes(data[4:8], "little")
        at = 8
    heads = np.frombuffer(data, "<u2", 2 * size, at).reshape(size, 2).tolist()
    at += 4 * size
    if runs is None or size >= _NO_OFFSETS_BELOW:
        at += 4 * size
    for place, (key, last) in enumerate(heads):
        wanted = key < len(out)
        if runs is not None and runs[place]:
            number = int.from_bytes(data[at : at + 2], "little")
            if wanted:
                _fill_runs(np.frombuffer(data, "<u2", 2 * number, at + 2), out[key])
            at += 2 + 4 * number
        elif last < _ARRAY_MAX:
            if wanted:
                marks = np.zeros(_CONTAINER_BITS, dtype=np.bool_)
                marks[np.frombuffer(data, "<u2", last + 1, at)] = True
                out[key] = np.packbits(marks, bitorder="little").view("<u8")
            at += 2 * (last + 1)
        else:
            if wanted:
                out[key] = np.frombuffer(data, "<u8", _CONTAINER_WORDS, at)
            at += 8 * _CONTAINER_WORDS


def _fill_runs(pairs: npt.NDArray[np.uint16], out: npt.NDArray[np.uint64]) -> None:
    """Set the runs ``start, length - 1, …`` in one container of 1024 words."""
    marks = np.zeros(_CONTAINER_BITS, dtype=np.bool_)
    starts = pairs[0::2].astype(np.int64)
    ends = starts + pairs[1::2] + 1
    if len(starts) <= _FEW:
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            marks[start:end] = True
    else:
        edges = np.zeros(_CONTAINER_BITS + 1, dtype=np.int8)
        edges[starts] = 1
        edges[ends] -= 1
        marks = np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_)
    out[:] = np.packbits(marks, bitorder="little").view("<u8")


def from_words(words: Words) -> BitMap:
    """Return the bitmap of a bitset (any length in words); ``words`` is only read."""
    size = -(-len(words) // _CONTAINER_WORDS)
    if size == 0:
        return BitMap()
    if size * _CONTAINER_WORDS != len(words):
        padded = np.zeros(size * _CONTAINER_WORDS, dtype=np.uint64)
        padded[: len(words)] = words
        words = padded
    blocks = np.ascontiguousarray(words, dtype="<u8").reshape(size, _CONTAINER_WORDS)
    cards = np.bitwise_count(blocks).sum(axis=1, dtype=np.int64)
    keys = np.flatnonzero(cards)
    heads = np.empty((len(keys), 2), dtype="<u2")
    heads[:, 0] = keys
    heads[:, 1] = cards[keys] - 1
    bodies: list[bytes] = []
    for key in keys.tolist():
        if cards[key] > _ARRAY_MAX:
            bodies.append(blocks[key].tobytes())
        else:
            marks = np.unpackbits(blocks[key].view(np.uint8), bitorder="little")
            bodies.append(np.flatnonzero(marks.view(np.bool_)).astype("<u2").tobytes())
    sizes = np.array([len(body) for body in bodies], dtype=np.int64)
    offsets = np.zeros(len(keys), dtype="<u4")
    offsets[1:] = np.cumsum(sizes)[:-1]
    offsets += 8 + 8 * len(keys)
    head = _COOKIE_PLAIN.to_bytes(4, "little") + len(keys).to_bytes(4, "little")
    return BitMap.deserialize(b"".join([head, heads.tobytes(), offsets.tobytes(), *bodies]))


def from_ordinals(ordinals: npt.NDArray[np.integer], count: int) -> BitMap:
    """Return the bitmap of ordinals below ``count``, in any order, repeats allowed."""
    if len(ordinals) <= _FEW or len(ordinals) * 128 < count:
        few = array.array("I")
        few.frombytes(np.sort(ordinals).astype(np.uint32, copy=False).tobytes())
        return BitMap(few)
    marks = np.zeros(word_count(count) << 6, dtype=np.bool_)
    marks[ordinals] = True
    return from_words(np.packbits(marks, bitorder="little").view("<u8"))


def from_mask(mask: npt.NDArray[np.bool_]) -> BitMap:
    """Return the bitmap of the true places of ``mask``."""
    packed = np.packbits(mask, bitorder="little")
    words = np.zeros(word_count(len(mask)), dtype=np.uint64)
    words.view(np.uint8)[: len(packed)] = packed
    return from_words(words)


def to_ordinals(bitmap: BitMap) -> Ordinals:
    """Return the ordinals of ``bitmap``, ascending, uint32."""
    return np.frombuffer(bitmap.to_array(), dtype=np.uint32)


def load(blob: npt.NDArray[np.uint8], count: int) -> BitMap:
    """Return the bitmap serialised in ``blob``; raises ValueError if it is none, or not of rows below ``count``."""
    try:
        bitmap = BitMap.deserialize(blob.tobytes())
    except (ValueError, IndexError) as error:
        raise ValueError(f"not a serialised bitmap: {error}") from error
    if bitmap and bitmap.max() >= count:
        raise ValueError("a set of rows reaches beyond the segment")
    return bitmap


def count_words(words: Words) -> int:
    """Return how many bits are set."""
    return int(np.bitwise_count(words).sum(dtype=np.int64))
