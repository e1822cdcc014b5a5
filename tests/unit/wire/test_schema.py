"""Schemas over the wire: unset means the default, unknown numbers are refused, every enum has its name."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb.core.errors import InvalidArgument, LimitExceeded, VecdbError
from vecdb.core.query import Description
from vecdb.core.schema import CollectionSchema, IndexKind, IndexSpec, Metric, Quantization, VectorType
from vecdb.v1 import collections_pb2, queries_pb2, records_pb2
from vecdb.v1 import types_pb2 as pb
from vecdb.wire.convert import (
    description_from_wire,
    description_to_wire,
    name_from_wire,
    schema_from_wire,
    schema_to_wire,
)

specs = st.builds(IndexSpec, kind=st.sampled_from(IndexKind), m=st.integers(2, 128),
                  ef_construction=st.integers(1, 500), ef_search=st.integers(0, 20_000),
                  quantization=st.sampled_from(Quantization), subspaces=st.integers(0, 64), bits=st.integers(1, 8),
                  nlist=st.integers(0, 1 << 20), nprobe=st.integers(0, 1 << 20), oversample=st.floats(0, 100),
                  vectors_on_disk=st.booleans())
schemas = st.builds(CollectionSchema, name=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,20}", fullmatch=True),
                    dim=st.integers(1, 32_768), metric=st.sampled_from([Metric.COSINE, Metric.DOT, Metric.L2]),
                    vector_type=st.sampled_from([kind for kind in VectorType if kind is not VectorType.BINARY]),
                    index=specs, indexed_fields=st.none() | st.lists(st.text(st.characters(codec="utf-8"), min_size=1),
                                                                     max_size=4).map(tuple))


@settings(max_examples=200, deadline=None)
@given(schemas)
def test_schemas_come_back(schema):
    assert schema_from_wire(pb.Schema.FromString(schema_to_wire(schema).SerializeToString())) == schema


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize("kind", VectorType)
def test_every_pair_that_a_collection_may_have(metric, kind):
    if (metric is Metric.HAMMING) == (kind is VectorType.BINARY):
        schema = CollectionSchema("c", 64, metric, kind)
        assert schema_from_wire(schema_to_wire(schema)) == schema


def test_enums_name_every_member():
    for wire, ours in ((pb.Metric, Metric), (pb.VectorType, VectorType), (pb.IndexKind, IndexKind),
                       (pb.Quantization, Quantization)):
        assert len(wire.items()) == len(ours) + 1


def test_unset_is_the_default():
    assert schema_from_wire(pb.Schema(name="c", dim=3)) == CollectionSchema("c", 3)
    assert schema_from_wire(pb.Schema(name="c", dim=3, indexed_fields=pb.Fields())).indexed_fields == ()


def test_every_field_of_the_schema_travels():
    for message, kind in ((pb.Schema, CollectionSchema), (pb.IndexSpec, IndexSpec)):
        assert [field.name for field in message.DESCRIPTOR.fields] == [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(("msg", "argument"), [
    (pb.Schema(name="c", dim=3, metric=9), "metric"),
    (pb.Schema(name="c", dim=3, vector_type=-1), "vector_type"),
    (pb.Schema(name="c", dim=3, index=pb.IndexSpec(kind=77)), "index"),
    (pb.Schema(name="c", dim=3, index=pb.IndexSpec(quantization=2**31 - 1)), "quantization"),
    (pb.Schema(dim=3), "name"),
    (pb.Schema(name="../up", dim=3), "name"),
    (pb.Schema(name="x" * 200, dim=3), "name"),
    (pb.Schema(name="c"), "dim"),
    (pb.Schema(name="c", dim=2**32 - 1), "dim"),
    (pb.Schema(name="c", dim=3, index=pb.IndexSpec(m=1)), "m"),
    (pb.Schema(name="c", dim=3, index=pb.IndexSpec(ef_construction=2**32 - 1)), "ef_construction"),
    (pb.Schema(name="c", dim=3, index=pb.IndexSpec(oversample=float("nan"))), "oversample"),
    (pb.Schema(name="c", dim=3, index=pb.IndexSpec(oversample=-1)), "oversample"),
    (pb.Schema(name="c", dim=3, index=pb.IndexSpec(bits=9)), "bits"),
    (pb.Schema(name="c", dim=12, metric=pb.METRIC_HAMMING), "metric"),
    (pb.Schema(name="c", dim=12, metric=pb.METRIC_HAMMING, vector_type=pb.VECTOR_TYPE_BINARY), "dim"),
    (pb.Schema(name="c", dim=3, indexed_fields=pb.Fields(paths=["a", ""])), "indexed_fields"),
    (pb.Schema(name="c", dim=3, indexed_fields=pb.Fields(paths=["a" * 257])), "indexed_fields"),
    (pb.Schema(name="c", dim=3, indexed_fields=pb.Fields(paths=["a"] * 257)), "indexed_fields"),
])
def test_refusals_name_the_argument(msg, argument):
    with pytest.raises(InvalidArgument) as caught:
        schema_from_wire(pb.Schema.FromString(msg.SerializeToString()))
    assert caught.value.argument == argument
    assert caught.value.fields["limit"] is not None


@settings(max_examples=200, deadline=None)
@given(st.builds(pb.Schema, name=st.text(st.characters(codec="utf-8"), max_size=5), dim=st.integers(0, 2**32 - 1),
                 metric=st.integers(-3, 9), vector_type=st.integers(-3, 9),
                 index=st.builds(pb.IndexSpec, kind=st.integers(-2, 8), m=st.integers(0, 2**32 - 1),
                                 bits=st.integers(0, 20), oversample=st.floats())))
def test_whatever_comes_is_a_schema_or_a_refusal(msg):
    try:
        schema = schema_from_wire(msg)
    except VecdbError:
        return
    assert schema_from_wire(schema_to_wire(schema)) == schema


def test_names_of_requests():
    assert name_from_wire(records_pb2.UpsertRequest(collection="docs")) == "docs"
    assert name_from_wire(collections_pb2.DropCollectionRequest(name="docs")) == "docs"
    for bad in (queries_pb2.QueryRequest(), collections_pb2.GetCollectionRequest(name="a/b"),
                records_pb2.CountRequest(collection="x" * 129)):
        with pytest.raises(InvalidArgument) as caught:
            name_from_wire(bad)
        assert caught.value.argument == "name"
    with pytest.raises(LimitExceeded):
        name_from_wire(collections_pb2.GetCollectionRequest(name="x" * 10_000))


def test_descriptions_come_back():
    value = Description("docs", 7, {"segments": [{"kind": "growing", "records": 7}], "bytes": {"memory": 1}})
    got = description_from_wire(description_to_wire(value))
    assert (got.name, got.records, got.details) == (value.name, value.records, value.details)
    assert description_from_wire(collections_pb2.DescribeCollectionReply(details_json=b"[1")).details == {}
