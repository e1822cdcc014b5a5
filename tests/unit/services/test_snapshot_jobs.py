"""The job that makes a snapshot: every step may be the last of its process, and shards and nodes come and go."""

import asyncio
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.unit.services.governed import Control, Governed
from vecdb.cluster import control
from vecdb.core.calls import Call, WriteToken
from vecdb.core.cluster import HASH_SPACE, JobState
from vecdb.core.errors import InvalidArgument, SnapshotExists, SnapshotNotFound, Unavailable
from vecdb.ports.backups import BackupOrder, BackupStatus
from vecdb.ports.replicator import Position, SnapshotFile
from vecdb.runtime.clock import SystemClock
from vecdb.services.administration import OwnOperations
from vecdb.services.backup.manifest import ShardRef
from vecdb.services.backup.repository import SWEEP, Repository
from vecdb.services.backup.saving import ShardFacts, Watch, save_shard
from vecdb.services.backup.work import note_key, work_of
from vecdb.services.governor import Governor
from vecdb.services.operations.backing import Places
from vecdb.services.operations.base import Job, Step
from vecdb.services.operations.snapshot import SnapshotCreate, SnapshotDelete, SnapshotVerify
from vecdb.storage.objects import open_objects


class Files:
    """A state of one large file and one small."""

    def __init__(self, group: int) -> None:
        self.position = Position(group * 10, 1)
        self._contents = [bytes([group % 251]) * 9_000, b"small %d" % group]
        self.files = [SnapshotFile("rows/000001.sst", 9_000, 0),
                      SnapshotFile("rows/CURRENT", len(self._contents[1]), 0)]

    def read(self, file: int, offset: int, length: int) -> bytes:
        return self._contents[file][offset : offset + length]

    def release(self) -> None:
        """Nothing is held."""


@dataclass
class Nodes:
    """All nodes' workers: an order is done when it is asked for the second time, by a node that can."""

    repository: Repository
    state: Any
    asked: list[tuple[str, int]] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    away: set[str] = field(default_factory=set)
    begun: set[tuple[str, int]] = field(default_factory=set)
    stopped: list[int] = field(default_factory=list)

    def __call__(self, node: str) -> Any:
        nodes = self

        class Backups:
            async def start(self, order: BackupOrder, call: Call) -> BackupStatus:
                return nodes.start(node, order)

            async def stop(self, job: int, call: Call) -> None:
                nodes.stopped.append(job)
                nodes.begun.clear()

        return Backups()

    def start(self, node: str, order: BackupOrder) -> BackupStatus:
        self.asked.append((node, order.item))
        if node in self.away:
            raise Unavailable(f"{node} is away")
        if node in self.damaged:
            return BackupStatus("failed", error="DataCorrupted: a flipped bit", passes=True)
        if (node, order.item) not in self.begun:
            self.begun.add((node, order.item))
            return BackupStatus("running", 1, 2)
        entry = self.state().shards[order.item]
        facts = ShardFacts(entry.schema, entry.group, entry.lo, entry.hi, order.item, f"{order.item:032x}", node)
        ref = save_shard(self.repository, Files(order.item), facts, Watch(SystemClock()))
        self.repository.objects.put(note_key(work_of(order.snapshot, order.job), order.item),
                                    orjson.dumps(ref.to_json()))
        return BackupStatus("done", 2, 2)


