"""A MemoryBackend whose collections are shards of a cluster: its writes say where they are, its reads what they saw."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tests.memory_backend import MemoryBackend
from vecdb.core.calls import Call, Consistency
from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.query import Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema


class ShardedBackend(MemoryBackend):
    """``shards``: number by collection, never given twice.  ``reads``: method, collection, call of each, as they came.

    Behind a FakeNode, which keeps the calls to itself, it is the node's ``calls`` that tell.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)
        self.shards: dict[str, int] = {}
        self.reads: list[tuple[str, str, Call | None]] = []

    def create_collection(self, schema: CollectionSchema, call: Call | None = None, layout: Layout = ANYHOW) -> None:
        super().create_collection(schema, call, layout)
        self.shards[schema.name] = next(self._numbers)

    def _placed(self, name: str, result: WriteResult) -> WriteResult:
        return replace(result, shard=self.shards[name])

    def upsert(self, name: str, batch: UpsertBatch, call: Call | None = None) -> WriteResult:
        return self._placed(name, super().upsert(name, batch, call))

    def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call | None = None) -> WriteResult:
        return self._placed(name, super().delete(name, command, call))

    def update_metadata(self, name: str, command: UpdateMetadata, call: Call | None = None) -> WriteResult:
        return self._placed(name, super().update_metadata(name, command, call))

    def query(self, name: str, request: QueryRequest, call: Call | None = None) -> QueryResult:
        self.reads.append(("query", name, call))
        return super().query(name, request, call)

    def fetch(self, name: str, ids: Sequence[RecordId], *, include_metadata: bool = True,
              include_vectors: bool = True, call: Call | None = None) -> list[Record]:
        self.reads.append(("fetch", name, call))
        return super().fetch(name, ids, include_metadata=include_metadata, include_vectors=include_vectors, call=call)

    def scan(self, name: str, request: ScanRequest, call: Call | None = None) -> ScanPage:
        self.reads.append(("scan", name, call))
        return super().scan(name, request, call)

    def count(self, name: str, where: Node | None = None, call: Call | None = None) -> int:
        self.reads.append(("count", name, call))
        return super().count(name, where, call)

    def describe(self, name: str, call: Call | None = None) -> Description:
        self.reads.append(("describe", name, call))
        return super().describe(name, call)

    def optimize(self, name: str, on_progress: Callable[[str, int, int], None] | None = None,
                 call: Call | None = None) -> Description:
        self.reads.append(("optimize", name, call))
        return super().optimize(name, on_progress, call)


def asked(calls: Sequence[tuple[str, str, Any]], method: str) -> tuple[Consistency, tuple[tuple[int, int], ...]]:
    """What the last read by ``method`` had to have seen."""
    call = [one for name, _, one in calls if name == method][-1]
    return (Consistency.EVENTUAL, ()) if call is None else (call.consistency, call.session)
