"""Hostile bytes as each request: protobuf refuses to parse them, or a VecdbError comes out, or a checked value.

Every run draws the same inputs (derandomized, and seeds fixed in the text), so that a failure here is one everywhere.
"""

import random
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import VecdbError
from vecdb.core.filters import parse, to_text
from vecdb.core.fingerprint import token_of
from vecdb.core.ids import check_ids
from vecdb.core.limits import MAX_BATCH_RECORDS, MAX_K, MAX_METADATA_BYTES, MAX_POSITIONS
from vecdb.core.metadata import check_metadata, parse_metadata
from vecdb.core.query import QueryRequest, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch
from vecdb.core.schema import CollectionSchema, IndexSpec
from vecdb.core.vectors import check_vectors, stored_dtype
from vecdb.v1 import collections_pb2, queries_pb2, records_pb2, types_pb2
from vecdb.wire import convert as wire
from vecdb.wire.status import from_error, from_status

QUIET = settings(max_examples=250, deadline=None, derandomize=True, database=None,
                 suppress_health_check=list(HealthCheck))

SCHEMAS = (CollectionSchema("docs", 8), CollectionSchema("docs", 8, "l2", "uint8"),
           CollectionSchema("docs", 16, "hamming", "binary"), CollectionSchema("docs", 8, "dot", "float16"))
SCHEMA = SCHEMAS[0]
VECTORS = check_vectors(SCHEMA, np.random.default_rng(1).normal(size=(3, 8)))
LONG = parse(f"a in [{', '.join(f'{n}' for n in range(3_000))}]")


def _checked_vectors(schema: CollectionSchema, vectors: np.ndarray) -> None:
    assert vectors.dtype == stored_dtype(schema)
    assert vectors.flags.carray
    assert vectors.shape[1] == schema.row_items
    assert len(vectors) > 0
    again = check_vectors(schema, vectors)
    np.testing.assert_allclose(again.astype(np.float64), vectors.astype(np.float64), atol=2e-3)


def read_upsert(msg: records_pb2.UpsertRequest, schema: CollectionSchema) -> None:
    batch = wire.upsert_from_wire(msg, schema)
    _checked_vectors(schema, batch.vectors)
    assert check_ids(list(batch.ids)) == list(batch.ids)
    assert len(set(batch.ids)) == len(batch.ids) == len(batch.vectors) == len(batch.metadata)
    for one in batch.metadata:
        assert check_metadata(parse_metadata(one)) == one
    token_of(msg.idempotency_key or b"key", batch)


def read_query(msg: queries_pb2.QueryRequest, schema: CollectionSchema) -> None:
    read_options(msg)
    request = wire.query_from_wire(msg, schema)
    _checked_vectors(schema, request.vectors)
    assert 1 <= request.k <= MAX_K
    assert request.within is None or abs(request.within) < float("inf")
    assert request.filter is None or to_text(request.filter)


def read_options(msg: Any) -> None:
    call = Call()
    wire.read_from_wire(msg, call)
    assert call.consistency in Consistency
    assert len(dict(call.session)) == len(call.session) <= MAX_POSITIONS


def read_delete(msg: records_pb2.DeleteRequest, schema: CollectionSchema) -> None:
    command = wire.delete_from_wire(msg)
    assert isinstance(command, DeleteIds | DeleteWhere)
    token_of(msg.idempotency_key or b"key", command)


def read_update(msg: records_pb2.UpdateMetadataRequest, schema: CollectionSchema) -> None:
    update = wire.update_from_wire(msg, schema)
    assert len(update.ids) == len(update.patch)
    assert all(len(one) <= MAX_METADATA_BYTES for one in update.patch)
    token_of(msg.idempotency_key or b"key", update)


def read_scan(msg: records_pb2.ScanRequest, schema: CollectionSchema) -> None:
    read_options(msg)
    assert 1 <= wire.scan_from_wire(msg, schema).limit <= MAX_BATCH_RECORDS


def read_fetch(msg: records_pb2.FetchRequest, schema: CollectionSchema) -> None:
    read_options(msg)
    ids = list(wire.fetch_from_wire(msg, schema).ids)
    assert check_ids(ids) == ids


