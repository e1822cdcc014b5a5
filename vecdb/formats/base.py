"""What readers and writers of files share: batches, their checks, and errors that name file and row."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from vecdb.core.errors import InvalidArgument, InvalidId, StorageError, StorageFull, StorageReadOnly
from vecdb.core.ids import RecordId, check_id
from vecdb.core.limits import MAX_DIM

Ids: TypeAlias = npt.NDArray[np.int64] | list[RecordId]

BATCH_BYTES = 16 << 20
"""Vectors of one batch stay under this unless a caller asks for a number of rows: a quarter of the largest batch."""

ID_NAMES = ("id", "_id", "ids", "train_id", "train_ids")
"""Columns taken for ids when the caller names none."""

VECTOR_NAMES = ("vector", "embedding", "emb", "vectors", "embeddings", "values")
"""Columns taken for vectors when the caller names none."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows ``first_row ...`` of a file.

    ``ids``: int64 (n,) or a list; ``vectors``: (n, row_items), owned by the batch or a read-only view of the
    file; ``metadata``: n objects, or None where the file has none.
    """

    first_row: int
    ids: Ids
    vectors: npt.NDArray[Any]
    metadata: list[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return int(self.vectors.shape[0])


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a caller may say about a file: which columns are ids and vectors, and where metadata is."""

    id_column: str | None = None
    vector_column: str | None = None
    metadata_path: Path | None = None


class Source(Protocol):
    """An open file of vectors.

    ``dim``: components of a vector (bits for packed binary ones).  ``rows``: how many, or None when only reading
    to the end tells.  ``metric`` and ``vector_type``: what the file says about itself, or None.
    """

    path: Path
    dim: int
    rows: int | None
    metric: str | None
    vector_type: str | None

    def batches(self, size: int | None = None) -> Iterator[Batch]: ...

    def close(self) -> None: ...


class Sink(Protocol):
    """A file being written; it exists under its name only after ``close`` and never half."""

    def write(self, ids: Sequence[RecordId], vectors: npt.NDArray[Any],
              metadata: Sequence[dict[str, Any]]) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


def bad_file(path: Path, message: str, *, row: int | None = None, line: int | None = None,
             got: Any = None, limit: Any = None) -> InvalidArgument:
    """Return the error for a file that cannot be used, naming the file and the row or line."""
    where = str(path)
    if row is not None:
        where += f", row {row}"
    if line is not None:
        where += f", line {line}"
    return InvalidArgument("file", f"{where}: {message}", got=got, limit=limit, path=str(path), row=row, line=line)


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turn what the operating system says while a file is opened or read into a typed error."""
    try:
        yield
    except FileNotFoundError:
        raise bad_file(path, "no such file", got="missing", limit="an existing file") from None
    except IsADirectoryError:
        raise bad_file(path, "is a directory", got="directory", limit="a file") from None
    except PermissionError:
        raise bad_file(path, "may not be read", got="no permission", limit="a readable file") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says while a file is written into a typed error."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise bad_file(path, "its directory does not exist", got="missing", limit="an existing directory") from None
    except IsADirectoryError:
        raise bad_file(path, "is a directory", got="directory", limit="a file name") from None
    except PermissionError:
        raise StorageReadOnly(f"{path} may not be written", path=str(path)) from None
    except OSError as error:
        if error.errno == 28:
            raise StorageFull(f"no space left while writing {path}", path=str(path)) from error
        raise StorageError(f"{path} cannot be written: {error}", path=str(path)) from error


class PartFile:
    """A file that gets its name only when it is whole and on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.part = path.with_name(path.name + ".part")
        with writing(path):
            self._stream = self.part.open("wb")

    def write(self, data: bytes | bytearray) -> None:
        with writing(self._path):
            self._stream.write(data)

    def commit(self, head: bytes = b"") -> None:
        """Write ``head`` over the file's beginning, sync, and rename."""
        with writing(self._path):
            self._stream.seek(0)
            self._stream.write(head)
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self.part.replace(self._path)

    def abort(self) -> None:
        self._stream.close()
        self.part.unlink(missing_ok=True)


