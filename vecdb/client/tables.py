"""pyarrow tables and pandas frames as slices of ids, vectors and metadata.

Neither library is imported here: a caller who holds a table has it in ``sys.modules``.  Vectors of an arrow
fixed-size list are borrowed without a copy.  A null cell (in pandas NaN and NaT too) leaves its key out of the
record's metadata; decimals become floats, and times RFC 3339 strings as everywhere in metadata.
"""

import decimal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vecdb.client.options import near
from vecdb.core.errors import DimensionMismatch, InvalidArgument, InvalidId, InvalidMetadata, NonFiniteVector


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """A run of rows: ``ids`` an array or list, ``vectors`` an array or list of rows, ``metadata`` dicts or None."""

    ids: Any
    vectors: Any
    metadata: list[dict[str, Any]] | None


def _is_frame(value: object) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, getattr(pandas, "DataFrame", ()))


def _is_arrow(value: object, *names: str) -> bool:
    pyarrow = sys.modules.get("pyarrow")
    return pyarrow is not None and isinstance(value, tuple(getattr(pyarrow, name, ()) for name in names))


def is_table(value: object) -> bool:
    """Whether ``value`` is a DataFrame, or an arrow Table, RecordBatch or RecordBatchReader."""
    return _is_frame(value) or _is_arrow(value, "Table", "RecordBatch", "RecordBatchReader")


def matrix(value: Any) -> Any:
    """A column of vectors (arrow array, pandas Series) as rows; anything else as it is."""
    if _is_arrow(value, "ChunkedArray"):
        value = value.combine_chunks()
    if _is_arrow(value, "Array"):
        return _arrow_matrix(value, 0)
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, getattr(pandas, "Series", ())):
        rows: Any = value
        return rows.tolist()
    return value


def column(value: Any) -> Any:
    """A column of ids (arrow array, pandas Series or Index) as an array or list; anything else as it is."""
    if _is_arrow(value, "Array", "ChunkedArray"):
        pyarrow = sys.modules["pyarrow"]
        whole = pyarrow.types.is_integer(value.type) and not value.null_count
        return np.asarray(value) if whole else value.to_pylist()
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(value, (getattr(pandas, "Series", ()), getattr(pandas, "Index", ()))):
        found: Any = value
        return found.to_numpy()
    return value


def dicts(table: Any) -> list[dict[str, Any]]:
    """Every column of a table as metadata."""
    if _is_frame(table):
        return _frame_dicts(table, list(table.columns))
    parts = [table] if _is_arrow(table, "RecordBatch") else table.to_batches() if _is_arrow(table, "Table") else table
    return [row for part in parts for row in _arrow_dicts(part, list(part.schema.names))]


def slices(table: Any, id_name: str, vector_name: str, metadata: Sequence[str] | None,
           rows: int) -> tuple[int, bool, Iterator[Slice]]:
    """Return (rows or 0 if unknown, whether the table can be read whole at once, its slices)."""
    frame = _is_frame(table)
    names = list(table.columns) if frame else list(table.schema.names)
    _check_columns(names, id_name, vector_name, metadata)
    others = [name for name in names if name not in (id_name, vector_name)] if metadata is None else list(metadata)
    if frame:
        return len(table), True, _frame_slices(table, id_name, vector_name, others, rows)
    if _is_arrow(table, "RecordBatch"):
        return table.num_rows, True, _arrow_slices([table], id_name, vector_name, others, rows)
    if _is_arrow(table, "Table"):
        return table.num_rows, True, _arrow_slices(table.to_batches(), id_name, vector_name, others, rows)
    return 0, False, _arrow_slices(table, id_name, vector_name, others, rows)


def _check_columns(names: list[Any], id_name: str, vector_name: str, metadata: Sequence[str] | None) -> None:
    for name in names:
        if not isinstance(name, str):
            raise InvalidArgument("records", f"a column's name is {type(name).__name__}, not str",
                                  got=type(name).__name__, limit="columns named by str")
        if names.count(name) > 1:
            raise InvalidArgument("records", f"two columns are named {name!r}", got=name, limit="distinct names")
    for argument, name in [("id_column", id_name), ("vector_column", vector_name),
                           *(("metadata_columns", name) for name in metadata or ())]:
        if name not in names:
            raise InvalidArgument(argument, f"the table has no column {name!r}{near(name, names)}", got=name,
                                  limit=", ".join(names))


def _arrow_slices(parts: Iterable[Any], id_name: str, vector_name: str, others: list[str],
                  rows: int) -> Iterator[Slice]:
    first = 0
    for part in parts:
        for low in range(0, part.num_rows, rows):
            piece = part.slice(low, rows)
            vectors = _arrow_matrix(piece.column(vector_name), first)
            ids = _arrow_ids(piece.column(id_name), first)
            yield Slice(ids, vectors, _arrow_dicts(piece, others) if others else None)
            first += piece.num_rows