@dataclass
class Stage:
    governed: Governed
    repository: Repository
    nodes: Nodes
    operation: SnapshotCreate
    url: str

    def begin(self, **args: Any) -> int:
        return self.governed.begin("snapshot", "one", url=self.url, **args).id

    def step(self, job: int, *, lost: bool = False) -> Step:
        """The next step; ``lost``: nobody wrote down what came of it."""
        entry: Job = self.governed.now.jobs[job]
        step = asyncio.run(self.operation.step(entry, self.governed))
        self.governed.clock.now += 1.0
        if not lost:
            self.governed.do(control.job_update(job, state=step.state, phase=step.phase, done=step.done,
                                                total=step.total, unit=step.unit, error=step.error,
                                                data=orjson.loads(orjson.dumps(dict(step.data))), at_s=1.0))
        return step

    def run(self, job: int, *, lose: int = 0) -> Step:
        """To the end; every step is done ``lose`` times for nothing before."""
        for _ in range(200):
            for _ in range(lose):
                self.operation = SnapshotCreate(self.nodes, self.open, "c", "1")
                if self.step(job, lost=True).state.ended:
                    break
            step = self.step(job)
            if step.state.ended:
                return step
        raise AssertionError("it does not end")

    def open(self, url: str, *, create: bool = False) -> Repository:
        return Repository(open_objects(url), create=create)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    governed = Governed()
    governed.collection("docs", ("n1", "n2", "n3"), ("n2", "n3", "n4"), ("n3", "n4", "n5"))
    governed.collection("logs", ("n1", "n2", "n3"))
    url = f"file://{tmp_path}/place"
    repository = Repository(open_objects(url), create=True)
    nodes = Nodes(repository, governed.state)
    made = Stage(governed, repository, nodes, None, url)  # type: ignore[arg-type]
    made.operation = SnapshotCreate(nodes, made.open, "c", "1")
    return made


def refs(stage: Stage) -> dict[int, ShardRef]:
    return {ref.group: ref for one in stage.repository.load("one").collections for ref in one.shards}


@pytest.mark.parametrize("lose", [0, 1, 2])
def test_made_whoever_is_killed(stage: Stage, lose: int) -> None:
    stage.governed.do(control.setting_put("scrub_every_s", 5))
    job = stage.begin()
    assert stage.run(job, lose=lose).state is JobState.DONE
    snapshot = stage.repository.load("one")
    assert {one.name: [ref.group for ref in one.shards] for one in snapshot.collections} == {
        name: list(entry.shards) for name, entry in stage.governed.now.collections.items()}
    assert snapshot.settings == {"scrub_every_s": 5}
    assert [*stage.repository.objects.list("jobs/")] == []
    assert [*stage.repository.objects.list("leases/")] == []
    assert job in stage.nodes.stopped


def test_followers_are_asked_and_those_that_gave_the_last_one(stage: Stage) -> None:
    stage.run(stage.begin())
    first = {group: ref.node for group, ref in refs(stage).items()}
    assert all(node != stage.governed.there[group][0] for group, node in first.items()), "not the leaders"
    for group, here in stage.governed.there.items():
        stage.governed.there[group] = (first[group], *(node for node in here if node != first[group]))
    stage.nodes.begun.clear()
    job = stage.governed.begin("snapshot", "two", url=stage.url).id
    stage.run(job)
    again = {ref.group: ref for one in stage.repository.load("two").collections for ref in one.shards}
    assert {group: ref.node for group, ref in again.items()} == first, "though they lead now"
    assert all(ref.added == 0 for ref in again.values())


def test_a_node_that_is_away_or_damaged_is_passed_over(stage: Stage) -> None:
    stage.nodes.away, stage.nodes.damaged = {"n2"}, {"n3"}
    stage.run(stage.begin())
    assert {ref.node for ref in refs(stage).values()} <= {"n1", "n4", "n5"}


def test_what_nobody_can_give_ends_the_job_and_leaves_nothing(stage: Stage) -> None:
    stage.nodes.damaged = {"n1", "n2", "n3"}
    job = stage.begin()
    with pytest.raises(InvalidArgument, match="flipped bit"):
        stage.run(job)
    for folder in ("jobs/", "leases/", "snapshots/", "objects/"):
        assert [*stage.repository.objects.list(folder)] == []


def test_shards_that_are_replaced_meanwhile_are_planned_anew(stage: Stage) -> None:
    governed = stage.governed
    job = stage.begin()
    for _ in range(3):
        stage.step(job)
    (old,) = governed.now.get("logs").shards
    split = governed.begin("split", str(old)).id
    middle = HASH_SPACE // 2
    new = governed.do(control.shards_add(split, "logs", [(0, middle, ["n1/1"]), (middle, HASH_SPACE, ["n2/1"])]))
    governed.do(control.shards_switch(split, "logs", [old], new))  # type: ignore[arg-type]
    governed.there.update({group: governed.now.shards[group].desired for group in new})  # type: ignore[attr-defined]
    governed.do(control.drop("docs"))
    stage.run(job)
    assert [(one.name, [ref.group for ref in one.shards]) for one in stage.repository.load("one").collections] == [
        ("logs", list(new))]  # type: ignore[call-overload]


