"""The embedded engine's tests, unchanged, against a real node: over gRPC and over grpc.aio.

The functions are those of the other modules; only what ``vecdb.connect`` does with a directory is another thing.
"""

import doctest
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import vecdb
from tests.awaiting import Awaiting, awaited
from tests.engine import test_indexes, test_model, test_refusals
from tests.served import Node, over_aio, over_grpc
from vecdb.client import collection, database
from vecdb.core.errors import InvalidArgument


@pytest.fixture(params=[over_grpc, over_aio], ids=["over gRPC", "over grpc.aio"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(vecdb, "connect", request.param)
    return request.param


@pytest.mark.parametrize(("metric", "index", "seed"), [("cosine", "auto", 3)])
def test_engine_equals_model(served: Any, tmp_path: Path, metric: str, index: str, seed: int) -> None:
    test_model.test_engine_equals_model(tmp_path, metric, index, seed)


def test_readers_see_whole_moments_while_writers_write(served: Any, tmp_path: Path) -> None:
    test_model.test_readers_see_whole_moments_while_writers_write(tmp_path)


@pytest.mark.parametrize(("metric", "vector_type"), [("cosine", "float16"), ("cosine", "int8"), ("hamming", "binary")])
def test_vector_types(served: Any, tmp_path: Path, metric: str, vector_type: str) -> None:
    test_indexes.test_vector_types(tmp_path, metric, vector_type, "flat")


def test_index_through_its_life(served: Any, tmp_path: Path) -> None:
    test_indexes.test_index_through_its_life(tmp_path, "hnsw", {"quantization": "sq8"})


def test_range_search(served: Any, tmp_path: Path) -> None:
    test_indexes.test_range_search_returns_all_within_and_nothing_beyond(tmp_path)


def test_optimize_under_a_drop(served: Any, tmp_path: Path) -> None:
    test_refusals.test_optimize_under_a_drop_says_that_the_collection_is_gone(tmp_path)


EXAMPLES = [test for module in (collection, database) for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Any:
    running = Node(tmp_path_factory.mktemp("examples"), background=False)
    yield running
    running.stop()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name.removeprefix("vecdb.client."))
def test_examples_in_docstrings(node: Node, example: doctest.DocTest) -> None:
    with vecdb.connect(node.url) as db:
        for name in db.list_collections():
            db.drop_collection(name)
        example.globs.update(db=db, np=np)
        shown: list[str] = []
        result = doctest.DocTestRunner().run(example, out=shown.append)
        assert result.attempted > 0
        assert result.failed == 0, "".join(shown)


def test_the_ways_agree(node: Node) -> None:
    """One collection, seen from both clients at once."""
    rng = np.random.default_rng(11)
    rows, queries = rng.standard_normal((3_000, 8)), rng.standard_normal((700, 8))
    with vecdb.connect(node.url) as db, Awaiting() as loop:
        opened = loop.run(awaited(vecdb.connect_async(node.url)))
        other = loop.wrap(opened)
        docs = db.get_or_create_collection("both", dim=8, metric="cosine")
        seen: list[int] = []
        docs.upsert(((n, row, {"n": n}) for n, row in enumerate(rows)), batch_size=100,
                    progress=lambda *step: seen.append(step[1]))
        assert seen == list(range(100, 3_001, 100))
        far = other.collection("both")
        near = [(hits.ids, hits.distances.tolist(), hits.metadata)
                for hits in docs.query(queries, k=5, include=["metadata"])]
        assert near == [(hits.ids, hits.distances.tolist(), hits.metadata)
                        for hits in far.query(queries, k=5, include=["metadata"])]
        assert far.verify()["equal"]
        assert docs.describe().details["digest"] == far.describe().details["digest"]
        stages: list[str] = []
        docs.optimize(progress=lambda *step: stages.append(step[0]))
        assert stages
        costs = docs.query(queries[:3], k=1, profile=True)[0].cost
        assert costs.batched >= 3
        assert db.admin.server()["node_id"]
        first = far.upsert(ids=[1], vectors=rows[:1], idempotency_key="once")
        assert first.updated == 1
        assert docs.upsert(ids=[1], vectors=rows[:1], idempotency_key="once") == first
        loop.run(opened.close())


def test_a_key_is_the_same_key_in_the_sdk_and_in_rest(tmp_path: Path) -> None:
    """What one face wrote the other answers under the same key, and does not write again: that would bring deleted
    records back.  Another write under the key is refused by either."""
    running = Node(tmp_path, http_port=0, background=False)
    try:
        with vecdb.connect(running.url) as db, httpx.Client(
                base_url=f"http://127.0.0.1:{running.addresses['http_port']}/v1/collections/docs", timeout=30) as rest:
            docs = db.create_collection("docs", dim=2, metric="l2")
            assert docs.upsert(ids=[1], vectors=[[1, 1]], idempotency_key="kk").inserted == 1
            assert docs.delete(ids=[1], idempotency_key="dd").deleted == 1
            body = {"ids": [1], "vectors": [[1, 1]]}
            assert rest.post("/records", json=body, headers={"Idempotency-Key": "kk"}).json()["inserted"] == 1
            assert docs.count() == 0, "it is answered, not done"
            for key, other in (("kk", body | {"ids": [2]}), ("dd", body)):
                refused = rest.post("/records", json=other, headers={"Idempotency-Key": key})
                assert (refused.status_code, refused.json()["error"]["kind"]) == (400, "InvalidArgument")
            assert rest.post("/records", json=body, headers={"Idempotency-Key": "rr"}).json()["inserted"] == 1
            assert docs.delete(ids=[1]).deleted == 1
            assert docs.upsert(ids=[1], vectors=[[1, 1]], idempotency_key=b"rr").inserted == 1
            with pytest.raises(InvalidArgument, match="idempotency_key"):
                docs.upsert(ids=[1], vectors=[[1, 2]], idempotency_key=b"rr")
            with pytest.raises(InvalidArgument, match="idempotency_key"):
                docs.delete(ids=[1], idempotency_key="kk")
            assert docs.count() == 0
    finally:
        running.stop()
