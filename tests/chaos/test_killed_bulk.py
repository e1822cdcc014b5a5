"""Attaching while nodes are killed, first who runs the job: it ends, and all of it is there on every replica."""

import time
from pathlib import Path

import vecdb
from tests.bulk import ROWS, built
from tests.replicated_nodes import NAMES, Processes, wait_for
from vecdb.core.cluster import JobState


def test_killed_while_files_are_fetched_and_after(tmp_path: Path) -> None:
    built(tmp_path, shards=2, replication_factor=3)
    url = f"file://{tmp_path}/place"
    with Processes(tmp_path) as cluster, vecdb.connect(cluster.urls, timeout=30) as db:
        number = int(wait_for(lambda: db.admin.cluster.begin("attach", "docs", {"url": url, "bytes_per_s": 150_000}),
                              "the job"))
        wait_for(lambda: db.admin.cluster.job(number).phase == "loading", "loading")
        runs = cluster.leader("")
        for name in (runs, next(one for one in NAMES if one != runs)):
            cluster.nodes[name].kill()
            time.sleep(0.5)
            cluster.start([name])
        wait_for(lambda: JobState(db.admin.cluster.job(number).state).ended, "the end", 120.0)
        job = db.admin.cluster.job(number)
        assert job.state == JobState.DONE, job.error
        docs = db["docs"]
        assert docs.count() == len(ROWS)
        docs.upsert([9_999], ROWS[:1])
        victim = cluster.nodes[NAMES[0]]  # a log that begins behind its adopted state
        victim.kill()
        docs.upsert([9_998], ROWS[:1])
        cluster.start([victim.name])
        for one in db.admin.shards("docs"):
            wait_for(lambda group=one.group: (lambda found: found.agree and found.complete)(
                db.admin.verify_shard(f"docs@{group}", deep=True)), "replicas to agree")
        assert docs.count() == len(ROWS) + 2
