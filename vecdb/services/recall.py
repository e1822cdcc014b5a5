"""Recall of the live traffic, measured in the background: a few queries are answered again, exactly.

**What is picked.**  Of each collection one row of one query, every query since the last pick with the same chance
(a reservoir of one); the collection whose turn is longest ago goes first.  Queries that asked for an exact answer
are not picked.

**What is compared.**  The query is run twice, one after the other: as it was asked, and exactly.  The answer that the
client got is not used, for records may have been written since.  Both runs say the log index they saw; if it
moved between them the sample is dropped as ``overtaken``.  Sealing and merging move no log index, for they change no
record: such samples are good.  A plan that scanned every segment exactly has a recall of 1 and needs no second run.

**What counts as found.**  A record of the exact answer; and one that is as near as the last of it, for among equals
either is right.  Fewer than ``k`` records may match: the share is of those that the exact answer has.

**What it may cost.**  One thread with a raised nice value; after a sample of ``c`` CPU seconds the next waits until
``c / cpu_share`` have passed since the sample began, so that a collection whose exact scan takes a second is sampled
seldom rather than at others' expense.  Nice 5, not 19: the thread holds the interpreter's lock for parts of its time,
and one that is never scheduled would keep everybody waiting for it.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from time import thread_time
from typing import Any, Final, Protocol

import numpy as np

from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import CollectionNotFound, DatabaseClosed, VecdbError
from vecdb.core.query import Cost, Matches, QueryRequest, QueryResult
from vecdb.ports.clock import Clock
from vecdb.ports.observer import LoneQuery
from vecdb.services.priority import give_way

NICE: Final = 5
TIE: Final = 1e-5
"""Distances that differ by less, in relation to their size, are equal: two kernels may round differently."""
COLLECTIONS_MAX: Final = 100
SELECTIVITY: Final = ((0.001, "<0.1%"), (0.01, "<1%"), (0.1, "<10%"), (0.5, "<50%"))
WIDEST: Final = ">=50%"
NO_FILTER: Final = "none"

Run = Callable[[str, QueryRequest, Call], QueryResult]


class Report(Protocol):
    """Who is told: ``outcome`` is measured, exact (the query was), overtaken, empty, gone or failed."""

    def recall_measured(self, collection: str, selectivity: str, ratio: float) -> None: ...

    def recall_ended(self, outcome: str, cpu_s: float) -> None: ...


# --- decisions ------------------------------------------------------------------------------------


def found_share(approximate: Matches, exact: Matches) -> float | None:
    """The share of the exact answer that was found, 0 to 1; None if there was nothing to find."""
    if not exact.ids:
        return None
    wanted = set(exact.ids)
    last = float(exact.distances[-1])
    slack = TIE * max(1.0, abs(last))
    hits = sum(one in wanted or abs(float(distance) - last) <= slack
               for one, distance in zip(approximate.ids, approximate.distances, strict=True))
    return min(1.0, hits / len(wanted))


def selectivity_label(request: QueryRequest, plan: dict[str, Any]) -> str:
    """The class of the share of records that the filter left."""
    if request.filter is None:
        return NO_FILTER
    segments = plan["segments"]
    records = sum(part.get("records", 0) for part in segments)
    share = sum(part["matches"] for part in segments) / records if records else 0.0
    return next((label for bound, label in SELECTIVITY if share < bound), WIDEST)


def was_exact(plan: dict[str, Any]) -> bool:
    """Whether no segment was searched by an index."""
    return all(part["strategy"] in ("exact", "none") for part in plan["segments"])


def pause_s(cpu_s: float, took_s: float, share: float, interval_s: float) -> float:
    """How long to wait after a sample: neither more samples than asked nor more CPU than allowed."""
    return max(interval_s, cpu_s / share) - took_s


@dataclass(slots=True)
class _Place:
    seen: int
    request: QueryRequest
    picked: int = 0


class Reservoir:
    """One query of each collection, every one since the last ``take`` with the same chance.  Safe for threads."""

    def __init__(self, random: Random, *, collections_max: int = COLLECTIONS_MAX) -> None:
        self._random = random
        self._most = collections_max
        self._lock = threading.Lock()
        self._places: dict[str, _Place] = {}
        self._turn: dict[str, int] = {}
        self._takes = 0

    def offer(self, collection: str, request: QueryRequest) -> None:
        """A query was answered; under a microsecond when it is not taken."""
        if request.exact or not len(request.vectors):
            return
        with self._lock:
            place = self._places.get(collection)
            if place is None:
                if len(self._places) < self._most:
                    self._places[collection] = _Place(1, self._row(request))
                return
            place.seen += 1
            if self._random.random() * place.seen < 1.0:
                place.request = self._row(request)

    def offer_brief(self, told: LoneQuery) -> None:
        """The same of one that need not be made unless it is taken."""
        with self._lock:
            place = self._places.get(told.collection)
            if place is not None:
                place.seen += 1
                if self._random.random() * place.seen < 1.0:
                    place.request = self._row(told.request())
                return
        self.offer(told.collection, told.request())

    def take(self) -> tuple[str, QueryRequest] | None:
        """The held query of the collection that waits longest, if there is one."""
        with self._lock:
            if not self._places:
                return None
            name = min(self._places, key=lambda one: self._turn.get(one, 0))
            self._takes += 1
            self._turn.pop(name, None)
            self._turn[name] = self._takes
            if len(self._turn) > self._most:
                del self._turn[next(iter(self._turn))]
            return name, self._places.pop(name).request

    def _row(self, request: QueryRequest) -> QueryRequest:
        """One row of it, copied: a row that is only looked at would keep a whole message alive."""
        row = self._random.randrange(len(request.vectors)) if len(request.vectors) > 1 else 0
        return replace(request, vectors=np.array(request.vectors[row : row + 1]), include_metadata=False,
                       include_vectors=False, explain=True, profile=False)


def measure(run: Run, collection: str, request: QueryRequest, call: Call) -> tuple[str, str, float]:
    """Run one sample: its outcome, and if that is ``measured`` or ``exact`` its selectivity class and share."""
    try:
        as_asked = run(collection, request, call)
        plan = as_asked.plan
        if plan is None or as_asked.missing:
            return "failed", "", 0.0
        label = selectivity_label(request, plan)
        if was_exact(plan):
            return ("exact", label, 1.0) if as_asked.matches[0].ids else ("empty", label, 0.0)
        exactly = run(collection, replace(request, exact=True, ef_search=0, nprobe=0), call)
    except (CollectionNotFound, DatabaseClosed):
        return "gone", "", 0.0
    except VecdbError:
        return "failed", "", 0.0
    if exactly.plan is None or exactly.plan["log_index"] != plan["log_index"]:
        return "overtaken", label, 0.0
    share = found_share(as_asked.matches[0], exactly.matches[0])
    return ("empty", label, 0.0) if share is None else ("measured", label, share)


# --- the thread -----------------------------------------------------------------------------------


class RecallSampler:
    """Samples from ``start`` to ``close``; :meth:`offer` listens to queries (see ``Metrics.listen``).

    ``run``: the engine's query, past queues and counters.  ``per_minute`` and ``cpu_share`` (of one core) are above 0.
    """

    def __init__(self, run: Run, report: Report, clock: Clock, random: Random, *, per_minute: float,
                 cpu_share: float) -> None:
        self._run = run
        self._report = report
        self._clock = clock
        self._interval_s = 60.0 / per_minute
        self._share = cpu_share
        self._reservoir = Reservoir(random)
        self.offer_brief = self._reservoir.offer_brief
        self._call = Call(request_id="recall-sampler")
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def offer(self, collection: str, request: QueryRequest, result: QueryResult, cost: Cost, call: Call) -> None:
        self._reservoir.offer(collection, request)

    def sample(self) -> float:
        """Measure one of the held queries in the calling thread; returns the seconds to wait before the next."""
        taken = self._reservoir.take()
        if taken is None:
            return self._interval_s
        began, cpu = self._clock.monotonic(), thread_time()
        outcome, label, share = measure(self._run, *taken, self._call)
        spent = thread_time() - cpu
        if self._call.stop[0] == Stopped.NO:
            if outcome in ("measured", "exact"):
                self._report.recall_measured(taken[0], label, share)
            self._report.recall_ended(outcome, spent)
        return pause_s(spent, self._clock.monotonic() - began, self._share, self._interval_s)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="vecdb-recall", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End a running sample in its kernel, and wait for the thread.  A second call does nothing."""
        self._ending.set()
        self._call.end(Stopped.CANCELLED)
        if self._thread is not None:
            self._thread.join()

    def _loop(self) -> None:
        give_way(NICE)
        pause = self._interval_s
        while not self._ending.wait(max(0.0, pause)):
            try:
                pause = self.sample()
            except Exception:  # a sampler that failed must neither end nor be heard of every two seconds
                self._report.recall_ended("failed", 0.0)
                pause = 60.0
