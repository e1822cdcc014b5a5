"""Which replica is at fault, and when nobody can say."""

import asyncio
from typing import Any

import pytest

from tests.unit.services.governed import Governed
from tests.unit.services.test_governor import governor
from vecdb.cluster.control import job_cancel, job_update
from vecdb.core.cluster import JobState
from vecdb.core.shards import ReplicaDigest, ShardVerification
from vecdb.services.operations import scrub as scrubbing
from vecdb.services.operations.scrub import TRIES, Scrub, faulty


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


SAME = [digest("n1/1"), digest("n2/1"), digest("n3/1")]
TORN = ReplicaDigest("n2/1", "damaged", "a", 5, "", "a checksum does not match")
FULL = ReplicaDigest("n2/1", "unchecked", error="no room")


def scrubbed(*looks: list[ReplicaDigest]) -> tuple[Any, list[str], int]:
    """The last step, the nodes that were to build their replica anew, and how often was looked; the last look's
    answer stays.
    """
    governed, asked, told = Governed(3), [], list(looks)
    governed.collection("docs", ("n1", "n2", "n3"))

    class Replicas:
        def __init__(self, node: str) -> None:
            self.node = node

        async def rebuild(self, group: int, call: Any) -> None:
            asked.append(self.node)

    governed.replicas = Replicas  # type: ignore[method-assign]
    count = 0

    async def verify(label: str, call: Any, deep: bool) -> ShardVerification:
        nonlocal count
        count += 1
        return found(*(told.pop(0) if len(told) > 1 else told[0]))

    async def run() -> Any:
        scrub, job = Scrub(verify), governed.begin("scrub", "docs")
        for _ in range(12):
            step = await scrub.step(governed.now.jobs[job.id], governed)
            governed.do(job_update(job.id, state=step.state, phase=step.phase, done=step.done, total=step.total,
                                   error=step.error, data=step.data))
            if step.state.ended:
                return step
        raise AssertionError("it does not end")

    return asyncio.run(run()), asked, count


def test_bytes_that_are_damaged_at_two_looks_are_and_at_one_are_not() -> None:
    at_both = [SAME[0], TORN, SAME[2]]
    step, asked, looks = scrubbed(at_both, at_both, SAME)
    assert (step.state, step.error, asked, looks) == (JobState.DONE, "", ["n2"], 2)
    step, asked, looks = scrubbed(at_both, SAME)
    assert (step.state, step.error, asked, looks) == (JobState.DONE, "", [], 2)
    step, asked, looks = scrubbed(at_both, [SAME[0], FULL, SAME[2]], at_both)
    assert (step.state, step.error, asked, looks) == (JobState.DONE, "", ["n2"], 3)


def test_who_cannot_be_read_is_asked_again_is_never_built_anew_and_is_told_of() -> None:
    refusing = [SAME[0], FULL, SAME[2]]
    step, asked, looks = scrubbed(refusing, refusing, SAME)
    assert (step.state, step.error, asked, looks) == (JobState.DONE, "", [], 3)
    step, asked, looks = scrubbed(refusing)
    assert (step.state, asked, looks) == (JobState.DONE, [], TRIES)
    assert step.error.startswith("not all could be checked")
    assert step.error.endswith("shard 1 on n2/1: no room")
    step, asked, looks = scrubbed([digest("n1/1", "", "unreachable"), SAME[1], digest("n3/1", "b")],
                                  [digest("n1/1", "", "unreachable"), TORN, SAME[2]])
    assert (step.state, asked) == (JobState.DONE, [])
    assert "shard 1 on n1/1: unreachable; shard 1 on n2/1, which is built anew once" in step.error


def test_where_nobody_leads_it_says_what_it_waits_for_and_leaves_the_shard_in_the_end() -> None:
    governed, said = Governed(3), []
    governed.collection("docs", ("n1", "n2", "n3"))

    async def verify(label: str, call: Any, deep: bool) -> ShardVerification:
        return ShardVerification(label, 1, 0, tuple(
            ReplicaDigest(f"n{at}/1", "unchecked", error="nobody leads the shard") for at in (1, 2, 3)), True, False)

    async def run() -> Any:
        scrub, job = Scrub(verify), governed.begin("scrub", "docs")
        for _ in range(TRIES + 2):
            step = await scrub.step(governed.now.jobs[job.id], governed)
            said.append(step.error)
            governed.do(job_update(job.id, state=step.state, phase=step.phase, done=step.done, total=step.total,
                                   error=step.error, data=step.data))
            if step.state.ended:
                return step
        raise AssertionError("it does not end")

    step = asyncio.run(run())
    assert said[0] == f"shard 1 of 'docs' is asked again, {TRIES - 1} times: nobody leads the shard"
    assert step.error.startswith("not all could be checked")


def test_cancelled_it_ends_while_nodes_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubbing, "LOOK_S", 0.01)
    governed, given_up = Governed(3), []
    governed.collection("docs", ("n1", "n2", "n3"))

    async def story() -> None:
        reading = asyncio.Event()

        async def verify(label: str, call: Any, deep: bool) -> ShardVerification:
            reading.set()
            try:
                return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
            except asyncio.CancelledError:
                given_up.append(label)
                raise

        one = governor(governed, {"scrub": Scrub(verify)})
        job = governed.begin("scrub", "docs")
        async with asyncio.timeout(60):
            await one.look()
            await reading.wait()
            governed.do(job_cancel(job.id, at_s=1.0))
            while not governed.now.jobs[job.id].state.ended:
                governed.clock.now += 1.0
                await one.look()
                await asyncio.sleep(0.01)
        await one.stop()
        assert governed.now.jobs[job.id].state is JobState.CANCELLED

    asyncio.run(story())
    assert given_up == ["docs"]
