"""Queries on their way from a front process to the engine's: gathered into one stream, answered as they are ready.

A message costs both processes some 100 microseconds of gRPC in Python, a query in it 5 to 10, so messages should be few
and full.  What came in one turn of the loop goes together; and once :data:`AHEAD` messages went without any answer,
the next waits for one (or :data:`PAUSE_S`) and takes along what came meanwhile: Nagle's algorithm, with one message
more.  A query that is alone never waits, and under load messages are as full as answers are.
"""

import asyncio
import itertools
from contextlib import suppress
from typing import Any, Final

import grpc

from vecdb.core.errors import Unavailable
from vecdb.internal.v1 import peer_pb2 as pb
from vecdb.ports.tell import Tell, tell_nobody
from vecdb.rpc.peer import PEER_PREFIX, PROTOCOL
from vecdb.v1 import queries_pb2

BACKOFF_S: Final = (0.02, 1.0)
HELLO_S: Final = 10.0
AHEAD: Final = 2
PAUSE_S: Final = 1e-3
QUERIES_PER_MESSAGE: Final = 256
"""Each is shorter than :data:`vecdb.rpc.edge.HEAVY_BYTES`: some megabytes at most, so that none holds the loop long."""
_EOF: Final[Any] = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs


class Exchange:
    """Belongs to one event loop.  ``channel``: a ``grpc.aio`` channel to the engine's socket.

    A broken stream fails what waits with Unavailable, and another is opened.
    """

    def __init__(self, channel: Any, node_id: str, tell: Tell = tell_nobody) -> None:
        self._channel = channel
        self._node_id = node_id
        self._tell = tell
        self._tags = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[queries_pb2.QueryReply]] = {}
        self._pending: dict[int, pb.PeerQuery] = {}
        self._cancelled: list[int] = []
        self._news = asyncio.Event()
        self._heard = asyncio.Event()
        self._unheard = 0
        self._task = asyncio.create_task(self._run())

    async def ask(self, query: pb.PeerQuery) -> queries_pb2.QueryReply:
        """The reply, whose ``error`` may be set; raises Unavailable when the engine cannot be reached."""
        query.tag = tag = next(self._tags)
        future: asyncio.Future[queries_pb2.QueryReply] = asyncio.get_running_loop().create_future()
        self._waiting[tag] = future
        self._pending[tag] = query
        self._news.set()
        try:
            return await future
        except asyncio.CancelledError:
            if self._pending.pop(tag, None) is None:  # it is there, or on its way
                self._cancelled.append(tag)
                self._news.set()
            raise
        finally:
            self._waiting.pop(tag, None)

    async def _run(self) -> None:
        pause_s = BACKOFF_S[0]
        while True:
            try:
                hello = pb.HelloRequest(node_id=self._node_id, protocol=PROTOCOL)
                await self._channel.unary_unary(PEER_PREFIX + "Peer/Hello")(hello.SerializeToString(), timeout=HELLO_S)
                stream = self._channel.stream_stream(PEER_PREFIX + "Peer/Queries")()
                pause_s = BACKOFF_S[0]
                await self._converse(stream)
                self._fail("the engine's process went away")
            except Exception as error:  # whatever it was, queries must not wait for a task that has ended
                self._tell("warning", "exchange_broken", error=_words(error))
                self._fail("the engine's process cannot be reached")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, BACKOFF_S[1])

    async def _converse(self, stream: Any) -> None:
        self._unheard = 0
        sender = asyncio.create_task(self._send(stream))
        try:
            while (data := await stream.read()) is not _EOF:
                self._unheard = 0
                self._heard.set()
                for answer in pb.PeerAnswers.FromString(data).answers:
                    future = self._waiting.get(answer.tag)
                    if future is not None and not future.done():
                        future.set_result(answer.reply)
        finally:
            sender.cancel()
            stream.cancel()
            with suppress(Exception, asyncio.CancelledError):
                await sender

    async def _send(self, stream: Any) -> None:
        try:
            while True:
                await self._news.wait()
                if self._unheard >= AHEAD:
                    await self._pause()
                self._news.clear()
                if not self._pending and not self._cancelled:
                    continue
                self._unheard += 1
                await stream.write(self._gathered().SerializeToString())
        except Exception:
            stream.cancel()  # or the reader would wait for answers to what was never sent
            raise

    async def _pause(self) -> None:
        """Until an answer comes, but not for long: the one that is worked on may be a slow one."""
        self._heard.clear()
        timer = asyncio.get_running_loop().call_later(PAUSE_S, self._heard.set)
        await self._heard.wait()
        timer.cancel()

    def _gathered(self) -> pb.PeerQueries:
        if len(self._pending) <= QUERIES_PER_MESSAGE:
            queries, self._pending = self._pending, {}
        else:
            queries = {tag: self._pending.pop(tag) for tag in list(itertools.islice(self._pending,
                                                                                    QUERIES_PER_MESSAGE))}
            self._news.set()
        cancelled, self._cancelled = self._cancelled, []
        return pb.PeerQueries(queries=queries.values(), cancelled=cancelled)

    def _fail(self, why: str) -> None:
        self._pending.clear()
        self._cancelled.clear()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Unavailable(why, retry_after_s=0.2))

    async def close(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._fail("this process ends")


def _words(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"[:300]
    return f"{type(error).__name__}: {error}"[:300]
