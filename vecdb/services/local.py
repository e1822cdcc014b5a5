"""A directory of shards as the SDK's ``Backend``: the embedded database.

Collections open at first use, each on its own: one that is damaged raises when it is touched, the others
serve.  One collection is one shard here; a cluster spreads the same shards over nodes.

**Locks**, in the order they are taken: ``_changes`` for creating and dropping (held over the disk's work, never by a
query), a slot's own for opening and closing that collection, and ``_lock`` for a few assignments at a time.  So no call
waits for another collection.  Beyond ``max_open_collections`` the collection idle longest is closed.
"""

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vecdb.core.calls import Call, check
from vecdb.core.errors import (
    CollectionExists,
    CollectionNotFound,
    DatabaseClosed,
    DataCorrupted,
    LimitExceeded,
    StorageError,
    StorageReadOnly,
    VecdbError,
)
from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId
from vecdb.core.limits import MAX_COLLECTIONS
from vecdb.core.query import Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import Command, DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.ports.clock import Clock
from vecdb.ports.compute import Compute
from vecdb.ports.stores import OpenStore
from vecdb.services.catalog import Catalog, Entry
from vecdb.services.describe import describe
from vecdb.services.jobs import Job, JobRunner
from vecdb.services.maintenance import Maintainer
from vecdb.services.settings import EngineSettings
from vecdb.services.shard import ShardService

COLLECTIONS = "collections"
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class _Open:
    shard: ShardService
    maintainer: Maintainer


