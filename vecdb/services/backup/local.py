"""Snapshots of a database in one directory, and out of any snapshot into one."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from vecdb.cluster.routing import check_distinct
from vecdb.core.backups import RestoredCollection, SnapshotInfo, SnapshotVerification, check_snapshot_name
from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import CollectionExists, CollectionNotFound, DataCorrupted, InvalidArgument, VecdbError
from vecdb.core.schema import CollectionSchema, check_name
from vecdb.ports.clock import Clock
from vecdb.ports.stores import OpenStore
from vecdb.services.backup.fetching import fetch_shard
from vecdb.services.backup.manifest import CollectionManifest, ShardRef, Snapshot
from vecdb.services.backup.reading import ShardReader, is_read
from vecdb.services.backup.repository import READ, SAVE, Repository
from vecdb.services.backup.saving import ShardFacts, Watch, save_shard
from vecdb.services.backup.verifying import verify_snapshot
from vecdb.services.local import LocalDatabase
from vecdb.services.recovery import ROWS
from vecdb.services.shard import ShardService
from vecdb.shard import rows
from vecdb.shard.digest import MODULUS
from vecdb.shard.mutations import Mutations

RESTORING: Final = "restoring"
"""In the directory of a database: what has come of collections that are being restored, for a next attempt."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A collection of a snapshot, and the name it is to be restored under."""

    collection: CollectionManifest
    name: str

    @property
    def schema(self) -> CollectionSchema:
        return replace(self.collection.schema, name=self.name)


def chosen(snapshot: Snapshot, names: Mapping[str, str] | None) -> list[Wanted]:
    """Of a snapshot: all, or those that ``names`` has, each under the name that stands there.

    Raises ``CollectionNotFound``, and ``InvalidArgument`` where two would have one name.
    """
    there = {one.name: one for one in snapshot.collections}
    asked = {name: name for name in there} if names is None else dict(names)
    for name in asked:
        if name not in there:
            raise CollectionNotFound(name)
    if len(set(asked.values())) != len(asked):
        raise InvalidArgument("collections", "two would be restored under one name", got=sorted(asked.values())[:16],
                              limit="a name for each")
    return [Wanted(there[name], check_name(to)) for name, to in asked.items()]


