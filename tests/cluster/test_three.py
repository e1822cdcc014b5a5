"""Three equal nodes in containers, hurt one way after the other under load; what test_six does not do, too.

Every round ends healed: what was acknowledged is on every replica, all digests agree, and of all queries meanwhile none
was wrong.
"""

from collections.abc import Iterator
from functools import partial

import pytest

from tests.cluster.alone import refuses_but_answers
from tests.cluster.compose import ComposeCluster, Node, docker, image
from tests.cluster.load import RECALL, SENSES, SMALL, Load, Senses

pytestmark = pytest.mark.timeout(240)
FILES = ("docker-compose.three.yml", "docker-compose.three.chaos.yml")


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


def test_kill_of_two_of_three(cluster: ComposeCluster, load: Load, senses: Senses) -> None:
    with load.round("kill -9 of two of three", reads_go_on=False) as round:
        leader = cluster.leader(SMALL)
        survivor = cluster.follower(SMALL)
        others = [node for node in cluster.nodes.values() if node is not survivor]
        assert leader in others
        round.harm()
        for node in others:
            node.kill()
        refuses_but_answers(survivor, senses)
        for node in others:
            node.start()


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
