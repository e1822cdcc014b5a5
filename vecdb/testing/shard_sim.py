"""Simulated clusters of real shards: four nodes, a group or two of three replicas, and what may go wrong with disks.

What a seed chooses: how many groups; how small segments are, so that sealing, merging and compacting happen in the
middle of everything; which index they get; and the faults.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from vecdb.core.calls import Consistency
from vecdb.core.errors import DataCorrupted
from vecdb.core.schema import IndexSpec
from vecdb.raft.membership import node_of
from vecdb.raft.replica import Replica
from vecdb.services.settings import EngineSettings
from vecdb.testing.checks import converged
from vecdb.testing.cluster import SETTINGS, Cluster, Node
from vecdb.testing.nemesis import Nemesis
from vecdb.testing.records import IDS, MANY, Read
from vecdb.testing.shard_checks import RecordHistory, ShardJudge, linear, survived, whole
from vecdb.testing.shard_clients import ShardClient
from vecdb.testing.shards import ShardHome, ShardWorld, Watched, quietly
from vecdb.testing.synced import Synced
from vecdb.testing.violation import Violation
from vecdb.testing.world import World

NODES: Final = ["n1", "n2", "n3", "n4"]
MEMBERS: Final = {1: ["n1", "n2", "n3"], 2: ["n2", "n3", "n4"]}
CLIENTS: Final = 4
FAULTS_S: Final = 10.0
HEALING_S: Final = 30.0
RAFT: Final = replace(SETTINGS, window_bytes=1 << 14, batch_bytes=1 << 12, uncommitted_bytes=1 << 15,
                      apply_bytes=1 << 12, log_bytes=1 << 13, checkpoint_bytes=1 << 12, chunk_bytes=1 << 13, fetches=4)
"""Small bounds for commands of a hundred bytes and snapshots of some ten thousand."""


@contextmanager
def scratch() -> Iterator[tuple[Path, Synced]]:
    """A folder for the disks of a run."""
    root = Path(tempfile.mkdtemp(prefix="vecdb-sim-"))
    try:
        with Synced() as synced:
            yield root, synced
    finally:
        shutil.rmtree(root, ignore_errors=True)


def simulate_shards(seed: int, world: World | None = None, faults_s: float = FAULTS_S) -> World:
    """One run; raises :class:`Violation`."""
    world = world or World(seed)
    with scratch() as (root, synced):
        ShardRun(world, root, synced).run(faults_s)
    return world


class ShardRun:
    """One simulated cluster, its judge, its clients and its nemesis."""

    def __init__(self, world: World, root: Path, synced: Synced) -> None:
        self.world = world
        random = world.random
        self.groups = [1, 2] if random.random() < 0.3 else [1]
        self.ids = random.choice((IDS, MANY))
        settings = EngineSettings(seal_records=random.choice((4, 8, 16, 1 << 20)), merge_factor=random.choice((2, 3)),
                                  dead_fraction=random.choice((0.25, 0.5)), background=False, replicated=True)
        index = IndexSpec(kind=random.choice(("auto", "hnsw")), m=4, ef_construction=16)  # type: ignore[arg-type]
        self.shards = ShardWorld(world, root, synced, settings, index,
                                 world.judging(lambda *told: self.judge.applied(*told)))
        self.cluster = Cluster(world, NODES, RAFT, lambda node: self.shards.home(node.name))
        self.judge: ShardJudge = ShardJudge(self.cluster)
        self.history = RecordHistory()
        world.say("world", "shards", groups=self.groups, seal_records=settings.seal_records, index=index.kind.value)

    def run(self, faults_s: float) -> None:
        world = self.world
        for group in self.groups:
            self.cluster.form(group, MEMBERS[group])
        clients = [ShardClient(self.cluster, self.judge, self.history, number, self.groups, self.ids)
                   for number in range(1, CLIENTS + 1)]
        nemesis = ShardNemesis(self.cluster, self.judge, self.groups)
        self.cluster.start()
        for node in self.cluster.nodes.values():
            self._keep(node)
        for client in clients:
            client.start()
        nemesis.start()
        world.run(faults_s)
        nemesis.heal()
        for client in clients:
            client.stopped = True
        if not world.run_until(lambda: not any(client.busy for client in clients), HEALING_S):
            raise Violation("calls that nobody answers and nobody gives up")
        self._recover()
        survived(self.judge, self.history)
        linear(world, self.history)

    def _keep(self, node: Node) -> None:
        """What a node does by itself: upkeep, and a replica that has halted is opened anew."""
        random = self.world.random

        def look() -> None:
            for group in self.groups:
                replica = self.cluster.replica(node.name, group)
                if replica is None or not node.up or node.shell is None:
                    continue
                machine = replica.machine
                assert isinstance(machine, Watched)
                if replica.halted or machine.replica.failure is not None:
                    if node.host is not None and node.host.failure is None and not self._refusing(node):
                        node.renew(group)
                else:
                    node.shell.run(f"upkeep/{group}", partial(self._tend, node, group), lambda done, error: None)
            self.world.at(random.uniform(0.2, 1.0), look)

        self.world.at(random.uniform(0.0, 0.4), look)

    def _refusing(self, node: Node) -> bool:
        home = node.home
        assert isinstance(home, ShardHome)
        return home.disk.failing

    def _tend(self, node: Node, group: int) -> None:
        """What is due, one thing after another."""
        home, happened = node.home, self.world.happened
        assert isinstance(home, ShardHome)

        def all_due() -> None:
            while (done := home.tend(group)) is not None:
                happened[f"upkeep_{done}"] += 1

        failed = quietly(all_due)
        if failed:
            happened["upkeep_failed"] += 1
            self.world.say(node.name, "upkeep failed", group=group, why=failed)

    def _recover(self) -> None:
        """Every group takes a write, answers reads of all its records, and its members become equal and whole."""
        last = ShardClient(self.cluster, self.judge, self.history, CLIENTS + 1, self.groups, self.ids)
        everything = Read("fetch", self.ids)
        for group in self.groups:
            for ask in (last.write, partial(last.read, read=everything, consistency=Consistency.LINEARIZABLE)):
                given_up = self.world.happened["calls_given_up"]
                ask(group, then=lambda: None)
                if not self.world.run_until(lambda: not last.busy, HEALING_S) or \
                        self.world.happened["calls_given_up"] != given_up:
                    raise Violation(f"group {group} does not go on after healing")
            if not self.world.run_until(partial(converged, self.cluster, group), HEALING_S):
                raise Violation(f"the members of group {group} do not become equal after healing")
            for replica in self._members(group):
                self._look_whole(self.cluster.nodes[node_of(replica.core.me)], replica)
            self.world.happened["recoveries_checked"] += 1

    def _look_whole(self, node: Node, replica: Replica) -> None:
        home, machine = node.home, replica.machine
        assert isinstance(home, ShardHome)
        assert isinstance(machine, Watched)
        try:
            node.act(partial(whole, self.judge, replica.core.me, replica.group, machine.replica))
        except DataCorrupted:
            if not home.damaged.get(replica.group, False):
                raise
            self.world.happened["damage_nobody_read"] += 1

    def _members(self, group: int) -> list[Replica]:
        leader = self.cluster.leader(group)
        assert leader is not None, "asked once the cluster has recovered"
        return [replica for replica in self.cluster.replicas(group)
                if replica.core.me in leader.core.configuration.everybody]


class ShardNemesis(Nemesis):
    """Damages states as well as logs."""

    def __init__(self, cluster: Cluster, judge: ShardJudge, groups: list[int]) -> None:
        super().__init__(cluster, judge, groups)
        self.pause_s = 0.05, 0.8
        self._plagues += [(3, self._hurt), (4, self._crash), (2, self._members), (8, self._cut)]

    def _cut(self) -> None:
        """Let the power go in the middle of something that takes long, the next time there is something of the kind."""
        wanted = self.world.random.choice(("install", "snapshot", "checkpoint", "upkeep"))

        def look(tries: int) -> None:
            for node in self.cluster.nodes.values():
                if node.shell is not None and any(lane.startswith(wanted) for lane in node.shell.lanes):
                    self._did("cuts", node=node.name, within=wanted)
                    self._stop(node, self.world.random.choice((0.05, 0.5, 2.0)))
                    return
            if tries and not self.stopped:
                self.world.at(0.003, lambda: look(tries - 1))

        look(500)

    def _spoil(self, node: Node) -> bool:
        """What is flipped after it has come is found when it is read: that replica may be lost."""
        for group in self.groups:
            replica = self.cluster.replica(node.name, group)
            if replica is not None and self._whole(group) and node.home.spoil(self.world.random, group):
                self.judge.lost[replica.core.me] = True
                return True
        return False

    def _hurt(self) -> None:
        """Crash a replica's node and damage its state, where all others of its groups are whole."""
        found = self._may_damage()
        if found is None:
            return
        node, group, replica = found
        node.crash()
        done = node.home.hurt(self.world.random, group)
        if done:
            self.judge.lost[replica] = True
            self._did("states_damaged", replica=replica, damage=done)
        self._back_later(node)
