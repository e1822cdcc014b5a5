"""Simulated clusters of whole nodes: founded from empty disks, used through any node, hurt, and healed.

Collections are made and dropped while nodes crash, in the middle of what they are at too; disks refuse, are damaged and
lost.  After healing every node must come to hold what the control group says and nothing else, and everything must
answer.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from vecdb.core.calls import Consistency
from vecdb.core.errors import DataCorrupted
from vecdb.core.schema import IndexSpec
from vecdb.raft.replica import Replica
from vecdb.raft.settings import RaftSettings
from vecdb.services.homes import folder_of
from vecdb.services.replica import ShardReplica
from vecdb.services.settings import EngineSettings
from vecdb.testing.cluster import SETTINGS
from vecdb.testing.loop import virtual_loop
from vecdb.testing.network import Network
from vecdb.testing.records import IDS, Read
from vecdb.testing.replicator import Chances
from vecdb.testing.service_calls import Calls
from vecdb.testing.service_checks import (
    ServiceHistory,
    ServiceJudge,
    collections_linear,
    records_linear,
    writes_survived,
)
from vecdb.testing.service_clients import FetchedReads, ServiceClient
from vecdb.testing.service_nemesis import ServiceNemesis
from vecdb.testing.service_node import Machine, Process
from vecdb.testing.shard_checks import whole
from vecdb.testing.shard_sim import scratch
from vecdb.testing.synced import Synced
from vecdb.testing.violation import Violation
from vecdb.testing.world import World

COLLECTIONS: Final = ("birds", "fish", "mice")
CLIENTS: Final = 4
FOUNDING_S: Final = 30.0
FAULTS_S: Final = 10.0
HEALING_S: Final = 60.0
RAFT: Final = replace(SETTINGS, window_bytes=1 << 14, batch_bytes=1 << 12, uncommitted_bytes=1 << 15,
                      apply_bytes=1 << 12, log_bytes=1 << 13, checkpoint_bytes=1 << 12, chunk_bytes=1 << 13, fetches=4)


def simulate_services(seed: int, world: World | None = None, faults_s: float = FAULTS_S) -> World:
    """One run; raises :class:`Violation`."""
    world = world or World(seed)
    with scratch() as (root, synced):
        run = ServiceRun(world, root, synced)
        try:
            run.run(faults_s)
        finally:
            run.end()
    return world


class ServiceRun:
    """One simulated cluster of nodes, its judge, its clients and its nemesis."""

    def __init__(self, world: World, root: Path, synced: Synced) -> None:
        self.world = world
        random = world.random
        self.nodes = ["n1", "n2", "n3", "n4"][:random.choice((3, 3, 4))]
        self.network = Network(world)
        self.calls = Calls(world, self.network, self._process)
        self.judge = ServiceJudge(world)
        self.history = ServiceHistory()
        self.reads: FetchedReads = []
        engine = EngineSettings(seal_records=random.choice((8, 16, 1 << 20)), merge_factor=2, background=False,
                                replicated=True)
        self.index = IndexSpec()
        raft: RaftSettings = RAFT
        self.machines = {name: Machine(world, name, self.nodes, self.network, self.calls, self.judge, root, synced,
                                       raft, engine) for name in self.nodes}
        chances = random.choice((None, None, Chances(deposed=0.03, overloaded=0.03, lost=0.03, unheard=0.05)))
        for machine in self.machines.values():
            machine.chances = chances
        self.loop = virtual_loop(world, "clients")
        self.clients = [self._client(number, makes=number <= 2) for number in range(1, CLIENTS + 1)]
        world.say("world", "services", nodes=self.nodes, seal_records=engine.seal_records, chances=chances)

    def _client(self, number: int, *, makes: bool) -> ServiceClient:
        return ServiceClient(self.world, self.calls, self.judge, self.history, self.reads, number, self.nodes,
                             COLLECTIONS, IDS, self.index, makes)

    def _process(self, name: str) -> Process | None:
        return self.machines[name].process

    def end(self) -> None:
        for machine in self.machines.values():
            machine.end()
        self.loop.end()

    # --- a run ------------------------------------------------------------------------------------

    def run(self, faults_s: float) -> None:
        world = self.world
        for machine in self.machines.values():
            world.at(world.random.uniform(0.0, 1.0), machine.start)
        self._until(lambda: all(map(self._founded, self.nodes)), FOUNDING_S, "the control group is not founded")
        self._asked(self._make_all())
        tasks = [self.loop.create_task(client.run()) for client in self.clients]
        nemesis = ServiceNemesis(world, self.network, self.machines)
        nemesis.start()
        world.run(faults_s)
        nemesis.heal()
        for client in self.clients:
            client.stopped = True
        self._until(lambda: all(task.done() for task in tasks), HEALING_S, "calls that nobody answers")
        for task in tasks:
            task.result()
        self._recover()
        writes_survived(self.judge, self.history)
        collections_linear(world, self.history)
        records_linear(self.judge, self.history, self.reads)

    def _until(self, true: Callable[[], bool], at_most: float, what: str) -> None:
        if not self.world.run_until(true, at_most):
            raise Violation(f"{what} within {at_most} s: {self._state()}")

    def _state(self) -> str:
        found = []
        for name, machine in self.machines.items():
            process = machine.process
            if process is None or process.hosting is None:
                found.append(f"{name}: {'down' if process is None else 'starting'}")
                continue
            found.append(f"{name}: founding {process.hosting.founding} {process.hosting.statuses()}")
        return "\n".join(found)

    def _founded(self, name: str) -> bool:
        process = self.machines[name].process
        return process is not None and process.control is not None and process.control.replicator is not None

    def _asked(self, coroutine: object) -> None:
        self.loop.run(coroutine, HEALING_S)  # type: ignore[arg-type]

    async def _make_all(self) -> None:
        for name in COLLECTIONS:
            await self.clients[0].create(name)

    # --- afterwards -------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Nodes come to hold what they should; then every collection takes a write and answers, and replicas agree."""
        self._until(self._settled, HEALING_S, "hosting does not converge")
        self.judge.healed = True
        last = self._client(CLIENTS + 1, makes=True)
        self._asked(self._use_all(last))
        self._until(self._settled, HEALING_S, "hosting does not converge once more")
        self._until(self._equal, HEALING_S, "replicas do not become equal")
        for name, machine in self.machines.items():
            process = machine.process
            assert process is not None
            self._holds_what_it_should(name, process)
        self.world.happened["recoveries_checked"] += 1

    async def _use_all(self, client: ServiceClient) -> None:
        await client.list()
        for name in COLLECTIONS:
            await client.create(name)
            if not await client.write(name):
                raise Violation(f"{name!r} takes no write after healing")
            if not await client.read(name, Read("fetch", IDS), Consistency.LINEARIZABLE):
                raise Violation(f"{name!r} does not answer after healing")

    def _replicas(self) -> list[tuple[str, Process, Replica]]:
        return [(name, machine.process, replica) for name, machine in self.machines.items()
                if machine.process is not None and machine.process.driver is not None
                for replica in machine.process.driver.host.replicas.values()]

    def _settled(self) -> bool:
        """All nodes act on one control state, hold what it says, and every group is whole again."""
        processes = [machine.process for machine in self.machines.values()]
        if any(process is None or process.hosting is None or not process.hosting.settled for process in processes):
            return False
        epochs = {process.control.state.epoch for process in processes if process is not None
                  and process.control is not None}
        replicas = self._replicas()
        return len(epochs) == 1 and all(
            replica.status().state == "ok" and not replica.core.configuration.joining
            and replica.core.me in replica.core.configuration.voters for _, _, replica in replicas)

    def _equal(self) -> bool:
        groups: dict[int, list[Replica]] = {}
        for _, _, replica in self._replicas():
            groups.setdefault(replica.group, []).append(replica)
        return all(len({replica.core.applied for replica in of}) == 1
                   and all(replica.core.applied == replica.core.log.last for replica in of) for of in groups.values())

    def _holds_what_it_should(self, name: str, process: Process) -> None:
        assert process.control is not None
        assert process.database is not None
        assert process.driver is not None
        wanted = {entry.label: entry for entry in process.control.state.shards.values() if name in entry.nodes}
        hosted = process.database.hosted()
        if {one: entry.folder for one, entry in hosted.items()} != {
                one: folder_of(entry.group) for one, entry in wanted.items()}:
            raise Violation(f"{name} holds {hosted}, not {wanted}")
        folders = {path.name.partition(".")[0] for path in process.machine.disk.root.glob("collections/*")}
        if folders != {entry.folder for entry in hosted.values()}:
            raise Violation(f"{name} has the folders {sorted(folders)}, and holds {hosted}")
        groups = {0, *(entry.group for entry in wanted.values())}
        if set(process.driver.host.replicas) != groups or not self._has_logs_of(process, groups):
            raise Violation(f"{name} has other groups or logs than {sorted(groups)}")
        for one, entry in wanted.items():
            replica = process.database.replica(one)
            assert isinstance(replica, ShardReplica)
            try:
                with process.machine.disk.at_work():
                    whole(self.judge, f"{name}: {one}", entry.group, replica)
            except DataCorrupted:
                self._damage_found(process)
        self.world.happened["nodes_checked"] += 1


    def _has_logs_of(self, process: Process, groups: set[int]) -> bool:
        assert process.driver is not None
        try:
            return set(process.driver.logs()) == groups
        except DataCorrupted:
            self._damage_found(process)
            return True

    def _damage_found(self, process: Process) -> None:
        """What was damaged, and nobody has read since."""
        if not process.machine.damaged:
            raise Violation(f"{process.name} is damaged, and nobody damaged anything")
        self.world.happened["damage_nobody_read"] += 1
