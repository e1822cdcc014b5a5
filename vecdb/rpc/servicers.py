"""The methods of the public services: from message to node and back.

Each table is all there is to know of a service: what a method takes, which role it needs, on which collection.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Final

from vecdb.core.access import Role
from vecdb.core.calls import Call
from vecdb.core.errors import VecdbError
from vecdb.core.fingerprint import token_of
from vecdb.core.limits import MAX_BATCH_BYTES, MAX_FILTER_JSON_BYTES
from vecdb.core.query import Description
from vecdb.ports.node import Node
from vecdb.ports.observer import Observer
from vecdb.rpc.methods import SMALL_BYTES, Context, Method
from vecdb.rpc.templates import Templates
from vecdb.v1 import collections_pb2 as c
from vecdb.v1 import queries_pb2 as q
from vecdb.v1 import records_pb2 as r
from vecdb.wire import convert, status
from vecdb.wire.queries import DEFAULT_K

STREAM_WINDOW: Final = 256
"""Queries of one stream that may be under way: what a reader that stops reading can make the node hold."""
STREAM_ROWS: Final = 1_024
"""A quarter of the queue: a stream waits where single calls are refused."""
STREAM_BYTES: Final = 32 << 20
STREAM_WINDOWS: Final = (STREAM_WINDOW, STREAM_ROWS, STREAM_BYTES)
Weight = tuple[int, int, int]
METADATA_BYTES: Final = 512
QUICKER: Final = 8
"""Times that vectors are quicker to take apart than records: a few passes over a column."""
UPSERT_DEADLINE_S: Final = 60.0
PROGRESS_WAITING: Final = 64
LARGE_BYTES: Final = MAX_BATCH_BYTES + (16 << 20)
"""Records and queries: as many vectors as a batch may have, with ids and metadata beside them."""
IDS_BYTES: Final = 24 << 20
"""As many ids as a batch may have, each of the longest; a filter is shorter."""
FILTER_BYTES: Final = MAX_FILTER_JSON_BYTES + SMALL_BYTES


def _collection(message: Any) -> str:
    return str(message.collection)


def _name(message: Any) -> str:
    return str(message.name)


class CollectionsServicer:
    """Whole collections."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def methods(self) -> list[Method]:
        return [
            Method("Collections/Create", c.CreateCollectionRequest, Role.ADMIN, lambda message: message.schema.name,
                   audited=True, unary=self.create),
            Method("Collections/Drop", c.DropCollectionRequest, Role.ADMIN, _name, audited=True, unary=self.drop),
            Method("Collections/List", c.ListCollectionsRequest, Role.READ, unary=self.list),
            Method("Collections/Get", c.GetCollectionRequest, Role.READ, _name, unary=self.get),
            Method("Collections/Describe", c.DescribeCollectionRequest, Role.READ, _name, unary=self.describe),
            Method("Collections/Optimize", c.OptimizeCollectionRequest, Role.WRITE, _name,
                   server_stream=self.optimize),
        ]

    async def create(self, message: c.CreateCollectionRequest, context: Context) -> c.CreateCollectionReply:
        schema, layout = convert.schema_from_wire(message.schema), convert.layout_from_wire(message)
        await self._node.create_collection(schema, context.call, layout)
        return c.CreateCollectionReply()

    async def drop(self, message: c.DropCollectionRequest, context: Context) -> c.DropCollectionReply:
        await self._node.drop_collection(message.name, context.call)
        return c.DropCollectionReply()

    async def list(self, message: c.ListCollectionsRequest, context: Context) -> c.ListCollectionsReply:
        names = await self._node.list_collections(context.call)
        return c.ListCollectionsReply(names=context.principal.visible(names))

    async def get(self, message: c.GetCollectionRequest, context: Context) -> c.GetCollectionReply:
        schema = await self._node.schema(message.name, context.call)
        return c.GetCollectionReply(schema=convert.schema_to_wire(schema))

    async def describe(self, message: c.DescribeCollectionRequest, context: Context) -> c.DescribeCollectionReply:
        convert.read_from_wire(message, context.call)
        return convert.description_to_wire(await self._node.describe(message.name, context.call))

    async def optimize(self, message: c.OptimizeCollectionRequest, context: Context
                       ) -> AsyncIterator[c.OptimizeCollectionReply]:
        convert.read_from_wire(message, context.call)
        told: asyncio.Queue[tuple[str, int, int] | None] = asyncio.Queue()

        def tell(stage: str, done: int, total: int) -> None:
            if told.qsize() < PROGRESS_WAITING:  # progress is for looking at; what nobody reads in time is left out
                told.put_nowait((stage, done, total))

        work: asyncio.Task[Description] = asyncio.create_task(self._node.optimize(message.name, context.call, tell))
        work.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (news := await told.get()) is not None:
                stage, done, total = news
                yield c.OptimizeCollectionReply(progress=c.OptimizeCollectionReply.Progress(
                    stage=stage, done=done, total=total))
            yield c.OptimizeCollectionReply(done=convert.description_to_wire(await work))
        finally:
            work.cancel()


