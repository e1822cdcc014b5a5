"""A cluster to host in, without Raft, disks or time: what groups agree on is kept by a judge who forgets nothing.

The judge knows who the voters of each group are and which logs ever were on stable storage.  He refuses what must not
happen: a voter that begins anew under a number that has promised something, and a log deleted that a group still needs.
"""

import asyncio
from dataclasses import dataclass, field

from vecdb.cluster.control import ControlState, apply
from vecdb.core.errors import DataCorrupted, NotLeader, StorageError, Unavailable
from vecdb.core.schema import CollectionSchema
from vecdb.ports.replicator import Committed, Position, ReplicaStatus
from vecdb.services.catalog import Entry
from vecdb.services.control import CONTROL_GROUP, Control
from vecdb.services.homes import group_of
from vecdb.services.hosting import Hosting, HostingSettings
from vecdb.services.ledger import Ledger
from vecdb.testing.disk import MemoryStore
from vecdb.testing.loop import Threads, VirtualLoop
from vecdb.testing.world import World

NODES = ("n1", "n2", "n3")
SOON = 30.0


@dataclass
class Log:
    """``voters``: as it began; none: it waits for a leader.  ``base``: what is before it is gone."""

    replica: str
    voters: tuple
    base: int = 1
    damaged: bool = False


@dataclass
class Row:
    """A replica's state on the disk."""

    entry: Entry
    position: int = 0
    damaged: bool = False


@dataclass
class Disk:
    logs: dict = field(default_factory=dict)
    ledger: MemoryStore = field(default_factory=MemoryStore)
    control: MemoryStore = field(default_factory=MemoryStore)
    rows: dict = field(default_factory=dict)
    aside: list = field(default_factory=list)


@dataclass
class Truth:
    """What a group has agreed on."""

    voters: set
    first: set
    commands: list = field(default_factory=list)
    entries: int = 1


class Judge:
    def __init__(self, world):
        self.world = world
        self.groups = {}
        self.promised = {}
        """Logs by group and replica that were durable once."""
        self.nodes = {}
        self.control = ControlState()
        self.violations = []
        world.at(0.05, self.pump)

    def dropped(self, group):
        return self.control.was_dropped(group)

    def must(self, so, what):
        """Whoever asked may survive what he did wrong: it is not forgotten."""
        if not so:
            self.violations.append(what)
            raise AssertionError(what)

    def begins(self, group, log):
        """A new log is made."""
        self.must((group, log.replica) not in self.promised, f"{log.replica} of {group} forgets what it promised")
        if log.voters:
            self.must(log.replica in log.voters, f"{log.replica} is no voter of {group}")
            self.must(group not in self.groups or self.groups[group].first == set(log.voters),
                      f"group {group} began with others")
            self.groups.setdefault(group, Truth(set(log.voters), set(log.voters)))

    def durable(self, group, log):
        self.promised[group, log.replica] = log

    def here(self, group):
        """Replicas that can do something."""
        found = {}
        for node in self.nodes.values():
            replica = None if node.driver is None else node.driver.replicas.get(group)
            if replica is not None and replica.state != "halted" and node.disk.logs.get(group) is replica.log:
                found[replica.log.replica] = replica
        return found

    def leader(self, group):
        truth = self.groups.get(group)
        if truth is None:
            return None
        well = sorted(one for one in self.here(group) if one in truth.voters)
        return well[0] if len(well) > len(truth.voters) // 2 else None

    def pump(self):
        """Let groups get on a little; comes again by itself."""
        random = self.world.random
        for group, truth in self.groups.items():
            here = self.here(group)
            leader = self.leader(group)
            for name, replica in here.items():
                if leader is None or replica.state == "removed":
                    continue
                if name not in truth.voters:
                    lost = {one for one in truth.voters if one.split("/")[0] == name.split("/")[0]}
                    if replica.log.voters:
                        replica.state = "removed"
                    elif lost:
                        truth.voters = truth.voters - lost | {name}
                        replica.log.voters = tuple(sorted(truth.voters))
                elif random.random() < 0.7:
                    replica.catch_up(truth, random.randint(1, 4))
                    if random.random() < 0.1:
                        replica.log.base = max(replica.log.base, replica.durable())
            if leader is not None and group != CONTROL_GROUP:
                truth.entries += 1
        self.world.at(0.05, self.pump)

    def propose(self, group, name, command):
        leader = self.leader(group)
        if leader != name:
            raise NotLeader("another leads", leader=leader)
        truth = self.groups[group]
        truth.commands.append(command)
        truth.entries += 1
        assert group == CONTROL_GROUP
        self.control = apply(self.control, len(truth.commands) + 1, 1, command).state
        return self.here(group)[leader].catch_up(truth)


