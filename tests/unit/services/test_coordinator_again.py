"""A read that one node does not answer, and another failed to."""

import asyncio

from tests.fake_cluster import FakeCluster, run, soon
from tests.waiting import until


def test_who_failed_is_asked_again_while_another_hangs() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.frozen.add("n1")
        cluster.down.add("n3")
        reading = asyncio.create_task(cluster.nodes["n2"].count("docs", None, soon(25.0)))
        await until(lambda: {"count n1", "count n3"} <= set(cluster.asked))
        await asyncio.sleep(0)
        cluster.down.clear()
        assert await reading == 0

    run(test, placed=("n1", "n3"))
