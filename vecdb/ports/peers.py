"""Replicas of groups, here and on other nodes: what goes from node to node.

A **group** is a shard's number, 0 the control group.  Nothing is handed on twice: who is asked for what only a leader
does, and does not lead, raises ``NotLeader`` with what he knows.

Errors of calls to other nodes: ``Unavailable`` (``NotLeader`` among them) where nothing was done, ``OutcomeUnknown``
for a command whose end nobody knows, and what the other node raised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from vecdb.core.calls import Call
from vecdb.core.errors import VecdbError
from vecdb.core.filters.tree import Node as FilterNode
from vecdb.core.ids import RecordId
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.query import QueryRequest, QueryResult
from vecdb.core.records import Record
from vecdb.core.schema import CollectionSchema
from vecdb.ports.node import Node
from vecdb.ports.replicator import Committed, ReplicaStatus
from vecdb.shard.marks import MarkResult

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Several(Generic[T]):
    """What shards answered that were asked together: ``found`` is of all but those that ``failed``, by their numbers;
    one answer for all of them or one for each, as the read has it.
    """

    found: Sequence[T]
    failed: Mapping[int, VecdbError] = field(default_factory=dict)


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

    # Reads of the shards ``call.shards`` of the collection ``name``.  A node of a release that does not know these
    # raises ``Unavailable`` with the field ``unknown_call``.

    async def query_shards(self, name: str, request: QueryRequest, call: Call) -> Several[QueryResult]:
        """The nearest of all of them, as one answer; not explained."""
        ...

    async def count_shards(self, name: str, where: FilterNode | None, call: Call) -> Several[int]:
        """How many records they have that match, all together."""
        ...

    async def fetch_shards(self, name: str, ids: Sequence[RecordId], call: Call, *, include_metadata: bool = True,
                           include_vectors: bool = True) -> Several[list[Record]]:
        """Of each shard the records of these ids that are its own."""
        ...


class Peers(Protocol):
    """The other nodes of the cluster, by name."""

    def node(self, name: str) -> Node:
        """The node's own API: it answers from its own replicas and hands nothing on."""
        ...

    def replicas(self, name: str) -> Replicas:
        """The node's replicas."""
        ...
