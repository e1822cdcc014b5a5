"""What operators ask where the leader of the control group does not answer, and what is not there."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from tests.unit.services.governed import Control, Governed
from vecdb.cluster.control import NodeEntry, job_update, node_put
from vecdb.cluster.joining import Candidate
from vecdb.core.calls import Call
from vecdb.core.cluster import JobState, Plan, PlanStep, Role
from vecdb.core.errors import (
    DeadlineExceeded,
    JobNotFound,
    NodeNotFound,
    NodeRemoved,
    NotLeader,
    ShardBusy,
    ShardNotFound,
    TokenNotFound,
    Unauthenticated,
    Unavailable,
    VecdbError,
)
from vecdb.core.operations import ClusterInfo
from vecdb.runtime.clock import SystemClock
from vecdb.services.administration import Administration, OwnOperations
from vecdb.services.announcing import Announcements, Report
from vecdb.services.governor import Governor
from vecdb.services.leaders import Leaders
from vecdb.services.operations.kinds import Drain, Move
from vecdb.services.operations.restore import Restore
from vecdb.services.replicas import CONTROL

KINDS = {one.kind: one for one in (Move(), Drain())}


def own(governed: Governed, kinds: Any = KINDS, heard: Any = None) -> OwnOperations:
    control: Any = Control(governed)
    control.status = governed.status
    one = Governor("c1", control, governed.replicas, heard or governed, governed.clock, kinds)
    return OwnOperations("c1", "tests", control, one, kinds, dict)


class Asked:
    """Another node's operations: each question ends as ``says`` says."""

    def __init__(self, says: Callable[[], Awaitable[ClusterInfo]]) -> None:
        self.says = says

    async def cluster(self, call: Call) -> ClusterInfo:
        return await self.says()


def administration(governed: Governed, says: Callable[[], Awaitable[ClusterInfo]], known: Any = None,
                   leads: str | None = None) -> Administration:
    """``leads``: what nodes say of who does."""
    clock, mine = SystemClock(), own(governed)

    async def ask_leader(group: int, node: str) -> str | None:
        return leads

    leaders = Leaders("n1", lambda group: None, ask_leader, clock, Random(7))
    return Administration("n1", lambda: ["c1", "c2"], mine, lambda node: Asked(says),  # type: ignore[arg-type,return-value]
                          leaders, known or mine.known, clock)


def cluster(one: Administration, seconds: float) -> ClusterInfo:
    async def run() -> ClusterInfo:
        clock = SystemClock()
        before = clock.monotonic() + seconds
        call = Call(before)
        try:
            async with asyncio.timeout(25.0):
                return await one.cluster(call)
        finally:
            assert call.deadline == before

    return asyncio.run(run())


def raising(error: VecdbError) -> Callable[[], Awaitable[ClusterInfo]]:
    async def says() -> ClusterInfo:
        raise error

    return says


@pytest.mark.parametrize("says", [raising(Unavailable("cannot be reached")), raising(NotLeader("nobody leads"))])
def test_a_cluster_without_a_leader_is_told_of_as_this_node_has_it(says: Callable[[], Awaitable[ClusterInfo]]) -> None:
    governed = Governed(3)
    governed.collection("docs", ("n1", "n2"))
    told = cluster(administration(governed, says), 0.4)
    assert (told.leader, told.collections, [one.name for one in told.nodes]) == (None, 1, ["n1", "n2", "n3"])
    assert {one.heard_s for one in told.nodes} == {-1.0}, "it heard nobody itself"


def test_where_who_led_hangs_and_who_leads_now_too_it_is_no_question_what_was_done() -> None:
    governed = Governed(3)
    governed.collection("docs", ("n1", "n2"))
    asked = 0

    async def says() -> ClusterInfo:
        nonlocal asked
        asked += 1
        await asyncio.sleep(3.0)
        raise DeadlineExceeded("nobody answered in time")

    one = administration(governed, says, leads="c2")
    one._leaders._remember(CONTROL, "c1")
    told = cluster(one, 5.0)
    assert (told.leader, told.collections, asked) == (None, 1, 2)


def test_a_new_leader_tells_whom_it_has_not_heard_and_decides_by_how_long_it_leads() -> None:
    governed, clock = Governed(3), SystemClock()
    heard = Announcements(lambda: 5, clock)
    heard.take(Report(Candidate("n1", 7, "n1:1"), "n1/7", wall_s=clock.wall()))
    told = asyncio.run(own(governed, heard=heard).cluster(Call()))
    nodes = {one.name: one for one in told.nodes}
    assert [nodes[name].heard_s < 0 for name in ("n1", "n2", "n3")] == [False, True, True]
    assert all(one.silent_s >= 0 for one in told.nodes), "as long as it leads"


