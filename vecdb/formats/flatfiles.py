"""Flat files of vectors: ``.npy``, mapped, and the TEXMEX family ``.fvecs``, ``.bvecs``, ``.ivecs``.

Neither holds ids or metadata: they come from a JSONL beside the file, one line a vector, or the row
numbers are the ids.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.core.ids import RecordId
from vecdb.formats.about import bits, read_beside
from vecdb.formats.base import (
    Batch,
    PartFile,
    SourceOptions,
    bad_file,
    check_dim,
    check_vectors,
    opening,
    row_numbers,
    rows_per_batch,
)
from vecdb.formats.jsonl import Beside, JsonlSink

_NPY_HEADER_BYTES = 128
"""Room for the header with any number of rows, so that it can be written again when the number is known."""


class _Flat:
    """Rows of one dtype and width, with an optional JSONL beside them."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.path = path
        self.metric: str | None = None
        self.vector_type: str | None = None
        self.dim = 0
        self._width = 0
        self.rows: int | None = 0
        self._options = options
        if options.vector_column is not None:
            raise bad_file(path, "has no columns to choose a vector from", got=options.vector_column, limit="none")

    def _tell(self, width: int) -> None:
        """Take what the file beside says, if there is one, of rows of ``width`` items."""
        self._width = self.dim = width
        told = read_beside(self.path, width)
        if told is not None:
            self.dim, self.metric, self.vector_type = told.dim, told.metric, told.vector_type

    def _blocks(self, room: int) -> Iterator[npt.NDArray[Any]]:
        raise bad_file(self.path, "has no rows")

    def batches(self, size: int | None = None) -> Iterator[Batch]:
        beside = self._options.metadata_path
        extra = None if beside is None else Beside(beside, self._options.id_column, self.path)
        first = 0
        for block in self._blocks(rows_per_batch(size, 4 * self._width)):
            vectors = check_vectors(self.path, block, first)
            if self.vector_type == "binary":
                vectors = bits(self.path, vectors, first)
            if extra is None:
                yield Batch(first, row_numbers(first, len(vectors)), vectors)
            else:
                ids, metadata = extra.take(first, len(vectors))
                yield Batch(first, ids, vectors, metadata)
            first += len(vectors)
        if extra is not None:
            extra.finish(first)

    def close(self) -> None:
        """Nothing stays open between batches' ends."""


class NpySource(_Flat):
    """A 2-D ``.npy``; mapped, so only the rows of a batch are read."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        super().__init__(path, options)
        self._array = self._open()
        if self._array.ndim != 2:
            raise bad_file(path, f"an array of {self._array.ndim} dimensions; (rows, dim) is wanted",
                           got=str(self._array.shape), limit="(rows, dim)")
        self.rows = int(self._array.shape[0])
        if self._array.dtype.kind in "iu" and self._array.dtype.itemsize == 1:
            self.vector_type = str(self._array.dtype)
        self._tell(check_dim(path, int(self._array.shape[1])))
        check_vectors(path, self._array[:0], 0)

    def _open(self) -> npt.NDArray[Any]:
        with opening(self.path):
            try:
                loaded = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError, OverflowError, TypeError, SyntaxError, MemoryError) as error:
                raise bad_file(self.path, f"not a readable .npy file: {error}", got="bytes", limit=".npy") from None
        if not isinstance(loaded, np.ndarray):
            raise bad_file(self.path, "an archive of arrays (.npz); one .npy is wanted", got=".npz", limit=".npy")
        return loaded

    def _blocks(self, room: int) -> Iterator[npt.NDArray[Any]]:
        for start in range(0, len(self._array), room):
            yield np.ascontiguousarray(self._array[start:start + room])


_KINDS: dict[str, np.dtype[Any]] = {".fvecs": np.dtype("<f4"), ".bvecs": np.dtype("u1"), ".ivecs": np.dtype("<i4")}


class VecsSource(_Flat):
    """``.fvecs``, ``.bvecs``, ``.ivecs``: every row is an int32 width and that many items."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        super().__init__(path, options)
        self._dtype = _KINDS[path.suffix.lower()]
        with opening(path), path.open("rb") as stream:
            head = stream.read(4)
            total = os.fstat(stream.fileno()).st_size
        if len(head) < 4:
            raise bad_file(path, f"{total} bytes are too few for one vector", row=0, got=total, limit="at least 5")
        if self._dtype == np.uint8:
            self.vector_type = "uint8"
        self._tell(check_dim(path, int.from_bytes(head, "little", signed=True), row=0))
        self._row_bytes = 4 + self._width * self._dtype.itemsize
        self.rows, self._rest = divmod(total, self._row_bytes)

    def _blocks(self, room: int) -> Iterator[npt.NDArray[Any]]:
        first = 0
        with opening(self.path), self.path.open("rb") as stream:
            while raw := stream.read(room * self._row_bytes):
                whole = len(raw) // self._row_bytes
                table = np.frombuffer(raw, np.uint8, whole * self._row_bytes).reshape(whole, self._row_bytes)
                widths = np.ascontiguousarray(table[:, :4]).view("<i4")[:, 0]
                wrong = np.flatnonzero(widths != self._width)
                if wrong.size:
                    row = int(wrong[0])
                    raise bad_file(self.path, f"the row says {int(widths[row])} components, the first one "
                                   f"{self._width}", row=first + row, got=int(widths[row]), limit=self._width)
                if whole:
                    yield np.ascontiguousarray(table[:, 4:]).view(self._dtype)
                first += whole
                if len(raw) % self._row_bytes:
                    left = len(raw) - whole * self._row_bytes
                    raise bad_file(self.path, f"the file is cut off: {left} of the row's {self._row_bytes} bytes",
                                   row=first, got=left, limit=self._row_bytes)


