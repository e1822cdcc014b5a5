"""One shard, alive: writes under a lock and group commit, queries on pinned views, recovery, maintenance.

**A write**: lock → ``machine.apply`` → one batch to the store → ``machine.commit`` publishes → unlock → ``sync``
(an fsync shared by all who wait) → acknowledged.  If the store refuses, nothing is published; the next write
opens the store anew, and if the unknown batch turns out to be there, the machine is rebuilt from the rows.

**A read** takes ``machine.view`` and never waits for a writer.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.core.errors import (
    CollectionNotFound,
    DatabaseClosed,
    DataCorrupted,
    InvalidArgument,
    StorageError,
    StorageReadOnly,
    VecdbError,
)
from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId, id_from_key, id_key
from vecdb.core.query import QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import Command, Record, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.ports.compute import Compute
from vecdb.ports.store import Store
from vecdb.segment.bits import size
from vecdb.segment.matching import allowed_bits, matching_ordinals
from vecdb.services.answer import StaleView, answer
from vecdb.services.recovery import recover
from vecdb.services.settings import EngineSettings
from vecdb.shard import rows
from vecdb.shard.machine import ShardMachine
from vecdb.shard.mutations import Mutations
from vecdb.shard.view import ShardView, rid_array

OpenStore = Callable[[], Store]
T = TypeVar("T")
OPTIMISTIC_TRIES = 3
"""Attempts at an answer with metadata before writers are held off for one."""


class ShardService:
    """The only writer of its store and directory.  Safe to use from many threads."""

    def __init__(self, schema: CollectionSchema, directory: Path, open_store: OpenStore, compute: Compute,
                 settings: EngineSettings) -> None:
        self.schema = schema
        self.directory = directory
        self._open_store = open_store
        self._compute = compute
        self._settings = settings
        self._lock = threading.RLock()
        self._store = open_store()
        self._broken = False
        self._closed = False
        self._dropped = False
        self.on_change: Callable[[], None] = lambda: None
        try:
            self.machine = self._recover()
        except BaseException:
            self._store.close()
            raise

    # --- writes -----------------------------------------------------------------------------------

    def write(self, command: Command) -> WriteResult:
        """Carry out one command; durable when this returns."""
        if self._settings.read_only:
            raise StorageReadOnly("the database was opened read-only", path=str(self.directory))
        with self._lock:
            if self._closed:
                raise self._gone()
            self._mend()
            applied = self.machine.apply(self.machine.state.applied + 1, command)
            if applied.error is not None:
                raise applied.error
            store = self._store
            try:
                store.write(applied.mutations)
            except StorageError:
                self._broken = True
                raise
            self.machine.commit(applied)
        try:
            store.sync()
        except StorageError:
            self._broken = True
            raise
        self.on_change()
        return applied.result

    def _mend(self) -> None:
        """After a refused write: open the store again and take its word for what was written."""
        if not self._broken:
            return
        self._store.close()
        self._store = self._open_store()
        value = self._store.multi_get([rows.STATE_KEY])[0]
        state = rows.State() if value is None else rows.State.from_bytes(value)
        if state == self.machine.state:
            self.machine.use(self._store)
        else:
            self.machine = self._recover()
        self._broken = False

    def _recover(self) -> ShardMachine:
        return recover(self.schema, self.directory, self._store, self._settings, self._compute)

    def exclusive(self) -> threading.RLock:
        """The write lock, for maintenance steps that change the set of segments."""
        return self._lock

    def write_rows(self, mutations: Mutations) -> None:
        """Write a maintenance batch durably; the caller holds the lock."""
        self._mend()
        try:
            self._store.write(mutations)
            self._store.sync()
        except StorageError:
            self._broken = True
            raise

    # --- reads ------------------------------------------------------------------------------------

    @property
    def view(self) -> ShardView:
        return self.machine.view

    def query(self, request: QueryRequest) -> QueryResult:
        """Answer a batch of queries, split over the pool's threads when there are many."""
        space = self.machine.growing.space
        if request.vectors.shape[1:] != (space.row_items,) or request.vectors.dtype != space.row_dtype:
            raise InvalidArgument("vector", f"{request.vectors.shape} {request.vectors.dtype} does not fit "
                                  f"(n, {space.row_items}) {space.row_dtype}", got=str(request.vectors.shape),
                                  limit=f"(n, {space.row_items})")
        return self._reading(lambda: self._query(request))

    def _query(self, request: QueryRequest) -> QueryResult:
        for _ in range(OPTIMISTIC_TRIES):
            try:
                return answer(self.machine.view, request, self.machine, self._compute)
            except StaleView:  # hits died meanwhile: ask the newer view
                continue
        with self._lock:
            return answer(self.machine.view, request, self.machine, self._compute)

    def fetch(self, ids: Sequence[RecordId], *, include_metadata: bool, include_vectors: bool) -> list[Record]:
        """The records that exist, in the order asked; :class:`DataCorrupted` names those with damaged vectors."""
        records = self._reading(lambda: self._fetch(ids, include_metadata, include_vectors))
        if records is None:  # an update between the look-up and the view: look again where nothing moves
            with self._lock:
                records = self._fetch(ids, include_metadata, include_vectors)
        assert records is not None
        return records

    def _fetch(self, ids: Sequence[RecordId], include_metadata: bool, include_vectors: bool) -> list[Record] | None:
        machine = self.machine
        store = self._store
        found = store.multi_get([rows.id_row(id_key(one)) for one in ids])
        present = [(one, rows.unpack_rid(value)) for one, value in zip(ids, found, strict=True) if value is not None]
        out: list[Record] = []
        vectors: npt.NDArray[Any] | None = None
        if include_vectors and present:
            space = machine.growing.space
            vectors, readable = machine.view.vectors(rid_array([rid for _, rid in present]), space.row_items,
                                                     space.row_dtype)
            if not readable.all():
                self._raise_if_damaged(machine, present, readable)
                return None
        values = machine.read_records([rid for _, rid in present]) if include_metadata else [b""] * len(present)
        for place, ((one, _), value) in enumerate(zip(present, values, strict=True)):
            if value is None:
                return None
            metadata = orjson.loads(rows.record_metadata(value)) if include_metadata else {}
            out.append(Record(one, metadata, None if vectors is None else vectors[place]))
        return out

    def _raise_if_damaged(self, machine: ShardMachine, present: Sequence[tuple[RecordId, int]],
                          readable: npt.NDArray[np.bool_]) -> None:
        """Return if the view was merely older than the rows; otherwise raise the damage."""
        wrong = [present[int(p)] for p in np.flatnonzero(~readable)]
        view = machine.view
        lost: list[RecordId] = []
        for _, segment, positions, ordinals in view.locate(rid_array([rid for _, rid in wrong])):
            lost += [wrong[int(p)][0] for p in positions[segment.damaged(ordinals)]]
        if lost:
            raise DataCorrupted(f"the vectors of {len(lost)} records are damaged on disk",
                                path=str(self.directory), ids=tuple(lost))

    def scan(self, request: ScanRequest) -> ScanPage:
        """One page in rid order; ``after`` is one more than the last rid of the page before."""
        return self._reading(lambda: self._scan(request))

    def _scan(self, request: ScanRequest) -> ScanPage:
        view = self.machine.view
        rids: list[int] = []
        for segment in view.segments:
            if segment.rid_range[1] <= request.after or len(rids) > request.limit:
                continue
            ordinals = matching_ordinals(segment, request.filter, self.machine.read_metadata)
            wanted = np.sort(segment.rids(ordinals))
            rids += wanted[np.searchsorted(wanted, request.after):][: request.limit + 1 - len(rids)].tolist()
        more = len(rids) > request.limit
        rids = rids[: request.limit]
        cursor = rids[-1] + 1 if more else None
        living = [(rid, value) for rid, value in zip(rids, self.machine.read_records(rids), strict=True)
                  if value is not None]
        vectors = None
        if request.include_vectors:
            space = self.machine.growing.space
            vectors, readable = view.vectors(rid_array([rid for rid, _ in living]), space.row_items, space.row_dtype)
            if not readable.all():
                lost = [id_from_key(rows.record_id_key(living[int(p)][1])) for p in np.flatnonzero(~readable)]
                raise DataCorrupted(f"the vectors of {len(lost)} records are damaged on disk",
                                    path=str(self.directory), ids=tuple(lost))
        metadata = None
        if request.include_metadata:
            metadata = [orjson.loads(rows.record_metadata(value)) for _, value in living]
        return ScanPage([id_from_key(rows.record_id_key(value)) for _, value in living], metadata, vectors, cursor)

    def count(self, where: Node | None) -> int:
        view = self.machine.view
        if where is None:
            return view.state.records
        return self._reading(lambda: sum(size(allowed_bits(segment, where, self.machine.read_metadata))
                                         for segment in view.segments))

    def _reading(self, read: Callable[[], T]) -> T:
        """Run a read; one that met the store while a write had it reopened runs again once that is done."""
        try:
            return read()
        except DatabaseClosed:
            if not self._closed:
                with self._lock:
                    return read()
            raise self._gone() from None

    def _gone(self) -> VecdbError:
        return CollectionNotFound(self.schema.name) if self._dropped else DatabaseClosed("the database is closed")

    @property
    def store(self) -> Store:
        return self._store

    def close(self, *, dropped: bool = False) -> None:
        """Let go of the store; calls still running end with DatabaseClosed, or if dropped CollectionNotFound."""
        with self._lock:
            self._closed, self._dropped = True, dropped
            self._store.close()
