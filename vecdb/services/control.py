"""The control group on a node: its state on the disk, and the collections made and dropped through it.

:class:`ControlReplica` is the state machine that the group's log drives, :class:`Control` what the node asks.  All of
the state is in memory (some kilobytes a collection) and immutable, so a snapshot is the bytes of a moment: a file of
one, in name only.  A change and the position it brings are one batch of the store; installing a snapshot is one too.

``Control`` proposes and nothing else: who does not lead raises ``NotLeader``, and the caller asks whom it names.  What
follows from the state (groups, folders) is :mod:`vecdb.services.hosting`'s.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import xxhash

from vecdb.cluster import control as commands
from vecdb.cluster.control import (
    RANGES,
    VERSION,
    ApiKeyEntry,
    CollectionEntry,
    ControlState,
    JobEntry,
    NewShards,
    NodeEntry,
    Outcome,
    TokenEntry,
    apply,
    from_rows,
    node_of,
    read_rows,
    rows_of,
    version_of,
)
from vecdb.cluster.placement import Candidate, check_heard, shards_for, spread
from vecdb.core.calls import Call, check
from vecdb.core.cluster import NodeState
from vecdb.core.errors import (
    DataCorrupted,
    FormatMismatch,
    InvalidArgument,
    NotLeader,
    Unavailable,
    Unsupported,
    VecdbError,
)
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.schema import CollectionSchema
from vecdb.ports.replicator import Position, ReplicaStatus, Replicator, SnapshotFile
from vecdb.ports.store import Store
from vecdb.ports.stores import OpenStore
from vecdb.services.aside import set_aside
from vecdb.shard.mutations import Mutations

T = TypeVar("T")

CONTROL_GROUP: Final = 0
FILE: Final = "control"
_LENGTHS: Final = 8
"""Bytes of the two lengths before a row in a snapshot."""
UNHEARD_S: Final = 10.0
"""A node that the leader has not heard for so long is given new replicas only if there are no others."""
PLACED_AT_ONCE: Final = 32
"""Shards of a new collection that are placed before the loop goes on with something else."""
_OUTCOMES: Final = (CollectionEntry, NodeEntry, TokenEntry, ApiKeyEntry, JobEntry, tuple)


def pack(state: ControlState) -> bytes:
    """A state as one file."""
    parts: list[bytes] = []
    for key, value in rows_of(state):
        parts += (len(key).to_bytes(4, "little"), len(value).to_bytes(4, "little"), key, value)
    return b"".join(parts)


def unpack(data: bytes) -> ControlState:
    """The inverse of :func:`pack`; raises ``DataCorrupted``."""
    rows: list[tuple[bytes, bytes]] = []
    at = 0
    while at < len(data):
        middle = at + _LENGTHS + int.from_bytes(data[at:at + 4], "little")
        stop = middle + int.from_bytes(data[at + 4:at + 8], "little")
        if stop > len(data):
            raise DataCorrupted("a snapshot of the control state is cut short", path=FILE)
        rows.append((data[at + _LENGTHS:middle], data[middle:stop]))
        at = stop
    return from_rows(rows)


class ControlReplica:
    """The :class:`~vecdb.ports.replicator.StateMachine` of the control group over a store of its own.

    ``changed`` is told, in the thread that applied, of every state with other entries than the one before.
    The constructor raises ``DataCorrupted`` for rows that are not what was written.  ``reads``: the latest version of
    commands that is understood.
    """

    def __init__(self, store: Store, changed: Callable[[ControlState], None] = lambda state: None,
                 reads: int = VERSION) -> None:
        self._store = store
        self._changed = changed
        self._reads = reads
        self._pieces: dict[int, bytes] = {}
        """What has arrived of snapshots, by the checksum of the whole file."""
        self.state, is_current = read_rows(row for start, stop in RANGES for row in store.scan(start, stop))
        """Of the moment; never changed in place."""
        if not is_current:
            store.write(Mutations(ranges=list(RANGES), puts=rows_of(self.state)))
            store.sync()

    def position(self) -> Position:
        return Position(self.state.log_index, self.state.term)

    def apply(self, log_index: int, term: int, command: bytes) -> Outcome | VecdbError | None:
        """What the command made or took away, or its error; None for what was applied before."""
        before = self.state
        if log_index <= before.log_index:
            return None
        done = apply(before, log_index, term, command, self._reads)
        self._store.write(Mutations(deletes=list(done.deletes), puts=list(done.puts)))
        self._show(done.state)
        return done.outcome

    def _show(self, state: ControlState) -> None:
        before, self.state = self.state, state
        if state.digest != before.digest:
            self._changed(state)

    def checkpoint(self) -> Position:
        position = self.position()
        self._store.sync()
        return position

    def snapshot(self) -> "ControlSnapshot":
        state = self.state
        self._store.sync()
        return ControlSnapshot(Position(state.log_index, state.term), pack(state))

    def receive(self, position: Position, files: Sequence[SnapshotFile]) -> "IncomingControl":
        return IncomingControl(self, position, files)

    def digest(self) -> tuple[int, int, int, str]:
        """Log index, term, collections and the digest in hex: the same on every replica at the same log index."""
        state = self.state
        return state.log_index, state.term, len(state.collections), f"{state.digest:016x}"

    def install(self, data: bytes, position: Position) -> None:
        """Become the state of a snapshot, on stable storage, in one step."""
        state = unpack(data)
        if (state.log_index, state.term) != tuple(position):
            raise DataCorrupted("a snapshot of the control state is not of the place it was offered for", path=FILE,
                                got=state.log_index, limit=position.log_index)
        self._store.write(Mutations(ranges=list(RANGES), puts=rows_of(state)))
        self._store.sync()
        self._pieces.clear()
        self._show(state)

    @property
    def pieces(self) -> dict[int, bytes]:
        return self._pieces

    def close(self) -> None:
        self._store.close()


class ControlSnapshot:
    """A state as it was; held by whoever reads it."""

    def __init__(self, position: Position, data: bytes) -> None:
        self.position = position
        self.files: Sequence[SnapshotFile] = (SnapshotFile(FILE, len(data), xxhash.xxh3_64_intdigest(data)),)
        self._data = data

    def read(self, file: int, offset: int, length: int) -> bytes:
        return self._data[offset:offset + length]

    def release(self) -> None:
        """The memory goes with the last reference."""


class IncomingControl:
    """A snapshot on its way here.  Pieces stay in memory for a next attempt, so one after a restart begins anew."""

    def __init__(self, replica: ControlReplica, position: Position, files: Sequence[SnapshotFile]) -> None:
        if [file.name for file in files] != [FILE]:
            raise DataCorrupted("what is offered is no snapshot of the control state", path=FILE,
                                got=[file.name[:80] for file in files[:4]])
        self._replica = replica
        self._position = position
        self._checksum = files[0].checksum
        self._bytes = files[0].bytes
        for other in [one for one in replica.pieces if one != self._checksum]:
            del replica.pieces[other]

    def have(self, file: int) -> int:
        return len(self._replica.pieces.get(self._checksum, b""))

    def write(self, file: int, offset: int, data: bytes) -> None:
        have = self.have(file)
        if offset != have or have + len(data) > self._bytes:
            raise InvalidArgument("offset", "is not where the file goes on", got=offset, limit=have)
        self._replica.pieces[self._checksum] = self._replica.pieces.get(self._checksum, b"") + data

    def install(self) -> None:
        data = self._replica.pieces.get(self._checksum, b"")
        if len(data) != self._bytes or xxhash.xxh3_64_intdigest(data) != self._checksum:
            self._replica.pieces.pop(self._checksum, None)
            raise DataCorrupted("a file of the snapshot does not match its checksum", path=FILE)
        self._replica.install(data, self._position)

    def close(self) -> None:
        """What has come stays."""


def members(status: ReplicaStatus, unheard_s: float = UNHEARD_S) -> dict[str, tuple[str, bool]]:
    """As the leader knows them: nodes with their replicas of the control group, and whether each was heard of late."""
    return {node_of(replica): (replica, replica == status.me or status.heard_s.get(replica, 0.0) <= unheard_s)
            for replica in (*status.voters, *status.learners, *status.joining)}


class Control:
    """What a node asks of the control group; belongs to an event loop, but ``state`` may be read in any thread.

    ``directory``: of the control state's store, opened by :meth:`open`.  New collections are given
    ``replication_factor`` replicas, or as many as there are nodes, where nothing else is said.  ``announced``: nodes
    are known by what they announce, and one that is heard and has not yet is waited for; else they are all alike.
    ``reads``: the latest version of commands that this node reads.
    """

    def __init__(self, directory: Path, open_store: OpenStore, *, replication_factor: int,
                 announced: bool = False, reads: int = VERSION) -> None:
        self._directory = directory
        self._open_store = open_store
        self._replication_factor = replication_factor
        self._announced = announced
        self._reads = reads
        self._replica: ControlReplica | None = None
        self._latest = ControlState()
        self._listeners: list[Callable[[ControlState], None]] = []
        self.replicator: Replicator | None = None
        """Set by whoever has added the group; None while it is not there."""
        self.told: Callable[[str], int | None] | None = None
        """The version of commands that a member without an entry has told the leader that it reads, None: nothing yet.
        Set where nodes announce themselves; where it is not only entries are asked.
        """
        self.low: Callable[[str], bool] = lambda node: False
        """Whether a node's disk is nearly full, as it has told the leader."""

    # --- the state machine's life, for who hosts the group --------------------------------------------

    def open(self) -> ControlReplica:
        """Open the state as it is on the disk; blocks.  Raises ``DataCorrupted`` or ``StorageError``, and
        ``FormatMismatch`` where commands may follow that this release cannot read: applied as nothing they would make
        this node differ from all others.
        """
        self.close()
        store = self._open_store(self._directory)
        try:
            self._replica = ControlReplica(store, self._tell, self._reads)
            agreed = self._replica.state.commands or 0
            if agreed > self._reads:
                self._replica = None
                raise FormatMismatch(
                    f"the cluster's nodes have agreed on commands of version {agreed}, and this release reads "
                    f"{self._reads}: start the one that was here before, or a later one", path=FILE, got=agreed,
                    limit=self._reads)
        except BaseException:
            store.close()
            raise
        self._tell(self._replica.state)
        return self._replica

    def checkpoint(self) -> None:
        """Return once what is applied is on stable storage; blocks."""
        replica = self._replica
        if replica is None:
            raise Unavailable("the control state is not open", retry_after_s=0.1)
        replica.checkpoint()

    def set_aside(self) -> Path | None:
        """Move a damaged state out of the way; where to."""
        self.close()
        return set_aside(self._directory)

    def close(self) -> None:
        """Let go of the store; what was applied since the last checkpoint the log replays."""
        replica, self._replica = self._replica, None
        if replica is not None:
            replica.close()

    def on_change(self, listener: Callable[[ControlState], None]) -> None:
        """Have ``listener`` told of each later state with other entries, in the thread that applied."""
        self._listeners.append(listener)

    def _tell(self, state: ControlState) -> None:
        if state.log_index < self._latest.log_index:
            return  # it was damaged, and catches up with what this node knows already
        self._latest = state
        for listener in self._listeners:
            listener(state)

    # --- what anybody asks ----------------------------------------------------------------------------

    @property
    def state(self) -> ControlState:
        """The latest that this node has applied since it started; it never goes back, even if the disk does."""
        latest, replica = self._latest, self._replica
        return latest if replica is None or replica.state.log_index < latest.log_index else replica.state

    @property
    def open_state(self) -> ControlState | None:
        """What the store holds, which is earlier than ``state`` after damage; None while it is not open."""
        replica = self._replica
        return None if replica is None else replica.state

    def status(self) -> ReplicaStatus | None:
        """Of this node's replica of the control group; None while there is none."""
        return None if self.replicator is None else self.replicator.status()

    async def create(self, schema: CollectionSchema, call: Call | None = None, layout: Layout = ANYHOW
                     ) -> CollectionEntry:
        """Make a collection; return once this node has applied it.

        What the layout does not say is chosen: one shard, or as many as suit ``expected_records``
        (:func:`vecdb.cluster.placement.shards_for`).  Raises ``CollectionExists``, ``LimitExceeded``,
        ``InvalidArgument``; ``NotLeader``, ``Overloaded``, ``Unavailable`` (nothing was done) and ``OutcomeUnknown``
        (asked again with the same ``call.token`` it happens once).
        """
        check(call)
        status = self._leading().status()
        candidates = self._candidates(status)
        count = layout.shards or shards_for(layout.expected_records or 0, len(candidates))
        factor = layout.replication_factor or self._replication_factor
        if (layout.replication_factor or 1) > len(candidates):
            raise InvalidArgument("replication_factor", f"{factor} replicas want as many nodes that hold replicas and "
                                  f"are active; there are {len(candidates)}", got=factor, limit=len(candidates))
        shards = await self._place(candidates, count, factor)
        check_heard((nodes for _, _, nodes in shards), {one.node for one in candidates if not one.well})
        numbers = members(status)
        named = [(lo, hi, [numbers[node][0] for node in nodes]) for lo, hi, nodes in shards]
        return await self._made(CollectionEntry, commands.create_shards(schema, named, factor, layout.shard_key,
                                                                        _key(call)), call)

    async def drop(self, name: str, call: Call | None = None) -> CollectionEntry:
        """Drop a collection with all its records; errors as of :meth:`create`, and ``CollectionNotFound``."""
        check(call)
        return await self._made(CollectionEntry, commands.drop(name, _key(call)), call)

    async def catch_up(self, deadline: float | None) -> ControlState:
        """The state with everything that was acknowledged before this call; ``NotLeader`` where another leads."""
        await self._leading().read_index(deadline)
        return self.state

    def _leading(self) -> Replicator:
        if self.replicator is None:
            raise Unavailable("the control group is not here yet", retry_after_s=0.1)
        status = self.replicator.status()
        if status.role != "leader":
            raise NotLeader(f"{status.leader} leads the control group" if status.leader else
                            "the control group has no leader at the moment", leader=status.leader)
        return self.replicator

    def _candidates(self, status: ReplicaStatus) -> list[Candidate]:
        """Nodes that may be given replicas."""
        state, loads, found = self.state, self.state.loads(), list[Candidate]()
        for node, (_, heard) in members(status).items():
            entry = state.nodes.get(node)
            if entry is None and self._announced:
                if heard:
                    raise Unavailable(f"node {node} has not told yet what it is for", node=node, retry_after_s=0.2)
                continue
            if entry is None:
                found.append(Candidate(node, load=loads.get(node, 0), well=heard))
            elif entry.role.holds and entry.state is NodeState.ACTIVE:
                found.append(Candidate(node, entry.capacity, entry.zone, loads.get(node, 0), heard, self.low(node)))
        if not found:
            raise Unavailable("the cluster has no node that holds replicas and is active", retry_after_s=1.0)
        return found

    async def _place(self, candidates: list[Candidate], count: int, replicas: int
                     ) -> list[tuple[int, int, tuple[str, ...]]]:
        """New shards, each with the nodes it should be on; other tasks go on meanwhile."""
        found: list[tuple[int, int, tuple[str, ...]]] = []
        for one in spread(self.state.next_group, candidates, count, replicas):
            found.append(one)
            if len(found) % PLACED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return found

    # --- commands ---------------------------------------------------------------------------------

    def check_read(self, version: int) -> None:
        """Raise unless every node reads commands of this version, as the leader knows: ``Unsupported`` names those that
        do not, ``Unavailable`` those that are heard and have not told.
        """
        state = self.state
        old = [one.name for one in state.nodes.values() if one.state is not NodeState.LEFT and one.commands < version]
        silent: list[str] = []
        status = self.status()
        if self.told is not None and status is not None and version > 1:
            for node, (_, heard) in members(status).items():
                if node in state.nodes or not heard:
                    continue
                reads = self.told(node)
                if reads is None:
                    silent.append(node)
                elif reads < version:
                    old.append(node)
        if old:
            more = f" and {len(old) - 3} more" if len(old) > 3 else ""
            raise Unsupported(f"{', '.join(sorted(old)[:3])}{more} would not understand it: upgrade all nodes first",
                              nodes=sorted(old)[:16], needs=version)
        if silent:
            raise Unavailable(f"{', '.join(sorted(silent)[:3])} has not told its version yet",
                              nodes=sorted(silent)[:16], retry_after_s=0.2)

    async def propose(self, command: bytes, call: Call | None = None) -> Outcome:
        """Have a command of :mod:`vecdb.cluster.control` done; return what came of it once this node has applied it.

        Raises its error, and what :meth:`create` and :meth:`check_read` raise.
        """
        check(call)
        leading = self._leading()
        self.check_read(version_of(command))
        committed = await leading.propose(command, None if call is None else call.deadline)
        outcome = committed.result
        if not isinstance(outcome, _OUTCOMES):
            raise VecdbError("the control group answered with what is no outcome", got=type(outcome).__name__)
        return outcome

    async def _made(self, kind: type[T], command: bytes, call: Call | None) -> T:
        outcome = await self.propose(command, call)
        if not isinstance(outcome, kind):
            raise VecdbError("the control group answered with another outcome", got=type(outcome).__name__)
        return outcome

    async def node_put(self, entry: NodeEntry, call: Call | None = None) -> NodeEntry:
        return await self._made(NodeEntry, commands.node_put(entry, _key(call)), call)

    async def node_state(self, name: str, state: NodeState, at_s: float, call: Call | None = None) -> NodeEntry:
        return await self._made(NodeEntry, commands.node_state(name, state, at_s=at_s, key=_key(call)), call)

    async def node_remove(self, name: str, at_s: float, call: Call | None = None) -> NodeEntry:
        return await self._made(NodeEntry, commands.node_remove(name, at_s=at_s, key=_key(call)), call)

    async def token_put(self, entry: TokenEntry, call: Call | None = None) -> TokenEntry:
        return await self._made(TokenEntry, commands.token_put(entry, _key(call)), call)

    async def token_revoke(self, id: str, call: Call | None = None) -> None:
        await self.propose(commands.token_revoke(id, _key(call)), call)

    async def api_key_put(self, entry: ApiKeyEntry, at_s: float, call: Call | None = None) -> ApiKeyEntry:
        return await self._made(ApiKeyEntry, commands.api_key_put(entry, at_s=at_s, key=_key(call)), call)

    async def api_key_revoke(self, id: str, at_s: float, call: Call | None = None) -> ApiKeyEntry:
        """``KeyNotFound``."""
        return await self._made(ApiKeyEntry, commands.api_key_revoke(id, at_s=at_s, key=_key(call)), call)

    async def job_put(self, kind: str, target: str, args: Mapping[str, Any], at_s: float, call: Call | None = None
                      ) -> JobEntry:
        return await self._made(JobEntry, commands.job_put(kind, target, args, at_s=at_s, key=_key(call)), call)

    async def job_update(self, job: JobEntry, at_s: float, call: Call | None = None) -> JobEntry:
        """``job``: as it should be; what it was asked to do stays."""
        return await self._made(JobEntry, commands.job_update(
            job.id, state=job.state, phase=job.phase, done=job.done, total=job.total, unit=job.unit, error=job.error,
            data=job.data, at_s=at_s, key=_key(call)), call)

    async def job_cancel(self, id: int, at_s: float, call: Call | None = None) -> JobEntry:
        return await self._made(JobEntry, commands.job_cancel(id, at_s=at_s, key=_key(call)), call)

    async def place(self, group: int, desired: Sequence[str], call: Call | None = None) -> None:
        await self.propose(commands.place(group, desired, _key(call)), call)

    async def replication(self, name: str, factor: int, call: Call | None = None) -> CollectionEntry:
        return await self._made(CollectionEntry, commands.replication(name, factor, _key(call)), call)

    async def shards_add(self, job: int, name: str, shards: NewShards, call: Call | None = None) -> tuple[int, ...]:
        """The groups."""
        return await self._made(tuple, commands.shards_add(job, name, shards, _key(call)), call)

    async def shards_switch(self, job: int, name: str, retire: Sequence[int], activate: Sequence[int],
                            call: Call | None = None) -> CollectionEntry:
        return await self._made(CollectionEntry, commands.shards_switch(job, name, retire, activate, _key(call)), call)

    async def shards_forget(self, groups: Sequence[int], call: Call | None = None) -> tuple[int, ...]:
        """Those that were forgotten by it."""
        return await self._made(tuple, commands.shards_forget(groups, _key(call)), call)

    async def setting_put(self, name: str, value: bool | int | float | str | None, call: Call | None = None) -> None:
        await self.propose(commands.setting_put(name, value, _key(call)), call)


def _key(call: Call | None) -> bytes:
    return b"" if call is None or call.token is None else call.token.key
