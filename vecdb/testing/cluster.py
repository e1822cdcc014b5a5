"""Nodes of a simulated cluster: the real host, log store and cores over virtual time, wires and disks.

A crash ends a node's process at once: what was not synced may be lost, work in threads may or may not have been done,
nobody hears of it.  A pause stops it: what came meanwhile comes all at once when it goes on, as after a SIGCONT.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, TypeVar

from vecdb.core.errors import StorageError, Unavailable
from vecdb.ports.replicator import Position
from vecdb.raft.host import Host
from vecdb.raft.log import Batch, LogStore, entry_key, meta_key
from vecdb.raft.membership import node_of, replica_id
from vecdb.raft.replica import Replica
from vecdb.raft.settings import RaftSettings
from vecdb.testing.disk import MemoryStore
from vecdb.testing.homes import Home, RegisterHome
from vecdb.testing.network import Network
from vecdb.testing.register import RegisterMachine
from vecdb.testing.world import World

T = TypeVar("T")
TICK_S = 0.05
SETTINGS = RaftSettings(window_bytes=1 << 12, window_messages=8, batch_bytes=1 << 10, batch_entries=16,
                        uncommitted_bytes=1 << 13, apply_bytes=1 << 11, log_bytes=1 << 13, keep_entries=8,
                        checkpoint_bytes=1 << 11, chunk_bytes=256, fetches=2, fetch_timeout_s=0.3,
                        snapshot_idle_s=3.0)
"""Small bounds, so that every one of them is met."""


@dataclass(slots=True)
class _Job:
    act: Callable[[], None]
    half: Callable[[], bool]
    """What a crash may leave of it; whether nothing has happened after it."""
    seconds: float


class SimShell:
    """The :class:`~vecdb.raft.host.Shell` of one life of a node."""

    def __init__(self, node: "Node") -> None:
        self.node = node
        self.world = node.cluster.world
        self.lanes: dict[str, deque[_Job]] = {}
        self.alive = True

    def send(self, node: str, frame: bytes, *, bulk: bool = False) -> None:
        self.node.cluster.network.send(self.node.name, node, frame, bulk=bulk)

    def store(self, batch: Batch, done: Callable[[BaseException | None], None]) -> None:
        """Written at the beginning, synced at the end."""
        error: BaseException | None = None
        try:
            batch.store.write(batch.mutations)
        except Exception as failed:
            error = failed

        def sync() -> None:
            nonlocal error
            if error is None:
                try:
                    batch.store.sync()
                except Exception as failed:
                    error = failed
            self._tell(lambda: done(error))

        self._enter("log", _Job(sync, lambda: False, self.node.sync_s()))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.world.at(seconds, lambda: self._tell(act))

    def run(self, lane: str, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        def act() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = self.node.home.do(work)
            except Exception as failed:
                error = failed
            self._tell(lambda: done(result, error))

        home = self.node.home
        self._enter(lane, _Job(act, partial(home.half, work), home.seconds(self.world.random, lane)))

    def crash(self) -> None:
        self.alive = False
        for lane in self.lanes.values():
            if self.world.random.random() < 0.5 and lane[0].half():
                return

    def busy(self, group: int) -> bool:
        """Whether a thread does something for a group."""
        return any(lane.endswith(f"/{group}") for lane in self.lanes)

    def _tell(self, done: Callable[[], None]) -> None:
        self.node.do(self, done)

    def _enter(self, lane: str, job: _Job) -> None:
        jobs = self.lanes.setdefault(lane, deque())
        jobs.append(job)
        if len(jobs) == 1:
            self._start(lane, job)

    def _start(self, lane: str, job: _Job) -> None:
        def end() -> None:
            if not self.alive:
                return
            job.act()
            jobs = self.lanes[lane]
            jobs.popleft()
            if jobs:
                self._start(lane, jobs[0])
            else:
                del self.lanes[lane]

        self.world.at(job.seconds, end)


class Node:
    """One machine: its disk, its clock, and the process on it while there is one."""

    def __init__(self, cluster: "Cluster", name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.store = MemoryStore()
        self.home = cluster.homes(self)
        self.members: dict[int, tuple[int, tuple[str, ...]]] = {}
        """By group, as the catalog has it: number and first voters."""
        self.created: dict[int, bool] = {}
        self.outcast: dict[int, bool] = {}
        """Groups that know this node by another number than its replica has."""
        self.slow = 1.0
        self.rate = 1.0
        self.paused = False
        self.host: Host | None = None
        self.shell: SimShell | None = None
        self.backlog: deque[tuple[str, SimShell, Callable[[], None]]] = deque()
        cluster.network.deliver[name] = self._deliver
        cluster.network.gone[name] = self._gone

    @property
    def up(self) -> bool:
        return self.host is not None and not self.paused

    def clock(self) -> float:
        return self.cluster.world.now * self.rate + 1000.0

    def sync_s(self) -> float:
        return self.cluster.world.random.uniform(0.0005, 0.005) * self.slow

    def do(self, shell: SimShell, act: Callable[[], None], source: str = "threads") -> None:
        """Let the process do something, now or when it goes on; nothing if it has died since."""
        if not shell.alive:
            return
        if self.paused:
            self.backlog.append((source, shell, act))
        else:
            self.act(act)

    def act(self, act: Callable[[], Any]) -> None:
        """Something happens in the process."""
        self.cluster.acted[self.name] = self
        self.home.do(act)

    def _deliver(self, sender: str, frame: bytes) -> None:
        host, shell = self.host, self.shell
        if host is not None and shell is not None:
            self.do(shell, lambda: host.receive(sender, frame), sender)

    def _gone(self, name: str) -> None:
        host, shell = self.host, self.shell
        if host is not None and shell is not None:
            self.do(shell, lambda: host.gone(name), "threads")

    def start(self) -> None:
        assert self.host is None
        world = self.cluster.world
        try:
            self.act(self.home.begin)
        except StorageError:
            world.at(0.05, lambda: self.start() if self.host is None else None)
            return
        self.shell = SimShell(self)
        self.host = Host(self.name, LogStore(self.store, cache_bytes=1 << 10), self.shell, clock=self.clock,
                         random=Random(world.random.getrandbits(64)),  # noqa: S311
                         settings=self.cluster.settings, tell=self.cluster.tell)
        for group in sorted(self.members):
            self._open(group)
        world.say(self.name, "starts", groups=sorted(self.members))
        self._tick_later(self.shell, world.random.uniform(0, TICK_S))
        self.act(self.host.turn)

    def take_up(self, group: int) -> Replica:
        """Let the running process host a group that the catalog gives it."""
        assert self.host is not None
        number, voters = self.members[group]
        outcast = self.outcast.pop(group, False)
        replica = self.host.add(group, self.home.machine(group), number=number, voters=voters,
                                existing=self.created.get(group, False), afresh=outcast)
        if outcast:
            self.cluster.joined[replica.core.me] = True
        elif replica.core.log.number != number:
            self.cluster.rejoined(replica_id(self.name, number), replica.core.me, group)
        self.members[group] = (replica.core.log.number, voters)
        return replica

    def join(self, group: int, number: int) -> None:
        """Be a new replica of a group, which nobody knows yet; whatever is here of it goes."""
        self.members[group] = (number, ())
        self.cluster.joined[replica_id(self.name, number)] = True
        self.renew(group, forget=True)

    def cast_out(self, group: int, me: str) -> None:
        """Begin afresh where the group knows this replica no more, and another of this node, as hosting does."""
        replica, leader = self.cluster.replica(self.name, group), self.cluster.leader(group)
        if replica is None or replica.core.me != me:
            return
        if leader is None:  # hosting looks again until somebody can tell
            self.cluster.world.at(0.5, lambda: self.cast_out(group, me))
            return
        if any(node_of(one) == self.name for one in leader.core.configuration.everybody if one != me):
            self.outcast[group] = True
            self.renew(group)

    def renew(self, group: int, *, forget: bool = False) -> None:
        """Close a replica and open it again, as soon as its last batch is written and no thread is at it."""
        assert self.host is not None
        shell, host = self.shell, self.host
        if group in host.replicas:
            host.remove(group, forget=forget)
        if forget:
            self.created.pop(group, None)

        def again() -> None:
            if self.shell is not shell or shell is None or host.failure is not None or group in host.replicas:
                if forget and self.shell is shell and host.failure is not None:
                    self.outcast[group] = True  # it was to begin afresh, and its disk has failed first: the next does
                return
            if shell.busy(group):
                self.cluster.world.at(0.01, again)
                return
            try:
                self.act(partial(self.home.let_go, group, forget=forget))
            except StorageError:
                self.cluster.world.at(0.01, again)
                return
            self._open(group)

        again()

    def _open(self, group: int) -> None:
        """Take up a group, now or when its disk takes it and its last batch is written."""
        shell, host = self.shell, self.host
        assert host is not None

        def again() -> None:
            if self.shell is shell and host.failure is None and group not in host.replicas:
                try:
                    self.act(partial(self.take_up, group))
                    self.act(host.turn)
                except (Unavailable, StorageError):
                    self.cluster.world.at(0.01, again)

        again()

    def _tick_later(self, shell: SimShell, delay: float) -> None:
        def tick() -> None:
            if shell.alive:
                if not self.paused:
                    assert self.host is not None
                    self.act(self.host.tick)
                self._tick_later(shell, TICK_S / self.rate)

        self.cluster.world.at(delay, tick)

    def crash(self) -> None:
        """The power goes."""
        assert self.host is not None
        assert self.shell is not None
        self.shell.crash()
        self.host, self.shell, self.paused = None, None, False
        self.backlog.clear()
        self.cluster.network.seems_gone(self.name)
        lost = self.store.crash(self.cluster.world.random)
        for group in self.members:
            self.created[group] = self.created.get(group, False) or self.store.durable(meta_key(group)) is not None
        self.cluster.world.say(self.name, "crashes", batches_lost=lost, **self.home.crash(self.cluster.world.random))

    def pause(self) -> None:
        self.paused = True
        self.cluster.world.say(self.name, "pauses")
        self.cluster.network.seems_gone(self.name)  # which is wrong: it goes on, and may lead

    def resume(self) -> None:
        self.paused = False
        self.cluster.world.say(self.name, "goes on", behind=len(self.backlog))
        backlog, self.backlog = self.backlog, deque()
        # Sockets are served in any order, each of them in its own.
        sources = sorted({source for source, _, _ in backlog})
        self.cluster.world.random.shuffle(sources)
        for source, shell, act in sorted(backlog, key=lambda one: sources.index(one[0])):
            self.do(shell, act, source)

    def damage(self, group: int) -> str | None:
        """Flip a bit of a group's log; only while there is no process.  Returns the replica that is lost by it."""
        assert self.host is None
        random = self.cluster.world.random
        number = self.members[group][0]
        start = entry_key(group, 0) if random.random() < 0.7 else meta_key(group)
        stop = entry_key(group + 1, 0) if start[:1] == b"l" else meta_key(group + 1)
        key = self.store.flip(random, start, stop)
        if key is None:
            return None
        self.cluster.world.say(self.name, "log damaged", group=group, row=key.hex())
        return replica_id(self.name, number)


