"""The harness on one node without a cluster: it keeps what it acknowledged, and on a disk that lies it is caught."""

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import history
from tests.chaos.cluster import Cluster, Failed
from tests.chaos.disks import LAYER, LIES, kinds
from tests.chaos.history import Event, Violated
from tests.chaos.networks import Proxies, Wires, network
from tests.faults import needs

pytestmark = needs(lambda: LAYER in kinds().usable and sys.platform.startswith("linux"),
                   "power cuts are imitated by a layer in C: needs a compiler, on Linux")


@pytest.fixture
def lone(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    kind = Proxies.kind if Wires.missing() else Wires.kind
    with network(kind) as net:
        cluster = Cluster(tmp_path, net, nodes=1, disk=request.param, workers=1, pause_s=0.01)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()


def cut_under_load(cluster: Cluster, number: int) -> list[Event]:
    """Load, a power cut, more load; all events so far, with a last look at each key."""
    (node,), (clients,) = cluster.members, cluster.workers
    clients.ask("load", round=number)
    time.sleep(1.5)
    node.kill(silent=True)
    node.disk.cut_power(random.Random(number))
    node.start()
    node.wait()
    time.sleep(0.5)
    clients.ask("pause")
    keys = sorted({event.key for event in clients.events() if event.round == number and event.kind in (
        "upsert", "update", "delete")})
    clients.ask("read", round=number, keys=keys)
    return clients.events()


def judge(cluster: Cluster, events: list[Event]) -> None:
    history.check_shared(events)
    history.check_own(events)
    (node,), (clients,) = cluster.members, cluster.workers
    found = clients.ask("everything", address=node.address)
    history.appended(events).check({int(key): value for key, value in found.items()}, node.name)
    assert clients.ask("verify", address=node.address, deep=True)["agree"]


@pytest.mark.parametrize("lone", [LAYER], indirect=True)
def test_a_node_keeps_its_promises_through_power_cuts(lone: Cluster) -> None:
    for number in range(1, 3):
        events = cut_under_load(lone, number)
        assert not [event for event in events if event.error.startswith("UNEXPECTED")]
        assert sum(event.ok for event in events) > 50
        judge(lone, events)


@pytest.mark.parametrize("lone", [LIES], indirect=True)
def test_a_node_on_a_disk_that_lies_is_caught(lone: Cluster) -> None:
    """No fsync of it holds.  If this one passed, a product that forgot to sync would, too."""
    lost = None
    for number in range(1, 4):
        try:
            judge(lone, cut_under_load(lone, number))
        except (Violated, Failed) as error:
            lost = error
            break
    assert lost is not None
