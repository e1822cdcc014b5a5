"""Three nodes, and a disk that is slow or hangs: writes go on, leaderships move off it, and operators are told."""

import asyncio
import time

import numpy as np
import pytest

import vecdb
from tests.replicated_nodes import NAMES, Together, agreed, wait_for
from tests.slow_disks import SlowDisks, slow_disks
from vecdb.cli.peers import members

ROWS = np.random.default_rng(5).normal(size=(400, 8)).astype(np.float32)


@pytest.fixture
def disks():
    with slow_disks() as made:
        yield made


@pytest.fixture
def nodes(tmp_path, disks: SlowDisks):
    made = Together(tmp_path)
    try:
        yield made
    finally:
        disks.well()
        made.stop()


def leader_of(db: vecdb.Database, name: str) -> str:
    def led() -> str | None:
        leader = next(one.leader for one in db.admin.shards() if one.collection == name)
        return None if leader is None else leader.partition("/")[0]

    return str(wait_for(led, f"a leader of {name!r}"))


def others(node: str) -> list[str]:
    return [one for one in NAMES if one != node]


def all_agree(db: vecdb.Database) -> None:
    """Once all disks are well again: every replica comes to hold the same."""
    wait_for(lambda: all(one.healthy and all(replica.lag == 0 for replica in one.replicas)
                         for one in db.admin.shards()), "all replicas level")
    agreed(db, "docs")


def test_writes_do_not_wait_for_the_disk_of_a_follower(nodes: Together, disks: SlowDisks, tmp_path) -> None:
    with vecdb.connect(nodes.url, timeout=60) as db:
        docs = db.create_collection("docs", dim=8)
        follower = others(leader_of(db, "docs"))[0]
        disks.slow(tmp_path / follower)
        for at in range(0, 400, 20):
            docs.upsert(ids=range(at, at + 20), vectors=ROWS[at:at + 20])
        assert docs.count() == 400
        assert disks.waited, "its disk was asked"
        disks.well()
        all_agree(db)


def test_a_leader_whose_disk_hangs_gives_way(nodes: Together, disks: SlowDisks, tmp_path) -> None:
    """Of every group it leads; what was begun before is done once, by whoever leads then."""
    with vecdb.connect(nodes.url, timeout=60) as db:
        docs = db.create_collection("docs", dim=8)
        docs.upsert(ids=range(20), vectors=ROWS[:20])
        before = leader_of(db, "docs")
        db.admin.transfer_leader("", before)
        disks.slow(tmp_path / before)
        for at in range(20, 400, 20):
            docs.upsert(ids=range(at, at + 20), vectors=ROWS[at:at + 20])
        assert docs.count() == 400
        assert leader_of(db, "docs") != before
        wait_for(lambda: leader_of(db, "") != before, "another leader of the control group")
        db.create_collection("more", dim=8).upsert(ids=[1], vectors=ROWS[:1])
        disks.well()
        all_agree(db)


def test_writes_by_way_of_the_node_whose_disk_hangs_do_not_wait_for_it(nodes: Together, disks: SlowDisks, tmp_path
                                                                       ) -> None:
    """What it had begun as leader is asked of the next one, and so is all that comes after."""
    with vecdb.connect(nodes.url, timeout=60) as db:
        docs = db.create_collection("docs", dim=8)
        docs.upsert(ids=range(20), vectors=ROWS[:20])
        before = leader_of(db, "docs")
        disks.slow(tmp_path / before)
        port = nodes.addresses[NAMES.index(before)]["grpc_port"]
        with vecdb.connect(f"grpc://127.0.0.1:{port}", timeout=30) as there:
            for at in range(20, 80, 20):
                assert there["docs"].upsert(ids=range(at, at + 20), vectors=ROWS[at:at + 20]).inserted == 20
        assert disks.waited, "its disk was asked"
        assert docs.count(consistency="linearizable") == 80
        disks.well()
        all_agree(db)


def test_a_node_that_stops_waits_for_its_disk_and_its_loop_does_not(nodes: Together, disks: SlowDisks, tmp_path
                                                                    ) -> None:
    """All three have one loop here: what held it up would hold up the others."""
    with vecdb.connect(nodes.url, timeout=60) as db:
        docs = db.create_collection("docs", dim=8)
        docs.upsert(ids=range(20), vectors=ROWS[:20])
        stopped = others(leader_of(db, "docs"))[0]
        disks.slow(tmp_path / stopped)
        docs.upsert(ids=range(20, 40), vectors=ROWS[20:40])
        wait_for(lambda: disks.waited, "a sync that hangs")
        node = nodes.running.pop(NAMES.index(stopped))
        closing = asyncio.run_coroutine_threadsafe(node.close(0.5), nodes._loop)
        for at in range(40, 340, 20):
            docs.upsert(ids=range(at, at + 20), vectors=ROWS[at:at + 20])
            time.sleep(0.1)
        assert not closing.done(), "what it was told is not on its disk"
        disks.well()
        closing.result(60)
        assert docs.count() == 340


def test_a_slow_disk_slows_writes_and_is_told_of(nodes: Together, disks: SlowDisks, tmp_path) -> None:
    with vecdb.connect(nodes.url, timeout=60) as db:
        docs = db.create_collection("docs", dim=8)
        leader = leader_of(db, "docs")
        disks.slow(tmp_path / leader, 0.3)
        for at in range(0, 100, 20):
            docs.upsert(ids=range(at, at + 20), vectors=ROWS[at:at + 20])
        assert docs.count() == 100
        wait_for(lambda: any(one.name == "disks of nodes" and one.state == "warn" and f"{leader} took" in one.found
                             for one in members(db, 20.0)[0]), f"a warning of the disk of {leader}")
        disks.well()
        all_agree(db)
