"""Streams as things that a procedure waits for: opened, written, read and let go.  See :mod:`~vecdb.client.remote.io`.
"""

import asyncio
from queue import SimpleQueue
from typing import Any, Final

import grpc

from vecdb.client.remote.failures import untyped
from vecdb.client.remote.io import Link, Linked, Unary, Wire

EOF: Final[Any] = getattr(grpc.aio, "EOF")  # noqa: B009  # the stubs do not know it


class Stream:
    """An open stream; ``cancel`` is safe at any time and from any thread."""

    __slots__ = ("call", "link", "outgoing")

    def __init__(self, call: Any, link: Link, outgoing: "SimpleQueue[bytes | None] | None") -> None:
        self.call = call
        self.link = link
        self.outgoing = outgoing

    def cancel(self) -> None:
        if self.outgoing is not None:
            self.outgoing.put(None)  # lets gRPC's thread that reads it end
        self.call.cancel()


class Open(Unary):
    """Open a stream: with a request (``payload``) or, for a bidirectional one, without; answers with a Stream."""

    __slots__ = ()

    def run(self, wire: Linked) -> Any:
        link = wire.link(self.route)
        outgoing: SimpleQueue[bytes | None] | None = None
        first: Any = self.payload
        if self.rpc.kind == "stream_stream":
            outgoing = SimpleQueue()
            first = iter(outgoing.get, None)
        try:
            return Stream(link.method(self.rpc)(first, self.timeout, self.metadata), link, outgoing)
        except ValueError as error:
            raise untyped(1, str(error), link.label) from None

    async def arun(self, wire: Linked) -> Any:
        link = wire.link(self.route)
        given = () if self.rpc.kind == "stream_stream" else (self.payload,)
        try:
            return Stream(link.method(self.rpc)(*given, timeout=self.timeout, metadata=self.metadata), link, None)
        except grpc.aio.UsageError as error:
            raise untyped(1, str(error), link.label) from None


class Write:
    """Send a message on a stream; None says that no more will come."""

    __slots__ = ("payload", "stream")

    def __init__(self, stream: Stream, payload: bytes | None) -> None:
        self.stream = stream
        self.payload = payload

    def run(self, wire: Wire) -> None:
        assert self.stream.outgoing is not None
        self.stream.outgoing.put(self.payload)

    async def arun(self, wire: Wire) -> None:
        call = self.stream.call
        try:
            if self.payload is None:
                await call.done_writing()
            else:
                await call.write(self.payload)
        except grpc.aio.AioRpcError as error:
            raise self.stream.link.failed(error) from None
        except asyncio.InvalidStateError:  # the stream has ended: its reader is told why
            return
        except asyncio.CancelledError as error:
            raise self.stream.link.cut(error) from None


class Read:
    """The next message of a stream, or None at its good end."""

    __slots__ = ("stream",)

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def run(self, wire: Wire) -> bytes | None:
        try:
            reply: bytes | None = next(self.stream.call, None)
        except grpc.RpcError as error:
            raise self.stream.link.failed(error) from None
        self.stream.link.answered()
        return reply

    async def arun(self, wire: Wire) -> bytes | None:
        try:
            reply = await self.stream.call.read()
        except grpc.aio.AioRpcError as error:
            raise self.stream.link.failed(error) from None
        except asyncio.CancelledError as error:
            raise self.stream.link.cut(error) from None
        self.stream.link.answered()
        return None if reply is EOF else reply
