"""Vectors, ids and metadata out of JSON, and into it."""

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vecdb.core.errors import (
    DimensionMismatch,
    InvalidArgument,
    InvalidFilter,
    InvalidId,
    InvalidMetadata,
    LimitExceeded,
)
from vecdb.core.filters import Everything
from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId, check_id
from vecdb.core.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS
from vecdb.core.metadata import check_metadata
from vecdb.core.records import UpsertBatch
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import check_queries, check_vectors, row_bytes, to_array
from vecdb.rpc.http.bodies import Slices
from vecdb.rpc.http.checks import check
from vecdb.rpc.http.models import Base64Vectors, Encoding, RecordIn
from vecdb.wire.filters import filter_from_mapping, filter_from_text

Array = npt.NDArray[Any]

_RUN_CHARS: Final = 1 << 20
"""A multiple of four."""

_DTYPES: Final = {"float32": "<f4", "float16": "<f2", "float64": "<f8", "int8": "|i1", "uint8": "|u1"}


def rows(value: object, argument: str, most: int) -> Iterator[tuple[int, list[Any]]]:
    """Runs of an array's elements, each with the place of its first; an error above ``most`` elements."""
    if isinstance(value, list):
        parts: Iterable[list[Any]] = (value,)
    elif isinstance(value, Slices):
        parts = value
    else:
        raise InvalidArgument(argument, f"must be an array, not {kind_of(value)}", got=kind_of(value),
                              limit="an array")
    first = 0
    for part in parts:
        if first + len(part) > most:
            raise LimitExceeded(argument, f"more than {most} in one call", got=f"over {most}", limit=most)
        yield first, part
        first += len(part)


