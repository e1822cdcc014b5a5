"""The growing segment: rows appended in reserved memory, a graph that follows, a count published last.

The rows' memory is reserved for the whole capacity at once and touched only as it fills, so an array
never moves: a reader that pinned a view needs no lock and no copy.  The writer stages rows beyond the
published count, where nobody looks, and publishes them by making a new view.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import RowCodes
from vecdb.ann.found import Found
from vecdb.ann.hnsw import Graph, Mode, Run, Searcher, grow
from vecdb.ann.space import Space
from vecdb.core.ids import RecordId
from vecdb.core.schema import AUTO_HNSW_RECORDS, CollectionSchema, IndexKind
from vecdb.metadata import GrowingIndex
from vecdb.segment.bits import Bits, cleared, extended, full, head, members
from vecdb.segment.calibrate import SAMPLE, calibrate

GRAPH_SEED = 0x5EED
"""Of every graph: the same records in the same order make the same graph anywhere."""
GRAPH_STEP = 512
"""Fewest new records worth linking at once: below, scanning them costs less than waking the builder."""


GROWING_EF = 128
"""Beam's width until it has been measured."""
MEASURE_FROM = 4_096
"""Linked records from which, at every doubling, the width is measured."""


class GrowingSegment:
    """One writer appends; any number of readers search pinned views; one builder links the graph.

    Rids are contiguous: ``ordinal = rid - first_rid``.
    """

    def __init__(self, segment_id: int, first_rid: int, schema: CollectionSchema, capacity: int) -> None:
        self.segment_id = segment_id
        self.first_rid = first_rid
        self.schema = schema
        self.capacity = capacity
        self.space = Space(schema.metric, schema.vector_type, schema.dim)
        self.rows = self.space.empty(capacity)
        self.aux = np.zeros(capacity if self.space.has_aux else 0, np.float32)
        self.codes = RowCodes(self.space, self.rows, self.aux)
        self.ids: list[RecordId] = []
        self.metadata = GrowingIndex(schema.indexed_fields)
        self.graph: Graph | None = None
        self.frozen = False
        self._idle: deque[Searcher] = deque()
        self.ef = GROWING_EF
        self._measured_at = 0
        self._published: tuple[int, Bits, int] = (0, full(0), 0)

    @property
    def name(self) -> str:
        return f"segment {self.segment_id} ({'frozen' if self.frozen else 'growing'})"

    @property
    def view(self) -> "GrowingView":
        """What is published now.  Not kept: a segment that held its view would outlive its last reader."""
        return GrowingView(self, *self._published)

    @property
    def count(self) -> int:
        """Published records, dead ones included."""
        return self._published[0]

    def stage(self, first_ordinal: int, stored: npt.NDArray[Any]) -> None:
        """Copy vectors (n, row_items) to ordinals that no view reaches yet."""
        self.space.fill(self.rows, first_ordinal, stored)
        if self.aux.size:
            stop = first_ordinal + len(stored)
            self.aux[first_ordinal:stop] = self.space.aux(self.rows[first_ordinal:stop])

    def publish(self, ids: Sequence[RecordId], metadata: Sequence[dict[str, Any]], dead: npt.NDArray[np.int64]) -> None:
        """Show staged rows and hide dead ordinals, in one step for readers; ``dead`` may name new ones."""
        count, live, live_count = self._published
        if ids:
            self.metadata.append(count, metadata)
            self.ids.extend(ids)
        live = extended(live, count + len(ids))
        if len(dead):
            live = cleared(live, dead)
        self._published = (count + len(ids), live, live_count + len(ids) - len(dead))

    @property
    def wants_graph(self) -> bool:
        """Whether enough records wait that linking them pays."""
        kind = self.schema.index.kind
        if kind in (IndexKind.FLAT, IndexKind.IVF_FLAT, IndexKind.IVF_PQ):
            return False
        count, linked = self.count, self.linked
        if kind is IndexKind.AUTO and linked == 0 and count < AUTO_HNSW_RECORDS:
            return False
        return count - linked >= max(GRAPH_STEP, linked // 64)

    @property
    def linked(self) -> int:
        """Records the graph holds: ordinals below it."""
        return 0 if self.graph is None else self.graph.count

    def grow_graph(self, run: Run, upto: int | None = None,
                   on_batch: Callable[[int], None] | None = None) -> None:
        """Link records up to ``upto`` (default: all published); searches go on meanwhile.  One caller at a time."""
        if self.graph is None:
            spec = self.schema.index
            self.graph = Graph.allocate(self.capacity, m=spec.m, ef_construction=spec.ef_construction,
                                        seed=GRAPH_SEED)
        stop = self.count if upto is None else upto
        if stop - self.graph.count >= SAMPLE and self.graph.count >= max(MEASURE_FROM, 2 * self._measured_at):
            self._measure(stop)
        if stop > self.graph.count:
            grow(self.graph, self.space, self.rows, self.aux, stop, run, on_batch)

    def _measure(self, stop: int) -> None:
        """Set the beam's width with records that wait to be linked: queries the graph has not seen."""
        linked = self.linked
        asked = np.linspace(linked, stop - 1, SAMPLE).astype(np.int64)
        self.ef = calibrate(self.codes, asked, linked, lambda queries, k, ef: self.search_graph(
            queries, k=k, ef=ef, allowed=None, count=linked, mode="post")).width
        self._measured_at = linked

    def search_graph(self, queries: npt.NDArray[Any], *, k: int, ef: int, allowed: Bits | None, count: int,
                     mode: Mode, stop: npt.NDArray[np.int32] | None = None) -> Found:
        """Search the linked vertices below ``count``; distances are exact, raw."""
        assert self.graph is not None
        try:
            searcher = self._idle.pop()
        except IndexError:
            searcher = Searcher(self.graph, self.codes)
        found = searcher.search(queries, k=k, ef=ef, allowed=allowed, count=count, mode=mode, stop=stop)
        self._idle.append(searcher)
        return found

    def memory_bytes(self) -> dict[str, int]:
        """Bytes in use by component (reserved but untouched memory does not count)."""
        count, live, _ = self._published
        graph = 0 if self.graph is None else self.graph.nbytes
        return {"vectors": count * int(self.rows.strides[0]) + 4 * min(count, self.aux.size), "graph": graph,
                "metadata": self.metadata.memory_bytes(), "ids": 64 * count, "live": live.nbytes}


@dataclass(frozen=True, slots=True, eq=False)
class GrowingView:
    """A moment of a growing segment: ordinals below ``count`` whose bit in ``live`` is set."""

    segment: GrowingSegment
    count: int
    live: Bits
    live_count: int

    def rids(self, ordinals: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        return ordinals.astype(np.int64) + self.segment.first_rid

    def ordinals(self, rids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Ordinals of rids, -1 for those not in this view (dead ones are found)."""
        found = rids - self.segment.first_rid
        return np.where((found >= 0) & (found < self.count), found, -1)

    def integer_ids(self) -> npt.NDArray[np.int64] | None:
        """None: they are in a list."""
        return None

    def ids(self, ordinals: npt.NDArray[np.int32]) -> list[RecordId]:
        ids = self.segment.ids
        return [ids[ordinal] for ordinal in ordinals.tolist()]

    def vectors(self, ordinals: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
        """Stored vectors (n, row_items) of ordinals, copied."""
        stored: npt.NDArray[Any] = self.segment.rows[ordinals][:, : self.segment.space.row_items]
        return stored

    @property
    def rid_range(self) -> tuple[int, int]:
        """Half-open range of this view's rids."""
        return self.segment.first_rid, self.segment.first_rid + self.count

    def serving(self) -> Bits:
        """Live ordinals whose vectors can be read, ``count`` bits."""
        return head(self.live, self.count)

    def live_rids(self) -> npt.NDArray[np.int64]:
        """Rids of live records, ascending."""
        return members(self.live, self.count) + self.segment.first_rid

    def damaged(self, ordinals: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        """Memory is not a file: nothing is."""
        return np.zeros(len(ordinals), np.bool_)