def read_count(msg: records_pb2.CountRequest, schema: CollectionSchema) -> None:
    read_options(msg)
    where = wire.count_from_wire(msg)
    assert where is None or to_text(where)


def read_schema(msg: collections_pb2.CreateCollectionRequest, schema: CollectionSchema) -> None:
    made = wire.schema_from_wire(msg.schema)
    assert CollectionSchema.from_json(made.to_json()) == made


Reader = Callable[[Any, CollectionSchema], None]
CASES: list[tuple[Message, Reader]] = [
    (wire.upsert_to_wire("docs", UpsertBatch((1, "two", 3), VECTORS, (b'{"a":1}', b"{}", b'{"b":["x",{"c":null}]}')),
                         b"key", tag=3), read_upsert),
    (wire.upsert_to_wire("docs", UpsertBatch((1, 2, 3), VECTORS, (b"{}",) * 3), normalized=False), read_upsert),
    (wire.query_to_wire("docs", QueryRequest(VECTORS[:1], 7, parse("a > 1 and b in ['x', 'y']"), 0.5, explain=True)),
     read_query),
    (wire.query_to_wire("docs", QueryRequest(VECTORS, 10, LONG, include_vectors=True)), read_query),
    (wire.delete_to_wire("docs", DeleteIds((1, "x", 2)), b"key"), read_delete),
    (wire.delete_to_wire("docs", DeleteWhere(parse("not (a == 1 or exists b.c)"))), read_delete),
    (wire.update_to_wire("docs", UpdateMetadata((1, "b"), (b'{"a":1}', b'{"a":null}'))), read_update),
    (wire.fetch_to_wire("docs", [1, 2, "c"]), read_fetch),
    (wire.scan_to_wire("docs", ScanRequest(parse("a == 1"), 10, 77, True, True)), read_scan),
    (wire.count_to_wire("docs", parse("a startswith 'x'")), read_count),
    (collections_pb2.CreateCollectionRequest(schema=wire.schema_to_wire(CollectionSchema(
        "docs", 96, index=IndexSpec("ivf_pq", nlist=16), indexed_fields=("a", "b.c")))), read_schema),
]
NAMES = [f"{place}-{type(msg).__name__}" for place, (msg, _) in enumerate(CASES)]


def attempt(kind: type[Message], data: bytes, read: Reader, schema: CollectionSchema = SCHEMA) -> bool:
    """Whether a checked value came out; anything but the two refusals fails the test."""
    try:
        msg = kind.FromString(data)
    except DecodeError:
        return False
    steps: list[Callable[[], Any]] = [lambda: read(msg, schema)]
    if hasattr(msg, "collection"):
        steps.append(lambda: wire.name_from_wire(msg))
    refusals = []
    for step in steps:
        try:
            step()
        except VecdbError as error:
            refusals.append(str(error))
    assert all(len(words) < 4_000 for words in refusals)
    return not refusals


@pytest.mark.parametrize(("msg", "read"), CASES, ids=NAMES)
def test_untouched_they_are_taken(msg, read):
    read(type(msg).FromString(msg.SerializeToString()), SCHEMA)


