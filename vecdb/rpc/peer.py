"""The Peer service: queries from processes of our own, many in one message.

A front process ends its clients' connections and hands their queries on; on this side each is a call like any other
(identified, limited, observed), and the batcher runs those that came together as one.  Answers that are ready when a
message is sent go together too.  The socket is in a folder that only this user may enter.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

from google.protobuf.message import Message

from vecdb.core.access import Principal, Role
from vecdb.core.calls import Call
from vecdb.core.errors import FormatMismatch, InvalidArgument
from vecdb.internal.v1 import peer_pb2 as pb
from vecdb.rpc.edge import Context, Edge, Method
from vecdb.v1 import queries_pb2
from vecdb.wire import status

PEER_PREFIX: Final = "/vecdb.internal.v1."
PROTOCOL: Final = 1
UNDER_WAY: Final = 16_384
"""Queries of one peer at once; beyond it no more is read of the stream."""
ANSWERS_PER_MESSAGE: Final = 256
NOBODY: Final = Principal("", "peer", ())


class PeerServicer:
    """``edge`` serves the public methods; ``node_id`` is told to peers, which must be of the same ``cluster_id``."""

    def __init__(self, edge: Edge, node_id: str, version: str, cluster_id: str = "") -> None:
        self._edge = edge
        self._about = pb.HelloReply(cluster_id=cluster_id, node_id=node_id, version=version, protocol=PROTOCOL)

    def methods(self) -> list[Method]:
        return [Method("Peer/Hello", pb.HelloRequest, Role.READ, unary=self.hello),
                Method("Peer/Queries", pb.PeerQueries, Role.READ, bidi=self.queries)]

    async def hello(self, message: pb.HelloRequest, context: Context) -> pb.HelloReply:
        if message.protocol != PROTOCOL:
            raise FormatMismatch(f"peer {message.node_id!r:.80} speaks protocol {message.protocol}, this node "
                                 f"{PROTOCOL}", got=message.protocol, limit=PROTOCOL)
        if message.cluster_id != self._about.cluster_id:
            raise InvalidArgument("cluster_id", "this node is of another cluster", got=message.cluster_id[:80],
                                  limit="the same cluster")
        return self._about

    async def queries(self, messages: AsyncIterator[pb.PeerQueries], context: Context
                      ) -> AsyncIterator[pb.PeerAnswers]:
        exchange = _Exchange(self._edge)
        reader = asyncio.create_task(exchange.read(messages))
        try:
            async for answers in exchange.answers():
                yield answers
            await reader
        finally:
            await exchange.end(reader)


class _Exchange:
    """One stream's queries under way."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ready: list[pb.PeerAnswer] = []
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._over = False

    async def read(self, messages: AsyncIterator[pb.PeerQueries]) -> None:
        try:
            async for message in messages:
                for tag in message.cancelled:
                    task = self._tasks.get(tag)
                    if task is not None:
                        task.cancel()
                for query in message.queries:
                    self._tasks[query.tag] = asyncio.create_task(self._answer(query))
                while len(self._tasks) > UNDER_WAY:
                    self._room.clear()
                    await self._room.wait()
            while self._tasks:
                await asyncio.wait(self._tasks.values())
        finally:
            self._over = True
            self._news.set()

    async def _answer(self, query: pb.PeerQuery) -> None:
        left = query.remaining_s
        call = Call(time.monotonic() + left if left else None, None, query.request_id)
        held = Context(call, NOBODY, query.peer, self._edge.workers)
        metadata = [(name, value) for name, value in (("authorization", query.authorization),
                                                      ("traceparent", query.traceparent)) if value]
        reply: Message
        try:
            reply = await self._edge.serve("Queries/Query", query.query, held, metadata, query.certificate)
        except Exception as error:
            reply = queries_pb2.QueryReply(error=status.to_error(error, query.request_id))
        finally:
            self._tasks.pop(query.tag, None)
            self._room.set()
        self._ready.append(pb.PeerAnswer(tag=query.tag, reply=reply))  # type: ignore[arg-type]
        self._news.set()

    async def answers(self) -> AsyncIterator[pb.PeerAnswers]:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._ready:
                some, self._ready = self._ready[:ANSWERS_PER_MESSAGE], self._ready[ANSWERS_PER_MESSAGE:]
                yield pb.PeerAnswers(answers=some)
            if self._over and not self._ready:
                return

    async def end(self, reader: "asyncio.Task[None]") -> None:
        tasks: list[asyncio.Task[Any]] = [reader, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
