"""Snapshots of a cluster: made while it is written, verified, restored into another one of another shape."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.objects_server import make_bucket, s3_server
from tests.replicated_nodes import Together, wait_for
from vecdb.config import BackupSettings, Settings
from vecdb.core.cluster import JobInfo, JobState
from vecdb.core.errors import CollectionExists, CollectionNotFound, InvalidArgument, SnapshotNotFound
from vecdb.storage.objects import ObjectAccess, open_objects

DIM = 16
ROWS = np.random.default_rng(5).standard_normal((2_000, DIM)).astype(np.float32)


def ended(db: Any, kind: str, target: str, **args: Any) -> JobInfo:
    """A job's end."""
    number = db.admin.cluster.begin(kind, target, args)
    wait_for(lambda: JobState(db.admin.cluster.job(number).state).ended, f"the end of {kind} {target}", 90.0)
    found: JobInfo = db.admin.cluster.job(number)
    return found


def done(db: Any, kind: str, target: str, **args: Any) -> JobInfo:
    job = ended(db, kind, target, **args)
    assert job.state == JobState.DONE, job.error
    return job


def fill(db: Any) -> None:
    docs = db.create_collection("docs", dim=DIM, shards=3)
    docs.upsert(list(range(1_000)), ROWS[:1_000], [{"n": number} for number in range(1_000)])
    docs.delete(list(range(0, 100, 2)))
    tenants = db.create_collection("tenants", dim=DIM, metric="l2", shards=2, shard_key="tenant")
    tenants.upsert([f"t{number}" for number in range(500)], ROWS[:500],
                   [{"tenant": f"x{number % 17}"} for number in range(500)])
    db.create_collection("empty", dim=4)


def same(db: Any, name: str, other: Any, theirs: str) -> None:
    ours = {one.id: (one.metadata, one.vector.tobytes()) for one in db[name].scan(include=("metadata", "vector"))}
    found = {one.id: (one.metadata, one.vector.tobytes()) for one in other[theirs].scan(include=("metadata", "vector"))}
    assert ours == found


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Together, Any]]:
    running = Together(tmp_path_factory.mktemp("filled"), background=False)
    try:
        with vecdb.connect(running.url) as db:
            fill(db)
            yield running, db
    finally:
        running.stop()


def test_there_and_back_into_a_cluster_of_other_shards(filled: tuple[Together, Any], tmp_path: Path) -> None:
    _, db = filled
    url = f"file://{tmp_path}/place"
    done(db, "snapshot", "one", url=url)
    done(db, "snapshot_verify", "one", url=url)
    assert [*open_objects(url).list("jobs/")] == []
    assert [*open_objects(url).list("leases/")] == []
    other = Together(tmp_path / "other", background=False)
    try:
        with vecdb.connect(other.url) as there:
            done(there, "restore", "one", url=url)
            for name in ("docs", "tenants", "empty"):
                same(db, name, there, name)
            assert there["docs"].count() == 950
            done(there, "restore", "one", url=url, collections={"docs": "apart"}, shards=5, replication_factor=1)
            same(db, "docs", there, "apart")
            assert len(there.admin.shards("apart")) == 5
            hits = there["apart"].query(ROWS[7], k=1)
            assert hits[0].id == db["docs"].query(ROWS[7], k=1)[0].id
            there["apart"].upsert([10_000], ROWS[:1])
            assert there["apart"].count() == 951
            for some in ({"collections": ["docs"]}, {}):
                with pytest.raises(CollectionExists):
                    there.admin.cluster.begin("restore", "one", {"url": url, **some})
            assert there["docs"].count() == 950
    finally:
        other.stop()


def test_only_what_is_new(filled: tuple[Together, Any], tmp_path: Path) -> None:
    _, db = filled
    url = f"file://{tmp_path}/place"
    done(db, "snapshot", "one", url=url, collections=["docs", "tenants"])
    before = {one.key for one in open_objects(url).list("objects/")}
    done(db, "snapshot", "two", url=url, collections=["docs", "tenants"])
    after = {one.key for one in open_objects(url).list("objects/")}
    assert before <= after
    job = done(db, "snapshot_delete", "one", url=url)
    assert job.done == len(before - {one.key for one in open_objects(url).list("objects/")})
    done(db, "snapshot_verify", "two", url=url)
    with pytest.raises(SnapshotNotFound):
        ended(db, "snapshot_verify", "one", url=url)
    done(db, "snapshot_delete", "two", url=url)
    assert [*open_objects(url).list("objects/")] == []


