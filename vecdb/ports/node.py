"""A database as its callers inside a process or across a network see it: the asyncio twin of the SDK's backend.

Met by the engine of this node (:class:`vecdb.services.node.LocalNode`) and by a client of another one, so a servicer
neither knows nor cares which it stands on.  Values are checked ``vecdb.core`` types; errors are
:mod:`vecdb.core.errors` only.  Every call carries a :class:`~vecdb.core.calls.Call`: its deadline ends the work, and a
cancelled task sets its ``stop``.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from vecdb.core.calls import Call
from vecdb.core.filters.tree import Node as FilterNode
from vecdb.core.ids import RecordId
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.query import Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema

Progress = Callable[[str, int, int], None]
"""``(stage, done, total)``; called on the event loop."""


class CollectionsNode(Protocol):
    """Whole collections."""

    async def create_collection(self, schema: CollectionSchema, call: Call, layout: Layout = ANYHOW) -> None: ...

    async def drop_collection(self, name: str, call: Call) -> None: ...

    async def list_collections(self, call: Call) -> list[str]: ...

    async def schema(self, name: str, call: Call) -> CollectionSchema: ...

    async def describe(self, name: str, call: Call) -> Description: ...

    async def optimize(self, name: str, call: Call, on_progress: Progress | None = None) -> Description: ...


class RecordsNode(Protocol):
    """Records of one collection."""

    async def upsert(self, name: str, batch: UpsertBatch, call: Call) -> WriteResult: ...

    async def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call) -> WriteResult: ...

    async def update_metadata(self, name: str, command: UpdateMetadata, call: Call) -> WriteResult: ...

    async def query(self, name: str, request: QueryRequest, call: Call) -> QueryResult: ...

    async def fetch(self, name: str, ids: Sequence[RecordId], call: Call, *, include_metadata: bool = True,
                    include_vectors: bool = True) -> list[Record]: ...

    async def scan(self, name: str, request: ScanRequest, call: Call) -> ScanPage: ...

    async def count(self, name: str, where: FilterNode | None, call: Call) -> int: ...


class MaintenanceNode(Protocol):
    """What is done about the database rather than with it."""

    async def jobs(self, name: str | None, call: Call) -> list[dict[str, Any]]:
        """Background jobs of a collection, or of all: ``collection kind state stage done total error``."""
        ...

    async def verify(self, name: str, call: Call) -> dict[str, Any]:
        """Read every record and compare: ``records log_index digest computed equal``."""
        ...


class Node(CollectionsNode, RecordsNode, MaintenanceNode, Protocol):
    """Everything, and its end."""

    async def close(self) -> None: ...
