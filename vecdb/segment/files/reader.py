"""Open, verify, map and load array files.

Everything that is checked is read with ``pread``: a medium that fails gives an ``OSError`` there, and a page
fault in a mapping would give SIGBUS.  Only ``map`` maps, after the file's size was checked against its header.
"""

import ctypes
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from vecdb.core.errors import DataCorrupted, FormatMismatch, InvalidArgument, StorageError
from vecdb.segment.files.errors import from_os_error
from vecdb.segment.files.layout import (
    BLOCK_BYTES,
    PAGE_BYTES,
    ArrayEntry,
    Directory,
    Page,
    block_count,
    damaged,
    unpack_directory,
    unpack_page,
)

Run: TypeAlias = Callable[[Sequence[Callable[[], None]]], None]
Allocate: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]
Span: TypeAlias = tuple[int, int]
Read: TypeAlias = Callable[[Path, int, memoryview, int], None]
"""``(path, handle, piece, at)``: fill ``piece`` with a file's bytes from ``at`` on."""

_BLOCKS_PER_TASK = 64
_MAP_FIXED = 0x10
"""The same on Linux and macOS; the mmap module does not name it."""


def _serial(thunks: Sequence[Callable[[], None]]) -> None:
    for thunk in thunks:
        thunk()


class ArrayFile:
    """An array file opened for reading; safe to use from several threads.

    Arrays given out by ``map`` stay valid after ``close`` and after the file is deleted.
    """

    def __init__(self, path: Path, handle: int, page: Page, directory: Directory,
                 hashes: npt.NDArray[np.uint64], read: Read) -> None:
        self._path = path
        self._handle: int | None = handle
        self._reads = read
        self._page = page
        self._directory = directory
        self._hashes = hashes
        self._entries = {entry.name: entry for entry in directory.arrays}
        self._mapping: mmap.mmap | None = None

    @classmethod
    def open(cls, path: Path | str, *, kind: str | None = None, verify: bool = True, run: Run = _serial,
             read: Read | None = None) -> Self:
        """Open and check header, directory and hash table, and with ``verify`` every block of the payload.

        ``read``: how bytes are had, one call at a time (:class:`~vecdb.segment.files.medium.MediumReader`).
        Raises :class:`DataCorrupted` naming file, region and byte ranges (also where the file is missing, empty
        or cut short), :class:`FormatMismatch` for another format, version or ``kind``, :class:`StorageError`.
        """
        path = Path(path)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise DataCorrupted(f"{path} is missing", path=str(path), region="file") from error
        except OSError as error:
            raise from_os_error(error, path, "opening") from error
        try:
            frame = _read_frame(path, handle, kind, read or _read_fully)
        except BaseException:
            os.close(handle)
            raise
        opened = cls(path, handle, *frame, read or _read_fully)
        if verify:
            try:
                opened.check(run=run)
            except BaseException:
                opened.close()
                raise
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def kind(self) -> str:
        return self._directory.kind

    @property
    def meta(self) -> dict[str, Any]:
        """The JSON object given to the writer; a fresh copy of its top level."""
        return dict(self._directory.meta)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    @property
    def file_bytes(self) -> int:
        return self._page.file_bytes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype(self._entry(name).dtype)

    def nbytes(self, name: str) -> int:
        return self._entry(name).nbytes

    def map(self, name: str, *, random: bool = False) -> npt.NDArray[Any]:
        """A read-only view of the mapped file, rows 64-byte aligned where their size is; nothing is read yet.

        ``random`` tells the kernel not to read ahead, for rows fetched one by one.
        """
        entry = self._entry(name)
        dtype = np.dtype(entry.dtype)
        if not entry.nbytes:
            empty = np.empty(entry.shape, dtype)
            empty.flags.writeable = False
            return empty
        mapping = self._map_file()
        if random:
            mapping.madvise(mmap.MADV_RANDOM, entry.offset, entry.nbytes)
        return np.frombuffer(mapping, dtype, entry.nbytes // dtype.itemsize, entry.offset).reshape(entry.shape)

    def load(self, name: str, allocate: Allocate = np.empty, *, run: Run = _serial) -> npt.NDArray[Any]:
        """Read an array into fresh memory of ``allocate(shape, dtype)``, checking what is copied; the caller's own.

        Raises :class:`DataCorrupted` with the byte ranges of the bad blocks.  ``run`` may use several threads.
        """
        entry = self._entry(name)
        array = allocate(entry.shape, np.dtype(entry.dtype))
        bad = self._check(entry.offset, entry.offset + entry.nbytes, run, _bytes_of(array)) if entry.nbytes else []
        if bad:
            raise _bad_blocks(self._path, bad)
        return array

    def salvage(self, name: str, allocate: Allocate = np.empty, *,
                run: Run = _serial) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Like ``load``, for a damaged file: the array with its :meth:`bad_rows` zero, and which they are."""
        entry = self._entry(name)
        array = allocate(entry.shape, np.dtype(entry.dtype))
        if not entry.nbytes:
            return array, np.empty(0, np.int64)
        bad = _rows_of(entry, self._check(entry.offset, entry.offset + entry.nbytes, run, _bytes_of(array)))
        array[bad] = 0
        return array, bad

    def blank(self, name: str, *, run: Run = _serial) -> npt.NDArray[np.int64]:
        """Return :meth:`bad_rows`, and lay zero pages over bad blocks in what ``map`` gives from now on.

        So nobody meets their bytes there, nor SIGBUS where the medium cannot give them.  Where pages are larger
        than the payload's alignment this cannot be done, and :class:`StorageError` says so if there are bad blocks.
        """
        entry = self._entry(name)
        spans = self._check(entry.offset, entry.offset + entry.nbytes, run, None) if entry.nbytes else []
        for start, stop in spans:
            _lay_zeros(self._path, self._map_file(), start, stop)
        return _rows_of(entry, spans)

    def check(self, *, run: Run = _serial) -> None:
        """Raise :class:`DataCorrupted` with the byte ranges of the payload's bad blocks, if there are any."""
        bad = self.verify(run=run)
        if bad:
            raise _bad_blocks(self._path, bad)

    def verify(self, *, run: Run = _serial) -> list[Span]:
        """Byte ranges ``[start, stop)`` of the payload whose hash does not match, ascending."""
        return self._check(PAGE_BYTES, self._page.table_at, run, None)

    def bad_rows(self, name: str, *, run: Run = _serial) -> npt.NDArray[np.int64]:
        """Indices along the first axis of the rows that lie, wholly or partly, in a bad block, ascending."""
        entry = self._entry(name)
        if not entry.nbytes:
            return np.empty(0, np.int64)
        return _rows_of(entry, self._check(entry.offset, entry.offset + entry.nbytes, run, None))

    def rows_in(self, name: str, spans: Sequence[Span]) -> npt.NDArray[np.int64]:
        """Indices along the first axis of the rows that lie, wholly or partly, in byte ranges of the file, ascending.
        """
        entry = self._entry(name)
        return _rows_of(entry, [one for one in spans if one[1] > entry.offset] if entry.nbytes else [])

    def close(self) -> None:
        """Close the file; arrays given out stay valid.  A second call does nothing."""
        handle, self._handle = self._handle, None
        self._mapping = None
        if handle is not None:
            os.close(handle)

    def __del__(self) -> None:
        self.close()

    def _entry(self, name: str) -> ArrayEntry:
        entry = self._entries.get(name)
        if entry is None:
            raise InvalidArgument("name", f"{self._path} holds no array {name!r}", got=name,
                                  limit=", ".join(self._entries))
        return entry

    def _file(self) -> int:
        if self._handle is None:
            raise StorageError(f"{self._path} was closed", path=str(self._path))
        return self._handle

    def _map_file(self) -> mmap.mmap:
        mapping = self._mapping
        if mapping is None:
            handle = self._file()
            try:
                size = os.fstat(handle).st_size
                if size < self.file_bytes:
                    raise damaged(self._path, "end", "the file was cut short", (size, self.file_bytes))
                mapping = mmap.mmap(handle, self.file_bytes, access=mmap.ACCESS_READ)
            except OSError as error:
                raise from_os_error(error, self._path, "mapping") from error
            self._mapping = mapping
        return mapping

    def _check(self, start: int, stop: int, run: Run, into: memoryview | None) -> list[Span]:
        """Hash the blocks that overlap ``[start, stop)``, copying those bytes into ``into``; return the bad ones."""
        first = (start - PAGE_BYTES) // BLOCK_BYTES
        last = block_count(stop - PAGE_BYTES)
        bad: list[int] = []

        def task(low: int, high: int) -> Callable[[], None]:
            def check() -> None:
                scratch = memoryview(bytearray(BLOCK_BYTES))
                bad.extend(block for block in range(low, high)
                           if not self._block_is_good(block, start, stop, into, scratch))
            return check

        run([task(low, min(low + _BLOCKS_PER_TASK, last)) for low in range(first, last, _BLOCKS_PER_TASK)])
        return [self._span(block) for block in sorted(bad)]

    def _span(self, block: int) -> Span:
        low = PAGE_BYTES + block * BLOCK_BYTES
        return low, min(low + BLOCK_BYTES, self._page.table_at)

    def _block_is_good(self, block: int, start: int, stop: int, into: memoryview | None, scratch: memoryview) -> bool:
        low, high = self._span(block)
        if into is not None and start <= low and high <= stop:
            piece = into[low - start:high - start]  # wholly the caller's: read it in place
            return self._read(piece, low) and xxhash.xxh3_64_intdigest(piece) == int(self._hashes[block])
        piece = scratch[:high - low]
        if not self._read(piece, low):
            return False
        if into is not None:
            inner_low, inner_high = max(low, start), min(high, stop)
            into[inner_low - start:inner_high - start] = piece[inner_low - low:inner_high - low]
        return xxhash.xxh3_64_intdigest(piece) == int(self._hashes[block])

    def _read(self, piece: memoryview, at: int) -> bool:
        """Fill ``piece``; False where the medium cannot give its bytes, which spoils this block and no other."""
        try:
            self._reads(self._path, self._file(), piece, at)
        except DataCorrupted as error:
            if error.fields.get("region") != "medium":
                raise
            return False
        return True


def _read_frame(path: Path, handle: int, kind: str | None,
                read: Read) -> tuple[Page, Directory, npt.NDArray[np.uint64]]:
    """Read and check everything but the payload."""
    size = os.fstat(handle).st_size
    first = bytearray(min(size, PAGE_BYTES))
    read(path, handle, memoryview(first), 0)
    page = unpack_page(bytes(first), size, path)
    rest = bytearray(page.file_bytes - page.table_at)
    read(path, handle, memoryview(rest), page.table_at)
    cut = page.directory_at - page.table_at
    directory = unpack_directory(bytes(rest[cut:]), page, path)
    table = bytes(rest[:cut])
    if xxhash.xxh3_64_intdigest(table) != page.table_hash or cut != 8 * block_count(page.table_at - PAGE_BYTES):
        raise damaged(path, "block table", "its checksum does not match", (page.table_at, page.directory_at))
    if kind is not None and directory.kind != kind:
        raise FormatMismatch(f"{path} holds {directory.kind!r} and should hold {kind!r}", path=str(path),
                             region="directory")
    return page, directory, np.frombuffer(table, "<u8")


def _read_fully(path: Path, handle: int, piece: memoryview, at: int) -> None:
    done = 0
    try:
        while done < len(piece):
            count = os.preadv(handle, [piece[done:]], at + done)
            if not count:
                raise damaged(path, "end", "the file was cut short", (at + done, at + len(piece)))
            done += count
    except OSError as error:
        raise from_os_error(error, path, "reading") from error


def _bad_blocks(path: Path, bad: list[Span]) -> DataCorrupted:
    shown = ", ".join(f"{low} to {high}" for low, high in bad[:4]) + (", ..." if len(bad) > 4 else "")
    return DataCorrupted(f"{path} is damaged in its payload, bytes {shown}", path=str(path), region="payload",
                         ranges=tuple(bad))


def _rows_of(entry: ArrayEntry, spans: list[Span]) -> npt.NDArray[np.int64]:
    """Indices along the first axis of the rows that lie, wholly or partly, in ``spans`` of the file."""
    spoiled = [np.empty(0, np.int64)]
    if spans:
        row_bytes = entry.nbytes // entry.shape[0]
        for start, stop in spans:
            low = max(start - entry.offset, 0) // row_bytes
            high = -(-min(stop - entry.offset, entry.nbytes) // row_bytes)
            spoiled.append(np.arange(low, high, dtype=np.int64))
    return np.unique(np.concatenate(spoiled))


def _lay_zeros(path: Path, mapping: mmap.mmap, start: int, stop: int) -> None:
    """Replace the pages of ``[start, stop)`` of a mapping by zero ones; nothing there is read."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    where = np.frombuffer(mapping, np.uint8).ctypes.data + start
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    if libc.mmap(where, stop - start, mmap.PROT_READ, flags, -1, 0) != where:
        number = ctypes.get_errno()
        raise from_os_error(OSError(number, os.strerror(number)), path, "blanking damage of")


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