def test_a_damaged_one_is_found_and_never_half_restored(filled: tuple[Together, Any], tmp_path: Path) -> None:
    _, db = filled
    url = f"file://{tmp_path}/place"
    done(db, "snapshot", "one", url=url, collections=["docs"])
    largest = max(open_objects(url).list("objects/"), key=lambda one: one.bytes)
    path = tmp_path / "place" / largest.key
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    job = ended(db, "snapshot_verify", "one", url=url)
    assert job.state == JobState.FAILED
    assert "docs" in job.error
    job = ended(db, "restore", "one", url=url, collections={"docs": "again"})
    assert job.state == JobState.FAILED
    assert "again" not in db.list_collections()
    assert not any(one.collection == "again" for one in db.admin.shards())
    db.create_collection("again", dim=4)
    db.drop_collection("again")


def test_what_makes_no_sense_is_refused(filled: tuple[Together, Any], tmp_path: Path) -> None:
    _, db = filled
    begin = db.admin.cluster.begin
    for args in ({}, {"url": "ftp://x"}, {"url": f"file://{tmp_path}", "what": 1}, {"url": 5},
                 {"url": "s3://user:secret@bucket"}, {"url": f"file://{tmp_path}", "bytes_per_s": -1},
                 {"url": f"file://{tmp_path}", "collections": []}):
        with pytest.raises(InvalidArgument) as caught:
            begin("snapshot", "one", args)
        assert "secret" not in str(caught.value)
    with pytest.raises(InvalidArgument):
        begin("snapshot", "../x", {"url": f"file://{tmp_path}"})
    with pytest.raises(CollectionNotFound):
        begin("snapshot", "one", {"url": f"file://{tmp_path}", "collections": ["nobody"]})
    with pytest.raises(InvalidArgument):
        begin("restore", "one", {"url": f"file://{tmp_path}", "shards": 0.5})
    with pytest.raises(InvalidArgument, match="there is no folder"):
        begin("restore", "nobody", {"url": f"file://{tmp_path}/none"})
    assert not (tmp_path / "none").exists()


def test_cancelled_nothing_is_left(filled: tuple[Together, Any], tmp_path: Path) -> None:
    _, db = filled
    url = f"file://{tmp_path}/place"
    done(db, "snapshot", "one", url=url, collections=["docs"])
    number = db.admin.cluster.begin("restore", "one", {"url": url, "collections": {"docs": "slow"},
                                                       "bytes_per_s": 1_000})
    wait_for(lambda: db.admin.cluster.job(number).phase == "loading", "loading")
    assert "slow" not in db.list_collections()
    with pytest.raises(CollectionNotFound):
        db["slow"].count()
    db.admin.cluster.cancel(number)
    wait_for(lambda: db.admin.cluster.job(number).state == JobState.CANCELLED, "the cancelling")
    db.create_collection("slow", dim=4)
    db.drop_collection("slow")
    number = db.admin.cluster.begin("snapshot", "two", {"url": url, "bytes_per_s": 1_000})
    wait_for(lambda: db.admin.cluster.job(number).phase == "saving", "saving")
    db.admin.cluster.cancel(number)
    wait_for(lambda: db.admin.cluster.job(number).state == JobState.CANCELLED, "the cancelling")
    assert {one.key for one in open_objects(url).list("snapshots/")} == {"snapshots/one.json"}
    assert [*open_objects(url).list("jobs/")] == []
    assert [*open_objects(url).list("leases/")] == []
    done(db, "snapshot_verify", "one", url=url)


def test_by_way_of_a_bucket(tmp_path: Path) -> None:
    with s3_server() as access:
        make_bucket(access, "vecdb-cluster")
        url = f"s3://vecdb-cluster/{tmp_path.name}"
        running = Together(tmp_path, settings=lambda made: with_access(made, access), background=False)
        try:
            with vecdb.connect(running.url) as db:
                docs = db.create_collection("docs", dim=DIM, shards=2)
                docs.upsert(list(range(500)), ROWS[:500])
                done(db, "snapshot", "one", url=url)
                done(db, "snapshot_verify", "one", url=url)
                done(db, "restore", "one", url=url, collections={"docs": "back"}, shards=1)
                same(db, "docs", db, "back")
                with pytest.raises(InvalidArgument, match="no place that this node may use") as refused:
                    db.admin.cluster.begin("snapshot", "x", {"url": "s3://vecdb-elsewhere"})
                told = str([refused.value, db.admin.cluster.jobs(ended=True)])
                assert access.secret_access_key not in told
                assert access.access_key_id not in told
                done(db, "snapshot_delete", "one", url=url)
                assert [*open_objects(url, access).list("objects/")] == []
        finally:
            running.stop()


def with_access(made: Settings, access: ObjectAccess) -> Settings:
    return made.model_copy(update={"backup": BackupSettings(
        urls=("s3://vecdb-cluster",), s3_endpoint=access.endpoint, s3_region=access.region,
        s3_access_key_id=access.access_key_id, s3_secret_access_key=access.secret_access_key)})
