"""Jobs that are cancelled: refused when nothing can be taken back, and what ends says what became of it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import pytest

from tests.unit.services.governed import Control, Governed
from tests.unit.services.test_reshard import Running, World, make_operation
from vecdb.cluster.control import ControlState, JobEntry, job_cancel
from vecdb.core.calls import Call
from vecdb.core.cluster import HASH_SPACE, JobState, NodeState
from vecdb.core.errors import InvalidArgument
from vecdb.services.administration import OwnOperations
from vecdb.services.governor import Governor
from vecdb.services.operations.base import Step, late
from vecdb.services.operations.kinds import Drain, Move, Replication
from vecdb.services.operations.reshard import Reshard
from vecdb.services.operations.snapshot import SnapshotDelete

LIMIT_S = 120


class Stage:
    """A governor, and operators who ask it."""

    def __init__(self, *operations: Any, nodes: int = 4) -> None:
        self.governed = Governed(nodes)
        kinds = {one.kind: one for one in operations}
        control: Any = Control(self.governed)
        control.status = self.governed.status
        self.governor = Governor("c1", control, self.governed.replicas, self.governed, self.governed.clock, kinds)
        self.own = OwnOperations("c1", "tests", control, self.governor, kinds, dict)

    async def turn(self, *, move: bool = True) -> None:
        await self.governor.look()
        await asyncio.gather(*(run.task for run in self.governor._runs.values() if run.task is not None))
        if move:
            self.governed.move()
        self.governed.clock.now += 20.0

    async def cancelled(self, job: JobEntry) -> JobEntry:
        """What it says at the end; a cancel that was accepted needs one step."""
        await self.own.cancel_job(job.id, Call())
        await self.turn()
        return self.job(job)

    def job(self, job: JobEntry) -> JobEntry:
        return self.governed.now.jobs[job.id]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await test()

    asyncio.run(limited())


# --- splits and merges ----------------------------------------------------------------------------


async def _sealing(world: World, operation: Reshard) -> Running:
    """A split whose next step seals."""
    job = Running("split", "1", {})
    while job.phase != "seal":
        job.note(await operation.step(job, world))
        await asyncio.sleep(0.005)
    return job


def _cancel(world: World, job: Running) -> None:
    job.state = "cancelling"
    entry = JobEntry(job.id, job.kind, job.target, state=JobState.CANCELLING)
    world.control = replace(world.control, jobs=MappingProxyType({job.id: entry}))


class Interrupted:
    """A step's context; the cancel comes just before the switch is proposed."""

    def __init__(self, world: World, job: Running) -> None:
        self._world, self._job = world, job

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def deciding(self, job: int) -> Any:
        _cancel(self._world, self._job)
        return self._world.deciding(job)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_split_that_is_cancelled_before_the_switch_lifts_its_seal(tmp_path: Path, sealed: bool) -> None:
    """``sealed``: all is copied, and the switch is to be proposed."""
    async def whole() -> None:
        world = World(tmp_path, Random(1), [(0, HASH_SPACE)])
        try:
            operation = make_operation(world, "split")
            job = await _sealing(world, operation)
            if not sealed:
                _cancel(world, job)
            job.note(await operation.step(job, Interrupted(world, job) if sealed else world))
            _cancel(world, job)
            job.note(await operation.cancel(job, world))
            assert job.state == "cancelled"
            assert [one.group for one in world.control.of("c")] == [1]
            assert list(world.control.shards) == [1]
            world.replicas_by_group[1].check_sealed(None)
        finally:
            await world.close()

    run(whole)


def test_a_cancel_that_a_switch_came_before_is_refused_and_one_that_was_accepted_says_so(tmp_path: Path) -> None:
    async def whole() -> None:
        world = World(tmp_path, Random(1), [(0, HASH_SPACE)])
        try:
            operation = make_operation(world, "split")
            job = await _sealing(world, operation)
            await operation.step(job, world)
            assert job.phase == "seal", "nobody has noted that it is done"
            assert operation.too_late(job, world.control) == "calls go to what it made"
            _cancel(world, job)
            while not JobState(job.state).ended:
                step = await operation.cancel(job, world)
                assert step.error == "the cancel came after the new shards took over"
                job.note(step)
                await asyncio.sleep(0.01)
            assert (job.state, [one.group for one in world.control.of("c")]) == ("done", [2, 3])
        finally:
            await world.close()

    run(whole)


class Switching:
    """Its second step does, when it may, what cannot be taken back."""

    kind = "switching"
    past = "it was switched"

    def __init__(self) -> None:
        self.deciding, self.go = asyncio.Event(), asyncio.Event()
        self.switched = False

    async def step(self, job: Any, context: Any) -> Step:
        if not job.phase:
            return Step("seal")
        async with context.deciding(job.id):
            self.deciding.set()
            await self.go.wait()
            self.switched = True
        return Step("retire")

    cancel = step

    def too_late(self, job: Any, state: ControlState) -> str:
        return "it was switched" if self.switched else ""


def test_a_cancel_that_comes_while_the_switch_is_proposed_waits_and_is_refused() -> None:
    async def whole() -> None:
        operation = Switching()
        stage = Stage(operation)
        job = stage.governed.begin("switching", "x")
        await stage.turn()
        await stage.governor.look()
        await operation.deciding.wait()
        cancel = asyncio.ensure_future(stage.own.cancel_job(job.id, Call()))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not cancel.done()
        operation.go.set()
        with pytest.raises(InvalidArgument, match=f"job {job.id}, switching x, is past taking back: it was switched"):
            await cancel
        assert stage.job(job).state is not JobState.CANCELLING
        await stage.governor.stop()

    run(whole)


