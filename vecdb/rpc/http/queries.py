"""Nearest neighbours."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import orjson

from vecdb.core.errors import LimitExceeded
from vecdb.core.query import Matches, QueryRequest, QueryResult
from vecdb.core.schema import CollectionSchema, Metric, check_name
from vecdb.core.vectors import check_queries
from vecdb.rpc.http import arrays, models
from vecdb.rpc.http.bodies import read
from vecdb.rpc.http.checks import check, one_of
from vecdb.rpc.http.models import MAX_QUERIES, MAX_RESULTS
from vecdb.rpc.http.operations import Operation, Request
from vecdb.rpc.http.records import item_bytes, refuse_bytes
from vecdb.rpc.http.replies import Reply, dumps, runs
from vecdb.rpc.http.seeing import see

TAG: Final = "queries"


async def query(request: Request) -> Reply:
    schema = await request.node.schema(check_name(request.path["name"]), request.call)
    given, asked = await request.apart(len(request.body), _request, schema, request.body)
    see(request, given)
    result = await request.node.query(schema.name, asked, request.call)
    each = item_bytes(schema, given.include)
    size = sum(len(one.ids) for one in result.matches) * each
    return await request.apart(size, _reply, schema, given, result, each)


def _request(schema: CollectionSchema, body: bytes) -> tuple[models.Query, QueryRequest]:
    given = check(models.Query, read(body))
    which = one_of(given, "vector", "vectors")
    if which == "vector":
        vectors = arrays.one_query(schema, given.vector)
    else:
        vectors = arrays.vectors(schema, given.vectors, MAX_QUERIES,
                                 checked=lambda schema, raw: check_queries(schema, raw, "vectors")[0])
    rows = len(vectors)
    if rows * given.k > MAX_RESULTS:
        raise LimitExceeded("k", f"{rows} queries of k={given.k} ask for more than {MAX_RESULTS} results in one REST "
                            "call", got=rows * given.k, limit=MAX_RESULTS)
    if "vector" in given.include:
        refuse_bytes(schema, rows * given.k, "include")
    return given, QueryRequest(vectors, given.k, arrays.where(given.filter), given.within, given.ef_search,
                               given.nprobe, given.exact, "metadata" in given.include, "vector" in given.include,
                               given.explain, given.profile, schema.shape)


def _reply(schema: CollectionSchema, given: models.Query, result: QueryResult, each: int) -> Reply:
    out: dict[str, Any] = {"results": [{"matches": _matches(schema, one, given.encoding, each)}
                                       for one in result.matches]}
    if result.plan is not None:
        out["plan"] = result.plan
    if result.missing:
        out["missing"] = result.missing
    if result.cost is not None:
        out["cost"] = dataclasses.asdict(result.cost)
    return Reply(200, dumps(out))


def _matches(schema: CollectionSchema, found: Matches, encoding: models.Encoding, each: int) -> orjson.Fragment:
    """float32 scalars are written as the shortest text that reads back the same."""
    distances = np.asarray(found.distances, np.float32)
    whole = np.float32(1.0 if schema.metric is Metric.COSINE else 0.0)
    items: Sequence[dict[str, Any]] = [
        {"id": identity, "distance": distance, "score": score}
        for identity, distance, score in zip(found.ids, distances, whole - distances, strict=True)]
    if found.metadata is not None:
        for item, extra in zip(items, found.metadata, strict=True):
            item["metadata"] = extra
    if found.vectors is not None:
        for item, row in zip(items, found.vectors, strict=True):
            item["vector"] = arrays.to_json(row, encoding)
    return runs(items, each)


def operations() -> list[Operation]:
    return [Operation("POST", "/v1/collections/{name}:query", "query", "Queries/Query",
                      "The nearest records to one vector or to each of many", TAG, query, {200: models.QueryReply},
                      bodies=(models.Query,), errors=(404,))]
