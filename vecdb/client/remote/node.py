"""A server as a Node: the asyncio client, and what a front process of a server stands on."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

from vecdb.client.backend import Progress
from vecdb.client.remote.admin import AdminProcedures, ShardsProcedures
from vecdb.client.remote.backend import BATCH_BYTES, PARALLEL
from vecdb.client.remote.bulk import Applied, BulkUpsert
from vecdb.client.remote.channels import credentials, open_aio
from vecdb.client.remote.direct import DirectProcedures, Links
from vecdb.client.remote.failures import tls_hint
from vecdb.client.remote.gather import AsyncGather
from vecdb.client.remote.io import AioWire, Link, keep
from vecdb.client.remote.operations import OperationsProcedures, RemoteOperations
from vecdb.client.remote.options import Options, may_send
from vecdb.client.remote.options import check as check_options
from vecdb.client.remote.procedures import Procedures
from vecdb.client.remote.target import Target, parse
from vecdb.client.remote.waiting import connect_steps
from vecdb.client.steps import Steps, T, adrive
from vecdb.client.writing import Batch
from vecdb.core.access import Grant, Key, NewKey
from vecdb.core.calls import Call, Stopped
from vecdb.core.filters.tree import Node as FilterNode
from vecdb.core.ids import RecordId
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.query import Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.core.shard_map import ShardMap
from vecdb.core.shards import ShardInfo, ShardVerification


class RemoteNode:
    """A :class:`vecdb.ports.node.Node` at the other end of a channel; it belongs to the event loop that first uses it.

    ``target``: a URL (``grpc://host:port``, ``unix:/path``), a parsed Target, or an open ``grpc.aio`` channel, which
    is then closed with the node and may have a ``label``, for errors.  ``options``: as of ``vecdb.connect``, by name.
    """

    keeps_time: Final = True
    remembers_schemas: Final = True
    batch_bytes: Final = BATCH_BYTES

    def __init__(self, target: Any, options: Options | None = None, **given: Any) -> None:
        where = parse(target) if isinstance(target, str) else target if isinstance(target, Target) else None
        label = str(getattr(target, "label", "channel")) if where is None else where.label
        if options is None:
            options = check_options(where or Target((), False, True, label), given.pop("api_key", None), given)
        self._options = options
        self._addresses = 1 if where is None else len(where.addresses)
        if where is None:
            self._wire = AioWire(lambda: [Link(target, label)])
        else:
            secrets = credentials(where, options)
            hint = tls_hint(where.secure, options.cert_file is not None)
            several = self._addresses > 1
            self._wire = AioWire(lambda: [Link(open_aio(address, secrets, options, several), address, hint)
                                          for address in where.addresses * options.connections])
        self._do = self._procedures(where, options, label)
        self._admin = AdminProcedures(self._do.caller)
        self._shards = ShardsProcedures(self._do.caller)
        self.operations = RemoteOperations(self._run, OperationsProcedures(self._do.caller))
        self._gather = AsyncGather(self._query_now) if options.auto_batch else None
        keep(self._wire)

    def _procedures(self, where: Target | None, options: Options, label: str) -> Procedures:
        self._links: Links | None = None
        if where is None or not options.direct:
            return Procedures(options, label, self._addresses)
        target, secrets = where, credentials(where, options)
        hint = tls_hint(where.secure, options.cert_file is not None)
        self._links = Links(lambda address: Link(open_aio(address, secrets, options, True), address, hint),
                            lambda address: may_send(address, target, options))
        keep(self._links)
        return DirectProcedures(self._links, options, label, self._addresses)

    async def _run(self, steps: Steps[T], call: Call | None = None) -> T:
        try:
            return await adrive(steps, self._wire.here())
        except asyncio.CancelledError:
            if call is not None:
                call.end(Stopped.CANCELLED)
            raise

    async def wait(self, seconds: float) -> None:
        """Wait until a server answers; raises Unavailable, which says why there is none."""
        await self._run(connect_steps(self._do.caller, time.monotonic() + seconds, self._addresses))

    async def create_collection(self, schema: CollectionSchema, call: Call | None = None, layout: Layout = ANYHOW
                                ) -> None:
        await self._run(self._do.create_collection(schema, call, layout), call)

    async def drop_collection(self, name: str, call: Call | None = None) -> None:
        await self._run(self._do.drop_collection(name, call), call)

    async def list_collections(self, call: Call | None = None) -> list[str]:
        return await self._run(self._do.list_collections(call), call)

    async def schema(self, name: str, call: Call | None = None) -> CollectionSchema:
        known = self._do.schemas.get(name)
        return known if known is not None else await self.refresh_schema(name, call)

    async def refresh_schema(self, name: str, call: Call | None = None) -> CollectionSchema:
        """As the server has it now."""
        return await self._run(self._do.refresh_schema(name, call), call)

    async def describe(self, name: str, call: Call | None = None) -> Description:
        return await self._run(self._do.describe(name, call), call)

    async def optimize(self, name: str, call: Call | None = None, on_progress: Progress | None = None) -> Description:
        return await self._run(self._do.optimize(name, on_progress, call), call)

    async def upsert(self, name: str, batch: UpsertBatch, call: Call | None = None) -> WriteResult:
        return await self._run(self._do.upsert(name, batch, call), call)

    async def upsert_all(self, name: str, batches: Iterator[Batch] | AsyncIterator[Batch], on_applied: Applied,
                         parallel: int | None = None, call: Call | None = None) -> None:
        """Batches over several streams; ``on_applied(rows, result)`` for each, in their order."""
        bulk = BulkUpsert(self._do, name, batches, on_applied, parallel or PARALLEL, call)
        await self._run(bulk.steps(), call)

    async def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call | None = None) -> WriteResult:
        return await self._run(self._do.delete(name, command, call), call)

    async def update_metadata(self, name: str, command: UpdateMetadata, call: Call | None = None) -> WriteResult:
        return await self._run(self._do.update_metadata(name, command, call), call)

    async def query(self, name: str, request: QueryRequest, call: Call | None = None) -> QueryResult:
        if self._gather is not None:
            return await self._gather.query(name, request, call)
        return await self._query_now(name, request, call)

    async def _query_now(self, name: str, request: QueryRequest, call: Call | None) -> QueryResult:
        return await self._run(self._do.query(name, request, call), call)

    async def fetch(self, name: str, ids: Sequence[RecordId], call: Call | None = None, *,
                    include_metadata: bool = True, include_vectors: bool = True) -> list[Record]:
        return await self._run(self._do.fetch(name, ids, call, include_metadata=include_metadata,
                                              include_vectors=include_vectors), call)

    async def scan(self, name: str, request: ScanRequest, call: Call | None = None) -> ScanPage:
        return await self._run(self._do.scan(name, request, call), call)

    async def count(self, name: str, where: FilterNode | None = None, call: Call | None = None) -> int:
        return await self._run(self._do.count(name, where, call), call)

    async def jobs(self, name: str | None = None, call: Call | None = None) -> list[dict[str, Any]]:
        return await self._run(self._admin.jobs(name, call), call)

    async def verify(self, name: str, call: Call | None = None) -> dict[str, Any]:
        return await self._run(self._admin.verify(name, call), call)

    async def server(self, call: Call | None = None) -> dict[str, Any]:
        """``version api node_id uptime_s`` and what else the server says of itself."""
        return await self._run(self._admin.server(call), call)

    async def create_key(self, name: str, grants: Sequence[Grant], ttl_s: float = 0.0,
                         call: Call | None = None) -> NewKey:
        """Make an API key; the secret is told this once."""
        return await self._run(self._admin.create_key(name, grants, ttl_s, call), call)

    async def list_keys(self, call: Call | None = None) -> list[Key]:
        return await self._run(self._admin.list_keys(call), call)

    async def rotate_key(self, id: str, overlap_s: float = 0.0, call: Call | None = None) -> NewKey:
        """A new secret; the old one is good for ``overlap_s`` more seconds."""
        return await self._run(self._admin.rotate_key(id, overlap_s, call), call)

    async def revoke_key(self, id: str, call: Call | None = None) -> None:
        await self._run(self._admin.revoke_key(id, call), call)

    async def shards(self, name: str | None = None, call: Call | None = None) -> list[ShardInfo]:
        """The shard of a collection, or of each, with its replicas."""
        return await self._run(self._shards.shards(name, call), call)

    async def shard_map(self, name: str, call: Call | None = None) -> ShardMap:
        return await self._run(self._shards.shard_map(name, call), call)

    async def verify_shard(self, name: str, deep: bool = False, call: Call | None = None) -> ShardVerification:
        return await self._run(self._shards.verify_shard(name, deep, call), call)

    async def transfer_leader(self, name: str, to: str | None = None, call: Call | None = None) -> None:
        await self._run(self._shards.transfer_leader(name, to, call), call)

    async def operate(self, method: str, *args: Any, call: Call | None = None, **named: Any) -> Any:
        """One of :class:`vecdb.ports.operations.Operations`, by its name."""
        return await getattr(self.operations, method)(*args, call=call, **named)

    async def close(self) -> None:
        """Let go of the connection."""
        await self._wire.close()
        for link in () if self._links is None else tuple(self._links.all.values()):
            await link.channel.close()
