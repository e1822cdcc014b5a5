"""A cluster whose groups agree by decree: what replicated nodes stand on, in one process and without a network.

Who leads, who is behind, who does not answer is what the test says.  Engines answer ``count`` with the place in the log
that their replica has applied, so that a stale answer shows.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np

from vecdb.cluster import control
from vecdb.core.calls import Call
from vecdb.core.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ShardSealed,
    Unavailable,
    VecdbError,
)
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.query import Description, Matches, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.ports.observer import NullObserver
from vecdb.ports.replicator import Committed, ReplicaStatus
from vecdb.runtime.clock import SystemClock
from vecdb.services.admission import MemoryGuard
from vecdb.services.replicas import OwnReplicas
from vecdb.services.replicated import Cluster, ReplicatedNode
from vecdb.services.shards import ClusterShards
from vecdb.shard.marks import MarkResult

SCHEMA = CollectionSchema("docs", 2, "l2")  # type: ignore[arg-type]
NAMES = ("n1", "n2", "n3")


def even(count: int) -> list[tuple[int, int]]:
    """All hashes in so many ranges."""
    edges = [(1 << 64) * at // count for at in range(count + 1)]
    return list(pairwise(edges))


class Group:
    """The log of one group, and how far each node's replica has applied it."""

    def __init__(self, number: int, nodes: Sequence[str], leader: str | None) -> None:
        self.number, self.leader = number, leader
        self.log: list[bytes] = []
        self.applied = dict.fromkeys(nodes, 0)
        self.behind: set[str] = set()
        self.learning: set[str] = set()
        self.states = dict.fromkeys(nodes, "ok")
        self.moved = asyncio.Event()
        self.term = 1
        self.loses: list[Exception] = []
        """Raised by the next proposals, after they were committed."""

    def move(self) -> None:
        """Everybody who is not behind applies what there is."""
        for node in self.applied:
            if node not in self.behind:
                self.applied[node] = len(self.log)
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()

    def replica(self, node: str) -> str:
        return f"{node}/7"


class FakeReplicator:
    def __init__(self, cluster: "FakeCluster", group: Group, node: str) -> None:
        self.cluster, self.group, self.node = cluster, group, node

    def _lead(self) -> None:
        group = self.group
        if group.leader != self.node:
            raise NotLeader("not here", leader=group.replica(group.leader) if group.leader else None)

    async def propose(self, command: bytes, deadline: float | None) -> Committed:
        self._lead()
        group = self.group
        group.log.append(command)
        group.move()
        if group.loses:
            raise group.loses.pop(0)
        at = len(group.log)
        if command[:1] == b"\x05":
            return Committed(at, MarkResult(at, 1, at, "same"))
        key_length = command[2]
        first = next((n for n, one in enumerate(group.log, 1) if key_length and one == command), at)
        return Committed(at, WriteResult(inserted=1, log_index=first))

    async def read_index(self, deadline: float | None) -> int:
        self._lead()
        self.cluster.asked.append(f"read_index {self.group.number}")
        await asyncio.sleep(0)
        return len(self.group.log)

    async def wait_applied(self, log_index: int, deadline: float | None) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                while self.group.applied[self.node] < log_index:
                    await self.group.moved.wait()
        except TimeoutError:
            raise DeadlineExceeded("it is behind") from None

    async def transfer(self, to: str | None, deadline: float | None) -> None:
        self._lead()
        self.group.leader = (to or self.group.replica("n3")).rpartition("/")[0]

    def status(self) -> ReplicaStatus:
        group, nodes = self.group, sorted(self.group.applied)
        return ReplicaStatus(
            group.replica(self.node), group.states[self.node], "leader" if group.leader == self.node else "follower",
            group.term, group.replica(group.leader) if group.leader else None, len(group.log),
            group.applied[self.node], 1, len(group.log), 0,
            tuple(group.replica(node) for node in nodes if node not in group.learning),
            (), tuple(map(group.replica, sorted(group.learning))))


