"""The Backend at the other end of a gRPC channel, for threads."""

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from vecdb.client.backend import Progress
from vecdb.client.remote.admin import AdminProcedures, ShardsProcedures
from vecdb.client.remote.bulk import Applied, BulkUpsert
from vecdb.client.remote.channels import credentials, open_sync
from vecdb.client.remote.direct import DirectProcedures, Links
from vecdb.client.remote.failures import tls_hint
from vecdb.client.remote.gather import ThreadGather
from vecdb.client.remote.io import Link, SyncWire, keep
from vecdb.client.remote.operations import OperationsProcedures
from vecdb.client.remote.options import Options, may_send
from vecdb.client.remote.procedures import Procedures
from vecdb.client.remote.target import Target
from vecdb.client.remote.waiting import connect_steps
from vecdb.client.steps import drive
from vecdb.client.writing import Batch
from vecdb.core.access import Grant, Key, NewKey
from vecdb.core.calls import Call
from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.query import Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.core.shard_map import ShardMap
from vecdb.core.shards import ShardInfo, ShardVerification

PARALLEL: Final = 4
BATCH_BYTES: Final = 4 << 20
"""A batch that travels: a few are under way at once, and what is lost with a connection is little."""


class RemoteBackend:
    """A :class:`~vecdb.client.backend.Backend` over the network; any number of threads may use it at once."""

    keeps_time: Final = True
    """Deadlines are gRPC's: nobody need watch the clock for a call."""
    remembers_schemas: Final = True
    batch_bytes: Final = BATCH_BYTES

    def __init__(self, target: Target, options: Options) -> None:
        secrets = credentials(target, options)
        hint = tls_hint(target.secure, options.cert_file is not None)
        self._addresses = len(target.addresses)
        self._wire = SyncWire([Link(open_sync(address, secrets, options, self._addresses > 1), address, hint)
                               for address in target.addresses * options.connections])
        self._links = Links(lambda address: Link(open_sync(address, secrets, options, True), address, hint),
                            lambda address: may_send(address, target, options)) if options.direct else None
        self._do = Procedures(options, target.label, self._addresses) if self._links is None \
            else DirectProcedures(self._links, options, target.label, self._addresses)
        self._admin = AdminProcedures(self._do.caller)
        self._shards = ShardsProcedures(self._do.caller)
        self._operations = OperationsProcedures(self._do.caller)
        self._gather = ThreadGather(self._query_now) if options.auto_batch else None
        self._pid = os.getpid()
        keep(self._wire)
        if self._links is not None:
            keep(self._links)

    def wait(self, seconds: float) -> None:
        """Wait until a server answers; raises Unavailable (why), or Unauthenticated."""
        drive(connect_steps(self._do.caller, time.monotonic() + seconds, self._addresses), self._wire)

    def create_collection(self, schema: CollectionSchema, call: Call | None = None, layout: Layout = ANYHOW) -> None:
        drive(self._do.create_collection(schema, call, layout), self._wire)

    def drop_collection(self, name: str, call: Call | None = None) -> None:
        drive(self._do.drop_collection(name, call), self._wire)

    def list_collections(self, call: Call | None = None) -> list[str]:
        return drive(self._do.list_collections(call), self._wire)

    def schema(self, name: str, call: Call | None = None) -> CollectionSchema:
        known = self._do.schemas.get(name)
        return known if known is not None else self.refresh_schema(name, call)

    def refresh_schema(self, name: str, call: Call | None = None) -> CollectionSchema:
        """As the server has it now."""
        return drive(self._do.refresh_schema(name, call), self._wire)

    def describe(self, name: str, call: Call | None = None) -> Description:
        return drive(self._do.describe(name, call), self._wire)

    def optimize(self, name: str, on_progress: Progress | None = None, call: Call | None = None) -> Description:
        return drive(self._do.optimize(name, on_progress, call), self._wire)

    def upsert(self, name: str, batch: UpsertBatch, call: Call | None = None) -> WriteResult:
        return drive(self._do.upsert(name, batch, call), self._wire)

    def upsert_all(self, name: str, batches: Iterator[Batch], on_applied: Applied, parallel: int | None = None,
                   call: Call | None = None) -> None:
        """Batches over several streams; ``on_applied(rows, result)`` for each, in their order."""
        bulk = BulkUpsert(self._do, name, batches, on_applied, parallel or PARALLEL, call)
        drive(bulk.steps(), self._wire)

    def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call | None = None) -> WriteResult:
        return drive(self._do.delete(name, command, call), self._wire)

    def update_metadata(self, name: str, command: UpdateMetadata, call: Call | None = None) -> WriteResult:
        return drive(self._do.update_metadata(name, command, call), self._wire)

    def query(self, name: str, request: QueryRequest, call: Call | None = None) -> QueryResult:
        if self._gather is not None:
            return self._gather.query(name, request, call)
        return self._query_now(name, request, call)

    def _query_now(self, name: str, request: QueryRequest, call: Call | None) -> QueryResult:
        return drive(self._do.query(name, request, call), self._wire)

    def fetch(self, name: str, ids: Sequence[RecordId], *, include_metadata: bool = True,
              include_vectors: bool = True, call: Call | None = None) -> list[Record]:
        return drive(self._do.fetch(name, ids, call, include_metadata=include_metadata,
                                    include_vectors=include_vectors), self._wire)

    def scan(self, name: str, request: ScanRequest, call: Call | None = None) -> ScanPage:
        return drive(self._do.scan(name, request, call), self._wire)

    def count(self, name: str, where: Node | None = None, call: Call | None = None) -> int:
        return drive(self._do.count(name, where, call), self._wire)

    # --- the server itself ------------------------------------------------------------------------

    def server(self, call: Call | None = None) -> dict[str, Any]:
        """``version api node_id uptime_s`` and what else the server says of itself."""
        return drive(self._admin.server(call), self._wire)

    def create_key(self, name: str, grants: Sequence[Grant], ttl_s: float = 0.0,
                   call: Call | None = None) -> NewKey:
        """Make an API key; the secret is told this once."""
        return drive(self._admin.create_key(name, grants, ttl_s, call), self._wire)

    def list_keys(self, call: Call | None = None) -> list[Key]:
        return drive(self._admin.list_keys(call), self._wire)

    def rotate_key(self, id: str, overlap_s: float = 0.0, call: Call | None = None) -> NewKey:
        """A new secret; the old one is good for ``overlap_s`` more seconds."""
        return drive(self._admin.rotate_key(id, overlap_s, call), self._wire)

    def revoke_key(self, id: str, call: Call | None = None) -> None:
        drive(self._admin.revoke_key(id, call), self._wire)

    def jobs(self, name: str | None = None, call: Call | None = None) -> list[dict[str, Any]]:
        return drive(self._admin.jobs(name, call), self._wire)

    def verify(self, name: str, call: Call | None = None) -> dict[str, Any]:
        return drive(self._admin.verify(name, call), self._wire)

    def shards(self, name: str | None = None, call: Call | None = None) -> list[ShardInfo]:
        """The shard of a collection, or of each, with its replicas."""
        return drive(self._shards.shards(name, call), self._wire)

    def shard_map(self, name: str, call: Call | None = None) -> ShardMap:
        return drive(self._shards.shard_map(name, call), self._wire)

    def verify_shard(self, name: str, deep: bool = False, call: Call | None = None) -> ShardVerification:
        return drive(self._shards.verify_shard(name, deep, call), self._wire)

    def transfer_leader(self, name: str, to: str | None = None, call: Call | None = None) -> None:
        drive(self._shards.transfer_leader(name, to, call), self._wire)

    def operate(self, method: str, *args: Any, call: Call | None = None, **named: Any) -> Any:
        """One of :class:`vecdb.ports.operations.Operations`, by its name."""
        return drive(getattr(self._operations, method)(*args, call=call, **named), self._wire)

    def close(self) -> None:
        """Let go of the connection; in a forked child that is the parent's to do."""
        if self._pid == os.getpid():
            self._wire.close()
            for link in () if self._links is None else tuple(self._links.all.values()):
                link.channel.close()
