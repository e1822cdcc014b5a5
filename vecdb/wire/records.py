"""Records written, fetched, scanned and counted.

A request is checked here as the SDK's facade checks its arguments, whoever sent it: a server trusts no client.
Of equal ids in an upsert the last wins; equal ids of a delete are one.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

import numpy as np

from vecdb.core.errors import InvalidArgument, InvalidMetadata, LimitExceeded, VecdbError
from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId
from vecdb.core.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS
from vecdb.core.metadata import parse_metadata
from vecdb.core.query import MAX_POSITION_BYTES, Count, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Outcome, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import row_bytes
from vecdb.v1 import records_pb2 as pb
from vecdb.v1 import types_pb2
from vecdb.wire.filters import filter_from_wire, put_filter, some_filter_from_wire
from vecdb.wire.ids import ids_from_wire, put_ids
from vecdb.wire.jsons import dumps, metadata_from_wire
from vecdb.wire.large import with_message
from vecdb.wire.matrix import matrix_from_wire, matrix_pieces, put_matrix, stored_from_wire
from vecdb.wire.schema import check_shape

DEFAULT_SCAN_LIMIT: Final = 1_000
MAX_CURSOR: Final = (1 << 63) - 1
_COUNTS: Final = ("inserted", "updated", "deleted", "missing")

P = ParamSpec("P")
T = TypeVar("T")


class Fetch(NamedTuple):
    """What a FetchRequest asks for."""

    ids: tuple[RecordId, ...]
    include_metadata: bool
    include_vectors: bool


def reply(read: Callable[P, T]) -> Callable[P, T]:
    """A reply that cannot be read is the server's fault: no argument of the caller's is named."""

    @wraps(read)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except (InvalidArgument, ValueError, TypeError) as error:
            raise VecdbError(f"the server's reply cannot be read: {error}") from error

    return wrapped


# -- writes


def upsert_to_wire(name: str, batch: UpsertBatch, key: bytes = b"", normalized: bool = True,
                   tag: int = 0) -> pb.UpsertRequest:
    """Write a checked batch; ``normalized``: cosine vectors have unit length, as a batch's always do."""
    msg = _upsert_head(name, batch, key, normalized, tag)
    put_matrix(msg.vectors, batch.vectors)
    return msg


def upsert_to_bytes(name: str, batch: UpsertBatch, key: bytes = b"") -> bytes:
    """The bytes of :func:`upsert_to_wire`'s message, or of one that reads the same."""
    return with_message(_upsert_head(name, batch, key, normalized=True, tag=0),
                        pb.UpsertRequest.VECTORS_FIELD_NUMBER, matrix_pieces(batch.vectors))


def _upsert_head(name: str, batch: UpsertBatch, key: bytes, normalized: bool, tag: int) -> pb.UpsertRequest:
    metadata = () if all(one == b"{}" for one in batch.metadata) else batch.metadata
    msg = pb.UpsertRequest(collection=name, metadata=metadata, idempotency_key=key, normalized=normalized, tag=tag,
                           schema_shape=batch.shape)
    put_ids(msg.ids, batch.ids)
    return msg


