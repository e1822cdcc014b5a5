"""The collections of a directory as places that open and close: what the database stands on.

**Locks**, in the order they are taken: ``_changes`` for creating and dropping (held over the disk's work, never by a
query), a slot's own for opening and closing that collection, and ``_lock`` for a few assignments at a time.  So no call
waits for another collection.  Beyond ``max_open_collections`` the collection idle longest is closed.
"""

import itertools
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from vecdb.core.errors import (
    CollectionNotFound,
    DatabaseClosed,
    DataCorrupted,
    FormatMismatch,
    StorageError,
    StorageReadOnly,
    Unavailable,
    VecdbError,
)
from vecdb.core.schema import CollectionSchema, collection_of
from vecdb.ports.clock import Clock
from vecdb.ports.compute import Compute
from vecdb.ports.store import Store
from vecdb.ports.stores import OpenStore
from vecdb.services.aside import set_aside
from vecdb.services.catalog import Catalog, Entry
from vecdb.services.homes import Home, set_aside_of
from vecdb.services.jobs import Job, JobRunner
from vecdb.services.maintenance import Maintainer
from vecdb.services.recovery import ROWS, SEGMENTS, check_whole
from vecdb.services.replica import ShardReplica
from vecdb.services.settings import EngineSettings
from vecdb.services.shard import ShardService
from vecdb.services.slots import Opened, Slot
from vecdb.shard.adoption import Adopt

COLLECTIONS = "collections"
Bring = Callable[[CollectionSchema, Adopt, Path], None]
_GROUP: Final = re.compile(r"g\d{8,}")


