"""What ``upsert`` accepts, brought into parts: columns, records one by one, and tables.

Columns are ``ids`` and ``vectors`` (and ``metadata``) of one length.  Records are tuples ``(id, vector)`` or
``(id, vector, metadata)``, or dicts with those keys, from any iterable, however long.  Tables are pyarrow's and
pandas'; those libraries are looked for in ``sys.modules``, for whoever holds a table has imported them.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np

from vecdb.client import tables
from vecdb.client.options import kind_of, near
from vecdb.client.parts import DEFAULT_BATCH_BYTES, DEFAULT_BATCH_RECORDS, Part
from vecdb.core.errors import InvalidArgument, InvalidId, InvalidMetadata, LimitExceeded
from vecdb.core.ids import RecordId, check_id, check_ids
from vecdb.core.metadata import check_metadata
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import row_bytes, to_array

MAX_CALL_IDS: Final = 10_000_000
"""Most ids in one fetch, delete or update: an endless iterator is refused instead of filling memory."""


@dataclass(frozen=True, slots=True)
class Source:
    """Parts to write; ``total`` rows if known, else 0; ``whole``: they can be checked before the first write."""

    parts: Iterable[Part]
    total: int
    whole: bool


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of a table's id and vector columns, and of its metadata columns (None: all others)."""

    id: str = "id"
    vector: str = "vector"
    metadata: tuple[str, ...] | None = None


def list_ids(value: object) -> list[RecordId]:
    """Check ids from an array, a column or any iterable of at most :data:`MAX_CALL_IDS`."""
    ids = _ids_up_to(value, MAX_CALL_IDS + 1)
    if len(ids) > MAX_CALL_IDS:
        raise LimitExceeded("ids", f"more than {MAX_CALL_IDS}", got=f"over {MAX_CALL_IDS}", limit=MAX_CALL_IDS)
    return ids


def _ids_up_to(value: Any, most: int) -> list[RecordId]:
    """Check ids, reading no more than ``most`` of an iterator, which may have no end."""
    value = tables.column(value)
    if isinstance(value, np.ndarray | str | bytes):
        return check_ids(value)
    if not isinstance(value, Iterable):
        raise InvalidId("ids", f"must be a sequence of ids, not {kind_of(value)}", got=kind_of(value),
                        limit="a sequence of int or str")
    return check_ids(list(islice(value, most)))


def encode_metadata(values: Iterable[object], first: int = 0) -> list[bytes]:
    """Check each object and return its canonical JSON; None is an empty object."""
    return [b"{}" if value is None else check_metadata(value, position)
            for position, value in enumerate(values, first)]


def from_columns(ids: object, vectors: object, metadata: object) -> Source:
    """One part from whole columns; their lengths must agree and must not be zero."""
    if isinstance(ids, set | frozenset | Mapping):
        raise InvalidArgument("ids", f"a {kind_of(ids)} has no order to pair with vectors", got=kind_of(ids),
                              limit="a sequence")
    raw = to_array(tables.matrix(vectors), "vectors")
    count = raw.shape[0] if raw.ndim else 0
    if raw.ndim and count == 0:
        raise InvalidArgument("vectors", "holds no vectors", got=f"shape {raw.shape}", limit="at least one vector")
    if raw.ndim < 2:
        hint = "; for a single vector give [vector]" if raw.ndim else ""
        raise InvalidArgument("vectors", f"must have two dimensions (n, dim), not {raw.ndim}{hint}",
                              got=f"shape {raw.shape}", limit="(n, dim)")
    listed = _ids_up_to(ids, count + 1)
    _same_length("ids", len(listed), count)
    encoded = None
    if metadata is not None:
        objects = _metadata_list(metadata, count)
        _same_length("metadata", len(objects), count)
        encoded = encode_metadata(objects)
    return Source([Part(listed, raw, encoded)], count, whole=True)


def _same_length(argument: str, got: int, vectors: int) -> None:
    if got != vectors:
        shown = f"more than {vectors}" if got == vectors + 1 else f"{got}"  # an iterator is read no further
        raise InvalidArgument(argument, f"{shown} given for {vectors} vectors", got=got, limit=vectors)


def _metadata_list(value: object, count: int) -> Sequence[object]:
    if isinstance(value, str | bytes | set | frozenset | Mapping):
        raise InvalidMetadata("metadata", f"must be a sequence of dicts, one a record, not one {kind_of(value)}",
                              got=kind_of(value), limit="a sequence of dicts")
    if tables.is_table(value):
        return tables.dicts(value)
    if isinstance(value, list | tuple):
        return value
    return take_metadata(value, count + 1)


def take_metadata(value: object, most: int) -> list[object]:
    """Read no more than ``most`` objects of an iterable, which may have no end."""
    if not isinstance(value, Iterable) or (isinstance(value, np.ndarray) and value.ndim == 0):
        raise InvalidMetadata("metadata", f"must be a sequence of dicts, not {kind_of(value)}", got=kind_of(value),
                              limit="a sequence of dicts")
    return list(islice(value, most))


