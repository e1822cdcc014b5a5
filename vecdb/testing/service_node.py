"""Whole nodes in a simulation: everything a served node is made of but its faces, on one disk and one virtual loop.

The engine, the logs and their driver, the control group and hosting, and the node that hands calls on are the
product's; clocks, threads, disks and wires are the simulation's.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol

from vecdb.core.calls import Call
from vecdb.core.errors import DataCorrupted, VecdbError
from vecdb.ports.observer import NullObserver
from vecdb.ports.replicator import Replicator, StateMachine
from vecdb.raft.driver import Driver
from vecdb.raft.settings import RaftSettings
from vecdb.services.aside import set_aside
from vecdb.services.catalog import Entry
from vecdb.services.control import Control, ControlReplica
from vecdb.services.founding import NUMBERS
from vecdb.services.hosting import Hosting, HostingSettings
from vecdb.services.ledger import Ledger
from vecdb.services.local import LocalDatabase
from vecdb.services.node import LocalNode, NodeLimits
from vecdb.services.replica import ShardReplica
from vecdb.services.replicas import OwnReplicas
from vecdb.services.replicated import Cluster, ReplicatedNode
from vecdb.services.settings import EngineSettings
from vecdb.testing.files import Disk
from vecdb.testing.loop import Threads, VirtualLoop, virtual_loop
from vecdb.testing.moods import Moody
from vecdb.testing.network import Network
from vecdb.testing.replicator import Chances
from vecdb.testing.service_calls import Calls, SimPeers
from vecdb.testing.shards import Serial, Watched, cut_after
from vecdb.testing.synced import Synced
from vecdb.testing.violation import Violation
from vecdb.testing.world import World

LOGS: Final = "raft"
CONTROL: Final = "control"
TEND_S: Final = (0.2, 1.0)
LOOK_S: Final = 0.3
DAMAGE: Final = frozenset({"raft_log_damaged", "replica_state_damaged", "control_state_damaged", "ledger_damaged",
                           "logs_damaged", "start_found_damage"})
"""What nobody may tell whose disk was not damaged."""


class Ears(Protocol):
    """What a judge hears of the machines."""

    def shard_applied(self, node: str, group: int, replica: ShardReplica, log_index: int, command: bytes | None,
                      outcome: object) -> None: ...

    def control_applied(self, node: str, machine: ControlReplica) -> None: ...

    def leads(self, group: int, term: int, replica: str) -> None: ...


class LoopClock:
    """A loop's time as the :class:`~vecdb.ports.clock.Clock` of services."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    def wall(self) -> float:
        return 1_700_000_000.0 + self._loop.time()

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing sleeps in virtual time: who would wake it?")


class SimFrames:
    """The :class:`~vecdb.ports.frames.Frames` of a process on a simulated network."""

    def __init__(self, network: Network, name: str, loop: VirtualLoop) -> None:
        self._network, self._name, self._loop = network, name, loop

    def send(self, node: str, frame: bytes, *, bulk: bool = False) -> None:
        self._network.send(self._name, node, frame, bulk=bulk)

    def listen(self, received: Callable[[str, bytes], None], gone: Callable[[str], None] | None = None) -> None:
        loop = self._loop

        def deliver(sender: str, frame: bytes) -> None:
            if loop.alive:
                loop.call_soon(received, sender, frame)

        def told(name: str) -> None:
            if loop.alive and gone is not None:
                loop.call_soon(gone, name)

        self._network.deliver[self._name], self._network.gone[self._name] = deliver, told


class WatchedGroups:
    """A driver whose machines a judge hears."""

    def __init__(self, driver: Driver, machine: "Machine") -> None:
        self._driver, self._machine = driver, machine

    @property
    def failure(self) -> BaseException | None:
        return self._driver.failure

    def fail(self, error: BaseException) -> None:
        self._driver.fail(error)

    def add(self, group: int, machine: StateMachine, *, number: int, voters: tuple[str, ...] = (),
            existing: bool = False, afresh: bool = False) -> Replicator:
        heard, node = machine, self._machine
        if isinstance(machine, ShardReplica):
            heard = Watched(machine, node.name, group, node.ears.shard_applied)
        elif isinstance(machine, ControlReplica):
            heard = HeardControl(machine, node.name, node.ears)
        replicator = self._driver.add(group, heard, number=number, voters=voters, existing=existing, afresh=afresh)
        return replicator if node.chances is None else Moody(replicator, node.chances, node.world.random)

    async def remove(self, group: int) -> None:
        await self._driver.remove(group)

    def forget(self, group: int) -> None:
        self._driver.forget(group)

    def logs(self) -> list[int]:
        return self._driver.logs()


