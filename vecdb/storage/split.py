"""A store whose large values stand in files of their own, beside an inner store that holds everything else.

It is made for logs.  What a log-structured tree writes it writes again: to its own log, to a table, to tables below.
Commands of a log are large, read seldom and deleted in the order they came, so nothing is gained by that.  Measured
with 51 KB commands, three nodes on two cores wrote 8.8 bytes for each byte of them, spent a quarter of the CPU in
flushes and compactions, and waited 50 to 80 ms for a sync while a memtable was written out: 60 MB/s; with files, 100.

**Writing.**  The large values of a batch are appended to the newest file and synced, then the batch goes to the inner
store with a pointer in the place of each: file, offset, length, checksum.  So a pointer that is there, after whatever
crash, points at bytes that are on stable storage, batches stay as atomic as the inner store has them, and the end of a
file needs no judgement: what was torn there nobody points to.  A process begins with a file of its own.  What does not
match its pointer is ``DataCorrupted``, for who reads it.

**Space.**  With each batch goes a row for each *family* of keys (all but the last eight bytes are equal) that has
values in the newest file: the first and the last of those eight bytes, and how much it is.  Deleted ranges shorten
that, and a file without families is deleted once the deletion that emptied it is on stable storage.  A key that is
deleted alone, or written anew, leaves its old value until a range passes over it.  Where few values hold many files,
because one family moves on and others rest, whoever begins a new file moves the values of the emptiest first.
"""

import copy
import os
import re
import shutil
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Self

import xxhash

from vecdb.core.errors import DatabaseClosed, DataCorrupted, InvalidArgument, VecdbError
from vecdb.ports.store import Store
from vecdb.segment.files.durable import sync_directory
from vecdb.shard.mutations import Mutations
from vecdb.storage import forks
from vecdb.storage.errors import from_rocksdb
from vecdb.storage.paths import make_directory

LARGE_BYTES: Final = 4 << 10
"""Values from here on are large."""
LEAST_BYTES: Final = 96 << 10
"""A batch whose large values are less in sum leaves them in the inner store, which spares their own sync: a lone
command of 51 KB takes 0.25 ms more with it.
"""
FILE_BYTES: Final = 64 << 20
SPARE_FILES: Final = 4
"""So many files more than twice what lives in them are left alone."""
VERSION: Final = 1
_MARK: Final = bytes.fromhex("9d1c5be08a34f7426e03d9b86fa517")
"""What a pointer begins with.  A value that looks like a pointer goes to a file, whatever its size."""
_POINTER: Final = struct.Struct("<15sBQQQQ")
_ROWS: Final = b"\xffvalues"
_ROWS_END: Final = b"\xffvaluet"
_FILE: Final = struct.Struct(">Q")
_SPAN: Final = struct.Struct("<QQQ")
_NAME: Final = re.compile(r"(\d{6,18})\.values")
_INDEX: Final = 8
_PARTS: Final = 512
"""Buffers of one system call; the least that systems take is 1,024."""
_flush: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


class _Pointer(NamedTuple):
    file: int
    offset: int
    length: int
    checksum: int


@dataclass(slots=True)
class _Span:
    """Of one family in one file: its first and its last place, and bytes, about."""

    first: int
    last: int
    size: int

    def row(self) -> bytes:
        return _SPAN.pack(self.first, self.last, self.size)


@dataclass(slots=True)
class _Changed:
    """Rows about families that a batch changes, and files that it may have emptied."""

    rows: dict[bytes, _Span | None] = field(default_factory=dict)
    files: set[int] = field(default_factory=set)


