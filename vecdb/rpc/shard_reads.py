"""Reads of several shards of a node in one call, on the peer port: what is asked is a message of the public services
that names the shards, what comes is one answer for all of them, or one for each, and why others have none.

**What an answer comes to** is known where it is made, as metadata may be of any size: where one about several queries
is above :data:`REPLY_BYTES` its shards fail, with how many bytes it has, and who asked asks for some of the queries at
a time.  A node of an earlier release asks those shards one by one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, Protocol, TypeVar

from google.protobuf.message import Message

from vecdb.core.access import Role
from vecdb.core.calls import Call
from vecdb.core.errors import InvalidArgument, Unavailable, VecdbError
from vecdb.core.filters.tree import Node as FilterNode
from vecdb.core.ids import RecordId
from vecdb.core.query import QueryRequest, QueryResult
from vecdb.core.records import Record
from vecdb.core.schema import CollectionSchema
from vecdb.internal.v1 import shards_pb2 as pb
from vecdb.ports.peers import Replicas, Several
from vecdb.rpc.methods import Context, Method
from vecdb.rpc.servicers import LARGE_BYTES, QUICKER
from vecdb.v1 import queries_pb2 as q
from vecdb.v1 import records_pb2 as r
from vecdb.wire import convert, status

M = TypeVar("M", bound=Message)
Asked = q.QueryRequest | r.CountRequest | r.FetchRequest

READ: Final = "Shards/Read"
REPLY_BYTES: Final = 16 << 20
"""Of one answer about several queries."""
LONG: Final = "reply_bytes"
"""The field of an error that says what an answer would come to."""


class ReadReplicas(Replicas, Protocol):
    """This node's own."""

    def schema_of(self, name: str) -> CollectionSchema:
        """Of a collection, as this node knows it; ``Unavailable`` where it does not."""
        ...


