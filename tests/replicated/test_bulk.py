"""Shards that were built apart, attached to running clusters by their files."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.bulk import ROWS, built
from tests.replicated_nodes import Together, wait_for
from vecdb.app import repositories
from vecdb.config import BackupSettings
from vecdb.core.cluster import JobInfo, JobState
from vecdb.core.errors import CollectionExists, InvalidArgument
from vecdb.segment.sealed import SealedView
from vecdb.services.backup.manifest import ShardManifest
from vecdb.services.backup.repository import SAVE
from vecdb.services.governor import GovernorContext
from vecdb.services.operations.backing import UNHEARD_S
from vecdb.services.replica import ShardReplica
from vecdb.storage.objects import open_objects


def begun(db: Any, **args: Any) -> int:
    number: int = db.admin.cluster.begin("attach", "docs", args)
    return number


def ended(db: Any, number: int) -> JobInfo:
    wait_for(lambda: JobState(db.admin.cluster.job(number).state).ended, f"the end of job {number}", 90.0)
    found: JobInfo = db.admin.cluster.job(number)
    return found


def done(db: Any, number: int) -> None:
    job = ended(db, number)
    assert job.state == JobState.DONE, job.error


def replicas(running: Together, name: str) -> dict[str, list[ShardReplica]]:
    """Of each shard of a collection, by its label."""
    found: dict[str, list[ShardReplica]] = {}
    for node in running.running:
        hosting = node._member.hosting
        for label in hosting._database.hosted():
            if label.partition("@")[0] == name:
                found.setdefault(label, []).append(hosting.machine(label))
    return found


def agree(db: Any, name: str) -> None:
    for one in db.admin.shards(name):
        wait_for(partial(agreed, db, f"{name}@{one.group}"), "replicas to agree")


def agreed(db: Any, label: str) -> bool:
    found = db.admin.verify_shard(label, deep=True)
    return bool(found.agree and found.complete)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    running = Together(tmp_path_factory.mktemp("bulk"), background=False)
    with vecdb.connect(running.url) as db:  # nodes are entered one after the other, and here nothing is filled later
        wait_for(lambda: len(db.admin.cluster.info().nodes) == len(running.running), "all nodes to be entered")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    built(folder)
    return folder / "place"


def test_what_was_built_serves_on_every_replica_and_no_record_went_through_a_log(running: Together,
                                                                                place: Path) -> None:
    with vecdb.connect(running.url) as db:
        done(db, begun(db, url=f"file://{place}"))
        docs = db["docs"]
        assert docs.count() == len(ROWS)
        found = {one.id: one.vector for one in docs.scan(include=("vector",))}
        assert all(np.array_equal(np.asarray(found[number]), row) for number, row in enumerate(ROWS))
        near = docs.query(ROWS[:50], k=1)
        assert sum(hits[0].id == number for number, hits in enumerate(near)) >= 49
        agree(db, "docs")
        held = replicas(running, "docs")
        assert [len(held[label]) for label in sorted(held)] == [2, 2, 2]
        for label, machines in held.items():
            for machine in machines:
                segments = machine.service.view.segments
                assert [type(one).__name__ for one in segments] == ["SealedView", "GrowingView"], label
                assert isinstance(segments[0], SealedView)
                assert segments[0].segment.ann.graph is not None
                assert machine.floor > 0
        wait_for(lambda: not any(machine.home.adopting.exists() for machines in held.values() for machine in machines),
                 "what was fetched to be gone")
        wait_for(lambda: all(replica.first > 1 for one in db.admin.shards("docs") for replica in one.replicas),
                 "logs that begin behind what was adopted")
        assert all(replica.last < 40 for one in db.admin.shards("docs") for replica in one.replicas)
        docs.upsert([5, 9_000], ROWS[:2], [{"n": 1}, {"n": 2}])
        docs.delete([6])
        assert docs.count() == len(ROWS)
        place.rename(place.with_name("away"))  # who comes later gets a snapshot
        done(db, db.admin.cluster.begin("replication", "docs", {"factor": 3}))
        wait_for(lambda: all(len(one) == 3 for one in replicas(running, "docs").values()), "three replicas of each")
        agree(db, "docs")
        assert docs.fetch([9_000])[0].metadata == {"n": 2}
        place.with_name("away").rename(place)
        for some in ({"collections": ["docs"]}, {}):
            with pytest.raises(CollectionExists):
                begun(db, url=f"file://{place}", **some)
        assert docs.count() == len(ROWS)
        with pytest.raises(InvalidArgument):
            begun(db, url=f"file://{place}", collections={"docs": "x"}, shards=2)


def test_who_is_not_heard_when_shards_are_placed_has_its_replicas_all_the_same(
        running: Together, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GovernorContext, "heard_s", lambda self, node: 2.0 * UNHEARD_S - 1.0 if node == "n2" else 0.0)
    with vecdb.connect(running.url) as db:
        done(db, begun(db, url=f"file://{place}", collections={"docs": "unheard"}, replication_factor=3))
        assert db["unheard"].describe().details["replication_factor"] == 3
        wait_for(lambda: all(len(one) == 3 for one in replicas(running, "unheard").values()), "three replicas of each")
        agree(db, "unheard")
        db.drop_collection("unheard")


def test_cancelled_it_leaves_nothing(running: Together, place: Path) -> None:
    with vecdb.connect(running.url) as db:
        number = begun(db, url=f"file://{place}", collections={"docs": "never"}, bytes_per_s=2_000)
        wait_for(lambda: db.admin.cluster.job(number).phase == "loading", "loading")
        for kind in ("attach", "restore"):
            with pytest.raises(CollectionExists, match=f"job {number} "):
                db.admin.cluster.begin(kind, "docs", {"url": f"file://{place}", "collections": {"docs": "never"}})
        db.admin.cluster.cancel(number)
        assert "never" not in db.list_collections()
        assert ended(db, number).state == JobState.CANCELLED
        db.create_collection("never", dim=4)
        db.drop_collection("never")


def test_shards_that_no_record_is_of_are_attached_with_the_others(running: Together, tmp_path: Path) -> None:
    built(tmp_path, rows=ROWS[:1])
    with vecdb.connect(running.url) as db:
        done(db, begun(db, url=f"file://{tmp_path}/place", collections={"docs": "few"}))
        few = db["few"]
        assert (few.count(), len(db.admin.shards("few"))) == (1, 3)
        few.upsert(list(range(40)), ROWS[:40])
        assert few.count() == 40
        agree(db, "few")
        db.drop_collection("few")


def otherwise(folder: Path, name: str, change: Callable[[ShardManifest], ShardManifest]) -> None:
    """Another snapshot of what was built, one of whose shards is said to be something else than it is."""
    repository = repositories(BackupSettings())(f"file://{folder}/place")
    before = repository.load("docs")
    (collection,) = before.collections
    first, *others = collection.shards
    shard = change(repository.shard(first))
    first = replace(first, sha256=repository.add_shard(shard), digest=shard.digest)
    lease = repository.lease(SAVE, name)
    repository.commit(replace(before, name=name, collections=(replace(collection, shards=(first, *others)),)), lease)
    lease.release()


@pytest.mark.parametrize("change", [
    lambda shard: replace(shard, digest="0" * 32),
    lambda shard: replace(shard, files=tuple(one for one in shard.files if not one.name.endswith("/vectors.vdb"))),
], ids=["before they are adopted", "when they are adopted"])
def test_files_that_replicas_refuse_end_the_job_and_leave_nothing(running: Together, tmp_path: Path,
                                                                  change: Any) -> None:
    built(tmp_path, rows=ROWS[:200])
    otherwise(tmp_path, "wrong", change)
    with vecdb.connect(running.url) as db:
        job = ended(db, db.admin.cluster.begin("attach", "wrong", {"url": f"file://{tmp_path}/place",
                                                                   "collections": {"docs": "wrong"}}))
        assert (job.state, job.phase) == (JobState.FAILED, "loading")
        assert "DataCorrupted" in job.error
        assert "wrong" not in db.list_collections()
        wait_for(lambda: not replicas(running, "wrong"), "replicas to be gone", 60.0)
        db.create_collection("wrong", dim=4)
        db.drop_collection("wrong")


def test_damaged_files_are_never_adopted(running: Together, tmp_path: Path) -> None:
    built(tmp_path)
    url = f"file://{tmp_path}/place"
    largest = max(open_objects(url).list("objects/"), key=lambda one: one.bytes)
    path = tmp_path / "place" / largest.key
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with vecdb.connect(running.url) as db:
        job = ended(db, begun(db, url=url, collections={"docs": "bad"}))
        assert job.state == JobState.FAILED
        assert "checksum" in job.error
        assert "bad" not in db.list_collections()
        db.create_collection("bad", dim=4)
        db.drop_collection("bad")