def _null_at(array: Any) -> int:
    return int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])


def _arrow_ids(array: Any, first: int) -> Any:
    pyarrow = sys.modules["pyarrow"]
    if array.null_count:
        row = first + _null_at(array)
        raise InvalidId(f"ids[{row}]", "is null", got="null", limit="int or str")
    if pyarrow.types.is_integer(array.type):
        return array.to_numpy(zero_copy_only=False)
    return array.to_pylist()


def _arrow_matrix(array: Any, first: int) -> Any:
    """The rows of a list column as an (n, d) array; a binary column of equal widths as bytes."""
    pyarrow = sys.modules["pyarrow"]
    types = pyarrow.types
    if isinstance(array, pyarrow.ExtensionArray):
        array = array.storage
    if array.null_count:
        raise NonFiniteVector(f"vectors[{first + _null_at(array)}]", "is null", got="null", limit="a vector")
    if types.is_fixed_size_binary(array.type) or types.is_binary(array.type) or types.is_large_binary(array.type):
        return [np.frombuffer(row, dtype=np.uint8) for row in array.to_pylist()]
    if not (types.is_fixed_size_list(array.type) or types.is_list(array.type) or types.is_large_list(array.type)):
        raise InvalidArgument("vectors", f"a column of {array.type} holds no vectors", got=str(array.type),
                              limit="a list of numbers")
    inner = array.type.value_type
    if not (types.is_floating(inner) or types.is_integer(inner) or types.is_boolean(inner)):
        raise InvalidArgument("vectors", f"a column of {array.type} holds no numbers", got=str(array.type),
                              limit="a list of numbers")
    n = len(array)
    if types.is_fixed_size_list(array.type):
        width = array.type.list_size
    else:
        lengths = np.diff(array.offsets.to_numpy(zero_copy_only=False))
        width = int(lengths[0]) if n else 0
        if (lengths != width).any():
            row = int(np.flatnonzero(lengths != width)[0])
            raise DimensionMismatch(f"vectors[{first + row}]", f"has {lengths[row]} components where the first has "
                                    f"{width}", got=int(lengths[row]), limit=width)
    values = array.flatten()
    if values.null_count:
        raise NonFiniteVector(f"vectors[{first + _null_at(values) // max(width, 1)}]", "holds a null component",
                              got="null", limit="finite components")
    return values.to_numpy(zero_copy_only=False).reshape(n, width)


def _arrow_dicts(part: Any, names: list[str]) -> list[dict[str, Any]]:
    pyarrow = sys.modules["pyarrow"]
    columns = []
    for name in names:
        column = part.column(name)
        if pyarrow.types.is_timestamp(column.type) and column.type.unit == "ns":
            # Python's datetime ends at microseconds; without this a row with more would need pandas.
            column = column.cast(pyarrow.timestamp("us", column.type.tz), safe=False)
        columns.append(column.to_pylist())
    return _rows(names, columns, part.num_rows)


def _frame_slices(frame: Any, id_name: str, vector_name: str, others: list[str], rows: int) -> Iterator[Slice]:
    for low in range(0, len(frame), rows):
        piece = frame.iloc[low:low + rows]
        yield Slice(piece[id_name].to_numpy(), piece[vector_name].tolist(),
                    _frame_dicts(piece, others) if others else None)


def _frame_dicts(frame: Any, names: list[Any]) -> list[dict[str, Any]]:
    columns = []
    for name in names:
        if not isinstance(name, str):
            raise InvalidMetadata("metadata", f"a column's name is {type(name).__name__}, not str",
                                  got=type(name).__name__, limit="columns named by str")
        values = frame[name].tolist()
        missing = frame[name].isna().to_numpy()
        for row in np.flatnonzero(missing):
            values[row] = None
        columns.append(values)
    return _rows(names, columns, len(frame))


def _rows(names: list[str], columns: list[list[Any]], count: int) -> list[dict[str, Any]]:
    if not names:
        return [{} for _ in range(count)]
    columns = [_json_column(values) for values in columns]
    return [{name: value for name, value in zip(names, row, strict=True) if value is not None}
            for row in zip(*columns, strict=True)]


def _json_column(values: list[Any]) -> list[Any]:
    """A column is of one type nearly always: look at each value only where the first needs changing."""
    sample = next((value for value in values if value is not None), None)
    if isinstance(sample, str | bool | int | float | None) and type(sample) in (str, bool, int, float, type(None)):
        return values
    return [_json(value) for value in values]


def _json(value: Any) -> Any:
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return value
