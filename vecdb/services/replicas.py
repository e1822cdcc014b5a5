"""This node's own replicas, as other nodes and its own clients' calls see them: nothing is handed on.

A :class:`~vecdb.ports.node.Node` whose reads wait for what the call's consistency asks (before they take a place in the
batcher, which is for work and not for waiting), and a :class:`~vecdb.ports.peers.Replicas`.

A replica serves reads when it is a voter of its group: one that was made anew is empty until a snapshot has come, and
has no vote until it has caught up.  One that was opened again is where its last checkpoint was, which may be before
everything, until its log is replayed, and how much of that is committed only a leader says: until it has been as far as
the group was when it first heard of one, others are asked, whatever the consistency.  Where no leader is heard for
:data:`UNLED_S` it serves what it has.

The first voters of a shard that was filled (by a split, a merge, a restore) vote from its beginning; one that was away
meanwhile would answer as if records of long ago had never been.  The last thing that such a shard's log has before
calls go to it is a mark: a replica that has none has not got all of it yet, and others are asked.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from vecdb.cluster.control import ControlState, ShardEntry, collection_of, version_of
from vecdb.cluster.merge import merge_results
from vecdb.cluster.routing import id_hashes
from vecdb.core.calls import Call, Consistency
from vecdb.core.cluster import ShardState
from vecdb.core.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    Overloaded,
    StaleShardMap,
    Unavailable,
    Unsupported,
    VecdbError,
)
from vecdb.core.filters.tree import Node as FilterNode
from vecdb.core.ids import RecordId
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.query import Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.ports.clock import Clock
from vecdb.ports.node import Node, Progress
from vecdb.ports.peers import Several
from vecdb.ports.replicator import Committed, ReplicaStatus, Replicator
from vecdb.services.admission import MemoryGuard
from vecdb.services.maintenance import HOLD_S, LOOK_AGAIN_S
from vecdb.services.several import ask_each
from vecdb.services.unreachable import GONE
from vecdb.shard.marks import MarkResult

T = TypeVar("T")

CONTROL: Final = 0
UNLED_S: Final = 5.0
OPTIMIZE_S: Final = 5.0
"""How long a replica waits for what it must have before it optimizes; who asked may ask again."""
LOOK_S: Final = 0.1
"""How old what is known of a replica may be when a read is let in: a status is not made for every query."""


class Hosted(Protocol):
    """The groups this node has replicas of: :class:`vecdb.services.hosting.Hosting`."""

    def replicator(self, label: str) -> Replicator:
        """Of a shard; ``VecdbError`` while there is none here."""
        ...

    def marks(self, label: str) -> Mapping[int, MarkResult]:
        """What the shard's replica remembers of marks, by log index."""
        ...

    def check_room(self, label: str) -> None:
        """Raise ``Overloaded`` while the shard's replica should be given nothing more."""
        ...

    async def rebuild(self, group: int, deadline: float | None) -> None:
        """Set the state of a replica aside and have it built anew."""
        ...

    def check_sealed(self, label: str, command: bytes | None) -> None:
        """Raise ``ShardSealed`` where that would come of a command, or (None) a read must not be answered as of now."""
        ...


class Controlled(Protocol):
    """The control group: :class:`vecdb.services.control.Control`."""

    @property
    def state(self) -> ControlState: ...

    @property
    def replicator(self) -> Replicator | None: ...

    def check_read(self, version: int) -> None: ...

    async def create(self, schema: CollectionSchema, call: Call, layout: Layout) -> object: ...

    async def drop(self, name: str, call: Call) -> object: ...


class Engine(Node, Protocol):
    """The node's engine: :class:`vecdb.services.node.LocalNode`."""

    @property
    def guard(self) -> MemoryGuard: ...


@dataclass(slots=True)
class _Seen:
    """``filled``: None until somebody wants to read."""

    at: float
    status: ReplicaStatus
    filled: bool | None = None


