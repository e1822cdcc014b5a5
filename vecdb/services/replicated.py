"""A node of a cluster for its clients: any node answers any call, from its own replica or by way of another node.

**Writes** are checked and encoded where they come in and proposed by the leader of the shard's group, here or on the
other node (:mod:`~vecdb.services.leaders`).  What may have been done is done again only under its idempotency key; else
the end is ``OutcomeUnknown``.

**Reads** are answered by the replica of this node wherever it can, whatever the consistency.

- *eventual*: as it is.
- *session*: once it has applied what the session wrote.
- *linearizable*: once it has applied all that was committed when the read began, which only the leader can say.  So
  the question goes to the leader, one for all reads of a moment (:mod:`~vecdb.services.barriers`), and not the reads:
  it is a round trip either way, but the vectors, the answers and the kernels' work stay here, and a group answers as
  many linearizable reads as its replicas can together.

A replica that is behind for longer than :data:`CATCH_UP_S`, has failed, is damaged or not there hands the read on: to
the leader where it must be fresh, else to any other.  A call fails only if none can serve it before its deadline.

**Which replica answers** what is no read of records: ``describe``, ``verify``, ``jobs`` this node's if it has one, and
``describe`` names it; ``optimize`` runs on all, for graphs and segments are each replica's own.  Pages of a scan may
come from different replicas: a cursor is a rid, records get their rids from the log, and so they have the same order
everywhere.

**Collections** that this node has not heard of are looked for in the control group as it is now before anybody is told
that there are none: another node may have made them a moment ago.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, Final, TypeVar

from vecdb.cluster.control import ShardEntry
from vecdb.core.calls import Call, Consistency, Stopped, WriteToken
from vecdb.core.errors import (
    Cancelled,
    CollectionNotFound,
    DatabaseClosed,
    DataCorrupted,
    DeadlineExceeded,
    OutcomeUnknown,
    Overloaded,
    SchemaChanged,
    StorageError,
    Unavailable,
    VecdbError,
)
from vecdb.core.filters.tree import Node as FilterNode
from vecdb.core.ids import RecordId
from vecdb.core.query import Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import (
    Command,
    DeleteIds,
    DeleteWhere,
    Record,
    UpdateMetadata,
    UpsertBatch,
    WriteResult,
)
from vecdb.core.schema import CollectionSchema
from vecdb.ports.clock import Clock
from vecdb.ports.node import Node, Progress
from vecdb.ports.observer import Observer, Refusal
from vecdb.ports.peers import Peers
from vecdb.services.admission import Gate
from vecdb.services.barriers import Barriers
from vecdb.services.leaders import LONGEST_S, PAUSE_S, Leaders, Task
from vecdb.services.node import BYTES_PER_RECORD
from vecdb.services.passing import copy_of, of_shard
from vecdb.services.replicas import CONTROL, Controlled, Engine, OwnReplicas
from vecdb.services.unreachable import GONE, refuse_unreachable
from vecdb.shard.codec import encode

T = TypeVar("T")

CATCH_UP_S: Final = 0.3
"""How long a read waits for this node's replica while another could answer."""
ASK_S: Final = 2.0
"""For questions to nodes that need not answer: who has what, who leads."""
LEARN_S: Final = 5.0
UNFOUNDED_S: Final = 0.5
"""How long a collection that is not known here is looked for; by a node that knows of nothing."""
APART_BYTES: Final = 256 << 10
"""A command from this size on is encoded in a thread."""
MOST_WRITES: Final = 1_024
"""Writes under way at once; their bytes are bounded by memory and by what a group may have uncommitted."""
REMADE: Final = 3
"""How often a write follows a collection that is dropped and made anew under it."""

