"""Queries and their answers: the path that is walked most often, so each field is read once and nothing nests."""

from itertools import accumulate, chain
from math import isfinite
from typing import Any, Final

import numpy as np

from vecdb.core.errors import InvalidArgument, LimitExceeded, VecdbError
from vecdb.core.limits import MAX_EF, MAX_K, MAX_NPROBE, MAX_QUERY_ROWS, MAX_RESULT_BYTES, MAX_RESULTS
from vecdb.core.metadata import parse_metadata
from vecdb.core.query import Columns, Cost, Matches, QueryRequest, QueryResult
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import row_bytes
from vecdb.v1 import queries_pb2 as pb
from vecdb.v1 import types_pb2
from vecdb.wire.filters import filter_from_wire, put_filter
from vecdb.wire.ids import ids_from_wire, put_ids
from vecdb.wire.jsons import dumps, object_from_wire, object_to_wire
from vecdb.wire.matrix import matrix_from_wire, put_matrix, queries_from_wire
from vecdb.wire.records import reply
from vecdb.wire.schema import check_shape

DEFAULT_K: Final = 10


def query_to_wire(name: str, request: QueryRequest, tag: int = 0) -> pb.QueryRequest:
    """Write a checked request, whose vectors are in stored form."""
    msg = pb.QueryRequest(
        collection=name, k=request.k, within=request.within, ef_search=request.ef_search, nprobe=request.nprobe,
        exact=request.exact, with_metadata=request.include_metadata, with_vectors=request.include_vectors,
        explain=request.explain, profile=request.profile, normalized=True, tag=tag,
        schema_shape=request.shape)
    put_matrix(msg.vectors, request.vectors)
    if request.filter is not None:
        put_filter(msg.filter, request.filter)
    return msg


def query_from_wire(msg: pb.QueryRequest, schema: CollectionSchema) -> QueryRequest:
    """Return the request in stored form, or raise as ``query`` does."""
    check_shape(msg.schema_shape, schema)
    matrix = msg.vectors
    rows = matrix.rows
    k = msg.k or DEFAULT_K
    if k > MAX_K:
        raise _outside("k", k, 1, MAX_K)
    if rows != 1:
        _check_rows(rows, k)
    ef_search, nprobe = msg.ef_search, msg.nprobe
    if ef_search > MAX_EF:
        raise _outside("ef_search", ef_search, 0, MAX_EF)
    if nprobe > MAX_NPROBE:
        raise _outside("nprobe", nprobe, 0, MAX_NPROBE)
    with_vectors = msg.with_vectors
    if with_vectors:
        _check_vectors_size(rows, k, schema)
    within = None
    if msg.HasField("within"):
        within = msg.within
        if not isfinite(within):
            raise InvalidArgument("within", "must be finite", got=str(within), limit="a finite number")
    where = filter_from_wire(msg.filter) if msg.HasField("filter") else None
    return QueryRequest(queries_from_wire(schema, matrix, msg.normalized), k, where, within, ef_search, nprobe,
                        msg.exact, msg.with_metadata, with_vectors, msg.explain, msg.profile, schema.shape)


def _outside(argument: str, value: int, low: int, high: int) -> LimitExceeded:
    return LimitExceeded(argument, f"{value} is outside {low}..{high}", got=value, limit=f"{low}..{high}")


def _check_rows(rows: int, k: int) -> None:
    if rows == 0:
        raise InvalidArgument("vector", "holds no vectors", got="0 rows", limit="at least one vector")
    if rows > MAX_QUERY_ROWS:
        raise LimitExceeded("vector", f"{rows} queries in one call, more than {MAX_QUERY_ROWS}", got=rows,
                            limit=MAX_QUERY_ROWS)
    if rows * k > MAX_RESULTS:
        raise LimitExceeded("k", f"{rows} queries of k={k} ask for more than {MAX_RESULTS} results", got=rows * k,
                            limit=MAX_RESULTS)


def _check_vectors_size(rows: int, k: int, schema: CollectionSchema) -> None:
    size = rows * k * row_bytes(schema)
    if size > MAX_RESULT_BYTES:
        raise LimitExceeded("include", f"the vectors of {rows} queries of k={k} may take {size} bytes, more than "
                            f"{MAX_RESULT_BYTES}; fetch them by id", got=size, limit=MAX_RESULT_BYTES)


