"""The composition root: where rooms that know each other only as protocols are put together.

``open_embedded`` is the whole database in this process; a node of a cluster will be composed here too.
"""

import os
import resource
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vecdb.core.errors import DataCorrupted, FormatMismatch, InvalidArgument, StorageError
from vecdb.core.limits import MAX_COLLECTIONS
from vecdb.core.nodes import check_label
from vecdb.runtime.clock import SystemClock
from vecdb.runtime.memory import memory
from vecdb.runtime.pool import KernelPool
from vecdb.segment.files import from_os_error, sync_directory
from vecdb.services.jobs import Job
from vecdb.services.local import LocalDatabase
from vecdb.services.priority import UPKEEP, give_way
from vecdb.services.settings import EngineSettings
from vecdb.storage.lock import LOCK_NAME, DirectoryLock
from vecdb.storage.paths import PRIVATE, check_path, make_directory
from vecdb.storage.rocksdict import RocksStore
from vecdb.storage.split import SplitStore

if TYPE_CHECKING:
    from vecdb.config import BackupSettings
    from vecdb.services.backup.work import OpenRepository

FORMAT_NAME = "vecdb.format"
FORMAT = "vecdb 1\n"
CLUSTER_ID = "cluster.id"
"""In the directory of a node of a cluster, whose collections are the logs' to write: says of which."""
FILES_PER_COLLECTION = 16
"""Of the files the process may have open, what one open collection is counted for: logs, tables, segments."""
MEMORY_SHARE = 0.7
"""Of the memory the process may use, what segments may take: the rest is for queries, builds and the store."""


