"""Replicas of groups, here and on other nodes: what goes from node to node.

A **group** is a shard's number, 0 the control group.  Nothing is handed on twice: who is asked for what only a leader
does, and does not lead, raises ``NotLeader`` with what he knows.

Errors of calls to other nodes: ``Unavailable`` (``NotLeader`` among them) where nothing was done, ``OutcomeUnknown``
for a command whose end nobody knows, and what the other node raised.
"""

from collections.abc import Sequence
from typing import Protocol

from vecdb.core.calls import Call
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.schema import CollectionSchema
from vecdb.ports.node import Node
from vecdb.ports.replicator import Committed, ReplicaStatus
from vecdb.shard.marks import MarkResult


class Replicas(Protocol):
    """The replicas of this node.  ``Unavailable`` where it has none of the group."""

    async def propose(self, group: int, command: bytes, call: Call) -> Committed:
        """Commit a command, which was checked and encoded where the call came in; the leader's alone."""
        ...

    async def change(self, what: CollectionSchema | str, call: Call, layout: Layout = ANYHOW) -> int:
        """Make the collection of a schema by a layout, or drop the one of a name, once for ``call.token``; the control
        leader's alone.  Returns a place in the control group's log at or behind the command.
        """
        ...

    async def read_index(self, group: int, call: Call) -> int:
        """The place a linearizable read of now must have seen; the leader's alone."""
        ...

    async def status(self, groups: Sequence[int], call: Call) -> dict[int, ReplicaStatus]:
        """Of these groups (none: of all), as far as there are replicas here."""
        ...

    async def mark(self, group: int, log_index: int, call: Call) -> MarkResult:
        """What the replica had at the mark of this log index, once it has applied it."""
        ...

    async def transfer(self, group: int, to: str | None, call: Call) -> None:
        """Hand the leadership over; the leader's alone."""
        ...

    async def rebuild(self, group: int, call: Call) -> None:
        """Set the replica's state aside and begin to build it anew from the others; ``Unavailable`` without any."""
        ...


class Peers(Protocol):
    """The other nodes of the cluster, by name."""

    def node(self, name: str) -> Node:
        """The node's own API: it answers from its own replicas and hands nothing on."""
        ...

    def replicas(self, name: str) -> Replicas:
        """The node's replicas."""
        ...
