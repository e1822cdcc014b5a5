"""Snapshots and restores while nodes are killed: whoever dies, the job ends, and all of it is there or nothing is."""

import threading
import time
from pathlib import Path

import numpy as np

import vecdb
from tests.replicated.test_snapshots import ROWS, done, same
from tests.replicated_nodes import NAMES, Processes, wait_for
from vecdb.core.cluster import JobState
from vecdb.core.errors import VecdbError
from vecdb.storage.objects import open_objects


class Writer(threading.Thread):
    """Upserts one record after another; ``acknowledged`` are there for good."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self.over = threading.Event()
        self.acknowledged: list[int] = []

    def run(self) -> None:
        with vecdb.connect(self._url, timeout=20) as db:
            for number in range(100_000, 200_000):
                if self.over.is_set():
                    return
                try:
                    db["docs"].upsert([number], ROWS[:1])
                except VecdbError:
                    continue
                self.acknowledged.append(number)
                time.sleep(0.01)


def test_killed_one_after_the_other(tmp_path: Path) -> None:
    url, rows = f"file://{tmp_path}/place", np.tile(ROWS, (6, 1)) + np.arange(12_000, dtype=np.float32)[:, None] / 1e4
    with Processes(tmp_path, log_bytes=4 << 20) as cluster, vecdb.connect(cluster.urls, timeout=30) as db:
        docs = db.create_collection("docs", dim=rows.shape[1], metric="l2", shards=3)
        for at in range(0, len(rows), 2_000):
            docs.upsert(list(range(at, at + 2_000)), rows[at : at + 2_000])

        def begun(kind: str, name: str, **args: object) -> int:
            return int(wait_for(lambda: db.admin.cluster.begin(kind, name, {"url": url, **args}), f"begin {kind}"))

        def survives(number: int, phase: str) -> None:
            """Kill and start one node after the other, while the job goes on at a slow pace."""
            wait_for(lambda: db.admin.cluster.job(number).phase == phase, phase)
            for name in NAMES:
                cluster.nodes[name].kill()
                time.sleep(1.0)
                cluster.start([name])
            wait_for(lambda: JobState(db.admin.cluster.job(number).state).ended, "the end", 120.0)
            job = db.admin.cluster.job(number)
            assert job.state == JobState.DONE, job.error

        writer = Writer(cluster.urls)
        writer.start()
        survives(begun("snapshot", "busy", bytes_per_s=60_000), "saving")
        writer.over.set()
        writer.join(60)
        assert writer.acknowledged
        for at in range(0, len(writer.acknowledged), 1_000):
            some = writer.acknowledged[at : at + 1_000]
            assert [one.id for one in docs.fetch(some, include=())] == some
        done(db, "snapshot", "quiet", url=url)
        for name in ("busy", "quiet"):
            done(db, "snapshot_verify", name, url=url)
        number = begun("restore", "quiet", collections={"docs": "back"}, shards=2, bytes_per_s=60_000)
        survives(number, "loading")
        same(db, "docs", db, "back")
        for name in ("busy", "quiet"):
            done(db, "snapshot_delete", name, url=url)
        assert [*open_objects(url).list("objects/")] == []
