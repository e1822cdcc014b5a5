"""What of a node steers the cluster, put together: members of groups that it leads, jobs, what it tells operators."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from vecdb.cluster.control import ControlState, ShardEntry, node_of, shards_add, shards_forget, shards_switch
from vecdb.core.cluster import ShardState
from vecdb.ports.backups import Backups
from vecdb.ports.clock import Clock
from vecdb.ports.copies import Copies
from vecdb.ports.operations import Operations
from vecdb.ports.peers import Peers, Replicas
from vecdb.ports.replicator import ReplicaStatus
from vecdb.ports.tell import Tell
from vecdb.services.administration import Administration, OwnOperations
from vecdb.services.announcing import Announcements
from vecdb.services.backup.work import OpenRepository
from vecdb.services.control import Control
from vecdb.services.governor import Governor, leader_among
from vecdb.services.keeping import MemberKeeper, Wanted
from vecdb.services.leaders import Leaders
from vecdb.services.operations.attach import Attach
from vecdb.services.operations.base import Operation
from vecdb.services.operations.kinds import Drain, Move, Rebalance, Repair, Replication
from vecdb.services.operations.reshard import NewShard, Reshard
from vecdb.services.operations.restore import Restore
from vecdb.services.operations.scrub import Scrub, Verify
from vecdb.services.operations.snapshot import SnapshotCreate, SnapshotDelete, SnapshotVerify
from vecdb.services.replicas import OwnReplicas

SETTLES_S: Final = 1.0
"""How long, seconds, it is waited for what a leader says of members to be committed, looking so often:"""
LOOKS: Final = 10


class ReshardCommands:
    """:class:`vecdb.services.operations.reshard.Commands`, as the control group reads them."""

    def add(self, job: int, collection: str, shards: Sequence[NewShard]) -> bytes:
        return shards_add(job, collection, shards)

    def switch(self, job: int, collection: str, retire: Sequence[int], activate: Sequence[int]) -> bytes:
        return shards_switch(job, collection, retire, activate)

    def forget(self, groups: Sequence[int]) -> bytes:
        return shards_forget(groups)


@dataclass(frozen=True, slots=True)
class Backing:
    """What snapshots take: ``backups`` of a node, places, and what they are said to be of."""

    backups: Callable[[str], Backups]
    open_repository: OpenRepository
    cluster: str
    version: str

    def operations(self) -> list[Operation]:
        return [SnapshotCreate(self.backups, self.open_repository, self.cluster, self.version),
                SnapshotDelete(self.open_repository), SnapshotVerify(self.backups, self.open_repository),
                Restore(self.backups, self.open_repository), Attach(self.backups, self.open_repository)]


def operations(copies: Callable[[str], Copies], verify: Verify, backing: Backing) -> dict[str, Operation]:
    """Every kind of job there is.  ``copies``: the copiers of a node; ``verify`` compares the replicas of a shard."""
    commands = ReshardCommands()
    kinds: list[Operation] = [Move(), Replication(), Drain(), Repair(), Rebalance(), Scrub(verify),
                              Reshard("split", copies, commands), Reshard("merge", copies, commands),
                              *backing.operations()]
    return {one.kind: one for one in kinds}


class Governing:
    """Belongs to one event loop.  ``own``, ``peers``: replicas here and elsewhere; ``copies``: the copiers of a node;
    ``verify``: compares the replicas of a shard.

    ``remote``: what operators ask, of another node for itself alone.
    """

    def __init__(self, me: str, name: str, control: Control, own: OwnReplicas, peers: Peers, heard: Announcements,
                 copies: Callable[[str], Copies], verify: Verify, backing: Backing, remote: Callable[[str], Any],
                 nodes: Callable[[], Sequence[str]], leaders: Leaders, clock: Clock, tell: Tell) -> None:
        self._me = me
        self._own = own
        self._peers = peers
        self._clock = clock
        self._control = control
        kinds = operations(copies, verify, backing)
        self._keeper = MemberKeeper(me, own, lambda: wanted(control.state), peers.replicas, clock, tell=tell)
        self.governor = Governor(me, control, self.replicas, heard, clock, kinds, tell=tell)
        own_operations = OwnOperations(
            me, name, control, self.governor, kinds,
            lambda: {node: int(stats["leaders"]) for node in control.state.nodes
                     if "leaders" in (stats := heard.stats(node))})
        self.own: Operations = own_operations
        self.administration = Administration(me, nodes, self.own, remote, leaders, own_operations.known, clock)

    def start(self) -> None:
        """Begin; returns at once."""
        self._keeper.start()
        self.governor.start()

    async def stop(self) -> None:
        """Change nothing any more."""
        await self._keeper.stop()
        await self.governor.stop()

    def replicas(self, node: str) -> Replicas:
        """Of any node."""
        return self._own if node == self._me else self._peers.replicas(node)

    async def leader(self, group: int, nodes: tuple[str, ...]) -> ReplicaStatus | None:
        """:func:`~vecdb.services.governor.leader_among`."""
        return await leader_among(group, nodes, self.replicas, self._clock)


class Asked(Protocol):
    """Who knows how to ask a group's leader."""

    async def leader(self, group: int, nodes: tuple[str, ...]) -> ReplicaStatus | None: ...


async def is_member(me: str, governing: Asked, entry: ShardEntry, pause_s: float = SETTLES_S / LOOKS) -> bool:
    """Whether this node has a replica of a shard that its group counts; True where its leader does not say.

    A leader tells the members of its newest entry, which may yet be lost with it: what it says of who left counts once
    all that its log held then is committed, in the same term.
    """
    first = await governing.leader(entry.group, entry.desired)
    if first is None or _counts(first, me):
        return True
    again: ReplicaStatus | None = first
    for _ in range(LOOKS):
        if again is None or again.term != first.term or _counts(again, me):
            return True
        if again.commit >= first.last:
            return False
        await asyncio.sleep(pause_s)
        again = await governing.leader(entry.group, entry.desired)
    return True


def _counts(status: ReplicaStatus, me: str) -> bool:
    return me in map(node_of, (*status.voters, *status.learners, *status.joining))


def wanted(state: ControlState) -> list[Wanted]:
    """The nodes that every shard should be on; one that is retired is left as it is."""
    return [Wanted(entry.group, entry.desired, entry.name) for entry in state.shards.values()
            if entry.state is not ShardState.RETIRED]