def test_a_node_that_joined_and_was_not_heard_yet_is_silent_since_it_joined() -> None:
    governed = Governed(3)
    governed.clock.now = 1_000.0
    governed.do(node_put(NodeEntry("n4", "h4:1", role=Role.SHARD, commands=2, joined_s=993.0)))

    class Unheard:
        def stats(self, node: str) -> dict[str, float]:
            return {}

        def word_s(self, node: str) -> float:
            return 4.0 if node == "n1" else -1.0

        def heard_s(self, node: str) -> float:
            return 4.0 if node == "n1" else 62.0

    told = asyncio.run(own(governed, heard=Unheard()).cluster(Call()))
    assert {one.name: one.silent_s for one in told.nodes} == {"n1": 4.0, "n2": 62.0, "n3": 62.0, "n4": 7.0}


def test_what_the_leader_says_goes_before_what_this_node_knows() -> None:
    governed = Governed(3)
    there = ClusterInfo("tests", "c1", "c1", 9)

    async def says() -> ClusterInfo:
        return there

    assert cluster(administration(governed, says), 20.0) is there


@pytest.mark.parametrize("error", [NodeRemoved("it was removed"), Unauthenticated("no key")])
def test_what_is_no_lack_of_a_leader_is_told(error: VecdbError) -> None:
    if isinstance(error, NodeRemoved):
        error.here = True
    with pytest.raises(type(error)):
        cluster(administration(Governed(3), raising(error)), 0.4)


def test_a_node_that_knows_nothing_says_what_is_wrong() -> None:
    with pytest.raises(Unavailable, match="no leader of the control group"):
        cluster(administration(Governed(3), raising(Unavailable("cannot be reached")), lambda: None), 0.4)


def test_what_is_not_there_is_not_found() -> None:
    async def run() -> None:
        mine, call = own(Governed(3)), Call()
        for error, ask in ((JobNotFound, mine.cluster_jobs(call, id=25)), (JobNotFound, mine.cancel_job(25, call)),
                           (NodeNotFound, mine.activate_node("n9", call)), (NodeNotFound, mine.remove_node("n9", call)),
                           (NodeNotFound, mine.plan_job("drain", "n9", {}, call)),
                           (TokenNotFound, mine.revoke_join_token("abc", call)),
                           (ShardNotFound, mine.plan_job("move", "999", {"from": "n1", "to": "n2"}, call))):
            with pytest.raises(error) as caught:
                await ask
            assert caught.value.code == "NOT_FOUND"

    asyncio.run(run())


class Splits:
    """Splits and merges that are only planned."""

    def plan(self, state: Any, target: str, args: Any, away: Any = ()) -> Plan:
        return Plan("split", (PlanStep("make", target, "a shard"),))


def test_a_shard_that_is_split_is_not_split_or_merged_by_another_job() -> None:
    governed = Governed(3)
    governed.collection("docs", ("n1", "n2"), ("n1", "n2"), ("n1", "n2"))
    first, second, third = governed.now.get("docs").shards
    job = governed.begin("split", str(first))

    async def run() -> None:
        splits: Any = Splits()
        mine, call = own(governed, {"split": splits, "merge": splits}), Call()
        for kind, target, args in (("split", first, {}), ("merge", first, {"with": second}),
                                   ("merge", second, {"with": first})):
            with pytest.raises(ShardBusy, match=f"shard {first} is under way: job {job.id}, split"):
                await mine.plan_job(kind, str(target), args, call)
            with pytest.raises(ShardBusy):
                await mine.begin_job(kind, str(target), args, call)
        assert list(governed.now.jobs) == [job.id]
        assert (await mine.plan_job("merge", str(second), {"with": third}, call)).steps
        governed.do(job_update(job.id, state=JobState.FAILED, at_s=governed.clock.now))
        assert (await mine.plan_job("split", str(first), {}, call)).steps

    asyncio.run(run())


def test_the_plan_of_a_restore_says_how_many_shards_and_replicas_were_asked_for() -> None:
    nobody: Any = None
    restore, url = Restore(nobody, nobody), "file:///backups"
    (step,) = restore.plan(Governed(3).now, "one", {"url": url, "shards": 3, "replication_factor": 1}).steps
    assert "each in 3 shards, with 1 replica of each shard" in step.text
    (step,) = restore.plan(Governed(3).now, "one", {"url": url}).steps
    assert "each" not in step.text
