"""Jobs from beginning to end: what they want is reached, whoever runs them and however often that changes."""

import asyncio
from random import Random
from typing import Any

import pytest

from tests.unit.services.governed import Control, Governed
from vecdb.cluster.control import JobEntry, NodeEntry, job_cancel, job_update, node_put, node_state, place
from vecdb.core.calls import Call
from vecdb.core.cluster import JobState, NodeState, Role
from vecdb.core.errors import (
    CollectionNotFound,
    InvalidArgument,
    NodeNotFound,
    NoNodeForReplica,
    ShardNotFound,
    Unavailable,
    VecdbError,
)
from vecdb.services import governor as governing
from vecdb.services.administration import OwnOperations
from vecdb.services.governor import Governor
from vecdb.services.operations.base import Step
from vecdb.services.operations.kinds import Drain, Move, Rebalance, Repair, Replication
from vecdb.services.operations.placing import AWAY_S, PATIENCE_S, RECEIVE_AT_ONCE

KINDS = {one.kind: one for one in (Move(), Replication(), Drain(), Repair(), Rebalance())}


def governor(governed: Governed, operations: Any = KINDS) -> Governor:
    return Governor("c1", Control(governed), governed.replicas, governed, governed.clock, operations)


async def turns(governed: Governed, one: Governor, count: int) -> None:
    for _ in range(count):
        await one.look()
        await asyncio.gather(*(run.task for run in one._runs.values() if run.task is not None))
        governed.move()
        governed.clock.now += 1.0


async def until_ended(governed: Governed, job: JobEntry, *, seed: int = 0) -> JobEntry:
    """With another node leading now and then, which knows nothing of what was done before."""
    random, one = Random(seed), governor(governed)
    for _ in range(400):
        await turns(governed, one, 1)
        if governed.now.jobs[job.id].state.ended:
            return governed.now.jobs[job.id]
        if random.random() < 0.3:
            await one.stop()
            one = governor(governed)
        for group, nodes in governed.there.items():
            assert len(nodes) >= 2, f"shard {group} has lost copies on the way"
    raise AssertionError(f"it does not end: {governed.now.jobs[job.id]}")


def spread(governed: Governed) -> dict[str, int]:
    counts: dict[str, int] = dict.fromkeys(governed.now.nodes, 0)
    for nodes in governed.there.values():
        for node in nodes:
            counts[node] += 1
    return counts


@pytest.mark.parametrize("seed", range(4))
def test_a_drained_node_is_empty_and_stays_so(seed: int) -> None:
    governed = Governed(5)
    governed.collection("docs", *[tuple(f"n{(at + more) % 4 + 1}" for more in range(2)) for at in range(12)])
    job = asyncio.run(until_ended(governed, governed.begin("drain", "n1"), seed=seed))
    assert (job.state, job.error) == (JobState.DONE, "")
    assert governed.now.nodes["n1"].state is NodeState.DRAINED
    assert spread(governed)["n1"] == 0
    assert not governed.now.loads().get("n1")
    assert job.done == job.total == 6


class Counted:
    """Five steps, of which none waits for anything."""

    kind = "move"

    def __init__(self) -> None:
        self.steps = 0

    async def step(self, job: Any, context: Any) -> Step:
        self.steps += 1
        return Step("done", state=JobState.DONE) if self.steps == 5 else Step("on", again_s=0.0)


def test_a_job_goes_on_at_once_where_its_step_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(governing, "LOOK_S", 3_600.0)

    async def run() -> None:
        governed = Governed(3)
        job, one = governed.begin("move", "1"), governor(governed, {"move": Counted()})
        one.start()
        async with asyncio.timeout(60):
            while not governed.now.jobs[job.id].state.ended:
                await asyncio.sleep(0.001)
        await one.stop()
        assert governed.now.jobs[job.id].state is JobState.DONE

    asyncio.run(run())


