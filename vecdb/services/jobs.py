"""Background jobs: a worker thread that gives way to those who answer, a queue without duplicates, progress and ETA.

A job is work that may be done later or again: it changes no record.  It reports progress through its
:class:`Job`, stops between steps when asked, and a failure is kept and shown, never lost.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from vecdb.core.errors import VecdbError
from vecdb.core.schema import collection_of
from vecdb.ports.clock import Clock
from vecdb.services.priority import UPKEEP, give_way


class JobCancelled(Exception):
    """Raised inside a job when the database closes."""


@dataclass(slots=True)
class Job:
    """One piece of work: ``done`` of ``total`` units of ``stage``; times in seconds of the clock."""

    kind: str
    collection: str
    key: tuple[Any, ...]
    started_s: float = 0.0
    stage: str = "queued"
    done: int = 0
    total: int = 0
    state: str = "queued"
    error: str | None = None
    listeners: list[Callable[[str, int, int], None]] = field(default_factory=list)
    stop: Callable[[], bool] = lambda: False

    def report(self, stage: str, done: int, total: int) -> None:
        """Called by the work; raises :class:`JobCancelled` when it should end."""
        self.stage, self.done, self.total = stage, done, total
        for listener in tuple(self.listeners):
            listener(stage, done, total)
        if self.stop():
            raise JobCancelled

    def describe(self, now_s: float) -> dict[str, Any]:
        elapsed = max(0.0, now_s - self.started_s) if self.state == "running" else 0.0
        share = self.done / self.total if self.total else 0.0
        eta = elapsed / share - elapsed if share > 0 else None
        return {"collection": collection_of(self.collection), "kind": self.kind, "state": self.state,
                "stage": self.stage, "done": self.done, "total": self.total, "elapsed_s": round(elapsed, 3),
                "eta_s": None if eta is None else round(eta, 3), "error": self.error}


class JobRunner:
    """Runs submitted jobs one after another; the same key is queued once."""

    def __init__(self, clock: Clock, report_error: Callable[[Job, Exception], None]) -> None:
        self._clock = clock
        self._report_error = report_error
        self.on_end: Callable[[Job, float], None] = lambda job, seconds: None
        self._wake = threading.Condition()
        self._queue: deque[tuple[Job, Callable[[Job], None]]] = deque()
        self._running: Job | None = None
        self._failed: dict[tuple[Any, ...], Job] = {}
        self._closing = False
        self._thread: threading.Thread | None = None

    def submit(self, kind: str, collection: str, key: tuple[Any, ...], work: Callable[[Job], None]) -> None:
        with self._wake:
            if self._closing:
                return
            if not any(job.key == key for job, _ in self._queue):
                self._queue.append((Job(kind, collection, key, stop=lambda: self._closing), work))
            if self._thread is None:
                thread = threading.Thread(target=self._loop, name="vecdb-jobs", daemon=True)
                with suppress(RuntimeError):  # none can be had now: the next job asks again, and whose write it
                    thread.start()            # follows has been carried out
                    self._thread = thread
            self._wake.notify_all()

    def describe(self, collection: str | None) -> list[dict[str, Any]]:
        """Running, queued and last failed jobs of a collection (None: of all)."""
        with self._wake:
            jobs = [*([self._running] if self._running else []), *(job for job, _ in self._queue),
                    *self._failed.values()]
        now = self._clock.monotonic()
        return [job.describe(now) for job in jobs if collection in (None, job.collection)]

    def forget(self, collection: str) -> None:
        """Drop queued and failed jobs of a collection that goes away, and wait for its running one."""
        with self._wake:
            self._queue = deque((job, work) for job, work in self._queue if job.collection != collection)
            self._failed = {key: job for key, job in self._failed.items() if job.collection != collection}
            running = self._running
            if running is not None and running.collection == collection:
                running.stop = lambda: True
                self._wake.wait_for(lambda: self._running is not running)

    def close(self) -> None:
        """Ask the running job to stop, drop the queue, and wait for the thread."""
        with self._wake:
            self._closing = True
            self._queue.clear()
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _loop(self) -> None:
        give_way(UPKEEP)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._closing)
                if self._closing:
                    return
                job, work = self._queue.popleft()
                self._running = job
                job.started_s = self._clock.monotonic()
                job.state = "running"
            try:
                work(job)
                job.state = "done"
                failure: Exception | None = None
            except JobCancelled:
                job.state, failure = "cancelled", None
            except Exception as error:  # a job's failure must never end the worker
                job.state, failure = "failed", error
                job.error = error.message if isinstance(error, VecdbError) else repr(error)
            with self._wake:
                self._failed.pop(job.key, None)
                if failure is not None:
                    self._failed[job.key] = job
                self._running = None
                self._wake.notify_all()
            self.on_end(job, self._clock.monotonic() - job.started_s)
            if failure is not None:
                self._report_error(job, failure)
