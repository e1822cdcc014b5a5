"""The slow-query log: what was asked, how it was carried out, and where the time went.

Told of every answered query (:class:`vecdb.ports.observer.Observer.queried`), so the first comparison is all that a
quick one costs.  Under overload every query is slow: at most ``per_minute`` lines are written, and the first line after
a gap says how many were left out.

The plan costs the engine about 3.5 µs a query to say (2 % of a short one), so whoever runs queries asks
:meth:`SlowQueries.wants_plan` and sets ``explain`` only where a slow answer is to be expected.
"""

import threading
from collections.abc import Callable
from typing import Any, Final

from vecdb.core.calls import Call
from vecdb.core.filters import to_text
from vecdb.core.filters.tree import And, In, Node, Not, Or, paths_of
from vecdb.core.query import Cost, QueryRequest, QueryResult
from vecdb.ports.clock import Clock

EVENT: Final = "slow_query"
FILTER_CHARS: Final = 500
SEGMENTS_SHOWN: Final = 8
PER_MINUTE: Final = 60
PLAN_FROM: Final = 0.1
"""Share of the threshold from which a query's expected time makes its plan worth having."""

Log = Callable[[str, dict[str, Any]], None]


class SlowQueries:
    """``log(event, fields)`` gets what took more than ``threshold_ms`` of waiting and computing (0: nothing).

    ``counted(collection)`` is called for each of them, logged or not.
    """

    def __init__(self, threshold_ms: float, log: Log, clock: Clock, *, counted: Callable[[str], None] = lambda _: None,
                 per_minute: int = PER_MINUTE) -> None:
        self._threshold_ms = threshold_ms
        self._log = log
        self._clock = clock
        self._counted = counted
        self._per_minute = per_minute
        self._lock = threading.Lock()
        self._window_began = -1e9
        self._written = 0
        self._left_out = 0

    def wants_plan(self, expected_s: float) -> bool:
        """Whether a query that should take so long is worth explaining."""
        return 0.0 < self._threshold_ms * PLAN_FROM <= expected_s * 1e3

    def look(self, collection: str, request: QueryRequest, result: QueryResult, cost: Cost, call: Call) -> None:
        """A query was answered: see :class:`vecdb.runtime.metrics.QueryListener`."""
        took_ms = cost.queue_ms + cost.compute_ms
        if not 0.0 < self._threshold_ms < took_ms:
            return
        self._counted(collection)
        with self._lock:
            now = self._clock.monotonic()
            if now - self._window_began >= 60.0:
                self._window_began, self._written = now, 0
            if self._written >= self._per_minute:
                self._left_out += 1
                return
            self._written += 1
            left_out, self._left_out = self._left_out, 0
        told = fields(collection, request, result, cost, call) | {"took_ms": round(took_ms, 3)}
        if left_out:
            told["left_out"] = left_out
        self._log(EVENT, told)


def fields(collection: str, request: QueryRequest, result: QueryResult, cost: Cost, call: Call) -> dict[str, Any]:
    """What the line says, small: no vectors, filters and plans cut."""
    told: dict[str, Any] = {"collection": collection, "rows": len(request.vectors), "k": request.k,
                            "queue_ms": round(cost.queue_ms, 3), "compute_ms": round(cost.compute_ms, 3),
                            "batched": cost.batched, "hops": cost.hops, "comparisons": cost.comparisons,
                            "results": sum(len(one.ids) for one in result.matches)}
    for name, value in (("ef_search", request.ef_search), ("nprobe", request.nprobe), ("within", request.within),
                        ("exact", request.exact), ("include_metadata", request.include_metadata),
                        ("include_vectors", request.include_vectors), ("request_id", call.request_id),
                        ("principal", call.principal), ("missing", list(result.missing))):
        if value:
            told[name] = value
    if request.filter is not None:
        told["filter"] = _text(request.filter)
    if result.plan is not None:
        told["plan"] = _short(result.plan)
    return told


def _text(node: Node) -> str:
    """The filter's expression; a long one is cut, and of a very long one only the fields are told."""
    if _values(node) > FILTER_CHARS:
        return f"({_values(node)} values of {', '.join(paths_of(node))})"[:FILTER_CHARS]
    text = to_text(node)
    return text if len(text) <= FILTER_CHARS else text[:FILTER_CHARS] + "…"


def _values(node: Node) -> int:
    """How many values a tree holds: the time its text would take on the event loop."""
    if isinstance(node, And | Or):
        return sum(_values(part) for part in node.nodes)
    if isinstance(node, Not):
        return _values(node.node)
    return len(node.values) if isinstance(node, In) else 1


def _short(plan: dict[str, Any]) -> dict[str, Any]:
    segments = plan.get("segments", [])
    if len(segments) <= SEGMENTS_SHOWN:
        return plan
    return plan | {"segments": segments[:SEGMENTS_SHOWN], "segments_left_out": len(segments) - SEGMENTS_SHOWN}
