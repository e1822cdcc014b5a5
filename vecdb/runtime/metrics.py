"""What the node counts of its calls, as Prometheus metrics: an :class:`~vecdb.ports.observer.Observer`.

One lock, held for the time of a few additions; families are made when somebody looks (see
:mod:`vecdb.runtime.exposition`).  Labels are bounded: methods come from our own faces, collections up to
``collections_max`` are told apart once a call to them has succeeded, and forgotten when they are dropped.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from prometheus_client.core import Metric

from vecdb.core.calls import Call
from vecdb.core.query import Cost, QueryRequest, QueryResult
from vecdb.ports.observer import LoneQuery, Refusal, Watched
from vecdb.runtime.instruments import (
    JOB_SECONDS,
    OTHER,
    RATIOS,
    ROWS,
    SECONDS,
    Labels,
    Names,
    Tally,
    counters,
    gauges,
    histograms,
)

COLLECTIONS_MAX: Final = 100
METHODS_MAX: Final = 100
DROP: Final = "Collections/Drop"

_WATCHED: Final = {
    Watched.QUEUED_ROWS: ("vecdb_queue_rows", "Query rows waiting for their turn", "queue"),
    Watched.QUEUED_CALLS: ("vecdb_queue_calls", "Calls waiting for their turn", "queue"),
    Watched.INFLIGHT_BYTES: ("vecdb_inflight_bytes", "Bytes of requests held", ""),
    Watched.STREAMS: ("vecdb_streams", "Open streams", "method"),
    Watched.CONNECTIONS: ("vecdb_connections", "Open connections", "face"),
    Watched.API_KEYS: ("vecdb_api_keys", "API keys that may be used", ""),
    Watched.CERTIFICATE_EXPIRY: ("vecdb_certificate_expiry_timestamp_seconds", "When the certificate ends", ""),
    Watched.CACHE_HITS: ("vecdb_cache_hits", "Look-ups that a cache answered", "cache"),
    Watched.CACHE_MISSES: ("vecdb_cache_misses", "Look-ups that a cache could not answer", "cache"),
    Watched.CACHE_ENTRIES: ("vecdb_cache_entries", "Entries a cache holds", "cache"),
    Watched.DRAINING: ("vecdb_draining", "1 while the node finishes its calls to stop", ""),
}
_TOTALS: Final = (Watched.CACHE_HITS, Watched.CACHE_MISSES)


class QueryListener(Protocol):
    """Somebody else who wants to know of answered queries: a sampler, a log.  Quick, and raises nothing."""

    def __call__(self, collection: str, request: QueryRequest, result: QueryResult, cost: Cost, call: Call) -> None: ...


class BriefListener(Protocol):
    """The same of a query that was alone and quick."""

    def __call__(self, told: LoneQuery) -> None: ...


class _Calls:
    """Numbers of one method and collection."""

    __slots__ = ("bytes_in", "bytes_out", "codes", "seconds")

    def __init__(self) -> None:
        self.seconds = Tally(SECONDS)
        self.codes: dict[str, int] = {}
        self.bytes_in = 0
        self.bytes_out = 0


class _Queries:
    """Numbers of one collection's batches and queries."""

    __slots__ = ("calls", "comparisons", "compute", "hops", "inline", "lone", "partial", "rows", "slow", "threaded",
                 "waits")

    def __init__(self) -> None:
        self.rows = Tally(ROWS)
        self.calls = Tally(ROWS)
        self.waits = Tally(SECONDS)
        self.compute = Tally(SECONDS)
        self.inline = self.threaded = self.partial = self.slow = 0
        self.lone = 0
        """Queries told of by ``lone_query`` and not yet added to what they are one each of."""
        self.hops = self.comparisons = 0.0

    def settle(self) -> None:
        """Add the lone ones: one row, one call, no wait, inline."""
        lone, self.lone = self.lone, 0
        for tally, value in ((self.rows, 1.0), (self.calls, 1.0), (self.waits, 0.0)):
            tally.add(value, lone)
        self.inline += lone


