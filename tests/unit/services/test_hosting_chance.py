"""The reconciler against a judge, by chance and at every step: nodes killed, disks lost and damaged, few at a time."""

import pytest

from tests.unit.services.hosted import NODES, SOON, Cluster, Disk
from vecdb.core.errors import StorageError, VecdbError
from vecdb.testing.disk import MemoryStore


class Nemesis:
    """Hurts one node at a time, as replication promises to survive."""

    def __init__(self, seed):
        self.cluster = Cluster(seed, faults=0.08)
        self.random = self.cluster.world.random
        self.names = [f"c{at}" for at in range(5)]

    def hurt_disk(self, node):
        disk, kind = node.disk, self.random.choice(["all", "logs", "log", "state", "control", "nothing", "nothing"])
        if kind == "all":
            node.disk = Disk()
        elif kind == "logs":
            disk.logs, disk.ledger = {}, MemoryStore()
        elif kind == "log" and disk.logs:
            disk.logs[self.random.choice(sorted(disk.logs))].damaged = True
        elif kind == "state" and disk.rows:
            disk.rows[self.random.choice(sorted(disk.rows))].damaged = True
        elif kind == "control":
            disk.control.flip(self.random, b"", b"\xff")
        return kind

    def change(self):
        name = self.random.choice(self.names)
        try:
            if name in self.cluster.judge.control.collections:
                self.cluster.drop(name)
            else:
                self.cluster.create(name)
        except VecdbError as error:
            self.cluster.world.say("nemesis", "refused", error=type(error).__name__)

    def halt(self):
        node = self.random.choice([one for one in self.cluster.nodes.values() if one.driver is not None])
        if node.driver.replicas:
            group = self.random.choice(sorted(node.driver.replicas))
            replica = node.driver.replicas[group]
            if group:
                replica.machine.failure = StorageError("by chance")
            replica.state, replica.error = "halted", "StorageError: by chance"

    def round(self):
        cluster, random = self.cluster, self.random
        away = random.choice(NODES) if random.random() < 0.7 else None
        if away is not None:
            cluster.world.run(random.uniform(0, 0.3))
            cluster.kill(away)
            kind = self.hurt_disk(cluster.nodes[away])
            cluster.world.say("nemesis", "killed", node=away, disk=kind)
        for _ in range(random.randrange(4)):
            self.change()
            cluster.world.run(random.uniform(0, 0.2))
        if away is not None:
            cluster.start(away)
            while random.random() < 0.5:  # again and again while it recovers
                cluster.world.run(random.uniform(0, 0.4))
                cluster.kill(away)
                cluster.start(away)
        elif random.random() < 0.5:
            self.halt()
        elif random.random() < 0.4:
            cluster.world.run(random.uniform(0, 0.2))
            cluster.kill()
            cluster.start()
        if random.random() < 0.5:
            self.change()

    def run(self, rounds):
        cluster = self.cluster
        cluster.start()
        cluster.settle(60)
        for _ in range(rounds):
            self.round()
            cluster.settle(120)
            cluster.world.run(1)
            cluster.settle(120)
            cluster.check()
        cluster.kill()
        cluster.start()  # what was left is gone after a start
        cluster.settle(120)
        cluster.world.run(2)
        cluster.check()
        held = {0, *cluster.judge.control.shards}
        for node in cluster.nodes.values():
            assert set(node.disk.logs) == held
            assert not node.loop.errors
        cluster.end()


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_to_a_minority_nothing_is_lost_or_forgotten(seed):
    Nemesis(seed).run(4)


@pytest.mark.parametrize("step", range(0, 240, 6))
def test_killed_at_every_step(step):
    """One node is killed after so many events of making, dropping and making again, with its disk's doubts."""
    cluster = Cluster(step)
    cluster.start()
    cluster.settle()
    cluster.create("a")
    cluster.create("b")
    cluster.drop("a")
    cluster.create("a")
    target = cluster.world.happened["events"] + step
    assert cluster.world.run_until(lambda: cluster.world.happened["events"] >= target, SOON)
    cluster.kill("n1")
    cluster.drop("b")
    cluster.start("n1")
    cluster.settle()
    cluster.world.run(1)
    cluster.check()
    cluster.end()