def test_another_of_the_name_is_not_taken_for_ones_own(stage: Stage) -> None:
    job = stage.begin()
    while stage.step(job).phase != "writing":
        pass
    other = stage.repository
    made = stage.operation._assembled(other, work_of("one", job), stage.operation._plans[job], "one", stage.governed)
    lease = other.lease("save", "other")
    other.commit(replace(made, made_by="another/one.7"), lease)
    lease.release()
    with pytest.raises(SnapshotExists):
        stage.step(job)
    for folder in ("jobs/", "leases/"):
        assert [*other.objects.list(folder)] == []


def test_a_store_whose_first_answer_was_lost_is_not_taken_for_somebody_else(stage: Stage) -> None:
    job = stage.begin()
    while stage.step(job).phase != "writing":
        pass
    objects = stage.repository.objects
    put = objects.put

    def twice(key: str, data: bytes, *, new: bool = False) -> bool:
        put(key, data, new=new)
        return put(key, data, new=new)

    objects.put = twice  # type: ignore[method-assign]
    stage.operation._places._known[stage.url] = stage.repository
    assert stage.step(job).state is JobState.DONE
    assert stage.repository.names() == ["one"]


def test_a_later_one_of_the_name_is_not_deleted_for_the_one_that_was_meant(stage: Stage) -> None:
    stage.run(stage.begin())
    deletion = SnapshotDelete(stage.open)
    entry = stage.governed.begin("snapshot_delete", "one", url=stage.url)
    step = asyncio.run(deletion.step(entry, stage.governed))
    entry = replace(entry, phase=step.phase, data=orjson.loads(orjson.dumps(dict(step.data))))
    assert asyncio.run(deletion.step(entry, stage.governed)).state is JobState.DONE
    assert stage.repository.names() == []
    stage.run(stage.begin())  # what came of the last step was lost
    assert asyncio.run(deletion.step(entry, stage.governed)).state is JobState.DONE
    assert stage.repository.names() == ["one"]
    assert stage.repository.needed([stage.repository.load("one")])


def operators(stage: Stage) -> OwnOperations:
    kinds: Any = {"snapshot": stage.operation, "snapshot_verify": SnapshotVerify(stage.nodes, stage.open)}
    governor = Governor("c1", Control(stage.governed), stage.governed.replicas, stage.governed, stage.governed.clock,
                        kinds)
    control_: Any = Control(stage.governed)
    return OwnOperations("c1", "c", control_, governor, kinds, dict)


def test_a_name_that_is_taken_is_refused_before_anybody_is_asked(stage: Stage) -> None:
    own, args, key = operators(stage), {"url": stage.url}, Call(token=WriteToken(b"once"))

    async def begin() -> int:
        assert (await own.plan_job("snapshot", "one", args, Call())).steps
        return await own.begin_job("snapshot", "one", args, key)

    job = asyncio.run(begin())
    assert stage.run(job).state is JobState.DONE

    async def refused() -> None:
        with pytest.raises(SnapshotExists):
            await own.plan_job("snapshot", "one", args, Call())
        with pytest.raises(SnapshotExists):
            await own.begin_job("snapshot", "one", args, Call())
        assert await own.begin_job("snapshot", "one", args, key) == job, "it is its own that is there"
        with pytest.raises(SnapshotNotFound):
            await own.plan_job("snapshot_verify", "two", args, Call())

    asyncio.run(refused())
    assert list(stage.governed.now.jobs) == [job]


