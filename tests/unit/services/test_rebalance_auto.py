"""Shards that move by themselves: when, how many at a time, and when not."""

import asyncio
from typing import Any

from tests.unit.services.governed import Governed
from tests.unit.services.test_governor import governor, spread, turns
from vecdb.cluster.control import job_put, node_put, node_state, setting_put
from vecdb.cluster.control.entries import NodeEntry
from vecdb.cluster.loads import ShardLoad
from vecdb.core.cluster import JobState, NodeState, Role
from vecdb.services.governor import BEGIN_S, MOVES, UNEVEN_S

SHARDS = [tuple(f"n{(at + more) % 3 + 1}" for more in range(2)) for at in range(12)]


def filled() -> Governed:
    governed = Governed(3)
    governed.do(setting_put("repair_after_s", 0))
    governed.do(setting_put("scrub_every_s", 0))
    governed.collection("docs", *SHARDS)
    return governed


def joined(governed: Governed) -> None:
    governed.do(node_put(NodeEntry("n4", "h4:1", role=Role.SHARD, zone="a", commands=2, joined_s=1.0)))


def jobs(governed: Governed) -> list[Any]:
    return [one for one in governed.now.jobs.values() if one.kind == "rebalance"]


def run(governed: Governed, seconds: float) -> None:
    async def all_of_it() -> None:
        one = governor(governed)
        await turns(governed, one, int(seconds))
        await one.stop()

    asyncio.run(all_of_it())


def test_who_joins_gets_a_share_by_itself_a_few_at_a_time_and_once() -> None:
    governed = filled()
    joined(governed)
    most = []

    async def watched() -> None:
        one = governor(governed)
        for _ in range(int(UNEVEN_S) + 120):
            await turns(governed, one, 1)
            most.append(sum(sorted(governed.there[group]) != sorted(governed.now.shards[group].desired)
                            for group in governed.there))
        await one.stop()

    asyncio.run(watched())
    (job,) = jobs(governed)
    assert (job.state, job.args["at_once"]) == (JobState.DONE, MOVES)
    assert 1 <= max(most) <= MOVES
    assert all(5 <= count <= 7 for count in spread(governed).values())
    before = dict(governed.there)
    run(governed, 3 * UNEVEN_S)
    assert (len(jobs(governed)), governed.there) == (1, before), "it is even enough, and stays as it is"


def test_not_before_its_time_nor_while_somebody_is_away_or_something_else_is_placed_nor_where_it_is_off() -> None:
    governed = filled()
    joined(governed)
    run(governed, UNEVEN_S - BEGIN_S)
    assert not jobs(governed), "new leaders count anew"
    governed.silent["n2"] = 60.0
    run(governed, 2 * UNEVEN_S)
    assert not jobs(governed)
    governed.silent.clear()
    governed.stuck = {"n4"}
    governed.do(job_put("move", str(next(iter(governed.there))), {"from": "n1", "to": "n4"}))
    run(governed, 2 * UNEVEN_S)
    assert not jobs(governed)
    governed = filled()
    joined(governed)
    governed.do(setting_put("rebalance_auto", 0))
    run(governed, 2 * UNEVEN_S)
    assert not jobs(governed)
    governed.do(node_state("n4", NodeState.DRAINED))
    governed.do(setting_put("rebalance_auto", 1))
    run(governed, 2 * UNEVEN_S)
    assert not jobs(governed), "nobody is given anything who was drained"


def test_who_is_drained_and_stopped_and_who_is_lost_and_repaired_is_not_waited_for() -> None:
    governed = filled()
    joined(governed)
    governed.do(node_put(NodeEntry("n5", "h5:1", role=Role.SHARD, zone="a", commands=2, joined_s=1.0)))
    governed.do(node_put(NodeEntry("c9", "h9:1", role=Role.COORDINATOR, zone="a", commands=2, joined_s=1.0)))
    governed.do(node_state("n5", NodeState.DRAINED))
    governed.silent |= {"n5": 3_600.0, "c9": 3_600.0}
    run(governed, UNEVEN_S + 60)
    (job,) = jobs(governed)
    assert job.state is JobState.DONE
    governed = filled()
    joined(governed)
    governed.do(setting_put("repair_after_s", 600))
    governed.silent["n3"] = 60.0
    run(governed, 2 * UNEVEN_S)
    assert not jobs(governed), "it may come back, and holds replicas"
    governed.silent["n3"] = 3_600.0
    run(governed, 2 * UNEVEN_S)
    assert spread(governed)["n3"] == 0
    before = spread(governed)
    governed.do(node_put(NodeEntry("n6", "h6:1", role=Role.SHARD, zone="a", commands=2, joined_s=1.0)))
    run(governed, 2 * UNEVEN_S)
    assert all(4 <= count <= 8 for node, count in spread(governed).items() if node != "n3"), (before, spread(governed))


def test_who_leads_again_counts_anew() -> None:
    governed = filled()
    joined(governed)

    async def by_turns() -> None:
        one = governor(governed)
        await turns(governed, one, int(UNEVEN_S / 2))
        governed.leads = False
        await turns(governed, one, int(UNEVEN_S))
        governed.leads, governed.term = True, governed.term + 2
        await turns(governed, one, int(UNEVEN_S / 2))
        assert not jobs(governed)
        await turns(governed, one, int(UNEVEN_S))
        assert jobs(governed)
        await one.stop()

    asyncio.run(by_turns())


def test_shards_that_do_more_than_others_part_by_themselves() -> None:
    governed = Governed(3)
    governed.collection("docs", *[(f"n{at % 3 + 1}",) for at in range(12)])
    run(governed, 2 * UNEVEN_S)
    assert not jobs(governed)
    busy = [group for group, nodes in governed.there.items() if nodes == ("n1",)]
    governed.measured = {group: ShardLoad(1e9, 2.0 if group in busy else 0.02) for group in governed.there}
    run(governed, UNEVEN_S + 60)
    (job,) = jobs(governed)
    assert job.state is JobState.DONE
    assert sorted(map(int, job.args["weights"])) == sorted(governed.there)
    assert len({governed.there[group] for group in busy}) > 1
