"""A collection that is dropped and made anew with another schema never takes what was checked against the old one."""

from pathlib import Path

import numpy as np
import pytest

import vecdb
from tests.served import Node
from vecdb.core.errors import SchemaChanged
from vecdb.core.query import QueryRequest
from vecdb.core.records import UpsertBatch


def test_the_engine_refuses_what_was_checked_against_another_schema(tmp_path: Path) -> None:
    with vecdb.connect(tmp_path) as db:
        shape = db.create_collection("docs", dim=2, metric="cosine").schema.shape
        db.drop_collection("docs")
        docs = db.create_collection("docs", dim=2, metric="dot")
        assert docs.schema.shape != shape
        with db._session.call() as backend:
            with pytest.raises(SchemaChanged):
                backend.upsert("docs", UpsertBatch((1,), np.ones((1, 2), np.float32), (b"{}",), shape))
            with pytest.raises(SchemaChanged):
                backend.query("docs", QueryRequest(np.ones((1, 2), np.float32), 1, shape=shape))
        assert docs.count() == 0


def test_a_client_with_an_old_schema_in_mind_writes_by_the_new_one(tmp_path: Path) -> None:
    node = Node(tmp_path)
    try:
        with vecdb.connect(node.url, schema_ttl=3_600) as old, vecdb.connect(node.url) as other:
            docs = old.create_collection("docs", dim=2, metric="cosine")
            docs.upsert(ids=[1], vectors=[[3.0, 4.0]])
            other.drop_collection("docs")
            other.create_collection("docs", dim=2, metric="l2")
            docs.upsert(ids=[2], vectors=[[3.0, 4.0]])
            assert docs.get(2).vector.tolist() == [3.0, 4.0], "not the unit vector that cosine would store"
            other.drop_collection("docs")
            other.create_collection("docs", dim=2, metric="dot")
            docs.upsert(((i, [3.0 * i, 4.0 * i]) for i in range(1, 50)), batch_size=5, parallel=3)
            assert docs.get(7).vector.tolist() == [21.0, 28.0]
            hit = docs.query([1.0, 0.0], k=1)[0]
            assert (hit.id, hit.score) == (49, 147.0)
    finally:
        node.stop()
