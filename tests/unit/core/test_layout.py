"""How a cluster is to hold a collection: what may be said, and what a database without one refuses."""

from pathlib import Path

import pytest

import vecdb
from vecdb.core.cluster import MAX_COLLECTION_SHARDS
from vecdb.core.errors import InvalidArgument, LimitExceeded, Unsupported
from vecdb.core.layout import ANYHOW, MAX_REPLICATION_FACTOR, Layout
from vecdb.v1 import collections_pb2 as c
from vecdb.wire import convert


@pytest.mark.parametrize(("layout", "given"), [
    (ANYHOW, {}), (Layout(3), {"shards": 3}), (Layout(expected_records=0), {"expected_records": 0}),
    (Layout(1, 3, "a.b", 10), {"shards": 1, "replication_factor": 3, "shard_key": "a.b", "expected_records": 10})])
def test_what_was_said(layout: Layout, given: dict[str, object]) -> None:
    assert layout.given == given


@pytest.mark.parametrize(("argument", "value"), [
    ("shards", 0), ("shards", MAX_COLLECTION_SHARDS + 1), ("shards", True), ("shards", "3"),
    ("replication_factor", 0), ("replication_factor", MAX_REPLICATION_FACTOR + 1), ("shard_key", ""),
    ("shard_key", b"x"), ("shard_key", "a..b"), ("shard_key", "x" * 300), ("expected_records", -1),
    ("expected_records", 1.5)])
def test_what_makes_no_sense_is_refused(argument: str, value: object) -> None:
    with pytest.raises(InvalidArgument) as info:
        Layout(**{argument: value})  # type: ignore[arg-type]
    assert info.value.argument == argument
    assert isinstance(info.value, LimitExceeded) == (type(value) is int or value == "x" * 300)


@pytest.mark.parametrize("layout", [ANYHOW, Layout(3), Layout(1, 2, "t", 7)])
def test_it_travels(layout: Layout) -> None:
    raw = c.CreateCollectionRequest(layout=convert.layout_to_wire(layout)).SerializeToString()
    assert convert.layout_from_wire(c.CreateCollectionRequest.FromString(raw)) == layout


@pytest.mark.parametrize(("argument", "value"), [("shards", 2), ("replication_factor", 3), ("shard_key", "tenant")])
def test_a_directory_has_one_piece_and_one_copy(tmp_path: Path, argument: str, value: object) -> None:
    with vecdb.connect(tmp_path) as db:
        with pytest.raises(Unsupported, match=f"^{argument}: ") as info:
            db.create_collection("docs", 2, **{argument: value})  # type: ignore[arg-type]
        assert info.value.fields["argument"] == argument
        assert db.list_collections() == []
        db.create_collection("docs", 2, shards=1, replication_factor=1, expected_records=10_000_000)
