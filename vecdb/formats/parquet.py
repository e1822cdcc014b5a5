"""Parquet: one column of lists is the vector, the others are metadata (or one marked column of JSON texts).

Rows are decoded a batch at a time from one row group at a time, so memory holds a batch and the row
group's encoded pages, not the file.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.core.errors import Unsupported
from vecdb.core.ids import RecordId
from vecdb.formats.about import MARK, About, bits
from vecdb.formats.base import (
    ID_NAMES,
    VECTOR_NAMES,
    Batch,
    SourceOptions,
    bad_file,
    cells,
    check_dim,
    check_vectors,
    file_ids,
    opening,
    row_numbers,
    rows_per_batch,
    writing,
)
from vecdb.formats.hdf5 import id_kind, json_object

_JSON_MARK = b"vecdb_json"


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise Unsupported("Parquet files need pyarrow: pip install pyarrow", package="pyarrow") from None
    return pyarrow, pyarrow.parquet


class ParquetSource:
    """A Parquet file with a column of vectors."""

    def __init__(self, path: Path, options: SourceOptions) -> None:
        self.path = path
        self._pa, pq = _parquet()
        with opening(path):
            try:
                self._file = pq.ParquetFile(path)
            except (self._pa.ArrowException, OSError) as error:
                if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
                    raise
                raise bad_file(path, f"not a readable Parquet file: {error}", got="bytes", limit="Parquet") from None
        self._schema = self._file.schema_arrow
        self.rows: int | None = int(self._file.metadata.num_rows)
        self.metric: str | None = None
        self._vector = self._vector_name(options.vector_column)
        self._id = self._id_name(options.id_column)
        kind = self._schema.field(self._vector).type.value_type
        self.vector_type = str(kind) if str(kind) in ("int8", "uint8") else None
        self._items = self.dim = self._width()
        self._tell()

    def _tell(self) -> None:
        """Take what an export wrote into the schema, unless the vectors have been cut to another width since."""
        said = (self._schema.metadata or {}).get(MARK.encode())
        if said is None:
            return
        told = About.from_bytes(self.path, said)
        if told.row_items == self._items:
            self.dim, self.metric, self.vector_type = told.dim, told.metric, told.vector_type

    def _vector_name(self, wanted: str | None) -> str:
        types = self._pa.types
        lists = [f.name for f in self._schema if (types.is_list(f.type) or types.is_large_list(f.type)
                 or types.is_fixed_size_list(f.type)) and self._is_number(f.type.value_type)]
        if wanted is not None:
            if wanted not in self._schema.names:
                raise bad_file(self.path, f"no column {wanted!r}; it has {', '.join(self._schema.names[:12])}",
                               got="missing", limit=wanted)
            if wanted not in lists:
                raise bad_file(self.path, f"column {wanted!r} is {self._schema.field(wanted).type}, not a list of "
                               "numbers", got=str(self._schema.field(wanted).type), limit="list of numbers")
            return wanted
        named = next((name for name in VECTOR_NAMES if name in lists), None)
        if named is None and len(lists) == 1:
            named = lists[0]
        if named is None:
            raise bad_file(self.path, f"{len(lists)} columns could be the vector ({', '.join(lists[:8]) or 'none'}); "
                           "say which with the vector column", got=len(lists), limit="one column of lists of numbers")
        return str(named)

    def _is_number(self, kind: Any) -> bool:
        return bool(self._pa.types.is_floating(kind) or self._pa.types.is_integer(kind))

    def _id_name(self, wanted: str | None) -> str | None:
        names = self._schema.names
        if wanted is not None and wanted not in names:
            raise bad_file(self.path, f"no column {wanted!r}; it has {', '.join(names[:12])}",
                           got="missing", limit=wanted)
        return wanted if wanted is not None else next((name for name in ID_NAMES if name in names), None)

    def _width(self) -> int:
        kind = self._schema.field(self._vector).type
        if self._pa.types.is_fixed_size_list(kind):
            return check_dim(self.path, int(kind.list_size))
        for table in self._decoded(1, [self._vector]):
            cell = table.column(0)[0].as_py()
            if cell is None:
                raise bad_file(self.path, f"{self._vector!r} is null", row=0, got="null", limit="list of numbers")
            return check_dim(self.path, len(cell), row=0)
        raise bad_file(self.path, "holds no rows, so the width of its vectors is unknown", got=0, limit="1 row")

    def _decoded(self, size: int, columns: list[str] | None = None) -> Iterator[Any]:
        try:
            yield from self._file.iter_batches(batch_size=size, columns=columns)
        except (self._pa.ArrowException, OSError) as error:
            raise bad_file(self.path, f"cannot be decoded: {error}", got="bytes", limit="Parquet") from None

    def batches(self, size: int | None = None) -> Iterator[Batch]:
        first = 0
        names = [name for name in self._schema.names if name not in (self._vector, self._id)]
        flat = [name for name in names if not self._is_json(name)]
        for table in self._decoded(rows_per_batch(size, 4 * self._items)):
            if not len(table):
                continue
            vectors = check_vectors(self.path, self._vectors(table.column(self._vector), first), first)
            metadata: list[dict[str, Any]] | None = None
            if names:
                metadata = [{} for _ in range(len(table))]
                if flat:
                    metadata = cells(self.path, flat, [self._values(table, name, first) for name in flat], first)
                for name in names:
                    if name not in flat:
                        for place, text in enumerate(table.column(name).to_pylist()):
                            metadata[place].update(json_object(self.path, name, text, first + place))
            if self.vector_type == "binary":
                vectors = bits(self.path, vectors, first)
            yield Batch(first, self._ids(table, first), vectors, metadata)
            first += len(table)

    def _is_json(self, name: str) -> bool:
        marks = self._schema.field(name).metadata
        return bool(marks) and _JSON_MARK in marks

    def _values(self, table: Any, name: str, first: int) -> list[Any]:
        try:
            values: list[Any] = table.column(name).to_pylist()
        except (ValueError, self._pa.ArrowException) as error:
            raise bad_file(self.path, f"column {name!r}: {error}", row=first) from None
        return values

    def _ids(self, table: Any, first: int) -> Any:
        if self._id is None:
            return row_numbers(first, len(table))
        column = table.column(self._id)
        if self._pa.types.is_integer(column.type) and not column.null_count:
            return file_ids(self.path, column.to_numpy(zero_copy_only=False), first)
        return file_ids(self.path, self._values(table, self._id, first), first)

    def _vectors(self, column: Any, first: int) -> npt.NDArray[Any]:
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise bad_file(self.path, f"{self._vector!r} is null", row=first + row, got="null", limit="list of numbers")
        if not self._pa.types.is_fixed_size_list(column.type):
            widths = column.value_lengths().to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero(widths != self._items)
            if wrong.size:
                row = int(wrong[0])
                raise bad_file(self.path, f"{self._vector!r} has {int(widths[row])} components, the first one has "
                               f"{self._items}", row=first + row, got=int(widths[row]), limit=self._items)
        values = column.flatten()
        if values.null_count:
            place = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
            raise bad_file(self.path, f"a component of {self._vector!r} is null", row=first + place // self._items,
                           got="null", limit="number")
        flat: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), self._items)

    def close(self) -> None:
        self._file.close()


class ParquetSink:
    """Writes ``id``, ``vector`` (a list of fixed width) and ``metadata`` (JSON texts, marked as such)."""

    def __init__(self, path: Path, dtype: np.dtype[Any], width: int, about: About) -> None:
        self._about = about
        self._pa, self._pq = _parquet()
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._vector = self._pa.list_(self._pa.from_numpy_dtype(dtype), width)
        self._kind: type[int] | type[str] | None = None
        self._writer: Any = None

    def _open(self, kind: type[int] | type[str]) -> None:
        schema = self._pa.schema([
            self._pa.field("id", self._pa.int64() if kind is int else self._pa.string(), nullable=False),
            self._pa.field("vector", self._vector, nullable=False),
            self._pa.field("metadata", self._pa.string(), nullable=False, metadata={_JSON_MARK: b"1"})],
            metadata={MARK.encode(): self._about.to_bytes()})
        self._kind = kind
        with writing(self._path):
            self._writer = self._pq.ParquetWriter(self._part, schema, compression="zstd",
                                                  use_dictionary=["metadata"])

    def write(self, ids: Sequence[RecordId], vectors: npt.NDArray[Any], metadata: Sequence[dict[str, Any]]) -> None:
        kind = id_kind(self._path, ids)
        if self._writer is None:
            self._open(kind)
        elif kind is not self._kind:
            id_kind(self._path, [0, ""])
        pa = self._pa
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        table = pa.Table.from_arrays(
            [pa.array(ids, pa.int64() if kind is int else pa.string()),
             pa.FixedSizeListArray.from_arrays(flat, type=self._vector),
             pa.array([orjson.dumps(entry).decode() for entry in metadata], pa.string())],
            schema=self._writer.schema)
        with writing(self._path):
            self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is None:
            self._open(int)
        with writing(self._path):
            self._writer.close()
            self._part.replace(self._path)

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._part.unlink(missing_ok=True)
