"""Three equal nodes in containers, hurt one way after the other under load; one cluster for all of it.

Every round ends healed: what was acknowledged is on every replica, all digests agree, and of all queries meanwhile none
was wrong.
"""

import time
from collections.abc import Iterator
from functools import partial

import pytest

import vecdb
from tests.cluster.compose import ComposeCluster, Node, docker, image
from tests.cluster.load import RECALL, SENSES, SMALL, Load, Senses
from vecdb.core.errors import DeadlineExceeded, OutcomeUnknown, Unavailable

pytestmark = pytest.mark.timeout(240)
FILES = ("docker-compose.three.yml", "docker-compose.chaos.yml")
BALLAST = "/data/ballast"


@pytest.fixture(scope="module")
def cluster(senses: Senses, lines: list[str]) -> Iterator[ComposeCluster]:
    with ComposeCluster(FILES) as cluster:
        lines.append(f"three equal nodes: up, founded and ready in {cluster.up_s:.1f} s")
        seconds = senses.ingest(cluster.url)
        count = len(senses.data.ids)
        lines.append(f"{count} word senses of {senses.queries.shape[1]} dimensions acknowledged in {seconds:.1f} s, "
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
    lines.append(f"recall@10 of each node: {recalls}")
    assert min(recalls.values()) >= RECALL
    assert cluster.verified()["agree"]


def test_containers_are_healthy_and_not_root(cluster: ComposeCluster) -> None:
    for node in cluster.nodes.values():
        cluster.wait(partial(_healthy, node), f"{node.name} healthy", 60.0)
        assert node.exec("id", "-u").stdout.strip() == "10001"
        assert node.exec("touch", "/opt/vecdb/here", check=False).returncode != 0
        assert node.exec("ls", "/data/certs").stdout.split() == ["ca.pem", "node.key", "node.pem"]


def _healthy(node: Node) -> bool:
    return bool(node.state["Health"]["Status"] == "healthy")


def test_kill_of_the_leader(cluster: ComposeCluster, load: Load) -> None:
    with load.round("kill -9 of a shard's leader") as round:
        leader = cluster.leader(SMALL)
        round.harm()
        leader.kill()
        cluster.wait(lambda: cluster.leader(SMALL) is not leader, "another leader")
        round.sleep(1.0)
        leader.start()


def test_kill_of_the_control_leader(cluster: ComposeCluster, load: Load) -> None:
    with load.round("kill -9 of the control leader") as round:
        leader = cluster.leader("")
        round.harm()
        leader.kill()
        cluster.wait(lambda: cluster.leader("") is not leader, "another leader")
        with vecdb.connect(cluster.url, timeout=20.0) as database:  # which only the control group can do
            database.create_collection("meanwhile", 4)
            database.drop_collection("meanwhile")
        leader.start()


def test_kill_of_two_of_three(cluster: ComposeCluster, load: Load, senses: Senses) -> None:
    with load.round("kill -9 of two of three", reads_go_on=False) as round:
        leader = cluster.leader(SMALL)
        survivor = cluster.follower(SMALL)
        others = [node for node in cluster.nodes.values() if node is not survivor]
        assert leader in others
        round.harm()
        for node in others:
            node.kill()
        _alone(survivor, senses)
        for node in others:
            node.start()


def _alone(node: Node, senses: Senses) -> None:
    """A node without a majority: writes and strong reads are refused by names, eventual reads go on."""
    with vecdb.connect(node.url, timeout=3.0) as database:
        small = database[SMALL]
        until = time.monotonic() + 30.0
        while True:  # a leader of before may be believed in for an instant, by whoever did not hear of its end
            with pytest.raises((Unavailable, OutcomeUnknown, DeadlineExceeded)) as refused:
                small.upsert(ids=[1], vectors=[[0.0] * 16], metadata=[{"a": 1, "v": 1}])
            if isinstance(refused.value, Unavailable) or time.monotonic() > until:
                break
        assert isinstance(refused.value, Unavailable | OutcomeUnknown), refused.value
        with pytest.raises((Unavailable, DeadlineExceeded)):
            small.get(1, consistency="linearizable")
    assert senses.recall(node, 20) >= RECALL


def test_pause_of_the_leader(cluster: ComposeCluster, load: Load) -> None:
    with load.round("docker pause of the leader, 6 s", reads_go_on=False) as round:
        leader = cluster.leader(SMALL)
        round.harm()
        leader.pause()
        round.sleep(6.0)
        leader.resume()
        round.sleep(1.0)


def test_partition_of_the_leader(cluster: ComposeCluster, load: Load, senses: Senses) -> None:
    """Clients still reach it, the other nodes do not."""
    with load.round("leader cut off from its peers") as round:
        leader = cluster.leader(SMALL)
        others = [node for node in cluster.nodes.values() if node is not leader]
        round.harm()
        leader.disconnect()
        cluster.wait(lambda: any(
            shard.leader and not shard.leader.startswith(f"{leader.name}/") for shard in cluster.shards(others)
            if shard.collection == SMALL), "another leader")
        cluster.wait(lambda: not leader.ready, "the node that is cut off says so")
        _alone(leader, senses)
        leader.connect()


def test_full_disk(cluster: ComposeCluster, load: Load, senses: Senses) -> None:
    """It lies on a file system of 256 MB of its own."""
    node = cluster.nodes["n3"]
    with load.round("full disk of one node") as round:
        round.harm()
        node.exec("sh", "-c", f"head -c 1G /dev/zero > {BALLAST} || true")
        free = node.exec("df", "--output=avail", "/data").stdout.split()[-1]
        assert free == "0"
        round.sleep(4.0)
        assert senses.recall(node, 20) >= RECALL  # what it has, it answers
        assert node.running
        node.exec("rm", BALLAST)
        round.sleep(2.0)
        with vecdb.connect(node.url, timeout=10.0) as database:
            halted = any(one.state == "halted" and one.node.startswith(node.name) for shard in database.admin.shards()
                         for one in shard.replicas)
        if halted:  # a log that could not be written is not believed until its node is started again
            node.stop()
            node.start()


def test_rolling_restart(cluster: ComposeCluster, load: Load) -> None:
    with load.round("rolling restart, SIGTERM") as round:
        round.harm()
        for node in cluster.nodes.values():
            node.stop()
            node.start()
            cluster.settled()


def test_a_node_that_dies_is_started_again_by_its_policy(cluster: ComposeCluster, load: Load) -> None:
    """From outside its container, as the kernel does when memory runs out: Docker was not asked for it."""
    with load.round("a process killed, restart by Docker") as round:
        node = cluster.leader(SMALL)
        before = node.state
        round.harm()
        docker("run", "--rm", "--pid", "host", "--user", "0", "--network", "none", "--entrypoint", "sh", image(), "-c",
               f"kill -9 {before['Pid']}")
        cluster.wait(lambda: node.state["StartedAt"] != before["StartedAt"] and node.ready, "started again")


def test_a_node_that_lost_its_data_gets_it_back(cluster: ComposeCluster, load: Load, senses: Senses) -> None:
    node = cluster.follower(SENSES)
    with load.round("a node's data deleted") as round:
        round.harm()
        node.kill()
        docker("run", "--rm", "--user", "0", "--network", "none", "--volumes-from", node.id, "--entrypoint", "rm",
               image(), "-rf", "/data/db")
        node.start()
        cluster.wait(lambda: node.ready, "ready")
    assert senses.recall(node) >= RECALL