class SplitStore:
    """Implements :class:`~vecdb.ports.store.Store`; ``inner`` is closed with it.  ``folder`` is its own.

    Values of keys of less than eight bytes stay in the inner store.  Keys that begin with ``ff 76 61 6c 75 65 73`` are
    its own.
    Every method may be called from any thread.  After a failed ``write`` every further one, and ``sync``, raises the
    same error until the store is opened anew.
    """

    def __init__(self, inner: Store, folder: Path | str, *, file_bytes: int = FILE_BYTES) -> None:
        self._inner, self._file_bytes = inner, file_bytes
        self._folder = Path(folder).absolute()
        self._lock = threading.Lock()
        self._files: dict[int, dict[bytes, _Span]] = {}
        self._lengths: set[int] = set()
        """Of families."""
        self._emptied: list[int] = []
        """Files to be deleted once what was written so far is on stable storage."""
        self._stuck: set[int] = set()
        """Files that hold damage: they are not moved."""
        self._handle, self._at, self._number = -1, 0, 0
        self._failure: VecdbError | None = None
        self._closed = False
        self._pid = os.getpid()
        try:
            self._open()
        except BaseException:
            inner.close()
            raise

    @property
    def files(self) -> list[Path]:
        """Those that hold values, the oldest first."""
        return [self._path(number) for number in sorted(self._files)]

    # --- the port ---------------------------------------------------------------------------------

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        rows = self._inner.multi_get(keys)
        with _Reader(self._folder) as reader:
            return [self._value(reader, key, row) for key, row in zip(keys, rows, strict=True)]

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """A value that is deleted while the scan goes on may be passed over."""
        with _Reader(self._folder) as reader:
            for key, row in self._inner.scan(start, stop):
                value = self._value(reader, key, row)
                if value is not None and not key.startswith(_ROWS):
                    yield key, value

    def write(self, batch: Mutations) -> None:
        chosen = _chosen(batch)
        self._check_process()
        with self._lock:
            self._check()
            try:
                if chosen and (self._handle < 0 or self._at >= self._file_bytes):
                    self._begin_file()
                    for number in self._sparse():
                        if self._at > self._file_bytes // 2:
                            break  # they were not as empty as was thought
                        self._move(number)
                self._put(batch, chosen)
            except BaseException as error:
                self._failure = self._error(error, "writing to")
                raise self._failure from error

    def sync(self) -> None:
        self._check_process()
        with self._lock:
            self._check()
            emptied, self._emptied = self._emptied, []
        self._inner.sync()
        for number in emptied:
            with suppress(OSError):  # what is left the next opening deletes
                self._path(number).unlink(missing_ok=True)

    def compact(self, start: bytes, stop: bytes) -> None:
        self._inner.compact(start, stop)

    def checkpoint(self, target: Path) -> None:
        """The files are linked into a folder of the same name inside ``target``."""
        self._check_process()
        with self._lock:
            self._check()
            self._inner.checkpoint(target)
            try:
                linked = make_directory(Path(target) / self._folder.name)
                for number in self._files:
                    with suppress(FileNotFoundError):  # lost: who reads of it hears so, here and there
                        os.link(self._path(number), linked / self._path(number).name)
                sync_directory(linked)
            except OSError as error:
                shutil.rmtree(target, ignore_errors=True)
                raise self._error(error, f"copying to {target}") from error

    def close(self) -> None:
        """In a child forked from the process that opened the store it does nothing."""
        if self._pid == os.getpid():
            with self._lock:
                self._closed = True
                self._end_file()
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- reading ----------------------------------------------------------------------------------

    def _value(self, reader: "_Reader", key: bytes, row: bytes | None) -> bytes | None:
        while row is not None and (pointer := _pointed(row)) is not None:
            try:
                return reader.read(pointer)
            except FileNotFoundError:
                (again,) = self._inner.multi_get([key])
                if again == row:
                    path = self._path(pointer.file)
                    raise DataCorrupted(f"{path} is missing", path=str(path), region="values") from None
                row = again  # deleted, or moved, since
            except OSError as error:
                raise self._error(error, "reading") from error
        return row

    # --- writing ----------------------------------------------------------------------------------

    def _put(self, batch: Mutations, chosen: Sequence[int]) -> None:
        changed = _Changed()
        self._shorten(batch.ranges, changed)
        puts = list(batch.puts)
        if chosen:
            self._append([puts[at][1] for at in chosen])
            for at in chosen:
                key, value = puts[at]
                puts[at] = key, _POINTER.pack(_MARK, VERSION, self._number, self._at, len(value),
                                              xxhash.xxh3_64_intdigest(value))
                self._at += len(value)
                self._widen(key, len(value), changed)
        self._hand_on(Mutations(batch.ranges, list(batch.deletes), puts), changed)

    def _hand_on(self, batch: Mutations, changed: _Changed) -> None:
        for key, span in changed.rows.items():
            if span is None:
                batch.deletes.append(key)
            else:
                batch.puts.append((key, span.row()))
        self._inner.write(batch)
        for number in changed.files:
            if number != self._number and not self._files.get(number, True):
                del self._files[number]
                self._emptied.append(number)

    def _append(self, values: list[bytes]) -> None:
        """Have the values at the end of the newest file, on stable storage."""
        for first in range(0, len(values), _PARTS):
            parts: list[bytes] = values[first:first + _PARTS]
            left = sum(map(len, parts)) - os.writev(self._handle, parts)
            while left:
                left -= os.write(self._handle, b"".join(parts)[-left:])
        _flush(self._handle)

    def _widen(self, key: bytes, size: int, changed: _Changed) -> None:
        family, index = key[:-_INDEX], int.from_bytes(key[-_INDEX:], "big")
        spans = self._files[self._number]
        span = spans.get(family)
        if span is None:
            self._lengths.add(len(family))
            span = spans[family] = _Span(index, index, size)
        else:
            span.first, span.last, span.size = min(span.first, index), max(span.last, index), span.size + size
        changed.rows[_row(self._number, family)] = span

    def _shorten(self, ranges: Sequence[tuple[bytes, bytes]], changed: _Changed) -> None:
        for start, stop in ranges:
            # Of one group's log as a rule: where families are equally long only one can lie between, and with thousands
            # of groups in hundreds of files to look at all took 80 ms.
            only = start[:-_INDEX]
            alone = stop[:-_INDEX] == only and self._lengths <= {len(only)}
            for number, spans in self._files.items():
                for family in ([only] if only in spans else []) if alone else list(spans):
                    span = spans[family]
                    if not start <= family + _index(span.first) < stop:
                        continue
                    if family + _index(span.last) < stop:
                        del spans[family]
                        changed.rows[_row(number, family)] = None
                        changed.files.add(number)
                    elif len(stop) == len(family) + _INDEX and stop.startswith(family):
                        first = int.from_bytes(stop[-_INDEX:], "big")
                        span.size = span.size * (span.last - first + 1) // (span.last - span.first + 1)
                        span.first = first
                        changed.rows[_row(number, family)] = span

    # --- files ------------------------------------------------------------------------------------

    def _open(self) -> None:
        make_directory(self._folder)
        for key, row in self._inner.scan(_ROWS, _ROWS_END):
            at = len(_ROWS) + _FILE.size
            (number,) = _FILE.unpack(key[len(_ROWS):at])
            self._files.setdefault(number, {})[key[at:]] = _Span(*_SPAN.unpack(row))
            self._lengths.add(len(key) - at)
        try:
            there = [int(found[1]) for found in map(_NAME.fullmatch, os.listdir(self._folder)) if found]
            for number in there:
                if number not in self._files:
                    self._path(number).unlink(missing_ok=True)
        except OSError as error:
            raise self._error(error, "opening") from error
        self._number = max([*there, *self._files], default=0)

    def _begin_file(self) -> None:
        self._end_file()
        if not self._files.get(self._number, True):
            del self._files[self._number]
            self._emptied.append(self._number)
        self._number += 1
        self._handle = os.open(self._path(self._number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._at = 0
        sync_directory(self._folder)
        self._files[self._number] = {}

    def _end_file(self) -> None:
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def _sparse(self) -> list[int]:
        """The emptiest files, as far as there are too many for what lives in them."""
        live = sorted((sum(span.size for span in spans.values()), number) for number, spans in self._files.items()
                      if number != self._number and number not in self._stuck)
        found: list[int] = []
        left = self._file_bytes // 2
        if len(live) * self._file_bytes > 2 * sum(size for size, _ in live) + SPARE_FILES * self._file_bytes:
            for size, number in live:
                left -= size
                if left < 0:
                    break
                found.append(number)
        return found

    def _move(self, number: int) -> None:
        """Have what lives in a file in the newest one."""
        puts: list[tuple[bytes, bytes]] = []
        try:
            with _Reader(self._folder) as reader:
                for family, span in self._files[number].items():
                    for key, row in self._inner.scan(family + _index(span.first), family + _index(span.last) + b"\0"):
                        pointer = _pointed(row)
                        if pointer is not None and pointer.file == number:
                            puts.append((key, reader.read(pointer)))
        except (DataCorrupted, OSError):
            self._stuck.add(number)
            return
        gone = [_row(number, family) for family in self._files[number]]
        self._put(Mutations(deletes=gone, puts=puts), range(len(puts)))
        del self._files[number]
        self._emptied.append(number)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.values"

    # --- errors -----------------------------------------------------------------------------------

    def _check_process(self) -> None:
        """Before the lock is asked for: a thread that is not in this process may hold it."""
        if self._pid != os.getpid():
            raise forks.foreign(self._folder, self._pid)

    def _check(self) -> None:
        if self._closed:
            raise DatabaseClosed(f"the store at {self._folder} is closed", path=str(self._folder))
        if self._failure is not None:
            raise copy.copy(self._failure)

    def _error(self, error: BaseException, doing: str) -> VecdbError:
        return from_rocksdb(error, self._folder, doing)


class _Reader:
    """Values of files, each opened once: one that is deleted meanwhile can still be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handles: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles.values():
            os.close(handle)

    def read(self, pointer: _Pointer) -> bytes:
        """Raises ``OSError``, and ``DataCorrupted`` for what was not written so."""
        path = self._folder / f"{pointer.file:06d}.values"
        handle = self._handles.get(pointer.file)
        if handle is None:
            handle = self._handles[pointer.file] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        value = os.pread(handle, pointer.length, pointer.offset)
        if len(value) != pointer.length or xxhash.xxh3_64_intdigest(value) != pointer.checksum:
            raise DataCorrupted(f"{path} is damaged: the value of {pointer.length} bytes at {pointer.offset} does not "
                                "match its checksum", path=str(path), region="values", offset=pointer.offset)
        return value


def _chosen(batch: Mutations) -> list[int]:
    """Which values go to a file."""
    like = [at for at, (_, value) in enumerate(batch.puts) if len(value) == _POINTER.size and value.startswith(_MARK)]
    large = [at for at, (key, value) in enumerate(batch.puts) if len(value) >= LARGE_BYTES and len(key) >= _INDEX]
    if large and sum(len(batch.puts[at][1]) for at in large) < LEAST_BYTES:
        large = []
    for at in like:
        if len(batch.puts[at][0]) < _INDEX:
            raise InvalidArgument("batch", "the key of a value that looks like a pointer is too short",
                                  got=len(batch.puts[at][0]), limit=_INDEX)
    return sorted(like + large)


def _pointed(row: bytes) -> _Pointer | None:
    if len(row) != _POINTER.size or not row.startswith(_MARK):
        return None
    _, version, *fields = _POINTER.unpack(row)
    if version != VERSION:
        raise DataCorrupted(f"a pointer of version {version}, where {VERSION} is known", path="values")
    return _Pointer(*fields)


def _row(number: int, family: bytes) -> bytes:
    return _ROWS + _FILE.pack(number) + family


def _index(place: int) -> bytes:
    return place.to_bytes(_INDEX, "big")
