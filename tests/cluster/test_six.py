"""Three coordinators and four shard nodes in containers: hurt under load, and changed under load.

Every round ends healed: what was acknowledged is on every replica, all digests agree, and of all queries meanwhile none
was wrong.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vecdb
from tests.chaos.worker import record_of
from tests.cluster.alone import refuses, refuses_but_answers
from tests.cluster.compose import COORDINATORS, SHARD_NODES, ComposeCluster, Node
from tests.cluster.load import RECALL, SENSES, SMALL, Load, Senses
from tests.cluster.tools import library
from tests.faults import ROOT
from vecdb.core.cluster import JobInfo

pytestmark = pytest.mark.timeout(300)
FILES = ("docker-compose.yml", "docker-compose.chaos.yml")
THREE_FILES = ("docker-compose.three.yml", "docker-compose.three.chaos.yml")
BALLAST = "/data/ballast"
STALL, PRELOAD = "/tmp/stall", "stall.so"
LONE, SLOWLY = "lone", {"bytes_per_s": 100_000}
"""A collection of two megabytes, and how it is copied: time for something to happen to it."""


@pytest.fixture(scope="module")
def backups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this machine that all containers have."""
    folder = tmp_path_factory.mktemp("backups")
    folder.chmod(0o777)
    return folder


@pytest.fixture(scope="module")
def cluster(senses: Senses, lines: list[str], backups: Path) -> Iterator[ComposeCluster]:
    preload = library(ROOT / "tests" / "chaos" / "stall.c", backups, PRELOAD)
    with ComposeCluster(FILES, (*COORDINATORS, *SHARD_NODES), BACKUPS=str(backups),
                        PRELOAD=f"/backups/{preload.name}") as cluster:
        lines.append(f"three coordinators, four shard nodes: up, founded, joined and ready in {cluster.up_s:.1f} s")
        seconds = senses.ingest(cluster.url, shards=2)
        count = len(senses.data.ids)
        lines.append(f"{count} word senses into two shards acknowledged in {seconds:.1f} s, "
                     f"{count / seconds:,.0f} a second")
        cluster.settled()
        yield cluster


@pytest.fixture(scope="module")
def load(cluster: ComposeCluster, senses: Senses, lines: list[str], tmp_path_factory: pytest.TempPathFactory,
         ) -> Iterator[Load]:
    load = Load(cluster, senses, tmp_path_factory.mktemp("load"))
    yield load
    load.close()
    lines.extend(one.line() for one in load.told)


