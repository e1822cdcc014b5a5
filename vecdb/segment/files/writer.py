"""Write an array file: to a temporary name, synced, then renamed, so that the final name is whole or absent."""

import contextlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xxhash

from vecdb.core.errors import InvalidArgument
from vecdb.segment.files.durable import sync_directory
from vecdb.segment.files.errors import from_os_error
from vecdb.segment.files.layout import (
    BLOCK_BYTES,
    PAGE_BYTES,
    ArrayEntry,
    Directory,
    Page,
    pack_directory,
    pack_page,
    round_up,
    stored_dtype,
)

TEMPORARY_SUFFIX = ".partial"
_SLAB_BYTES = 8 << 20


class StreamingWriter:
    """Writes arrays one after the other, each row by row, holding no copy of them.

    ::

        with StreamingWriter(path, "vectors") as out:
            out.begin("vectors", np.float32, (dim,))
            for chunk in chunks: out.append(chunk)        # (rows, dim)
            out.add("ids", ids)
            out.finish({"count": count})

    Leaving the block without ``finish`` (an error, a cancelled job) deletes what was written.  Errors are
    :class:`StorageFull`, :class:`StorageReadOnly` and :class:`StorageError`.
    """

    def __init__(self, path: Path | str, kind: str) -> None:
        self._path = Path(path)
        self._partial = self._path.with_name(self._path.name + TEMPORARY_SUFFIX)
        self._kind = kind
        self._entries: list[ArrayEntry] = []
        self._current: tuple[str, np.dtype[Any], tuple[int, ...], int] | None = None
        self._rows = 0
        self._at = PAGE_BYTES
        self._hashes: list[int] = []
        self._block = xxhash.xxh3_64()
        self._block_bytes = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        try:
            self._handle: int | None = os.open(self._partial, flags, 0o644)
        except OSError as error:
            raise from_os_error(error, self._partial, "creating") from error
        self._write(memoryview(bytes(PAGE_BYTES)), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.abort()

    def begin(self, name: str, dtype: npt.DTypeLike, row_shape: tuple[int, ...] = ()) -> None:
        """Start array ``name`` of rows of ``row_shape``; the array begun before is complete."""
        self._complete_array()
        if any(entry.name == name for entry in self._entries):
            raise InvalidArgument(name, "is in the file already", got=name, limit="distinct names")
        stored = stored_dtype(np.dtype(dtype), name)
        padding = round_up(self._at) - self._at
        if padding:
            self._emit(memoryview(bytes(padding)))
        self._current = (name, stored, tuple(int(n) for n in row_shape), self._at)
        self._rows = 0

    def append(self, rows: npt.NDArray[Any]) -> None:
        """Add ``rows`` (n, *row_shape) of the array's dtype; borrowed, copied 8 MiB at a time if not contiguous."""
        if self._current is None:
            raise InvalidArgument("rows", "no array has been begun", got="append", limit="begin first")
        name, dtype, row_shape, _ = self._current
        if rows.dtype.newbyteorder("<") != dtype or rows.shape[1:] != row_shape or rows.ndim != len(row_shape) + 1:
            raise InvalidArgument(name, f"rows are {rows.dtype}{rows.shape}, not {dtype}(n, *{row_shape})",
                                  got=f"{rows.dtype}{rows.shape}", limit=f"{dtype}{row_shape}")
        step = max(1, _SLAB_BYTES // max(1, dtype.itemsize * math.prod(row_shape)))
        for low in range(0, len(rows), step):
            slab = np.ascontiguousarray(rows[low:low + step], dtype=dtype)
            if slab.size:
                self._emit(slab.reshape(-1).view(np.uint8).data)
        self._rows += len(rows)

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write a whole array of one or more dimensions; borrowed."""
        self.begin(name, array.dtype, array.shape[1:])
        self.append(array)

    def finish(self, meta: Mapping[str, Any] | None = None) -> int:
        """Write hashes, directory and header, make all durable under the final name; return the file's bytes."""
        self._complete_array()
        if self._handle is None:
            raise self._spent()
        if self._block_bytes:
            self._close_block()
        table = np.array(self._hashes, dtype="<u8").tobytes()
        directory = pack_directory(Directory(self._kind, tuple(self._entries), dict(meta or {})))
        page = Page(self._at, self._at + len(table), len(directory), xxhash.xxh3_64_intdigest(directory),
                    xxhash.xxh3_64_intdigest(table))
        self._write(memoryview(table + directory), self._at)
        self._write(memoryview(pack_page(page)), 0)
        try:
            os.fsync(self._handle)
            handle, self._handle = self._handle, None
            os.close(handle)
            os.replace(self._partial, self._path)
            sync_directory(self._path.parent)
        except OSError as error:
            self.abort()
            raise from_os_error(error, self._path, "writing") from error
        return page.file_bytes

    def abort(self) -> None:
        """Delete what was written, unless it was finished."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)
            with contextlib.suppress(OSError):
                self._partial.unlink()

    def _spent(self) -> InvalidArgument:
        return InvalidArgument("path", "the writer was finished or aborted before", got=str(self._path), limit="once")

    def _complete_array(self) -> None:
        if self._current is not None:
            name, dtype, row_shape, offset = self._current
            self._entries.append(ArrayEntry(name, dtype.str, (self._rows, *row_shape), offset))
            self._current = None

    def _emit(self, data: memoryview) -> None:
        self._write(data, self._at)
        self._at += len(data)
        while data:
            piece = data[:BLOCK_BYTES - self._block_bytes]
            self._block.update(piece)
            self._block_bytes += len(piece)
            data = data[len(piece):]
            if self._block_bytes == BLOCK_BYTES:
                self._close_block()

    def _close_block(self) -> None:
        self._hashes.append(self._block.intdigest())
        self._block.reset()
        self._block_bytes = 0

    def _write(self, data: memoryview, at: int) -> None:
        if self._handle is None:
            raise self._spent()
        try:
            while data:
                written = os.pwrite(self._handle, data, at)
                data, at = data[written:], at + written
        except OSError as error:
            self.abort()
            raise from_os_error(error, self._partial, "writing") from error


def write_arrays(path: Path | str, kind: str, arrays: Mapping[str, npt.NDArray[Any]],
                 meta: Mapping[str, Any] | None = None) -> int:
    """Write ``arrays`` (borrowed, one or more dimensions) and JSON-like ``meta`` durably; return the file's bytes."""
    with StreamingWriter(path, kind) as out:
        for name, array in arrays.items():
            out.add(name, array)
        return out.finish(meta)
