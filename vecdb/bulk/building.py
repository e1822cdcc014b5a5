"""The whole of a build: what is asked, what is there already, the pieces that are missing, and the snapshot."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from vecdb.app import repositories
from vecdb.bulk import pieces
from vecdb.bulk.engines import Engine
from vecdb.cluster.placement import ranges
from vecdb.core.backups import SnapshotInfo, check_snapshot_name, parse_place
from vecdb.core.cluster import MAX_COLLECTION_SHARDS
from vecdb.core.errors import DataCorrupted, InvalidArgument, LimitExceeded, VecdbError
from vecdb.core.schema import CollectionSchema
from vecdb.formats import SourceOptions
from vecdb.segment.files import from_os_error
from vecdb.services.backup.manifest import CollectionManifest, ShardRef, Snapshot
from vecdb.services.backup.repository import SAVE, Lease, Repository
from vecdb.storage.lock import LOCK_NAME, DirectoryLock

if TYPE_CHECKING:
    from vecdb.config import BackupSettings

Report = Callable[[str, int, int], None]
"""``(stage, done, total)``."""
PLAN: Final = "plan.json"
RENEW_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """``files``: read in this order, so that of equal ids the last one's last is kept.  ``snapshot``: the name it gets
    at ``url``.  ``replication_factor``: what it says of itself, for whoever attaches it.  ``memory_bytes``: what a
    shard may take where it serves (0: most of this machine's memory); ``threads``: that build a shard.
    """

    schema: CollectionSchema
    files: tuple[Path, ...]
    shards: int
    url: str
    snapshot: str
    scratch: Path
    shard_key: str | None = None
    replication_factor: int = 3
    options: SourceOptions = SourceOptions()  # noqa: RUF009  # frozen
    memory_bytes: int = 0
    threads: int = 1

    def to_json(self) -> dict[str, Any]:
        """What must be the same for a build to be gone on with."""
        value = {"schema": self.schema.to_json(), "files": [_fingerprint(one) for one in self.files],
                "shards": self.shards, "url": parse_place(self.url).url, "snapshot": self.snapshot,
                "shard_key": self.shard_key, "replication_factor": self.replication_factor,
                "options": [self.options.id_column, self.options.vector_column,
                            None if self.options.metadata_path is None else _fingerprint(self.options.metadata_path)],
                "memory_bytes": self.memory_bytes}
        same: dict[str, Any] = orjson.loads(orjson.dumps(value))
        return same


@dataclass(frozen=True, slots=True)
class Built:
    """``rows`` read, ``replaced`` of them by a later row of the same id; seconds of the two steps, of this call."""

    snapshot: SnapshotInfo
    rows: int
    replaced: int
    partition_s: float
    build_s: float


def build(job: Job, engine: Engine, settings: "BackupSettings", *, version: str = "",
          report: Report = lambda stage, done, total: None) -> Built:
    """Build it, or go on building it; the scratch folder is gone when this returns.

    Raises ``SnapshotExists``, ``InvalidArgument`` for records that cannot be taken or a scratch folder of another
    build, ``StorageFull`` and other ``StorageError``s, ``DatabaseLocked`` while another is at work in the folder, and
    ``Unavailable`` where processes die.
    """
    _check(job)
    repository = repositories(settings)(job.url, create=True)
    repository.check_new(job.snapshot)
    with _scratch(job) as scratch:
        lease = repository.lease(SAVE, f"bulk-{hashlib.sha256(str(scratch).encode()).hexdigest()[:16]}")
        try:
            return _build(job, scratch, engine, settings, repository, lease, version, report)
        finally:
            lease.release()


def _build(job: Job, scratch: Path, engine: Engine, settings: "BackupSettings", repository: Repository, lease: Lease,
           version: str, report: Report) -> Built:
    begin = time.monotonic()
    renewed = begin

    def renew() -> None:
        nonlocal renewed
        if time.monotonic() - renewed > RENEW_S:
            renewed = time.monotonic()
            lease.renew()

    parts = _partition(job, scratch, engine, report, renew)
    between = time.monotonic()
    counts = [sum(one["records"][place] for one in parts) for place in range(job.shards)]
    refs = _shards(job, scratch, counts, engine, settings, repository, report, renew)
    manifest = CollectionManifest(job.schema, job.replication_factor, job.shard_key, tuple(refs))
    snapshot = Snapshot(job.snapshot, time.time(), "", version, (manifest,))
    repository.commit(snapshot, lease)
    rows = sum(one["rows"] for one in parts)
    return Built(snapshot.info(), rows, rows - manifest.records, between - begin, time.monotonic() - between)


def _partition(job: Job, scratch: Path, engine: Engine, report: Report, idle: Callable[[], None]
               ) -> list[dict[str, Any]]:
    total = len(job.files)
    missing = [pieces.PartitionPiece(scratch, number, path, job.options, job.schema, job.shards, job.shard_key)
               for number, path in enumerate(job.files) if pieces.noted(pieces.part_note(scratch, number)) is None]
    ended = total - len(missing)
    report("partitioning", ended, total)

    def done(_: dict[str, Any]) -> None:
        nonlocal ended
        ended += 1
        report("partitioning", ended, total)

    engine.run(pieces.partition, missing, done, idle)
    return [_must(pieces.part_note(scratch, number)) for number in range(total)]


def _shards(job: Job, scratch: Path, counts: Sequence[int], engine: Engine, settings: "BackupSettings",
            repository: Repository, report: Report, idle: Callable[[], None]) -> list[ShardRef]:
    edges = ranges(job.shards)
    there = [pieces.noted(pieces.shard_note(scratch, place)) for place in range(job.shards)]
    missing = [place for place, one in enumerate(there) if one is None or not _is_saved(repository, one)]
    missing.sort(key=lambda place: -counts[place])  # the longest first: the end is not waited for by one alone
    total, ended = sum(counts), sum(counts) - sum(counts[place] for place in missing)
    report("building shards", ended, total)

    def done(ref: dict[str, Any]) -> None:
        nonlocal ended
        ended += counts[edges.index((int(ref["lo"]), int(ref["last"]) + 1))]
        report("building shards", ended, total)

    engine.run(pieces.build_shard, [
        pieces.ShardPiece(scratch, place, *edges[place], len(job.files), counts[place], job.schema,
                          parse_place(job.url).url, settings, job.threads, job.memory_bytes)
        for place in missing], done, idle)
    return [ShardRef.from_json(_must(pieces.shard_note(scratch, place))) for place in range(job.shards)]


def _is_saved(repository: Repository, note: dict[str, Any]) -> bool:
    """Whether all of a shard is at the place still."""
    try:
        shard = repository.shard(ShardRef.from_json(note))
    except (VecdbError, KeyError, ValueError):
        return False
    return all(repository.has(one, size) for one, size in shard.objects.items())


def _must(path: Path) -> dict[str, Any]:
    found = pieces.noted(path)
    if found is None:
        raise DataCorrupted(f"{path} is missing, though it was written", path=str(path), region="scratch")
    return found


def _check(job: Job) -> None:
    check_snapshot_name(job.snapshot)
    if not 1 <= job.shards <= MAX_COLLECTION_SHARDS:
        raise LimitExceeded("shards", "must be a number of shards a collection may have", got=job.shards,
                            limit=MAX_COLLECTION_SHARDS)
    if not job.files:
        raise InvalidArgument("from", "names no file", got="nothing", limit="one or more files")
    for one in job.files:
        _fingerprint(one)


def _fingerprint(path: Path) -> list[Any]:
    try:
        found = path.stat()
    except OSError as error:
        raise InvalidArgument("from", f"{path} cannot be read: {error.strerror}", got=str(path),
                              limit="an existing file") from None
    return [str(path.absolute()), found.st_size, found.st_mtime_ns]


@contextmanager
def _scratch(job: Job) -> Iterator[Path]:
    """The folder of this build alone, from now on; it is gone after it, and stays where it ends before."""
    scratch = job.scratch.absolute()
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        others = [one.name for one in scratch.iterdir() if one.name not in _OURS]
    except OSError as error:
        raise from_os_error(error, scratch, "creating") from error
    if others:
        raise InvalidArgument("scratch", f"{scratch} holds something else ({sorted(others)[0]})", got=str(scratch),
                              limit="a new folder, or one of this build")
    lock = DirectoryLock(scratch)
    try:
        wanted, found = job.to_json(), pieces.noted(scratch / PLAN)
        if found is None:
            for name in (pieces.PARTS, pieces.SHARDS):
                shutil.rmtree(scratch / name, ignore_errors=True)
            pieces.note(scratch / PLAN, wanted)
        elif found != wanted:
            differs = sorted(key for key in wanted if found.get(key) != wanted[key])
            raise InvalidArgument("scratch", f"{scratch} is of a build with other {', '.join(differs)}: name another "
                                  "folder, or delete it", got=str(scratch), limit="a folder of this build")
        shutil.rmtree(scratch / pieces.WORK, ignore_errors=True)  # of processes that were killed
        yield scratch
        shutil.rmtree(scratch, ignore_errors=True)
    finally:
        lock.close()


_OURS: Final = (LOCK_NAME, PLAN, pieces.PARTS, pieces.SHARDS, pieces.WORK)
