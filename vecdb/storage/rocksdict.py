"""``RocksStore``: RocksDB, through rocksdict, as the ``Store`` port."""

import contextlib
import copy
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rocksdict import AccessType, Checkpoint, Options, Rdict, ReadOptions, WriteBatch, WriteOptions

from vecdb.core.errors import DatabaseClosed, DataCorrupted, InvalidArgument, StorageError, StorageReadOnly, VecdbError
from vecdb.shard.mutations import Mutations
from vecdb.storage import forks, torn, wal
from vecdb.storage.errors import from_rocksdb
from vecdb.storage.expect import ManifestNote, check_manifest
from vecdb.storage.gate import Gate
from vecdb.storage.group_commit import GroupCommit
from vecdb.storage.options import StoreResources, shared_resources, store_options
from vecdb.storage.paths import make_directory
from vecdb.storage.scan import RowScan
from vecdb.storage.synced import SyncNote, check_synced, check_torn

SCAN_READAHEAD_BYTES = 1 << 20
STALL_LIMIT_S = 60.0
NOTE_WAIT_S = 0.01
"""For a moment between two writes; a sync that finds none goes without a note, and the older one stays true."""
STALL_PAUSE_S = 0.005
_STALL = "Write stall"


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Sizes in bytes; ``cache_bytes`` is of the cache all stores of the process share."""

    disk_bytes: int
    memtable_bytes: int
    cache_bytes: int
    table_reader_bytes: int
    estimated_rows: int
    syncs: int


class RocksStore:
    """One ordered key space in a directory of its own.

    Every method may be called from any thread.  Errors are :class:`StorageError` and its kinds,
    :class:`DataCorrupted`, :class:`DatabaseLocked` and :class:`DatabaseClosed`.  After a failed ``write`` or ``sync``
    that batch may or may not be there, reads go on, and every further ``write`` or ``sync`` raises the
    same error until ``reopen``.

    ``read_only``: nothing in the directory is created or changed, so a store on a read-only medium or on
    a full disk can be read; writes raise :class:`StorageReadOnly`.  Rows a writer adds later are not seen.
    ``wal=False``: for rows that another log brings back.  A killed process loses the batches after some point, which
    lies at the last ``sync`` or later; ``sync`` writes the memtable out as a table file.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False, wal: bool = True,
                 resources: StoreResources | None = None) -> None:
        self._path = Path(path).absolute()
        self._read_only = read_only
        self._wal = wal
        self._resources = resources or shared_resources()
        self._write_lock = threading.Lock()
        self._failure: VecdbError | None = None
        self._scans: weakref.WeakSet[RowScan] = weakref.WeakSet()
        self._gate = Gate(lambda: DatabaseClosed(f"the store at {self._path} is closed", path=str(self._path)),
                          lambda pid: forks.foreign(self._path, pid))
        self._commit = self._group_commit()
        self._unstalled = WriteOptions()
        self._unstalled.no_slowdown = True
        self._unstalled.disable_wal = not wal  # type: ignore[method-assign,assignment]  # a property; the stub errs
        self._view: Path | None = None
        self._tail: torn.TornTail | None = None
        self._manifest = ManifestNote(self._path)
        forks.check_may_open(self._path)
        self._synced = SyncNote(self._path)
        self._db = self._open()
        forks.guard(self)
        self._gate.open()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def failure(self) -> VecdbError | None:
        """The error that ended writing, until ``reopen``."""
        return self._failure

    @property
    def recovered_tail(self) -> torn.TornTail | None:
        """What opening dropped of the newest log as an interrupted write's remains; None where there was nothing."""
        return self._tail

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of ``keys``, None where there is none.  The GIL is free meanwhile."""
        if not keys:
            return []
        with self._gate.entered():
            try:
                found = self._db.get(list(keys))
            except Exception as error:
                raise self._error(error, "reading") from error
            return list(found or ())

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows of ``[start, stop)`` in key order, from a snapshot taken at the first step.

        At most about 1 MiB is read ahead.  A scan still open when the store is closed raises
        :class:`DatabaseClosed` at its next read.
        """
        scan = self._begin_scan(start, stop)
        try:
            while rows := scan.read():
                yield from rows
        finally:
            scan.close()

    def write(self, batch: Mutations) -> None:
        """Apply atomically; visible at once, durable after the next ``sync``.  ``batch`` is borrowed.

        Waits, with the GIL free, while compaction is too far behind; after 60 s of that :class:`StorageError` says
        so, and nothing was written.
        """
        with self._gate.entered():
            rows = self._encode(batch)
            if rows.is_empty():
                return
            with self._write_lock:
                waited_s = 0.0
                while not self._written(rows):
                    if waited_s > STALL_LIMIT_S:
                        raise StorageError(f"the store at {self._path} cannot keep up with writing",
                                           path=str(self._path))
                    time.sleep(STALL_PAUSE_S)
                    waited_s += STALL_PAUSE_S
                    rows = self._encode(batch)  # rocksdict has consumed the first
            self._commit.wrote()

    def sync(self) -> None:
        """Return once every earlier write is on stable storage; concurrent calls share one fsync."""
        with self._gate.entered():
            self._commit.sync()

    def checkpoint(self, target: Path) -> None:
        """A consistent copy, by hard links where the file system is the same, in a folder that must not exist.

        It holds every earlier write, durably; a store may be opened on it.
        """
        target = Path(target).absolute()
        with self._gate.entered():
            self._check_writable()
            if os.path.lexists(target):
                raise InvalidArgument("target", f"{target} exists already", got=str(target), limit="a new folder")
            make_directory(target.parent)
            if not self._wal:
                self._commit.sync()  # without the GIL; what RocksDB flushes with it held is what came since
            try:
                Checkpoint(self._db).create_checkpoint(_text(target))
            except Exception as error:
                shutil.rmtree(target, ignore_errors=True)
                raise self._error(error, f"copying to {target}") from error

    def flush(self) -> None:
        """Write the memtable out as a table file, so that the next opening has no log to replay."""
        with self._gate.entered():
            self._check_writable()
            self._flush_rows()

    def compact(self, start: bytes | None = None, stop: bytes | None = None) -> None:
        """Rewrite the rows of ``[start, stop)``, by default all, and drop what was deleted.  The GIL is free.

        If it meets damage in what it rewrites (background work does so as well), it raises, and writes are refused
        as after a failed write: RocksDB will not build on damaged tables.
        """
        with self._gate.entered():
            self._check_writable()
            try:
                self._db.compact_range(start, stop)
                self._db.write(WriteBatch(raw_mode=True))  # compact_range tells no errors; a write does
            except Exception as error:
                raise self._fail(error, "compacting") from error
            self._manifest.renew()

    def stats(self) -> StoreStats:
        with self._gate.entered():
            def number(name: str) -> int:
                return int(self._db.property_int_value(f"rocksdb.{name}") or 0)

            try:
                return StoreStats(
                    disk_bytes=_disk_bytes(self._path), memtable_bytes=number("cur-size-all-mem-tables"),
                    cache_bytes=self._resources.block_cache.get_usage(),
                    table_reader_bytes=number("estimate-table-readers-mem"),
                    estimated_rows=number("estimate-num-keys"), syncs=self._commit.flushes)
            except Exception as error:
                raise self._error(error, "measuring") from error

    def reopen(self) -> None:
        """Close and open anew, which settles what a failed write left.  If opening fails the store stays closed."""
        self._gate.check_process()
        self._shut(quiet=True)
        self._db = self._open()
        self._failure = None
        self._commit = self._group_commit()
        self._gate.open()

    def native(self) -> list[object]:
        """What a forked child must not free."""
        return [self._db, self._resources, self._unstalled]

    def close(self) -> None:
        """Make everything durable and let go of the files; a second call does nothing.

        Waits for calls in flight and ends open scans.  Raises if the last rows could not be made durable (but not
        a second time what a failed write or sync has raised already); the store is closed all the same.
        In a child forked from the process that opened the store it does nothing.
        """
        self._shut(quiet=self._failure is not None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Rdict:
        check_manifest(self._path)
        check_synced(self._path, self._oldest_log_needed)
        self._tail = None
        try:
            self._check_logs()
            if not torn.ends_in_zeros(self._path):
                return self._open_checked()
        except DataCorrupted:
            if not self._found_torn():
                raise
        else:
            self._found_torn()
        if self._tail is not None:
            self._check_logs()
            if not self._read_only:
                self._open_view()  # raises, with nothing changed, if more than the end is bad
                self._synced.forget()  # killed after the cut, the next opening must not miss what was cut
                self._tail = torn.cut_off(self._tail)
        return self._open_checked()

    def _open_view(self) -> None:
        try:
            self._view = _mirror(self._path, logs=True, cut=self._cut())
            options = store_options(self._resources, create=False)
            _opened(self._view, options, AccessType.read_only(False)).close()
        except Exception as error:
            raise self._error(error, "opening") from error
        finally:
            self._drop_view()

    def _found_torn(self) -> bool:
        self._tail = torn.find(self._path, self._oldest_log_needed() or 0)
        if self._tail is not None:
            check_torn(self._path, self._tail.log, self._tail.offset)
        return self._tail is not None

    def _open_checked(self) -> Rdict:
        try:
            options = store_options(self._resources, create=not self._read_only)
            if self._read_only:
                self._view = _mirror(self._path, logs=True, cut=self._cut())
                return _opened(self._view, options, AccessType.read_only(False))
            make_directory(self._path)
            opened = _opened(self._path, options, AccessType.read_write())
            self._manifest.renew()
            fresh = self._synced.newest()
            if fresh is None or fresh[1] == 0:  # replayed: the log that was noted is no longer needed
                self._synced.forget()
            return opened
        except Exception as error:
            self._drop_view()
            raise self._error(error, "opening") from error

    def _cut(self) -> tuple[Path, int] | None:
        return (self._tail.log, self._tail.offset) if self._tail is not None and self._tail.kept is None else None

    def _check_logs(self) -> None:
        try:
            wal.check_logs(self._path, cut=self._cut())
        except DataCorrupted:
            # A power cut may bring back a log whose rows had long been in table files; RocksDB does not read it.
            oldest = self._oldest_log_needed()
            if oldest is None:
                raise
            wal.check_logs(self._path, oldest, self._cut())

    def _oldest_log_needed(self) -> int | None:
        """What the manifest says, by a look without the logs; None if that fails as well."""
        view: Path | None = None
        try:
            view = _mirror(self._path, logs=False)
            options = store_options(self._resources, create=False)
            bare = _opened(view, options, AccessType.read_only(False))
            oldest = bare.property_int_value("rocksdb.min-log-number-to-keep")
            bare.close()
            return oldest
        except Exception:
            return None
        finally:
            if view is not None:
                shutil.rmtree(view, ignore_errors=True)

    def _shut(self, *, quiet: bool) -> None:
        if not self._gate.shut():
            return
        for scan in list(self._scans):
            scan.close()
        try:
            if not quiet and not self._read_only:
                if self._wal:
                    self._db.flush_wal(True)
                else:
                    self._db.flush(True)
        except Exception as error:
            raise self._error(error, "closing") from error
        finally:
            with contextlib.suppress(Exception):  # it tries to empty the memtable; what it cannot, the log has
                self._db.close()
            if not self._read_only:
                self._manifest.renew()
                if not quiet:
                    self._synced.tell(self._synced.newest())
            self._synced.close()
            self._drop_view()

    def _drop_view(self) -> None:
        if self._view is not None:
            shutil.rmtree(self._view, ignore_errors=True)
            self._view = None

    def _begin_scan(self, start: bytes, stop: bytes) -> RowScan:
        with self._gate.entered():
            options = ReadOptions()
            options.set_iterate_upper_bound(stop)
            options.fill_cache(False)  # type: ignore[call-arg]  # the stub lacks the argument
            options.set_readahead_size(SCAN_READAHEAD_BYTES)
            try:
                iterator = self._db.iter(options)
            except Exception as error:
                raise self._error(error, "reading") from error
            scan = RowScan(iterator, start, lambda error: self._error(error, "reading"),
                           lambda: DatabaseClosed(f"the store at {self._path} was closed", path=str(self._path)),
                           self._gate.check_process)
            self._scans.add(scan)
            return scan

    def _encode(self, batch: Mutations) -> WriteBatch:
        rows = WriteBatch(raw_mode=True)
        try:
            for start, stop in batch.ranges:
                if start < stop:
                    rows.delete_range(start, stop)
            for key in batch.deletes:
                rows.delete(key)
            put = rows.put
            for key, value in batch.puts:
                put(key, value)
        except Exception as error:
            raise self._error(error, "encoding a batch for") from error
        return rows

    def _written(self, rows: WriteBatch) -> bool:
        """Write, or return False where RocksDB would have slept with the GIL held, stopping every thread."""
        self._check_writable()
        try:
            self._db.write(rows, self._unstalled)
        except Exception as error:
            if _STALL in str(error):
                return False
            raise self._fail(error, "writing to") from error
        return True

    def _group_commit(self) -> GroupCommit:
        return GroupCommit(self._flush_log if self._wal else self._flush_rows, self._check_writable)

    def _flush_rows(self) -> None:
        try:
            self._db.flush(True)
        except Exception as error:
            raise self._fail(error, "flushing") from error
        self._manifest.renew()

    def _flush_log(self) -> None:
        # In the middle of a write the log would end inside a record.  Whoever writes may be waiting for compaction.
        between = self._write_lock.acquire(timeout=NOTE_WAIT_S)
        try:
            written = self._synced.newest() if between else None
        finally:
            if between:
                self._write_lock.release()
        try:
            self._db.flush_wal(True)
        except Exception as error:
            raise self._fail(error, "syncing") from error
        if between:
            self._synced.tell(written)
        self._manifest.renew()  # a look at its size, unless a flush or compaction has ended meanwhile

    def _check_writable(self) -> None:
        if self._read_only:
            raise StorageReadOnly(f"the store at {self._path} was opened read-only", path=str(self._path))
        failure = self._failure
        if failure is not None:
            raise copy.copy(failure)

    def _fail(self, error: BaseException, doing: str) -> VecdbError:
        if self._failure is None:
            self._failure = self._error(error, doing)
        return copy.copy(self._failure)

    def _error(self, error: BaseException, doing: str) -> VecdbError:
        return from_rocksdb(error, self._path, doing)


def _opened(path: Path, options: Options, access: AccessType) -> Rdict:
    return Rdict(_text(path), options, access_type=access)


def _text(path: Path) -> str:
    text = os.fspath(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidArgument("path", f"{text!r} is not valid UTF-8", got=repr(text), limit="UTF-8") from None
    return text


_UNMIRRORED = ("LOG", "LOCK", "rocksdict-config")


def _mirror(path: Path, *, logs: bool, cut: tuple[Path, int] | None = None) -> Path:
    """A private folder of links to the store's files: even to read, rocksdict and RocksDB write notes beside them."""
    try:
        names = sorted(os.listdir(path))
        if "CURRENT" not in names:
            raise StorageError(f"there is no store at {path}", path=str(path))
        view = Path(tempfile.mkdtemp(prefix="vecdb-read-"))
        for name in names:
            if not name.startswith(_UNMIRRORED) and (logs or not name.endswith(".log")):
                os.symlink(path / name, view / name)
        if cut is not None:
            (view / cut[0].name).unlink()
            shutil.copyfile(cut[0], view / cut[0].name)
            os.truncate(view / cut[0].name, cut[1])
    except OSError as error:
        raise from_rocksdb(error, path, "opening") from error
    return view


def _disk_bytes(path: Path) -> int:
    total = 0
    with os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # a compaction deletes files while we look
                total += entry.stat().st_size
    return total
