"""Shards with fewer replicas than they are to have are given them by themselves, once there are nodes."""

import asyncio
from collections.abc import Callable
from typing import Any

from tests.unit.services.governed import Governed
from tests.unit.services.test_governor import KINDS, governor, turns
from vecdb.cluster.control import (
    JobEntry,
    job_cancel,
    node_put,
    node_state,
    place,
    replication,
    setting_put,
)
from vecdb.cluster.control.entries import NodeEntry
from vecdb.core.cluster import JobState, NodeState, Role
from vecdb.services.governor import FILLING, REST_S
from vecdb.services.operations.placing import AWAY_S


def small(*names: str, nodes: int = 2, factor: int = 3) -> Governed:
    """Collections of two shards, made when there were so many nodes."""
    governed = Governed(nodes)
    governed.do(setting_put("scrub_every_s", 0))
    governed.do(setting_put("rebalance_auto", 0))
    there = tuple(f"n{at}" for at in range(1, nodes + 1))
    for name in names or ("docs",):
        governed.collection(name, there, there)
        governed.do(replication(name, factor))
    return governed


def joined(governed: Governed, name: str) -> None:
    governed.do(node_put(NodeEntry(name, f"{name}:1", role=Role.SHARD, zone="a", commands=2, joined_s=1.0)))


def run(governed: Governed, seconds: int, meanwhile: Callable[[], object] = lambda: None) -> None:
    async def all_of_it() -> None:
        one = governor(governed)
        for _ in range(seconds):
            await turns(governed, one, 1)
            meanwhile()
        await one.stop()

    asyncio.run(all_of_it())


def jobs(governed: Governed) -> list[JobEntry]:
    return list(governed.now.jobs.values())


def placed(governed: Governed, name: str = "docs") -> list[list[str]]:
    return [sorted(governed.there[group]) for group in governed.now.get(name).shards]


def test_a_node_that_joins_takes_what_is_missing() -> None:
    governed = small()
    run(governed, 30)
    assert not jobs(governed), "there is no node for it"
    joined(governed, "n3")
    run(governed, 30)
    (job,) = jobs(governed)
    assert (job.kind, job.target, job.state, job.error, job.done) == ("replication", "docs", JobState.DONE, "", 2)
    assert job.args["why"] == "2 shards have fewer than 3 replicas"
    assert placed(governed) == [["n1", "n2", "n3"]] * 2
    run(governed, 30)
    assert len(jobs(governed)) == 1


def test_as_far_as_there_are_nodes_that_are_heard_and_no_further() -> None:
    governed = small(factor=5)
    joined(governed, "n3")
    joined(governed, "n4")
    governed.silent["n4"] = AWAY_S + 1
    run(governed, 30)
    assert placed(governed) == [["n1", "n2", "n3"]] * 2
    assert [job.state for job in jobs(governed)] == [JobState.DONE]
    governed.silent.clear()
    run(governed, 30)
    assert placed(governed) == [["n1", "n2", "n3", "n4"]] * 2
    assert [job.state for job in jobs(governed)] == [JobState.DONE] * 2


def test_no_replica_is_taken_away_by_it() -> None:
    governed = small(factor=2)
    for name in ("n3", "n4"):
        joined(governed, name)
    first, second = governed.now.get("docs").shards
    governed.do(place(first, ("n1", "n2", "n3")))
    governed.do(place(second, ("n1",)))
    run(governed, 30)
    assert len(governed.there[first]) == 3
    assert len(governed.there[second]) == 2


def test_not_where_nothing_is_repaired_by_itself_nor_while_somebody_changes_it() -> None:
    governed = small()
    joined(governed, "n3")
    governed.do(setting_put("repair_after_s", 0))
    run(governed, 30)
    assert not jobs(governed)
    governed.do(setting_put("repair_after_s", 600))
    governed.stuck = {"n3"}
    asked = governed.begin("replication", "docs", factor=3)
    run(governed, 30)
    assert [job.id for job in jobs(governed)] == [asked.id]


def test_some_collections_at_a_time() -> None:
    names = [f"docs{at}" for at in range(2 * FILLING + 1)]
    governed, most = small(*names), []
    joined(governed, "n3")
    run(governed, 150, lambda: most.append(sum(not job.state.ended for job in jobs(governed))))
    assert max(most) == FILLING
    assert all(placed(governed, name) == [["n1", "n2", "n3"]] * 2 for name in names)
    assert len(jobs(governed)) == len(names)


def test_what_somebody_cancels_is_not_begun_again_at_once() -> None:
    governed = small()
    joined(governed, "n3")
    governed.stuck = {"n3"}
    run(governed, 10)
    (job,) = jobs(governed)
    governed.do(job_cancel(job.id, at_s=governed.clock.now))
    governed.stuck = set()
    run(governed, int(REST_S) - 10)
    assert [one.state for one in jobs(governed)] == [JobState.CANCELLED]
    assert placed(governed) == [["n1", "n2"]] * 2
    run(governed, 60)
    assert [one.state for one in jobs(governed)] == [JobState.CANCELLED, JobState.DONE]
    assert placed(governed) == [["n1", "n2", "n3"]] * 2


def test_a_factor_that_is_changed_meanwhile_ends_it() -> None:
    governed = small()
    joined(governed, "n3")
    wanted: Any = {"factor": 3, "missing": True, "why": "x"}
    assert len(KINDS["replication"].wishes(governed.now, "docs", wanted, ())) == 2
    governed.do(replication("docs", 2))
    assert not KINDS["replication"].wishes(governed.now, "docs", wanted, ())
    governed.do(node_state("n3", NodeState.DRAINED))
    governed.do(replication("docs", 3))
    assert not KINDS["replication"].wishes(governed.now, "docs", wanted, ())


def test_a_plan_for_the_factor_that_it_has_says_what_is_missing() -> None:
    governed = small()
    joined(governed, "n3")
    plan = KINDS["replication"].plan(governed.now, "docs", {"factor": 3}, ["n3"])
    assert (plan.steps, plan.notes) == ((), ("2 shards lack replicas that are made once a node for it is heard",))
    plan = KINDS["replication"].plan(governed.now, "docs", {"factor": 3})
    assert (len(plan.steps), plan.notes) == (2, ())