def from_records(schema: CollectionSchema, records: object, columns: Columns, batch_size: int | None) -> Source:
    """Parts from tables or from an iterable of tuples or dicts."""
    if tables.is_table(records):
        total, whole, slices = tables.slices(records, columns.id, columns.vector, columns.metadata,
                                             batch_size or DEFAULT_BATCH_RECORDS)
        return Source(_table_parts(slices), total, whole)
    if isinstance(records, str | bytes | bytearray | Mapping | np.ndarray) or not isinstance(records, Iterable):
        raise InvalidArgument("records", f"must be an iterable of (id, vector, metadata) or a table, not "
                              f"{kind_of(records)}; give columns as ids= and vectors=", got=kind_of(records),
                              limit="an iterable of records, or a pyarrow or pandas table")
    listed = isinstance(records, list | tuple)
    return Source(_row_parts(schema, records, columns, batch_size or DEFAULT_BATCH_RECORDS),
                  len(records) if listed else 0, whole=listed)  # type: ignore[arg-type]


def _table_parts(slices: Iterable[tables.Slice]) -> Iterator[Part]:
    first = 0
    for piece in slices:
        raw = to_array(piece.vectors, "vectors", first=first)
        encoded = None if piece.metadata is None else encode_metadata(piece.metadata, first)
        part = Part(_ids_at(piece.ids, first), raw, encoded, first)
        first += len(part.ids)
        yield part


def _ids_at(values: Any, first: int) -> list[RecordId]:
    """``check_ids``, its positions counted from the start of the whole input."""
    try:
        return check_ids(values)
    except InvalidId:
        for position, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else values, first):
            check_id(value, position)
        raise


class _Rows:
    """Records gathered until they make a part."""

    def __init__(self, schema: CollectionSchema, columns: Columns, most: int) -> None:
        self._columns = columns
        self._most = most
        self._fixed = row_bytes(schema)
        self._position = 0
        self._clear()

    def _clear(self) -> None:
        self._ids: list[RecordId] = []
        self._vectors: list[object] = []
        self._metadata: list[bytes] = []
        self._size = 0
        self._first = self._position

    def add(self, record: object) -> Part | None:
        """The part that this record completes, if it does."""
        position = self._position
        identity, vector, extra = _row(record, position, self._columns)
        encoded = b"{}" if extra is None else check_metadata(extra, position)
        self._ids.append(check_id(identity, position))
        self._vectors.append(vector)
        self._metadata.append(encoded)
        self._size += self._fixed + len(encoded)
        self._position += 1
        return self.end() if len(self._ids) >= self._most or self._size >= DEFAULT_BATCH_BYTES else None

    def end(self) -> Part | None:
        """What there is."""
        if not self._ids:
            return None
        part = _part(self._ids, self._vectors, self._metadata, self._first)
        self._clear()
        return part


def _row_parts(schema: CollectionSchema, records: Iterable[object], columns: Columns, most: int) -> Iterator[Part]:
    rows = _Rows(schema, columns, most)
    for record in records:
        if (part := rows.add(record)) is not None:
            yield part
    if (part := rows.end()) is not None:
        yield part


async def arow_parts(schema: CollectionSchema, records: AsyncIterable[object], columns: Columns,
                     batch_size: int | None) -> AsyncIterator[Part]:
    """Parts from records that come one by one."""
    rows = _Rows(schema, columns, batch_size or DEFAULT_BATCH_RECORDS)
    async for record in records:
        if (part := rows.add(record)) is not None:
            yield part
    if (part := rows.end()) is not None:
        yield part


def rereadable(records: object) -> bool:
    """Whether records can be read from the start again: a list or a table, no generator and no reader."""
    return isinstance(records, list | tuple) or (tables.is_table(records) and hasattr(records, "__len__"))


def _part(ids: list[RecordId], vectors: list[object], metadata: list[bytes], first: int) -> Part:
    return Part(ids, to_array(vectors, "vectors", first=first), metadata, first)


def _row(record: object, position: int, columns: Columns) -> tuple[object, object, object]:
    """The id, vector and metadata of one record."""
    where = f"records[{position}]"
    if isinstance(record, Mapping):
        known = (columns.id, columns.vector, "metadata")
        for key in record:
            if key not in known:
                hint = near(key, known) if isinstance(key, str) else ""
                raise InvalidArgument(where, f"unknown key {str(key)[:100]!r}{hint}", got=str(key)[:100],
                                      limit=", ".join(known))
        for key in known[:2]:
            if key not in record:
                raise InvalidArgument(where, f"has no {key!r}", got="a dict without it", limit=", ".join(known))
        return record[columns.id], record[columns.vector], record.get("metadata")
    if isinstance(record, tuple | list):
        if len(record) not in (2, 3):
            raise InvalidArgument(where, f"has {len(record)} items", got=len(record),
                                  limit="(id, vector) or (id, vector, metadata)")
        return record[0], record[1], record[2] if len(record) == 3 else None
    raise InvalidArgument(where, f"must be (id, vector, metadata) or a dict, not {kind_of(record)}; ids alone need "
                          "vectors= beside them", got=kind_of(record), limit="a tuple or a dict")