class OwnReplicas:
    """See the module.  Belongs to one event loop."""

    def __init__(self, engine: Engine, hosted: Hosted, control: Controlled, clock: Clock) -> None:
        self._engine = engine
        self._hosted = hosted
        self._control = control
        self._clock = clock
        self._state: ControlState | None = None
        self._seen: dict[int, _Seen] = {}
        self._unled: dict[int, float] = {}
        """Since when replicas that are not as far as their groups hear of no leader, those that were asked for."""
        self.unled_s: Callable[[int], float] = lambda group: 0.0
        """For how long a group's replica here has known of no leader; whoever looks at them all the time sets it."""

    # --- what there is ----------------------------------------------------------------------------

    def _shards(self) -> Mapping[int, ShardEntry]:
        """Of the control state of the moment."""
        state = self._control.state
        if state is not self._state:
            self._state = state
            self._seen = {one: seen for one, seen in self._seen.items() if one in state.shards}
        return state.shards

    def _label(self, group: int) -> str | None:
        """What the replica of a group is held under, as the control state of the moment has it."""
        entry = self._shards().get(group)
        return None if entry is None else entry.label

    def replicator(self, group: int) -> Replicator:
        """Raises ``Unavailable`` where this node has no replica of the group."""
        if group == CONTROL:
            control = self._control.replicator
            if control is None:
                raise Unavailable("the control group is not here yet", group=group)
            return control
        label = self._label(group)
        if label is None:
            raise Unavailable(f"this node knows of no group {group}", group=group)
        try:
            return self._hosted.replicator(label)
        except CollectionNotFound:
            raise Unavailable(f"this node has no replica of {collection_of(label)!r}", group=group) from None

    def look(self, group: int) -> ReplicaStatus | None:
        """A status of now, None where there is no replica here."""
        try:
            status = self.replicator(group).status()
        except Unavailable:
            self._seen.pop(group, None)
            return None
        self._seen[group] = _Seen(self._clock.monotonic(), status)
        return status

    def leader(self, group: int) -> str | None:
        """The node that leads, as far as this node's replica knows."""
        status = self.look(group)
        return None if status is None or status.leader is None else status.leader.rpartition("/")[0]

    def serves(self, group: int) -> bool:
        """Whether reads of the group may be answered here: by a member, not by one that still has to catch up."""
        seen, now = self._seen.get(group), self._clock.monotonic()
        if seen is None or now - seen.at >= LOOK_S:
            self.look(group)
            seen = self._seen.get(group)
        if seen is None or seen.status.state != "ok" or seen.status.me not in seen.status.voters:
            return False
        status = seen.status
        if seen.filled is None:
            seen.filled = self._is_filled(group)
        if not seen.filled:
            return False
        if status.current or status.leader is not None:
            self._unled.pop(group, None)
            return status.current
        return now - self._unled.setdefault(group, now) >= UNLED_S

    def _is_filled(self, group: int) -> bool:
        """Whether the replica here has what its shard was made of, if that was made of anything."""
        entry, collections = self._shards().get(group), self._control.state.collections
        if entry is None or entry.name not in collections or collections[entry.name].created == entry.created:
            return True
        try:
            return bool(self._hosted.marks(entry.label))
        except (Unavailable, CollectionNotFound):
            return False

    def until(self, call: Call, most_s: float | None = None) -> float | None:
        """The call's deadline on the loop's clock, which is that of replicators; at most ``most_s`` from now."""
        left = None if call.deadline is None else call.deadline - self._clock.monotonic()
        if most_s is not None:
            left = most_s if left is None else min(left, most_s)
        return None if left is None else asyncio.get_running_loop().time() + left

    # --- Replicas ---------------------------------------------------------------------------------

    async def propose(self, group: int, command: bytes, call: Call) -> Committed:
        with self._engine.guard.reserve(2 * len(command)):
            return await self.commit(group, command, call)

    async def commit(self, group: int, command: bytes, call: Call) -> Committed:
        """Propose what memory was reserved for already, once there is room where it is to be applied."""
        replicator = self.replicator(group)
        if replicator.status().role == "leader":  # who does not lead says so at once
            if group == CONTROL:
                self._control.check_read(version_of(command))
            self._check_sealed(group, command)
            await self._room(group, call)
        return await replicator.propose(command, self.until(call))

    async def _room(self, group: int, call: Call) -> None:
        """Wait while the replica here has more unsealed than it should; ``Overloaded`` if that takes too long.

        What is in the log cannot be refused any more, so it is here that memory is bounded.
        """
        label = self._label(group)
        give_up = self._clock.monotonic() + HOLD_S
        while label is not None:
            try:
                self._hosted.check_room(label)
                return
            except Overloaded:
                now = self._clock.monotonic()
                if now >= give_up or (call.deadline is not None and now + LOOK_AGAIN_S >= call.deadline):
                    raise
            await asyncio.sleep(LOOK_AGAIN_S)

    async def change(self, what: CollectionSchema | str, call: Call, layout: Layout = ANYHOW) -> int:
        await (self._control.drop(what, call) if isinstance(what, str) else self._control.create(what, call, layout))
        return self._control.state.log_index

    async def read_index(self, group: int, call: Call) -> int:
        found = await self.replicator(group).read_index(self.until(call))
        self._check_sealed(group)
        return found

    def _check_sealed(self, group: int, command: bytes | None = None) -> None:
        """As this node's replica knows it.

        A command is refused here to keep it out of the log, where the machine would refuse it.  A read as of now is,
        because from a seal on others may be written to in the shard's place: who has not heard of that asks here.
        """
        label = self._label(group) if group != CONTROL else None
        if label is not None:
            self._hosted.check_sealed(label, command)

    async def status(self, groups: Sequence[int], call: Call) -> dict[int, ReplicaStatus]:
        found = {group: self.look(group) for group in groups or (CONTROL, *self._shards())}
        return {group: status for group, status in found.items() if status is not None}

    async def mark(self, group: int, log_index: int, call: Call) -> MarkResult:
        await self.replicator(group).wait_applied(log_index, self.until(call))
        label = self._label(group)
        found = self._hosted.marks(label).get(log_index) if label is not None else None
        if found is None:
            raise Unavailable(f"this replica remembers no mark at log index {log_index}", group=group)
        return found

    async def transfer(self, group: int, to: str | None, call: Call) -> None:
        await self.replicator(group).transfer(to, self.until(call))

    async def rebuild(self, group: int, call: Call) -> None:
        await self._hosted.rebuild(group, self.until(call))

    # --- reads ------------------------------------------------------------------------------------

    async def settle(self, group: int, call: Call, most_s: float | None = None) -> None:
        """Return once a read of the group may see what the call asks for: ``NotLeader``, ``DeadlineExceeded``."""
        if call.consistency is Consistency.LINEARIZABLE:
            await self.replicator(group).read_index(self.until(call, most_s))
            self._check_sealed(group)
        elif call.session:
            for shard, log_index in call.session:
                if shard == group:
                    await self.replicator(group).wait_applied(log_index, self.until(call, most_s))

    async def settled(self, group: int, settle: Callable[[], Awaitable[None]], read: Callable[[], Awaitable[T]]) -> T:
        """``read`` of the replica that ``settle`` has waited for; ``Unavailable`` if another took its place meanwhile.

        One that is opened anew, or begins empty, is behind what was waited for, and a read may have stood in a queue.
        """
        before = self.replicator(group)
        await settle()
        found = await read()
        if self.replicator(group) is not before:
            raise Unavailable("this node's replica was replaced while it was read", group=group)
        return found

    def _entry(self, label: str, call: Call, retired: bool = False) -> ShardEntry:
        """The shard of a label as this node knows it.

        ``Unavailable`` if it is not yet the one that is meant, ``StaleShardMap`` if others have taken its place; one
        that ``retired`` is good enough for what began before.
        """
        state = self._control.state
        try:
            entry = state.labelled(label)
        except CollectionNotFound:
            name, _, number = label.partition("@")
            if name in state.collections and (not number or state.was_dropped(int(number))):
                raise _stale(label, state) from None
            raise Unavailable(f"this node knows of no collection {name!r} yet", collection=name) from None
        if entry.state is ShardState.LOADING:
            raise Unavailable(f"as far as this node knows shard {entry.group} of {entry.name!r} is being filled",
                              collection=entry.name)
        if entry.state is ShardState.RETIRED and not retired:
            raise _stale(label, state)
        if any(shard > entry.group or (shard == entry.group and place >= GONE) for shard, place in call.session):
            raise Unavailable(f"this node knows of an earlier collection {entry.name!r} alone", collection=entry.name)
        return entry

    async def _read(self, label: str, call: Call, read: Callable[[str], Awaitable[T]], retired: bool = False,
                    most_s: float | None = None) -> T:
        """``read`` of the shard that is held under a label here, which may be behind for so many seconds."""
        entry = self._entry(label, call, retired)
        if not self.serves(entry.group):
            raise Unavailable(f"this node has no replica of {entry.name!r} that serves", collection=entry.name)
        if not call.session and call.consistency is not Consistency.LINEARIZABLE:
            return await read(entry.label)

        async def settle() -> None:
            try:
                await self.settle(entry.group, call, most_s)
            except DeadlineExceeded:
                call.check()
                if most_s is None:
                    raise
                raise Unavailable(f"this node's replica of {entry.name!r} is behind", group=entry.group) from None

        return await self.settled(entry.group, settle, lambda: read(entry.label))

    async def list_collections(self, call: Call) -> list[str]:
        return sorted(self._control.state.collections)

    async def schema(self, name: str, call: Call) -> CollectionSchema:
        return self._entry(name, call, retired=True).schema

    async def describe(self, name: str, call: Call) -> Description:
        return await self._read(name, call, lambda label: self._engine.describe(label, call))

    async def optimize(self, name: str, call: Call, on_progress: Progress | None = None) -> Description:
        return await self._read(name, call, lambda label: self._engine.optimize(label, call, on_progress),
                                most_s=OPTIMIZE_S)

    async def query(self, name: str, request: QueryRequest, call: Call) -> QueryResult:
        return await self._read(name, call, lambda label: self._engine.query(label, request, call))

    async def fetch(self, name: str, ids: Sequence[RecordId], call: Call, *, include_metadata: bool = True,
                    include_vectors: bool = True) -> list[Record]:
        return await self._read(name, call, lambda label: self._engine.fetch(
            label, ids, call, include_metadata=include_metadata, include_vectors=include_vectors))

    async def scan(self, name: str, request: ScanRequest, call: Call) -> ScanPage:
        return await self._read(name, call, lambda label: self._engine.scan(label, request, call), retired=True)

    async def count(self, name: str, where: FilterNode | None, call: Call) -> int:
        return await self._read(name, call, lambda label: self._engine.count(label, where, call))

    # --- reads of several shards ------------------------------------------------------------------

    def schema_of(self, name: str) -> CollectionSchema:
        """Of a collection, whatever shards it has; ``Unavailable`` where this node knows of none."""
        found = self._control.state.collections.get(name)
        if found is None:
            raise Unavailable(f"this node knows of no collection {name!r} yet", collection=name)
        return found.schema

    async def _each(self, name: str, call: Call, read: Callable[[str, Call], Awaitable[T]]
                    ) -> tuple[list[T], dict[int, VecdbError]]:
        def one(group: int, mine: Call) -> Awaitable[T]:
            label = self._label(group)
            if label is None or collection_of(label) != name:
                label = f"{name}@{group}"
            return self._read(label, mine, lambda label: read(label, mine))

        return await ask_each(call.shards, call, self._clock, one)

    async def query_shards(self, name: str, request: QueryRequest, call: Call) -> Several[QueryResult]:
        found, failed = await self._each(name, call, lambda label, mine: self._engine.query(label, request, mine))
        return Several([merge_results(found, request)] if found else [], failed)

    async def count_shards(self, name: str, where: FilterNode | None, call: Call) -> Several[int]:
        found, failed = await self._each(name, call, lambda label, mine: self._engine.count(label, where, mine))
        return Several([sum(found)] if found else [], failed)

    async def fetch_shards(self, name: str, ids: Sequence[RecordId], call: Call, *, include_metadata: bool = True,
                           include_vectors: bool = True) -> Several[list[Record]]:
        state = self._control.state
        # Who does not know the collection has none of its shards either.
        keyed = name not in state.collections or state.collections[name].shard_key is not None
        hashes = [] if keyed else id_hashes(ids).tolist()

        def own(label: str) -> Sequence[RecordId]:
            entry = state.labelled(label)
            return ids if keyed else [one for one, at in zip(ids, hashes, strict=True) if entry.lo <= at < entry.hi]

        found, failed = await self._each(name, call, lambda label, mine: self._engine.fetch(
            label, own(label), mine, include_metadata=include_metadata, include_vectors=include_vectors))
        return Several(found, failed)

    async def jobs(self, name: str | None, call: Call) -> list[dict[str, Any]]:
        state = self._control.state
        here = state.only(name).label if name is not None and name in state.collections else name
        return await self._engine.jobs(here, call)

    async def verify(self, name: str, call: Call) -> dict[str, Any]:
        return await self._read(name, call, lambda label: self._engine.verify(label, call))

    # --- what goes another way --------------------------------------------------------------------

    async def create_collection(self, schema: CollectionSchema, call: Call, layout: Layout = ANYHOW) -> None:
        raise _not_here("create_collection")

    async def drop_collection(self, name: str, call: Call) -> None:
        raise _not_here("drop_collection")

    async def upsert(self, name: str, batch: UpsertBatch, call: Call) -> WriteResult:
        raise _not_here("upsert")

    async def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call) -> WriteResult:
        raise _not_here("delete")

    async def update_metadata(self, name: str, command: UpdateMetadata, call: Call) -> WriteResult:
        raise _not_here("update_metadata")

    async def close(self) -> None:
        """Nothing is held here."""


def _stale(label: str, state: ControlState) -> StaleShardMap:
    name = collection_of(label)
    return StaleShardMap(f"the shard asked of {name!r} is no more: others took its place", collection=name,
                         epoch=state.epoch)


def _not_here(method: str) -> Unsupported:
    return Unsupported(f"nodes hand {method} on as a command of the log, not as a call")