class ReadsServicer:
    """``Shards/Read`` over this node's replicas."""

    def __init__(self, replicas: ReadReplicas) -> None:
        self._replicas = replicas

    def methods(self) -> list[Method]:
        return [Method(READ, pb.ReadRequest, Role.READ, lambda message: str(_asked(message).collection),
                       most_bytes=LARGE_BYTES, unary=self.read)]

    async def read(self, message: pb.ReadRequest, context: Context) -> pb.ReadReply:
        asked, call = _asked(message), context.call
        convert.read_from_wire(asked, call)
        if not call.shards:
            raise InvalidArgument("shards", "are not named", got=0, limit="1 or more")
        if isinstance(asked, q.QueryRequest):
            return await self._query(asked, context)
        if isinstance(asked, r.FetchRequest):
            return await self._fetch(asked, context)
        where = await context.apart(context.size, convert.count_from_wire, asked)
        several = await self._replicas.count_shards(asked.collection, where, call)
        reply = _reply(several.failed, call)
        for counted in several.found:
            reply.count.CopyFrom(convert.counted_to_wire(counted))
        return reply

    async def _query(self, asked: q.QueryRequest, context: Context) -> pb.ReadReply:
        schema = self._replicas.schema_of(asked.collection)
        request = await context.apart(context.size // QUICKER, convert.query_from_wire, asked, schema)
        several = await self._replicas.query_shards(asked.collection, request, context.call)
        reply = _reply(several.failed, context.call)
        each = 8 * (64 if request.include_metadata or request.include_vectors else 1)
        for result in several.found:
            answer = await context.apart(each * request.k * len(request.vectors), convert.result_to_wire, result)
            size = answer.ByteSize()
            if size > REPLY_BYTES and len(request.vectors) > 1:
                return _reply(dict.fromkeys(context.call.shards, _too_long(size)), context.call)
            reply.query.CopyFrom(answer)
        return reply

    async def _fetch(self, asked: r.FetchRequest, context: Context) -> pb.ReadReply:
        schema = self._replicas.schema_of(asked.collection)
        fetch = await context.apart(context.size, convert.fetch_from_wire, asked, schema)
        several = await self._replicas.fetch_shards(asked.collection, fetch.ids, context.call,
                                                    include_metadata=fetch.include_metadata,
                                                    include_vectors=fetch.include_vectors)
        reply = _reply(several.failed, context.call)
        for records in several.found:
            reply.fetch.append(await context.apart(512 * len(records), convert.records_to_wire, records))
        return reply


def _asked(message: pb.ReadRequest) -> Asked:
    what = message.WhichOneof("what")
    if what is None:
        raise InvalidArgument("what", "is not said", got="nothing", limit="query, count or fetch")
    asked: Asked = getattr(message, what)
    return asked


def _size(error: VecdbError) -> int:
    size = error.fields.get(LONG, 0)
    return size if isinstance(size, int) else 0


def _joined(parts: Sequence[Several[QueryResult]], shards: Sequence[int]) -> Several[QueryResult]:
    """The answers to some queries each as those to all; of no shard where not all parts are of the same ones."""
    failed = {group: error for part in parts for group, error in part.failed.items()}
    if any(part.failed.keys() != failed.keys() for part in parts):
        error = next(iter(failed.values()))
        return Several([], {group: failed.get(group, error) for group in shards})
    found = [one for part in parts for one in part.found]
    if not found:
        return Several([], failed)
    missing = dict.fromkeys(one for result in found for one in result.missing)
    return Several([replace(found[0], matches=[one for result in found for one in result.matches],
                            missing=tuple(missing))], failed)


def _reply(failed: Mapping[int, VecdbError], call: Call) -> pb.ReadReply:
    return pb.ReadReply(failed=[pb.ReadFailure(shard=group, error=status.to_error(error, call.request_id))
                                for group, error in failed.items()])


def _too_long(size: int) -> Unavailable:
    return Unavailable(f"the answer to these queries has {size} bytes: ask fewer at a time", limit=REPLY_BYTES,
                       **{LONG: size})


class RemoteShardReads(ABC):
    """The part of :class:`~vecdb.ports.peers.Replicas` that reads records, over :meth:`call`."""

    @abstractmethod
    async def call(self, method: str, message: Message | bytes, kind: type[M], call: Call, *,
                   write: bool = False) -> M:
        """Any internal method of the node."""

    async def _read(self, message: pb.ReadRequest, call: Call) -> tuple[pb.ReadReply, dict[int, VecdbError]]:
        reply = await self.call(READ, message, pb.ReadReply, call)
        return reply, {one.shard: status.from_error(one.error) for one in reply.failed}

    async def query_shards(self, name: str, request: QueryRequest, call: Call) -> Several[QueryResult]:
        message = pb.ReadRequest(query=convert.query_to_wire(name, request))
        convert.put_read(message.query, call)
        reply, failed = await self._read(message, call)
        rows = len(request.vectors)
        size = max((_size(error) for error in failed.values()), default=0)
        if not size or rows < 2:
            return Several([convert.answer_from_wire(reply.query, request)] if reply.HasField("query") else [], failed)
        parts = min(rows, 1 + size // REPLY_BYTES)
        edges = [rows * at // parts for at in range(parts + 1)]
        return _joined([await self.query_shards(name, replace(request, vectors=request.vectors[low:high]), call)
                       for low, high in pairwise(edges)], call.shards)

    async def count_shards(self, name: str, where: FilterNode | None, call: Call) -> Several[int]:
        message = pb.ReadRequest(count=convert.count_to_wire(name, where))
        convert.put_read(message.count, call)
        reply, failed = await self._read(message, call)
        return Several([convert.counted_from_wire(reply.count)] if reply.HasField("count") else [], failed)

    async def fetch_shards(self, name: str, ids: Sequence[RecordId], call: Call, *, include_metadata: bool = True,
                           include_vectors: bool = True) -> Several[list[Record]]:
        message = pb.ReadRequest(fetch=convert.fetch_to_wire(name, ids, include_metadata, include_vectors))
        convert.put_read(message.fetch, call)
        reply, failed = await self._read(message, call)
        return Several([convert.records_from_wire(one) for one in reply.fetch], failed)
