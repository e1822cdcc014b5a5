"""Queries and answers over the wire."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb.core.errors import (
    DimensionMismatch,
    InvalidArgument,
    LimitExceeded,
    NonFiniteVector,
    SchemaChanged,
    VecdbError,
)
from vecdb.core.filters import parse
from vecdb.core.query import Columns, Cost, Matches, QueryRequest, QueryResult
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import check_queries
from vecdb.v1 import queries_pb2 as pb
from vecdb.v1 import types_pb2
from vecdb.wire import convert as wire

SCHEMA = CollectionSchema("docs", 4)
FIELDS = ("k", "filter", "within", "ef_search", "nprobe", "exact", "include_metadata", "include_vectors", "explain",
          "profile")


def over(msg):
    return type(msg).FromString(msg.SerializeToString())


def stored(rows, schema=SCHEMA):
    return check_queries(schema, np.random.default_rng(rows).normal(size=(rows, schema.dim)))[0]


requests = st.builds(
    QueryRequest, st.integers(1, 5).map(stored), st.integers(1, 10_000), st.none() | st.just(parse("a > 1")),
    st.none() | st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 20_000), st.integers(0, 1 << 20),
    st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans())


@settings(max_examples=100, deadline=None)
@given(requests, st.integers(0, 2**64 - 1))
def test_requests_come_back(request, tag):
    msg = over(wire.query_to_wire("docs", request, tag))
    got = wire.query_from_wire(msg, SCHEMA)
    assert [getattr(got, name) for name in FIELDS] == [getattr(request, name) for name in FIELDS]
    assert got.vectors.tobytes() == request.vectors.tobytes()
    assert got.vectors.shape == request.vectors.shape
    assert got.vectors.flags.carray
    assert (msg.collection, msg.tag) == ("docs", tag)


def test_every_field_of_a_request_travels():
    assert {*FIELDS, "vectors", "shape"} == set(QueryRequest.__dataclass_fields__)
    assert len(pb.QueryRequest.DESCRIPTOR.fields) == len(FIELDS) + 6  # vectors collection normalized tag shape read


def test_what_was_checked_against_another_schema_is_refused():
    other = CollectionSchema("docs", SCHEMA.dim, "dot" if SCHEMA.metric != "dot" else "l2")
    request = QueryRequest(stored(1), 3, shape=SCHEMA.shape)
    assert wire.query_from_wire(wire.query_to_wire("docs", request), SCHEMA).shape == SCHEMA.shape
    with pytest.raises(SchemaChanged):
        wire.query_from_wire(wire.query_to_wire("docs", request), other)


def test_unset_is_the_default():
    got = wire.query_from_wire(pb.QueryRequest(vectors=wire.matrix_to_wire(stored(1))), SCHEMA)
    plain = QueryRequest(got.vectors, 10)
    assert [getattr(got, name) for name in FIELDS] == [getattr(plain, name) for name in FIELDS]
    near = pb.QueryRequest(vectors=wire.matrix_to_wire(stored(1)), within=0.0)
    assert wire.query_from_wire(near, SCHEMA).within == 0.0


ONE = wire.matrix_to_wire(stored(1))
WIDE = CollectionSchema("docs", 32_768, "l2", "int8")


@pytest.mark.parametrize(("msg", "schema", "kind", "argument"), [
    (pb.QueryRequest(), SCHEMA, InvalidArgument, "vector"),
    (pb.QueryRequest(vectors=ONE, k=10_001), SCHEMA, LimitExceeded, "k"),
    (pb.QueryRequest(vectors=ONE, k=2**32 - 1), SCHEMA, LimitExceeded, "k"),
    (pb.QueryRequest(vectors=ONE, ef_search=20_001), SCHEMA, LimitExceeded, "ef_search"),
    (pb.QueryRequest(vectors=ONE, nprobe=(1 << 20) + 1), SCHEMA, LimitExceeded, "nprobe"),
    (pb.QueryRequest(vectors=ONE, within=float("nan")), SCHEMA, InvalidArgument, "within"),
    (pb.QueryRequest(vectors=ONE, within=float("inf")), SCHEMA, InvalidArgument, "within"),
    (pb.QueryRequest(vectors=ONE, filter=types_pb2.Filter(expression="a ==")), SCHEMA, InvalidArgument, "filter"),
    (pb.QueryRequest(vectors=types_pb2.Matrix(rows=100_001, dtype=1)), SCHEMA, LimitExceeded, "vector"),
    (pb.QueryRequest(vectors=types_pb2.Matrix(rows=2**32 - 1, dtype=1)), SCHEMA, LimitExceeded, "vector"),
    (pb.QueryRequest(vectors=types_pb2.Matrix(rows=2_000, dtype=1), k=10_000), SCHEMA, LimitExceeded, "k"),
    (pb.QueryRequest(vectors=types_pb2.Matrix(rows=10, dtype=1), k=10_000, with_vectors=True), WIDE, LimitExceeded,
     "include"),
    (pb.QueryRequest(vectors=types_pb2.Matrix(rows=1, items=4, dtype=9, data=bytes(16))), SCHEMA, InvalidArgument,
     "vector"),
    (pb.QueryRequest(vectors=wire.matrix_to_wire(np.ones((1, 5), np.float32))), SCHEMA, DimensionMismatch, "vector"),
    (pb.QueryRequest(vectors=wire.matrix_to_wire(np.zeros((1, 4), np.float32))), SCHEMA, NonFiniteVector, "vector"),
    (pb.QueryRequest(vectors=wire.matrix_to_wire(np.array([[1, 2, 3, 4], [1, np.nan, 0, 0]]))), SCHEMA, NonFiniteVector,
     "vector[1]"),
])
def test_refusals_name_the_argument(msg, schema, kind, argument):
    with pytest.raises(kind) as caught:
        wire.query_from_wire(over(msg), schema)
    assert caught.value.argument == argument
    assert argument == "filter" or caught.value.fields["limit"] is not None


def test_fields_of_a_later_version_are_ignored():
    data = wire.query_to_wire("docs", QueryRequest(stored(2), 7)).SerializeToString() + b"\xfa\x7f\x03abc"
    msg = pb.QueryRequest.FromString(data)
    assert len(msg.SerializeToString()) == len(data)
    assert wire.query_from_wire(msg, SCHEMA).k == 7


@st.composite
def results(draw):
    metadata, vectors = draw(st.booleans()), draw(st.booleans())
    kinds = draw(st.sampled_from([st.integers(0, 2**63 - 1), st.text("abc", min_size=1, max_size=4),
                                  st.integers(0, 9) | st.text("ab", min_size=1, max_size=3)]))
    matches = []
    for n in draw(st.lists(st.integers(0, 4), min_size=1, max_size=5)):
        matches.append(Matches(
            [draw(kinds) for _ in range(n)], np.sort(np.float32(draw(st.lists(st.floats(-9, 9, width=32), min_size=n,
                                                                               max_size=n)))),
            [{"n": i, "x": [None, 1.5]} for i in range(n)] if metadata else None,
            np.full((n, 4), n, np.float16) if vectors else None))
    cost = draw(st.none() | st.builds(Cost, st.floats(0, 9), st.floats(0, 9), st.integers(1, 99),
                                          st.integers(0, 2**63)))
    return QueryResult(matches, draw(st.none() | st.just({"segments": [{"kind": "hnsw", "hops": 3}]})),
                       draw(st.sampled_from([(), ("segment 3 of docs",)])), cost)


@settings(max_examples=150, deadline=None)
@given(results())
def test_results_come_back(result):
    msg = over(wire.result_to_wire(result, 5))
    got = wire.result_from_wire(msg)
    assert msg.tag == 5
    assert (got.plan, got.missing, got.cost) == (result.plan, result.missing, result.cost)
    total = sum(len(one.ids) for one in result.matches)
    assert len(got.matches) == len(result.matches)
    for one, expected in zip(got.matches, result.matches, strict=True):
        assert one.ids == expected.ids
        assert one.distances.dtype == np.float32
        assert one.distances.tobytes() == expected.distances.tobytes()
        assert one.metadata == (expected.metadata if total else None)
        if expected.vectors is None:
            assert one.vectors is None
        else:
            assert one.vectors.shape == expected.vectors.shape
            assert one.vectors.tobytes() == expected.vectors.tobytes()


def test_arrays_of_an_answer_are_the_callers():
    got = wire.result_from_wire(wire.result_to_wire(QueryResult([Matches([1], np.zeros(1, np.float32), None,
                                                                         np.zeros((1, 4), np.float32))])))
    got.matches[0].distances[0] = 1
    got.matches[0].vectors[0, 0] = 1


def test_plans_may_hold_what_numpy_counts():
    result = QueryResult([Matches([], np.empty(0, np.float32))],
                         {"hops": np.int64(3), "share": np.float32(0.5), "per": np.arange(2), 7: {"b": b"\x01"}})
    assert wire.result_from_wire(wire.result_to_wire(result)).plan == {"hops": 3, "share": 0.5, "per": [0, 1],
                                                                       "7": {"b": "01"}}


@pytest.mark.parametrize("msg", [
    pb.QueryReply(counts=[2], ids=wire.ids_to_wire([1]), distances=bytes(8)),
    pb.QueryReply(counts=[1], ids=wire.ids_to_wire([1]), distances=bytes(3)),
    pb.QueryReply(counts=[1], ids=wire.ids_to_wire([1]), distances=bytes(4), metadata=[b"{}", b"{}"]),
    pb.QueryReply(counts=[1], ids=wire.ids_to_wire([1]), distances=bytes(4), metadata=[b"{"]),
    pb.QueryReply(counts=[2**32 - 1] * 9, ids=wire.ids_to_wire([1]), distances=bytes(4)),
    pb.QueryReply(counts=[1], ids=wire.ids_to_wire([1]), distances=bytes(4), vectors=types_pb2.Matrix(rows=2, dtype=1)),
    pb.QueryReply(counts=[1], ids=types_pb2.Ids(strings=[""]), distances=bytes(4)),
])
def test_a_reply_that_cannot_be_is_no_fault_of_the_caller(msg):
    with pytest.raises(VecdbError, match="the server's reply") as caught:
        wire.result_from_wire(msg)
    assert not isinstance(caught.value, InvalidArgument)


@pytest.mark.parametrize(("queries", "k"), [(1, 1), (1, 10), (7, 3), (64, 10)])
def test_columns_are_a_list_of_matches_and_travel_like_one(queries: int, k: int) -> None:
    random = np.random.default_rng(4)
    columns = Columns(random.integers(0, 2**62, (queries, k)), random.random((queries, k), np.float32))
    listed = list(columns)
    assert len(columns) == len(listed) == queries
    for place, one in enumerate(listed):
        assert one.ids == columns[place].ids == columns.ids[place].tolist()
        assert one.distances.tobytes() == columns[place].distances.tobytes() == columns.distances[place].tobytes()
    part = columns[1:3]
    assert isinstance(part, Columns)
    assert [one.ids for one in part] == [one.ids for one in listed[1:3]]
    for tag in (0, 300):
        raw = wire.result_to_wire(QueryResult(columns), tag).SerializeToString()
        assert raw == wire.result_to_wire(QueryResult(listed), tag).SerializeToString()