@pytest.fixture(autouse=True)
def whole(cluster: ComposeCluster, request: pytest.FixtureRequest) -> Iterator[None]:
    """The next test finds a cluster that is whole, whatever became of this one."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        cluster.tell()
        cluster.heal()
        cluster.settled()


def test_every_node_finds_what_the_exact_search_finds(cluster: ComposeCluster, senses: Senses, lines: list[str],
                                                      ) -> None:
    recalls = {node.name: senses.recall(node) for node in cluster.nodes.values()}
    lines.append(f"recall@10 by each node: {recalls}")
    assert min(recalls.values()) >= RECALL
    assert cluster.verified()["agree"]


def test_nodes_are_what_their_roles_say(cluster: ComposeCluster) -> None:
    with vecdb.connect(cluster.url, timeout=20.0) as database:
        nodes = {one.name: one for one in database.admin.cluster.info().nodes}
    assert set(nodes) == {*COORDINATORS, *SHARD_NODES}
    assert {name for name, one in nodes.items() if one.voter} == set(COORDINATORS)
    assert {one.zone for one in nodes.values()} == {"zone-a", "zone-b", "zone-c"}
    assert {node.name for node in cluster.holders(SENSES)} <= set(SHARD_NODES)
    for shard in cluster.shards():
        if shard.collection == SENSES:
            zones = {nodes[one.node.partition("/")[0]].zone for one in shard.replicas}
            assert len(zones) == len(shard.replicas) == 3


def test_kill_of_the_leader(cluster: ComposeCluster, load: Load) -> None:
    with load.round("kill -9 of a shard's leader") as round:
        leader = cluster.leader(SMALL)
        round.harm()
        leader.kill()
        cluster.wait(lambda: cluster.leader(SMALL) is not leader, "another leader")
        round.sleep(1.0)
        leader.start()


def test_kill_of_a_coordinator(cluster: ComposeCluster, load: Load) -> None:
    with load.round("kill -9 of the leading coordinator") as round:
        leader = cluster.leader("")
        assert leader.name in COORDINATORS
        round.harm()
        leader.kill()
        cluster.wait(lambda: cluster.leader("") is not leader, "another leader")
        with vecdb.connect(cluster.url, timeout=20.0) as database:  # which only the control group can do
            database.create_collection("meanwhile", 4)
            database.drop_collection("meanwhile")
        leader.start()


def test_kill_of_two_coordinators_of_three(cluster: ComposeCluster, load: Load) -> None:
    """Nobody can change what the cluster is; records are written and read as before."""
    with load.round("kill -9 of two of three coordinators") as round:
        leader = cluster.leader("")
        other = next(cluster.nodes[name] for name in COORDINATORS if name != leader.name)
        round.harm()
        leader.kill()
        other.kill()
        round.sleep(5.0)


def test_kill_of_two_replicas_of_three(cluster: ComposeCluster, load: Load, senses: Senses) -> None:
    with load.round("kill -9 of two of a shard's three", reads_go_on=False) as round:
        leader = cluster.leader(SMALL)
        holders = cluster.holders(SMALL)
        survivor = next(node for node in holders if node is not leader)
        round.harm()
        for node in holders:
            if node is not survivor:
                node.kill()
        refuses_but_answers(survivor, senses)


def test_pause_of_the_leader(cluster: ComposeCluster, load: Load) -> None:
    with load.round("docker pause of the leader, 6 s", reads_go_on=False) as round:
        leader = cluster.leader(SMALL)
        round.harm()
        leader.pause()
        round.sleep(6.0)
        leader.resume()
        round.sleep(1.0)


def test_partition_of_the_leader(cluster: ComposeCluster, load: Load) -> None:
    """Clients still reach it, the other nodes do not."""
    with load.round("leader cut off from its peers", reads_go_on=False) as round:
        leader = cluster.leader(SMALL)
        others = [node for node in cluster.nodes.values() if node is not leader]
        round.harm()
        leader.disconnect()
        cluster.wait(lambda: any(
            shard.leader and not shard.leader.startswith(f"{leader.name}/") for shard in cluster.shards(others)
            if shard.collection == SMALL), "another leader")
        cluster.wait(lambda: not leader.ready, "the node that is cut off says so")
        refuses(leader)
        leader.connect()


def fill(node: Node) -> None:
    """To the last byte; s3 alone has a file system of 256 MB of its own."""
    node.exec("sh", "-c", f"head -c 1G /dev/zero > {BALLAST} || true")
    assert node.exec("df", "--output=avail", "/data").stdout.split()[-1] == "0"


def make_room(cluster: ComposeCluster, node: Node) -> None:
    assert node.running
    node.exec("rm", BALLAST)
    time.sleep(2.0)
    # A log that could not be written is not believed until its node is started again.
    if any(one.state == "halted" and one.node.startswith(node.name) for shard in cluster.shards()
           for one in shard.replicas):
        node.stop()
        node.start()


def test_full_disk(cluster: ComposeCluster, load: Load) -> None:
    node = cluster.nodes["s3"]
    with load.round("full disk of one node") as round:
        round.harm()
        fill(node)
        round.sleep(4.0)
        make_room(cluster, node)


def test_split_and_merge(cluster: ComposeCluster, load: Load, lines: list[str]) -> None:
    (group,) = cluster.groups(SMALL)
    with load.round("a shard split in two") as round:
        round.harm()
        seconds = cluster.job("split", str(group), phase="retire")  # from then on calls go to the new ones
        lines.append(f"split under load, until it serves: {seconds:.1f} s")
        cluster.jobs_ended()
    first, second = cluster.groups(SMALL)
    assert group not in (first, second)
    with load.round("two shards merged") as round:
        round.harm()
        seconds = cluster.job("merge", str(first), {"with": second}, phase="retire")
        lines.append(f"merge under load, until it serves: {seconds:.1f} s")
        cluster.jobs_ended()
    assert len(cluster.groups(SMALL)) == 1


def test_slow_disk_during_a_split(cluster: ComposeCluster, load: Load, lines: list[str]) -> None:
    """Of the shard's leader: each sync takes 200 ms, each write to a file 2 ms."""
    (group,) = cluster.groups(SMALL)
    leader = cluster.leader(SMALL)
    with load.round("a split while the leader's disk is slow") as round:
        leader.exec("sh", "-c", f"echo 200 2 > {STALL}")
        try:
            round.harm()
            seconds = cluster.job("split", str(group), phase="retire")
        finally:
            leader.exec("rm", STALL)
        lines.append(f"split while the leader's disk is slow, until it serves: {seconds:.1f} s")
        cluster.jobs_ended()
    assert len(cluster.groups(SMALL)) == 2