class LocalBackups:
    """Of an embedded database, or of a server that is alone.  Blocks; one call at a time."""

    def __init__(self, database: LocalDatabase, open_store: OpenStore, clock: Clock, *, cluster: str = "",
                 version: str = "") -> None:
        self._database = database
        self._open_store = open_store
        self._clock = clock
        self._cluster = cluster
        self._version = version

    def names(self) -> list[str]:
        """Of all collections there are."""
        return self._database.list_collections()

    def watch(self, bytes_s: float | None = None) -> Watch:
        """For one of the calls below."""
        return Watch(self._clock, bytes_s)

    def wanted(self, repository: Repository, name: str, collections: Mapping[str, str] | None = None
               ) -> list[tuple[str, str, int]]:
        """What :meth:`restore` would do: names in the snapshot, the names they get, and bytes; raises as that does."""
        wanted = chosen(repository.load(name), collections)
        taken = set(self._database.list_collections())
        for one in wanted:
            if one.name in taken:
                raise CollectionExists(one.name)
        return [(one.collection.name, one.name, one.collection.info().bytes) for one in wanted]

    def create(self, repository: Repository, name: str, collections: Sequence[str] | None = None,
               watch: Watch | None = None) -> SnapshotInfo:
        """Save these collections, or all; raises ``SnapshotExists``, ``CollectionNotFound``, ``DataCorrupted``."""
        watch = watch or Watch(self._clock)
        repository.check_new(check_snapshot_name(name))
        wanted = self._database.list_collections() if collections is None else [*dict.fromkeys(collections)]
        schemas = [self._database.schema(one) for one in wanted]
        lease = repository.lease(SAVE, name)
        try:
            saved = []
            for schema in schemas:
                lease.renew()
                saved.append(CollectionManifest(schema, 1, None, (self._save(repository, schema, watch),)))
            snapshot = Snapshot(name, self._clock.wall(), self._cluster, self._version, tuple(saved))
            repository.commit(snapshot, lease)
        finally:
            lease.release()
        return snapshot.info()

    def _save(self, repository: Repository, schema: CollectionSchema, watch: Watch) -> ShardRef:
        held = self._database.snapshot(schema.name)
        try:
            return save_shard(repository, held, ShardFacts(schema, 0, 0, HASH_SPACE, held.records, held.digest), watch)
        finally:
            held.release()

    def restore(self, repository: Repository, name: str, collections: Mapping[str, str] | None = None,
                watch: Watch | None = None) -> list[RestoredCollection]:
        """Make collections of a snapshot's: all, or those named, each under the name that is given for it.

        Raises ``CollectionExists`` before anything is done if one of the names is taken.  Collections appear one by
        one, each when it is whole.  After a kill what was fetched is found again by the same call.
        """
        watch = watch or Watch(self._clock)
        lease = repository.lease(READ, name)
        try:
            wanted = chosen(repository.load(name), collections)
            taken = set(self._database.list_collections())
            for one in wanted:
                if one.name in taken:
                    raise CollectionExists(one.name)
            done = []
            for one in wanted:
                lease.renew()
                done.append(self._restore(repository, one, watch))
            return done
        finally:
            lease.release()

    def _restore(self, repository: Repository, wanted: Wanted, watch: Watch) -> RestoredCollection:
        source = wanted.collection
        folder = self._database.directory / RESTORING / f"{wanted.name}-{source.shards[0].sha256[:16]}"
        if len(source.shards) == 1:
            fetch_shard(repository, repository.shard(source.shards[0]), folder, watch)
            self._begin_anew(folder)
        else:
            self._gather(repository, wanted, folder, watch)

        def compare(shard: ShardService) -> None:
            state = shard.machine.state
            check_distinct(source.shard_key, state.records, source.records)
            if (state.records, f"{state.digest:032x}") != (source.records, source.digest):
                raise DataCorrupted(f"{source.name!r} has {state.records} records after it was restored and was saved "
                                    f"with {source.records}, or their digest differs", path=repository.url,
                                    region="backup")

        self._database.attach(wanted.schema, folder, compare)
        with suppress(OSError):
            folder.parent.rmdir()
        return RestoredCollection(wanted.name, source.name, source.records, source.digest)

    def _begin_anew(self, folder: Path) -> None:
        """What its log remembers (a seal, keys of writes, marks, imports) is no part of the new collection."""
        store = self._open_store(folder / ROWS)
        try:
            store.write(Mutations(deletes=[rows.SEAL_KEY], ranges=[rows.TOKENS, rows.MARKS, rows.IMPORTS]))
            store.sync()
        finally:
            store.close()

    def _gather(self, repository: Repository, wanted: Wanted, folder: Path, watch: Watch) -> None:
        """Several shards into one: the records, one after another.  It begins anew where it was interrupted."""
        shutil.rmtree(folder, ignore_errors=True)
        scratch = folder.with_name(folder.name + ".source")
        folder.mkdir(parents=True)
        shard = self._database.aside(wanted.schema, folder)
        try:
            for ref in wanted.collection.shards:
                shutil.rmtree(scratch, ignore_errors=True)
                manifest = repository.shard(ref)
                fetch_shard(repository, manifest, scratch, watch, wanted=is_read)
                total = 0
                with ShardReader(manifest.schema, scratch, self._open_store) as reader:
                    for batch in reader.batches():
                        shard.write(batch.records)
                        total += batch.digest
                        watch.check()
                if f"{total % MODULUS:032x}" != ref.digest:
                    raise DataCorrupted(f"a shard of {wanted.collection.name!r} has not the records it was saved with",
                                        path=repository.url, region="backup")
        finally:
            with suppress(VecdbError):
                shard.close()
            shutil.rmtree(scratch, ignore_errors=True)

    def verify(self, repository: Repository, name: str, watch: Watch | None = None) -> SnapshotVerification:
        """Read a whole snapshot again; scratch space is in the database's directory."""
        lease = repository.lease(READ, name)
        try:
            return verify_snapshot(repository, name, self._database.directory / RESTORING / f"verify-{name}",
                                   self._open_store, watch or Watch(self._clock))
        finally:
            lease.release()
            with suppress(OSError):
                (self._database.directory / RESTORING).rmdir()