class Metrics:
    """The node's counters; safe to use from many threads."""

    def __init__(self, *, collections_max: int = COLLECTIONS_MAX) -> None:
        self.names = Names(collections_max)
        self._methods = Names(METHODS_MAX)
        self._lock = threading.Lock()
        self._calls: dict[Labels, _Calls] = {}
        self._queries: dict[str, _Queries] = {}
        self._in_flight: dict[str, int] = {}
        self._refusals: dict[str, int] = dict.fromkeys(map(str, Refusal), 0)
        self._recall: dict[Labels, Tally] = {}
        self._samples: dict[Labels, float] = {}
        self._recall_cpu_s = 0.0
        self._jobs: dict[Labels, Tally] = {}
        self._log_events: dict[Labels, float] = defaultdict(float)
        self._watched: dict[Watched, dict[str, Callable[[], float]]] = {what: {} for what in Watched}
        self._listeners: tuple[QueryListener, ...] = ()
        self._brief: tuple[BriefListener, ...] = ()

    # --- the observer -----------------------------------------------------------------------------

    def call_began(self, method: str) -> float:
        with self._lock:
            if method in self._in_flight:
                self._in_flight[method] += 1
            else:
                label = self._methods.believe(method)
                self._in_flight[label] = self._in_flight.get(label, 0) + 1
        return time.monotonic()

    def call_ended(self, method: str, began: float, collection: str, code: str, bytes_in: int,
                   bytes_out: int) -> float:
        seconds = time.monotonic() - began
        with self._lock:
            if method not in self._in_flight:
                method = OTHER
            cell = self._calls.get((method, collection))
            if cell is None:
                cell = self._cell(method, collection, code)
            cell.seconds.add(seconds)
            cell.codes[code] = cell.codes.get(code, 0) + 1
            cell.bytes_in += bytes_in
            cell.bytes_out += bytes_out
            self._in_flight[method] -= 1
            if method == DROP and code == "OK":
                self._forget(collection)
        return seconds

    def batch_ran(self, collection: str, rows: int, waits_s: Sequence[float], compute_s: float, inline: bool) -> None:
        with self._lock:
            cell = self._queries.get(collection) or self._query_cell(collection)
            cell.rows.add(rows)
            cell.calls.add(len(waits_s))
            cell.compute.add(compute_s)
            for wait in waits_s:
                cell.waits.add(wait)
            if inline:
                cell.inline += 1
            else:
                cell.threaded += 1

    def queried(self, collection: str, request: QueryRequest, result: QueryResult, cost: Cost, call: Call) -> None:
        with self._lock:
            cell = self._queries.get(collection) or self._query_cell(collection)
            share = len(request.vectors) / max(1, cost.batched)  # its figures are of the whole batch
            cell.hops += cost.hops * share
            cell.comparisons += cost.comparisons * share
            if result.missing:
                cell.partial += 1
        for listener in self._listeners:
            listener(collection, request, result, cost, call)

    def lone_query(self, told: LoneQuery) -> None:
        method, collection, seconds, compute_s = told.method, told.collection, told.seconds, told.compute_s
        with self._lock:
            calls = self._calls.get((method, collection))
            if calls is None:
                calls = self._cell(self._methods.believe(method), collection, "OK")
            calls.seconds.add(seconds)
            calls.codes["OK"] = calls.codes.get("OK", 0) + 1
            calls.bytes_in += told.bytes_in
            calls.bytes_out += told.bytes_out
            cell = self._queries.get(collection) or self._query_cell(collection)
            cell.lone += 1
            cell.compute.add(compute_s)
            cell.hops += told.hops
            cell.comparisons += told.comparisons
        for listener in self._brief:
            listener(told)

    def refused(self, reason: Refusal) -> None:
        with self._lock:
            self._refusals[reason] += 1

    def watch(self, what: Watched, read: Callable[[], float], label: str = "") -> None:
        with self._lock:
            self._watched[what] = {**self._watched[what], label: read}

    def compute_s(self) -> dict[str, float]:
        """Seconds that queries of each collection (or shard of one) have been computed for, as far as they are told
        apart.
        """
        with self._lock:
            return {name: cell.compute.sum for name, cell in self._queries.items()}

    # --- others who tell --------------------------------------------------------------------------

    def listen(self, listener: QueryListener, brief: BriefListener | None = None) -> None:
        """Also tell ``listener`` of every query answered here, ``brief`` of those that were alone and quick."""
        self._listeners = (*self._listeners, listener)
        if brief is not None:
            self._brief = (*self._brief, brief)

    def recall_measured(self, collection: str, selectivity: str, ratio: float) -> None:
        """:class:`vecdb.services.recall.Report`."""
        with self._lock:
            key = (self.names.believe(collection), selectivity)
            self._recall.setdefault(key, Tally(RATIOS)).add(ratio)

    def recall_ended(self, outcome: str, cpu_s: float) -> None:
        """:class:`vecdb.services.recall.Report`."""
        with self._lock:
            self._samples[(outcome,)] = self._samples.get((outcome,), 0.0) + 1
            self._recall_cpu_s += cpu_s

    def slow_query(self, collection: str) -> None:
        """A query took longer than the slow-query log's threshold, whether it was logged or not."""
        with self._lock:
            (self._queries.get(collection) or self._query_cell(collection)).slow += 1

    def job_ended(self, kind: str, outcome: str, seconds: float) -> None:
        """``outcome``: done, failed or cancelled."""
        with self._lock:
            self._jobs.setdefault((kind, outcome), Tally(JOB_SECONDS)).add(seconds)

    def log_event(self, level: str) -> None:
        """A line of the log, or one that was left out as a repetition."""
        with self._lock:
            self._log_events[(level,)] += 1

    def forget(self, collection: str) -> None:
        """Let go of a dropped collection's series and make room for another's."""
        with self._lock:
            self._forget(collection)

    # --- cells ------------------------------------------------------------------------------------

    def _cell(self, method: str, collection: str, code: str) -> _Calls:
        label = self.names.believe(collection) if code == "OK" else self.names.label(collection)
        return self._calls.setdefault((method, label), _Calls())

    def _query_cell(self, collection: str) -> _Queries:
        return self._queries.setdefault(self.names.believe(collection), _Queries())

    def _forget(self, collection: str) -> None:
        if collection in ("", OTHER):
            return
        self.names.forget(collection)
        self._queries.pop(collection, None)
        for key in [key for key in self._calls if key[1] == collection]:
            del self._calls[key]
        for label in [label for label in self._recall if label[0] == collection]:
            del self._recall[label]

    # --- families ---------------------------------------------------------------------------------

    def collect(self) -> Iterator[Metric]:
        """Everything, as ``prometheus_client`` has collectors.

        The lock is held to copy what cells there are, not to read them: a sum may be a call ahead of its count.
        """
        with self._lock:
            for cell in self._queries.values():
                cell.settle()
            calls, queries, in_flight = dict(self._calls), dict(self._queries), dict(self._in_flight)
            recall, jobs, watched = dict(self._recall), dict(self._jobs), dict(self._watched)
        yield from self._call_families(calls, in_flight)
        yield from _query_families({(name,): cell for name, cell in queries.items()})
        yield from self._other_families(recall, jobs)
        for what, readers in watched.items():
            yield _look(what, readers)

    def _call_families(self, calls: dict[Labels, _Calls], in_flight: dict[str, int]) -> Iterator[Metric]:
        by = ("method", "collection")
        yield counters("vecdb_requests", "Calls that ended", (*by, "code"),
                       {(*key, code): count for key, cell in calls.items() for code, count in dict(cell.codes).items()})
        yield histograms("vecdb_request_duration_seconds", "From a call's first byte to its last", by,
                         {key: cell.seconds for key, cell in calls.items()})
        yield gauges("vecdb_requests_in_flight", "Calls that have begun and not ended", ("method",),
                     {(method,): count for method, count in in_flight.items()})
        yield counters("vecdb_request_bytes", "Message bytes received", by,
                       {key: cell.bytes_in for key, cell in calls.items()})
        yield counters("vecdb_response_bytes", "Message bytes sent", by,
                       {key: cell.bytes_out for key, cell in calls.items()})
        yield counters("vecdb_refusals", "Calls turned away before any work was done for them", ("reason",),
                       {(reason,): count for reason, count in self._refusals.items()})

    def _other_families(self, recall: dict[Labels, Tally], jobs: dict[Labels, Tally]) -> Iterator[Metric]:
        yield histograms("vecdb_query_recall_ratio", "Share of the exact answer that sampled queries found",
                         ("collection", "selectivity"), recall)
        yield counters("vecdb_recall_samples", "Sampled queries by what came of them", ("outcome",),
                       dict(self._samples))
        yield counters("vecdb_recall_cpu_seconds", "CPU time spent on measuring recall", (), {(): self._recall_cpu_s})
        yield histograms("vecdb_job_duration_seconds", "Background jobs that ended", ("kind", "outcome"), jobs)
        yield counters("vecdb_log_events", "Log events, repetitions included", ("level",),
                       dict(self._log_events))