def open_embedded(path: str | os.PathLike[str], *, threads: int = 0, read_only: bool = False,
                  seal_records: int = 0, memory_bytes: int = 0, background: bool = True,
                  verify: bool = True, replicated: bool = False) -> LocalDatabase:
    """Open, and unless ``read_only`` create, the database in the directory ``path``.

    ``threads``: cores for builds and query batches (0: all).  ``seal_records``: records in a growing segment before
    it is sealed (0: 262,144 or 1 GiB of vectors).  ``memory_bytes``: what vectors, graphs and codes may take (0: 70 %
    of the memory this process may use); beyond it vectors stay on disk and codes shrink.
    ``background=False`` leaves sealing and merging to ``optimize``.
    ``verify=False`` trusts what sealed files keep on disk (ids, metadata, vectors there) unread, for a quicker opening.
    ``replicated``: its collections are replicas, made and written by the logs of a cluster (``LocalDatabase.host``).
    Raises :class:`~vecdb.core.errors.DatabaseLocked`, ``FormatMismatch``, ``StorageError`` or ``DataCorrupted``.
    """
    for name, value in (("threads", threads), ("seal_records", seal_records), ("memory_bytes", memory_bytes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidArgument(name, f"must be a whole number from 0 on, not {value!r}", got=repr(value),
                                  limit="0 or more")
    directory = check_path(Path(path))
    settings = EngineSettings(memory_bytes=memory_bytes or int(memory().total_bytes * MEMORY_SHARE),
                              seal_records=seal_records or EngineSettings().seal_records, background=background,
                              verify=verify, read_only=read_only, max_open_collections=_open_collections(),
                              replicated=replicated)
    if read_only and not directory.is_dir():
        raise StorageError(f"there is no database at {directory}", path=str(directory))
    if not read_only:
        make_directory(directory, PRIVATE)
        _check_format(directory, may_be_new=True)
    lock = DirectoryLock(directory, read_only=read_only)
    try:
        _check_format(directory, may_be_new=not read_only)
        _check_alone(directory, replicated=replicated)
        if not read_only:
            _mark_format(directory)
        pool = KernelPool(threads)
        upkeep = KernelPool(threads, begin=partial(give_way, UPKEEP))
        try:
            def let_go() -> None:
                upkeep.close()
                pool.close()
                lock.close()

            return LocalDatabase(directory, open_store, pool, SystemClock(), settings, on_job_error=_report,
                                 on_close=let_go, upkeep=upkeep)
        except BaseException:
            upkeep.close()
            pool.close()
            raise
    except BaseException:
        lock.close()
        raise


def _open_collections() -> int:
    """How many collections may be open at once within the process's limit of open files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return MAX_COLLECTIONS
    return min(MAX_COLLECTIONS, max(8, limit // FILES_PER_COLLECTION))


def _check_format(directory: Path, *, may_be_new: bool) -> None:
    """Refuse a directory of another version, and one that holds something else.

    Names are read before the marker: whatever an opener ahead of us has made, it made the marker first.  An empty
    marker is what an older version left when it was killed at its first opening, and counts as none.
    """
    ours = (LOCK_NAME, FORMAT_NAME, FORMAT_NAME + ".partial")
    others = [name for name in os.listdir(directory) if name not in ours]
    marker = directory / FORMAT_NAME
    text = marker.read_text(encoding="utf-8", errors="replace") if marker.exists() else ""
    if text not in ("", FORMAT):
        found, wanted = text.strip()[:40], FORMAT.strip()
        raise FormatMismatch(f"{directory} has the format {found!r}, this version reads {wanted!r}",
                             path=str(directory), got=found, limit=wanted)
    if not text and (others or not may_be_new):
        raise FormatMismatch(f"{directory} is no vecdb database (it holds {sorted(others)[:3]} and no {FORMAT_NAME})",
                             path=str(directory))


def _check_alone(directory: Path, *, replicated: bool) -> None:
    """Refuse the directory of a node of a cluster: what was written there would be on that node alone.

    One that is opened ``replicated`` is to say of which node it is; whether that is the right one, its opener looks.
    """
    path = directory / CLUSTER_ID
    if not path.exists():
        return
    text = path.read_text(encoding="ascii", errors="replace")
    cluster, _, node = text[:140].removesuffix("\n").partition(" ")
    try:
        if not text.endswith("\n"):
            raise ValueError("its end is missing")
        check_label(cluster, "cluster")
        check_label(node, "node")
    except ValueError as error:
        raise DataCorrupted(f"{path} is damaged: it names the cluster and the node that the directory is of, in one "
                            f"line as 'prod n1', and holds {text[:140]!r} ({error}); write that line anew if you are "
                            "sure of it: a node with another's directory breaks what was promised",
                            path=str(path)) from None
    if not replicated:
        raise FormatMismatch(f"{directory} is of node {node!r} of the cluster {cluster!r}: start it with vecdb serve "
                             "and its [cluster] settings, and ask it by its URL", path=str(directory), got=CLUSTER_ID,
                             limit="a directory of its own")


def _mark_format(directory: Path) -> None:
    """Make the marker, whole or not at all."""
    marker = directory / FORMAT_NAME
    if marker.exists() and marker.stat().st_size:
        return
    partial = directory / (FORMAT_NAME + ".partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(FORMAT)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, marker)
        sync_directory(directory)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise from_os_error(error, marker, "creating") from error


def open_store(path: Path, *, read_only: bool = False, wal: bool = True) -> RocksStore:
    """Open a store; what an interrupted write left at its log's end, and was cut off, is told."""
    store = RocksStore(path, read_only=read_only, wal=wal)
    torn = store.recovered_tail
    if torn is not None:
        from vecdb.runtime.logs import logger

        logger().warning("interrupted_write_dropped", log=str(torn.log), offset=torn.offset,
                         bytes=torn.dropped_bytes, kept=None if torn.kept is None else str(torn.kept))
    return store


def open_logs(path: Path) -> SplitStore:
    """Open the store of a node's logs, whose commands stand in files of their own in the folder ``values``."""
    return SplitStore(open_store(path), path / "values")


def repositories(settings: "BackupSettings") -> "OpenRepository":
    """What opens places of snapshots, of those that the settings allow."""
    from vecdb.core.backups import parse_place
    from vecdb.services.backup.repository import Repository
    from vecdb.storage.objects import ObjectAccess, open_objects

    access = ObjectAccess(settings.s3_endpoint, settings.s3_region, settings.s3_access_key_id,
                          settings.s3_secret_access_key.get_secret_value(), virtual_hosted=settings.s3_virtual_hosted,
                          checksums=settings.s3_checksums)
    allowed = [parse_place(one).url for one in settings.urls]

    def open_repository(url: str, *, create: bool = False) -> Repository:
        place = parse_place(url).url
        if allowed and not any(place == one or place.startswith(one.rstrip("/") + "/") for one in allowed):
            raise InvalidArgument("url", f"{place} is no place that this node may use: its settings say which "
                                  "(backup.urls)", got=place, limit=allowed)
        return Repository(open_objects(place, access, create=create), create=create)

    return open_repository


def _report(job: Job, error: Exception) -> None:
    from vecdb.runtime.logs import logger  # a fifth of a second that a start without trouble need not spend

    logger().error("job_failed", kind=job.kind, collection=job.collection, stage=job.stage, error=str(error))