class OpenCollections:
    """Opens what is asked for and keeps it open while it is used.

    ``upkeep`` runs the background jobs' kernels (None: ``compute``).  ``on_close`` runs last.
    """

    def __init__(self, directory: Path, open_store: OpenStore, compute: Compute, clock: Clock,
                 settings: EngineSettings, *, on_job_error: Callable[[Job, Exception], None],
                 on_close: Callable[[], None], upkeep: Compute | None = None) -> None:
        self._directory = directory
        self._open_store = open_store
        self._compute = compute
        self._upkeep = upkeep or compute
        self._clock = clock
        self._settings = settings
        self._on_close = on_close
        self._changes = threading.Lock()
        self._lock = threading.Lock()
        self._slots: dict[str, Slot] = {}
        self._ticks = itertools.count(1)
        self._closed = False
        self.bring: Bring = _bring_nothing
        """Brings the files that a replica is to adopt; set by whoever knows of places."""
        self.catalog_lost = False
        """The catalog of replicas was damaged, and is a new one now: what is missing in it is hosted again."""
        try:
            holds_collections = any(self._folders())
            if holds_collections:
                _check_not_empty(directory / "catalog")
            self._catalog = self._open_catalog(partial(self._begin, holds_collections))
        except DataCorrupted:
            if not settings.replicated or settings.read_only or not self._all_of_groups():
                raise
            self.catalog_lost = True
            set_aside(directory / "catalog")
            self._catalog = self._open_catalog(lambda: self._catalog.found(replicated=True))
        self._jobs = JobRunner(clock, on_job_error)

    def _open_catalog(self, begin: Callable[[], None]) -> Catalog:
        folder = self._directory / "catalog"
        self._catalog = Catalog(lambda: self._open_store(folder, read_only=self._settings.read_only))
        try:
            begin()
        except BaseException:
            self._catalog.close()
            raise
        return self._catalog

    def _all_of_groups(self) -> bool:
        """Whether every folder is named after a group of a cluster, which knows what it is of."""
        return all(_GROUP.fullmatch(set_aside_of(path.name) or path.name) for path in self._folders())

    def _begin(self, holds_collections: bool) -> None:
        """Remove folders of no collection, unless the catalog is new: that knows of none."""
        if self._catalog.is_new and holds_collections:
            raise DataCorrupted(f"{self._directory / COLLECTIONS} holds collections, and the catalog has no rows",
                                path=str(self._directory / "catalog"))
        if self._settings.read_only:
            return
        if self._catalog.is_new or (self._settings.replicated and not self._catalog.entries):
            self._catalog.found(self._settings.replicated)
        if self._catalog.replicated != self._settings.replicated:
            why = ("belongs to a node of a cluster: serve it there, or open it read-only" if self._catalog.replicated
                   else "holds collections of its own, which no cluster knows")
            raise FormatMismatch(f"{self._directory} {why}", path=str(self._directory))
        self._remove_unnamed()

    def _folders(self) -> list[Path]:
        folder = self._directory / COLLECTIONS
        return list(folder.iterdir()) if folder.is_dir() else []

    def _folder(self, entry: Entry) -> Path:
        return self._directory / COLLECTIONS / entry.folder

    def _remove_unnamed(self) -> None:
        wanted = {entry.folder for entry in self._catalog.entries.values()}
        for path in self._folders():
            if path.name not in wanted and set_aside_of(path.name) not in wanted:
                shutil.rmtree(path, ignore_errors=True)

    def _let_go(self, slot: Slot) -> None:
        """Close a slot for good.  It is deleted next, so what its store could not make durable matters no more."""
        self._jobs.forget(slot.entry.schema.name)
        with slot.lock:
            slot.gone = True
            with suppress(VecdbError):
                self._close_slot(slot, dropped=True)

    def _close_slot(self, slot: Slot, *, dropped: bool = False) -> None:
        """Inside its lock; raises if its last rows could not be made durable."""
        opened, slot.opened = slot.opened, None  # its memory goes now, not when the collector finds the cycle
        if opened is not None:
            if opened.replica is not None:
                opened.replica.end(DatabaseClosed("the replica was closed", path=str(self._folder(slot.entry))))
            opened.shard.close(dropped=dropped)

    def _replaced(self, slot: Slot, opened: Opened | None) -> bool:
        """Whether another state of a replica is there, or on its way."""
        return self._catalog.replicated and opened is not None and slot.opened is not opened and not self._closed

    def fits(self, bytes_: int) -> bool:
        """Whether segments may take so much more memory."""
        most = self._settings.memory_bytes
        return most is None or self._memory_used() + bytes_ <= most

    def _check_alone(self) -> None:
        if self._catalog.replicated:
            raise StorageReadOnly("the database is replicated: its cluster makes and drops collections, and their logs "
                                  "write", path=str(self._directory))

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
                            self._close_slot(slot)
                    except VecdbError as error:
                        failure = failure or error
                with suppress(VecdbError):
                    self._catalog.close()
            finally:
                self._on_close()
        if failure is not None:
            raise failure

    @property
    def closed(self) -> bool:
        return self._closed

    def jobs_forget(self, slot: Slot) -> None:
        """Wait until no background job is at work on what the slot has open."""
        self._jobs.forget(slot.entry.schema.name)

    def _check_open(self) -> None:
        if self._closed:
            raise DatabaseClosed("the database is closed", path=str(self._directory))

    def _check_may_change(self) -> None:
        self._check_open()
        if self._settings.read_only:
            raise StorageReadOnly("the database was opened read-only", path=str(self._directory))

    @contextmanager
    def _using(self, name: str) -> Iterator[Opened]:
        """The collection, open, and kept open meanwhile."""
        slot = self._enter(name)
        try:
            yield slot.opened or self._open_slot(slot)
        finally:
            self._leave(slot)

    def _enter(self, name: str) -> Slot:
        with self._lock:
            self._check_open()
            entry = self._catalog.get(name)
            slot = self._slots.get(name)
            if slot is None:
                slot = self._slots[name] = Slot(entry)
            slot.calls += 1
            slot.used = next(self._ticks)
        return slot

    def _leave(self, slot: Slot) -> None:
        with self._lock:
            slot.calls -= 1
            last_of_gone = slot.gone and not slot.calls
        if last_of_gone:  # it may have gone on writing files while the folder was deleted
            with self._changes:
                if all(entry.folder != slot.entry.folder for entry in self._catalog.entries.values()):
                    shutil.rmtree(self._folder(slot.entry), ignore_errors=True)

    def _open_slot(self, slot: Slot) -> Opened:
        with slot.lock:
            self._check_open()
            if slot.gone:
                raise CollectionNotFound(collection_of(slot.entry.schema.name))
            if slot.restoring is not None and slot.restoring.failure is None:
                raise Unavailable("the replica is being restored, and its old state had to make room",
                                  collection=collection_of(slot.entry.schema.name))
            slot.restoring = None
            if slot.opened is None:
                self._close_idle()
                slot.opened = self._start(slot, is_new=False)
            return slot.opened

    def _close_idle(self) -> None:
        """Make room for one more: close what no call and no job uses, least recently used first; replicas stay."""
        if self._catalog.replicated:
            return
        with self._lock:
            opened = sorted((slot for slot in self._slots.values() if slot.opened is not None),
                            key=lambda slot: slot.used)
        excess = len(opened) + 1 - self._settings.max_open_collections
        for slot in opened:
            if excess <= 0:
                return
            excess -= self._close_if_idle(slot)

    def _close_if_idle(self, slot: Slot) -> bool:
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

    def _busy(self, slot: Slot) -> bool:
        return any(job["state"] in ("queued", "running") for job in self._jobs.describe(slot.entry.schema.name))

    def _start(self, slot: Slot, *, is_new: bool) -> Opened:
        folder, schema = self._folder(slot.entry), slot.entry.schema
        if not self._catalog.replicated:
            if not is_new:
                _check_not_empty(folder / ROWS)
            return self.opened(self._serve(schema, folder), None)
        home = Home(folder)
        state = home.state()
        if not self._settings.read_only:
            home.clean()
        shard = self.serve_whole(schema, state, slot.allow_damage)
        return self.opened(shard, ShardReplica(home, shard, _Keeper(self, slot)))

    def _serve(self, schema: CollectionSchema, folder: Path) -> ShardService:
        def open_rows(*, read_only: bool) -> Store:
            return self._open_store(folder / ROWS, read_only=read_only, wal=not self._settings.replicated)

        return ShardService(schema, folder, open_rows, self._compute, self._settings, self._clock)

    def open_rows(self, state: Path) -> Store:
        """The rows of a replica's state that nobody has open."""
        return self._open_store(state / ROWS, wal=False)

    def serve_whole(self, schema: CollectionSchema, folder: Path, allow_damage: bool) -> ShardService:
        """A replica's state; ``DataCorrupted`` where it lost what others have."""
        _check_not_empty(folder / ROWS)
        shard = self._serve(schema, folder)
        try:
            if not allow_damage:
                check_whole(shard.view, folder)
        except BaseException:
            shard.close()
            raise
        return shard

    def opened(self, shard: ShardService, replica: ShardReplica | None) -> Opened:
        return Opened(shard, Maintainer(shard, self._jobs, self._compute, self._upkeep, self._clock, self._settings,
                                        self._memory_used), replica)

    def _memory_used(self) -> int:
        """Bytes that the segments of all open collections hold."""
        with self._lock:
            opened = [slot.opened for slot in self._slots.values()]
        return sum(sum(view.segment.memory_bytes().values())
                   for one in opened if one is not None for view in one.shard.view.segments)