class Replica:
    """In a driver's hands: a log and its machine."""

    def __init__(self, judge, group, log, machine):
        self.judge, self.group, self.log, self.machine = judge, group, log, machine
        self.state, self.error = "ok", ""

    def catch_up(self, truth, most=1 << 30):
        result, at = None, self.machine.position().log_index
        if self.group == CONTROL_GROUP:
            begin = max(at - 1, 0)
            for index in range(begin, min(begin + most, len(truth.commands))):
                result = self.machine.apply(index + 2, 1, truth.commands[index])
        else:
            self.machine.row.position = truth.entries
        return result

    def durable(self):
        """How far the state is on the disk."""
        if self.group == CONTROL_GROUP:
            try:
                return self.machine.checkpoint().log_index
            except StorageError as error:
                self.state, self.error = "halted", str(error)
                return 0
        return self.machine.row.position

    async def propose(self, command, deadline):
        result = self.judge.propose(self.group, self.log.replica, command)
        if isinstance(result, Exception):
            raise result
        return Committed(self.machine.position().log_index, result)

    async def read_index(self, deadline):
        return 0

    def status(self):
        truth = self.judge.groups.get(self.group)
        state = self.state
        if state == "ok" and not self.log.voters:
            state = "joining"
        leader = self.judge.leader(self.group)
        return ReplicaStatus(self.log.replica, state, "leader" if leader == self.log.replica else "follower", 1, leader,
                             0, 0, 0, 0, 0, tuple(sorted(truth.voters)) if truth else (), error=self.error)


class Driver:
    """The Groups of a process's life."""

    def __init__(self, node):
        self.node, self.judge = node, node.judge
        self.replicas = {}
        self.failure = None
        self.unsynced = []

    def fail(self, error):
        self.failure = error

    def _later(self, do):
        self.unsynced.append(do)

        def synced():
            while do in self.unsynced and self.node.driver is self:
                self.unsynced.pop(0)()  # in order, as one log's batches are

        self.judge.world.at(self.judge.world.random.uniform(0.001, 0.03), synced)

    def add(self, group, machine, *, number, voters=(), existing=False, afresh=False):
        disk, position = self.node.disk, machine.position().log_index
        self.judge.must(group not in self.replicas, f"group {group} is added twice")
        if any(getattr(one, "group", None) == group for one in self.unsynced):
            raise Unavailable("the log is being written")
        log = disk.logs.get(group)
        rejoins = afresh or (log is None and existing) or (log is not None and (
            log.damaged or (position < log.base and log.base > 1)))
        if rejoins or log is None:
            if rejoins:
                number, voters = self.judge.world.random.randrange(1 << 16, 1 << 32), ()
            log = Log(f"{self.node.name}/{number}", voters, max(position, 1))
            self.judge.begins(group, log)

            def made():
                disk.logs[group] = log
                self.judge.durable(group, log)

            made.group = group
            self._later(made)
        self.replicas[group] = Replica(self.judge, group, log, machine)
        return self.replicas[group]

    async def remove(self, group):
        del self.replicas[group]
        await asyncio.sleep(0.02)

    def forget(self, group):
        self.judge.must(group not in self.replicas, f"the log of {group} is deleted under its hands")
        self.judge.must(self.judge.dropped(group), f"the log of {group}, which is not dropped, is deleted")
        disk = self.node.disk

        def gone():
            if group not in self.replicas:
                disk.logs.pop(group, None)

        gone.group = group
        self._later(gone)

    def logs(self):
        return list(self.node.disk.logs)


class Machine:
    """A shard's state in memory."""

    def __init__(self, row):
        self.row = row
        self.failure = None

    def position(self):
        return Position(self.row.position, 1 if self.row.position else 0)

    def marks(self):
        return {7: "a mark"}


class Local:
    """The LocalReplicas of a process's life; refuses by chance."""

    def __init__(self, node):
        self.node, self.opened = node, {}
        self.catalog_lost = False

    @property
    def rows(self):
        return self.node.disk.rows

    def _chance(self):
        if self.node.judge.world.random.random() < self.node.faults:
            raise StorageError("the simulated disk refuses")

    def host(self, schema, folder):
        self._chance()
        known = self.rows.get(schema.name)
        if known is None:
            self.rows[schema.name] = Row(Entry(schema, folder))
        else:
            self.node.judge.must(known.entry == Entry(schema, folder), f"two folders of {schema.name}")

    def unhost(self, name):
        self._chance()
        row = self.rows.pop(name)
        self.opened.pop(name, None)
        group = group_of(row.entry.folder)
        self.node.judge.must(group not in self.node.driver.replicas, f"{name} is deleted under its log's hands")
        self.node.judge.must(self.node.judge.dropped(group), f"{name}, which was not dropped, is deleted")

    def hosted(self):
        return {name: row.entry for name, row in self.rows.items()}

    def replica(self, name, *, allow_damage=False):
        self._chance()
        machine = self.opened.get(name)
        if machine is not None and machine.failure is not None:
            if isinstance(machine.failure, DataCorrupted):
                raise machine.failure
            machine = None
        row = self.rows[name]
        if row.damaged and not allow_damage:
            raise DataCorrupted("the state is damaged", path=name)
        self.opened[name] = machine or Machine(row)
        return self.opened[name]

    def set_aside(self, name):
        self._chance()
        row = self.rows[name]
        self.node.disk.aside.append(row)
        self.rows[name] = Row(row.entry)
        self.opened.pop(name, None)