class FakeEngine:
    """``failing``: raised by every call; ``calls``: what was asked."""

    def __init__(self, cluster: "FakeCluster", node: str) -> None:
        self.cluster, self.node = cluster, node
        self.guard = MemoryGuard(lambda: 0, 0, SystemClock(), NullObserver())
        self.failing: VecdbError | None = None
        self.calls: list[tuple[str, Call]] = []
        self.answered: list[str] = []
        """Shards that were queried, by their labels."""
        self.pause = asyncio.Event()
        self.pause.set()

    async def _called(self, what: str, call: Call) -> None:
        self.calls.append((what, call))
        await self.pause.wait()
        call.check()
        if self.failing is not None:
            raise self.failing

    async def count(self, name: str, where: Any, call: Call) -> int:
        await self._called("count", call)
        return self.cluster.shard(name, self.node).applied[self.node]

    async def query(self, name: str, request: QueryRequest, call: Call) -> QueryResult:
        """The group's number, at the distance of each query's first component."""
        await self._called("query", call)
        self.answered.append(name)
        number = self.cluster.shard(name, self.node).number
        return QueryResult([Matches([number], row[:1].astype(np.float32)) for row in request.vectors])

    async def scan(self, name: str, request: ScanRequest, call: Call) -> ScanPage:
        await self._called("scan", call)
        assert isinstance(request.after, int)
        records = self.cluster.records.get(self.cluster.shard(name, self.node).number, [])
        page = records[request.after:request.after + request.limit]
        stop = request.after + len(page)
        return ScanPage(list(page), [{} for _ in page], None, stop if stop < len(records) else None)

    async def describe(self, name: str, call: Call) -> Description:
        await self._called("describe", call)
        return Description(name, self.cluster.shard(name).applied[self.node], {"by": self.node})

    async def optimize(self, name: str, call: Call, on_progress: Any = None) -> Description:
        await self._called("optimize", call)
        if on_progress is not None:
            on_progress("seal", 1, 1)
        return Description(name, 0, {"by": self.node})

    async def jobs(self, name: str | None, call: Call) -> list[dict[str, Any]]:
        await self._called("jobs", call)
        return [{"collection": "docs", "kind": "seal"}]

    async def verify(self, name: str, call: Call) -> dict[str, Any]:
        await self._called("verify", call)
        return {"records": 1, "log_index": 1, "digest": "same", "computed": "same", "equal": True}


class FakeHosted:
    def __init__(self, cluster: "FakeCluster", node: str) -> None:
        self.cluster, self.node = cluster, node
        self.lives: dict[int, FakeReplicator] = {}
        """By group; one that is taken out is opened anew."""

    def replicator(self, name: str) -> FakeReplicator:
        group = self.cluster.shard(name, self.node)
        if self.node not in group.applied:
            raise CollectionNotFound(name)
        return self.lives.setdefault(id(group), FakeReplicator(self.cluster, group, self.node))

    def marks(self, name: str) -> Mapping[int, MarkResult]:
        group = self.cluster.shard(name)
        first = 1 if (self.node, group.number) in self.cluster.unfilled else 0
        return {n: MarkResult(n, 1, n, self.cluster.digests.get(self.node, "same"))
                for n in range(first, group.applied[self.node] + 1)}

    def check_sealed(self, name: str, command: bytes | None) -> None:
        number = self.cluster.shard(name, self.node).number
        if number in self.cluster.sealed:
            raise ShardSealed(f"shard {number} takes no writes")

    def check_room(self, name: str) -> None:
        if self.cluster.full.get(self.node, 0):
            self.cluster.full[self.node] -= 1
            raise Overloaded("segments wait to be sealed", retry_after_s=3.0)


class FakeControl:
    """Applies the real machine's commands; a node that is behind in group 0 sees them later."""

    def __init__(self, cluster: "FakeCluster", node: str) -> None:
        self.cluster, self.node = cluster, node
        self._replicator = FakeReplicator(cluster, cluster.control, node)

    @property
    def replicator(self) -> FakeReplicator | None:
        return None if self.node in self.cluster.unopened else self._replicator

    @property
    def state(self) -> control.ControlState:
        return self.cluster.states[self.cluster.control.applied[self.node]]

    async def create(self, schema: CollectionSchema, call: Call, layout: Layout) -> object:
        assert call.token is not None
        replicas = [f"{node}/7" for node in self.cluster.placed]
        shards = [(lo, hi, replicas) for lo, hi in even(layout.shards or 1)]
        command = control.create_shards(schema, shards, len(replicas), layout.shard_key, call.token.key)
        return await self._change(command, call)

    async def drop(self, name: str, call: Call) -> object:
        assert call.token is not None
        return await self._change(control.drop(name, call.token.key), call)

    async def _change(self, command: bytes, call: Call) -> object:
        self._replicator._lead()
        done = control.apply(self.cluster.states[-1], len(self.cluster.states), 1, command)
        self.cluster.states.append(done.state)
        for entry in done.state.shards.values():
            self.cluster.groups.setdefault(entry.group, Group(entry.group, entry.nodes, self.cluster.elects))
        await self._replicator.propose(command, call.deadline)
        if isinstance(done.outcome, VecdbError):
            raise done.outcome
        return done.outcome