class RecordsServicer:
    """Records of a collection."""

    def __init__(self, node: Node, observer: Observer) -> None:
        self._node = node
        self._observer = observer

    def methods(self) -> list[Method]:
        return [
            Method("Records/Upsert", r.UpsertRequest, Role.WRITE, _collection, most_bytes=LARGE_BYTES,
                   unary=self.upsert),
            Method("Records/UpsertStream", r.UpsertRequest, Role.WRITE, _collection, most_bytes=LARGE_BYTES,
                   bidi=self.upsert_stream),
            Method("Records/Delete", r.DeleteRequest, Role.WRITE, _collection, most_bytes=IDS_BYTES,
                   unary=self.delete),
            Method("Records/UpdateMetadata", r.UpdateMetadataRequest, Role.WRITE, _collection, most_bytes=LARGE_BYTES,
                   unary=self.update),
            Method("Records/Fetch", r.FetchRequest, Role.READ, _collection, most_bytes=IDS_BYTES,
                   unary=self.fetch),
            Method("Records/Scan", r.ScanRequest, Role.READ, _collection, most_bytes=FILTER_BYTES,
                   unary=self.scan),
            Method("Records/Count", r.CountRequest, Role.READ, _collection, most_bytes=FILTER_BYTES,
                   unary=self.count),
        ]

    async def upsert(self, message: r.UpsertRequest, context: Context) -> r.UpsertReply:
        schema = await self._node.schema(message.collection, context.call)
        size = message.ByteSize()
        batch = await context.apart(size, convert.upsert_from_wire, message, schema)
        context.call.token = await context.apart(size, token_of, message.idempotency_key, batch)
        result = await self._node.upsert(message.collection, batch, context.call)
        return r.UpsertReply(result=convert.write_result_to_wire(result, context.call.handed_on), tag=message.tag)

    async def upsert_stream(self, messages: AsyncIterator[r.UpsertRequest], context: Context
                            ) -> AsyncIterator[r.UpsertReply]:
        """One batch after the other: gRPC's window holds back a sender that is quicker than the disk."""
        async with aclosing(messages) as incoming:  # type: ignore[type-var]
            async for message in incoming:
                call = _call_of(context, UPSERT_DEADLINE_S)
                mine = Context(call, context.principal, context.peer, context.workers)
                try:
                    with mine.counted(self._observer, "Records/UpsertStream", message.collection, message.ByteSize()):
                        reply = await self.upsert(message, mine)
                except VecdbError as error:
                    reply = r.UpsertReply(tag=message.tag, error=status.to_error(error, call.request_id))
                yield reply

    async def delete(self, message: r.DeleteRequest, context: Context) -> r.DeleteReply:
        size = message.ByteSize()
        command = await context.apart(size, convert.delete_from_wire, message)
        context.call.token = await context.apart(size, token_of, message.idempotency_key, command)
        result = await self._node.delete(message.collection, command, context.call)
        return r.DeleteReply(result=convert.write_result_to_wire(result, context.call.handed_on))

    async def update(self, message: r.UpdateMetadataRequest, context: Context) -> r.UpdateMetadataReply:
        schema = await self._node.schema(message.collection, context.call)
        size = message.ByteSize()
        command = await context.apart(size, convert.update_from_wire, message, schema)
        context.call.token = await context.apart(size, token_of, message.idempotency_key, command)
        result = await self._node.update_metadata(message.collection, command, context.call)
        return r.UpdateMetadataReply(result=convert.write_result_to_wire(result, context.call.handed_on))

    async def fetch(self, message: r.FetchRequest, context: Context) -> r.FetchReply:
        convert.read_from_wire(message, context.call)
        schema = await self._node.schema(message.collection, context.call)
        fetch = await context.apart(message.ByteSize(), convert.fetch_from_wire, message, schema)
        records = await self._node.fetch(message.collection, fetch.ids, context.call,
                                         include_metadata=fetch.include_metadata,
                                         include_vectors=fetch.include_vectors)
        return await context.apart(512 * len(records), convert.records_to_wire, records)

    async def scan(self, message: r.ScanRequest, context: Context) -> r.ScanReply:
        convert.read_from_wire(message, context.call)
        schema = await self._node.schema(message.collection, context.call)
        request = await context.apart(message.ByteSize(), convert.scan_from_wire, message, schema)
        page = await self._node.scan(message.collection, request, context.call)
        return await context.apart(512 * len(page.ids), convert.page_to_wire, page)

    async def count(self, message: r.CountRequest, context: Context) -> r.CountReply:
        convert.read_from_wire(message, context.call)
        where = await context.apart(message.ByteSize(), convert.count_from_wire, message)
        return convert.counted_to_wire(await self._node.count(message.collection, where, context.call))