def test_a_move_waits_for_its_node_and_can_be_taken_back() -> None:
    async def run() -> None:
        governed = Governed(4)
        governed.collection("docs", ("n1", "n2"))
        governed.stuck = {"n4"}
        job, one = governed.begin("move", "1", **{"from": "n2", "to": "n4"}), governor(governed)
        await turns(governed, one, 10)
        assert governed.now.jobs[job.id].state is JobState.RUNNING
        assert governed.now.shards[1].desired == ("n1", "n4")
        assert governed.there[1] == ("n1", "n2"), "nothing is given up for a node that is not there"
        governed.do(job_cancel(job.id, at_s=governed.clock.now))
        await turns(governed, one, 3)
        assert governed.now.jobs[job.id].state is JobState.CANCELLED
        assert sorted(governed.now.shards[1].desired) == ["n1", "n2"]
        await one.stop()

    asyncio.run(run())


def test_a_move_of_a_shard_that_nobody_leads_says_what_it_waits_for() -> None:
    async def run() -> None:
        governed = Governed(4)
        governed.collection("docs", ("n1", "n2"))
        held = governed.there.pop(1)
        job, one = governed.begin("move", "1", **{"from": "n2", "to": "n4"}), governor(governed)
        await turns(governed, one, 20)
        assert "nobody leads shard 1 of 'docs'" in governed.now.jobs[job.id].error
        governed.there[1] = held
        await turns(governed, one, 60)
        assert (governed.now.jobs[job.id].state, governed.now.jobs[job.id].error) == (JobState.DONE, "")
        await one.stop()

    asyncio.run(run())


def test_a_lost_node_is_repaired_by_itself_and_one_that_comes_back_is_left_alone() -> None:
    async def run() -> None:
        governed = Governed(5)
        governed.collection("docs", ("n1", "n2", "n3"), ("n1", "n3", "n4"))
        one = governor(governed)
        governed.silent["n1"] = 599.0
        await turns(governed, one, 10)
        assert not governed.now.jobs, "it may come back"
        governed.silent["n1"] = 601.0
        await turns(governed, one, 60)
        (job,) = governed.now.jobs.values()
        assert (job.kind, job.target, job.state) == ("repair", "n1", JobState.DONE)
        assert spread(governed)["n1"] == 0
        governed.silent["n2"] = AWAY_S - 1
        early = governed.begin("repair", "n2")
        await turns(governed, one, 10)
        assert governed.now.jobs[early.id].state is JobState.DONE
        assert governed.now.loads()["n2"], "it is heard"
        await one.stop()

    asyncio.run(run())


def test_replication_goes_up_and_down() -> None:
    governed = Governed(5)
    governed.collection("docs", ("n1", "n2"), ("n2", "n3"))
    assert asyncio.run(until_ended(governed, governed.begin("replication", "docs", factor=4))).state is JobState.DONE
    assert [len(nodes) for nodes in governed.there.values()] == [4, 4]
    assert governed.now.get("docs").replication_factor == 4
    assert asyncio.run(until_ended(governed, governed.begin("replication", "docs", factor=2))).state is JobState.DONE
    assert [len(nodes) for nodes in governed.there.values()] == [2, 2]


def test_rebalancing_sends_no_node_more_than_it_may_at_once() -> None:
    async def run() -> None:
        governed = Governed(3)
        governed.collection("docs", *[("n1", "n2")] * 20)
        job, one = governed.begin("rebalance", ""), governor(governed)
        for _ in range(200):
            await turns(governed, one, 1)
            coming = sum("n3" in entry.desired and "n3" not in governed.there[entry.group]
                         for entry in governed.now.shards.values())
            assert coming <= RECEIVE_AT_ONCE
            if governed.now.jobs[job.id].state.ended:
                break
        assert governed.now.jobs[job.id].state is JobState.DONE
        assert max(spread(governed).values()) - min(spread(governed).values()) <= 2
        await one.stop()

    asyncio.run(run())


