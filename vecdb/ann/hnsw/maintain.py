"""Keeping a graph fit: dropping deleted vertices, numbering for locality, linking what nothing leads to."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import RowCodes, frozen
from vecdb.ann.hnsw.build import Run, grow, serial
from vecdb.ann.hnsw.graph import Graph, draw_levels, publish, upper_rows
from vecdb.ann.hnsw.search import Searcher
from vecdb.ann.memory import allocate
from vecdb.ann.space import Space
from vecdb.kernels import order as kernels
from vecdb.kernels.beam import H_ENTRY, H_UPPER_USED

Order = npt.NDArray[np.int32]
_CHUNK = 1_024
REBUILD_BELOW = 0.7
"""Share of live vertices below which mending costs recall and the live ones are linked afresh."""
_REPAIRS = 3
"""Rounds of linking what cannot be reached: one is enough unless a place had to be taken from another."""


def reorder(graph: Graph, capacity: int | None = None) -> tuple[Graph, Order]:
    """A copy of the graph numbered breadth-first from the entry, so that what is walked together lies together.

    Returns (graph, order int32 (count,)): new ordinal ``i`` is old ordinal ``order[i]``; rows, codes and whatever else
    goes by ordinals are the caller's to permute (:func:`permute`).
    """
    order, _ = _breadth_first(graph)
    return renumber(graph, order, capacity), order


def consolidate(graph: Graph, space: Space, rows: npt.NDArray[Any], aux: npt.NDArray[np.float32],
                live: npt.NDArray[np.uint64], run: Run = serial, capacity: int | None = None) -> tuple[Graph, Order]:
    """A copy of the graph without the vertices whose bit in ``live`` is cleared.

    Live vertices that linked to dead ones choose anew among their live neighbours and those reached through the dead
    (FreshDiskANN's delete consolidation, Singh et al. 2021, algorithm 4, following chains of dead ones, and keeping the
    degree a vertex had); then ordinals are compacted in their old order, and what cannot be reached from the entry is
    linked again.  Where fewer than 70 % are live, they are linked afresh instead.  Returns (graph, order)
    as :func:`reorder` does.  ``rows`` and ``aux`` are the old ones; the graph given is left alone.
    """
    words = frozen(live)
    count = graph.count
    bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=count).astype(bool)
    order = np.flatnonzero(bits).astype(np.int32)
    room = max(len(order), capacity or 0)
    if not len(order):
        return Graph.allocate(room, m=graph.m, ef_construction=graph.ef_construction, seed=graph.seed), order
    kept, kept_aux = permute(rows, order), aux[order] if len(aux) else aux
    if len(order) < REBUILD_BELOW * count:
        fresh = Graph.allocate(room, m=graph.m, ef_construction=graph.ef_construction, seed=graph.seed)
        grow(fresh, space, kept, kept_aux, len(order), run)
        return fresh, order
    exact = RowCodes(space, rows, aux)
    mended = graph
    if len(order) < count:
        mended = graph.copy(count)
        top = int(mended.levels[:count].max())
        for level in range(top + 1):
            _mend_level(mended, exact, order[mended.levels[order] >= level], level, words, run)
        if not bits[mended.entry]:
            mended.header[H_ENTRY] = int(order[np.argmax(mended.levels[order])])
    compact = renumber(mended, order, room)
    _repair(compact, RowCodes(space, kept, kept_aux))
    return compact, order


def repair(graph: Graph, space: Space, rows: npt.NDArray[Any], aux: npt.NDArray[np.float32]) -> int:
    """Lead, in place, to what a walk from the entry cannot reach; return how many such vertices there were."""
    return _repair(graph, RowCodes(space, rows, aux))


def renumber(graph: Graph, order: Order, capacity: int | None = None) -> Graph:
    """A copy with vertex ``order[i]`` as vertex ``i``; links to vertices not in ``order`` are dropped.

    The entry must be in ``order``.  Room beyond its length gets levels drawn as :meth:`Graph.allocate` draws them.
    """
    count = len(order)
    room = max(count, capacity or 0)
    place = np.full(graph.count, -1, np.int32)
    place[order] = np.arange(count, dtype=np.int32)
    levels = np.concatenate([graph.levels[order], draw_levels(count, room, graph.m, graph.seed)])
    ends = np.cumsum(levels, dtype=np.int64)
    slots = (ends - levels).astype(np.int32)
    used = int(ends[-1]) if room else 0
    links0, upper = allocate((room, graph.m0), np.int32), allocate((used, graph.m), np.int32)
    kernels.relabel(frozen(graph.links0), frozen(order.astype(np.int64)), frozen(place), links0)
    kernels.relabel(frozen(graph.upper), frozen(upper_rows(graph.slots[order], graph.levels[order])), frozen(place),
                    upper)
    header = np.zeros_like(graph.header)
    header[H_ENTRY] = -1
    header[H_UPPER_USED] = used
    made = Graph(links0, levels, slots, upper, header, ef_construction=graph.ef_construction, seed=graph.seed)
    if count:
        publish(made, count, int(place[graph.entry]))
    return made


def permute(rows: npt.NDArray[Any], order: Order, capacity: int | None = None) -> npt.NDArray[Any]:
    """``rows[order]`` in huge-page memory, with zeroed room up to ``capacity`` rows."""
    out = allocate((max(len(order), capacity or 0), *rows.shape[1:]), rows.dtype)
    for lo in range(0, len(order), 65_536):
        part = order[lo:lo + 65_536]
        np.take(rows, part, axis=0, out=out[lo:lo + len(part)], mode="clip")
    return out


def _breadth_first(graph: Graph) -> tuple[Order, int]:
    count = graph.count
    order, place = np.empty(count, np.int32), np.full(count, -1, np.int32)
    return order, int(kernels.breadth_first(frozen(graph.links0), graph.entry, count, order, place))


def _mend_level(graph: Graph, exact: RowCodes, members: Order, level: int, live: npt.NDArray[np.uint64],
                run: Run) -> None:
    links = graph.links0 if level == 0 else graph.upper
    mend = kernels.mend_for(exact.family)
    pool: list[tuple[Any, ...]] = []

    def mending(lo: int, hi: int) -> Callable[[], None]:
        def thunk() -> None:
            try:
                scratch = pool.pop()
            except IndexError:
                scratch = (allocate(graph.count, np.int32), np.empty(kernels.MAX_DETOURS, np.int32),
                           np.empty(kernels.MAX_DETOURS, np.uint64))
            mend(links, graph.slots, level, exact.codes, exact.aux, members, lo, hi, live, *scratch)
            pool.append(scratch)
        return thunk

    run([mending(lo, min(lo + _CHUNK, len(members))) for lo in range(0, len(members), _CHUNK)])


def _repair(graph: Graph, exact: RowCodes) -> int:
    first = -1
    for _ in range(_REPAIRS):
        order, reached = _breadth_first(graph)
        lost = np.sort(order[reached:])
        first = len(lost) if first < 0 else first
        if not len(lost):
            break
        searcher = Searcher(graph, exact)
        width = max(graph.ef_construction, 2 * graph.m0)
        for lo in range(0, len(lost), _CHUNK):
            part = lost[lo:lo + _CHUNK]
            near = searcher.search(_queries(exact, part), k=width, ef=width).ordinals
            for vertex, candidates in zip(part.tolist(), near, strict=True):
                _lead_to(graph, vertex, candidates[(candidates >= 0) & (candidates != vertex)])
    return first


def _queries(exact: RowCodes, ordinals: Order) -> npt.NDArray[Any]:
    space = exact.space
    rows: npt.NDArray[Any] = exact.codes.view(space.row_dtype)[ordinals, :space.row_items]
    return rows


def _lead_to(graph: Graph, vertex: int, candidates: npt.NDArray[np.int32]) -> None:
    """Link ``vertex`` from the nearest of ``candidates`` with a free place, so that no other loses its only link.

    A vertex that lost all its own links gets the nearest candidates.  The farthest link of the nearest gives way where
    no candidate has room.
    """
    if not len(candidates):
        return
    if graph.links0[vertex, 0] < 0:
        graph.links0[vertex, :graph.m] = -1
        near = candidates[:graph.m]
        graph.links0[vertex, :len(near)] = near
    rows = graph.links0[candidates]
    free = np.flatnonzero(rows[:, -1] < 0)
    source = int(candidates[free[0]] if len(free) else candidates[0])
    row = graph.links0[source]
    place = int(np.argmax(row < 0)) if len(free) else graph.m0 - 1
    row[place] = vertex
