"""Which replica is at fault, and when nobody can say."""

import asyncio
from typing import Any

import pytest

from tests.unit.services.governed import Governed
from vecdb.cluster.control import job_update
from vecdb.core.cluster import JobState
from vecdb.core.shards import ReplicaDigest, ShardVerification
from vecdb.services.operations.scrub import Scrub, faulty


def digest(name: str, what: str = "a", state: str = "ok") -> ReplicaDigest:
    return ReplicaDigest(name, state, what, 5)


def found(*replicas: ReplicaDigest) -> ShardVerification:
    return ShardVerification("docs", 1, 9, replicas, len({one.digest for one in replicas}) == 1,
                             all(one.digest for one in replicas))


def test_a_minority_is_at_fault_and_without_a_majority_nobody_is() -> None:
    assert faulty(found(digest("n1/1"), digest("n2/1"), digest("n3/1"))) == []
    assert [one.name for one in faulty(found(digest("n1/1"), digest("n2/1", "b"), digest("n3/1"))) or ()] == ["n2/1"]
    assert [one.name for one in faulty(found(digest("n1/1"), digest("n2/1", state="damaged"), digest("n3/1"))) or ()] \
        == ["n2/1"]
    assert faulty(found(digest("n1/1"), digest("n2/1", "b"))) is None
    assert faulty(found(digest("n1/1"), digest("n2/1", "b"), digest("n3/1", "c"))) is None
    assert faulty(found(digest("n1/1"), digest("n2/1", "", "unreachable"), digest("n3/1", "b"))) is None
    assert faulty(found(digest("n1/1"), digest("n2/1", "", "behind"), digest("n3/1"))) == []
    assert faulty(found(digest("n1/1", "", "damaged"))) is None


BUSY = [digest("n1/1"), digest("n2/1", "b"), digest("n3/1", "", "unreachable")]


@pytest.mark.parametrize(("told", "rebuilt", "state"), [
    ([digest("n1/1"), digest("n2/1"), digest("n3/1")], [], JobState.DONE),
    ([digest("n1/1"), digest("n2/1", "b"), digest("n3/1")], [("n2", 1)], JobState.DONE),
    ([digest("n1/1", "c"), digest("n2/1", "b"), digest("n3/1")], [], JobState.FAILED),
    (BUSY, [], JobState.DONE),
    ([digest("n1/1"), digest("n2/1", "", "unreachable"), digest("n3/1", state="damaged")], [], JobState.DONE),
])
@pytest.mark.parametrize("later", [False, True], ids=["", "after one was busy"])
def test_one_at_a_time_is_built_anew_and_only_while_all_others_are_heard(told: list[ReplicaDigest], rebuilt: Any,
                                                                         state: JobState, later: bool) -> None:
    governed, asked, looks = Governed(3), [], []
    governed.collection("docs", ("n1", "n2", "n3"), ("n1", "n2", "n3"))

    class Replicas:
        def __init__(self, node: str) -> None:
            self.node = node

        async def rebuild(self, group: int, call: Any) -> None:
            asked.append((self.node, group))

    governed.replicas = Replicas  # type: ignore[method-assign]

    async def verify(label: str, call: Any, deep: bool) -> ShardVerification:
        assert deep
        looks.append(label)
        now = BUSY if later and len(looks) <= 2 else told
        return found(*now) if label == "docs@1" else found(digest("n1/1"), digest("n2/1"), digest("n3/1"))

    async def run() -> Any:
        scrub, job = Scrub(verify), governed.begin("scrub", "docs")
        assert len(scrub.plan(governed.now, "docs", {}).steps) == 2
        for _ in range(12):
            step = await scrub.step(governed.now.jobs[job.id], governed)
            governed.do(job_update(job.id, state=step.state, phase=step.phase, done=step.done, total=step.total,
                                   error=step.error, data=step.data))
            if step.state.ended:
                return step
        raise AssertionError("it does not end")

    step = asyncio.run(run())
    assert step.state is state
    assert asked == rebuilt
    assert step.done == 2
