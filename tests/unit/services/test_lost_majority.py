"""A node is lost with the majority of a shard: jobs and plans say whom it needs back."""

import asyncio

import pytest

from tests.unit.services.governed import Control, Governed
from tests.unit.services.test_governor import KINDS, governor, turns
from vecdb.cluster.control import setting_put
from vecdb.core.calls import Call
from vecdb.core.cluster import JobState
from vecdb.core.errors import NoNodeForReplica
from vecdb.ports.replicator import ReplicaStatus
from vecdb.services.administration import OwnOperations
from vecdb.services.operations.kinds import Repair
from vecdb.services.operations.placing import away, lacking_majority

NEEDS = "it needs n2 back: with 2 replicas the loss of one stops changes of members as well"


class Lost(Governed):
    """Two shards with two replicas each, of which ``n2`` holds one of the first, and is away."""

    async def leader(self, group: int) -> ReplicaStatus | None:
        nodes = self.there.get(group, ())
        return None if lacking_majority(nodes, away(self)) else await super().leader(group)


def cluster() -> Lost:
    governed = Lost(4)
    for name in ("repair_after_s", "scrub_every_s", "rebalance_auto"):
        governed.do(setting_put(name, 0))
    governed.collection("docs", ("n1", "n2"), ("n1", "n3"))
    governed.silent["n2"] = 60.0
    governed.stuck = {"n2"}
    first = min(governed.there)
    move = governed.move

    def moves() -> None:
        held = governed.there[first]
        move()
        governed.there[first] = held  # nobody leads it, so nobody changes its members

    governed.move = moves  # type: ignore[method-assign]
    return governed


def test_a_repair_that_cannot_go_on_says_whom_it_needs_and_tells_no_time() -> None:
    governed = cluster()

    async def run() -> None:
        one = governor(governed)
        control = Control(governed)
        own = OwnOperations("c1", "prod", control, one, KINDS, dict)  # type: ignore[arg-type]
        plan = await own.plan_job("repair", "n2", {}, Call())
        assert len(plan.steps) == 1
        assert any(NEEDS in note for note in plan.notes)
        job = governed.begin("repair", "n2").id
        await turns(governed, one, 20)
        told = (await own.cluster_jobs(Call(), id=job))[0]
        assert (told.state, told.eta_s) == (JobState.RUNNING, -1.0)
        assert NEEDS in told.error
        with pytest.raises(NoNodeForReplica, match=f"job {job} repairs it already, and waits: .*{NEEDS}"):
            await own.plan_job("repair", "n2", {}, Call())
        await one.stop()

    asyncio.run(run())


def test_whom_a_shard_needs() -> None:
    assert lacking_majority(("n1", "n2", "n3"), ("n3",)) == ""
    assert "n2 or n3 back: with 3 replicas the loss of 2 stops" in lacking_majority(("n1", "n2", "n3"), ("n2", "n3"))
    assert "n1 back: with 1 replica the loss of one" in lacking_majority(("n1",), ("n1",))


def test_a_repair_of_what_others_can_take_has_nothing_to_say() -> None:
    governed = Governed(4)
    governed.collection("docs", ("n1", "n2", "n3"))
    governed.silent["n2"] = 60.0
    plan = Repair().plan(governed.now, "n2", {}, away(governed))
    assert (len(plan.steps), plan.notes) == (1, ())