class HeardControl:
    """The control group's machine, heard by a judge."""

    def __init__(self, machine: ControlReplica, name: str, ears: Ears) -> None:
        self._machine, self._name, self._ears = machine, name, ears

    def apply(self, log_index: int, term: int, command: bytes) -> object:
        outcome = self._machine.apply(log_index, term, command)
        self._ears.control_applied(self._name, self._machine)
        return outcome

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)


class Process:
    """One life of a node; its parts are None until they are made."""

    def __init__(self, machine: "Machine") -> None:
        self.machine = machine
        self.name = machine.name
        world = machine.world
        self.loop = virtual_loop(world, machine.name, machine.rate, self._on_disk)
        self.on_death: list[Callable[[], None]] = []
        self.database: LocalDatabase | None = None
        self.driver: Driver | None = None
        self.control: Control | None = None
        self.hosting: Hosting | None = None
        self.own: OwnReplicas | None = None
        self.node: ReplicatedNode | None = None
        self.extra: Any = None
        """What a simulation has added (:attr:`Machine.extend`)."""
        self.loop.create_task(self._run())

    def _on_disk(self, act: Callable[[], None]) -> None:
        with self.machine.disk.at_work():
            act()

    def threads(self, count: int, name: str) -> Executor:
        slow = {"raft-slow": 0.3, "hosting": 0.3, "upkeep": 0.5}.get(name, 0.0)

        def seconds(random: Random) -> float:
            return random.uniform(0.01, 0.3) if random.random() < slow else random.uniform(0.0001, 0.002)

        return Threads(self.loop, count, seconds)

    def tell(self, level: str, event: str, **fields: Any) -> None:
        root = str(self.machine.disk.root)
        fields.pop("node", None)
        if event in DAMAGE and not self.machine.damaged:
            self.machine.world.failure = Violation(f"{self.name}: {event} {fields}, and nobody damaged anything")
        if event == "raft_leader":
            self.machine.ears.leads(fields["group"], fields["term"], fields["replica"])
        self.machine.world.say(self.name, event, **{
            name: value.replace(root, "") if isinstance(value, str) else value for name, value in fields.items()})

    def translated(self, call: Call, sender: "Process") -> Call:
        """A call of another process's, by this one's clock, with a ``stop`` of its own."""
        deadline = call.deadline
        if deadline is not None:
            deadline = self.loop.time() + deadline - sender.loop.time()
        return Call(deadline, call.token, call.request_id, call.principal, call.consistency, call.session)

    # --- life -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Start, and go on until the process dies; a start that the disk refuses is made again."""
        while True:
            try:
                await self._start()
                break
            except VecdbError as error:
                event = "start_found_damage" if isinstance(error, DataCorrupted) else "start_failed"
                self.tell("error", event, error=f"{type(error).__name__}: {error.message}")
                await asyncio.sleep(LOOK_S)
        pool = self.threads(1, "upkeep")
        while True:
            await asyncio.sleep(self.machine.world.random.uniform(*TEND_S))
            await self._tend(pool)

    async def _start(self) -> None:
        machine, loop, random = self.machine, self.loop, self.machine.world.random
        root, disk, clock = machine.disk.root, machine.disk, LoopClock(loop)
        database = await loop.run_in_executor(None, self._open)
        store = await loop.run_in_executor(None, self._open_logs)
        driver = Driver(self.name, store, SimFrames(machine.network, self.name, loop), seed=random.getrandbits(64),
                        settings=machine.raft, tell=self.tell, threads=self.threads)
        peers = SimPeers(machine.calls, self)
        control = Control(root / CONTROL, disk.open_store, replication_factor=3)
        self.hosting = Hosting(self.name, machine.nodes, WatchedGroups(driver, machine), database,
                               control, Ledger(store), peers, draw=lambda: random.randrange(*NUMBERS),
                               executor=self.threads(4, "hosting"), settings=HostingSettings(0.5, (0.1, 2.0), 10.0),
                               tell=self.tell)
        engine = LocalNode(database, clock, NullObserver(), NodeLimits(threads=2), lambda: 0, threads=self.threads)
        self.database, self.driver, self.control = database, driver, control
        self.own = OwnReplicas(engine, self.hosting, control, clock)
        self.node = ReplicatedNode(Cluster(self.name, machine.nodes), engine, self.own, control, peers, clock,
                                   NullObserver(), Random(random.getrandbits(64)))  # noqa: S311
        self.hosting.start()
        if machine.extend is not None:
            self.extra = machine.extend(self)

    def _open(self) -> LocalDatabase:
        machine = self.machine
        return LocalDatabase(machine.disk.root, machine.disk.open_store, Serial(), LoopClock(self.loop),
                             machine.engine, on_job_error=lambda job, error: None, on_close=lambda: None)

    def _open_logs(self) -> Any:
        folder = self.machine.disk.root / LOGS
        try:
            if self.machine.condemned:
                raise DataCorrupted("it was found damaged before", path=str(folder))
            return self.machine.disk.open_store(folder)
        except DataCorrupted as error:
            self.tell("error", "logs_damaged", error=error.message)
            set_aside(folder)
            self.machine.condemned = False
            return self.machine.disk.open_store(folder)

    async def _tend(self, pool: Executor) -> None:
        """What background jobs would do."""
        database, happened = self.database, self.machine.world.happened
        assert database is not None
        for name in sorted(database.hosted()):
            try:
                done = await self.loop.run_in_executor(pool, database.tend, name)
                while done is not None:
                    happened[f"upkeep_{done}"] += 1
                    done = await self.loop.run_in_executor(pool, database.tend, name)
            except (VecdbError, OSError) as error:
                happened["upkeep_failed"] += 1
                self.tell("warning", "upkeep_failed", collection=name, error=f"{type(error).__name__}: {error}")