def test_full_disk_during_a_split(cluster: ComposeCluster, load: Load, lines: list[str]) -> None:
    """What s3 can be done without for goes on, what it alone should hold waits for room and says so."""
    node, before = cluster.nodes["s3"], cluster.groups(SMALL)
    vectors = np.random.default_rng(5).normal(size=(2_000, 256)).astype(np.float32)
    with vecdb.connect(cluster.url, timeout=60.0) as database:
        lone = database.create_collection(LONE, 256, "l2", replication_factor=1)
        for low in range(0, len(vectors), 500):
            lone.upsert(ids=range(low, low + 500), vectors=vectors[low:low + 500])
        (source,) = cluster.groups(LONE)
        with load.round("splits while a node's disk is full") as round:
            waiting = cluster.begin("split", str(source), {"into": 8, **SLOWLY})
            cluster.reaches(waiting, "copy")
            round.harm()
            fill(node)
            begun = time.monotonic()
            going_on = cluster.begin("split", str(max(before)))
            cluster.reaches(going_on, "retire")
            lines.append(f"split while a node's disk is full, until it serves: {time.monotonic() - begun:.1f} s")
            stands: JobInfo = cluster.wait(lambda: (job := database.admin.cluster.job(waiting)).error and job,
                                           "why it waits", 120.0)
            assert (stands.state, stands.phase) == ("running", "copy")
            assert "the disk is full" in stands.error
            begun = time.monotonic()
            node.exec("rm", BALLAST)
            node.stop()  # a log that could not be written is not believed until then
            node.start()
            assert cluster.reaches(waiting, "retire").error == ""
            lines.append(f"split that waited for room, until it serves: {time.monotonic() - begun:.1f} s from then on")
            cluster.reaches(going_on)
        assert node in cluster.holders(LONE)
        assert len(set(cluster.groups(SMALL)) - set(before)) == 2
        found = {int(one.id): one.vector for one in lone.scan(include=("vector",))}
        assert found.keys() == set(range(len(vectors)))
        assert all(np.array_equal(found[number], vector) for number, vector in enumerate(vectors))
        database.drop_collection(LONE)


def test_move(cluster: ComposeCluster, load: Load, lines: list[str]) -> None:
    group = cluster.groups(SENSES)[0]
    there = {one.node.partition("/")[0] for shard in cluster.shards() if shard.group == group for one in shard.replicas}
    (free,) = set(SHARD_NODES) - there
    source = sorted(there)[0]
    with load.round("a replica of 10,000 senses moved") as round:
        round.harm()
        lines.append(f"move under load: {cluster.job('move', str(group), {'from': source, 'to': free}):.1f} s")
    now = {one.node.partition("/")[0] for shard in cluster.shards() if shard.group == group for one in shard.replicas}
    assert now == there - {source} | {free}


def test_drain_and_back(cluster: ComposeCluster, load: Load, lines: list[str]) -> None:
    with load.round("a node drained") as round:
        round.harm()
        lines.append(f"drain under load: {cluster.job('drain', 's2'):.1f} s")
    assert cluster.nodes["s2"] not in [*cluster.holders(SENSES), *cluster.holders(SMALL)]
    with vecdb.connect(cluster.url, timeout=20.0) as database:
        database.admin.cluster.activate_node("s2")
    with load.round("rebalanced onto it") as round:
        round.harm()
        lines.append(f"rebalance under load: {cluster.job('rebalance', ''):.1f} s")
    assert cluster.nodes["s2"] in [*cluster.holders(SENSES), *cluster.holders(SMALL)]


def test_rolling_restart(cluster: ComposeCluster, load: Load) -> None:
    with load.round("rolling restart of all, SIGTERM") as round:
        round.harm()
        for node in cluster.nodes.values():
            node.stop()
            node.start()
            cluster.settled()


def test_snapshot_and_restore_into_another_cluster(cluster: ComposeCluster, load: Load, senses: Senses, backups: Path,
                                                   lines: list[str]) -> None:
    """Saved while it is written; then nothing is left but the folder, and a cluster of three equal nodes gets it."""
    saved = ("--at", "file:///backups/one", "--yes")
    with load.round("a snapshot of all collections") as round:
        round.harm()
        begun = time.monotonic()
        cluster.nodes["c1"].exec("vecdb", "snapshot", "create", "before", *saved)
        lines.append(f"snapshot under load: {time.monotonic() - begun:.1f} s")
    load.close()
    cluster.down()
    with ComposeCluster(THREE_FILES, BACKUPS=str(backups)) as other:
        begun = time.monotonic()
        other.nodes["n1"].exec("vecdb", "snapshot", "restore", "before", *saved)
        lines.append(f"restored into a cluster of three new nodes: {time.monotonic() - begun:.1f} s")
        other.settled()
        with vecdb.connect(other.url, timeout=20.0) as database:
            assert {SENSES, SMALL} <= set(database.list_collections())
            found = {int(one.id): one for one in database[SMALL].scan(include=("metadata", "vector"))}
            for record in found.values():
                record_of(record)  # which looks whether the vector is the one that was written
        before = load.acknowledged_before_last_round()
        assert len(before) > 100
        assert before <= set(found)
        for node in other.nodes.values():
            assert senses.recall(node) >= RECALL
        assert other.verified()["agree"]
