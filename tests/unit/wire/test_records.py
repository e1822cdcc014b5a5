"""Writes, fetches, scans and counts over the wire: round trips, limits, refusals in the words of the API."""

import json

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb.core.errors import (
    DimensionMismatch,
    InvalidArgument,
    InvalidFilter,
    InvalidMetadata,
    LimitExceeded,
    VecdbError,
)
from vecdb.core.filters import parse
from vecdb.core.filters.tree import Everything
from vecdb.core.limits import MAX_BATCH_RECORDS, MAX_METADATA_BYTES, MAX_METADATA_DEPTH
from vecdb.core.metadata import check_metadata
from vecdb.core.query import ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import check_vectors
from vecdb.v1 import records_pb2 as pb
from vecdb.v1 import types_pb2
from vecdb.wire import convert as wire

SCHEMA = CollectionSchema("docs", 4)
L2 = CollectionSchema("docs", 4, "l2")

ids = st.lists(st.integers(0, 2**63 - 1) | st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
               min_size=1, max_size=8, unique_by=lambda one: (type(one), one))
scalars = (st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1)
           | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(codec="utf-8"), max_size=8))
objects = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.", max_size=2), inner, max_size=3),
    max_leaves=4), max_size=3)


def over(msg):
    return type(msg).FromString(msg.SerializeToString())


def batch_of(schema, n=3, metadata=None):
    vectors = check_vectors(schema, np.random.default_rng(n).normal(size=(n, schema.dim)))
    return UpsertBatch(tuple(range(n)), vectors, tuple(metadata or [b"{}"] * n))


@settings(max_examples=40, deadline=None)
@given(ids, st.data(), st.sampled_from([SCHEMA, L2, CollectionSchema("docs", 4, "cosine", "float16"),
                                        CollectionSchema("docs", 4, "dot", "uint8")]))
def test_upserts_come_back_to_the_bit(given_ids, data, schema):
    n = len(given_ids)
    values = data.draw(st.lists(st.lists(st.integers(1, 200), min_size=4, max_size=4), min_size=n, max_size=n))
    metadata = data.draw(st.lists(objects, min_size=n, max_size=n))
    batch = UpsertBatch(tuple(given_ids), check_vectors(schema, values), tuple(map(check_metadata, metadata)))
    msg = over(wire.upsert_to_wire("docs", batch, b"key", tag=9))
    got = wire.upsert_from_wire(msg, schema)
    assert got.ids == batch.ids
    assert got.metadata == batch.metadata
    assert got.vectors.tobytes() == batch.vectors.tobytes()
    assert got.vectors.dtype == batch.vectors.dtype
    assert got.vectors.flags.carray
    assert (msg.tag, msg.idempotency_key, wire.name_from_wire(msg)) == (9, b"key", "docs")


def test_empty_metadata_is_not_sent():
    assert not wire.upsert_to_wire("docs", batch_of(L2)).metadata
    assert wire.upsert_from_wire(wire.upsert_to_wire("docs", batch_of(L2)), L2).metadata == (b"{}",) * 3


def test_of_equal_ids_the_last_wins():
    msg = wire.upsert_to_wire("docs", UpsertBatch((1, "1", 1, 2), np.arange(16, dtype=np.float32).reshape(4, 4),
                                                  (b'{"n":0}', b'{"n":1}', b'{"n":2}', b'{"n":3}')))
    got = wire.upsert_from_wire(msg, L2)
    assert got.ids == ("1", 1, 2)
    assert got.metadata == (b'{"n":1}', b'{"n":2}', b'{"n":3}')
    assert got.vectors[:, 0].tolist() == [4.0, 8.0, 12.0]
    assert got.vectors.flags.carray


def changed(**fields):
    msg = wire.upsert_to_wire("docs", batch_of(SCHEMA))
    for name, value in fields.items():
        if value is None:
            msg.ClearField(name)
        elif name == "metadata":
            msg.metadata.extend(value)
        else:
            getattr(msg, name).CopyFrom(value)
    return over(msg)