def test_plans_say_what_would_be_done_and_why_not() -> None:
    governed = Governed(3, "ab")
    governed.collection("docs", ("n1", "n2", "n3"))
    state = governed.now
    with pytest.raises(NoNodeForReplica, match="no other node"):
        KINDS["drain"].plan(state, "n1", {})
    with pytest.raises(NodeNotFound, match="no node"):
        KINDS["drain"].plan(state, "n9", {})
    with pytest.raises(InvalidArgument, match="is heard"):
        KINDS["repair"].plan(state, "n1", {})
    with pytest.raises(NoNodeForReplica, match="there are 3"):
        KINDS["replication"].plan(state, "docs", {"factor": 4})
    with pytest.raises(InvalidArgument):
        KINDS["replication"].plan(state, "docs", {"factor": "4"})
    with pytest.raises(ShardNotFound, match="no shard 999"):
        KINDS["move"].plan(state, "999", {"from": "n1", "to": "n2"})
    for target in ("docs", "9" * 5_000):
        with pytest.raises(InvalidArgument):
            KINDS["move"].plan(state, target, {})
    with pytest.raises(CollectionNotFound):
        state.labelled("docs@" + "9" * 5_000)
    plan = KINDS["replication"].plan(state, "docs", {"factor": 2})
    assert [(one.action, one.target) for one in plan.steps] == [("remove", "1")]
    assert plan.notes
    assert KINDS["rebalance"].plan(state, "", {}).empty
    with pytest.raises(CollectionNotFound):
        KINDS["rebalance"].plan(state, "", {"collection": "nope"})
    with pytest.raises(NodeNotFound):
        KINDS["rebalance"].plan(state, "", {"to": "n99"})
    with pytest.raises(Unavailable):
        KINDS["rebalance"].plan(state, "", {"to": next(iter(state.nodes))}, list(state.nodes))


def test_a_plan_has_a_step_exactly_where_there_is_something_to_do() -> None:
    """Also where no replica moves: a node without any is drained by being given none, a factor is noted for later."""
    governed = Governed(4)
    governed.collection("docs", ("n1", "n2"))
    drain, replication = KINDS["drain"], KINDS["replication"]
    (step,) = drain.plan(governed.now, "n3", {}).steps
    assert "no replica" in step.text
    governed.do(node_state("n3", NodeState.DRAINED))
    assert drain.plan(governed.now, "n3", {}).empty
    governed.do(node_state("n4", NodeState.DRAINING))
    assert not drain.plan(governed.now, "n4", {}).empty, "nobody is at it"
    job = governed.begin("drain", "n4")
    plan = drain.plan(governed.now, "n4", {})
    assert plan.empty
    assert plan.notes == (f"job {job.id} drains it already",)
    assert replication.plan(governed.now, "docs", {"factor": 2}).empty
    (group,) = governed.now.get("docs").shards
    governed.do(place(group, ("n1",)))
    (step,) = replication.plan(governed.now, "docs", {"factor": 1}).steps
    assert "1 replica" in step.text


class Failing:
    """An operation that does what it is told."""

    kind = "failing"

    def __init__(self, *ends: object) -> None:
        self.ends = list(ends)

    def plan(self, *args: Any) -> Any:
        raise AssertionError

    async def step(self, job: Any, context: Any) -> Step:
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        assert isinstance(end, Step)
        return end

    cancel = step


@pytest.mark.parametrize(("ends", "state", "error"), [
    ([Unavailable("away"), Step("done", state=JobState.DONE)], JobState.DONE, ""),
    ([InvalidArgument("x", "is wrong")], JobState.FAILED, "is wrong"),
    ([KeyError("a mistake of ours")], JobState.FAILED, "KeyError"),
])
def test_what_may_pass_is_tried_again_and_what_may_not_ends_the_job(ends: list[object], state: JobState, error: str
                                                                    ) -> None:
    async def run() -> JobEntry:
        governed = Governed(1)
        job, one = governed.begin("failing", "x"), governor(governed, {"failing": Failing(*ends)})
        await turns(governed, one, 5)
        await one.stop()
        return governed.now.jobs[job.id]

    job = asyncio.run(run())
    assert job.state is state
    assert error in job.error