class QueriesServicer:
    """Nearest neighbours; ``deadline_s``: of a query in a stream, which has none of its own."""

    def __init__(self, node: Node, observer: Observer, deadline_s: float,
                 on_fault: Callable[[BaseException, str, str], None] = lambda error, request_id, method: None) -> None:
        self._node = node
        self._observer = observer
        self._on_fault = on_fault
        self._deadline_s = deadline_s
        # A node that has no short way is asked no more.
        self._templates = Templates(getattr(node, "express", lambda name, request, normalized: None))

    def methods(self) -> list[Method]:
        return [
            Method("Queries/Query", q.QueryRequest, Role.READ, _collection, most_bytes=LARGE_BYTES,
                   unary=self.query, templates=self._templates),
            Method("Queries/QueryStream", q.QueryRequest, Role.READ, _collection, most_bytes=LARGE_BYTES,
                   bidi=self.query_stream),
        ]

    async def query(self, message: q.QueryRequest, context: Context) -> q.QueryReply:
        if message.HasField("read"):
            convert.read_from_wire(message, context.call)
        schema = await self._node.schema(message.collection, context.call)
        request = await context.apart(context.size // QUICKER, convert.query_from_wire, message, schema)
        result = await self._node.query(message.collection, request, context.call)
        if context.raw:
            self._templates.answered(context.raw, message, request)
        size = 8 * request.k * len(request.vectors) * (64 if request.include_metadata or request.include_vectors else 1)
        return await context.apart(size, convert.result_to_wire, result, message.tag)

    async def _answer(self, message: q.QueryRequest, context: Context) -> q.QueryReply:
        try:
            with context.counted(self._observer, "Queries/QueryStream", message.collection, context.size):
                return await self.query(message, context)
        except Exception as error:
            if not isinstance(error, VecdbError):
                self._on_fault(error, context.call.request_id, "Queries/QueryStream")
            return q.QueryReply(tag=message.tag, error=status.to_error(error, context.call.request_id))

    async def query_stream(self, messages: AsyncIterator[q.QueryRequest], context: Context
                           ) -> AsyncIterator[q.QueryReply]:
        """Answers as they come; no more is read while :data:`STREAM_WINDOW` queries are under way or unsent.

        Nor while the rows of these pass :data:`STREAM_ROWS`, or what they may hold :data:`STREAM_BYTES`.
        """
        replies: asyncio.Queue[tuple[q.QueryReply, Weight] | None] = asyncio.Queue()
        window = _Window()
        under_way: set[asyncio.Task[None]] = set()

        async def answer(message: q.QueryRequest, size: int, weight: Weight) -> None:
            call = _call_of(context, self._deadline_s)
            reply = await self._answer(message, Context(call, context.principal, context.peer, context.workers,
                                                        size=size))
            replies.put_nowait((reply, weight))

        async def read() -> None:
            try:
                async for message in messages:
                    size = message.ByteSize()
                    weight = _weight(message, size)
                    await window.enter(weight)
                    task = asyncio.create_task(answer(message, size, weight))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                if under_way:
                    await asyncio.wait(under_way)
            finally:
                replies.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (ready := await replies.get()) is not None:
                yield ready[0]
                window.leave(ready[1])
            await reader
        finally:
            for task in (reader, *under_way):
                task.cancel()
            await asyncio.gather(reader, *under_way, return_exceptions=True)


class _Window:
    """What one stream may have under way: messages, their queries, and the bytes that these and their answers take."""

    def __init__(self) -> None:
        self._held = (0, 0, 0)
        self._room = asyncio.Event()

    async def enter(self, weight: Weight) -> None:
        while self._held[0] and any(held + more > most for held, more, most in
                                    zip(self._held, weight, STREAM_WINDOWS, strict=True)):
            self._room.clear()
            await self._room.wait()
        self._held = (self._held[0] + weight[0], self._held[1] + weight[1], self._held[2] + weight[2])

    def leave(self, weight: Weight) -> None:
        self._held = (self._held[0] - weight[0], self._held[1] - weight[1], self._held[2] - weight[2])
        self._room.set()


def _weight(message: q.QueryRequest, size: int) -> Weight:
    """One message, its queries, and bytes: its own ``size`` and, at most about, those of its answer."""
    rows = message.vectors.rows
    items = message.vectors.items if message.with_vectors else 0
    return 1, rows, size + rows * (message.k or DEFAULT_K) * (
        16 + 4 * items + METADATA_BYTES * message.with_metadata)


def _call_of(context: Context, deadline_s: float) -> Call:
    """A call of its own for a message of a stream: one that is ended does not end the others."""
    outer = context.call
    deadline = time.monotonic() + deadline_s
    if outer.deadline is not None:
        deadline = min(deadline, outer.deadline)
    return Call(deadline, None, outer.request_id, outer.principal, elsewhere=outer.elsewhere)
