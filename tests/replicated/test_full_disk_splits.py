"""A shard is split and a disk fills meanwhile: writes and reads go on, and the split does, once it can."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults import fill, needs_mount, small_filesystem
from tests.grown_nodes import COORDINATORS, Grown
from tests.replicated_nodes import wait_for
from vecdb.core.cluster import JobInfo
from vecdb.services import copying as copies
from vecdb.services import governor

ROWS = np.random.default_rng(8).normal(size=(2_000, 256)).astype(np.float32)
SLOWLY = {"bytes_per_s": 400_000}
"""Of two megabytes: time for a disk to fill."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands says so without delay."""
    monkeypatch.setattr(copies, "PROPOSE_S", 1.0)
    monkeypatch.setattr(governor, "PROGRESS_S", 0.2)


class Writer(threading.Thread):
    """Writes one record after the other; each must be acknowledged, and stay."""

    def __init__(self, docs: Any) -> None:
        super().__init__(daemon=True)
        self._docs = docs
        self._over = threading.Event()
        self.count = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._over.wait(0.05):
                self._docs.upsert(ids=[f"w{self.count}"], vectors=ROWS[:1], timeout=30)
                self.count += 1
                assert self._docs.query(ROWS[7], k=1).ids == [7]
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        self._over.set()
        self.join(60)
        assert self.error is None, self.error
        assert self.count > 5


@contextmanager
def written(docs: Any) -> Iterator[Writer]:
    """Records that are there, and a writer of more."""
    for at in range(0, len(ROWS), 500):
        docs.upsert(ids=range(at, at + 500), vectors=ROWS[at:at + 500])
    writer = Writer(docs)
    writer.start()
    try:
        yield writer
    finally:
        writer.end()


def split(db: Any, how: dict[str, Any]) -> int:
    (shard,) = db.admin.shards("docs")
    return int(db.admin.cluster.begin("split", str(shard.group), how))


def copying(info: JobInfo) -> bool:
    return info.phase == "copy"


def until(db: Any, job: int, is_so: Callable[[JobInfo], bool]) -> JobInfo:
    found: JobInfo = wait_for(lambda: (info := db.admin.cluster.job(job)) and is_so(info) and info, f"job {job}", 90.0)
    return found


def ended(info: JobInfo) -> bool:
    """Or as good as: calls go to the new shards, and the old one stays for who has not heard."""
    assert info.state != "failed", info.error
    return info.phase == "retire" or info.state in ("done", "cancelled")


def all_agree(db: Any, replicas: int, records: int) -> None:
    wait_for(lambda: all(one.healthy for one in db.admin.shards("docs")), "health")
    found = [db.admin.verify_shard(f"docs@{one.group}", deep=True) for one in db.admin.shards("docs")]
    assert [(one.agree, one.complete, len(one.replicas)) for one in found] == [(True, True, replicas)] * 2
    assert sum(one.replicas[0].records for one in found) == records


@needs_mount
def test_new_shards_without_room_are_waited_for_and_taken_back(tmp_path: Path) -> None:
    """They have one replica each, on a node whose disk fills."""
    with small_filesystem(tmp_path / "s2", 96 << 20), Grown(tmp_path) as nodes:
        nodes.found()
        nodes.add("s1", nodes.joining("s1", nodes.token(), role="shard"))
        nodes.takes_part("s1")
        with nodes.connect(*COORDINATORS) as db:
            docs = db.create_collection("docs", dim=256, replication_factor=1)
            with written(docs) as writer:
                nodes.add("s2", nodes.joining("s2", nodes.token(), role="shard"))
                nodes.takes_part("s2")
                before = db.admin.shards("docs")
                job = split(db, SLOWLY)
                until(db, job, copying)
                ballast = fill(tmp_path / "s2", 128 << 10)
                stands = until(db, job, lambda info: "the disk is full" in info.error)
                assert (stands.state, stands.phase) == ("running", "copy"), "it waits for room"
                assert any("StorageFull" in why for why in nodes.reasons("s2"))
                db.admin.cluster.cancel(job)
                assert until(db, job, ended).state == "cancelled"
                after = db.admin.shards("docs")
                assert [(one.group, one.healthy) for one in after] == [(one.group, True) for one in before]
                ballast.unlink()
                nodes.stop(["s2"])
                nodes.start(["s2"])
                nodes.takes_part("s2")
                assert until(db, split(db, {}), ended).error == ""
            all_agree(db, 1, len(ROWS) + writer.count)


@needs_mount
def test_a_leader_without_room_gives_way_and_the_split_goes_on(tmp_path: Path) -> None:
    """The one node leads all there is, and has replicas of the new shards; the others are enough."""
    with small_filesystem(tmp_path / "c1", 96 << 20), Grown(tmp_path, role="both") as nodes:
        nodes.found()
        with nodes.connect(*COORDINATORS) as db:
            with written(db.create_collection("docs", dim=256)) as writer:
                for name in ("docs", ""):
                    db.admin.transfer_leader(name, "c1")
                job = split(db, SLOWLY)
                until(db, job, copying)
                ballast = fill(tmp_path / "c1", 128 << 10)
                assert until(db, job, ended).error == ""
                wait_for(lambda: any("StorageFull" in why for why in nodes.reasons("c1")), "the end of room")
                count = writer.count
                wait_for(lambda: writer.count > count + 5 or writer.error, "writes to the new shards by any node")
                ballast.unlink()
                nodes.stop(["c1"])
                nodes.start(["c1"])
                nodes.ready()
            all_agree(db, 3, len(ROWS) + writer.count)
