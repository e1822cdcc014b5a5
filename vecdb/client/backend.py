"""What the SDK's objects stand on: one protocol, met by the embedded engine and by a remote node.

Values in and out are ``vecdb.core`` types, already checked by the facade; a backend raises
:mod:`vecdb.core.errors` only.  It is two protocols so that neither grows past what one reader holds.

``call`` says when a call must be over and how a repetition is known (:class:`~vecdb.core.calls.Call`).  A call that was
ended raises DeadlineExceeded or Cancelled; a write that was not begun by then has changed nothing, and one that was
begun is carried out.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from vecdb.core.calls import Call
from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.query import Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema

Progress = Callable[[str, int, int], None]
"""``(stage, done, total)`` of a long call; called from the thread that made the call."""


class CollectionsBackend(Protocol):
    """Whole collections."""

    def create_collection(self, schema: CollectionSchema, call: Call | None = None, layout: Layout = ANYHOW
                          ) -> None: ...

    def drop_collection(self, name: str, call: Call | None = None) -> None: ...

    def list_collections(self, call: Call | None = None) -> list[str]: ...

    def schema(self, name: str, call: Call | None = None) -> CollectionSchema: ...

    def describe(self, name: str, call: Call | None = None) -> Description: ...

    def optimize(self, name: str, on_progress: Progress | None = None, call: Call | None = None) -> Description:
        """Seal, merge and build until nothing is left to do; returns when done."""
        ...


class RecordsBackend(Protocol):
    """Records of one collection."""

    def upsert(self, name: str, batch: UpsertBatch, call: Call | None = None) -> WriteResult: ...

    def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call | None = None) -> WriteResult: ...

    def update_metadata(self, name: str, command: UpdateMetadata, call: Call | None = None) -> WriteResult: ...

    def query(self, name: str, request: QueryRequest, call: Call | None = None) -> QueryResult: ...

    def fetch(self, name: str, ids: Sequence[RecordId], *, include_metadata: bool = True,
              include_vectors: bool = True, call: Call | None = None) -> list[Record]:
        """The records that exist, in the order asked."""
        ...

    def scan(self, name: str, request: ScanRequest, call: Call | None = None) -> ScanPage: ...

    def count(self, name: str, where: Node | None = None, call: Call | None = None) -> int: ...


class Backend(CollectionsBackend, RecordsBackend, Protocol):
    """Everything the facade needs, and its end."""

    def close(self) -> None: ...
