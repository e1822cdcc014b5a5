"""One segment, one batch of queries: pick a strategy by the filter's selectivity, run one kernel.

Distances here are *raw* (see :class:`~vecdb.ann.space.Space`).  Whatever the strategy, a query gets ``k``
results whenever ``k`` records match: a beam that comes back with fewer is followed by an exact scan.

``call.stop`` reaches the kernels and the filter's evaluation; what a search had found when it was stopped is never
an answer.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann.flat import scan
from vecdb.ann.found import Found
from vecdb.ann.hnsw import Mode
from vecdb.core.calls import Call
from vecdb.core.query import QueryRequest
from vecdb.metadata.selectivity import Strategy, choose
from vecdb.segment.bits import Bits, members, size
from vecdb.segment.calibrate import ef_for
from vecdb.segment.growing import GrowingView
from vecdb.segment.matching import ReadMetadata, allowed_bits
from vecdb.segment.merge import join
from vecdb.segment.sealed import SealedView

Stop = npt.NDArray[np.int32] | None

SURELY_BEAM = 20_000
"""Records from which a search without a filter need not compare its cost with a scan's."""
SURELY_NARROW = 64
"""Records for each place of a beam from which it looks at fewer of them than a scan, whatever else is so."""
SPARSE = 4
"""A filter that keeps fewer than one in this many is scanned by a list of ordinals: 24 to 30 ns a match against
about 40 by bitset at 5 to 10 % (448-byte rows)."""


@dataclass(frozen=True, slots=True, eq=False)
class SegmentAnswer:
    """``found`` in the segment's ordinals; ``plan`` for ``explain``; ``missing`` says what could not be searched."""

    found: Found
    plan: dict[str, Any] = field(default_factory=dict)
    missing: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """How one pinned view is searched: the same for all queries of a request, so made once for all of its threads.

    ``allowed``: bitset of the ordinals to search under (None: all), ``matches`` of them; ``strategy`` is None if there
    are none.
    """

    view: GrowingView | SealedView
    request: QueryRequest
    allowed: Bits | None
    matches: int
    strategy: Strategy | None
    missing: str | None = None


def plan_view(view: GrowingView | SealedView, request: QueryRequest, queries: int, read_metadata: ReadMetadata,
              call: Call | None = None) -> Planned:
    """Evaluate the filter, choose a strategy for ``queries`` that go in one kernel call; raises what ends ``call``."""
    missing = None
    if isinstance(view, SealedView) and len(view.segment.damage.lost) and len(lost := view.lost()):
        missing = f"{view.segment.name}: {len(lost)} records with damaged vectors"
    allowed, matches = _allowed(view, request, read_metadata, call)
    strategy = _strategy(view, request, matches, queries) if matches else None
    return Planned(view, request, allowed, matches, strategy, missing)


def run_plan(planned: Planned, queries: npt.NDArray[Any], call: Call | None = None) -> SegmentAnswer:
    """Answer ``queries`` (nq, row_items), all or some of the request's; raises what ends ``call``."""
    view, request, strategy = planned.view, planned.request, planned.strategy
    if strategy is None:
        return SegmentAnswer(_nothing(len(queries)), {"segment": view.segment.name, "strategy": "none",
                                                      "matches": 0}, planned.missing)
    found = _run(planned, strategy, queries, min(request.k, planned.matches), None if call is None else call.stop)
    if call is not None:
        call.check()  # what was found until then is no answer
    if not request.explain:
        return SegmentAnswer(found, missing=planned.missing)
    plan = {"segment": view.segment.name, "records": view.live_count, "matches": planned.matches,
            "selectivity": planned.matches / view.live_count if view.live_count else 0.0, "strategy": strategy.kind,
            "reason": strategy.reason, **strategy.numbers, "hops": found.hops, "comparisons": found.comparisons}
    return SegmentAnswer(found, plan, planned.missing)


