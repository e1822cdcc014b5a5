"""One query on one sealed graph, with everything laid out that is the same for the next one.

Most queries of a program differ in nothing but the vector.  For those that ask for ids and distances alone, of a shard
that is one sealed segment with a graph over float32 rows, :class:`Direct` finds what
:func:`vecdb.segment.search.run_plan` does, without what that makes on the way.
"""

from math import ceil
from typing import Any

from vecdb.ann.hnsw.lone import MOST_K, Lone
from vecdb.core.query import QueryRequest
from vecdb.segment.sealed import SealedView
from vecdb.segment.search import plan_view


class Direct:
    """Of one view and all that a request says besides its vector; see :meth:`of`.  One thread's."""

    __slots__ = ("_ann", "_lone", "_rows")

    def __init__(self, view: SealedView, lone: Lone) -> None:
        self._ann, self._rows = view.segment.ann, view.segment.codes
        self._lone = lone

    @classmethod
    def of(cls, view: Any, request: QueryRequest, unit: bool) -> "Direct | None":
        """For requests like this one (whose vector does not matter), or None if the view needs more for them."""
        if not isinstance(view, SealedView) or request.filter is not None or request.within is not None \
                or request.exact or request.include_metadata or request.include_vectors or request.explain \
                or request.profile:
            return None
        segment = view.segment
        ann, ids = segment.ann, segment.ids.integers
        if ann.graph is None or ann.ivf is not None or ids is None or not 0 < request.k <= MOST_K:
            return None
        planned = plan_view(view, request, 1, lambda rids: [])
        if planned.strategy is None or planned.strategy.kind != "beam" or planned.allowed is not None \
                or planned.missing is not None or planned.matches < request.k:
            return None
        searcher = ann.searcher(segment.codes)
        fits = Lone.fits(searcher)
        ann.idle.append(searcher)
        if not fits:
            return None
        return cls(view, Lone(segment.space.metric, unit, ids, ann.graph.count, k=request.k, ef=planned.strategy.ef,
                              keep=ceil(request.k * ann.oversample)))

    @property
    def hops(self) -> int:
        """Of the last query."""
        return self._lone.hops

    @property
    def comparisons(self) -> int:
        """Of the last query."""
        return self._lone.comparisons

    def answer(self, data: bytes) -> tuple[bytes, bytes] | None:
        """Ids int64 and users' distances float32, k each; None if the query takes more than this can do."""
        idle = self._ann.idle
        searcher = idle.pop() if idle else self._ann.searcher(self._rows)
        found = self._lone.search(searcher, data)
        idle.append(searcher)
        return found