def kind_of(value: object) -> str:
    """JSON's word for a value's kind."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    words = {str: "string", dict: "object", list: "array", Slices: "array", type(None): "null"}
    return words.get(type(value), "value")


def ids(value: object, most: int, argument: str = "ids") -> list[RecordId]:
    """Checked ids of a non-empty array."""
    out: list[RecordId] = []
    for first, part in rows(value, argument, most):
        if len(part) > most:
            break
        out += [_id(one, first + place, argument) for place, one in enumerate(part)]
    if not out:
        raise InvalidId(argument, "is empty", got="0 ids", limit=f"1..{most} ids")
    return out


def _id(value: object, place: int, argument: str) -> RecordId:
    if type(value) is int or type(value) is str:
        return check_id(value, place)
    raise InvalidId(f"{argument}[{place}]", f"an id is an integer or a string, not {_number_kind(value)}",
                    got=kind_of(value), limit="integer 0..2**63-1 or string")


def _number_kind(value: object) -> str:
    return "a fraction (or an integer above 2**64)" if isinstance(value, float) else f"a {kind_of(value)}"


def metadata(value: object, count: int) -> tuple[bytes, ...]:
    """An object for each of ``count`` records; null is an empty one."""
    if value is None:
        return (b"{}",) * count
    out: list[bytes] = []
    for first, part in rows(value, "metadata", MAX_BATCH_RECORDS):
        out += [_object(one, first + place) for place, one in enumerate(part)]
    same_length("metadata", len(out), count)
    return tuple(out)


def _object(value: object, place: int) -> bytes:
    return b"{}" if value is None else check_metadata(value, place)


def same_length(argument: str, got: int, count: int) -> None:
    if got != count:
        raise InvalidArgument(argument, f"{got} given for {count} vectors", got=got, limit=count)


def vectors(schema: CollectionSchema, value: object, most: int = MAX_BATCH_RECORDS, *,
            checked: Callable[..., Array] = check_vectors) -> Array:
    """Stored components (n, row_items) of rows of numbers or of base64."""
    if isinstance(value, dict):
        raw = _decode(schema, value, "vectors")
        if len(raw) > most:
            raise LimitExceeded("vectors", f"{len(raw)} in one call, more than {most}", got=len(raw), limit=most)
        return checked(schema, raw)
    room = max(1, MAX_BATCH_BYTES // row_bytes(schema))
    parts: list[Array] = []
    count = 0
    for first, part in rows(value, "vectors", most):
        count += len(part)
        if count > room:
            raise LimitExceeded("vectors", f"more than {MAX_BATCH_BYTES} bytes in one call",
                                got=f"over {MAX_BATCH_BYTES}", limit=MAX_BATCH_BYTES)
        if part:
            raw = to_array(_numbers(part, first), "vectors", first=first)
            parts.append(check_vectors(schema, raw, first=first))
    if not parts:
        raise InvalidArgument("vectors", "holds no vectors", got="an empty array", limit="1 or more")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _numbers(part: list[Any], first: int) -> list[Any]:
    """Rows that are arrays: NumPy would take one long string for a row, and true for 1."""
    for place, row in enumerate(part):
        if not isinstance(row, list):
            raise InvalidArgument(f"vectors[{first + place}]", f"must be an array of numbers, not {kind_of(row)}",
                                  got=kind_of(row), limit="an array of numbers")
        _refuse_booleans(row, f"vectors[{first + place}]")
    return part


def _refuse_booleans(row: list[Any], argument: str) -> None:
    if bool in set(map(type, row)):
        raise InvalidArgument(argument, "must hold numbers, not boolean", got="boolean", limit="numbers")


def one_query(schema: CollectionSchema, value: object) -> Array:
    """Stored components (1, row_items) of one vector."""
    if isinstance(value, dict):
        raw = _decode(schema, value, "vector")
        if len(raw) != 1:
            raise DimensionMismatch("vector", f"holds {raw.size} components in a collection of dimension {schema.dim}",
                                    got=raw.size, limit=schema.dim)
        return check_queries(schema, raw[0])[0]
    if not isinstance(value, list):
        raise InvalidArgument("vector", f"must be an array of numbers or base64, not {kind_of(value)}",
                              got=kind_of(value), limit="an array of numbers")
    if value and isinstance(value[0], list):
        raise InvalidArgument("vector", "is an array of arrays; many queries are given as vectors",
                              got="array of array", limit="an array of numbers")
    _refuse_booleans(value, "vector")
    return check_queries(schema, value)[0]


def _decode(schema: CollectionSchema, value: dict[str, Any], argument: str) -> Array:
    """(n, row_items) of a Base64Vectors object."""
    given = check(Base64Vectors, value, argument)
    try:
        data = _unpacked(given.base64)
    except ValueError as error:
        raise InvalidArgument(f"{argument}.base64", f"is not base64: {error}", got="string",
                              limit="base64 of RFC 4648, padded") from None
    dtype = np.dtype(_DTYPES[given.dtype])
    width = schema.row_items * dtype.itemsize
    if not data or len(data) % width:
        raise DimensionMismatch(f"{argument}.base64", f"{len(data)} bytes are no whole vectors of {schema.row_items} "
                                f"{given.dtype}", got=len(data), limit=f"a multiple of {width}")
    return np.frombuffer(data, dtype).reshape(-1, schema.row_items).astype(dtype.newbyteorder("="), copy=False)


def _unpacked(text: str) -> bytes:
    """The bytes of base64, decoded in runs: one call holds the GIL to its end."""
    if text.find("=", 0, max(0, len(text) - 2)) >= 0:  # the end of a run would hide it
        raise ValueError("padding stands before its end")
    return b"".join([binascii.a2b_base64(text[low:low + _RUN_CHARS], strict_mode=True)
                     for low in range(0, len(text), _RUN_CHARS)])


def upsert_columns(schema: CollectionSchema, given_ids: object, given: object, objects: object) -> UpsertBatch:
    """A checked batch; of equal ids the last wins."""
    listed = ids(given_ids, MAX_BATCH_RECORDS)
    stored = vectors(schema, given)
    same_length("ids", len(listed), len(stored))
    return _batch(schema, listed, stored, metadata(objects, len(listed)))


def upsert_records(schema: CollectionSchema, given: object) -> UpsertBatch:
    """The same from records one by one."""
    listed: list[RecordId] = []
    parts: list[Array] = []
    objects: list[bytes] = []
    room = max(1, MAX_BATCH_BYTES // row_bytes(schema))
    for first, part in rows(given, "records", MAX_BATCH_RECORDS):
        if first + len(part) > room:
            raise LimitExceeded("records", f"more than {MAX_BATCH_BYTES} bytes of vectors in one call",
                                got=f"over {MAX_BATCH_BYTES}", limit=MAX_BATCH_BYTES)
        records = [check(RecordIn, value, f"records[{place}]") for place, value in enumerate(part, first)]
        listed += [_id(record.id, place, "ids") for place, record in enumerate(records, first)]
        objects += [_object(record.metadata, place) for place, record in enumerate(records, first)]
        if records:
            parts += _vectors_of(schema, records, first)
    if not listed:
        raise InvalidArgument("records", "is empty", got="0 records", limit="1 or more")
    return _batch(schema, listed, np.concatenate(parts), tuple(objects))


def _vectors_of(schema: CollectionSchema, records: list[RecordIn], first: int) -> list[Array]:
    """Stored components of a run of records: at once where all are lists of numbers."""
    given = [record.vector for record in records]
    if not all(isinstance(one, list) for one in given):
        return [_one(schema, one, place) for place, one in enumerate(given, first)]
    for place, row in enumerate(given, first):
        _refuse_booleans(row, f"records[{place}].vector")
    return [check_vectors(schema, to_array(given, "records", first=first), "records", first=first)]


def _one(schema: CollectionSchema, value: object, place: int) -> Array:
    argument = f"records[{place}].vector"
    if isinstance(value, dict):
        raw: Any = _decode(schema, value, argument)
    elif isinstance(value, list):
        _refuse_booleans(value, argument)
        raw = [value]
    else:
        raise InvalidArgument(argument, f"must be an array of numbers or base64, not {kind_of(value)}",
                              got=kind_of(value), limit="an array of numbers")
    if len(raw) != 1:
        raise DimensionMismatch(argument, f"holds {len(raw)} vectors", got=len(raw), limit=1)
    return check_vectors(schema, raw, first=place)


def _batch(schema: CollectionSchema, listed: list[RecordId], stored: Array, objects: tuple[bytes, ...]
           ) -> UpsertBatch:
    size = stored.nbytes + sum(map(len, objects))
    if size > MAX_BATCH_BYTES:
        raise LimitExceeded("metadata", f"{size} bytes in one batch, its vectors included, more than {MAX_BATCH_BYTES}",
                            got=size, limit=MAX_BATCH_BYTES)
    last = {one: place for place, one in enumerate(listed)}
    if len(last) != len(listed):
        keep = sorted(last.values())
        return UpsertBatch(tuple(listed[place] for place in keep), stored[keep],
                           tuple(objects[place] for place in keep), schema.shape)
    return UpsertBatch(tuple(listed), stored, objects, schema.shape)


def patches(value: object, listed: list[RecordId]) -> tuple[tuple[RecordId, ...], tuple[bytes, ...]]:
    """One patch for each of ``listed``, whose repetitions are left out where all get the same one."""
    if isinstance(value, dict):
        once = tuple(dict.fromkeys(listed))
        return once, (check_metadata(value),) * len(once)
    if not isinstance(value, list | Slices):
        raise InvalidMetadata("metadata", f"must be an object, or one for each id, not {kind_of(value)}",
                              got=kind_of(value), limit="an object")
    out: list[bytes] = []
    for first, part in rows(value, "metadata", MAX_BATCH_RECORDS):
        out += [check_metadata(one, first + place) for place, one in enumerate(part)]
    if len(out) != len(listed):
        raise InvalidArgument("metadata", f"{len(out)} given for {len(listed)} ids", got=len(out), limit=len(listed))
    seen: set[RecordId] = set()
    for place, one in enumerate(listed):
        if one in seen:
            raise InvalidId(f"ids[{place}]", "stands twice, with objects of its own each", got=type(one).__name__,
                            limit="each id once")
        seen.add(one)
    return tuple(listed), tuple(out)


def where(value: object) -> Node | None:
    """A filter in either form; null is none.  Equal ones are one object, of whatever face."""
    if value is None:
        return None
    if isinstance(value, str):
        return filter_from_text(value)
    if isinstance(value, dict):
        return filter_from_mapping(value)
    raise InvalidFilter(f"must be an expression or an object, not {kind_of(value)}", got=kind_of(value),
                        limit="string or object")


def some(value: object) -> Node:
    """A filter of what is to be changed: one that says nothing is refused, unless as ``"true"``."""
    node = where(value)
    if node is None or (isinstance(node, Everything) and not isinstance(value, str)):
        raise InvalidFilter("an empty filter would change every record; filter 'true' says that this is meant",
                            got="an empty filter", limit="at least one condition, or 'true'")
    return node


def to_json(vector: Any, encoding: Encoding) -> Any:
    """One vector for orjson: the array itself, or base64 and its dtype."""
    if encoding == "list":
        return np.ascontiguousarray(vector)
    dtype = vector.dtype.name
    return {"base64": base64.b64encode(vector.astype(_DTYPES[dtype], copy=False).tobytes()).decode(), "dtype": dtype}


def flat(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """The items of all parts."""
    return list(chain.from_iterable(parts))