class _Across:
    """Another node's replicas and engine, with what may happen on the way."""

    def __init__(self, cluster: "FakeCluster", node: str) -> None:
        self._cluster, self._node = cluster, node

    def __getattr__(self, method: str) -> Any:
        async def call(*args: Any, **more: Any) -> Any:
            cluster = self._cluster
            cluster.asked.append(f"{method} {self._node}")
            if self._node in cluster.down:
                raise Unavailable(f"{self._node} is down")
            if self._node in cluster.frozen:
                await asyncio.Event().wait()
            result = await getattr(cluster.own[self._node], method)(*args, **more)
            if self._node in cluster.mute:
                raise OutcomeUnknown(f"{self._node} said nothing") if method in ("propose", "change") \
                    else Unavailable(f"{self._node} said nothing")
            return result

        return call


class FakePeers:
    def __init__(self, cluster: "FakeCluster") -> None:
        self._cluster = cluster

    def node(self, name: str) -> Any:
        return _Across(self._cluster, name)

    def replicas(self, name: str) -> Any:
        return _Across(self._cluster, name)


class FakeCluster:
    """``down``: refuses; ``frozen``: never answers; ``mute``: does it and does not say so."""

    def __init__(self, placed: Sequence[str] = NAMES, leader: str | None = "n1", names: Sequence[str] = NAMES) -> None:
        self.placed, self.elects = placed, leader
        self.control = Group(0, names, "n1")
        self.states = [control.ControlState()]
        self.groups: dict[int, Group] = {}
        self.down: set[str] = set()
        self.frozen: set[str] = set()
        self.mute: set[str] = set()
        self.digests: dict[str, str] = {}
        self.unopened: set[str] = set()
        """Nodes that have not opened the control group yet."""
        self.full: dict[str, int] = {}
        """How often a node says that it has no room."""
        self.sealed: set[int] = set()
        """Groups that take no writes."""
        self.unfilled: set[tuple[str, int]] = set()
        """Replicas, by node and group, that were away while their shard was filled."""
        self.records: dict[int, list[int]] = {}
        """What a scan finds, by group."""
        self.asked: list[str] = []
        self.engines = {node: FakeEngine(self, node) for node in names}
        clock, peers = SystemClock(), FakePeers(self)
        self.controls = controls = {node: FakeControl(self, node) for node in names}
        self.own = {node: OwnReplicas(self.engines[node], FakeHosted(self, node), controls[node], clock)  # type: ignore[arg-type]
                    for node in names}
        self.nodes = {node: ReplicatedNode(Cluster(node, names), self.engines[node], self.own[node],  # type: ignore[arg-type]
                                           controls[node], peers, clock, NullObserver(), Random(7)) for node in names}
        self.shards = {node: ClusterShards(Cluster(node, names), self.nodes[node], self.own[node], controls[node],
                                           self.engines[node], peers, clock) for node in names}  # type: ignore[arg-type]

    def shard(self, name: str, node: str | None = None) -> Group:
        """The group of a collection as it is now, or as a node knows it."""
        return self.groups[self.states[-1 if node is None else self.control.applied[node]].labelled(name).group]

    async def change(self, *commands: bytes) -> None:
        """Have the control group do what operators ask."""
        for command in commands:
            await self.controls["n1"]._change(command, soon())

    @contextmanager
    def behind(self, *nodes: str, name: str | None = "docs") -> Any:
        """These replicas apply nothing meanwhile; ``name`` None: of the control group."""
        group = self.control if name is None else self.shard(name)
        group.behind |= set(nodes)
        try:
            yield
        finally:
            group.behind -= set(nodes)
            group.move()


def soon(seconds: float = 5.0, **more: Any) -> Call:
    return Call(deadline=SystemClock().monotonic() + seconds, **more)


def run(test: Callable[[FakeCluster], Coroutine[Any, Any, None]], layout: Layout = ANYHOW, **given: Any) -> None:
    async def whole() -> None:
        cluster = FakeCluster(**given)
        await cluster.nodes["n1"].create_collection(SCHEMA, soon(), layout)
        cluster.asked.clear()
        async with asyncio.timeout(30):
            await test(cluster)

    asyncio.run(whole())


def batch(shape: int = 0) -> UpsertBatch:
    return UpsertBatch((1,), np.ones((1, 2), np.float32), (b"{}",), shape)
