"""What nobody has led for long is said to be so, at once."""

from typing import Any

import pytest

from tests.fake_cluster import FakeCluster, run, soon
from vecdb.core.calls import Consistency
from vecdb.core.errors import Unavailable
from vecdb.core.query import Count
from vecdb.core.records import DeleteIds
from vecdb.services.coordinator.unled import LOST_S

LONG = 3_600.0
"""A deadline that the test would not live to see."""


def lost(cluster: FakeCluster, seconds: float = LOST_S) -> Any:
    cluster.shard("docs").leader = None
    for own in cluster.own.values():
        own.unled_s = lambda group: seconds
    return cluster.nodes["n1"]


def test_reads_of_now_and_writes_are_refused_and_reads_of_what_there_is_are_not() -> None:
    async def test(cluster: FakeCluster) -> None:
        node = lost(cluster)
        for work in (node.count("docs", Count(), soon(LONG, consistency=Consistency.LINEARIZABLE)),
                     node.describe("docs", soon(LONG, consistency=Consistency.LINEARIZABLE)),
                     node.delete("docs", DeleteIds((1,)), soon(LONG))):
            with pytest.raises(Unavailable, match="nobody leads shard 1 of 'docs', for 30 s"):
                await work
        await node.count("docs", Count(), soon(consistency=Consistency.EVENTUAL))

    run(test)


def test_what_is_led_after_all_is_not_refused() -> None:
    async def test(cluster: FakeCluster) -> None:
        node = lost(cluster)
        cluster.shard("docs").leader = "n2"
        await node.delete("docs", DeleteIds((1,)), soon())
        lost(cluster, LOST_S - 1.0)
        with pytest.raises(Unavailable, match="no leader of 'docs' answered in time"):  # it was waited for
            await node.delete("docs", DeleteIds((2,)), soon(0.3))

    run(test)