@pytest.mark.parametrize(("msg", "kind", "argument"), [
    (pb.UpsertRequest(), InvalidArgument, "vectors"),
    (changed(vectors=None), InvalidArgument, "vectors"),
    (changed(ids=None), InvalidArgument, "ids"),
    (changed(ids=wire.ids_to_wire([1, 2])), InvalidArgument, "ids"),
    (changed(metadata=[b"{}"]), InvalidArgument, "metadata"),
    (changed(metadata=[b"{}", b"[]", b"{}"]), InvalidMetadata, "metadata[1]"),
    (changed(metadata=[b"{}", b"{}", b'{"a":{"b":NaN}}']), InvalidMetadata, "metadata[2]"),
    (changed(vectors=wire.matrix_to_wire(np.ones((3, 5), np.float32))), DimensionMismatch, "vectors"),
    (changed(vectors=types_pb2.Matrix(rows=MAX_BATCH_RECORDS + 1, items=0, dtype=1)), LimitExceeded, "vectors"),
    (changed(vectors=types_pb2.Matrix(rows=2**32 - 1, items=2**32 - 1, dtype=1)), LimitExceeded, "vectors"),
    (changed(vectors=types_pb2.Matrix(rows=3, items=4, dtype=1, data=b"short")), InvalidArgument, "vectors"),
])
def test_upserts_that_are_refused(msg, kind, argument):
    with pytest.raises(kind) as caught:
        wire.upsert_from_wire(msg, SCHEMA)
    assert caught.value.argument == argument


def test_a_batch_is_bounded_by_its_bytes():
    wide = CollectionSchema("docs", 32_768, "l2")
    rows = (64 << 20) // (4 * 32_768) + 1
    msg = pb.UpsertRequest(vectors=types_pb2.Matrix(rows=rows, items=32_768, dtype=1),
                           ids=wire.ids_to_wire(range(rows)))
    with pytest.raises(LimitExceeded, match="bytes in one batch"):
        wire.upsert_from_wire(msg, wide)
    many = 1_100
    full = orjson.dumps({"a": "x" * (MAX_METADATA_BYTES - 9)})
    msg = pb.UpsertRequest(vectors=wire.matrix_to_wire(np.ones((many, 4), np.float32)),
                           ids=wire.ids_to_wire(range(many)), metadata=[full] * many)
    with pytest.raises(LimitExceeded, match="vectors included") as caught:
        wire.upsert_from_wire(msg, L2)
    assert caught.value.argument == "metadata"


# -- metadata


@settings(max_examples=80, deadline=None)
@given(objects, st.booleans(), st.sampled_from([None, 2]))
def test_metadata_in_any_spelling_becomes_what_the_facade_stores(value, ascii_only, indent):
    spelled = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert orjson.loads(wire.metadata_from_wire(spelled, 0)) == value
    assert wire.metadata_from_wire(spelled, 0) == check_metadata(value)
    assert wire.metadata_from_wire(check_metadata(value), 0) == check_metadata(value)


def nested(levels):
    return b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)