def check_dim(path: Path, dim: int, *, row: int | None = None) -> int:
    """Return a file's vector width, or raise when no collection could have it."""
    if not 1 <= dim <= MAX_DIM:
        raise bad_file(path, f"a vector of {dim} components; 1..{MAX_DIM} can be stored", row=row,
                       got=dim, limit=f"1..{MAX_DIM}")
    return dim


def check_vectors(path: Path, vectors: npt.NDArray[Any], first_row: int) -> npt.NDArray[Any]:
    """Return vectors as a numeric type the engine takes, or raise naming the first bad row.

    float64 and integers wider than a byte become float32; a value that float32 cannot hold (an overflow to
    infinity) is refused like NaN and infinity themselves.
    """
    kind, size = vectors.dtype.kind, vectors.dtype.itemsize
    if kind in "iu" and size == 1:
        return vectors
    if kind not in "iuf":
        raise bad_file(path, f"vectors of type {vectors.dtype} are not numbers", row=first_row,
                       got=str(vectors.dtype), limit="float16, float32, float64, int8, uint8 or wider integers")
    if size > 4 or kind in "iu":
        with np.errstate(over="ignore"):
            vectors = vectors.astype(np.float32)
    # One sum tells for the whole batch; only a bad batch pays for finding its row.
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(np.sum(vectors, dtype=np.float64)) if vectors.size else 0.0
    if not math.isfinite(total):
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if bad.size:
            raise bad_file(path, "the vector holds NaN or infinity, or a value beyond float32",
                           row=first_row + int(bad[0]), got="non-finite", limit="finite float32")
    return vectors


def row_numbers(first_row: int, count: int) -> npt.NDArray[np.int64]:
    """Ids for records that have none: their row numbers."""
    return np.arange(first_row, first_row + count, dtype=np.int64)


def check_file_id(path: Path, value: object, *, row: int | None = None, line: int | None = None) -> RecordId:
    """Return one id from a file, or raise naming where it stands."""
    try:
        return check_id(value)
    except InvalidId as error:
        raise bad_file(path, error.message.removeprefix("ids: "), row=row, line=line,
                       got=error.fields["got"], limit=error.fields["limit"]) from None


def file_ids(path: Path, values: npt.NDArray[Any] | list[Any], first_row: int) -> Ids:
    """Return a column of ids, checked; an integer array stays one."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind in "iu":
            if values.size and (int(values.min()) < 0 or int(values.max()) >= 1 << 63):
                bad = int(np.flatnonzero((values < 0) | (values >= np.uint64(1 << 63)))[0])
                check_file_id(path, values[bad], row=first_row + bad)
            return values.astype(np.int64, copy=False)
        values = values.tolist()
    return [check_file_id(path, value, row=first_row + place) for place, value in enumerate(values)]


def rows_per_batch(size: int | None, row_bytes: int) -> int:
    """How many rows a batch has: what was asked, or what fits into :data:`BATCH_BYTES`."""
    if size is not None:
        return max(1, size)
    return max(1, min(10_000, BATCH_BYTES // max(1, row_bytes)))


def plain(value: Any) -> Any:
    """Return a decoded cell as JSON can hold it: times as RFC 3339, decimals as floats, NumPy scalars as Python's.

    NaN becomes None, which :func:`cells` leaves out.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, datetime):
        stamp = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return stamp.isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return f"{value.isoformat()}T00:00:00Z"
    if isinstance(value, Decimal):
        return plain(float(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    raise TypeError(f"a {type(value).__name__} is not JSON")


def cells(path: Path, names: Sequence[str], columns: Sequence[Sequence[Any]], first_row: int) -> list[dict[str, Any]]:
    """Turn columns of metadata into one object a row; a null or NaN cell leaves its key out."""
    rows: list[dict[str, Any]] = []
    for place, row in enumerate(zip(*columns, strict=True)):
        entry: dict[str, Any] = {}
        for name, value in zip(names, row, strict=True):
            try:
                cell = plain(value)
            except (TypeError, UnicodeDecodeError) as error:
                raise bad_file(path, f"column {name!r}: {error}", row=first_row + place,
                               got=type(value).__name__, limit="JSON") from None
            if cell is not None:
                entry[name] = cell
        rows.append(entry)
    return rows
