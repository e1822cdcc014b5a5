"""Replicas of shards that were filled from others answer once they have all of it."""

import asyncio
from typing import Any

import numpy as np

from tests.fake_cluster import FakeCluster, run, soon
from tests.unit.services.test_coordinator import THREE, split
from vecdb.core.query import QueryRequest
from vecdb.services.replicas import LOOK_S


def test_a_replica_that_was_away_while_its_shard_was_filled_answers_nothing_yet() -> None:
    async def test(cluster: FakeCluster) -> None:
        new = await split(cluster, 2)
        cluster.unfilled = {("n2", new[0]), ("n3", new[0])}
        for node in ("n1", "n2", "n3"):
            for _ in range(4):  # whoever is asked
                cluster.asked.clear()
                await cluster.nodes[node].query("docs", QueryRequest(np.ones((1, 2), np.float32), 9), soon())
                assert not [one for one in cluster.engines["n2"].answered if one.endswith(f"@{new[0]}")]
                assert not [one for one in cluster.engines["n3"].answered if one.endswith(f"@{new[0]}")]
        assert [one for one in cluster.engines["n1"].answered if one.endswith(f"@{new[0]}")]
        cluster.unfilled.clear()
        await asyncio.sleep(LOOK_S)
        await cluster.nodes["n2"].query("docs", QueryRequest(np.ones((1, 2), np.float32), 9), soon())
        assert [one for one in cluster.engines["n2"].answered if one.endswith(f"@{new[0]}")], "now it has all"

    run(test, THREE)


def test_a_replica_that_took_the_place_of_one_that_had_all_is_not_taken_for_it() -> None:
    """It is opened anew while a session that wrote to the shard's predecessor waits for the one before."""
    async def test(cluster: FakeCluster) -> None:
        new = await split(cluster, 2)
        node, hosted = cluster.nodes["n2"], cluster.own["n2"]._hosted
        replicator: Any = cluster.own["n2"].replicator(new[0])
        waited = replicator.wait_applied

        async def replaced(log_index: int, deadline: float | None) -> None:
            await waited(log_index, deadline)
            hosted.lives.clear()  # type: ignore[attr-defined]

        replicator.wait_applied = replaced
        await node.query("docs", QueryRequest(np.ones((1, 2), np.float32), 9), soon(session=((2, 1),)))
        assert not node.know.is_whole(new[0])
        await node.query("docs", QueryRequest(np.ones((1, 2), np.float32), 9), soon(session=((2, 1),)))
        assert node.know.is_whole(new[0])

    run(test, THREE)
