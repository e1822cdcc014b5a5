"""The Peer service: queries from processes of our own, many in one message.

A front process ends its clients' connections and hands their queries on; on this side each is a call like any other
(identified, limited, observed), and the batcher runs those that came together as one.  Answers that are ready when a
message is sent go together too.  The socket is in a folder that only this user may enter.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from google.protobuf.message import Message

from vecdb.core.access import EVERYTHING, Principal, Role
from vecdb.core.calls import Call
from vecdb.core.errors import FormatMismatch, InvalidArgument
from vecdb.internal.v1 import peer_pb2 as pb
from vecdb.rpc.door import Guards
from vecdb.rpc.edge import Edge
from vecdb.rpc.methods import Context, Method
from vecdb.v1 import queries_pb2
from vecdb.wire import status

PEER_PREFIX: Final = "/vecdb.internal.v1."
PROTOCOL: Final = 1
MESSAGE_BYTES: Final = 1 << 30
"""Of many queries, each of which was measured where it came in."""
UNDER_WAY: Final = 16_384
"""Queries of one peer at once, and answers it has not taken; beyond it no more is read of the stream."""
ANSWERS_PER_MESSAGE: Final = 256
BYTES_PER_MESSAGE: Final = 1 << 20
PEER: Final = Principal("", "peer", EVERYTHING)
NOBODY: Final = Principal("", "peer", ())


class _Trusting:
    """Who reaches the engine's socket is one of our processes; whom it speaks for is checked query by query."""

    def check(self, metadata: Any, peer: str, certificate: str = "") -> Principal:
        return PEER

    def take(self, principal: Principal, cost: float = 1.0) -> None:
        return None

    def acquire(self, count: int) -> None:
        return None

    def release(self, count: int) -> None:
        return None


def peer_guards(guards: Guards) -> Guards:
    """For the edge of the Peer service: a stream of many callers' queries is not refused for one of them."""
    trusting = _Trusting()
    return replace(guards, authenticator=trusting, rates=trusting, budget=trusting)


class PeerServicer:
    """``edge`` serves the public methods; ``node_id`` is told to peers, which must be of the same ``cluster_id``."""

    def __init__(self, edge: Edge, node_id: str, version: str, cluster_id: str = "") -> None:
        self._edge = edge
        self._about = pb.HelloReply(cluster_id=cluster_id, node_id=node_id, version=version, protocol=PROTOCOL)

    def methods(self) -> list[Method]:
        return [Method("Peer/Hello", pb.HelloRequest, Role.READ, unary=self.hello),
                Method("Peer/Queries", pb.PeerQueries, Role.READ, most_bytes=MESSAGE_BYTES, bidi=self.queries)]

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
    """One stream's queries: those under way, and answers that wait for the stream to take them."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ready: deque[pb.PeerAnswer] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._over = False

    async def read(self, messages: AsyncIterator[pb.PeerQueries]) -> None:
        loop = asyncio.get_running_loop()
        try:
            async for message in messages:
                for query in message.queries:
                    self._tasks[query.tag] = loop.create_task(self._answer(query))
                for tag in message.cancelled:
                    task = self._tasks.get(tag)
                    if task is not None:
                        task.cancel()
                while len(self._tasks) + len(self._ready) > UNDER_WAY:
                    self._room.clear()
                    await self._room.wait()
            while self._tasks:
                await asyncio.wait(self._tasks.values())
        finally:
            self._over = True
            self._news.set()

    async def _answer(self, query: pb.PeerQuery) -> None:
        held = Context(Call(request_id=query.request_id), NOBODY, query.peer, self._edge.workers)
        metadata = [(name, value) for name, value in (("authorization", query.authorization),
                                                      ("traceparent", query.traceparent)) if value]
        reply: Message
        try:
            reply = await self._edge.serve("Queries/Query", query.query, held, query.remaining_s or None, metadata,
                                           query.certificate)
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
                yield pb.PeerAnswers(answers=self._some())
                self._room.set()
            if self._over and not self._ready:
                return

    def _some(self) -> list[pb.PeerAnswer]:
        """What is ready, up to a message's worth; an answer alone may be larger."""
        some, size = [self._ready.popleft()], 0
        while self._ready and len(some) < ANSWERS_PER_MESSAGE:
            size += some[-1].ByteSize()
            if size + self._ready[0].ByteSize() > BYTES_PER_MESSAGE:
                break
            some.append(self._ready.popleft())
        return some

    async def end(self, reader: "asyncio.Task[None]") -> None:
        tasks: list[asyncio.Task[Any]] = [reader, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
