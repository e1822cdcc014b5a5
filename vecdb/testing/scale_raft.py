"""What it costs a node of a large cluster to be alive, and how long its shards are without a leader when it dies.

One node of the control state, all groups it has a replica of, and every other replica of those groups on its node: the
product's hosts, logs and cores, with the drivers' timer, over wires of half a millisecond and disks of one.  What the
node sends and receives is then exactly what it would in the whole cluster, for a frame between two nodes is made of
messages of groups that both have.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeVar

from vecdb.cluster.control import ControlState
from vecdb.ports.replicator import Incoming, Position, Snapshot, SnapshotFile
from vecdb.raft.host import Host
from vecdb.raft.log import Batch, LogStore
from vecdb.raft.messages import encode_frame, split_frame
from vecdb.raft.settings import RaftSettings
from vecdb.testing.disk import MemoryStore
from vecdb.testing.violation import Violation
from vecdb.testing.world import World

T = TypeVar("T")

WIRE_S: Final = 0.0005
DISK_S: Final = 0.001
LATE_S: Final = 0.0001
"""A loop's timers are late by a little, and never early."""
WARM_S: Final = 30.0
COUNTED_S: Final = 4.0
FAILOVER_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Beats:
    """Of ``node``, a second: what it sends, what it receives in bytes, and what it would send without coalescing.

    ``cpu_share``: of a core of this machine, for its own host.  ``failover_s``: half, 99 % and all of its ``orphans``
    have another leader.
    """

    node: str
    replicas: int
    led: int
    peers: int
    frames_s: float
    messages_s: float
    bytes_s: float
    received_s: float
    alone_bytes_s: float
    cpu_share: float
    orphans: int
    failover_s: tuple[float, float, float]


class Idle:
    """A state machine that nobody writes to."""

    def __init__(self) -> None:
        self._position = Position(0, 0)

    def position(self) -> Position:
        return self._position

    def apply(self, log_index: int, term: int, command: bytes) -> object:
        self._position = Position(log_index, term)
        return None

    def checkpoint(self) -> Position:
        return self._position

    def snapshot(self) -> Snapshot:
        raise Violation("nobody needs a snapshot of what is never written to")

    def receive(self, position: Position, files: Sequence[SnapshotFile]) -> Incoming:
        raise Violation("nobody needs a snapshot of what is never written to")


class Node:
    """A host and its shell; counts what goes out and what its own work costs."""

    def __init__(self, cluster: "Neighbours", name: str) -> None:
        self.cluster, self.name, self.alive = cluster, name, True
        self.sent = Counter[str]()
        self.cpu_s = 0.0
        world = cluster.world
        self.host = Host(name, LogStore(MemoryStore()), self, clock=lambda: world.now + 1_000.0,
                         random=Random(world.random.getrandbits(64)), settings=cluster.settings,  # noqa: S311
                         tell=cluster.tell)
        self._period = cluster.settings.heartbeat_s / 2 + LATE_S
        world.at(world.random.uniform(0.0, self._period), self._tick)

    def _tick(self) -> None:
        if self.alive:
            self.cluster.world.at(self._period, self._tick)
            self.do(self.host.tick)

    def do(self, act: Callable[[], Any]) -> None:
        if self.alive:
            began = time.process_time()
            act()
            self.cpu_s += time.process_time() - began

    # --- the shell --------------------------------------------------------------------------------

    def send(self, node: str, frame: bytes, *, bulk: bool = False) -> None:
        if self.cluster.watched == self.name:
            began = time.process_time()
            messages = list(split_frame(frame))
            self.sent.update(frames=1, messages=len(messages), bytes=len(frame),
                             alone=sum(len(encode_frame([bytes(one)])) for one in messages))
            self.cpu_s -= time.process_time() - began  # counting is no work of its own
        other = self.cluster.nodes[node]
        other.sent["received"] += len(frame)
        self.cluster.world.at(WIRE_S, lambda: other.do(lambda: other.host.receive(self.name, frame)))

    def store(self, batch: Batch, done: Callable[[BaseException | None], None]) -> None:
        batch.write()
        self.cluster.world.at(DISK_S, lambda: self.do(lambda: done(None)))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self.cluster.world.at(seconds, lambda: self.do(act))

    def run(self, lane: str, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        result = work()
        self.cluster.world.at(DISK_S, lambda: self.do(lambda: done(result, None)))


class Neighbours:
    """A node with everybody it has to do with."""

    def __init__(self, state: ControlState, watched: str, seed: int, settings: RaftSettings) -> None:
        self.world, self.settings, self.watched = World(seed), settings, watched
        self.leaders: dict[int, tuple[int, str]] = {}
        """By group: the latest term that had a leader, and the node."""
        self.groups = [one for one in state.shards.values() if watched in one.desired]
        names = sorted({watched, *(name for one in self.groups for name in one.desired)})
        self.nodes = {name: Node(self, name) for name in names}
        for one in self.groups:
            voters = tuple(f"{name}/7" for name in one.desired)
            for name in one.desired:
                self.nodes[name].host.add(one.group, Idle(), number=7, voters=voters)

    def tell(self, level: str, event: str, **fields: Any) -> None:
        if event == "raft_leader":
            known = self.leaders.get(fields["group"], (0, ""))
            self.leaders[fields["group"]] = max(known, (fields["term"], str(fields["replica"]).rpartition("/")[0]))

    def led_by(self, node: str) -> list[int]:
        return [group for group, (_, leader) in self.leaders.items() if leader == node]

    def until(self, true: Callable[[], bool], at_most: float, what: str) -> None:
        if not self.world.run_until(true, at_most):
            raise Violation(f"{what} within {at_most} s")


def measure(state: ControlState, seed: int = 1, settings: RaftSettings | None = None) -> Beats:
    """Of the node with the most replicas."""
    loads = state.loads()
    watched = max(sorted(loads), key=lambda name: loads[name])
    near = Neighbours(state, watched, seed, settings or RaftSettings())
    near.until(lambda: len(near.leaders) == len(near.groups), WARM_S, "not every group has a leader")
    near.world.run(2 * near.settings.election_s_max)  # those that lost an election have heard of it
    node = near.nodes[watched]
    node.sent.clear()
    node.cpu_s = 0.0
    near.world.run(COUNTED_S)
    counted, cpu_s = dict(node.sent), node.cpu_s
    led = near.led_by(watched)
    return Beats(watched, len(near.groups), len(led), len(near.nodes) - 1, counted.get("frames", 0) / COUNTED_S,
                 counted.get("messages", 0) / COUNTED_S, counted.get("bytes", 0) / COUNTED_S,
                 counted.get("received", 0) / COUNTED_S, counted.get("alone", 0) / COUNTED_S, cpu_s / COUNTED_S,
                 len(led), failover(near, watched, led))


def failover(near: Neighbours, watched: str, led: Sequence[int]) -> tuple[float, float, float]:
    """Kill the node; when half, 99 % and all of the groups that it led have another leader."""
    near.nodes[watched].alive = False
    died, found = near.world.now, dict[int, float]()

    def look() -> None:
        for group in led:
            if group not in found and near.leaders[group][1] != watched:
                found[group] = near.world.now - died

    near.world.after_each = look
    near.until(lambda: len(found) == len(led), FAILOVER_S, "not every group has another leader")
    times = sorted(found.values()) or [0.0]
    return times[len(times) // 2], times[min(len(times) - 1, int(len(times) * 0.99))], times[-1]