class Cluster:
    """Groups over nodes.  ``seen``, ``told`` and ``rejoined`` are the judges' ears."""

    def __init__(self, world: World, names: list[str], settings: RaftSettings = SETTINGS,
                 homes: "Callable[[Node], Home] | None" = None) -> None:
        """``homes``: what each node keeps its groups' states in; registers unless told."""
        self.world = world
        self.settings = settings
        self.network = Network(world)
        self.homes = homes or self._registers
        self.seen: Callable[[str, int, Position, int], None] = lambda node, group, position, digest: None
        self.told: Callable[[str, dict[str, Any]], None] = lambda event, fields: None
        self.rejoined: Callable[[str, str, int], None] = lambda replica, successor, group: None
        """A replica gave up its number for another: its log or its state was damaged."""
        self.nodes = {name: Node(self, name) for name in names}
        self.acted: dict[str, Node] = {}
        """Nodes that have done something since the judge looked."""
        self.joined: dict[str, bool] = {}
        """Replicas that did not found their group."""
        self.observers: dict[str, bool] = {}
        """Replicas that are never to have a vote."""
        self._numbers = 0

    def tell(self, level: str, event: str, **fields: Any) -> None:
        self.world.say(str(fields.pop("node", "")), event, **fields)
        self.told(event, fields)
        if event == "raft_removed":
            node = self.nodes[node_of(fields["replica"])]
            self.world.at(0.05, lambda: node.cast_out(fields["group"], fields["replica"]))

    def _registers(self, node: Node) -> RegisterHome:
        return RegisterHome(lambda group, position, digest: self.seen(node.name, group, position, digest))

    def number(self) -> int:
        """A replica's number that was not used before."""
        self._numbers += 1
        return self._numbers

    def form(self, group: int, names: list[str]) -> None:
        """Give a group its first members; before the nodes start."""
        numbers = {name: self.number() for name in names}
        voters = tuple(replica_id(name, numbers[name]) for name in names)
        for name in names:
            self.nodes[name].members[group] = (numbers[name], voters)

    def start(self) -> None:
        for node in self.nodes.values():
            if node.host is None:
                node.start()

    def replica(self, node: str, group: int) -> Replica | None:
        host = self.nodes[node].host
        return None if host is None else host.replicas.get(group)

    def replicas(self, group: int) -> list[Replica]:
        """Of running nodes, paused ones included."""
        return [replica for node in self.nodes.values() if node.host is not None
                for at, replica in node.host.replicas.items() if at == group]

    def leader(self, group: int) -> Replica | None:
        """Who leads, by the latest term, among nodes that run."""
        leading = [replica for name, node in self.nodes.items() if node.up
                   and (replica := self.replica(name, group)) is not None and replica.core.role == 2]
        return max(leading, key=lambda replica: replica.core.term, default=None)

    def machine_of(self, replica: Replica) -> RegisterMachine:
        machine = replica.machine
        assert isinstance(machine, RegisterMachine)
        return machine
