"""What every gRPC call passes through, in this order, before and after its servicer.

1. The call is counted; above ``concurrent_calls`` it is refused.
2. Its deadline (the caller's, else the default; never beyond the longest), its request id (``x-request-id``, else one
   of ours).
3. Who calls (:class:`~vecdb.rpc.auth.Authenticator`), at what rate, and whether there is anything he may do with this
   method.  A unary call's message is read only after that (:mod:`vecdb.rpc.reading`).
4. The bytes of requests that are held already.  The message is parsed, and must be no larger than its kind may be,
   nor of more small parts than anybody needs, for it is parsed on the event loop (:mod:`vecdb.rpc.counting`); who
   calls must be allowed what the method does, on the collection it names.
5. The servicer, from message to message.  Conversions that take long run in a small pool (:meth:`Context.apart`).
6. Any error becomes a status with typed details (:mod:`vecdb.wire.status`), the request id and, for Overloaded, gRPC's
   own hint of when to try again.  What is not one of our errors is a fault: logged whole, told as INTERNAL.
7. Admin calls are audited, every call observed.

A cancelled call (its client went away) sets the call's ``stop``, and the work ends.
"""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

from vecdb.core.access import Principal
from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import (
    InvalidArgument,
    LimitExceeded,
    Overloaded,
    Unavailable,
    VecdbError,
)
from vecdb.ports import context, tracing
from vecdb.ports.observer import Refusal
from vecdb.rpc import door
from vecdb.rpc.auth import certificate_name
from vecdb.rpc.counting import COUNTED_BYTES, MOST_PARTS, parts
from vecdb.rpc.door import Guards
from vecdb.rpc.methods import Context, Handle, Method, Stream
from vecdb.rpc.parts import Parts
from vecdb.rpc.reading import Readers
from vecdb.rpc.templates import MOST_BYTES, Templates
from vecdb.v1 import admin_pb2
from vecdb.wire import status

T = TypeVar("T")

