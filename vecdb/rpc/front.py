"""A front process: it ends clients' connections and hands their calls to the engine's process.

gRPC in Python costs some 200 microseconds of one core a call, and one process has one core for it; the kernels need
none of it.  So a node with many cores runs several of these on one port (the kernel spreads connections), each
before the same engine.  Short queries are gathered (:mod:`vecdb.rpc.exchange`).  Every other call is handed on as it
is, byte for byte, unparsed.  Who calls is checked where the keys are: a front hands on what the client sent, and adds
its address and the name in its certificate.

**What a front holds** is bounded by calls and by bytes of requests, refused as the engine refuses.  A stream holds one
message at a time: the next is read when the engine took the last, and of answers what gRPC's windows let through.
"""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from vecdb.core.calls import PART
from vecdb.core.errors import InvalidArgument, OutcomeUnknown, Overloaded, Unavailable, VecdbError
from vecdb.internal.v1 import peer_pb2 as pb
from vecdb.ports.observer import NullObserver, Observer, Refusal
from vecdb.rpc.edge import PREFIX, RELAYED_CERTIFICATE, RELAYED_PEER, certificate_of
from vecdb.rpc.exchange import Exchange
from vecdb.rpc.methods import HEAVY_BYTES
from vecdb.rpc.parts import Parts
from vecdb.rpc.rates import InflightBytes
from vecdb.rpc.reading import Readers
from vecdb.v1 import admin_pb2, collections_pb2, queries_pb2, records_pb2, shards_pb2
from vecdb.wire import status

HANDED_ON: Final = ("authorization", "x-api-key", "x-request-id", "traceparent", "tracestate", PART)
MODULES: Final = {"Collections": collections_pb2, "Records": records_pb2, "Queries": queries_pb2, "Admin": admin_pb2,
                  "Shards": shards_pb2}
DETAILS: Final = "grpc-status-details-bin"
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_NOT_SENT: Final = "failed to connect"
"""How gRPC begins to tell of a call that never left."""