def test_a_place_that_is_not_there_yet_is_no_reason_to_refuse_a_plan(stage: Stage, tmp_path: Path) -> None:
    own, args = operators(stage), {"url": f"file://{tmp_path}/new"}

    async def plan() -> tuple[str, ...]:
        with pytest.raises(InvalidArgument, match="there is no folder"):  # there is nothing that could be read
            await own.plan_job("snapshot_verify", "one", args, Call())
        return (await own.plan_job("snapshot", "one", args, Call())).notes

    for kind in ("snapshot", "snapshot_verify"):
        own._operations[kind]._places._open = lambda url, create=False: Repository(  # type: ignore[attr-defined]
            open_objects(url, create=create), create=create)
    assert [note for note in asyncio.run(plan()) if f"{tmp_path}/new is made" in note]
    assert not (tmp_path / "new").exists()


def test_while_somebody_sweeps_it_waits(stage: Stage) -> None:
    lease = stage.repository.lease(SWEEP, "other")
    job = stage.begin()
    with pytest.raises(Unavailable):
        stage.step(job)
    lease.release()
    assert stage.run(job).state is JobState.DONE


def test_objects_that_were_swept_are_saved_again(stage: Stage) -> None:
    job = stage.begin()
    while stage.step(job).phase != "writing":
        pass
    stage.repository.objects.delete([one.key for one in stage.repository.objects.list("objects/")])
    with pytest.raises(Unavailable, match="saved again"):
        stage.step(job)
    for _ in range(50):
        try:
            if stage.step(job).state.ended:
                break
        except Unavailable:
            continue
    assert stage.repository.needed([stage.repository.load("one")])


def test_cancelled_it_leaves_nothing(stage: Stage) -> None:
    job = stage.begin()
    for _ in range(4):
        stage.step(job)
    step = asyncio.run(stage.operation.cancel(stage.governed.now.jobs[job], stage.governed))
    assert step.state is JobState.CANCELLED
    for folder in ("jobs/", "leases/", "snapshots/", "objects/"):
        assert [*stage.repository.objects.list(folder)] == []


def test_cancelled_when_all_of_it_is_there_it_is_done(stage: Stage) -> None:
    job = stage.begin()
    while stage.step(job).phase != "writing":
        pass
    assert stage.step(job, lost=True).state is JobState.DONE
    step = asyncio.run(SnapshotCreate(stage.nodes, stage.open, "c", "1").cancel(stage.governed.now.jobs[job],
                                                                                 stage.governed))
    assert step.state is JobState.DONE
    assert stage.repository.names() == ["one"]


def test_verifying_what_is_deleted_meanwhile_ends_and_leaves_nothing(stage: Stage) -> None:
    stage.run(stage.begin())
    verification = SnapshotVerify(stage.nodes, stage.open)
    entry = stage.governed.begin("snapshot_verify", "one", url=stage.url)
    step = asyncio.run(verification.step(entry, stage.governed))
    assert [*stage.repository.objects.list("leases/")]
    stage.repository.objects.delete([one.key for one in stage.repository.objects.list("snapshots/")])
    with pytest.raises(SnapshotNotFound):
        asyncio.run(verification.step(replace(entry, phase=step.phase), stage.governed))
    assert entry.id in stage.nodes.stopped
    assert [*stage.repository.objects.list("leases/")] == []


def test_places_that_hang_leave_the_threads_of_the_loop_alone(stage: Stage) -> None:
    hang = threading.Event()

    async def run() -> int:
        places = Places(stage.open)
        stuck = [asyncio.ensure_future(places.thread(hang.wait, 60)) for _ in range(64)]
        await asyncio.sleep(0)  # now they are in line
        try:
            async with asyncio.timeout(30):
                return await asyncio.get_running_loop().run_in_executor(None, lambda: 1)
        finally:
            hang.set()
            await asyncio.gather(*stuck)

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize("kind", ["snapshot", "snapshot_verify"])
def test_what_has_not_begun_is_cancelled_where_there_is_no_such_place(stage: Stage, tmp_path: Path, kind: str) -> None:
    def no_place(url: str, *, create: bool = False) -> Repository:
        return Repository(open_objects(url, create=create), create=create)

    operation = SnapshotCreate(stage.nodes, no_place, "c", "1") if kind == "snapshot" else \
        SnapshotVerify(stage.nodes, no_place)
    job = stage.governed.begin(kind, "one", url=f"file://{tmp_path}/nowhere")
    assert asyncio.run(operation.cancel(job, stage.governed)).state is JobState.CANCELLED