def test_a_job_that_stands_says_what_it_waits_for_until_it_goes_on() -> None:
    async def run() -> list[tuple[JobState, str]]:
        governed, told = Governed(1), list[tuple[JobState, str]]()
        ends = [*[Unavailable("nobody is there")] * 4, Step("on"), *[Step("on", error="it is slow")] * 3,
                Step("done", state=JobState.DONE)]
        job, one = governed.begin("failing", "x"), governor(governed, {"failing": Failing(*ends)})
        while not governed.now.jobs[job.id].state.ended:
            await turns(governed, one, 1)
            now = governed.now.jobs[job.id]
            if not told or told[-1] != (now.state, now.error):
                told.append((now.state, now.error))
        await one.stop()
        return told

    assert asyncio.run(run()) == [
        (JobState.WAITING, ""), (JobState.WAITING, "Unavailable: nobody is there"), (JobState.RUNNING, ""),
        (JobState.RUNNING, "it is slow"), (JobState.DONE, "")]


def test_who_does_not_lead_runs_nothing_and_two_of_a_kind_wait_for_each_other() -> None:
    async def run() -> None:
        governed = Governed(1)
        running = Step("on", 1, 3, "things")
        first = governed.begin("failing", "x")
        second = governed.begin("failing", "x")
        one = governor(governed, {"failing": Failing(*[running] * 40)})
        governed.leads = False
        await turns(governed, one, 3)
        assert governed.now.jobs[first.id].state is JobState.WAITING
        governed.leads = True
        await turns(governed, one, 5)
        assert governed.now.jobs[first.id].state is JobState.RUNNING
        assert governed.now.jobs[first.id].done == 1
        assert governed.now.jobs[second.id].state is JobState.WAITING
        unknown = governed.begin("nonsense", "x")
        await turns(governed, one, 3)
        assert governed.now.jobs[unknown.id].state is JobState.FAILED
        await one.stop()

    asyncio.run(run())


def test_who_is_elected_waits_for_what_was_committed_before() -> None:
    """The leader before had written down where a shard was going, and had placed it there."""
    async def run() -> None:
        governed = Governed(5)
        governed.collection("docs", ("n1", "n2", "n3"))
        group = governed.now.get("docs").shards[0]
        job = governed.begin("move", str(group), **{"from": "n1", "to": "n4"})
        moving = {str(group): {"desired": ["n4", "n2", "n3"], "before": ["n1", "n2", "n3"]}}
        seen: list[object] = []

        class Looking(Move):
            async def step(self, job: Any, context: Any) -> Step:
                seen.append(job.data)
                return await super().step(job, context)

        governed.behind = [job_update(job.id, state=JobState.RUNNING, phase="moving", data={"moving": moving}),
                           place(group, ("n2", "n3", "n4"))]
        one = governor(governed, {"move": Looking()})
        await turns(governed, one, 20)
        assert seen[0] == {"moving": moving}
        assert governed.now.jobs[job.id].state is JobState.DONE
        governed.behind, governed.term = [place(group, ("n1", "n2", "n3"))], 2
        governed.begin("move", str(group), **{"from": "n2", "to": "n5"})
        seen.clear()
        await turns(governed, one, 20)
        assert sorted(governed.now.shards[group].desired) == ["n1", "n3", "n5"], "elected again it looks again"
        await one.stop()

    asyncio.run(run())


def test_a_lost_node_for_which_there_is_no_other_is_not_repaired_again_and_again() -> None:
    async def run() -> None:
        governed = Governed(3)
        governed.collection("docs", ("n1", "n2", "n3"))
        one = governor(governed)
        governed.silent["n1"] = 601.0
        await turns(governed, one, 60)
        assert not governed.now.jobs
        governed.do(node_put(NodeEntry("n4", "h4:1", role=Role.SHARD, zone="a", commands=2, joined_s=1.0)))
        await turns(governed, one, 60)
        (job,) = governed.now.jobs.values()
        assert (job.kind, job.state, spread(governed)["n1"]) == ("repair", JobState.DONE, 0)
        await one.stop()

    asyncio.run(run())


def test_a_node_that_is_lost_when_its_drain_has_failed_is_repaired() -> None:
    async def run() -> None:
        governed = Governed(4)
        governed.collection("docs", ("n1", "n2", "n3"))
        governed.do(node_state("n1", NodeState.DRAINING))
        one = governor(governed)
        governed.silent["n1"] = 601.0
        await turns(governed, one, 60)
        assert spread(governed)["n1"] == 0
        await one.stop()

    asyncio.run(run())