class _Keeper:
    """See :class:`vecdb.services.replica.Keeper`; of one slot."""

    def __init__(self, collections: OpenCollections, slot: Slot) -> None:
        self._collections = collections
        self._slot = slot

    def start(self, state: Path) -> ShardService:
        return self._collections.serve_whole(self._slot.entry.schema, state, False)

    def open_rows(self, state: Path) -> Store:
        return self._collections.open_rows(state)

    def fetch(self, command: Adopt, folder: Path) -> None:
        self._collections.bring(self._slot.entry.schema, command, folder)

    def forgives(self) -> bool:
        return self._slot.allow_damage

    def make_room(self, replica: ShardReplica, state: Path) -> bool:
        files = (state / SEGMENTS).rglob("*.vdb")
        if self._collections.fits(sum(file.stat().st_size for file in files)):
            return False
        slot = self._slot
        self._collections.jobs_forget(slot)
        with slot.lock:
            self._check_wanted(replica, state)
            slot.restoring, slot.opened = replica, None
        return True

    def adopt(self, replica: ShardReplica, service: ShardService) -> None:
        slot = self._slot
        self._collections.jobs_forget(slot)
        with slot.lock:
            self._check_wanted(replica, service.directory)
            slot.opened = self._collections.opened(service, replica)
            slot.restoring = None

    def _check_wanted(self, replica: ShardReplica, state: Path) -> None:
        opened = self._slot.opened
        if self._slot.gone or self._collections.closed or (
                self._slot.restoring is not replica and (opened is None or opened.replica is not replica)):
            raise DatabaseClosed("the replica was closed", path=str(state))


def _bring_nothing(schema: CollectionSchema, command: Adopt, folder: Path) -> None:
    raise StorageError("this node knows no places to fetch files from", path=str(folder))


def _check_not_empty(folder: Path) -> None:
    """Raise before a store would be made anew where one must be: it would know nothing of what stands beside it."""
    if not folder.is_dir() or not any(folder.iterdir()):
        raise DataCorrupted(f"the store at {folder} is missing", path=str(folder), region="store")
