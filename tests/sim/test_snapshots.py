"""A replica that lacks what no log holds any more: cut off, spoiled and led by others on the way, it gets there."""

import pytest

from vecdb.raft.messages import Chunk, Fetch
from vecdb.raft.replica import Replica
from vecdb.testing.checks import Judge, converged, equal
from vecdb.testing.clients import Client, History
from vecdb.testing.cluster import SETTINGS, Cluster
from vecdb.testing.world import World


class Scene:
    """Three nodes, one of which slept while the others wrote and shortened their logs."""

    def __init__(self, monkeypatch):
        self.fetched, self.chunks = [], []
        whole = Replica.receive

        def receive(replica, sender, message):
            if isinstance(message, Fetch):
                self.fetched.append((message.file, message.offset))
            if isinstance(message, Chunk):
                self.chunks.append((message.file, message.offset, len(message.data)))
            whole(replica, sender, message)

        monkeypatch.setattr(Replica, "receive", receive)
        self.world = World(5)
        self.cluster = Cluster(self.world, ["n1", "n2", "n3"], SETTINGS)
        self.judge = Judge(self.cluster)
        self.cluster.form(1, ["n1", "n2", "n3"])
        self.cluster.start()
        self.client = Client(self.cluster, History(), 1, [1], 40)
        assert self.until(lambda: self.cluster.leader(1) is not None)
        self.sleeper = next(name for name in ("n1", "n2", "n3") if not self.leads(name))
        self.cluster.nodes[self.sleeper].crash()
        self.write(320)
        assert self.cluster.leader(1).core.log.base > 2, "the log was shortened"

    def leads(self, name):
        replica = self.cluster.replica(name, 1)
        return replica is not None and replica is self.cluster.leader(1)

    def until(self, true):
        return self.world.run_until(true, 60.0)

    def write(self, count):
        for at in range(count):
            self.client.ask("write", 1, at % 40, lambda: None)
            assert self.until(lambda: not self.client.busy)

    @property
    def disk(self):
        return self.cluster.nodes[self.sleeper].home.disks[1]

    def arrived(self):
        return sum(map(len, self.disk.pieces.values()))

    def ends_well(self):
        assert self.until(lambda: converged(self.cluster, 1))
        equal(self.cluster, 1)
        assert not self.disk.pieces


@pytest.fixture
def scene(monkeypatch):
    return Scene(monkeypatch)


def test_it_takes_the_state_and_then_the_log(scene):
    scene.cluster.nodes[scene.sleeper].start()
    scene.ends_well()
    assert scene.cluster.machine_of(scene.cluster.replica(scene.sleeper, 1)).installs == 1
    assert len(scene.fetched) == len(set(scene.fetched)), "nothing is asked for twice"


def test_cut_short_it_goes_on_where_it_was(scene):
    scene.cluster.nodes[scene.sleeper].start()
    assert scene.until(lambda: scene.arrived() > 600)
    scene.cluster.nodes[scene.sleeper].crash()
    kept = {checksum: len(piece) for checksum, piece in scene.disk.pieces.items()}
    scene.world.run(1.0)  # what it asked for before arrives after
    scene.fetched.clear()
    scene.cluster.nodes[scene.sleeper].start()
    scene.ends_well()
    assert scene.fetched
    assert scene.fetched[0][1] == next(reversed(kept.values())), "not from the beginning"


def test_a_spoiled_file_is_fetched_again(scene):
    scene.cluster.nodes[scene.sleeper].start()
    assert scene.until(lambda: scene.arrived() > 600)
    checksum, piece = next((checksum, piece) for checksum, piece in scene.disk.pieces.items() if piece)
    scene.disk.pieces[checksum] = bytes([piece[0] ^ 1]) + piece[1:]
    scene.ends_well()
    assert len(scene.fetched) > len(set(scene.fetched))


def test_the_leader_dies_and_the_next_one_gives_its_own(scene):
    scene.cluster.nodes[scene.sleeper].start()
    assert scene.until(lambda: scene.arrived() > 600)
    name = scene.cluster.leader(1).host.node
    scene.cluster.nodes[name].crash()
    scene.world.run(8.0)
    scene.cluster.nodes[name].start()
    scene.ends_well()


def test_the_group_takes_writes_meanwhile(scene):
    scene.cluster.nodes[scene.sleeper].start()
    assert scene.until(lambda: scene.arrived() > 0)
    scene.write(50)
    scene.ends_well()
