"""The graph's arrays, and the scratch a search works in."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from vecdb.ann.memory import allocate
from vecdb.kernels.beam import H_COUNT, H_ENTRY, H_MAX_LEVEL, H_UPPER_USED, MAX_VERTICES

_HEADER_ITEMS = 8
_OVERREAD = 16
"""Keys beyond a beam's room that may be read (a vector's worth) or written (one too many, before one is dropped)."""
MAX_LEVEL = 15
"""Highest level: at m = 2 a vertex above it is one in 32,768, and each level costs every search a little."""


class Graph:
    """An HNSW graph over ordinals 0..count-1, in arrays that kernels reach by address.

    ``links0`` int32 (capacity, m0): level-0 links, -1 after the last.  ``levels`` uint8 (capacity,): each vertex's top
    level, a function of ``seed`` and its ordinal.  ``slots`` int32 (capacity,): the row of ``upper`` int32 (rows, m)
    that holds its level-1 links, those of level l following at + l - 1.  ``header`` int64: count, entry vertex
    (-1: none), top level, upper rows in use.  Rows of vertices at or above ``count`` are undefined.  Arrays are
    owned, or borrowed from a mapping; growing writes to them, searching only reads.
    """

    __slots__ = ("context", "ef_construction", "header", "levels", "links0", "m", "m0", "seed", "slots", "upper")

    def __init__(self, links0: npt.NDArray[np.int32], levels: npt.NDArray[np.uint8], slots: npt.NDArray[np.int32],
                 upper: npt.NDArray[np.int32], header: npt.NDArray[np.int64], *, ef_construction: int,
                 seed: int) -> None:
        self.links0, self.levels, self.slots, self.upper, self.header = links0, levels, slots, upper, header
        self.m0, self.m = int(links0.shape[1]), int(upper.shape[1])
        self.ef_construction = ef_construction
        self.seed = seed
        for name, array in self.arrays().items():
            if not array.flags.c_contiguous or not array.flags.aligned:
                raise ValueError(f"graph array {name!r} must be C-contiguous and aligned")
        # order: vecdb.kernels.beam, G_LINKS0 and following
        self.context = np.array([links0.ctypes.data, levels.ctypes.data, slots.ctypes.data, upper.ctypes.data,
                                 header.ctypes.data, len(links0), self.m0, self.m, len(upper)], np.int64)

    @classmethod
    def allocate(cls, capacity: int, *, m: int, ef_construction: int, seed: int) -> Self:
        """An empty graph with room for ``capacity`` vertices; memory is touched as vertices enter."""
        if not 0 <= capacity < MAX_VERTICES:
            raise ValueError(f"capacity {capacity} is outside 0..{MAX_VERTICES - 1}")
        levels = draw_levels(0, capacity, m, seed)
        slots, used = _slots(levels)
        header = np.zeros(_HEADER_ITEMS, np.int64)
        header[H_ENTRY] = -1
        header[H_UPPER_USED] = used
        return cls(allocate((capacity, 2 * m), np.int32), levels, slots, allocate((used, m), np.int32), header,
                   ef_construction=ef_construction, seed=seed)

    @property
    def count(self) -> int:
        """Vertices that are linked; published after their links."""
        return int(self.header[H_COUNT])

    @property
    def capacity(self) -> int:
        return len(self.links0)

    @property
    def entry(self) -> int:
        return int(self.header[H_ENTRY])

    @property
    def nbytes(self) -> int:
        """Bytes of the linked part."""
        per_vertex = 4 * self.m0 + 1 + 4
        return self.count * per_vertex + int(self.levels[:self.count].sum(dtype=np.int64)) * 4 * self.m

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by name, as :meth:`from_arrays` takes them (borrowed, not copied)."""
        return {"links0": self.links0, "levels": self.levels, "slots": self.slots, "upper": self.upper,
                "header": self.header}

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[Any]], *, ef_construction: int, seed: int) -> Self:
        """The graph of :meth:`arrays`, which may be read-only (then it can be searched but not grown)."""
        return cls(arrays["links0"], arrays["levels"], arrays["slots"], arrays["upper"], arrays["header"],
                   ef_construction=ef_construction, seed=seed)

    def damage(self) -> str | None:
        """Why the arrays cannot be searched safely (a link out of range...), or None when they are sound."""
        count, entry = self.count, self.entry
        if not 0 <= count <= self.capacity or not -1 <= entry < count or (entry < 0) != (count == 0):
            return f"header says count {count}, entry {entry} of capacity {self.capacity}"
        levels, slots = self.levels[:count], self.slots[:count]
        if len(self.levels) != self.capacity or len(self.slots) != self.capacity:
            return "levels, slots and links0 differ in length"
        tall = levels > 0
        ends = slots[tall].astype(np.int64) + levels[tall]
        if (slots[tall] < 0).any() or (ends > len(self.upper)).any():
            return "a vertex's upper links lie outside the array"
        top = int(ends.max(initial=0))
        for name, links in (("links0", self.links0[:count]), ("upper", self.upper[:top])):
            if len(links) and (int(links.max()) >= count or int(links.min()) < -1):
                return f"{name} holds a link outside -1..{count - 1}"
        return None

    def copy(self, capacity: int | None = None) -> "Graph":
        """A writable copy in fresh memory, with room for ``capacity`` vertices (at least as many as are linked)."""
        count = self.count
        room = max(count, self.capacity if capacity is None else capacity)
        levels = np.concatenate([self.levels[:count], draw_levels(count, room, self.m, self.seed)])
        slots, used = _slots(levels)
        header = self.header.copy()
        header[H_UPPER_USED] = used
        links0, upper = allocate((room, self.m0), np.int32), allocate((used, self.m), np.int32)
        links0[:count] = self.links0[:count]
        upper[upper_rows(slots[:count], levels[:count])] = self.upper[upper_rows(self.slots[:count], levels[:count])]
        return Graph(links0, levels, slots, upper, header, ef_construction=self.ef_construction, seed=self.seed)