class ChancyControl(Control):
    """Its folder is a store in memory."""

    def __init__(self, node):
        super().__init__(None, lambda path: node.disk.control, replication_factor=3)
        self._node = node

    def set_aside(self):
        self.close()
        self._node.disk.aside.append(self._node.disk.control)
        self._node.disk.control = MemoryStore()


class Node:
    """``disk`` outlives its processes."""

    def __init__(self, judge, name, nodes=NODES, faults=0.0):
        self.judge, self.name, self.names, self.faults = judge, name, nodes, faults
        self.disk = Disk()
        self.loop = self.driver = self.hosting = self.control = self.threads = None
        self.told = []
        judge.nodes[name] = self

    def tell(self, level, event, **fields):
        self.told.append((level, event, fields))
        self.judge.world.say(self.name, event, **fields)

    async def founding(self, node):
        world, other = self.judge.world, self.judge.nodes[node]
        await asyncio.sleep(world.random.uniform(0.001, 0.05))
        told = None if other.hosting is None else other.hosting.founding
        await asyncio.sleep(world.random.uniform(0.001, 0.05))
        if told is None:
            raise Unavailable("no answer")
        return told

    def start(self):
        world = self.judge.world
        self.loop = loop = VirtualLoop(world, self.name)
        self.threads = Threads(loop, 4)

        async def begin():
            self.driver = Driver(self)
            self.control = ChancyControl(self)
            self.hosting = Hosting(
                self.name, self.names, self.driver, Local(self), self.control, Ledger(self.disk.ledger), self,
                draw=lambda: world.random.randrange(1 << 16, 1 << 32), executor=self.threads,
                settings=HostingSettings(look_s=0.5, retry_s=(0.1, 2.0), well_s=20.0), tell=self.tell)
            self.hosting.start()

        loop.create_task(begin())

    def kill(self):
        """What threads were at may be done; what was not on stable storage may be lost."""
        random, driver = self.judge.world.random, self.driver
        self.loop.kill()
        for work in self.threads.under_way:
            if random.random() < 0.5:
                work()
        if driver is not None:
            for do in driver.unsynced[:random.randint(0, len(driver.unsynced))]:
                do()
        for store in (self.disk.ledger, self.disk.control):
            store.crash(random)
        self.loop.end()
        self.loop = self.driver = self.hosting = self.control = None

    @property
    def settled(self):
        return self.hosting is not None and self.hosting.settled


def schema(name="a"):
    return CollectionSchema(name, 4)


class Cluster:
    def __init__(self, seed=1, nodes=NODES, faults=0.0):
        self.world = World(seed)
        self.judge = Judge(self.world)
        self.nodes = {name: Node(self.judge, name, nodes, faults) for name in nodes}

    def start(self, *names):
        for name in names or self.nodes:
            self.nodes[name].start()

    def kill(self, *names):
        for name in names or self.nodes:
            if self.nodes[name].loop is not None:
                self.nodes[name].kill()

    def end(self):
        self.kill()
        assert not self.judge.violations

    @property
    def settled(self):
        epoch = self.judge.control.epoch
        return all(node.settled and node.control.state.epoch == epoch for node in self.nodes.values())

    def settle(self, at_most=SOON):
        assert self.world.run_until(lambda: self.settled, at_most), "\n".join(self.world.trace)

    def leader(self):
        assert self.world.run_until(lambda: self.judge.leader(0) is not None, SOON)
        return self.nodes[self.judge.leader(0).split("/")[0]]

    def ask(self, ask):
        """Of the control leader, until it is done."""
        for _ in range(200):
            node = self.leader()
            try:
                return node.loop.run(ask(node.control), SOON)
            except (NotLeader, Unavailable):
                self.world.run(0.1)
        raise AssertionError("nobody leads")

    def create(self, name="a"):
        """Its shard."""
        entry = self.ask(lambda control: control.create(schema(name)))
        return self.judge.control.shards[entry.shards[0]]

    def drop(self, name="a"):
        return self.ask(lambda control: control.drop(name))

    def check(self):
        """Everything is as the control state says, on every node and on its disk."""
        assert not self.judge.violations
        entries = {entry.label: entry for entry in self.judge.control.shards.values()}
        for node in self.nodes.values():
            wanted = {name: entry.group for name, entry in entries.items() if node.name in entry.nodes}
            assert {name: group_of(row.entry.folder) for name, row in node.disk.rows.items()} == wanted
            assert set(node.driver.replicas) == {0, *wanted.values()}
            for group, replica in node.driver.replicas.items():
                assert replica.state == "ok"
                assert replica.log.replica in self.judge.groups[group].voters
            statuses = node.hosting.statuses()
            assert {name: one.group for name, one in statuses.items()} == {"": 0, **wanted}
            assert not any(one.error for one in statuses.values())
        for group, truth in self.judge.groups.items():
            if group and not self.judge.dropped(group):
                assert len(truth.voters) == min(3, len(self.nodes))
                assert self.judge.leader(group)
