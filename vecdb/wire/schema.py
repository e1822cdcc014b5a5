"""Schemas and descriptions of collections; enums of the wire by the names of the API."""

from enum import StrEnum
from typing import Any, Final, TypeVar

from vecdb.core.errors import InvalidArgument, LimitExceeded, SchemaChanged
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.limits import MAX_INDEXED_FIELDS, MAX_WORD
from vecdb.core.query import Description
from vecdb.core.schema import CollectionSchema, IndexKind, IndexSpec, Metric, Quantization, VectorType, check_name
from vecdb.v1 import collections_pb2
from vecdb.v1 import types_pb2 as pb
from vecdb.wire.jsons import object_from_wire, object_to_wire

_E = TypeVar("_E", bound=StrEnum)

def _table(wire: Any, kind: type[_E]) -> dict[int, _E]:
    """Numbers to members: ``VECTOR_TYPE_INT8`` is ``int8``; 0, the unspecified, is none of them."""
    prefix = next(name for name, number in wire.items() if number == 0).removesuffix("UNSPECIFIED")
    return {int(number): kind(name.removeprefix(prefix).lower()) for name, number in wire.items() if number}


_METRICS: Final = _table(pb.Metric, Metric)
_VECTOR_TYPES: Final = _table(pb.VectorType, VectorType)
_KINDS: Final = _table(pb.IndexKind, IndexKind)
_QUANTIZATIONS: Final = _table(pb.Quantization, Quantization)
_DEFAULT: Final = IndexSpec()


def _member(table: dict[int, _E], number: int, argument: str, default: _E) -> _E:
    if number == 0:
        return default
    found = table.get(number)
    if found is None:
        known = ", ".join(f"{value} ({key})" for key, value in table.items())
        raise InvalidArgument(argument, f"unknown value {number}; known are {known}", got=number, limit=known)
    return found


def _number(table: dict[int, _E], member: _E) -> Any:
    return next(number for number, value in table.items() if value is member)


def name_from_wire(msg: Any) -> str:
    """Return the collection's name of a request (its field ``collection`` or ``name``), checked."""
    return check_name(msg.collection if "collection" in msg.DESCRIPTOR.fields_by_name else msg.name)


def check_shape(shape: int, schema: CollectionSchema) -> None:
    """Raise :class:`SchemaChanged` if the sender knew another schema; 0: it did not say."""
    if shape and shape != schema.shape:
        raise SchemaChanged(schema.name)


def schema_to_wire(schema: CollectionSchema) -> pb.Schema:
    """Write a schema; :func:`schema_from_wire` is the inverse."""
    spec = schema.index
    msg = pb.Schema(
        name=schema.name, dim=schema.dim, metric=_number(_METRICS, schema.metric),
        vector_type=_number(_VECTOR_TYPES, schema.vector_type),
        index=pb.IndexSpec(
            kind=_number(_KINDS, spec.kind), m=spec.m, ef_construction=spec.ef_construction, ef_search=spec.ef_search,
            quantization=_number(_QUANTIZATIONS, spec.quantization), subspaces=spec.subspaces, bits=spec.bits,
            nlist=spec.nlist, nprobe=spec.nprobe, oversample=spec.oversample, vectors_on_disk=spec.vectors_on_disk))
    if schema.indexed_fields is not None:
        msg.indexed_fields.SetInParent()
        msg.indexed_fields.paths.extend(schema.indexed_fields)
    return msg


def schema_from_wire(msg: pb.Schema) -> CollectionSchema:
    """Return the schema, unset parts by their defaults, or raise as ``create_collection`` does."""
    spec = msg.index
    fields = None
    if msg.HasField("indexed_fields"):
        if len(msg.indexed_fields.paths) > MAX_INDEXED_FIELDS:
            raise LimitExceeded("indexed_fields", f"{len(msg.indexed_fields.paths)} fields, more than "
                                f"{MAX_INDEXED_FIELDS}", got=len(msg.indexed_fields.paths), limit=MAX_INDEXED_FIELDS)
        fields = tuple(msg.indexed_fields.paths)
        longest = max(map(len, fields), default=0)
        if longest > MAX_WORD:
            raise LimitExceeded("indexed_fields", f"a name of {longest} characters, more than {MAX_WORD}", got=longest,
                                limit=MAX_WORD)
    return CollectionSchema(
        name=msg.name, dim=msg.dim, metric=_member(_METRICS, msg.metric, "metric", Metric.COSINE),
        vector_type=_member(_VECTOR_TYPES, msg.vector_type, "vector_type", VectorType.FLOAT32),
        index=IndexSpec(
            kind=_member(_KINDS, spec.kind, "index", _DEFAULT.kind), m=spec.m or _DEFAULT.m,
            ef_construction=spec.ef_construction or _DEFAULT.ef_construction, ef_search=spec.ef_search,
            quantization=_member(_QUANTIZATIONS, spec.quantization, "quantization", _DEFAULT.quantization),
            subspaces=spec.subspaces, bits=spec.bits or _DEFAULT.bits, nlist=spec.nlist, nprobe=spec.nprobe,
            oversample=spec.oversample, vectors_on_disk=spec.vectors_on_disk),
        indexed_fields=fields)


def layout_to_wire(layout: Layout) -> collections_pb2.Layout | None:
    """Write what was said of a collection's layout; None where nothing was."""
    return collections_pb2.Layout(**layout.given) if layout.given else None


def layout_from_wire(msg: Any) -> Layout:
    """Return the layout of a request that has one; what is zero was not said."""
    if not msg.HasField("layout"):
        return ANYHOW
    one = msg.layout
    return Layout(one.shards or None, one.replication_factor or None, one.shard_key or None,
                  one.expected_records or None)


def description_to_wire(value: Description) -> collections_pb2.DescribeCollectionReply:
    """Write a description; its details travel as JSON."""
    return collections_pb2.DescribeCollectionReply(name=value.name, records=value.records,
                                                   details_json=object_to_wire(value.details))


def description_from_wire(msg: collections_pb2.DescribeCollectionReply) -> Description:
    """Return a description."""
    return Description(msg.name, msg.records, object_from_wire(msg.details_json))
