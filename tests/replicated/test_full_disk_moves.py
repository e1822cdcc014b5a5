"""A shard is moved to a node whose disk is full: the job waits, its state says why, and it can be taken back."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.faults import fill, needs_mount, small_filesystem
from tests.grown_nodes import COORDINATORS, Grown
from tests.replicated_nodes import agreed, wait_for

ROWS = np.random.default_rng(8).normal(size=(4_000, 256)).astype(np.float32)


def replicas(db: Any) -> dict[str, Any]:
    return {one.node: one for one in db.admin.shards("docs")[0].replicas}


def move(db: Any, source: str) -> int:
    return int(db.admin.cluster.begin("move", str(db.admin.shards("docs")[0].group), {"from": source, "to": "s1"}))


@needs_mount
def test_a_move_to_a_full_disk_waits_and_is_taken_back(tmp_path: Path) -> None:
    with small_filesystem(tmp_path / "s1", 96 << 20), Grown(tmp_path, role="both") as nodes:
        nodes.found()
        with nodes.connect(*COORDINATORS) as db:
            docs = db.create_collection("docs", dim=256)
            for at in range(0, 4_000, 500):
                docs.upsert(ids=range(at, at + 500), vectors=ROWS[at:at + 500])
            nodes.add("s1", nodes.joining("s1", nodes.token()))
            nodes.takes_part("s1")
            before = replicas(db)
            source = min(before)
            ballast = fill(tmp_path / "s1", 256 << 10)
            job = move(db, source)
            lost = wait_for(lambda: (one := replicas(db).get("s1")) is not None and one.state == "halted" and one,
                            "the end of room")
            assert "StorageFull" in lost.error
            wait_for(lambda: any("disk has failed" in why for why in nodes.reasons("s1")), "word of its disk")
            docs.upsert(ids=["meanwhile"], vectors=ROWS[:1])
            assert docs.query(ROWS[7], k=1).ids == [7]
            assert db.admin.cluster.job(job).state == "running", "it waits for room"
            assert set(before) < set(replicas(db)), "nobody has lost a replica"
            db.admin.cluster.cancel(job)
            wait_for(lambda: db.admin.cluster.job(job).state == "cancelled", "the end of the job")
            wait_for(lambda: set(replicas(db)) == set(before) and db.admin.shards("docs")[0].healthy, "what was before")
            ballast.unlink()
            nodes.stop(["s1"])
            nodes.start(["s1"])
            nodes.takes_part("s1")
            job = move(db, source)
            wait_for(lambda: db.admin.cluster.job(job).state == "done", "the move, with room")
            wait_for(lambda: set(replicas(db)) == {*before, "s1"} - {source}, "the replica that moved, and it alone")
            assert {one.records for one in agreed(db, "docs").replicas} == {4_001}