class Machine:
    """One node: its disk, its clock, and the process on it while there is one."""

    def __init__(self, world: World, name: str, nodes: Sequence[str], network: Network, calls: Calls, ears: Ears,
                 root: Path, synced: Synced, raft: RaftSettings, engine: EngineSettings) -> None:
        self.world, self.name, self.nodes, self.network, self.calls = world, name, nodes, network, calls
        self.ears, self.raft, self.engine = ears, raft, engine
        self._root, self._synced = root, synced
        self.rate = world.random.uniform(0.95, 1.05)
        self.disk = Disk(root / name, synced)
        self.disk.chance = world.random
        self.process: Process | None = None
        self.graves: list[VirtualLoop] = []
        self.condemned = False
        """The logs' store was found damaged when it was written to."""
        self.chances: Chances | None = None
        """Of what replicators refuse by themselves."""
        self.damaged = False
        """Somebody has damaged its disk, once."""
        self.extend: Callable[[Process], Any] | None = None
        """Makes what else a process has, once it has everything."""

    @property
    def up(self) -> bool:
        return self.process is not None and not self.process.loop.paused

    def start(self) -> None:
        assert self.process is None
        self.world.say(self.name, "starts")
        self.process = Process(self)

    def crash(self) -> None:
        """The power goes, maybe in the middle of what threads are at."""
        process, random = self.process, self.world.random
        assert process is not None
        self.process = None
        under_way = [work for pool in process.loop.pools for work in pool.under_way]
        process.loop.kill()
        self.graves.append(process.loop)
        self.network.seems_gone(self.name)
        for work in under_way:
            if random.random() < 0.5 and self.disk.cut_within(work, cut_after(random)):
                self.world.happened["cuts_within"] += 1
                break
        batches, lost = self.disk.crash(random)
        self.world.happened["batches_lost"] += batches
        self.world.happened["names_lost"] += len(lost)
        self.world.say(self.name, "crashes", rows_lost=batches, files_lost=lost)
        for tell in process.on_death:
            tell()

    def replace_disk(self) -> None:
        """A new, empty disk, while there is no process."""
        assert self.process is None
        number = self.world.happened["disks_replaced"]
        self.world.happened["disks_replaced"] += 1
        self.disk = Disk(self._root / f"{self.name}-{number + 1}", self._synced)
        self.disk.chance = self.world.random
        self.condemned = False

    def hosted(self) -> Mapping[str, Entry]:
        assert self.process is not None
        assert self.process.database is not None
        return self.process.database.hosted()

    def end(self) -> None:
        """The simulation is over."""
        for loop in (*self.graves, *([self.process.loop] if self.process is not None else [])):
            loop.end()
