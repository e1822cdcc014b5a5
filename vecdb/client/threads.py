"""An embedded backend as a Node: its calls run in threads, and a cancelled task ends what its call does."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from vecdb.client.backend import Backend, Progress
from vecdb.core.calls import Call, Stopped
from vecdb.core.filters.tree import Node as FilterNode
from vecdb.core.ids import RecordId
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.query import Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema

THREADS: Final = 16
"""More than cores: writes wait for the disk, and share its fsyncs when they wait together."""


class ThreadNode:
    """A :class:`vecdb.ports.node.Node` over a backend, which it owns."""

    def __init__(self, backend: Backend) -> None:
        self._backend: Any = backend
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="vecdb-async")

    async def _run(self, method: str, *args: Any, call: Call | None = None, **kwargs: Any) -> Any:
        held = Call() if call is None else call
        work = partial(getattr(self._backend, method), *args, call=held, **kwargs)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except asyncio.CancelledError:
            held.end(Stopped.CANCELLED)
            raise

    async def create_collection(self, schema: CollectionSchema, call: Call | None = None, layout: Layout = ANYHOW
                                ) -> None:
        await self._run("create_collection", schema, call=call, layout=layout)

    async def drop_collection(self, name: str, call: Call | None = None) -> None:
        await self._run("drop_collection", name, call=call)

    async def list_collections(self, call: Call | None = None) -> list[str]:
        return list(await self._run("list_collections", call=call))

    async def schema(self, name: str, call: Call | None = None) -> CollectionSchema:
        found: CollectionSchema = await self._run("schema", name, call=call)
        return found

    async def describe(self, name: str, call: Call | None = None) -> Description:
        found: Description = await self._run("describe", name, call=call)
        return found

    async def optimize(self, name: str, call: Call | None = None, on_progress: Progress | None = None) -> Description:
        """``on_progress`` is called on the event loop."""
        tell: Progress | None = None
        if on_progress is not None:
            loop, told = asyncio.get_running_loop(), on_progress

            def tell(stage: str, done: int, total: int) -> None:
                loop.call_soon_threadsafe(told, stage, done, total)

        found: Description = await self._run("optimize", name, tell, call=call)
        return found

    async def upsert(self, name: str, batch: UpsertBatch, call: Call | None = None) -> WriteResult:
        result: WriteResult = await self._run("upsert", name, batch, call=call)
        return result

    async def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call | None = None) -> WriteResult:
        result: WriteResult = await self._run("delete", name, command, call=call)
        return result

    async def update_metadata(self, name: str, command: UpdateMetadata, call: Call | None = None) -> WriteResult:
        result: WriteResult = await self._run("update_metadata", name, command, call=call)
        return result

    async def query(self, name: str, request: QueryRequest, call: Call | None = None) -> QueryResult:
        result: QueryResult = await self._run("query", name, request, call=call)
        return result

    async def fetch(self, name: str, ids: Sequence[RecordId], call: Call | None = None, *,
                    include_metadata: bool = True, include_vectors: bool = True) -> list[Record]:
        return list(await self._run("fetch", name, ids, call=call, include_metadata=include_metadata,
                                    include_vectors=include_vectors))

    async def scan(self, name: str, request: ScanRequest, call: Call | None = None) -> ScanPage:
        page: ScanPage = await self._run("scan", name, request, call=call)
        return page

    async def count(self, name: str, where: FilterNode | None = None, call: Call | None = None) -> int:
        return int(await self._run("count", name, where, call=call))

    async def jobs(self, name: str | None = None, call: Call | None = None) -> list[dict[str, Any]]:
        return list(await self._run("jobs", name, call=call))

    async def verify(self, name: str, call: Call | None = None) -> dict[str, Any]:
        return dict(await self._run("verify", name, call=call))

    async def close(self) -> None:
        """Wait for what runs, then close the backend."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._threads.shutdown()
        self._backend.close()