def _npy_header(dtype: np.dtype[Any], rows: int, dim: int) -> bytes:
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': ({rows}, {dim}), }}".encode()
    room = _NPY_HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + text.ljust(room - 1) + b"\n"


class NpySink:
    """``OUT.npy`` and ``OUT.jsonl`` beside it; the number of rows is written into the header at the end."""

    def __init__(self, path: Path, dtype: np.dtype[Any], width: int) -> None:
        self._dtype = dtype.newbyteorder("<")
        self._width = width
        self._rows = 0
        self._file = PartFile(path)
        self._file.write(_npy_header(self._dtype, 0, width))
        self._beside = JsonlSink(path.with_suffix(".jsonl"), vectors=False)

    def write(self, ids: Sequence[RecordId], vectors: npt.NDArray[Any], metadata: Sequence[dict[str, Any]]) -> None:
        self._file.write(np.ascontiguousarray(vectors, dtype=self._dtype).tobytes())
        self._rows += len(vectors)
        self._beside.write(ids, vectors, metadata)

    def close(self) -> None:
        self._beside.close()
        self._file.commit(_npy_header(self._dtype, self._rows, self._width))

    def abort(self) -> None:
        self._file.abort()
        self._beside.abort()


class VecsSink:
    """``.fvecs`` and ``.bvecs``, for tools that read nothing else; ids and metadata go into a JSONL beside it."""

    def __init__(self, path: Path, dtype: np.dtype[Any], width: int) -> None:
        self._dtype = _KINDS[path.suffix.lower()]
        if self._dtype == np.uint8 and dtype != np.uint8:
            raise bad_file(path, f"vectors of {dtype} do not fit into bytes; use .fvecs", got=str(dtype), limit="uint8")
        self._head = np.frombuffer(width.to_bytes(4, "little"), np.uint8)
        self._file = PartFile(path)
        self._beside = JsonlSink(path.with_suffix(".jsonl"), vectors=False)

    def write(self, ids: Sequence[RecordId], vectors: npt.NDArray[Any], metadata: Sequence[dict[str, Any]]) -> None:
        items = np.ascontiguousarray(vectors, dtype=self._dtype).view(np.uint8).reshape(len(vectors), -1)
        rows = np.concatenate([np.broadcast_to(self._head, (len(vectors), 4)), items], axis=1)
        self._file.write(rows.tobytes())
        self._beside.write(ids, vectors, metadata)

    def close(self) -> None:
        self._beside.close()
        self._file.commit()

    def abort(self) -> None:
        self._file.abort()
        self._beside.abort()
