"""A directory of shards as the SDK's ``Backend``: the embedded database.

Collections open at first use, each on its own: one that is damaged raises when it is touched, the others
serve.  One collection is one shard here; a cluster spreads the same shards over nodes.

**Replicated**, a collection is one replica of a shard, under the shard's label (:mod:`vecdb.cluster.control`), which is
what calls name it by; what they are told names the collection.  ``host`` and ``unhost`` make and delete it as the
cluster says, ``replica`` is what its log drives, and calls that would write are refused.  All stay open.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from vecdb.core.calls import Call, check
from vecdb.core.errors import (
    CollectionExists,
    CollectionNotFound,
    DatabaseClosed,
    DataCorrupted,
    InvalidArgument,
    LimitExceeded,
    StorageError,
    VecdbError,
)
from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.limits import MAX_COLLECTIONS
from vecdb.core.query import Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import Command, DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema, collection_of
from vecdb.segment.files import from_os_error, sync_directory
from vecdb.services.catalog import Entry
from vecdb.services.describe import describe
from vecdb.services.express import Pin
from vecdb.services.homes import SNAPSHOTS, Home
from vecdb.services.jobs import Job
from vecdb.services.opening import COLLECTIONS, OpenCollections
from vecdb.services.recovery import ROWS, check_whole, found
from vecdb.services.replica import ShardReplica
from vecdb.services.rereading import reread
from vecdb.services.shard import ShardService
from vecdb.services.slots import Opened, Slot
from vecdb.services.snapshots import ShardSnapshot, taken

__all__ = ["COLLECTIONS", "LocalDatabase", "Progress"]

Progress = Callable[[str, int, int], None]
T = TypeVar("T")


class LocalDatabase(OpenCollections):
    """Safe to use from many threads; ``on_close`` runs last and lets go of what the composition root opened."""

    _copies = 0

    # --- collections ------------------------------------------------------------------------------

    def create_collection(self, schema: CollectionSchema, call: Call | None = None, layout: Layout = ANYHOW) -> None:
        layout.alone("a directory")
        with self._changes:
            check(call)
            self._check_may_change()
            self._check_alone()
            self._settle()
            self._check_new(schema.name)
            slot = Slot(Entry(schema, self._catalog.new_folder()))
            self._close_idle()
            try:
                slot.opened = self._start(slot, is_new=True)
                self._catalog.add(slot.entry)
            except BaseException:
                self._let_go(slot)
                with suppress(VecdbError):  # what is not known to be undone stays for the next opening to settle
                    self._undo(slot.entry)
                raise
            with self._lock:
                slot.used = next(self._ticks)
                self._slots[schema.name] = slot

    def _check_new(self, name: str) -> None:
        if name in self._catalog.entries:
            raise CollectionExists(name)
        if len(self._catalog.entries) >= MAX_COLLECTIONS:
            raise LimitExceeded("name", f"there are {MAX_COLLECTIONS} collections already",
                                got=len(self._catalog.entries), limit=MAX_COLLECTIONS)

    def _undo(self, entry: Entry, *, keep: bool = False) -> None:
        self._catalog.settle()
        if entry.schema.name in self._catalog.entries:
            self._catalog.remove(entry.schema.name)
        if not keep:
            shutil.rmtree(self._folder(entry), ignore_errors=True)

    def drop_collection(self, name: str, call: Call | None = None) -> None:
        self._check_alone()
        self._drop(name, call)

    def _drop(self, name: str, call: Call | None = None) -> None:
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
            if not self.catalog_lost:  # else what has no row yet is no rubbish, and this goes at the next opening
                self._remove_unnamed()
        else:
            self._let_go(slot)
            Home(self._folder(slot.entry)).remove()

    # --- snapshots --------------------------------------------------------------------------------

    def snapshot(self, name: str) -> ShardSnapshot:
        """The collection as it is now, by hard links, until it is released; writes go on.

        Every byte is read: ``DataCorrupted`` if any is damaged.  Of a replica it is :meth:`ShardReplica.snapshot`'s.
        """
        with self._using(name) as opened:
            if opened.replica is not None:
                return opened.replica.snapshot()
            folder = self._copy_folder()
            try:
                check_whole(opened.shard.view, opened.shard.directory)
                view = opened.shard.copy(folder)
                opened.shard.read_rows()
                return taken(folder, view)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def _copy_folder(self) -> Path:
        folder = self._directory / SNAPSHOTS
        with self._changes:
            if not self._copies:  # what a killed process left
                shutil.rmtree(folder, ignore_errors=True)
            self._copies += 1
            return folder / str(self._copies)

    def attach(self, schema: CollectionSchema, staged: Path, compare: Callable[[ShardService], None]) -> None:
        """Make a collection of the folder ``staged``, in the database's directory, whole and durable; ``compare``
        raises if its records are not those meant.  It is there when this returns, and is not where something is raised.
        """
        with self._changes:
            self._check_may_change()
            self._check_alone()
            self._settle()
            self._check_new(schema.name)
            slot = Slot(Entry(schema, self._catalog.new_folder()))
            try:
                self._move_in(staged, self._folder(slot.entry))
                slot.opened = self._start(slot, is_new=False)
                compare(slot.opened.shard)
                self._catalog.add(slot.entry)
            except BaseException:
                self._let_go(slot)
                with suppress(VecdbError):
                    self._undo(slot.entry)
                raise
            with self._lock:
                slot.used = next(self._ticks)
                self._slots[schema.name] = slot

    def aside(self, schema: CollectionSchema, folder: Path) -> ShardService:
        """A shard in a folder that is no collection's; empty if that is new."""
        return self._serve(schema, folder)

    @property
    def directory(self) -> Path:
        return self._directory

    def _move_in(self, staged: Path, folder: Path) -> None:
        try:
            folder.parent.mkdir(exist_ok=True)
            os.rename(staged, folder)
            for one in (folder.parent, self._directory):
                sync_directory(one)
        except OSError as error:
            raise from_os_error(error, folder, "moving in") from error

    # --- replicas ---------------------------------------------------------------------------------

    def host(self, schema: CollectionSchema, folder: str) -> None:
        """Make an empty replica of a collection, durably; nothing to do if it is here, with this schema and folder.

        A folder that is there is taken as it is: the catalog that knew of it was lost.
        """
        with self._changes:
            self._check_may_change()
            self._settle()
            entry = Entry(schema, folder)
            known = self._catalog.entries.get(schema.name)
            if known == entry:
                return
            if known is not None:
                raise CollectionExists(collection_of(schema.name))
            if not folder.isalnum() or any(folder == other.folder for other in self._catalog.entries.values()):
                raise InvalidArgument("folder", "is in use, or no name for one", got=folder, limit="letters and digits")
            home = Home(self._folder(entry))
            kept = home.is_founded()
            try:
                if not kept:
                    home.set_aside()
                    home.found(self._found)
                self._catalog.add(entry)
            except BaseException:
                with suppress(VecdbError):
                    self._undo(entry, keep=kept)
                raise

    def _found(self, state: Path) -> None:
        """Make the first, empty state of a replica."""
        store = self._open_store(state / ROWS, wal=False)
        try:
            found(store)
        finally:
            store.close()

    def unhost(self, name: str) -> None:
        """Let go of a replica and delete it, with what of it was set aside."""
        self._drop(name)

    def hosted(self) -> dict[str, Entry]:
        """Schemas and folders by name."""
        self._check_open()
        return dict(self._catalog.entries)

    def replica(self, name: str, *, allow_damage: bool = False) -> ShardReplica:
        """What the log drives; the same object until it has ended.

        One that a refusing disk ended is opened anew, which may take it back to its last checkpoint: take its group
        out of the log's hands first, and give it the new object.  ``DataCorrupted``: the state is damaged, until
        :meth:`set_aside`.  ``allow_damage``: open it all the same where only some records are lost, for the last
        replica there is.
        """
        slot = self._enter(name)
        try:
            slot.allow_damage = allow_damage
            replica = (slot.opened or self._open_slot(slot)).replica
            if replica is not None and replica.failure is not None:
                if isinstance(replica.failure, DataCorrupted) and not allow_damage:
                    raise replica.failure
                self._jobs.forget(name)
                with slot.lock:
                    if slot.opened is not None and slot.opened.replica is replica:
                        with suppress(VecdbError):
                            self._close_slot(slot)
                replica = self._open_slot(slot).replica
            if replica is None:
                raise InvalidArgument("collection", "is not replicated", got=collection_of(name))
            return replica
        finally:
            self._leave(slot)

    def set_aside(self, name: str) -> None:
        """Move a damaged state out of the way, to ``<folder>.damaged-<n>``; an empty one takes its place."""
        slot = self._enter(name)
        try:
            self._jobs.forget(name)
            with slot.lock:
                if slot.gone:
                    raise CollectionNotFound(collection_of(name))
                with suppress(VecdbError):
                    self._close_slot(slot)
                home = Home(self._folder(slot.entry))
                home.set_aside()
                home.found(self._found)
        finally:
            self._leave(slot)

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
        def optimized(opened: Opened) -> Description:
            check(call)
            opened.maintainer.optimize(on_progress, call)
            return describe(opened.shard, self._jobs.describe(name))

        return self._asked(name, optimized)

    def tend(self, name: str) -> str | None:
        """Do the most useful of what background jobs would do, in the calling thread; what it was, None if nothing."""
        with self._using(name) as opened:
            return opened.maintainer.tend()

    def jobs(self, name: str | None = None, call: Call | None = None) -> list[dict[str, Any]]:
        """Background jobs of a collection, or of all: ``collection kind state stage done total error`` and times."""
        check(call)
        if name is not None:
            self.schema(name)
        self._check_open()
        return self._jobs.describe(name)

    def verify(self, name: str, call: Call | None = None) -> dict[str, Any]:
        """Read every record and compare digests: see :func:`vecdb.services.verify.verify`.

        Files of sealed segments, too: ``DataCorrupted`` says what is damaged there (:mod:`vecdb.services.rereading`).
        """
        found, damaged = self._asked(name, lambda opened: (
            opened.shard.verify(call), reread(opened.shard, self._clock, call, lone=opened.replica is None)))
        if damaged:
            more = f"; and {len(damaged) - 1} more files" if len(damaged) > 1 else ""
            raise DataCorrupted(f"{damaged[0].message}{more}", path=str(damaged[0].fields["path"]), region="segment")
        return found

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

    def held_bytes(self, name: str) -> int:
        """What the vectors of its records take, as they are stored; 0 while it is not open."""
        slot = self._slots.get(name)
        opened = None if slot is None else slot.opened
        if opened is None:
            return 0
        machine = opened.shard.machine
        return machine.view.state.records * machine.growing.space.row_bytes

    def pin(self, name: str) -> Pin | None:
        """The collection as it is open now; None: it is not."""
        slot = self._slots.get(name)
        opened = None if slot is None else slot.opened
        return None if slot is None or opened is None else Pin(slot, opened, self._ticks)

    def query(self, name: str, request: QueryRequest, call: Call | None = None) -> QueryResult:
        slot = self._enter(name)  # by hand: a generator's context costs more than what it guards
        opened: Opened | None = None
        try:
            opened = slot.opened or self._open_slot(slot)
            return opened.shard.query(request, call)
        except DatabaseClosed:
            if not self._replaced(slot, opened):
                raise
        except DataCorrupted as error:
            self._met_damage(slot, opened, error)
            raise
        finally:
            self._leave(slot)
        return self._read(name, lambda shard: shard.query(request, call))

    def fetch(self, name: str, ids: Sequence[RecordId], *, include_metadata: bool = True,
              include_vectors: bool = True, call: Call | None = None) -> list[Record]:
        return self._read(name, lambda shard: shard.fetch(ids, include_metadata=include_metadata,
                                                          include_vectors=include_vectors, call=call))

    def scan(self, name: str, request: ScanRequest, call: Call | None = None) -> ScanPage:
        return self._read(name, lambda shard: shard.scan(request, call))

    def count(self, name: str, where: Node | None = None, call: Call | None = None) -> int:
        return self._read(name, lambda shard: shard.count(where, call))

    def _read(self, name: str, read: Callable[[ShardService], T]) -> T:
        return self._asked(name, lambda opened: read(opened.shard))

    def _asked(self, name: str, ask: Callable[[Opened], T]) -> T:
        """Ask the collection; again where a replica's state was replaced meanwhile."""
        while True:
            slot = self._enter(name)
            opened: Opened | None = None
            try:
                opened = slot.opened or self._open_slot(slot)
                return ask(opened)
            except DatabaseClosed:
                if not self._replaced(slot, opened):
                    raise
            except DataCorrupted as error:
                self._met_damage(slot, opened, error)
                raise
            finally:
                self._leave(slot)

    def _met_damage(self, slot: Slot, opened: Opened | None, error: DataCorrupted) -> None:
        """A replica that a read finds damaged ends, so that it is made good by the others; the last one goes on."""
        if opened is not None and opened.replica is not None and not slot.allow_damage:
            opened.replica.end(error)
