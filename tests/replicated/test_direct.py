"""Clients that ask the shards' nodes themselves: they find what others find, and their way when shards change."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.awaiting import Awaiting, awaited
from tests.replicated_nodes import Together, wait_for
from vecdb.core.cluster import JobState
from vecdb.core.errors import Unsupported

DIM = 8
RECORDS = 600


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    running = Together(tmp_path_factory.mktemp("direct"))
    for node in running.running:
        node._member.governing.governor.operations["split"].grace_s = 0.1
    yield running
    running.stop()


def asked(db: Any) -> int:
    """Calls that went to shards' nodes."""
    return int(db._session._backend._do.asked_direct)


def made(db: Any, name: str, **layout: Any) -> np.ndarray:
    docs = db.create_collection(name, dim=DIM, metric="l2", **layout)
    vectors = np.random.default_rng(3).normal(size=(RECORDS, DIM)).astype(np.float32)
    docs.upsert(ids=range(RECORDS), vectors=vectors, metadata=[{"t": at % 7} for at in range(RECORDS)])
    return vectors


def shards_on(maps: Any, name: str) -> list[Any]:
    """Of the map that a client has; none while it has none."""
    return list(maps[name].map.shards) if name in maps else []


def announced(nodes: Together) -> None:
    wait_for(lambda: all(len(node._member.control.state.nodes) == 3 for node in nodes.running), "announcements")


def known(nodes: Together, db: Any, name: str) -> None:
    """Until the map says where all nodes are for clients."""
    announced(nodes)
    wait_for(lambda: (db[name].query([0.0] * DIM, k=1), asked(db))[1], "a call that goes direct")


def same(some: Any, others: Any) -> None:
    assert [one.ids for one in some] == [one.ids for one in others]
    for a, b in zip(some, others, strict=True):
        assert a.distances.tolist() == b.distances.tolist()


@pytest.mark.parametrize("layout", [{"shards": 3, "replication_factor": 1}, {"shards": 4}, {"shards": 1},
                                    {"shards": 3, "replication_factor": 1, "shard_key": "t"}])
def test_answers_are_those_of_the_usual_way(nodes: Together, layout: dict[str, Any]) -> None:
    name = "docs-" + "-".join(f"{key[:2]}{value}" for key, value in layout.items())
    with vecdb.connect(nodes.url) as db, vecdb.connect(nodes.url, direct=True) as direct:
        vectors = made(db, name, **layout)
        known(nodes, direct, name)
        usual, mine = db[name], direct[name]
        for k, where in ((5, None), (50, "t == 3"), (3, "t in [1, 2] and t != 1")):
            before = asked(direct)
            same(mine.query(vectors[:9], k=k, filter=where, include=["metadata"]),
                 usual.query(vectors[:9], k=k, filter=where, include=["metadata"]))
            assert asked(direct) == before + 1
        ids = [7, 9_999, 3, 3, 500]
        assert [(one.id, one.metadata, one.vector.tolist()) for one in mine.fetch(ids)] == \
            [(one.id, one.metadata, one.vector.tolist()) for one in usual.fetch(ids)]
        for number in range(5):  # what was written by this handle is found by it, be it on another replica
            mine.upsert(ids=[RECORDS + number], vectors=vectors[:1] + 50, metadata=[{"t": 1}])
            assert RECORDS + number in mine.query(vectors[0] + 50, k=number + 1).ids
        assert mine.count(consistency="linearizable") == RECORDS + 5
        assert len(mine.query(vectors[0], k=3, consistency="linearizable")) == 3
        plan = mine.query(vectors[0], k=3, explain=True).plan
        assert plan is not None


def test_a_map_from_before_a_split_is_let_go_of(nodes: Together) -> None:
    with vecdb.connect(nodes.url) as db, vecdb.connect(nodes.url, direct=True) as direct:
        vectors = made(db, "split", shards=2, replication_factor=1)
        known(nodes, direct, "split")
        expected = db["split"].query(vectors[:20], k=5)
        maps = direct._session._backend._do._maps  # type: ignore[attr-defined]
        before = maps["split"].map
        job = db.admin.cluster.begin("split", str(before.shards[0].group), {})
        wait_for(lambda: db.admin.cluster.job(job).state == JobState.DONE, "the end of the split", 60)
        for _ in range(3):
            same(direct["split"].query(vectors[:20], k=5), expected)
            assert [one.id for one in direct["split"].fetch(range(20))] == list(range(20))
        wait_for(lambda: (direct["split"].query(vectors[:1], k=1), len(shards_on(maps, "split")) == 3)[1],
                 "a map of what is there now")
        assert maps["split"].map.epoch > before.epoch


def test_what_fails_goes_the_usual_way(nodes: Together, monkeypatch: pytest.MonkeyPatch) -> None:
    with vecdb.connect(nodes.url) as db, vecdb.connect(nodes.url, direct=True) as direct:
        vectors = made(db, "fails", shards=2, replication_factor=1)
        known(nodes, direct, "fails")
        for link in direct._session._backend._links.all.values():  # type: ignore[attr-defined]
            link.channel.close()
        before = asked(direct)
        assert direct["fails"].query(vectors[1], k=1).ids == [1]
        assert [one.id for one in direct["fails"].fetch([4])] == [4]
        assert asked(direct) == before


def test_asyncio_asks_directly_too(nodes: Together) -> None:
    with vecdb.connect(nodes.url) as db, Awaiting() as loop:
        vectors = made(db, "aio", shards=3, replication_factor=1)
        announced(nodes)

        async def whole() -> int:
            async with await vecdb.connect_async(nodes.url, direct=True) as direct:
                docs = await direct.collection("aio")
                assert (await docs.query(vectors[5], k=1)).ids == [5]
                assert [one.id for one in await docs.fetch([8, 2])] == [8, 2]
                return int(direct._session._node._do.asked_direct)

        assert loop.run(awaited(whole())) >= 2


def test_a_node_that_is_alone_has_no_map(tmp_path: Path) -> None:
    from tests.served import Node

    node = Node(tmp_path)
    try:
        with vecdb.connect(node.url, direct=True) as db:
            docs = db.create_collection("docs", dim=2)
            docs.upsert(ids=[1], vectors=[[1, 0]])
            assert docs.query([1, 0], k=1).ids == [1]
            assert asked(db) == 0
            with pytest.raises(Unsupported, match="shards"):
                db.create_collection("more", dim=2, shards=2)
    finally:
        node.stop()