class Front(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    """Every public method, handed on over ``channel``; ``certificates``: clients show one.

    ``calls`` and ``inflight_bytes`` are this process's share of what the node takes on.
    """

    def __init__(self, channel: Any, exchange: Exchange, *, certificates: bool, calls: int = 2_048,
                 inflight_bytes: int = 512 << 20, observer: Observer | None = None) -> None:
        self._channel = channel
        self._exchange = exchange
        self._certificates = certificates
        self._most_calls = calls
        self.budget = InflightBytes(inflight_bytes)
        self._observer = observer or NullObserver()
        self._ids = itertools.count(1)
        self._id_prefix = os.urandom(4).hex()
        self.running = 0
        self.streams = 0
        self._draining = False
        self._readers = Readers()
        self._parts = Parts()
        self._handlers = {f"{PREFIX}{service}/{method.name}": self._handler(service, method)
                          for service, module in MODULES.items()
                          for method in module.DESCRIPTOR.services_by_name[service].methods}

    def drain(self) -> None:
        """Refuse calls that come from now on, but for parts of reads that have begun."""
        self._draining = True

    @property
    def awaits(self) -> bool:
        """Whether a part of a read that has begun is likely to come yet."""
        return self._parts.awaited

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)

    def _handler(self, service: str, method: Any) -> Any:
        path = f"{PREFIX}{service}/{method.name}"
        if not method.server_streaming:
            unary = self._unary(path)
            if (service, method.name) == ("Queries", "Query"):
                unary = self._query(unary)
            return grpc.stream_unary_rpc_method_handler(self._admitted(unary))
        if method.client_streaming:
            writes = (service, method.name) == ("Records", "UpsertStream")
            return grpc.stream_stream_rpc_method_handler(self._stream(self._channel.stream_stream(path), self._held,
                                                                      writes))
        return grpc.unary_stream_rpc_method_handler(self._stream(self._channel.unary_stream(path), None))

    # --- what is let in ---------------------------------------------------------------------------

    def _admitted(self, run: Callable[[bytes, Any], Awaitable[bytes]]) -> Callable[[Any, Any], Awaitable[bytes]]:
        async def admitted(_: Any, context: Any) -> bytes:
            self.running += 1
            read = ""
            try:
                self._admit(context.invocation_metadata())
                read = self._parts.begin(context.invocation_metadata())
                raw = await self._readers.read(context)
                size = len(raw)
                self._hold(size)
                try:
                    return await run(raw, context)
                finally:
                    self.budget.release(size)
            except VecdbError as error:
                return await _abort(context, error, self._request_id(context))
            finally:
                self.running -= 1
                if read:
                    self._parts.end(read)

        return admitted

    def _admit(self, metadata: Any = ()) -> None:
        if self._draining and not self._parts.known(metadata):
            self._observer.refused(Refusal.DRAINING)
            raise Unavailable("the node is stopping", retry_after_s=0.5)
        if self.running > self._most_calls:
            self._observer.refused(Refusal.CALLS)
            raise Overloaded(f"{self._most_calls} calls run already", retry_after_s=0.1, limit=self._most_calls)

    def _hold(self, size: int) -> None:
        try:
            self.budget.acquire(size)
        except Overloaded:
            self._observer.refused(Refusal.INFLIGHT_BYTES)
            raise

    async def _held(self, incoming: AsyncIterator[bytes], passing: "_Passing") -> AsyncIterator[bytes]:
        """Messages of a stream, each counted until the engine's end of it has taken it."""
        async for part in incoming:
            try:
                self._hold(len(part))
            except Overloaded as error:
                passing.refusal = error
                raise
            passing.unanswered += 1
            try:
                yield part
            finally:
                self.budget.release(len(part))

    def _request_id(self, context: Any) -> str:
        for key, value in context.invocation_metadata() or ():
            if key == "x-request-id" and isinstance(value, str) and value:
                return value[:128]
        return f"{self._id_prefix}-{next(self._ids):x}"

    # --- queries ----------------------------------------------------------------------------------

    def _query(self, alone: Callable[[bytes, Any], Awaitable[bytes]]) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """Gathered with others, unless it is so long that it would hold them up."""
        async def run(raw: bytes, context: Any) -> bytes:
            metadata = [(key, value) for key, value in context.invocation_metadata() or () if isinstance(value, str)]
            secrets = [(key, value) for key, value in metadata if key in ("authorization", "x-api-key")]
            if len(raw) >= HEAVY_BYTES or len(secrets) > 1:  # which secret counts is not for us to say
                return await alone(raw, context)
            told = dict(metadata)
            request_id = told.get("x-request-id", "")[:128] or f"{self._id_prefix}-{next(self._ids):x}"
            left = context.time_remaining()
            query = pb.PeerQuery(
                remaining_s=0.0 if left is None else max(left, 1e-3), request_id=request_id, peer=context.peer(),
                traceparent=told.get("traceparent", ""), authorization=_bearer(secrets),
                certificate=certificate_of(context) if self._certificates else "")
            try:
                query.query.ParseFromString(raw)
            except DecodeError:
                raise InvalidArgument("message", f"these {len(raw)} bytes are no QueryRequest", got=len(raw),
                                      limit="vecdb.v1.QueryRequest") from None
            # Nested as deep as a message of its own may be, unknown fields are too deep within one of many: nobody
            # could read that message, and all queries in it would be lost.
            query.query.DiscardUnknownFields()
            reply = await self._exchange.ask(query)
            if reply.HasField("error"):
                return await _abort(context, status.from_error(reply.error), request_id)
            return reply.SerializeToString()

        return run

    # --- everything else --------------------------------------------------------------------------

    def _metadata(self, context: Any) -> list[tuple[str, str | bytes]]:
        """What the engine is told of the caller."""
        told: list[tuple[str, str | bytes]] = [(key, value) for key, value in context.invocation_metadata() or ()
                                               if key in HANDED_ON]
        told.append((RELAYED_PEER, context.peer()))
        if self._certificates:
            told.append((RELAYED_CERTIFICATE, certificate_of(context).encode()))
        return told

    def _unary(self, path: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        method = self._channel.unary_unary(path)

        async def run(raw: bytes, context: Any) -> bytes:
            try:
                return await method(raw, timeout=context.time_remaining(), metadata=self._metadata(context))  # type: ignore[no-any-return]
            except grpc.aio.AioRpcError as error:
                return await _pass_on(context, error)

        return run

    def _stream(self, method: Any, held: "Callable[[Any, _Passing], Any] | None", writes: bool = False
                ) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        async def run(incoming: Any, context: Any) -> AsyncIterator[bytes]:
            self.running += 1
            self.streams += 1
            passing = _Passing()
            call: Any = None
            try:
                self._admit()
                call = method(incoming if held is None else held(incoming, passing),
                              timeout=context.time_remaining(), metadata=self._metadata(context))
                async for data in call:
                    passing.unanswered -= 1
                    yield data
            except VecdbError as error:
                await _abort(context, error, self._request_id(context))
            except grpc.aio.AioRpcError as error:
                await _pass_on(context, error)
            except asyncio.CancelledError:
                if passing.refusal is None:  # else it is we who ended the call to the engine
                    raise
                await _abort(context, passing.why(writes), self._request_id(context))
            finally:
                self.running -= 1
                self.streams -= 1
                if call is not None:
                    call.cancel()

        return run


@dataclass(slots=True)
class _Passing:
    """What a stream's messages came to: those that the engine has not answered, and why the next was refused."""

    unanswered: int = 0
    refusal: VecdbError | None = None

    def why(self, writes: bool) -> VecdbError:
        """The refusal, which says that nothing was done: of writes the engine may be at, nobody knows that."""
        assert self.refusal is not None
        if not writes or self.unanswered <= 0:
            return self.refusal
        return OutcomeUnknown(f"the stream was ended while a write on it was under way: {self.refusal.message}",
                              **self.refusal.fields)


def _bearer(secrets: list[tuple[str, str]]) -> str:
    return "".join(value if key == "authorization" else f"Bearer {value}" for key, value in secrets)


async def _abort(context: Any, error: VecdbError, request_id: str) -> bytes:
    number, text, details = status.to_status(error, request_id)
    trailing: list[tuple[str, str | bytes]] = [(DETAILS, details), ("x-request-id", request_id)]
    if after := error.fields.get("retry_after_s"):
        trailing.append(("grpc-retry-pushback-ms", str(int(float(after) * 1e3))))
    return await context.abort(_CODES[number], text, tuple(trailing))  # type: ignore[no-any-return]


async def _pass_on(context: Any, error: grpc.aio.AioRpcError) -> bytes:
    """The engine's refusal, as it came; what gRPC says of the way there is put in words of our own."""
    told: Any = error.trailing_metadata() or ()
    trailing = tuple((key, value) for key, value in told if not key.startswith("grpc-status") or key == DETAILS)
    text = error.details() or ""
    if error.code() is grpc.StatusCode.UNAVAILABLE and not any(key == DETAILS for key, _ in trailing):
        if text.startswith(_NOT_SENT):
            return await _abort(context, Unavailable("the engine's process cannot be reached", retry_after_s=0.2), "")
        text = "the engine's process went away"  # no typed details: nobody knows what became of the call
    return await context.abort(error.code(), text, trailing)  # type: ignore[no-any-return]