class _Slot:
    """A collection's place: ``lock`` is held while it opens or closes, ``calls`` counts who is using it."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.lock = threading.Lock()
        self.opened: _Open | None = None
        self.calls = 0
        self.used = 0
        self.gone = False


class LocalDatabase:
    """Safe to use from many threads; ``on_close`` runs last and lets go of what the composition root opened."""

    def __init__(self, directory: Path, open_store: OpenStore, compute: Compute, clock: Clock,
                 settings: EngineSettings, *, on_job_error: Callable[[Job, Exception], None],
                 on_close: Callable[[], None]) -> None:
        self._directory = directory
        self._open_store = open_store
        self._compute = compute
        self._clock = clock
        self._settings = settings
        self._on_close = on_close
        self._changes = threading.Lock()
        self._lock = threading.Lock()
        self._slots: dict[str, _Slot] = {}
        self._ticks = itertools.count(1)
        self._closed = False
        holds_collections = any(self._folders())
        if holds_collections:
            _check_not_empty(directory / "catalog")
        self._catalog = Catalog(lambda: open_store(directory / "catalog", read_only=settings.read_only))
        try:
            self._begin(holds_collections)
        except BaseException:
            self._catalog.close()
            raise
        self._jobs = JobRunner(clock, on_job_error)

    def _begin(self, holds_collections: bool) -> None:
        """Remove folders of no collection, unless the catalog is new: that knows of none."""
        if self._catalog.is_new and holds_collections:
            raise DataCorrupted(f"{self._directory / COLLECTIONS} holds collections, and the catalog has no rows",
                                path=str(self._directory / "catalog"))
        if self._settings.read_only:
            return
        if self._catalog.is_new:
            self._catalog.found()
        self._remove_unnamed()

    def _folders(self) -> list[Path]:
        folder = self._directory / COLLECTIONS
        return list(folder.iterdir()) if folder.is_dir() else []

    def _folder(self, entry: Entry) -> Path:
        return self._directory / COLLECTIONS / entry.folder

    # --- collections ------------------------------------------------------------------------------

    def create_collection(self, schema: CollectionSchema, call: Call | None = None) -> None:
        with self._changes:
            check(call)
            self._check_may_change()
            self._settle()
            if schema.name in self._catalog.entries:
                raise CollectionExists(schema.name)
            if len(self._catalog.entries) >= MAX_COLLECTIONS:
                raise LimitExceeded("name", f"there are {MAX_COLLECTIONS} collections already",
                                    got=len(self._catalog.entries), limit=MAX_COLLECTIONS)
            slot = _Slot(Entry(schema, self._catalog.new_folder()))
            self._close_idle()
            try:
                slot.opened = self._start(slot.entry, is_new=True)
                self._catalog.add(slot.entry)
            except BaseException:
                self._let_go(slot)
                with suppress(VecdbError):  # what is not known to be undone stays for the next opening to settle
                    self._undo(slot.entry)
                raise
            with self._lock:
                slot.used = next(self._ticks)
                self._slots[schema.name] = slot

    def _undo(self, entry: Entry) -> None:
        self._catalog.settle()
        if entry.schema.name in self._catalog.entries:
            self._catalog.remove(entry.schema.name)
        shutil.rmtree(self._folder(entry), ignore_errors=True)

    def drop_collection(self, name: str, call: Call | None = None) -> None:
        with self._changes:
            check(call)
            self._check_may_change()
            self._settle()
            self._catalog.get(name)
            try:
                self._catalog.remove(name)
            except StorageError:
                self._settle()
                if name in self._catalog.entries:
                    raise
            self._forget(name)

    def _settle(self) -> None:
        """After a refused change, inside ``_changes``: learn what became of it, and let go of what is gone."""
        self._catalog.settle()
        with self._lock:
            gone = [name for name in self._slots if name not in self._catalog.entries]
        for name in gone:
            self._forget(name)

    def _forget(self, name: str) -> None:
        """Let go of a collection that the catalog no longer has, and delete what it left."""
        with self._lock:
            slot = self._slots.pop(name, None)
        if slot is None:
            self._remove_unnamed()
        else:
            self._let_go(slot)
            shutil.rmtree(self._folder(slot.entry), ignore_errors=True)

    def _remove_unnamed(self) -> None:
        wanted = {entry.folder for entry in self._catalog.entries.values()}
        for path in self._folders():
            if path.name not in wanted:
                shutil.rmtree(path, ignore_errors=True)

    def _let_go(self, slot: _Slot) -> None:
        """Close a slot for good.  It is deleted next, so what its store could not make durable matters no more."""
        self._jobs.forget(slot.entry.schema.name)
        with slot.lock:
            slot.gone = True
            opened, slot.opened = slot.opened, None
            if opened is not None:
                with suppress(VecdbError):
                    opened.shard.close(dropped=True)

    def list_collections(self, call: Call | None = None) -> list[str]:
        check(call)
        self._check_open()
        return sorted(self._catalog.entries)

    def schema(self, name: str, call: Call | None = None) -> CollectionSchema:
        check(call)
        self._check_open()
        return self._catalog.get(name).schema

    def describe(self, name: str, call: Call | None = None) -> Description:
        with self._using(name) as opened:
            check(call)
            return describe(opened.shard, self._jobs.describe(name))

    def describe_open(self) -> list[Description]:
        """Of the collections that are open now; opens none and is no use of one, so it may be asked every second."""
        with self._lock:
            opened = [slot.opened for slot in self._slots.values() if slot.opened is not None]
        out = []
        for one in opened:
            with suppress(VecdbError):  # it is being closed or dropped
                out.append(describe(one.shard, self._jobs.describe(one.shard.schema.name)))
        return out

    def watch_jobs(self, on_end: Callable[[Job, float], None]) -> None:
        """Tell ``on_end`` of every job that ends, with its seconds; from the jobs' thread."""
        self._jobs.on_end = on_end

    def optimize(self, name: str, on_progress: Progress | None = None, call: Call | None = None) -> Description:
        with self._using(name) as opened:
            check(call)
            opened.maintainer.optimize(on_progress, call)
            return describe(opened.shard, self._jobs.describe(name))

    def jobs(self, name: str | None = None, call: Call | None = None) -> list[dict[str, Any]]:
        """Background jobs of a collection, or of all: ``collection kind state stage done total error`` and times."""
        check(call)
        if name is not None:
            self.schema(name)
        self._check_open()
        return self._jobs.describe(name)

    def verify(self, name: str, call: Call | None = None) -> dict[str, Any]:
        """Read every record and compare digests: see :func:`vecdb.services.verify.verify`."""
        with self._using(name) as opened:
            return opened.shard.verify(call)

    # --- records ----------------------------------------------------------------------------------

    def upsert(self, name: str, batch: UpsertBatch, call: Call | None = None) -> WriteResult:
        return self._write(name, batch, call)

    def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call | None = None) -> WriteResult:
        return self._write(name, command, call)

    def update_metadata(self, name: str, command: UpdateMetadata, call: Call | None = None) -> WriteResult:
        return self._write(name, command, call)

    def _write(self, name: str, command: Command, call: Call | None) -> WriteResult:
        if self._catalog.doubtful == name:  # never acknowledge what the next opening may delete
            with self._changes:
                self._settle()
        with self._using(name) as opened:
            return opened.shard.write(command, call)

    def at_hand(self, name: str) -> bool:
        """Whether a read of the collection would wait for no disk and no lock: it is open, and its store is well."""
        slot = self._slots.get(name)
        opened = None if slot is None else slot.opened
        return opened is not None and opened.shard.steady

    def query(self, name: str, request: QueryRequest, call: Call | None = None) -> QueryResult:
        slot = self._enter(name)  # by hand: a generator's context costs more than what it guards
        try:
            return (slot.opened or self._open_slot(slot)).shard.query(request, call)
        finally:
            self._leave(slot)

    def fetch(self, name: str, ids: Sequence[RecordId], *, include_metadata: bool = True,
              include_vectors: bool = True, call: Call | None = None) -> list[Record]:
        with self._using(name) as opened:
            return opened.shard.fetch(ids, include_metadata=include_metadata, include_vectors=include_vectors,
                                      call=call)

    def scan(self, name: str, request: ScanRequest, call: Call | None = None) -> ScanPage:
        with self._using(name) as opened:
            return opened.shard.scan(request, call)

    def count(self, name: str, where: Node | None = None, call: Call | None = None) -> int:
        with self._using(name) as opened:
            return opened.shard.count(where, call)

    # --- life -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the jobs, make everything durable, let go of the directory.  A second call does nothing."""
        with self._changes:
            if self._closed:
                return
            self._closed = True
            self._jobs.close()
            failure: VecdbError | None = None
            try:
                with self._lock:
                    slots = list(self._slots.values())
                for slot in slots:
                    try:
                        with slot.lock:
                            if slot.opened is not None:
                                slot.opened.shard.close()
                                slot.opened = None  # its memory goes now, not when the collector finds the cycle
                    except VecdbError as error:
                        failure = failure or error
                with suppress(VecdbError):
                    self._catalog.close()
            finally:
                self._on_close()
        if failure is not None:
            raise failure

    def _check_open(self) -> None:
        if self._closed:
            raise DatabaseClosed("the database is closed", path=str(self._directory))

    def _check_may_change(self) -> None:
        self._check_open()
        if self._settings.read_only:
            raise StorageReadOnly("the database was opened read-only", path=str(self._directory))

    @contextmanager
    def _using(self, name: str) -> Iterator[_Open]:
        """The collection, open, and kept open meanwhile."""
        slot = self._enter(name)
        try:
            yield slot.opened or self._open_slot(slot)
        finally:
            self._leave(slot)

    def _enter(self, name: str) -> _Slot:
        with self._lock:
            self._check_open()
            entry = self._catalog.get(name)
            slot = self._slots.get(name)
            if slot is None:
                slot = self._slots[name] = _Slot(entry)
            slot.calls += 1
            slot.used = next(self._ticks)
        return slot

    def _leave(self, slot: _Slot) -> None:
        with self._lock:
            slot.calls -= 1
            last_of_gone = slot.gone and not slot.calls
        if last_of_gone:  # it may have gone on writing files while the folder was deleted
            shutil.rmtree(self._folder(slot.entry), ignore_errors=True)

    def _open_slot(self, slot: _Slot) -> _Open:
        with slot.lock:
            self._check_open()
            if slot.gone:
                raise CollectionNotFound(slot.entry.schema.name)
            if slot.opened is None:
                self._close_idle()
                slot.opened = self._start(slot.entry, is_new=False)
            return slot.opened

    def _close_idle(self) -> None:
        """Make room for one more: close what no call and no job uses, least recently used first."""
        with self._lock:
            opened = sorted((slot for slot in self._slots.values() if slot.opened is not None),
                            key=lambda slot: slot.used)
        excess = len(opened) + 1 - self._settings.max_open_collections
        for slot in opened:
            if excess <= 0:
                return
            excess -= self._close_if_idle(slot)

    def _close_if_idle(self, slot: _Slot) -> bool:
        if slot.calls or self._busy(slot) or not slot.lock.acquire(blocking=False):
            return False
        try:
            with self._lock:
                if slot.calls or slot.opened is None or self._busy(slot):
                    return False
                idle, slot.opened = slot.opened, None
            with suppress(VecdbError):  # whatever was acknowledged is durable; the next opening meets the disk itself
                idle.shard.close()
            return True
        finally:
            slot.lock.release()

    def _busy(self, slot: _Slot) -> bool:
        return any(job["state"] in ("queued", "running") for job in self._jobs.describe(slot.entry.schema.name))

    def _start(self, entry: Entry, *, is_new: bool) -> _Open:
        folder = self._folder(entry)
        settings = self._settings
        if not is_new:
            _check_not_empty(folder / "rows")
        shard = ShardService(entry.schema, folder,
                             lambda *, read_only: self._open_store(folder / "rows", read_only=read_only),
                             self._compute, settings, self._clock)
        return _Open(shard, Maintainer(shard, self._jobs, self._compute, self._clock, settings, self._memory_used))

    def _memory_used(self) -> int:
        """Bytes that the segments of all open collections hold."""
        with self._lock:
            opened = [slot.opened for slot in self._slots.values()]
        return sum(sum(view.segment.memory_bytes().values())
                   for one in opened if one is not None for view in one.shard.view.segments)


def _check_not_empty(folder: Path) -> None:
    """Raise before a store would be made anew where one must be: it would know nothing of what stands beside it."""
    if not folder.is_dir() or not any(folder.iterdir()):
        raise DataCorrupted(f"the store at {folder} is missing", path=str(folder), region="store")