def upsert_from_wire(msg: pb.UpsertRequest, schema: CollectionSchema) -> UpsertBatch:
    """Return the batch in stored form, or raise as ``upsert`` does; nothing that came is trusted."""
    check_shape(msg.schema_shape, schema)
    rows = msg.vectors.rows
    if rows > MAX_BATCH_RECORDS:
        raise LimitExceeded("vectors", f"{rows} records in one batch, more than {MAX_BATCH_RECORDS}", got=rows,
                            limit=MAX_BATCH_RECORDS)
    if rows == 0:
        raise InvalidArgument("vectors", "holds no vectors", got="0 rows", limit="at least one vector")
    ids = ids_from_wire(msg.ids)
    _same_length("ids", len(ids), rows)
    given = msg.metadata
    if given:
        _same_length("metadata", len(given), rows)
    size = rows * row_bytes(schema)
    if size > MAX_BATCH_BYTES:
        raise LimitExceeded("vectors", f"{size} bytes in one batch, more than {MAX_BATCH_BYTES}", got=size,
                            limit=MAX_BATCH_BYTES)
    vectors = stored_from_wire(schema, msg.vectors, msg.normalized)
    metadata = [metadata_from_wire(one, place) for place, one in enumerate(given)] if given else [b"{}"] * rows
    size += sum(map(len, metadata))
    if size > MAX_BATCH_BYTES:
        raise LimitExceeded("metadata", f"{size} bytes in one batch, its vectors included, more than "
                            f"{MAX_BATCH_BYTES}", got=size, limit=MAX_BATCH_BYTES)
    if len(set(ids)) != rows:
        keep = sorted({one: place for place, one in enumerate(ids)}.values())
        ids, metadata, vectors = [ids[p] for p in keep], [metadata[p] for p in keep], vectors[keep]
    return UpsertBatch(tuple(ids), vectors, tuple(metadata), schema.shape)


def _same_length(argument: str, got: int, vectors: int) -> None:
    if got != vectors:
        raise InvalidArgument(argument, f"{got} given for {vectors} vectors", got=got, limit=vectors)


def delete_to_wire(name: str, command: DeleteIds | DeleteWhere, key: bytes = b"") -> pb.DeleteRequest:
    """Write a delete by ids or by filter."""
    msg = pb.DeleteRequest(collection=name, idempotency_key=key)
    if isinstance(command, DeleteIds):
        put_ids(msg.ids, command.ids)
    else:
        put_filter(msg.filter, command.filter)
    return msg


def delete_from_wire(msg: pb.DeleteRequest) -> DeleteIds | DeleteWhere:
    """Return what is to be deleted; neither ids nor a filter, or a filter that says nothing, is refused."""
    what = msg.WhichOneof("what")
    if what == "ids":
        return DeleteIds(tuple(dict.fromkeys(ids_from_wire(msg.ids))))
    if what == "filter":
        return DeleteWhere(some_filter_from_wire(msg.filter))
    raise InvalidArgument("ids", "give either ids or filter", got="neither", limit="one of ids, filter")


def update_to_wire(name: str, command: UpdateMetadata, key: bytes = b"") -> pb.UpdateMetadataRequest:
    """Write an update; one patch for all ids travels once."""
    patches = command.patch
    if len(patches) > 1 and patches.count(patches[0]) == len(patches):
        patches = patches[:1]
    msg = pb.UpdateMetadataRequest(collection=name, patches=patches, replace=not command.merge, idempotency_key=key)
    put_ids(msg.ids, command.ids)
    return msg


