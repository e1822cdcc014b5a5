"""Writes that come without an idempotency key, in collections with several shards."""

import asyncio

from tests.fake_cluster import FakeCluster, run, soon
from tests.unit.services.test_coordinator import THREE, batch
from tests.waiting import until
from vecdb.cluster import control
from vecdb.core.filters import parse
from vecdb.core.records import DeleteWhere
from vecdb.shard import codec


async def merge(cluster: FakeCluster, *groups: int) -> int:
    """One takes the place of neighbours; its number."""
    shards = [cluster.states[-1].shards[group] for group in groups]
    heir, job = cluster.states[-1].next_group, cluster.states[-1].next_job
    await cluster.change(
        control.job_put("merge", "docs", {}),
        control.shards_add(job, "docs", [(shards[0].lo, shards[-1].hi, shards[0].replicas)]),
        control.shards_switch(job, "docs", groups, [heir]))
    return heir


def test_a_write_without_a_key_has_one_of_its_own_where_it_has_several_parts() -> None:
    """Two shards refuse their parts, which come one by one to the shard that both become."""
    everything = DeleteWhere(parse("n > 1"))

    async def test(cluster: FakeCluster) -> None:
        node = cluster.nodes["n2"]
        cluster.sealed |= {1, 2}
        writing = asyncio.create_task(node.delete("docs", everything, soon(25.0)))
        await until(lambda: len(cluster.groups[3].log) == 1 and node.counts.handed_on["sealed"] >= 2)
        heir = await merge(cluster, 1, 2)
        await writing
        keys = [codec.decode(one)[1] for group in (heir, 3) for one in cluster.groups[group].log]
        assert len(keys) == 5, "the third got it whole each time"
        assert len(set(keys)) == 1
        assert keys[0] is not None
        await node.delete("docs", everything, soon())
        again = codec.decode(cluster.groups[3].log[-1])[1]
        assert again not in (None, keys[0]), "another write is another one"
        await node.upsert("docs", batch(1), soon())
        alone = [codec.decode(one)[1] for group in (heir, 3) for one in cluster.groups[group].log]
        assert alone.count(None) == 1, "what one shard gets whole needs none"

    run(test, THREE)
