"""Shards that another node has several of are asked for in one call: what is found is what each finds by itself."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.replicated_nodes import Together, wait_for
from vecdb.rpc.peer import PEER_PREFIX
from vecdb.rpc.peers import RemoteReplicas
from vecdb.rpc.shard_reads import READ

DIM = 8
RECORDS = 300
SHARDS = 6
HANDLER = PEER_PREFIX + READ


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    running = Together(tmp_path_factory.mktemp("bundled"))
    yield running
    running.stop()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls between nodes for several shards, by what was asked."""
    found: Counter[str] = Counter()

    def count(method: str) -> None:
        call = getattr(RemoteReplicas, method)

        def counted(self: RemoteReplicas, *args: Any, **more: Any) -> Any:
            found[method] += 1
            return call(self, *args, **more)

        monkeypatch.setattr(RemoteReplicas, method, counted)

    for method in ("query_shards", "count_shards", "fetch_shards"):
        count(method)
    return found


def made(db: Any, name: str, **layout: Any) -> np.ndarray:
    docs = db.create_collection(name, dim=DIM, metric="l2", **{"shards": SHARDS, "replication_factor": 1, **layout})
    vectors = np.random.default_rng(5).normal(size=(RECORDS, DIM)).astype(np.float32)
    docs.upsert(ids=range(RECORDS), vectors=vectors, metadata=[{"t": at % 7} for at in range(RECORDS)])
    return vectors


def nearest(vectors: np.ndarray, query: np.ndarray, k: int, rest: int | None = None) -> list[int]:
    distances = ((vectors.astype(np.float64) - query) ** 2).sum(1)
    order = [int(at) for at in np.argsort(distances, kind="stable") if rest is None or at % 7 == rest]
    return order[:k]


@pytest.mark.parametrize("layout", [{}, {"shard_key": "t"}])
def test_what_is_found_is_what_there_is(nodes: Together, sent: Counter[str], layout: dict[str, Any]) -> None:
    name = f"docs{len(layout)}"
    with vecdb.connect(nodes.url) as db:
        vectors, docs = made(db, name, **layout), db[name]
        for at in range(5):
            assert docs.query(vectors[at], k=9).ids == nearest(vectors, vectors[at], 9)
        assert sent["query_shards"]
        several = docs.query(vectors[:3], k=4, filter="t >= 0", include=["metadata", "vectors"])
        for at, one in enumerate(several):
            assert one.ids == nearest(vectors, vectors[at], 4)
            assert [extra["t"] for extra in one.metadata] == [id % 7 for id in one.ids]
            assert np.array_equal(one.vectors, vectors[one.ids])
        assert docs.query(vectors[3], k=4, filter="t == 3").ids == nearest(vectors, vectors[3], 4, rest=3)
        assert docs.query(vectors[3], k=4, filter="t == 9", include=["metadata"]).ids == []
        assert docs.count() == RECORDS
        assert docs.count(filter="t == 2") == len(range(2, RECORDS, 7))
        ids = [7, 9_999, 3, 3, *range(100, 130)]
        records = docs.fetch(ids)
        assert [one.id for one in records] == [one for one in ids if one < RECORDS]
        assert [one.metadata for one in records] == [{"t": int(one.id) % 7} for one in records]
        assert np.array_equal(np.stack([one.vector for one in records if one.vector is not None]),
                              vectors[[int(one.id) for one in records]])
        assert {"count_shards", "fetch_shards"} <= set(sent)
        for number in range(4):
            docs.upsert(ids=[RECORDS + number], vectors=vectors[:1] + 50, metadata=[{"t": number}])
            assert RECORDS + number in docs.query(vectors[0] + 50, k=number + 1).ids
        assert docs.count(consistency="linearizable") == RECORDS + 4
        before = sum(sent.values())
        plan = docs.query(vectors[0], k=3, explain=True).plan
        assert len(plan["shards"]) == (SHARDS if not layout else len(plan["shards"]))
        assert sum(sent.values()) == before, "what is explained is asked for by itself"


def test_nodes_that_do_not_know_the_call_are_asked_as_ever(nodes: Together, sent: Counter[str]) -> None:
    """As while an upgrade goes on: some are of the release before."""
    with vecdb.connect(nodes.url) as db:
        vectors, docs = made(db, "older"), db["older"]
        known: list[tuple[dict[str, Any], Any]] = []
        try:
            for node in nodes.running[1:]:
                handlers = node._member._edges[0]._handlers
                known.append((handlers, handlers.pop(HANDLER)))
            for at in range(30):
                assert docs.query(vectors[at], k=5).ids == nearest(vectors, vectors[at], 5)
                assert docs.count() == RECORDS
                assert [one.id for one in docs.fetch([at, at + 100])] == [at, at + 100]
            refused = sum(sent.values())
            assert refused
            for node in nodes.running:
                node._member.node._fan._bundles._older.clear()
        finally:
            for handlers, handler in known:
                handlers[HANDLER] = handler
        assert docs.query(vectors[1], k=5).ids == nearest(vectors, vectors[1], 5)
        wait_for(lambda: (docs.query(vectors[2], k=5), sum(sent.values()))[1] > refused, "a call for several shards")