class Ending:
    """Its only step waits, and then it is done."""

    kind = "ending"
    past = "it was ready"

    def __init__(self) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def step(self, job: Any, context: Any) -> Step:
        self.begun.set()
        await self.go.wait()
        return Step("done", 1, 1, "things", JobState.DONE)


def test_a_job_whose_last_step_is_under_way_says_that_the_cancel_came_late() -> None:
    async def whole() -> None:
        operation = Ending()
        stage = Stage(operation)
        job = stage.governed.begin("ending", "x")
        await stage.governor.look()
        await operation.begun.wait()
        assert (await stage.own.cancel_job(job.id, Call())).state == "cancelling"
        operation.go.set()
        await asyncio.gather(*(one.task for one in stage.governor._runs.values() if one.task is not None))
        ended = stage.job(job)
        assert (ended.state, ended.error) == (JobState.DONE, "the cancel came after it was ready")

    run(whole)


# --- what places shards ---------------------------------------------------------------------------


def test_a_move_that_has_arrived_is_done_and_one_that_has_not_goes_back() -> None:
    async def whole() -> None:
        stage = Stage(Move())
        stage.governed.collection("docs", ("n1", "n2"), ("n1", "n2"))
        first = stage.governed.begin("move", "1", **{"from": "n2", "to": "n4"})
        for _ in range(2):
            await stage.turn(move=False)
        assert stage.governed.now.shards[1].desired == ("n1", "n4")
        ended = await stage.cancelled(first)
        assert (ended.state, ended.error) == (JobState.CANCELLED, "1 that were under way go back to where they were")
        assert sorted(stage.governed.now.shards[1].desired) == ["n1", "n2"]
        second = stage.governed.begin("move", "2", **{"from": "n2", "to": "n4"})
        for _ in range(2):
            await stage.turn(move=False)
        for _ in range(3):
            stage.governed.move()
        assert stage.job(second).state is JobState.RUNNING, "nobody has noted that it is there"
        ended = await stage.cancelled(second)
        assert (ended.state, ended.error) == (JobState.DONE, "the cancel came after the shard had moved")
        assert sorted(stage.governed.now.shards[2].desired) == ["n1", "n4"]

    run(whole)


def test_a_drain_that_is_cancelled_says_what_has_moved_and_one_that_is_over_is_not() -> None:
    async def whole() -> None:
        stage = Stage(Drain())
        stage.governed.collection("docs", *[("n1", "n2")] * 6)
        job = stage.governed.begin("drain", "n1")
        while not stage.job(job).done:
            await stage.turn()
        moved = stage.job(job).done
        ended = await stage.cancelled(job)
        assert ended.state is JobState.CANCELLED
        assert f"{ended.done} of 6 shards were placed by then, and stay so" in ended.error
        assert moved <= ended.done < 6
        assert stage.governed.now.nodes["n1"].state is NodeState.ACTIVE
        job = stage.governed.begin("drain", "n1")
        while stage.governed.now.nodes["n1"].state is not NodeState.DRAINED:
            before = stage.job(job)
            await stage.turn()
        drain, state = Drain(), stage.governed.now
        assert drain.too_late(before, state) == "the node is drained"
        step = await drain.cancel(before, stage.governed)
        assert (step.state, step.error) == (JobState.DONE, late(drain))
        assert state.nodes["n1"].state is NodeState.DRAINED

    run(whole)


def test_a_second_drain_that_is_cancelled_does_not_take_back_the_first() -> None:
    async def whole() -> None:
        stage = Stage(Drain())
        stage.governed.collection("docs", *[("n1", "n2")] * 6)
        stage.governed.begin("drain", "n1")
        await stage.turn()
        second = stage.governed.begin("drain", "n1")
        assert (await stage.cancelled(second)).state is JobState.CANCELLED
        assert stage.governed.now.nodes["n1"].state is NodeState.DRAINING

    run(whole)


def test_a_replication_that_was_noted_nowhere_is_over() -> None:
    async def whole() -> None:
        stage = Stage(Replication())
        stage.governed.collection("docs", ("n1", "n2"), ("n1", "n2"))
        job = stage.governed.begin("replication", "docs", factor=3)
        while stage.governed.now.get("docs").replication_factor != 3:
            before = stage.job(job)
            await stage.turn()
        step = await Replication().cancel(before, stage.governed)
        assert (step.state, step.error) == (JobState.DONE, "the cancel came after every shard had its replicas")

    run(whole)


def test_what_is_being_deleted_is_not_taken_back() -> None:
    nowhere: Any = None
    operation, job = SnapshotDelete(nowhere), JobEntry(1, "snapshot_delete", "one")
    assert not operation.too_late(job, ControlState())
    assert operation.too_late(replace(job, phase="sweeping"), ControlState()) == "what is deleted cannot be had back"


def test_a_job_that_waits_is_cancelled_at_once() -> None:
    async def whole() -> None:
        stage = Stage(Move())
        stage.governed.collection("docs", ("n1", "n2"))
        job = stage.governed.begin("move", "1", **{"from": "n2", "to": "n4"})
        stage.governed.do(job_cancel(job.id, at_s=1.0))
        await stage.turn()
        ended = stage.job(job)
        assert (ended.state, ended.error) == (JobState.CANCELLED, "")
        assert stage.governed.now.shards[1].desired == ("n1", "n2")

    run(whole)