def result_to_wire(result: QueryResult, tag: int = 0) -> pb.QueryReply:
    """Write the answers of all queries, one after the other."""
    matches = result.matches
    if isinstance(matches, Columns):
        msg = pb.QueryReply(counts=[matches.ids.shape[1]] * len(matches), tag=tag,
                            distances=matches.distances.astype("<f4", copy=False).tobytes())
        msg.ids.integers = matches.ids.astype("<i8", copy=False).tobytes()
        matches = ()  # there is nothing beside them
    elif len(matches) == 1:
        one = matches[0]
        msg = pb.QueryReply(counts=(len(one.ids),), tag=tag,
                            distances=one.distances.astype("<f4", copy=False).tobytes())
        put_ids(msg.ids, one.ids)
    else:
        msg = pb.QueryReply(
            counts=[len(one.ids) for one in matches], tag=tag,
            distances=b"".join([one.distances.astype("<f4", copy=False).tobytes() for one in matches]))
        put_ids(msg.ids, list(chain.from_iterable([one.ids for one in matches])))
    if matches and matches[0].metadata is not None:
        msg.metadata.extend([dumps(extra) for one in matches for extra in one.metadata or ()])
    if matches and matches[0].vectors is not None:
        parts = [one.vectors for one in matches if one.vectors is not None]
        put_matrix(msg.vectors, parts[0] if len(parts) == 1 else np.concatenate(parts))
    if result.plan is not None:
        msg.plan_json = object_to_wire(result.plan)
    if result.missing:
        msg.missing.extend(result.missing)
    if result.cost is not None:
        msg.cost.CopyFrom(cost_to_wire(result.cost))
    return msg


@reply
def result_from_wire(msg: pb.QueryReply) -> QueryResult:
    """Return the answers; their arrays are rows of writable ones.  Metadata is None where none came."""
    counts = list(msg.counts)
    total = sum(counts)
    ids = ids_from_wire(msg.ids, most=max(total, MAX_RESULTS))
    data = msg.distances
    if len(ids) != total or len(data) != 4 * total:
        raise ValueError(f"{len(ids)} ids and {len(data)} bytes of distances for {total} results")
    distances = np.frombuffer(data, "<f4").astype(np.float32) if total else np.empty(0, np.float32)
    given = msg.metadata
    if given and len(given) != total:
        raise ValueError(f"{len(given)} metadata objects for {total} results")
    metadata = [parse_metadata(extra) for extra in given] if given else None
    vectors = matrix_from_wire(msg.vectors).copy() if msg.HasField("vectors") else None
    if vectors is not None and len(vectors) != total:
        raise ValueError(f"{len(vectors)} vectors for {total} results")
    matches = []
    for high, count in zip(accumulate(counts), counts, strict=True):
        low = high - count
        matches.append(Matches(ids[low:high], distances[low:high],
                               None if metadata is None else metadata[low:high],
                               None if vectors is None else vectors[low:high]))
    plan: dict[str, Any] | None = object_from_wire(msg.plan_json) if msg.plan_json else None
    return QueryResult(matches, plan, tuple(msg.missing), cost_from_wire(msg.cost) if msg.HasField("cost") else None)


def answer_from_wire(msg: pb.QueryReply, request: QueryRequest) -> QueryResult:
    """Return the answers to a request, one for each of its queries."""
    result = result_from_wire(msg)
    if len(result.matches) != len(request.vectors):
        raise VecdbError(f"the server answered {len(result.matches)} queries of {len(request.vectors)}")
    if not (request.include_metadata or request.include_vectors) or any(one.ids for one in result.matches):
        return result
    # Nothing was found, so no columns came: they are empty, not absent.
    vectors = np.empty((0, request.vectors.shape[1]), request.vectors.dtype) if request.include_vectors else None
    empty = [Matches([], one.distances, [] if request.include_metadata else None, vectors) for one in result.matches]
    return QueryResult(empty, result.plan, result.missing, result.cost)


def cost_to_wire(cost: Cost) -> types_pb2.Cost:
    """Write what a query took."""
    return types_pb2.Cost(queue_ms=cost.queue_ms, compute_ms=cost.compute_ms, batched=cost.batched, hops=cost.hops,
                          comparisons=cost.comparisons)


def cost_from_wire(msg: types_pb2.Cost) -> Cost:
    """Return what a query took."""
    return Cost(msg.queue_ms, msg.compute_ms, msg.batched, msg.hops, msg.comparisons)
