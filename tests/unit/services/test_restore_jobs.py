"""The job that restores collections: every step may be the last of its process, and snapshots come and go."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.unit.services.governed import Control, Governed
from vecdb.cluster import control
from vecdb.cluster.placement import ranges
from vecdb.core.calls import Call, WriteToken
from vecdb.core.cluster import JobState, NodeState
from vecdb.core.errors import (
    CollectionExists,
    CollectionNotFound,
    NoNodeForReplica,
    SnapshotNotFound,
    Unavailable,
    VecdbError,
)
from vecdb.core.schema import CollectionSchema
from vecdb.ports.backups import BackupOrder, BackupStatus
from vecdb.ports.replicator import Committed, ReplicaStatus
from vecdb.runtime.clock import SystemClock
from vecdb.services.administration import OwnOperations
from vecdb.services.backup.manifest import CollectionManifest, ShardManifest, ShardRef, Snapshot
from vecdb.services.backup.repository import SAVE, Repository, snapshot_key
from vecdb.services.governor import Governor
from vecdb.services.operations import restore as restoring
from vecdb.services.operations.attach import AHEAD, Attach
from vecdb.services.operations.base import Step
from vecdb.services.operations.restore import Restore
from vecdb.shard.marks import MarkResult
from vecdb.storage.objects import open_objects

RECORDS, DIGEST = 3, f"{7:032x}"
NODES = ("n1", "n2", "n3")


class Restoring(Governed):
    """Nodes that load whatever they are asked for at once; ``records``: that every shard has then."""

    def __init__(self) -> None:
        super().__init__(3)
        self.there[0] = ("c1", *NODES)
        self.records = RECORDS

    def replicas(self, node: str) -> Any:
        found = super().replicas(node)

        async def propose(group: int, command: bytes, call: Call) -> Committed:
            return Committed(1, MarkResult(1, 1, self.records, DIGEST))

        found.propose = propose
        return found

    def move(self) -> None:
        for group, entry in self.now.shards.items():
            self.there[group] = entry.desired


class Backups:
    async def start(self, order: BackupOrder, call: Call) -> BackupStatus:
        return BackupStatus("done", 1, 1)

    async def stop(self, job: int, call: Call) -> None:
        """Nothing is under way."""


@dataclass
class Stage:
    governed: Restoring
    repository: Repository
    job: int
    kind: type[Restore] = Restore
    backups: Callable[[str], Any] = lambda node: Backups()
    why: str = ""

    def step(self, *, lost: bool = False) -> Step:
        """The next step by a process that knows nothing of those before; ``lost``: nobody wrote down what came of it.

        An error that may pass is tried again, another one is the job's end.
        """
        operation = self.kind(self.backups, lambda url, create=False: self.repository)
        entry = self.entry
        self.governed.move()
        try:
            step = asyncio.run(operation.step(entry, self.governed))
        except Unavailable:
            return Step(entry.phase)
        except VecdbError as error:
            self.why = error.message
            step = Step(entry.phase, state=JobState.FAILED, error=type(error).__name__, data=entry.data)
        if not lost:
            self.note(step)
        return step

    @property
    def entry(self) -> control.JobEntry:
        return self.governed.now.jobs[self.job]

    def note(self, step: Step) -> None:
        self.governed.do(control.job_update(
            self.job, state=step.state, phase=step.phase, done=step.done, total=step.total, unit=step.unit,
            error=step.error, data=orjson.loads(orjson.dumps(dict(step.data))), at_s=1.0))

    def until(self, phase: str) -> None:
        for _ in range(50):
            if self.step().phase == phase:
                return
        raise AssertionError(f"it does not come to {phase!r}")

    def end(self) -> Step:
        for _ in range(50):
            step = self.step()
            if step.state.ended:
                return step
        raise AssertionError("it does not end")


def staged(tmp_path: Path, kind: type[Restore], shards: int) -> Stage:
    repository = Repository(open_objects(f"file://{tmp_path}/place"), create=True)
    schema = CollectionSchema("docs", 4)
    refs = tuple(ShardRef(repository.add_shard(ShardManifest(schema, lo, hi, 5, 1, RECORDS, DIGEST, ())), 1, lo, hi, 5,
                          RECORDS, DIGEST, 0, "n1") for lo, hi in ranges(shards))
    lease = repository.lease(SAVE, "test")
    made = CollectionManifest(schema, 3, None, refs)
    repository.commit(Snapshot("one", SystemClock().wall(), "c", "1", (made,)), lease)
    lease.release()
    governed = Restoring()
    return Stage(governed, repository, governed.begin(kind.kind, "one", url=repository.url).id, kind)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return staged(tmp_path, Restore, 1)


def test_restored(stage: Stage) -> None:
    assert stage.end().state is JobState.DONE
    assert list(stage.governed.now.collections) == ["docs"]


def test_a_snapshot_that_is_deleted_meanwhile_leaves_no_name_taken(stage: Stage) -> None:
    stage.step()
    stage.step()
    assert list(stage.governed.now.loading) == ["docs"]
    stage.repository.objects.delete([snapshot_key("one")])
    ended = stage.end()
    assert (ended.state, ended.error) == (JobState.FAILED, SnapshotNotFound.__name__)
    assert dict(stage.governed.now.loading) == {}
    assert dict(stage.governed.now.shards) == {}


def test_what_was_abandoned_by_who_was_killed_then_is_not_said_to_be_restored(stage: Stage) -> None:
    stage.governed.records = RECORDS - 1
    stage.until("opening")
    assert stage.step(lost=True).error == "DataCorrupted"
    assert dict(stage.governed.now.loading) == {}
    ended = stage.end()
    assert (ended.state, ended.error) == (JobState.FAILED, CollectionNotFound.__name__)
    assert dict(stage.governed.now.collections) == {}


def test_what_was_opened_by_who_was_killed_then_is_restored(stage: Stage) -> None:
    stage.until("opening")
    stage.step(lost=True)
    assert list(stage.governed.now.collections) == ["docs"]
    assert stage.end().state is JobState.DONE


def operators(stage: Stage) -> OwnOperations:
    kinds: Any = {one.kind: one(stage.backups, lambda url, create=False: stage.repository)
                  for one in (Restore, Attach)}
    there: Any = Control(stage.governed)
    governor = Governor("c1", there, stage.governed.replicas, stage.governed, stage.governed.clock, kinds)
    return OwnOperations("c1", "c", there, governor, kinds, dict)


@pytest.mark.parametrize("kind", ["restore", "attach"])
def test_names_that_a_job_under_way_is_to_make_are_taken(stage: Stage, kind: str) -> None:
    """Its arguments say which, or its snapshot does."""
    own, url, first = operators(stage), stage.repository.url, stage.job

    async def plan(names: Any) -> None:
        await own.plan_job(kind, "one", {"url": url} if names is None else {"url": url, "collections": names}, Call())

    for names in (None, ["docs"]):
        with pytest.raises(CollectionExists, match=f"job {first} ") as caught:
            asyncio.run(plan(names))
        assert caught.value.fields["job"] == first
    once = Call(token=WriteToken(b"once"))
    args = {"url": url, "collections": {"docs": "other"}}
    second = asyncio.run(own.begin_job(kind, "one", args, once))
    assert asyncio.run(own.begin_job(kind, "one", args, once)) == second, "its own job is under way"
    with pytest.raises(CollectionExists, match=f"job {second} "):
        asyncio.run(plan({"docs": "other"}))
    stage.until("loading")
    stage.step()
    with pytest.raises(CollectionExists, match=f"job {first} "):
        asyncio.run(plan(["docs"]))
    assert stage.end().state is JobState.DONE
    with pytest.raises(CollectionExists, match="exists already"):
        asyncio.run(plan(None))
    stage.governed.do(control.job_update(second, state=JobState.FAILED, phase="", done=0, total=0, unit="", error="",
                                         data={}, at_s=1.0))
    asyncio.run(plan({"docs": "other"}))


def test_a_shard_whose_files_most_replicas_refuse_ends_the_job(tmp_path: Path) -> None:
    stage = staged(tmp_path, Attach, 1)
    refusing: dict[str, str] = {}

    class Refused(Restoring):
        async def leader(self, group: int) -> ReplicaStatus | None:
            return None

        def replicas(self, node: str) -> Any:
            class Replicas:
                async def status(self, groups: Any, call: Call) -> dict[int, ReplicaStatus]:
                    return {group: ReplicaStatus(f"{node}/1", "halted", "follower", 1, None, 1, 1, 1, 1, 0,
                                                 error=refusing[node]) for group in groups if node in refusing}

            return Replicas()

    stage.until("loading")
    stage.step()
    assert list(stage.governed.now.loading) == ["docs"]
    stage.governed.__class__ = Refused
    for more in ({}, {"n1": "DataCorrupted: x"}, {"n2": "StorageFull: no room"}):
        refusing |= more
        for _ in range(4):
            assert stage.step().state is JobState.RUNNING
    refusing["n2"] = "DataCorrupted: x"
    ended = stage.end()
    assert (ended.state, ended.error) == (JobState.FAILED, "DataCorrupted")
    assert (dict(stage.governed.now.loading), dict(stage.governed.now.shards)) == ({}, {})


def test_who_is_slower_than_others_at_many_shards_is_waited_for(tmp_path: Path) -> None:
    """What the others have by then has to be remembered, and there is room for so much."""
    stage = staged(tmp_path, Attach, 2 * AHEAD)

    class Slow(Backups):
        async def start(self, order: BackupOrder, call: Call) -> BackupStatus:
            return BackupStatus("running", 1, 2)

    stage.backups = lambda node: Slow() if node == "n3" else Backups()
    for _ in range(8):
        step = stage.step()
        assert step.state is JobState.RUNNING, step.error
    assert 0 < len(step.data["under_way"]) <= 3 * AHEAD
    stage.backups = lambda node: Backups()
    assert stage.end().state is JobState.DONE


@pytest.mark.parametrize("kind", [Restore, Attach])
def test_who_is_not_heard_when_shards_are_made_costs_no_replicas(tmp_path: Path, kind: type[Restore]) -> None:
    stage = staged(tmp_path, kind, 4)
    stage.governed.silent = {"n2": 6.0}
    assert stage.end().state is JobState.DONE
    assert stage.governed.now.get("docs").replication_factor == 3
    assert [sorted(one.desired) for one in stage.governed.now.of("docs")] == [list(NODES)] * 4


def test_who_is_heard_is_given_replicas_first(tmp_path: Path) -> None:
    stage = staged(tmp_path, Restore, 6)
    stage.governed.do(control.node_put(control.NodeEntry("n4", "h4:1", commands=2)))
    stage.governed.there[0] = ("c1", *NODES, "n4")
    stage.governed.silent = {"n2": 6.0}
    assert stage.end().state is JobState.DONE
    assert [sorted(one.desired) for one in stage.governed.now.of("docs")] == [["n1", "n3", "n4"]] * 6


def test_who_is_silent_and_is_no_member_of_the_control_group_is_not_waited_for(stage: Stage) -> None:
    stage.governed.there[0] = ("c1", "n1", "n3")
    stage.until("loading")
    for _ in range(3):
        stage.step()
    assert dict(stage.governed.now.loading) == {}, "it is heard, so it is about to be one"
    stage.governed.silent = {"n2": 6.0}
    assert stage.end().state is JobState.DONE
    assert (stage.governed.now.get("docs").replication_factor, stage.governed.now.only("docs").desired) == (
        3, ("n1", "n3"))


def test_without_word_of_a_majority_of_the_nodes_it_waits(stage: Stage) -> None:
    """One disk of three would acknowledge writes alone, or nobody would lead."""
    stage.governed.silent = {"n1": 6.0, "n2": 6.0}
    for _ in range(4):
        assert stage.step().state is JobState.RUNNING
    assert dict(stage.governed.now.loading) == {}
    stage.governed.silent = {"n1": 6.0}
    assert stage.end().state is JobState.DONE
    assert [sorted(one.desired) for one in stage.governed.now.of("docs")] == [list(NODES)]


def test_of_fewer_nodes_it_keeps_the_factor_and_says_so(stage: Stage) -> None:
    """A factor that is asked for is refused, as it is of a collection that is created."""
    stage.governed.do(control.node_state("n3", NodeState.DRAINED))
    own = operators(stage)
    for kind in ("restore", "attach"):
        args = {"url": stage.repository.url, "collections": {"docs": "other"}}
        notes = asyncio.run(own.plan_job(kind, "one", args, Call())).notes
        assert any(one.startswith("'other' is to have 3 replicas of each shard, and there are 2 nodes that hold any: ")
                   for one in notes), notes
        with pytest.raises(NoNodeForReplica, match="there are 2"):
            asyncio.run(own.plan_job(kind, "one", {**args, "replication_factor": 3}, Call()))
        stage.governed.silent = {"n2": 60.0}
        notes = asyncio.run(own.plan_job(kind, "one", args, Call())).notes
        assert any(one.startswith("n2 is not heard: ") for one in notes), notes
        stage.governed.silent = {}
    assert stage.end().state is JobState.DONE
    assert stage.governed.now.get("docs").replication_factor == 3
    assert [sorted(one.desired) for one in stage.governed.now.of("docs")] == [["n1", "n2"]]


def _other(stage: Stage) -> Stage:
    """Another job that was begun at the same instant, and makes the same."""
    return replace(stage, job=stage.governed.begin(stage.kind.kind, "one", url=stage.repository.url).id)


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("kind", [Restore, Attach])
def test_of_two_that_make_the_same_collection_one_does(tmp_path: Path, kind: type[Restore], steps: int) -> None:
    """``steps`` of the second before the first has taken the name."""
    first = staged(tmp_path, kind, 1)
    second = _other(first)
    for _ in range(min(steps, 1)):
        second.step()
    first.step()
    if steps == 2:
        second.step()
    else:
        first.step()
    winner, loser = (second, first) if steps == 2 else (first, second)
    assert winner.governed.now.shards[first.governed.now.loading["docs"].shards[0]].job == winner.job
    ended = loser.end()
    assert (ended.state, ended.error) == (JobState.FAILED, CollectionExists.__name__)
    assert loser.why == f"the name 'docs' is taken: job {winner.job} is to make it"
    assert list(first.governed.now.loading) == ["docs"], "what it makes is there"
    assert winner.end().state is JobState.DONE
    assert [one.job for one in first.governed.now.shards.values()] == [winner.job]
    assert [*first.repository.objects.list("leases/")] == []


@pytest.mark.parametrize("kind", ["restore", "attach"])
def test_the_plan_of_all_collections_names_them(stage: Stage, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.governed.do(control.job_update(stage.job, state=JobState.FAILED))
    own, args = operators(stage), {"url": stage.repository.url}
    assert asyncio.run(own.plan_job(kind, "one", args, Call())).notes[1] == "all collections: 'docs'"
    named = asyncio.run(own.plan_job(kind, "one", {**args, "collections": ["docs"]}, Call()))
    assert not any(one.startswith("all collections") for one in named.notes)
    monkeypatch.setattr(restoring, "NAMED", 0)
    assert asyncio.run(own.plan_job(kind, "one", args, Call())).notes[1].endswith(" and 1 more")


def test_of_two_whose_shards_are_made_at_once_one_does(tmp_path: Path) -> None:
    """Both found the name free, and the control group says whose it is."""
    first = staged(tmp_path, Attach, 1)
    second = _other(first)
    first.step()
    second.step()
    early = first.governed.now
    first.step()
    assert list(first.governed.now.loading) == ["docs"]
    second.governed.state = lambda: early  # type: ignore[method-assign]
    ended = second.step()
    assert (ended.state, ended.error) == (JobState.FAILED, CollectionExists.__name__)
    assert second.why == f"the name 'docs' is taken: job {first.job} is to make it"


def test_of_two_that_are_begun_at_once_the_second_is_refused(tmp_path: Path) -> None:
    stage = staged(tmp_path, Attach, 1)
    own, args = operators(stage), {"url": stage.repository.url, "collections": {"docs": "other"}}

    async def both() -> list[Any]:
        return await asyncio.gather(*(own.begin_job("attach", "one", args, Call()) for _ in range(2)),
                                    return_exceptions=True)

    first, second = asyncio.run(both())
    assert isinstance(second, CollectionExists)
    assert (second.fields["collection"], second.fields["job"]) == ("other", first)
    assert sorted(stage.governed.now.jobs) == [stage.job, first]


@pytest.mark.parametrize("kind", [Restore, Attach])
def test_cancelled_when_all_is_there_it_is_done_and_else_nothing_is_left(tmp_path: Path, kind: type[Restore]) -> None:
    stage = staged(tmp_path, kind, 1)
    stage.until("loading")
    stage.step()
    operation = kind(stage.backups, lambda url, create=False: stage.repository)
    assert not operation.too_late(stage.entry, stage.governed.now)
    step = asyncio.run(operation.cancel(stage.entry, stage.governed))
    assert (step.state, step.error, dict(stage.governed.now.loading)) == (JobState.CANCELLED, "", {})
    stage = _other(stage)
    stage.until("opening")
    stage.step(lost=True)
    assert list(stage.governed.now.collections) == ["docs"]
    assert operation.too_late(stage.entry, stage.governed.now) == "calls go to what it made"
    for _ in range(9):
        step = asyncio.run(operation.cancel(stage.entry, stage.governed))
        stage.note(step)
        if step.state.ended:
            break
    assert step.state is JobState.DONE
    assert list(stage.governed.now.collections) == ["docs"]


def test_cancelled_between_collections_it_says_which_stay(stage: Stage) -> None:
    operation = Restore(stage.backups, lambda url, create=False: stage.repository)
    stage.governed.do(control.job_update(stage.job, state=JobState.RUNNING, phase="loading", done=1, total=2,
                                         unit="shards", data={"next": 1, "names": ["first", "second"]}))
    step = asyncio.run(operation.cancel(stage.entry, stage.governed))
    assert (step.state, step.error) == (JobState.CANCELLED, "'first' was there by then, and stays")
