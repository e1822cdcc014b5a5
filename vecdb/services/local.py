"""A directory of shards as the SDK's ``Backend``: the embedded database.

Collections open at first use, each on its own: one that is damaged raises when it is touched, the others
serve.  One collection is one shard here; a cluster spreads the same shards over nodes.
"""

import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vecdb.core.errors import CollectionExists, DatabaseClosed, LimitExceeded, StorageReadOnly, VecdbError
from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId
from vecdb.core.limits import MAX_COLLECTIONS
from vecdb.core.query import Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
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
        self._lock = threading.RLock()
        self._opened: dict[str, _Open] = {}
        self._closed = False
        self._catalog = Catalog(lambda: open_store(directory / "catalog", read_only=settings.read_only))
        self._jobs = JobRunner(clock, on_job_error)
        if not settings.read_only:
            self._remove_orphans()

    def _remove_orphans(self) -> None:
        wanted = {entry.folder for entry in self._catalog.entries.values()}
        folder = self._directory / COLLECTIONS
        if folder.is_dir():
            for path in folder.iterdir():
                if path.name not in wanted:
                    shutil.rmtree(path, ignore_errors=True)

    # --- collections ------------------------------------------------------------------------------

    def create_collection(self, schema: CollectionSchema) -> None:
        with self._lock:
            self._check_open()
            if self._settings.read_only:
                raise StorageReadOnly("the database was opened read-only", path=str(self._directory))
            if schema.name in self._catalog.entries:
                raise CollectionExists(schema.name)
            if len(self._catalog.entries) >= MAX_COLLECTIONS:
                raise LimitExceeded("name", f"there are {MAX_COLLECTIONS} collections already",
                                    got=len(self._catalog.entries), limit=MAX_COLLECTIONS)
            entry = Entry(schema, self._catalog.new_folder())
            opened = self._start(entry)
            try:
                self._catalog.add(entry)
            except BaseException:
                self._jobs.forget(schema.name)
                opened.shard.close()
                shutil.rmtree(self._directory / COLLECTIONS / entry.folder, ignore_errors=True)
                raise
            self._opened[schema.name] = opened

    def drop_collection(self, name: str) -> None:
        with self._lock:
            self._check_open()
            if self._settings.read_only:
                raise StorageReadOnly("the database was opened read-only", path=str(self._directory))
            entry = self._catalog.get(name)
            self._catalog.remove(name)
            opened = self._opened.pop(name, None)
            self._jobs.forget(name)
            if opened is not None:
                opened.shard.close(dropped=True)
            shutil.rmtree(self._directory / COLLECTIONS / entry.folder, ignore_errors=True)

    def list_collections(self) -> list[str]:
        with self._lock:
            self._check_open()
            return sorted(self._catalog.entries)

    def schema(self, name: str) -> CollectionSchema:
        with self._lock:
            self._check_open()
            return self._catalog.get(name).schema

    def describe(self, name: str) -> Description:
        return describe(self._collection(name).shard, self._jobs.describe(name))

    def optimize(self, name: str, on_progress: Progress | None = None) -> Description:
        self._collection(name).maintainer.optimize(on_progress)
        return self.describe(name)

    # --- records ----------------------------------------------------------------------------------

    def upsert(self, name: str, batch: UpsertBatch) -> WriteResult:
        return self._collection(name).shard.write(batch)

    def delete(self, name: str, command: DeleteIds | DeleteWhere) -> WriteResult:
        return self._collection(name).shard.write(command)

    def update_metadata(self, name: str, command: UpdateMetadata) -> WriteResult:
        return self._collection(name).shard.write(command)

    def query(self, name: str, request: QueryRequest) -> QueryResult:
        return self._collection(name).shard.query(request)

    def fetch(self, name: str, ids: Sequence[RecordId], *, include_metadata: bool = True,
              include_vectors: bool = True) -> list[Record]:
        return self._collection(name).shard.fetch(ids, include_metadata=include_metadata,
                                                  include_vectors=include_vectors)

    def scan(self, name: str, request: ScanRequest) -> ScanPage:
        return self._collection(name).shard.scan(request)

    def count(self, name: str, where: Node | None = None) -> int:
        return self._collection(name).shard.count(where)

    # --- life -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the jobs, make everything durable, let go of the directory.  A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._jobs.close()
        failure: VecdbError | None = None
        try:
            for opened in self._opened.values():
                try:
                    opened.shard.close()
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

    def _collection(self, name: str) -> _Open:
        opened = self._opened.get(name)
        if opened is not None and not self._closed:
            return opened
        with self._lock:
            self._check_open()
            entry = self._catalog.get(name)
            if name not in self._opened:
                self._opened[name] = self._start(entry)
            return self._opened[name]

    def _start(self, entry: Entry) -> _Open:
        folder = self._directory / COLLECTIONS / entry.folder
        settings = self._settings
        shard = ShardService(entry.schema, folder,
                             lambda *, read_only: self._open_store(folder / "rows", read_only=read_only),
                             self._compute, settings)
        return _Open(shard, Maintainer(shard, self._jobs, self._compute, self._clock, settings, self._memory_used))

    def _memory_used(self) -> int:
        """Bytes that the segments of all open collections hold."""
        return sum(sum(view.segment.memory_bytes().values())
                   for opened in tuple(self._opened.values()) for view in opened.shard.view.segments)