@pytest.mark.parametrize(("kind", "target", "args"), [("drain", "n1", {}), ("replication", "docs", {"factor": 4})])
def test_what_could_not_be_done_is_not_said_to_be(kind: str, target: str, args: dict[str, Any]) -> None:
    """The only node that could take a replica is away: for a moment it is waited for."""
    async def run() -> None:
        governed = Governed(4)
        governed.collection("docs", ("n1", "n2", "n3"))
        one = governor(governed)
        job = governed.begin(kind, target, **args)
        for silent in range(int(AWAY_S) + 1, int(PATIENCE_S) + 1):
            governed.silent["n4"] = silent
            await turns(governed, one, 1)
            assert not governed.now.jobs[job.id].state.ended
        assert "(n4)" in governed.now.jobs[job.id].error
        governed.silent["n4"] = PATIENCE_S + 1
        await turns(governed, one, 20)
        ended = governed.now.jobs[job.id]
        assert ended.state is JobState.FAILED
        assert "heard" in ended.error
        assert governed.now.nodes["n1"].state is not NodeState.DRAINED
        assert governed.now.get("docs").replication_factor == 3
        governed.silent.clear()
        again = governed.begin(kind, target, **args)
        await turns(governed, one, 30)
        assert governed.now.jobs[again.id].state is JobState.DONE
        await one.stop()

        governed = Governed(4)
        governed.collection("docs", ("n1", "n2", "n3"))
        governed.silent["n4"] = AWAY_S + 1
        one = governor(governed)
        job = governed.begin(kind, target, **args)
        await turns(governed, one, 10)
        governed.silent.clear()
        await turns(governed, one, 30)
        ended = governed.now.jobs[job.id]
        assert (ended.state, ended.error) == (JobState.DONE, "")
        await one.stop()

    asyncio.run(run())


def test_an_error_of_the_control_group_is_no_end() -> None:
    governed = Governed(1)

    async def run() -> None:
        one = governor(governed)
        before = governed.propose

        async def broken(command: bytes, deadline: float | None = None) -> Any:
            raise VecdbError("broken")

        governed.propose = broken  # type: ignore[method-assign]
        job = governed.begin("drain", "n9")
        await turns(governed, one, 2)
        governed.propose = before  # type: ignore[method-assign]
        await turns(governed, one, 40)
        assert governed.now.jobs[job.id].state.ended
        await one.stop()

    asyncio.run(run())


def test_a_node_whose_replicas_are_on_their_way_is_not_removed() -> None:
    governed = Governed()
    governed.collection("docs", ("n1",))
    (group,) = governed.now.get("docs").shards
    governed.stuck.add("n2")
    control: Any = Control(governed)
    control.status = governed.status

    async def run() -> None:
        one = governor(governed)
        own = OwnOperations("c1", "tests", control, one, KINDS, dict)
        job = governed.begin("move", str(group), **{"from": "n1", "to": "n2"})
        await turns(governed, one, 4)
        assert governed.now.shards[group].desired == ("n2",)
        with pytest.raises(InvalidArgument, match="on their way"):
            await own.remove_node("n1", Call())
        assert governed.now.nodes["n1"].state is NodeState.ACTIVE
        governed.stuck.clear()
        await turns(governed, one, 8)
        assert governed.now.jobs[job.id].state is JobState.DONE
        await own.remove_node("n1", Call())
        assert governed.now.nodes["n1"].state is NodeState.LEFT
        await one.stop()

    asyncio.run(run())


def test_a_shard_that_moves_is_led_from_where_it_was() -> None:
    """Who saves or splits it asks its leader, however long the way takes."""
    governed = Governed()
    governed.collection("docs", ("n1",))
    (group,) = governed.now.get("docs").shards
    governed.stuck.add("n2")

    async def run() -> None:
        one = governor(governed)
        governed.begin("move", str(group), **{"from": "n1", "to": "n2"})
        await turns(governed, one, 4)
        assert governed.now.shards[group].desired == ("n2",)
        found = await one.context.leader(group)
        assert found is not None
        assert found.me == "n1/1"
        await one.stop()

    asyncio.run(run())