@pytest.mark.parametrize(("data", "words"), [
    (b"", "not JSON"), (b"null", "must be an object"), (b"[1]", "must be an object"), (b'"x"', "must be an object"),
    (b"{", "not JSON"), (b'{"a":1}{}', "not JSON"), (b"\xff", "not UTF-8"), (b'{"a":"\xc3"}', "not UTF-8"),
    (b'{"a":NaN}', "NaN"), (b'{"a":-Infinity}', "Infinity"), (b'{"a":1e999}', "finite"),
    (b'{"a":1,"a":2}', "stands twice"), (b'{"x":{"a":1,"b":2,"a":3}}', "stands twice"),
    (b'{"a":18446744073709551616}', "outside"), (b'{"a":-9223372036854775809}', "outside"),
    (b'{"a":' + b"9" * 5_000 + b"}", "not JSON|outside"), (b'{"a":"\\ud800"}', "surrogate"),
    (b'{"\\udc00":1}', "surrogate"), (b"[" * 100_000, "nested too deep"), (b'{"a":' * 60_000, "nested too deep"),
    (nested(MAX_METADATA_DEPTH + 1), "nested deeper"), (nested(500), "nested deeper"),
    (b'{"a":"' + b"x" * MAX_METADATA_BYTES + b'"}', "more than 65536"), (b" " * (MAX_METADATA_BYTES * 8 + 1), "bytes"),
    (b'{"a":[' + b"1," * 40_000 + b"1]}", "more than 65536"), (b"{'a':1}", "not JSON"), (b"\xef\xbb\xbf{}", "JSON"),
], ids=lambda value: repr(value[:24]))
def test_hostile_metadata(data, words):
    with pytest.raises(InvalidMetadata, match=words) as caught:
        wire.metadata_from_wire(data, 7)
    assert caught.value.argument.startswith("metadata[7]")
    assert len(str(caught.value)) < 1_000


def test_the_deepest_metadata_passes():
    assert wire.metadata_from_wire(nested(MAX_METADATA_DEPTH), 0) == nested(MAX_METADATA_DEPTH)


# -- delete and update


def test_deletes_come_back():
    for command in (DeleteIds((3, "x", 1)), DeleteIds(()), DeleteWhere(parse("a > 1")), DeleteWhere(Everything())):
        msg = over(wire.delete_to_wire("docs", command, b"k"))
        assert wire.delete_from_wire(msg) == command
        assert msg.idempotency_key == b"k"
    assert wire.delete_from_wire(pb.DeleteRequest(ids=wire.ids_to_wire([2, 1, 2]))) == DeleteIds((2, 1))


def test_a_delete_of_nothing_said_is_refused():
    with pytest.raises(InvalidArgument, match="either ids or filter"):
        wire.delete_from_wire(pb.DeleteRequest(collection="docs"))
    for form in (types_pb2.Filter(), types_pb2.Filter(json=b"{}")):
        with pytest.raises(InvalidFilter, match="every record"):
            wire.delete_from_wire(pb.DeleteRequest(filter=form))


def test_updates_come_back_and_one_patch_for_all_travels_once():
    each = UpdateMetadata((1, "b", 1), (b'{"a":1}', b'{"a":null}', b"{}"), merge=False)
    assert wire.update_from_wire(over(wire.update_to_wire("docs", each)), SCHEMA) == each
    same = UpdateMetadata((1, 2, 3), (b'{"a":1}',) * 3)
    msg = over(wire.update_to_wire("docs", same))
    assert len(msg.patches) == 1
    assert wire.update_from_wire(msg, SCHEMA) == same
    assert wire.update_from_wire(over(wire.update_to_wire("docs", UpdateMetadata((), ()))), SCHEMA).ids == ()


def test_updates_that_are_refused():
    ids_msg = wire.ids_to_wire([1, 2, 3])
    for patches, kind in (((), InvalidMetadata), ([b"{}"] * 2, InvalidArgument), ([b"1"], InvalidMetadata)):
        with pytest.raises(kind) as caught:
            wire.update_from_wire(pb.UpdateMetadataRequest(ids=ids_msg, patches=patches), SCHEMA)
        assert caught.value.argument.startswith("metadata")
    wide = CollectionSchema("docs", 32_768)
    with pytest.raises(LimitExceeded) as caught:
        wire.update_from_wire(pb.UpdateMetadataRequest(ids=wire.ids_to_wire(range(600)), patches=[b"{}"]), wide)
    assert caught.value.argument == "ids"


# -- reads


