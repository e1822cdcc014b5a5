"""What the process and its engine are like at the moment somebody looks: memory, files, loop, collections, jobs."""

import asyncio
import gc
import platform
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import Metric

from vecdb.core.query import Description
from vecdb.runtime.instruments import Labels, Names, gauges
from vecdb.runtime.memory import disk, memory

LAG_WINDOW_S: Final = 60.0
HEARTBEAT_S: Final = 0.25
REFRESH_S: Final = 10.0
WAIT_S: Final = 1.0

_COLLECTION: Final = ("collection",)


def spare_the_collector() -> None:
    """What a start has made stays for good: the collector need not look at it again, and at young objects less often.

    A call makes some hundreds of objects and no cycles; looking for some at each 700th took a tenth of a call's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


class EventLoopLag:
    """How late the event loop wakes: the latest of the last minute."""

    def __init__(self) -> None:
        self._beats: deque[tuple[float, float]] = deque()

    async def run(self, every_s: float = HEARTBEAT_S) -> None:
        """Beat until cancelled."""
        while True:
            due = time.monotonic() + every_s
            await asyncio.sleep(every_s)
            now = time.monotonic()
            self.beat(now, now - due)

    def beat(self, now_s: float, late_s: float) -> None:
        """Remember one beat."""
        while self._beats and self._beats[0][0] < now_s - LAG_WINDOW_S:
            self._beats.popleft()
        while self._beats and self._beats[-1][1] <= late_s:  # what can no longer be the latest
            self._beats.pop()
        self._beats.append((now_s, max(0.0, late_s)))

    def worst_s(self) -> float:
        try:
            return self._beats[0][1]
        except IndexError:
            return 0.0

    def collect(self) -> Iterator[Metric]:
        yield gauges("vecdb_event_loop_lag_seconds", "Latest waking of the event loop within a minute", (),
                     {(): self.worst_s()})


class Host:
    """Build, memory against its limits, and room on the disk.

    ``write_limit_bytes``: of memory that the process cannot give back; upserts and updates beyond are refused.
    ``build``: further labels of ``vecdb_build_info``.
    """

    def __init__(self, version: str, data_dir: Path, write_limit_bytes: int, build: Mapping[str, str]) -> None:
        self._build = {"version": version, "python": platform.python_version(), **build}
        self._data_dir = data_dir
        self._write_limit = write_limit_bytes

    def collect(self) -> Iterator[Metric]:
        yield gauges("vecdb_build_info", "1, with what this is as labels", tuple(self._build),
                     {tuple(self._build.values()): 1.0})
        now = memory()
        for name, text, value in (
                ("vecdb_memory_resident_bytes", "Memory the process holds", now.resident_bytes),
                ("vecdb_memory_limit_bytes", "Memory the process may hold at all", now.total_bytes),
                ("vecdb_memory_available_bytes", "Memory that is still free", now.available_bytes),
                ("vecdb_memory_write_limit_bytes", "Memory that cannot be given back (less than resident), beyond "
                 "which upserts and updates are refused", self._write_limit)):
            yield gauges(name, text, (), {(): float(value)})
        try:
            room = disk(self._data_dir)
            sizes: dict[Labels, float] = {("total",): room.total_bytes, ("free",): room.free_bytes}
        except Exception:  # a disk that went away is no reason to lose the page that says so
            sizes = {}
        yield gauges("vecdb_disk_bytes", "The file system of the data directory", ("kind",), sizes)


class Collections:
    """Records, segments, bytes and jobs of the collections that are open, from what they say of themselves.

    ``describe_open`` looks at disks and may be slow: it runs in a thread of its own, at most every ``refresh_s``, and
    is waited for ``wait_s``; whoever looks meanwhile gets what was known before.  Beyond the bound of ``names``
    collections are added up as ``_other``.
    """

    def __init__(self, describe_open: Callable[[], Iterable[Description]], names: Names, *,
                 refresh_s: float = REFRESH_S, wait_s: float = WAIT_S) -> None:
        self._describe = describe_open
        self._names = names
        self._refresh_s = refresh_s
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._running: threading.Event | None = None
        self._known: list[Description] = []
        self._known_at = -1e9
        self._took_s = 0.0
        self._failures = 0

    def collect(self) -> Iterator[Metric]:
        self._refresh()
        with self._lock:
            known, at, took_s, failures = self._known, self._known_at, self._took_s, self._failures
        numbers = _Numbers(self._names)
        for one in known:
            numbers.add(one)
        yield from numbers.families()
        yield gauges("vecdb_collections_open", "Collections that are open", (), {(): float(len(known))})
        yield gauges("vecdb_collections_age_seconds", "Age of the figures of collections", (),
                     {(): max(0.0, time.monotonic() - at)} if at > 0 else {})
        yield gauges("vecdb_collections_look_seconds", "How long it took to look at all collections", (),
                     {(): took_s})
        yield gauges("vecdb_collections_look_failures", "Looks in a row that failed", (), {(): float(failures)})

    def _refresh(self) -> None:
        with self._lock:
            if self._running is None:
                if time.monotonic() - self._known_at < self._refresh_s:
                    return
                self._running = threading.Event()
                threading.Thread(target=self._look, args=(self._running,), name="vecdb-metrics", daemon=True).start()
            done = self._running
        done.wait(self._wait_s)

    def _look(self, done: threading.Event) -> None:
        began = time.monotonic()
        try:
            known = list(self._describe())
        except Exception:
            known = None
        now = time.monotonic()
        with self._lock:
            self._took_s = now - began
            if known is None:
                self._failures += 1
            else:
                self._known, self._known_at, self._failures = known, now, 0
            self._running = None
        done.set()


_SIZES: Final = (
    ("records", "vecdb_collection_records", "Live records", _COLLECTION),
    ("dead", "vecdb_collection_dead_records", "Replaced or deleted records still in segments", _COLLECTION),
    ("unlinked", "vecdb_collection_unlinked_records", "Records the graph does not hold yet: they are scanned",
     _COLLECTION),
    ("damaged", "vecdb_collection_damaged_segments", "Segments with damage", _COLLECTION),
    ("segments", "vecdb_collection_segments", "Segments by state", (*_COLLECTION, "state")),
    ("memory", "vecdb_collection_memory_bytes", "Memory of segments", (*_COLLECTION, "component")),
    ("disk", "vecdb_collection_disk_bytes", "Files", (*_COLLECTION, "part")),
    ("jobs", "vecdb_jobs", "Background jobs by state", (*_COLLECTION, "kind", "state")),
    ("done", "vecdb_job_progress_ratio", "Share of its stage a running job has done", (*_COLLECTION, "kind")),
)


class _Numbers:
    """Sums by labels."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._sums: dict[str, dict[Labels, float]] = {key: {} for key, *_ in _SIZES}

    def add(self, one: Description) -> None:
        name, details = self._names.believe(one.name), one.details
        self._plus("records", (name,), one.records)
        self._plus("damaged", (name,), len(details.get("damage", ())))
        for state in ("growing", "frozen", "sealed"):
            self._plus("segments", (name, state), 0)
        for segment in details.get("segments", ()):
            self._plus("segments", (name, segment["state"]), 1)
            self._plus("dead", (name,), segment["dead"])
            self._plus("unlinked", (name,), segment["index"].get("scanned", 0))
        for kind, part in (("memory", "memory_bytes"), ("disk", "disk_bytes")):
            for label, size in details.get(part, {}).items():
                if label != "total":
                    self._plus(kind, (name, label), size)
        for job in details.get("jobs", ()):
            self._job(name, job)

    def _job(self, name: str, job: dict[str, Any]) -> None:
        self._plus("jobs", (name, job["kind"], job["state"]), 1)
        if job["state"] == "running" and job["total"]:
            self._sums["done"][(name, job["kind"])] = job["done"] / job["total"]

    def _plus(self, what: str, labels: Labels, value: float) -> None:
        sums = self._sums[what]
        sums[labels] = sums.get(labels, 0.0) + value

    def families(self) -> Iterator[Metric]:
        for key, name, text, labels in _SIZES:
            yield gauges(name, text, labels, self._sums[key])