def draw_levels(lo: int, hi: int, m: int, seed: int) -> npt.NDArray[np.uint8]:
    """Levels of ordinals [lo, hi): geometric with ratio 1/m, from a hash of seed and ordinal (splitmix64)."""
    with np.errstate(over="ignore"):
        mixed = np.arange(lo + 1, hi + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed += np.uint64(seed & 0xFFFFFFFFFFFFFFFF)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    uniform = ((mixed >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53
    levels: npt.NDArray[np.uint8] = np.minimum(-np.log(uniform) / np.log(m), MAX_LEVEL).astype(np.uint8)
    return levels


def _slots(levels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int32], int]:
    """Where each vertex's upper links begin, and how many rows there are."""
    ends = np.cumsum(levels, dtype=np.int64)
    return (ends - levels).astype(np.int32), int(ends[-1]) if len(ends) else 0


def upper_rows(slots: npt.NDArray[np.int32], levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The rows of ``upper`` that belong to vertices with these slots and levels, vertex by vertex, level by level."""
    tall = np.flatnonzero(levels)
    depth = levels[tall].astype(np.int64)
    within = np.arange(depth.sum()) - np.repeat(np.cumsum(depth) - depth, depth)
    found: npt.NDArray[np.int64] = np.repeat(slots[tall].astype(np.int64), depth) + within
    return found


class Scratch:
    """Memory a search works in: the caller's, one per thread, reused; it grows and never shrinks."""

    __slots__ = ("beam", "context", "keys", "near", "scores", "tags", "tally")

    def __init__(self) -> None:
        self.beam = np.zeros(0, np.uint64)
        self.tags = np.zeros(0, np.uint8)
        self.near = np.zeros(0, np.int32)
        self.scores = np.zeros(0, np.float32)
        self.keys = np.zeros(0, np.uint64)
        self.tally = np.zeros(3, np.int64)
        self.context = np.zeros(8, np.int64)

    def reserve(self, vertices: int, beam: int, m0: int) -> None:
        """Make room for marks of ``vertices``, a beam of that many entries, and rows of ``m0`` links."""
        # neighbours gathered in one hop, and in a filtered one those looked through, of which a few rows' worth matter
        near = 32 * m0
        if len(self.beam) >= beam + _OVERREAD and len(self.tags) >= vertices and len(self.near) >= near:
            return
        if len(self.beam) < beam + _OVERREAD:
            self.beam = np.zeros(2 * beam + _OVERREAD, np.uint64)
        if len(self.tags) < vertices:
            self.tags = allocate(vertices, np.uint8)
            self.context[7] = 0
        if len(self.near) < near:
            self.near = np.zeros(near, np.int32)
            self.scores = np.zeros(near, np.float32)
        # order: vecdb.kernels.beam, S_BEAM and following; the last is the running mark
        self.context[:7] = (self.beam.ctypes.data, len(self.beam), self.tags.ctypes.data, len(self.tags),
                            self.near.ctypes.data, len(self.near), self.scores.ctypes.data)

    def reserve_keys(self, count: int) -> None:
        """Make room for ``count`` candidates of one merge."""
        if len(self.keys) < count:
            self.keys = np.zeros(count, np.uint64)


def publish(graph: Graph, count: int, entry: int) -> None:
    """Let searches see ``count`` vertices and start from ``entry``: the count goes first, the entry is below it."""
    graph.header[H_COUNT] = count
    graph.header[H_MAX_LEVEL] = int(graph.levels[entry])
    graph.header[H_ENTRY] = entry