_ELSEWHERE: Final = (Unavailable, DatabaseClosed, DataCorrupted, StorageError, CollectionNotFound)
"""What one replica fails with and another may not."""
_PASSING: Final = (Unavailable, DatabaseClosed, CollectionNotFound, OutcomeUnknown, Cancelled)
"""Of these, what may be otherwise in a moment."""
_FAR: Final = (*_ELSEWHERE, OutcomeUnknown, Overloaded, Cancelled)
"""The same of one on another node."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """``me``: this node; ``nodes``: all of the cluster."""

    me: str
    nodes: Sequence[str]


@dataclass(slots=True)
class Counts:
    """What was done by way of other nodes."""

    handed_on: dict[str, int] = field(default_factory=dict)

    def add(self, what: str) -> None:
        self.handed_on[what] = self.handed_on.get(what, 0) + 1


class ReplicatedNode:
    """A :class:`~vecdb.ports.node.Node`; see the module.  Belongs to one event loop."""

    def __init__(self, cluster: Cluster, engine: Engine, own: OwnReplicas, control: Controlled, peers: Peers,
                 clock: Clock, observer: Observer, random: Random) -> None:
        self._cluster = cluster
        self._engine = engine
        self._own = own
        self._control = control
        self._peers = peers
        self._clock = clock
        self._random = random
        self._writes = Gate("write calls", MOST_WRITES, Refusal.QUEUE, observer)
        self.leaders = Leaders(cluster.me, own.leader, self._ask_leader, clock, random)
        self.barriers = Barriers(self._read_index)
        self.counts = Counts()

    # --- who has what -----------------------------------------------------------------------------

    async def entry(self, name: str, call: Call) -> ShardEntry:
        """The collection, as this node knows it, or as the control group does; ``CollectionNotFound``."""
        state = self._control.state
        found = state.only(name) if name in state.collections else None
        if found is not None and not any(shard >= state.next_group or (shard == found.group and place >= GONE)
                                         for shard, place in call.session):
            return found
        # What is asked for, or what the session has written to or dropped, may be newer than what this node has heard.
        try:
            await self.learn(self._brief(call, LEARN_S))
        except (Unavailable, DeadlineExceeded, TimeoutError) as error:
            call.check()
            if found is not None:  # of what the session wrote to this one may be a predecessor
                raise Unavailable(f"the session wrote to a shard of {name!r} that this node has not heard of",
                                  collection=name, retry_after_s=0.5) from error
            raise Unavailable(f"this node knows of no collection {name!r}, and the control group, which would know, "
                              "has no leader that answers", collection=name, retry_after_s=0.5) from error
        return self._control.state.only(name)

    def _brief(self, call: Call, most_s: float) -> Call:
        """For learning; who knows nothing yet is not asked for long, as another node may know something."""
        if not self._control.state.log_index:
            most_s = UNFOUNDED_S
        return Call(deadline=min(self.leaders.deadline(call), self._clock.monotonic() + most_s))

    async def learn(self, call: Call) -> None:
        """Return once this node knows of every collection that was made or dropped before the call."""
        async with asyncio.timeout_at(self._own.until(call)):
            log_index = await self.barriers.index(CONTROL)
        await self._know(log_index, call)

    async def _know(self, log_index: int, call: Call) -> None:
        """Return once this node has applied so much of the control group's log, be it that it has just started."""
        while True:
            try:
                await self._own.replicator(CONTROL).wait_applied(log_index, self._own.until(call))
                return
            except Unavailable:
                call.check()
                if self._clock.monotonic() + PAUSE_S[1] >= self.leaders.deadline(call):
                    raise
            await asyncio.sleep(PAUSE_S[1])

    def still(self, entry: ShardEntry) -> None:
        """Raise ``CollectionNotFound`` if this shard is known to be no more."""
        if self._control.state.was_dropped(entry.group):
            raise CollectionNotFound(entry.name)

    def members(self, entry: ShardEntry) -> list[str]:
        """The nodes of the group, as its replica here knows them, else as it was placed."""
        status = self._own.look(entry.group)
        known = () if status is None else (*status.voters, *status.learners, *status.joining)
        return list(dict.fromkeys((*(one.rpartition("/")[0] for one in known), *entry.nodes)))

    async def _ask_leader(self, group: int, node: str) -> str | None:
        call = Call(deadline=self._clock.monotonic() + ASK_S)
        status = (await self._peers.replicas(node).status([group], call)).get(group)
        return None if status is None or status.leader is None else status.leader.rpartition("/")[0]

    async def _read_index(self, group: int) -> int:
        """Where the log is now, as its leader says; for :class:`Barriers`, which ends it when nobody waits."""
        call = Call(deadline=self._clock.monotonic() + LONGEST_S)
        entry = self._entry_of(group)

        async def ask(node: str) -> int:
            if node == self._cluster.me:
                return await self._own.read_index(group, call)
            return await self._peers.replicas(node).read_index(group, copy_of(call))

        if entry is None:
            return await self.leaders.ask(Task(group, self._cluster.nodes, call, reads=True), ask)
        return await self.leaders.ask(Task(group, self.members(entry), call, reads=True, name=entry.name,
                                           still=lambda: self.still(entry)), ask)

    def _entry_of(self, group: int) -> ShardEntry | None:
        if group == CONTROL:
            return None
        found = self._control.state.shards.get(group)
        if found is None:
            raise Unavailable(f"this node knows of no group {group}", group=group)
        return found

    # --- collections ------------------------------------------------------------------------------

    async def create_collection(self, schema: CollectionSchema, call: Call) -> None:
        """Returns once somebody leads the shard: what comes next finds it."""
        await self._change(schema, call)
        until = self.leaders.deadline(call)
        while (entry := self._known(schema.name)) is not None and not await self._led(entry):
            pause = self._random.uniform(*PAUSE_S)
            if self._clock.monotonic() + pause >= until:
                raise DeadlineExceeded(f"the collection {schema.name!r} was made, and its replicas have elected no "
                                       "leader yet", collection=schema.name)
            await asyncio.sleep(pause)

    def _known(self, name: str) -> ShardEntry | None:
        """The collection's shard, as this node knows it."""
        state = self._control.state
        return state.only(name) if name in state.collections else None

    async def _led(self, entry: ShardEntry) -> bool:
        if self._cluster.me in entry.nodes:
            return self._own.leader(entry.group) is not None
        with suppress(VecdbError):
            return await self._ask_leader(entry.group, self._random.choice(entry.nodes)) is not None
        return False

    async def drop_collection(self, name: str, call: Call) -> None:
        await self._change(name, call)

    async def _change(self, what: CollectionSchema | str, call: Call) -> None:
        """Have the control group's leader do it, once, and wait until this node knows."""
        token = call.token or WriteToken(os.urandom(16))

        async def ask(node: str) -> int:
            mine = copy_of(call, token)
            if node == self._cluster.me:
                return await self._own.change(what, mine)
            self.counts.add("change")
            return await self._peers.replicas(node).change(what, mine)

        log_index = await self.leaders.ask(Task(CONTROL, self._cluster.nodes, call), ask)
        try:
            await self._know(log_index, call)
        except Unavailable as error:  # it is done: what is missing is only that this node knows
            raise DeadlineExceeded("it was done, and this node has not heard of it in time") from error

    async def list_collections(self, call: Call) -> list[str]:
        """As of now; as this node knows them where the control group does not say in time, if it knows anything."""
        try:
            await self.learn(self._brief(call, ASK_S))
        except (Unavailable, DeadlineExceeded, TimeoutError):
            call.check()
            if call.consistency is Consistency.LINEARIZABLE or not self._control.state.log_index:
                raise Unavailable("the control group has no leader that answers", retry_after_s=0.5) from None
        return sorted(self._control.state.collections)

    async def schema(self, name: str, call: Call) -> CollectionSchema:
        found = self._control.state.collections.get(name)
        return found.schema if found is not None and not call.session else (await self.entry(name, call)).schema

    # --- writes -----------------------------------------------------------------------------------

    async def upsert(self, name: str, batch: UpsertBatch, call: Call) -> WriteResult:
        size = batch.vectors.nbytes + sum(map(len, batch.metadata)) + BYTES_PER_RECORD * len(batch.ids)
        with self._engine.guard.reserve(2 * size):  # once on its way, once in the growing segment
            return await self._write(name, batch, size, call)

    async def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call) -> WriteResult:
        size = 32 * len(command.ids) if isinstance(command, DeleteIds) else 0
        return await self._write(name, command, size, call)

    async def update_metadata(self, name: str, command: UpdateMetadata, call: Call) -> WriteResult:
        size = sum(map(len, command.patch)) + BYTES_PER_RECORD * len(command.ids)
        with self._engine.guard.reserve(2 * size):
            return await self._write(name, command, size, call)

    async def _write(self, name: str, command: Command, size: int, call: Call) -> WriteResult:
        self._writes.take()
        try:
            entry = await self.entry(name, call)
            data = await self._encoded(command, call.token, size)
            for _ in range(REMADE):
                if isinstance(command, UpsertBatch) and command.shape not in (0, entry.schema.shape):
                    raise SchemaChanged(name)
                try:
                    return await self._committed(entry, data, call)
                except CollectionNotFound:
                    before, entry = entry, await self.entry(name, call)
                    if entry.group == before.group:
                        raise
            raise CollectionNotFound(name)
        finally:
            self._writes.leave()

    async def _encoded(self, command: Command, token: WriteToken | None, size: int) -> bytes:
        if size < APART_BYTES:
            return encode(command, token)
        return await asyncio.get_running_loop().run_in_executor(None, encode, command, token)

    async def _committed(self, entry: ShardEntry, data: bytes, call: Call) -> WriteResult:
        async def ask(node: str) -> WriteResult:
            if node == self._cluster.me:
                done = await self._own.commit(entry.group, data, call)
            else:
                self.counts.add("propose")
                done = await self._peers.replicas(node).propose(entry.group, data, copy_of(call))
            assert isinstance(done.result, WriteResult), "what a write's apply returns"
            return replace(done.result, shard=entry.group, log_index=done.result.log_index or done.log_index)

        return await self.leaders.ask(Task(entry.group, self.members(entry), call, once=call.token is None,
                                           still=lambda: self.still(entry), name=entry.name), ask)

    # --- reads ------------------------------------------------------------------------------------

    async def _read(self, name: str, call: Call, here: Callable[[], Awaitable[T]],
                    there: Callable[[Node, Call], Awaitable[T]]) -> T:
        """``here`` from this node's replica if it can, else ``there`` from another's, else again until the deadline."""
        entry = self._known(name)
        if entry is None or call.session:
            entry = await self.entry(name, call)
        asked = False
        while True:
            failures: list[VecdbError] = []
            if self._own.serves(entry.group):
                try:
                    if not call.session and call.consistency is not Consistency.LINEARIZABLE:
                        return await here()
                    return await self._own.settled(entry.group, partial(self._settle, entry, call), here)
                except _ELSEWHERE as error:
                    failures.append(error)
                if call.session and not asked:
                    asked = True
                    await refuse_unreachable(entry, call, self.barriers.index, ASK_S)
            for node in self._others(entry, call):
                self._check_time(call)
                self.counts.add("read")
                try:
                    return await there(self._peers.node(node), of_shard(call, entry.group))
                except _FAR as error:
                    failures.append(error)
            self._check_time(call)
            entry = await self._followed(entry, call)
            await self._pause(entry, call, failures)

    async def _followed(self, entry: ShardEntry, call: Call) -> ShardEntry:
        """The same, or what was made anew under its name if it is no more; ``CollectionNotFound`` if nothing was."""
        if not self._control.state.was_dropped(entry.group):
            return entry
        found = await self.entry(entry.name, call)
        self.still(found)
        return found

    async def _pause(self, entry: ShardEntry, call: Call, failures: list[VecdbError]) -> None:
        """Before every replica is asked once more; raises what they failed with where that is no use."""
        pause = self._random.uniform(*PAUSE_S)
        passing = not failures or any(isinstance(one, _PASSING) for one in failures)
        if not passing or self._clock.monotonic() + pause >= self.leaders.deadline(call):
            raise failures[-1] if failures else Unavailable(f"no replica of {entry.name!r} serves",
                                                            collection=entry.name)
        await asyncio.sleep(pause)

    async def _settle(self, entry: ShardEntry, call: Call) -> None:
        """Return once this node's replica has what the call must see; ``Unavailable`` if that takes too long."""
        group, me = entry.group, self._cluster.me
        patience = CATCH_UP_S if call.session or any(one != me for one in self.members(entry)) else None
        try:
            if call.consistency is not Consistency.LINEARIZABLE or self._own.leader(group) == me:
                await self._own.settle(group, call, patience)
                return
            async with asyncio.timeout_at(self._own.until(call)):
                log_index = await self.barriers.index(group)
            await self._own.replicator(group).wait_applied(log_index, self._own.until(call, patience))
        except (TimeoutError, DeadlineExceeded):
            self._check_time(call)
            raise Unavailable(f"this node's replica of {entry.name!r} is behind", group=group) from None

    def _check_time(self, call: Call) -> None:
        """Raise what ends the call, if it is over."""
        if call.deadline is not None and self._clock.monotonic() >= call.deadline:
            call.end(Stopped.DEADLINE)
        call.check()

    def _others(self, entry: ShardEntry, call: Call) -> list[str]:
        """Other nodes with a replica; where freshness counts the leader first."""
        nodes = [one for one in self.members(entry) if one != self._cluster.me]
        self._random.shuffle(nodes)
        if call.session or call.consistency is Consistency.LINEARIZABLE:
            likely = self.leaders.likely(entry.group)
            nodes.sort(key=lambda one: one != likely)
        return nodes

    async def query(self, name: str, request: QueryRequest, call: Call) -> QueryResult:
        return await self._read(name, call, lambda: self._engine.query(name, request, call),
                                lambda node, mine: node.query(name, request, mine))

    async def fetch(self, name: str, ids: Sequence[RecordId], call: Call, *, include_metadata: bool = True,
                    include_vectors: bool = True) -> list[Record]:
        def fetch(node: Node, mine: Call) -> Awaitable[list[Record]]:
            return node.fetch(name, ids, mine, include_metadata=include_metadata, include_vectors=include_vectors)

        return await self._read(name, call, lambda: fetch(self._engine, call), fetch)

    async def scan(self, name: str, request: ScanRequest, call: Call) -> ScanPage:
        return await self._read(name, call, lambda: self._engine.scan(name, request, call),
                                lambda node, mine: node.scan(name, request, mine))

    async def count(self, name: str, where: FilterNode | None, call: Call) -> int:
        return await self._read(name, call, lambda: self._engine.count(name, where, call),
                                lambda node, mine: node.count(name, where, mine))

    # --- maintenance ------------------------------------------------------------------------------

    async def describe(self, name: str, call: Call) -> Description:
        """Of the replica that answers, which the details name with its shard and who leads."""
        told = await self._read(name, call, lambda: self._engine.describe(name, call),
                                lambda node, mine: node.describe(name, mine))
        entry = await self.entry(name, call)
        if "replica" in told.details:
            return told  # another node's, which has said so
        return replace(told, details={**told.details, **self.about(entry)})

    def about(self, entry: ShardEntry) -> dict[str, Any]:
        """What a description says of the shard and of this node's replica of it."""
        status = self._own.look(entry.group)
        return {"shard": entry.group, "replica": "" if status is None else status.me,
                "leader": "" if status is None else status.leader or "", "nodes": self.members(entry)}

    async def optimize(self, name: str, call: Call, on_progress: Progress | None = None) -> Description:
        """On every replica, each for itself; progress is the first one's.  Those that are away do it by themselves."""
        entry = await self.entry(name, call)
        me = self._cluster.me
        nodes = sorted(self.members(entry), key=lambda one: one != me)
        if nodes[0] == me and not self._own.serves(entry.group):
            nodes = nodes[1:]
        running = [self._engine.optimize(name, call, on_progress) if node == me
                   else self._peers.node(node).optimize(name, copy_of(call), on_progress if at == 0 else None)
                   for at, node in enumerate(nodes)]
        done = await _all(running)
        told = next((one for one in done if isinstance(one, Description)), None)
        if told is not None:
            return told if "replica" in told.details else replace(told, details={**told.details, **self.about(entry)})
        call.check()
        self.still(entry)
        raise done[0] if done and isinstance(done[0], BaseException) else Unavailable(f"no replica of {name!r} serves")

    async def jobs(self, name: str | None, call: Call) -> list[dict[str, Any]]:
        """Of all nodes that answer in time; each says which ``node`` it is of."""
        if name is not None:
            entry = await self.entry(name, call)
        nodes = self._cluster.nodes if name is None else self.members(entry)
        brief = min(self.leaders.deadline(call), self._clock.monotonic() + ASK_S)

        async def ask(node: str) -> list[dict[str, Any]]:
            if node == self._cluster.me:
                found = await self._engine.jobs(name, call)
            else:
                found = await self._peers.node(node).jobs(name, replace(copy_of(call), deadline=brief))
            return [{**job, "node": node} for job in found]

        answers = await _all([ask(node) for node in nodes])
        call.check()
        return [job for jobs in answers if isinstance(jobs, list) for job in jobs]

    async def verify(self, name: str, call: Call) -> dict[str, Any]:
        return await self._read(name, call, lambda: self._engine.verify(name, call),
                                lambda node, mine: node.verify(name, mine))

    async def close(self) -> None:
        """The engine's own end is its owner's."""


async def _all(running: Sequence[Awaitable[T]]) -> list[T | BaseException]:
    """Results and errors in their order; cancelled together."""
    return await asyncio.gather(*running, return_exceptions=True)
