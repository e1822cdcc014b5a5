"""Growing a graph in batches, on any number of threads, always to the same graph."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import Codes, Prepared, RowCodes, frozen
from vecdb.ann.hnsw.graph import Graph, Scratch, publish
from vecdb.ann.space import Space
from vecdb.kernels.link import PEERS, insert_for, merge_for

Run = Callable[[Sequence[Callable[[], None]]], None]
"""Runs thunks to completion, in any order, on any threads; kernels inside release the GIL."""

MAX_BATCH = 2_048
"""Most vertices that enter without seeing each other (but for their peers): larger batches cost recall."""
_GROWTH = 16
"""A batch is at most this fraction of what is linked: the early graph is made of small steps."""
_KEEP_CODED = 96
"""Candidates of a walk on codes whose exact distances are computed before neighbours are chosen."""

NO_STOP = frozen(np.zeros(1, np.int32))
EVERYTHING = frozen(np.zeros(1, np.uint64))


def serial(thunks: Sequence[Callable[[], None]]) -> None:
    """Run thunks one after the other on this thread."""
    for thunk in thunks:
        thunk()


class ScratchPool:
    """Scratches handed from thunk to thunk: as many as run at once (list operations are atomic)."""

    def __init__(self, vertices: int, beam: int, m0: int) -> None:
        self._free: list[Scratch] = []
        self._needs = (vertices, beam, m0)

    def take(self) -> Scratch:
        try:
            scratch = self._free.pop()
        except IndexError:
            scratch = Scratch()
        scratch.reserve(*self._needs)
        return scratch

    def give(self, scratch: Scratch) -> None:
        self._free.append(scratch)


def grow(graph: Graph, space: Space, rows: npt.NDArray[Any], aux: npt.NDArray[np.float32], upto: int,
         run: Run = serial, on_batch: Callable[[int], None] | None = None, codes: Codes | None = None) -> None:
    """Link the vertices [graph.count, upto) in batches; searches may go on meanwhile.

    ``rows`` (capacity, row_width) and ``aux`` from :meth:`Space.aux` hold at least ``upto`` filled rows.  After each
    batch the count is published and ``on_batch(count)`` called; when that raises, the graph stays as published and
    can be grown further.  ``codes`` over the same ordinals let the walk go over them instead of the rows (neighbours
    are still chosen on rows), which is quicker and costs little.  Counts of calls, not of threads, shape the graph.
    """
    if upto > graph.capacity:
        raise ValueError(f"upto {upto} is above the graph's capacity {graph.capacity}")
    exact = RowCodes(space, rows, aux)
    linker = Linker(graph, exact, codes or exact, run)
    if graph.count == 0 and upto > 0:
        graph.links0[0] = -1
        graph.upper[:int(graph.levels[0])] = -1
        publish(graph, 1, 0)
    while graph.count < upto:
        lo = graph.count
        hi = min(upto, lo + max(PEERS, min(lo // _GROWTH, MAX_BATCH)))
        members = np.arange(lo, hi, dtype=np.int32)
        linker.link(members)
        tallest = lo + int(np.argmax(graph.levels[lo:hi]))
        entry = graph.entry
        publish(graph, hi, tallest if graph.levels[tallest] > graph.levels[entry] else entry)
        if on_batch is not None:
            on_batch(hi)


class Linker:
    """Links batches of vertices into a graph: insert, then merge (:mod:`vecdb.kernels.link`)."""

    def __init__(self, graph: Graph, exact: RowCodes, walked: Codes, run: Run) -> None:
        self._graph, self._exact, self._walked, self._run = graph, exact, walked, run
        self._insert = insert_for(walked.family, exact.family)
        self._merge = merge_for(exact.family)
        ef = max(graph.ef_construction, graph.m)
        self._keep = min(ef, max(_KEEP_CODED, 2 * graph.m))
        self._pool = ScratchPool(graph.capacity, ef, graph.m0)

    def link(self, members: npt.NDArray[np.int32]) -> None:
        """Search for, choose and set the links of ``members``, then those of the vertices they chose."""
        graph, ef = self._graph, max(self._graph.ef_construction, self._graph.m)
        prepared = self._prepare(members)
        exact, walked = self._exact, self._walked

        def inserting(lo: int, hi: int) -> Callable[[], None]:
            def thunk() -> None:
                scratch = self._pool.take()
                self._insert(graph.context, walked.codes, walked.aux, prepared.codes, prepared.aux, exact.codes,
                             exact.aux, 0, members, lo, hi, ef, self._keep, EVERYTHING, NO_STOP, scratch.context,
                             scratch.tally)
                self._pool.give(scratch)
            return thunk

        self._run([inserting(lo, min(lo + PEERS, len(members))) for lo in range(0, len(members), PEERS)])
        self._merge_level(graph.links0, 0, graph.links0[members], members)
        levels = graph.levels[members]
        for level in range(1, int(levels.max(initial=0)) + 1):
            tall = members[levels >= level]
            self._merge_level(graph.upper, level, graph.upper[graph.slots[tall] + (level - 1)], tall)

    def _prepare(self, members: npt.NDArray[np.int32]) -> Prepared:
        space = self._exact.space
        rows = self._exact.codes.view(space.row_dtype)[members, :space.row_items]
        prepared = self._walked.prepare(rows)
        if self._walked is self._exact:
            # building subtracts from 1 whatever the metric, as ``pair`` does
            columns = prepared.aux.copy()
            columns[:, 0] = 1.0
            prepared = Prepared(prepared.codes, columns)
        return prepared

    def _merge_level(self, links: npt.NDArray[np.int32], level: int, chosen: npt.NDArray[np.int32],
                     members: npt.NDArray[np.int32]) -> None:
        """Add to each target in ``chosen`` (one row a member) the members that chose it."""
        flat = chosen.ravel()
        order = np.argsort(flat, kind="stable")
        order = order[int(np.searchsorted(flat[order], 0)):]
        if not len(order):
            return
        sources = np.repeat(members, chosen.shape[1])[order]
        targets, starts = np.unique(flat[order], return_index=True)
        starts = np.append(starts, len(order))
        most = int(np.diff(starts).max()) + links.shape[1]

        def merging(lo: int, hi: int) -> Callable[[], None]:
            def thunk() -> None:
                scratch = self._pool.take()
                scratch.reserve_keys(most)
                self._merge(links, self._graph.slots, level, self._exact.codes, self._exact.aux, targets, starts,
                            sources, lo, hi, scratch.keys)
                self._pool.give(scratch)
            return thunk

        size = 256
        self._run([merging(lo, min(lo + size, len(targets))) for lo in range(0, len(targets), size)])