def _allowed(view: GrowingView | SealedView, request: QueryRequest, read_metadata: ReadMetadata,
             call: Call | None) -> tuple[Bits | None, int]:
    """The bitset to search under (None: everything) and how many records it leaves."""
    if request.filter is not None:
        words = allowed_bits(view, request.filter, read_metadata, call)
        if isinstance(view, SealedView) and (served := view.segment.served()) is not None:
            words &= served
        return words, size(words)
    if isinstance(view, SealedView) and view.segment.served() is not None:
        words = view.serving()
        return words, size(words)
    if view.live_count == view.count:
        return None, view.count
    return view.serving(), view.live_count


def _strategy(view: GrowingView | SealedView, request: QueryRequest, matches: int, queries: int) -> Strategy:
    code_bytes = 0
    if isinstance(view, GrowingView):
        searchable = view.segment.linked > 0
        ef = ef_for(view.segment.ef, request.k, request.ef_search)
    else:
        ann = view.segment.ann
        searchable = ann.searchable
        ef = ef_for(ann.ef, request.k, request.ef_search)
    if request.filter is None and matches == view.count >= SURELY_BEAM and searchable and not request.exact \
            and ef * SURELY_NARROW <= matches:
        return Strategy("beam", ef, "no filter")
    if request.exact or not searchable:
        return Strategy("exact", 0, "exact was asked for" if request.exact else "no index here")
    if isinstance(view, SealedView) and view.segment.ann.codes is not None:
        code_bytes = view.segment.ann.codes.codes.strides[0]
    return choose(count=view.count, live=view.live_count, matches=matches, k=request.k, ef=ef,
                  row_bytes=view.segment.space.row_bytes, code_bytes=code_bytes,
                  m0=2 * view.segment.schema.index.m, filtered=request.filter is not None, queries=queries)


def _run(planned: Planned, strategy: Strategy, queries: npt.NDArray[Any], k: int, stop: Stop) -> Found:
    view, request, allowed = planned.view, planned.request, planned.allowed
    if strategy.kind == "exact":
        return _exact(planned, queries, k, 0, stop)
    mode: Mode = "filtered" if strategy.kind == "filtered_beam" else "post"
    ef = max(strategy.ef, k)
    if isinstance(view, SealedView):
        found = view.segment.ann.search(view.segment.codes, queries, k=k, ef=ef, nprobe=request.nprobe,
                                        allowed=allowed, mode=mode, stop=stop)
        return _completed(planned, queries, found, k, stop)
    graph = view.segment.graph
    assert graph is not None
    linked = min(graph.count, view.count)
    found = view.segment.search_graph(queries, k=k, ef=ef, allowed=allowed, count=linked, mode=mode, stop=stop)
    if linked < view.count:
        found = join(found, _exact(planned, queries, k, linked, stop), k)
    return _completed(planned, queries, found, k, stop)


def _completed(planned: Planned, queries: npt.NDArray[Any], found: Found, k: int, stop: Stop) -> Found:
    """Scan exactly for the queries a beam left short: the matches lie where the graph did not lead."""
    last = found.ordinals[:, k - 1]
    if (last[0] >= 0 if len(last) == 1 else last.min() >= 0) or found.stopped:
        return found
    short = np.flatnonzero(last < 0)
    exact = _exact(planned, queries[short], k, 0, stop)
    ordinals, distances = found.ordinals.copy(), found.distances.copy()
    ordinals[short], distances[short] = exact.ordinals, exact.distances
    return Found(ordinals, distances, found.hops, found.comparisons + exact.comparisons, exact.stopped)


def _exact(planned: Planned, queries: npt.NDArray[Any], k: int, lo: int, stop: Stop) -> Found:
    """Scan the ordinals from ``lo`` on."""
    view, allowed = planned.view, planned.allowed
    codes, hi = view.segment.codes, view.count
    if allowed is not None and planned.matches * SPARSE < hi - lo:
        ordinals = members(allowed, hi).astype(np.int32)
        return scan(codes, queries, k=k, ordinals=ordinals[np.searchsorted(ordinals, lo):], stop=stop)
    return scan(codes, queries, k=k, lo=lo, hi=hi, allowed=allowed, stop=stop)


def _nothing(rows: int) -> Found:
    return Found(np.empty((rows, 0), np.int32), np.empty((rows, 0), np.float32))
