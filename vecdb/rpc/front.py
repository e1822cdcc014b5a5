"""A front process: it ends clients' connections and hands their calls to the engine's process.

gRPC in Python costs some 200 microseconds of one core a call, and one process has one core for it; the kernels need
none of it.  So a node with many cores runs several of these on one port (the kernel spreads connections), each
before the same engine.  Queries are gathered: one message at a time goes to the engine with all that came meanwhile.
Every other call is handed on as it is, byte for byte, unparsed.  Who calls is checked where the keys are: a front
hands on what the client sent, and adds its address and the name in its certificate.
"""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from vecdb.core.errors import InvalidArgument, Unavailable, VecdbError
from vecdb.internal.v1 import peer_pb2 as pb
from vecdb.rpc.edge import PREFIX, RELAYED_CERTIFICATE, RELAYED_PEER, certificate_of
from vecdb.rpc.peer import PEER_PREFIX, PROTOCOL
from vecdb.v1 import admin_pb2, collections_pb2, queries_pb2, records_pb2
from vecdb.wire import status

HANDED_ON: Final = ("authorization", "x-api-key", "x-request-id", "traceparent", "tracestate")
BACKOFF_S: Final = (0.02, 1.0)
MODULES: Final = {"Collections": collections_pb2, "Records": records_pb2, "Queries": queries_pb2, "Admin": admin_pb2}
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_EOF: Final[Any] = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs


class Exchange:
    """Queries to the engine: one message under way at a time, answers as they come.

    ``channel``: a ``grpc.aio`` channel to the engine's socket.  A broken stream fails what waits with Unavailable, and
    another is opened.
    """

    def __init__(self, channel: Any, node_id: str) -> None:
        self._channel = channel
        self._node_id = node_id
        self._tags = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[queries_pb2.QueryReply]] = {}
        self._pending: list[pb.PeerQuery] = []
        self._cancelled: list[int] = []
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def ask(self, query: pb.PeerQuery) -> queries_pb2.QueryReply:
        """The reply, whose ``error`` may be set; raises Unavailable when the engine cannot be reached."""
        query.tag = tag = next(self._tags)
        future: asyncio.Future[queries_pb2.QueryReply] = asyncio.get_running_loop().create_future()
        self._waiting[tag] = future
        self._pending.append(query)
        self._news.set()
        try:
            return await future
        except asyncio.CancelledError:
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
                await self._channel.unary_unary(PEER_PREFIX + "Peer/Hello")(hello.SerializeToString())
                stream = self._channel.stream_stream(PEER_PREFIX + "Peer/Queries")()
                pause_s = BACKOFF_S[0]
                await self._converse(stream)
            except grpc.aio.AioRpcError:
                self._fail("the engine's process cannot be reached")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, BACKOFF_S[1])

    async def _converse(self, stream: Any) -> None:
        sender = asyncio.create_task(self._send(stream))
        try:
            while (data := await stream.read()) is not _EOF:
                for answer in pb.PeerAnswers.FromString(data).answers:
                    future = self._waiting.get(answer.tag)
                    if future is not None and not future.done():
                        future.set_result(answer.reply)
        finally:
            sender.cancel()
            stream.cancel()
            with suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await sender
            self._fail("the engine's process went away")

    async def _send(self, stream: Any) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            queries, self._pending = self._pending, []
            cancelled, self._cancelled = self._cancelled, []
            await stream.write(pb.PeerQueries(queries=queries, cancelled=cancelled).SerializeToString())

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


