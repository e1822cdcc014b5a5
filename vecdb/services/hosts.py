"""What the reconciler stands on, and what it tells: the driver's groups, the states on the disk, shards and errors."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from vecdb.cluster.control import collection_of
from vecdb.core.errors import VecdbError
from vecdb.core.schema import CollectionSchema
from vecdb.ports.replicator import ReplicaStatus, Replicator, StateMachine
from vecdb.services.catalog import Entry
from vecdb.shard.marks import MarkResult


class ShardMachine(StateMachine, Protocol):
    """A state machine that remembers marks and knows its room: :class:`vecdb.services.replica.ShardReplica`."""

    failure: VecdbError | None
    """What ended it, maybe a read that met damage."""

    def marks(self) -> Mapping[int, MarkResult]: ...

    def check_room(self) -> None: ...

    def check_sealed(self, command: bytes | None) -> None: ...


class Groups(Protocol):
    """The groups of this node: :class:`vecdb.raft.driver.Driver`."""

    @property
    def failure(self) -> BaseException | None: ...

    def fail(self, error: BaseException) -> None: ...

    def add(self, group: int, machine: StateMachine, *, number: int, voters: tuple[str, ...] = (),
            existing: bool = False, afresh: bool = False) -> Replicator: ...

    async def remove(self, group: int) -> None: ...

    def forget(self, group: int) -> None: ...

    def logs(self) -> list[int]: ...


class LocalReplicas(Protocol):
    """The states on this node: :class:`vecdb.services.local.LocalDatabase`.  All of it blocks but ``hosted``."""

    @property
    def catalog_lost(self) -> bool: ...

    def host(self, schema: CollectionSchema, folder: str) -> None: ...

    def unhost(self, name: str) -> None: ...

    def hosted(self) -> Mapping[str, Entry]: ...

    def replica(self, name: str, *, allow_damage: bool = False) -> ShardMachine: ...

    def set_aside(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class HostingSettings:
    """Seconds.  ``retry_s``: the first pause after a failure and the longest; ``well_s``: after so long without one the
    next begins with the first again.  ``departed_s``: how often it is asked whether a replica is a member no more.
    """

    look_s: float = 1.0
    retry_s: tuple[float, float] = (0.2, 30.0)
    well_s: float = 60.0
    departed_s: float = 5.0


@dataclass(frozen=True, slots=True)
class HostedShard:
    """A replica this node has or should have.  ``name``: the collection's; ``status``: None while it is not there."""

    name: str
    group: int
    status: ReplicaStatus | None
    error: str = ""


@dataclass(slots=True)
class Place:
    """Of one shard (or the control group) on this node; the reconciler's own."""

    label: str
    group: int = -1
    """The group that the driver has, -1: none."""
    replicator: Replicator | None = None
    machine: ShardMachine | None = None
    task: "asyncio.Task[None] | None" = None
    ill: str = ""
    """What became of the replica that the driver has, if it must be removed from there."""
    outcast: bool = False
    """The group has removed it: its log is of no use."""
    departed: bool = False
    """It is wanted no more, and its group has it no more."""
    condemned: bool = False
    """Its state is to be set aside and built anew."""
    asked: float = 0.0
    """When it was last asked whether it has departed."""
    waiting: bool = False
    """For ``due``, with something to do then."""
    failures: int = 0
    due: float = 0.0
    since: float = 0.0
    """When the last failure was."""
    error: str = ""

    @property
    def name(self) -> str:
        return collection_of(self.label)
