"""A Node over the MemoryBackend: what the faces of a server are tested on, without an engine.

Calls are noted in ``calls`` as (method, collection, Call).  ``gate`` holds every call of a method until it is opened,
watching ``call.stop`` and the deadline as an engine would; ``fail`` makes the next call of a method raise.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tests.memory_backend import MemoryBackend
from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import InvalidArgument
from vecdb.core.filters.tree import Node as FilterNode
from vecdb.core.ids import RecordId
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.query import Cost, Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.ports.node import Progress

_T = TypeVar("_T")


class FakeNode:
    """A :class:`vecdb.ports.node.Node`; the backend's assertions hold here too."""

    def __init__(self, backend: MemoryBackend | None = None) -> None:
        self.backend = backend or MemoryBackend()
        self.calls: list[tuple[str, str, Call]] = []
        self.gate: dict[str, asyncio.Event] = {}
        self.fail: dict[str, BaseException] = {}
        self.job_list: list[dict[str, Any]] = []
        self.hands_on = False
        """Writes are done by another node, as where this one does not lead."""
        self.elsewhere = False
        """Whether a write came from who knows of other nodes."""
        self._done: dict[tuple[str, bytes], tuple[int, WriteResult]] = {}

    async def _run(self, method: str, name: str, call: Call, work: Callable[[], _T]) -> _T:
        self.calls.append((method, name, call))
        try:
            while (gate := self.gate.get(method)) is not None and not gate.is_set():
                if call.deadline is not None and time.monotonic() >= call.deadline:
                    call.end(Stopped.DEADLINE)
                call.check()
                await asyncio.sleep(0.002)
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            call.end(Stopped.CANCELLED)
            raise
        if call.deadline is not None and time.monotonic() >= call.deadline:
            call.end(Stopped.DEADLINE)
        call.check()
        if (error := self.fail.pop(method, None)) is not None:
            raise error
        return work()

    async def _write(self, method: str, name: str, call: Call, work: Callable[[], WriteResult]) -> WriteResult:
        """A write whose token was seen before is answered with what it did then."""
        call.handed_on = self.hands_on
        self.elsewhere = self.elsewhere or call.elsewhere
        token = call.token
        if token is None:
            return await self._run(method, name, call, work)
        known = self._done.get((name, token.key))
        if known is not None:
            if known[0] != token.fingerprint:
                raise InvalidArgument("idempotency_key", "was used for another write", got="another content",
                                      limit="one key for one write")
            return await self._run(method, name, call, lambda: known[1])
        result = await self._run(method, name, call, work)
        self._done[(name, token.key)] = (token.fingerprint, result)
        return result

    async def create_collection(self, schema: CollectionSchema, call: Call, layout: Layout = ANYHOW) -> None:
        await self._run("create_collection", schema.name, call,
                        lambda: self.backend.create_collection(schema, layout=layout))

    async def drop_collection(self, name: str, call: Call) -> None:
        await self._run("drop_collection", name, call, lambda: self.backend.drop_collection(name))

    async def list_collections(self, call: Call) -> list[str]:
        return await self._run("list_collections", "", call, self.backend.list_collections)

    async def schema(self, name: str, call: Call) -> CollectionSchema:
        return await self._run("schema", name, call, lambda: self.backend.schema(name))

    async def describe(self, name: str, call: Call) -> Description:
        return await self._run("describe", name, call, lambda: self.backend.describe(name))

    async def optimize(self, name: str, call: Call, on_progress: Progress | None = None) -> Description:
        return await self._run("optimize", name, call, lambda: self.backend.optimize(name, on_progress))

    async def upsert(self, name: str, batch: UpsertBatch, call: Call) -> WriteResult:
        return await self._write("upsert", name, call, lambda: self.backend.upsert(name, batch))

    async def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call) -> WriteResult:
        return await self._write("delete", name, call, lambda: self.backend.delete(name, command))

    async def update_metadata(self, name: str, command: UpdateMetadata, call: Call) -> WriteResult:
        return await self._write("update_metadata", name, call, lambda: self.backend.update_metadata(name, command))

    async def query(self, name: str, request: QueryRequest, call: Call) -> QueryResult:
        result = await self._run("query", name, call, lambda: self.backend.query(name, request))
        cost = Cost(compute_ms=0.5, batched=len(request.vectors)) if request.profile else None
        return QueryResult(result.matches, result.plan, result.missing, cost)

    async def fetch(self, name: str, ids: Sequence[RecordId], call: Call, *, include_metadata: bool = True,
                    include_vectors: bool = True) -> list[Record]:
        return await self._run("fetch", name, call, lambda: self.backend.fetch(
            name, ids, include_metadata=include_metadata, include_vectors=include_vectors))

    async def scan(self, name: str, request: ScanRequest, call: Call) -> ScanPage:
        return await self._run("scan", name, call, lambda: self.backend.scan(name, request))

    async def count(self, name: str, where: FilterNode | None, call: Call) -> int:
        return await self._run("count", name, call, lambda: self.backend.count(name, where))

    async def jobs(self, name: str | None, call: Call) -> list[dict[str, Any]]:
        return await self._run("jobs", name or "", call, lambda: [
            job for job in self.job_list if name is None or job["collection"] == name])

    async def verify(self, name: str, call: Call) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            described = self.backend.describe(name)
            return {"records": described.records, "log_index": described.details["log_index"], "digest": "0",
                    "computed": "0", "equal": True}
        return await self._run("verify", name, call, work)

    async def close(self) -> None:
        self.backend.close()