class Front(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    """Every public method, handed on; ``certificates``: clients show one."""

    def __init__(self, channel: Any, exchange: Exchange, *, certificates: bool) -> None:
        self._channel = channel
        self._exchange = exchange
        self._certificates = certificates
        self._ids = itertools.count(1)
        self._id_prefix = os.urandom(4).hex()
        self.running = 0
        self.streams = 0
        self._handlers = {f"{PREFIX}{service}/{method.name}": self._handler(service, method)
                          for service, module in MODULES.items()
                          for method in module.DESCRIPTOR.services_by_name[service].methods}

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)

    def _handler(self, service: str, method: Any) -> Any:
        path = f"{PREFIX}{service}/{method.name}"
        if (service, method.name) == ("Queries", "Query"):
            return grpc.unary_unary_rpc_method_handler(self._counted(self._query))
        if not method.server_streaming:
            return grpc.unary_unary_rpc_method_handler(self._counted(self._unary(path)))
        make = self._channel.stream_stream if method.client_streaming else self._channel.unary_stream
        handler = grpc.stream_stream_rpc_method_handler if method.client_streaming \
            else grpc.unary_stream_rpc_method_handler
        return handler(self._stream(make(path)))

    def _counted(self, run: Callable[[bytes, Any], Awaitable[bytes]]) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def counted(raw: bytes, context: Any) -> bytes:
            self.running += 1
            try:
                return await run(raw, context)
            finally:
                self.running -= 1

        return counted

    def _metadata(self, context: Any) -> list[tuple[str, str]]:
        """What the engine is told of the caller."""
        told = [(key, value) for key, value in context.invocation_metadata() or () if key in HANDED_ON]
        told.append((RELAYED_PEER, context.peer()))
        if self._certificates:
            told.append((RELAYED_CERTIFICATE, certificate_of(context)))
        return told

    # --- queries ----------------------------------------------------------------------------------

    async def _query(self, raw: bytes, context: Any) -> bytes:
        told = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        request_id = told.get("x-request-id", "")[:128] or f"{self._id_prefix}-{next(self._ids):x}"
        try:
            query = pb.PeerQuery(
                remaining_s=context.time_remaining() or 0.0, request_id=request_id, peer=context.peer(),
                traceparent=told.get("traceparent", ""), authorization=_secret(told),
                certificate=certificate_of(context) if self._certificates else "")
            try:
                query.query.ParseFromString(raw)
            except DecodeError:
                raise InvalidArgument("message", f"these {len(raw)} bytes are no QueryRequest", got=len(raw),
                                      limit="vecdb.v1.QueryRequest") from None
            reply = await self._exchange.ask(query)
        except VecdbError as error:
            return await _abort(context, error, request_id)
        if reply.HasField("error"):
            return await _abort(context, status.from_error(reply.error), request_id)
        return reply.SerializeToString()

    # --- everything else --------------------------------------------------------------------------

    def _unary(self, path: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        method = self._channel.unary_unary(path)

        async def run(raw: bytes, context: Any) -> bytes:
            try:
                return await method(raw, timeout=context.time_remaining(), metadata=self._metadata(context))  # type: ignore[no-any-return]
            except grpc.aio.AioRpcError as error:
                return await _pass_on(context, error)

        return run

    def _stream(self, method: Any) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        async def run(incoming: Any, context: Any) -> AsyncIterator[bytes]:
            self.running += 1
            self.streams += 1
            call = method(incoming, timeout=context.time_remaining(), metadata=self._metadata(context))
            try:
                async for data in call:
                    yield data
            except grpc.aio.AioRpcError as error:
                await _pass_on(context, error)
            finally:
                self.running -= 1
                self.streams -= 1
                call.cancel()

        return run


def _secret(told: dict[str, str]) -> str:
    given = told.get("authorization")
    if given is None and (key := told.get("x-api-key")):
        given = f"Bearer {key}"
    return given or ""


async def _abort(context: Any, error: VecdbError, request_id: str) -> bytes:
    number, text, details = status.to_status(error, request_id)
    trailing: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", details), ("x-request-id", request_id)]
    if after := error.fields.get("retry_after_s"):
        trailing.append(("grpc-retry-pushback-ms", str(int(float(after) * 1e3))))
    return await context.abort(_CODES[number], text, tuple(trailing))  # type: ignore[no-any-return]


async def _pass_on(context: Any, error: grpc.aio.AioRpcError) -> bytes:
    """The engine's refusal, as it came."""
    told: Any = error.trailing_metadata() or ()
    trailing = tuple((key, value) for key, value in told if not key.startswith("grpc-status")
                     or key == "grpc-status-details-bin")
    return await context.abort(error.code(), error.details() or "", trailing)  # type: ignore[no-any-return]