def _query_families(cells: dict[Labels, _Queries]) -> Iterator[Metric]:
    by = ("collection",)
    yield histograms("vecdb_batch_rows", "Query rows that ran together", by,
                     {key: cell.rows for key, cell in cells.items()})
    yield histograms("vecdb_batch_calls", "Calls whose queries ran together", by,
                     {key: cell.calls for key, cell in cells.items()})
    yield histograms("vecdb_query_queue_seconds", "Wait of a query for its turn", by,
                     {key: cell.waits for key, cell in cells.items()})
    yield histograms("vecdb_batch_compute_seconds", "Time of a batch in the engine", by,
                     {key: cell.compute for key, cell in cells.items()})
    yield counters("vecdb_batches", "Batches by where they ran", (*by, "mode"),
                   {(*key, mode): count for key, cell in cells.items()
                    for mode, count in (("inline", cell.inline), ("thread", cell.threaded))})
    for name, text, part in (("vecdb_query_hops", "Vertices visited in graphs", "hops"),
                             ("vecdb_query_comparisons", "Distances computed", "comparisons"),
                             ("vecdb_query_partial", "Answers without a damaged part of the data", "partial"),
                             ("vecdb_slow_queries", "Queries over log.slow_query_ms", "slow")):
        yield counters(name, text, by, {key: getattr(cell, part) for key, cell in cells.items()})


def _look(what: Watched, readers: dict[str, Callable[[], float]]) -> Metric:
    """Ask whoever knows; one that fails is left out rather than the whole page."""
    name, text, label = _WATCHED[what]
    values: dict[Labels, float] = {}
    for key, read in readers.items():
        try:
            values[(key,) if label else ()] = float(read())
        except Exception:  # noqa: S112 - a reader of something that is being closed
            continue
    make = counters if what in _TOTALS else gauges
    return make(name, text, (label,) if label else (), values)