def update_from_wire(msg: pb.UpdateMetadataRequest, schema: CollectionSchema) -> UpdateMetadata:
    """Return an update of one patch per id; patches of equal ids are applied in their order."""
    # An updated record is written anew, with its vector.
    most = min(MAX_BATCH_RECORDS, max(1, MAX_BATCH_BYTES // row_bytes(schema)))
    ids = ids_from_wire(msg.ids, most=most)
    given = msg.patches
    if not given and ids:
        raise InvalidMetadata("metadata", "is missing", got="nothing", limit="one object, or one per id")
    if len(given) not in (1, len(ids)):
        raise InvalidArgument("metadata", f"{len(given)} given for {len(ids)} ids", got=len(given), limit=len(ids))
    patches = [metadata_from_wire(one, place) for place, one in enumerate(given)]
    size = sum(map(len, patches))
    if size > MAX_BATCH_BYTES:
        raise LimitExceeded("metadata", f"{size} bytes in one batch, more than {MAX_BATCH_BYTES}", got=size,
                            limit=MAX_BATCH_BYTES)
    if len(patches) == 1:
        patches *= len(ids)
    return UpdateMetadata(tuple(ids), tuple(patches), not msg.replace)


def write_result_to_wire(value: WriteResult, handed_on: bool = False) -> types_pb2.WriteResult:
    """Write what a write did, and whether another node than the one asked did it, or a part of it."""
    msg = types_pb2.WriteResult(inserted=value.inserted, updated=value.updated, deleted=value.deleted,
                                missing=value.missing, log_index=value.log_index, shard=value.shard,
                                handed_on=handed_on)
    if value.outcomes:
        for one in value.outcomes:
            msg.outcomes.add(origin=one.origin, lo=one.lo, **dict(zip(_COUNTS, one.counts, strict=True)))
        if all(one.lo is None for one in value.outcomes):
            msg.origin = min(one.origin for one in value.outcomes)
    if len(value.positions) > 1:
        msg.positions.extend([types_pb2.Position(shard=shard, log_index=at) for shard, at in value.positions])
    return msg


def write_result_from_wire(msg: types_pb2.WriteResult) -> WriteResult:
    """Return what a write did; of a node that tells no outcomes what it tells of one shard's doing is one."""
    positions = tuple((one.shard, one.log_index) for one in msg.positions) if msg.positions else ()
    outcomes = tuple(Outcome(one.origin, one.lo if one.HasField("lo") else None,
                             (one.inserted, one.updated, one.deleted, one.missing)) for one in msg.outcomes)
    if msg.origin and not outcomes:
        outcomes = (Outcome(msg.origin, None, (msg.inserted, msg.updated, msg.deleted, msg.missing)),)
    return WriteResult(msg.inserted, msg.updated, msg.deleted, msg.missing, msg.log_index, msg.shard, positions,
                       outcomes)


# -- fetch


def fetch_to_wire(name: str, ids: Sequence[RecordId], include_metadata: bool = True,
                  include_vectors: bool = True) -> pb.FetchRequest:
    """Write a fetch by ids."""
    msg = pb.FetchRequest(collection=name, without_metadata=not include_metadata, without_vectors=not include_vectors)
    put_ids(msg.ids, ids)
    return msg


def fetch_from_wire(msg: pb.FetchRequest, schema: CollectionSchema) -> Fetch:
    """Return what is asked for; more vectors than fit a message are refused."""
    ids = ids_from_wire(msg.ids)
    size = len(ids) * row_bytes(schema)
    if not msg.without_vectors and size > MAX_BATCH_BYTES:
        raise LimitExceeded("ids", f"the vectors of {len(ids)} records take {size} bytes, more than {MAX_BATCH_BYTES} "
                            "in one call", got=size, limit=MAX_BATCH_BYTES)
    return Fetch(tuple(ids), not msg.without_metadata, not msg.without_vectors)


def records_to_wire(records: Sequence[Record]) -> pb.FetchReply:
    """Write records; their vectors if all have one."""
    msg = pb.FetchReply()
    put_ids(msg.ids, [one.id for one in records])
    if any(one.metadata for one in records):
        msg.metadata.extend([dumps(one.metadata) for one in records])
    vectors = [one.vector for one in records]
    if vectors and all(one is not None for one in vectors):
        put_matrix(msg.vectors, np.stack(vectors))  # type: ignore[arg-type]
    return msg


@reply
def records_from_wire(msg: pb.FetchReply) -> list[Record]:
    """Return records; their vectors are rows of one writable array."""
    ids = ids_from_wire(msg.ids)
    metadata = _metadata(msg.metadata, len(ids)) or [{} for _ in ids]
    vectors: Sequence[Any] = [None] * len(ids)
    if msg.HasField("vectors"):
        vectors = _rows(msg.vectors, len(ids))
    return [Record(one, extra, row) for one, extra, row in zip(ids, metadata, vectors, strict=True)]


def _metadata(given: Sequence[bytes], count: int) -> list[dict[str, Any]] | None:
    """The objects, None where none came."""
    if not given:
        return None
    if len(given) != count:
        raise ValueError(f"{len(given)} metadata objects for {count} records")
    return [parse_metadata(one) for one in given]


def _rows(msg: types_pb2.Matrix, count: int) -> Any:
    vectors = matrix_from_wire(msg)
    if len(vectors) != count:
        raise ValueError(f"{len(vectors)} vectors for {count} records")
    return vectors.copy()


# -- scan and count


def scan_to_wire(name: str, request: ScanRequest) -> pb.ScanRequest:
    """Write a request for a page."""
    msg = pb.ScanRequest(collection=name, limit=request.limit, without_metadata=not request.include_metadata,
                         with_vectors=request.include_vectors)
    if isinstance(request.after, bytes):
        msg.position = request.after
    else:
        msg.after = request.after
    if request.filter is not None:
        put_filter(msg.filter, request.filter)
    return msg


def scan_from_wire(msg: pb.ScanRequest, schema: CollectionSchema) -> ScanRequest:
    """Return the request; with vectors a page is made as small as a message needs."""
    limit = msg.limit or DEFAULT_SCAN_LIMIT
    if limit > MAX_BATCH_RECORDS:
        raise LimitExceeded("limit", f"{limit} is outside 1..{MAX_BATCH_RECORDS}", got=limit,
                            limit=f"1..{MAX_BATCH_RECORDS}")
    if msg.after > MAX_CURSOR:
        raise InvalidArgument("after", "is no cursor of a page", got=msg.after, limit=MAX_CURSOR)
    if len(msg.position) > MAX_POSITION_BYTES:
        raise LimitExceeded("position", f"{len(msg.position)} bytes, more than {MAX_POSITION_BYTES}",
                            got=len(msg.position), limit=MAX_POSITION_BYTES)
    if msg.with_vectors:
        limit = max(1, min(limit, MAX_BATCH_BYTES // row_bytes(schema)))
    where = filter_from_wire(msg.filter) if msg.HasField("filter") else None
    return ScanRequest(where, limit, msg.position or msg.after, not msg.without_metadata, msg.with_vectors)


def page_to_wire(page: ScanPage) -> pb.ScanReply:
    """Write a page."""
    msg = pb.ScanReply(missing=page.missing)
    if isinstance(page.cursor, bytes):
        msg.position = page.cursor
    elif page.cursor is not None:
        msg.cursor = page.cursor
    put_ids(msg.ids, page.ids)
    if page.metadata is not None:
        msg.metadata.extend([dumps(one) for one in page.metadata])
    if page.vectors is not None:
        put_matrix(msg.vectors, page.vectors)
    return msg


@reply
def page_from_wire(msg: pb.ScanReply) -> ScanPage:
    """Return a page; its vectors are writable, its metadata None where none came."""
    ids = ids_from_wire(msg.ids)
    return ScanPage(ids, _metadata(msg.metadata, len(ids)),
                    _rows(msg.vectors, len(ids)) if msg.HasField("vectors") else None,
                    msg.position or (msg.cursor if msg.HasField("cursor") else None), tuple(msg.missing))


def count_to_wire(name: str, where: Node | None) -> pb.CountRequest:
    """Write a count."""
    msg = pb.CountRequest(collection=name)
    if where is not None:
        put_filter(msg.filter, where)
    return msg


def counted_to_wire(count: int) -> pb.CountReply:
    """Write how many there are, and what is not in that."""
    return pb.CountReply(count=count, missing=count.missing if isinstance(count, Count) else ())


def counted_from_wire(msg: pb.CountReply) -> int:
    """Return how many there are; a :class:`Count` where something is missing."""
    return Count.of(msg.count, tuple(msg.missing)) if msg.missing else msg.count


def count_from_wire(msg: pb.CountRequest) -> Node | None:
    """Return the filter of a count."""
    return filter_from_wire(msg.filter) if msg.HasField("filter") else None