PREFIX: Final = "/vecdb.v1."
RELAYED_PEER: Final = "x-vecdb-peer"
RELAYED_CERTIFICATE: Final = "x-vecdb-certificate-bin"
"""In bytes, for a name in a certificate may be of any script."""
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class Edge(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    """A table of methods as a gRPC handler."""

    def __init__(self, methods: list[Method], guards: Guards, workers: Executor, *, prefix: str = PREFIX) -> None:
        self._guards = guards
        self._workers = workers
        self._running = 0
        self._streams = 0
        self._draining = False
        self._readers = Readers()
        self._parts = Parts()
        self._counted = prefix == PREFIX
        self._ids = itertools.count(1)
        self._id_prefix = os.urandom(4).hex()
        self._methods = {method.name: method for method in methods}
        self._handlers = {prefix + method.name: self._handler(method) for method in methods}

    @property
    def running(self) -> int:
        """Calls that have begun and not ended."""
        return self._running

    def _enter(self) -> None:
        self._running += 1
        self._guards.inside.calls += 1

    def _leave(self) -> None:
        self._running -= 1
        self._guards.inside.calls -= 1

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)

    def _handler(self, method: Method) -> Any:
        if method.unary is not None:
            run = self._unary(method, method.unary) if method.templates is None \
                else self._express(method, method.unary, method.templates)
            return grpc.stream_unary_rpc_method_handler(run)
        if method.server_stream is not None:
            return grpc.stream_stream_rpc_method_handler(self._server_stream(method, method.server_stream))
        assert method.bidi is not None
        return grpc.stream_stream_rpc_method_handler(self._bidi(method, method.bidi))

    # --- the way in -------------------------------------------------------------------------------

    def drain(self) -> None:
        """Refuse calls, and messages of streams, that come from now on, but for parts of reads that have begun."""
        self._draining = True

    @property
    def awaits(self) -> bool:
        """Whether a part of a read that has begun is likely to come yet."""
        return self._parts.awaited

    @property
    def streams(self) -> int:
        """Streams that are open."""
        return self._streams

    @property
    def workers(self) -> Executor:
        return self._workers

    def _context(self, rpc: Any) -> Context:
        """Step 2; it cannot fail, so that every refusal has a request id."""
        return Context(self._call(rpc.invocation_metadata()), door.NOBODY, rpc.peer(), self._workers)

    def _call(self, metadata: Any) -> Call:
        request_id, elsewhere = "", False
        for key, value in metadata or ():
            if key == "x-request-id" and isinstance(value, str) and door.good_request_id(value):
                request_id = value
            elif key == "x-vecdb-elsewhere":
                elsewhere = True
        return Call(request_id=request_id or f"{self._id_prefix}-{next(self._ids):x}", elsewhere=elsewhere)

    def _admit(self, held: Context, rpc: Any, default_s: float) -> None:
        """Steps 1 and 3."""
        guards = self._guards
        self._count(rpc.invocation_metadata())
        self._until(held, rpc.time_remaining(), default_s)
        metadata, certificate = rpc.invocation_metadata() or (), ""
        if guards.relayed:
            told = dict(metadata)
            held.peer, certificate = str(told.get(RELAYED_PEER, "")), told.get(RELAYED_CERTIFICATE, b"").decode()
        elif guards.certificates:
            certificate = certificate_of(rpc)
        self._identify(held, metadata, certificate)

    def _count(self, metadata: Any = ()) -> None:
        if self._draining and not self._parts.known(metadata):
            self._guards.observer.refused(Refusal.DRAINING)
            raise Unavailable("the node is stopping", retry_after_s=0.5)
        most = self._guards.concurrent_calls
        if self._running > most:
            self._guards.observer.refused(Refusal.CALLS)
            raise Overloaded(f"{most} calls run already", retry_after_s=0.1, limit=most)

    def _until(self, held: Context, left: float | None, default_s: float) -> None:
        held.call.deadline = time.monotonic() + min(default_s if left is None else left, self._guards.deadline_max_s)

    def _identify(self, held: Context, metadata: Any, certificate: str) -> None:
        held.credentials = (metadata, certificate)
        held.principal = self._guards.authenticator.check(metadata, held.peer, certificate)
        held.call.principal = held.principal.label
        door.take(self._guards, held.principal)

    def _allow(self, method: Method, message: Any, held: Context) -> str:
        """Step 4's second half; from here on log lines name the request."""
        collection = method.allow(message, held.principal)
        context.bind(held.call.request_id, collection, held.call.principal)
        return collection

    def _parse(self, method: Method, raw: bytes) -> Any:
        if len(raw) > method.most_bytes:
            self._guards.observer.refused(Refusal.MESSAGE_BYTES)
            raise LimitExceeded("message", f"{len(raw)} bytes, and a {method.request.DESCRIPTOR.name} has at most "
                                f"{method.most_bytes}", got=len(raw), limit=method.most_bytes)
        if len(raw) > COUNTED_BYTES and self._counted and parts(raw, method.request) > MOST_PARTS:
            self._guards.observer.refused(Refusal.MESSAGE_BYTES)
            raise LimitExceeded("message", f"a {method.request.DESCRIPTOR.name} of more than {MOST_PARTS} fields, at "
                                "all depths", got=f"> {MOST_PARTS}", limit=MOST_PARTS)
        try:
            return method.request.FromString(raw)
        except DecodeError:
            raise InvalidArgument("message", f"these {len(raw)} bytes are no {method.request.DESCRIPTOR.name}",
                                  got=len(raw), limit=method.request.DESCRIPTOR.full_name) from None

    # --- unary ------------------------------------------------------------------------------------

    def _unary(self, method: Method, handle: Handle) -> Callable[[bytes, Any], Awaitable[bytes]]:
        observer = self._guards.observer

        async def run(_: Any, rpc: Any) -> bytes:
            began = observer.call_began(method.name)
            self._enter()
            held, raw, read = self._context(rpc), b"", ""
            failure: BaseException | None = None
            try:
                try:
                    self._admit(held, rpc, self._guards.deadline_s)
                    method.may(held.principal)
                    read = self._parts.begin(rpc.invocation_metadata())
                    raw = await self._readers.read(rpc)
                except BaseException as error:
                    failure = error
                return await self._answer(method, handle, held, raw, rpc, began, failure)
            finally:
                self._leave()
                if read:
                    self._parts.end(read)

        return run

    async def _answer(self, method: Method, handle: Handle, held: Context, raw: bytes, rpc: Any, began: float,
                      failure: BaseException | None) -> bytes:
        """Steps 4 to 7 of a unary call that has begun; ``failure``: what there is to say instead of reading ``raw``."""
        guards, size, collection, code, out = self._guards, len(raw), "", "OK", b""
        message: Any = None
        reply: Message | None = None
        try:
            if failure is not None:
                raise failure
            door.hold(guards, size)
            try:
                message = self._parse(method, raw)
                held.size = size
                if method.templates is not None and size <= MOST_BYTES:
                    held.raw = raw
                del raw
                collection = self._allow(method, message, held)
                if tracing.get().enabled:
                    reply = await _traced(method, handle, message, held, rpc.invocation_metadata(), collection)
                else:
                    reply = await handle(message, held)
                out = reply.SerializeToString()
            finally:
                guards.budget.release(size)
            return out
        except asyncio.CancelledError:
            code = "CANCELLED"
            held.call.end(Stopped.CANCELLED)
            raise
        except Exception as error:
            refusal = self._refusal(method, held, error)
            code = refusal[0].name
            return await rpc.abort(*refusal)  # type: ignore[no-any-return]
        finally:
            guards.observer.call_ended(method.name, began, collection, code, size, len(out))
            if method.audited:
                door.note(guards, principal=held.principal, peer=held.peer, method=method.name,
                          collection=collection, outcome=code, request_id=held.call.request_id,
                          arguments=_arguments(message, reply))

    def _express(self, method: Method, handle: Handle, templates: Templates
                 ) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """As :meth:`_unary`, where templates may answer: those calls get no more than they need.

        Steps 1 and 3 come before the message is read, as ever.  What a template answers is answered before anything
        else runs, so its bytes are not held and its deadline cannot pass meanwhile; it is observed as a whole, and
        while its message is awaited it is not in flight.
        """
        guards = self._guards
        check, most, inside = guards.authenticator.check, guards.concurrent_calls, guards.inside
        name, find = method.name, templates.find
        plain = not guards.relayed and not guards.certificates
        allowed: Principal | None = None

        async def run(_: Any, rpc: Any) -> bytes:
            nonlocal allowed
            began = time.monotonic()
            self._running += 1
            inside.calls += 1
            held, raw, read = None, b"", ""
            failure: BaseException | None = None
            try:
                try:
                    if plain and not tracing.get().enabled:
                        metadata = rpc.invocation_metadata() or ()
                        if self._draining or self._running > most:
                            self._count(metadata)
                        principal = check(metadata, rpc.peer())
                        door.take(guards, principal)
                        if principal is not allowed:
                            method.may(principal)
                            allowed = principal
                        raw = await self._readers.read(rpc)
                        template = find(raw)
                        if template is not None:
                            out = template.answer(raw, principal, name, began, lambda: self._call(metadata))
                            if out is not None:
                                return out
                        held = self._held(rpc, metadata, principal)
                        read = self._parts.begin(metadata)
                    else:
                        held = self._context(rpc)
                        self._admit(held, rpc, guards.deadline_s)
                        method.may(held.principal)
                        read = self._parts.begin(rpc.invocation_metadata())
                        raw = await self._readers.read(rpc)
                except BaseException as error:
                    failure = error
                guards.observer.call_began(name)
                return await self._answer(method, handle, held or self._context(rpc), raw, rpc, began, failure)
            finally:
                self._running -= 1
                inside.calls -= 1
                if read:
                    self._parts.end(read)

        return run

    def _held(self, rpc: Any, metadata: Any, principal: Principal) -> Context:
        """Steps 1 to 3 again, of a call that has passed them."""
        call = self._call(metadata)
        held = Context(call, principal, rpc.peer(), self._workers, (metadata or (), ""))
        call.principal = principal.label
        self._until(held, rpc.time_remaining(), self._guards.deadline_s)
        return held

    async def serve(self, name: str, message: Any, held: Context, left: float | None, metadata: Any, certificate: str
                    ) -> Message:
        """A unary call that came another way than as a gRPC call of its own: admitted, allowed, observed alike.

        ``left``: seconds until its deadline; None: it names none.
        """
        method, guards = self._methods[name], self._guards
        assert method.unary is not None
        began = guards.observer.call_began(name)
        self._enter()
        held.size = size = message.ByteSize()
        sent, collection, code = 0, "", "OK"
        try:
            self._count()
            self._until(held, left, guards.deadline_s)
            self._identify(held, metadata, certificate)
            door.hold(self._guards, size)
            try:
                collection = self._allow(method, message, held)
                if tracing.get().enabled:
                    reply = await _traced(method, method.unary, message, held, metadata, collection)
                else:
                    reply = await method.unary(message, held)
            finally:
                guards.budget.release(size)
            sent = reply.ByteSize()
            return reply
        except asyncio.CancelledError:
            code = "CANCELLED"
            held.call.end(Stopped.CANCELLED)
            raise
        except Exception as error:
            code = error.code if isinstance(error, VecdbError) else "INTERNAL"
            door.tell(self._guards, error, held.call.request_id, method.name)
            raise
        finally:
            self._leave()
            guards.observer.call_ended(name, began, collection, code, size, sent)

    # --- streams ----------------------------------------------------------------------------------

    def _server_stream(self, method: Method, handle: Stream) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        observer = self._guards.observer

        async def replies(incoming: Any, held: Context, rpc: Any) -> AsyncIterator[Message]:
            raw = await self._readers.read(rpc)
            message = self._parse(method, raw)
            collection = self._allow(method, message, held)
            with held.counted(observer, method.name, collection, len(raw)):
                async with aclosing(handle(message, held)) as made:  # type: ignore[type-var]
                    async for reply in made:
                        yield reply

        return self._stream(method, replies)

    def _bidi(self, method: Method, handle: Stream) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        def replies(incoming: Any, held: Context, rpc: Any) -> AsyncIterator[Message]:
            return handle(self._incoming(method, incoming, held), held)

        return self._stream(method, replies)

    def _stream(self, method: Method, replies_of: Callable[[Any, Context, Any], AsyncIterator[Message]]
                ) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        """Each message is observed as a call, by those who take it apart; here the stream itself is kept."""
        async def run(incoming: Any, rpc: Any) -> AsyncIterator[bytes]:
            self._enter()
            self._streams += 1
            held = self._context(rpc)
            replies: Any = None
            try:
                self._admit(held, rpc, self._guards.deadline_max_s)
                method.may(held.principal)
                replies = replies_of(incoming, held, rpc)
                async for reply in replies:
                    yield reply.SerializeToString()
            except (asyncio.CancelledError, GeneratorExit):
                held.call.end(Stopped.CANCELLED)
                raise
            except Exception as error:
                await rpc.abort(*self._refusal(method, held, error))
            finally:
                self._leave()
                self._streams -= 1
                if replies is not None:
                    await replies.aclose()

        return run

    async def _incoming(self, method: Method, raw: AsyncIterator[bytes], held: Context) -> AsyncIterator[Any]:
        """Messages of a stream, parsed and allowed; each costs what a call costs, and needs a key that is good yet.

        Its bytes are counted until the servicer asks for the next.
        """
        async for part in raw:
            self._count()
            self._identify(held, *held.credentials)
            door.hold(self._guards, len(part))
            try:
                message = self._parse(method, part)
                self._allow(method, message, held)
                yield message
            finally:
                self._guards.budget.release(len(part))

    # --- the way out ------------------------------------------------------------------------------

    def _refusal(self, method: Method, held: Context, error: Exception) -> tuple[grpc.StatusCode, str, Any]:
        """What ``context.abort`` is told: status, text, trailing metadata."""
        request_id = held.call.request_id
        door.tell(self._guards, error, held.call.request_id, method.name)
        number, text, details = status.to_status(error, request_id)
        trailing = [("grpc-status-details-bin", details), ("x-request-id", request_id)]
        if isinstance(error, Overloaded | Unavailable) and (after := error.fields.get("retry_after_s")):
            trailing.append(("grpc-retry-pushback-ms", str(int(float(after) * 1e3))))
        return _CODES[number], text, tuple(trailing)


def certificate_of(rpc: Any) -> str:
    """The name in the client's certificate."""
    return certificate_name(rpc.auth_context())


async def _traced(method: Method, handle: Handle, message: Any, held: Context, metadata: Any, collection: str
                  ) -> Message:
    service, _, name = method.name.partition("/")
    attributes: dict[str, tracing.Value] = {"rpc.system": "grpc", "rpc.service": f"vecdb.v1.{service}",
                                            "rpc.method": name, "vecdb.request_id": held.call.request_id}
    if collection:
        attributes["db.collection.name"] = collection
    with tracing.get().start(f"vecdb.v1.{method.name}", tracing.Kind.SERVER, metadata or (), attributes):
        return await handle(message, held)


def _arguments(message: Any, reply: Any) -> dict[str, Any]:
    """What an admin call asked for, as JSON and small enough to be read; and of a key that it made, the id."""
    if message is None:
        return {}
    told = {name: value if isinstance(value, str | int | float | bool) else str(value)[:1_000]
            for name, value in MessageToDict(message, preserving_proto_field_name=True).items()}
    if isinstance(reply, admin_pb2.CreateKeyReply):
        told["id"] = reply.key.id
    return told