def test_fetches_come_back():
    for flags in ((True, True), (False, True), (True, False), (False, False)):
        msg = over(wire.fetch_to_wire("docs", [1, "a"], *flags))
        assert wire.fetch_from_wire(msg, SCHEMA) == ((1, "a"), *flags)
    with pytest.raises(LimitExceeded, match="vectors of 600 records"):
        wire.fetch_from_wire(wire.fetch_to_wire("docs", range(600)), CollectionSchema("docs", 32_768))
    assert len(wire.fetch_from_wire(wire.fetch_to_wire("docs", range(600), True, False),
                                    CollectionSchema("docs", 32_768)).ids) == 600


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("metadata", [True, False])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_records_come_back(vectors, metadata, n):
    rows = np.arange(12, dtype=np.float16).reshape(3, 4)
    records = [Record(i or "zero", {"n": i, "x": [1.5, None]} if metadata else {}, rows[i] if vectors else None)
               for i in range(n)]
    got = wire.records_from_wire(over(wire.records_to_wire(records)))
    assert [(one.id, one.metadata) for one in got] == [(one.id, one.metadata) for one in records]
    for one, expected in zip(got, records, strict=True):
        if vectors:
            assert one.vector.dtype == np.float16
            assert one.vector.tolist() == expected.vector.tolist()
            one.vector[0] = 0  # the caller's own, as embedded
        else:
            assert one.vector is None


def test_scans_come_back():
    for request in (ScanRequest(), ScanRequest(parse("a == 1"), 10, 77, False, True),
                    ScanRequest(None, 100_000, 2**63 - 1)):
        assert wire.scan_from_wire(over(wire.scan_to_wire("docs", request)), SCHEMA) == request
    assert wire.scan_from_wire(pb.ScanRequest(), SCHEMA) == ScanRequest()
    large = pb.ScanRequest(limit=10_000, with_vectors=True)
    assert wire.scan_from_wire(large, CollectionSchema("docs", 32_768)).limit == 512
    for msg, argument in ((pb.ScanRequest(limit=100_001), "limit"), (pb.ScanRequest(after=2**63), "after"),
                          (pb.ScanRequest(filter=types_pb2.Filter(expression="a ==")), "filter")):
        with pytest.raises(InvalidArgument) as caught:
            wire.scan_from_wire(msg, SCHEMA)
        assert caught.value.argument == argument


@pytest.mark.parametrize("cursor", [None, 0, 5])
def test_pages_come_back(cursor):
    vectors = np.arange(8, dtype=np.float32).reshape(2, 4)
    for page in (ScanPage([1, "b"], [{"a": 1}, {}], vectors, cursor), ScanPage([1, 2], None, None, cursor),
                 ScanPage([], None, vectors[:0], cursor)):
        got = wire.page_from_wire(over(wire.page_to_wire(page)))
        assert (got.ids, got.metadata, got.cursor) == (page.ids, page.metadata, page.cursor)
        assert (got.vectors is None) == (page.vectors is None)
        if page.vectors is not None:
            assert got.vectors.shape == page.vectors.shape
            assert got.vectors.tobytes() == page.vectors.tobytes()


def test_counts_and_write_results_come_back():
    assert wire.count_from_wire(over(wire.count_to_wire("docs", None))) is None
    assert wire.count_from_wire(over(wire.count_to_wire("docs", parse("a > 1")))) == parse("a > 1")
    value = WriteResult(1, 2, 3, 4, 2**63)
    assert wire.write_result_from_wire(over(wire.write_result_to_wire(value))) == value


@pytest.mark.parametrize("msg", [
    pb.FetchReply(ids=types_pb2.Ids(integers=b"123")), pb.FetchReply(metadata=[b"{}"]),
    pb.FetchReply(ids=wire.ids_to_wire([1]), metadata=[b"{"]),
    pb.FetchReply(ids=wire.ids_to_wire([1]), vectors=types_pb2.Matrix(rows=2, items=0, dtype=1)),
    pb.FetchReply(ids=wire.ids_to_wire([1]), vectors=types_pb2.Matrix(rows=1, items=1)),
])
def test_a_reply_that_cannot_be_is_no_fault_of_the_caller(msg):
    with pytest.raises(VecdbError, match="the server's reply") as caught:
        wire.records_from_wire(msg)
    assert not isinstance(caught.value, InvalidArgument)
    assert caught.value.code == "INTERNAL"