@pytest.mark.parametrize(("msg", "read"), CASES, ids=NAMES)
def test_cut_anywhere(msg, read):
    data = msg.SerializeToString()
    for end in range(0, len(data), max(1, len(data) // 200)):
        attempt(type(msg), data[:end], read)


@pytest.mark.parametrize(("msg", "read"), CASES, ids=NAMES)
def test_flipped_swapped_and_repeated(msg, read):
    data = msg.SerializeToString()
    for seed in range(250):
        rng = random.Random(f"{type(msg).__name__} {seed}")
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        if seed % 3 == 1:  # fields again, and out of their order
            low, high = sorted(rng.randrange(len(damaged) + 1) for _ in range(2))
            damaged = damaged[high:] + damaged[low:] + damaged
        attempt(type(msg), bytes(damaged), read, SCHEMAS[seed % len(SCHEMAS)])


@QUIET
@given(st.binary(max_size=120), st.sampled_from(range(len(CASES))), st.sampled_from(SCHEMAS))
def test_noise(data, place, schema):
    msg, read = CASES[place]
    attempt(type(msg), data, read, schema)


integers = st.sampled_from((0, 1, 2, 3, 8, 16, 100_001, 2**31 - 1, 2**31, 2**32 - 1))
enums = st.integers(-2, 9) | st.sampled_from((2**31 - 1, -(2**31)))
texts = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(("docs", "x" * 200, "../x", "a > 1", "("))
jsons = st.binary(max_size=12) | st.sampled_from(
    (b"{}", b"[]", b'{"a":1}', b'{"a":NaN}', b'{"a":1,"a":2}', b"[" * 3_000, b'{"a":' * 3_000, b'{"a":1e999}',
     b'{"a":123456789012345678901}', b'{"a":"\\ud800"}', b'{"$and":[{"a":1}]}', b'{"a":{"$in":[1,"x",null]}}'))
numbers = st.lists(st.floats(width=32), max_size=24).map(lambda values: struct.pack(f"<{len(values)}f", *values))
rows_of_8 = st.integers(1, 3).map(lambda rows: 8 * rows)
matrices = st.one_of(
    st.builds(types_pb2.Matrix, rows=integers, items=integers, dtype=enums, data=numbers | st.binary(max_size=64)),
    rows_of_8.flatmap(lambda size: st.binary(min_size=size, max_size=size)).map(
        lambda data: types_pb2.Matrix(rows=len(data) // 8, items=8, dtype=types_pb2.DATA_TYPE_UINT8, data=data)),
    rows_of_8.flatmap(lambda size: st.lists(st.floats(width=32), min_size=size, max_size=size)).map(
        lambda data: types_pb2.Matrix(rows=len(data) // 8, items=8, dtype=types_pb2.DATA_TYPE_FLOAT32,
                                      data=struct.pack(f"<{len(data)}f", *data))))
id_columns = st.builds(types_pb2.Ids, integers=st.binary(max_size=24), strings=st.lists(texts, max_size=3),
                       kinds=st.binary(max_size=4)) \
    | st.lists(st.integers(-1, 5), max_size=3).map(
        lambda values: types_pb2.Ids(integers=struct.pack(f"<{len(values)}q", *values)))
filters = (st.builds(types_pb2.Filter, expression=texts) | st.builds(types_pb2.Filter, json=jsons)
           | st.just(types_pb2.Filter()))
positions = st.builds(types_pb2.Position, shard=st.integers(0, 3), log_index=st.integers(0, 2**64 - 1))
reads = st.none() | st.builds(types_pb2.ReadOptions, consistency=enums, session=st.lists(positions, max_size=5))


@QUIET
@given(st.builds(records_pb2.UpsertRequest, collection=texts, ids=id_columns, vectors=matrices,
                 metadata=st.lists(jsons, max_size=3), idempotency_key=st.binary(max_size=70),
                 normalized=st.booleans()),
       st.sampled_from(SCHEMAS))
def test_upserts_of_odd_fields(msg, schema):
    attempt(type(msg), msg.SerializeToString(), read_upsert, schema)


@QUIET
@given(st.builds(queries_pb2.QueryRequest, collection=texts, vectors=matrices, k=integers, filter=filters,
                 within=st.none() | st.floats(), ef_search=integers, nprobe=integers, with_vectors=st.booleans(),
                 normalized=st.booleans(), read=reads), st.sampled_from(SCHEMAS))
def test_queries_of_odd_fields(msg, schema):
    attempt(type(msg), msg.SerializeToString(), read_query, schema)


@QUIET
@given(st.builds(records_pb2.DeleteRequest, ids=id_columns) | st.builds(records_pb2.DeleteRequest, filter=filters)
       | st.builds(records_pb2.UpdateMetadataRequest, ids=id_columns, patches=st.lists(jsons, max_size=3))
       | st.builds(records_pb2.ScanRequest, filter=filters, limit=integers, after=st.integers(0, 2**64 - 1),
                   with_vectors=st.booleans(), read=reads)
       | st.builds(records_pb2.CountRequest, filter=filters, read=reads)
       | st.builds(records_pb2.FetchRequest, ids=id_columns, read=reads), st.sampled_from(SCHEMAS))
def test_other_requests_of_odd_fields(msg, schema):
    read = next(read for case, read in CASES if type(case) is type(msg))
    attempt(type(msg), msg.SerializeToString(), read, schema)


@QUIET
@given(st.integers(-5, 20), texts, st.binary(max_size=80), st.builds(
    types_pb2.Error, code=st.integers(-(2**31), 2**31 - 1), message=texts,
    kind=texts | st.sampled_from(("InvalidFilter", "DataCorrupted")), fields_json=jsons, retry_after_s=st.floats(),
    request_id=texts))
def test_errors_of_a_hostile_server(code, message, details, error):
    assert isinstance(from_status(code, message, details), VecdbError)
    assert isinstance(from_error(error), VecdbError)


@pytest.mark.parametrize("read", [wire.result_from_wire, wire.page_from_wire, wire.records_from_wire])
def test_answers_of_a_hostile_server(read):
    kind = {wire.result_from_wire: queries_pb2.QueryReply, wire.page_from_wire: records_pb2.ScanReply,
            wire.records_from_wire: records_pb2.FetchReply}[read]
    good = kind(ids=wire.ids_to_wire([1, "b"]), vectors=wire.matrix_to_wire(VECTORS[:2]), metadata=[b"{}", b'{"a":1}'])
    if kind is queries_pb2.QueryReply:
        good.counts.extend((1, 1))
        good.distances = bytes(8)
    read(good)
    data, wrong = good.SerializeToString(), 0
    for seed in range(300):
        rng = random.Random(seed)
        damaged = bytearray(data)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            read(kind.FromString(bytes(damaged[:rng.choice((len(damaged), rng.randrange(len(damaged)))) or None])))
        except (DecodeError, VecdbError):
            wrong += 1
    assert wrong > 50


def nested(levels: int) -> bytes:
    """A message of unknown groups inside each other, which a recursive parser would follow."""
    return b"\xfb\x07" * levels + b"\xfc\x07" * levels


MILLION = 1_000_000


def where(data: bytes) -> records_pb2.CountRequest:
    return records_pb2.CountRequest(filter=types_pb2.Filter(json=data))


def upsert(**fields: Any) -> records_pb2.UpsertRequest:
    given = {"ids": wire.ids_to_wire(range(3)), "vectors": wire.matrix_to_wire(VECTORS), **fields}
    return records_pb2.UpsertRequest(**given)


FLOODS: dict[str, tuple[Message, Reader]] = {
    "deep filter": (where(b'{"$not":' * MILLION), read_count),
    "many objects": (where(b"[" + b"{}," * MILLION + b"{}]"), read_count),
    "many keys": (where(b"{" + b",".join(b'"%d":1' % n for n in range(MILLION // 2)) + b"}"), read_count),
    "many values": (where(b'{"a":{"$in":[' + b"1," * MILLION + b"1]}}"), read_count),
    "escaped quotes": (where(b'{"a":"' + b'\\"' * MILLION + b"{" * MILLION), read_count),
    "long integer": (where(b'{"a":' + b"9" * MILLION + b"}"), read_count),
    "rows without data": (upsert(vectors=types_pb2.Matrix(rows=2**32 - 1, items=2**32 - 1, dtype=3)), read_upsert),
    "queries of no width": (queries_pb2.QueryRequest(vectors=types_pb2.Matrix(rows=100_000, dtype=1), k=100),
                            read_query),
    "metadata of blanks": (upsert(metadata=[b" " * MILLION] * 3), read_upsert),
    "empty strings": (records_pb2.FetchRequest(ids=types_pb2.Ids(strings=[""] * 200_000)), read_fetch),
    "empty metadata": (upsert(metadata=[b""] * 200_000), read_upsert),
    "negative ids": (records_pb2.DeleteRequest(ids=types_pb2.Ids(integers=b"\xff" * 8 * MAX_BATCH_RECORDS)),
                     read_delete),
}


@pytest.mark.timeout(60)  # work that grows with the square of the bytes would take hours
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_takes_no_more_than_some_times_its_bytes(name):
    msg, read = FLOODS[name]
    data = msg.SerializeToString()
    tracemalloc.start()
    try:
        assert not attempt(type(msg), data, read)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(data) + (32 << 20)


@pytest.mark.parametrize("levels", [50, 10_000, 500_000])
def test_nested_unknown_fields_are_refused_or_ignored(levels):
    for msg, read in CASES[:3]:
        attempt(type(msg), msg.SerializeToString() + nested(levels), read)
