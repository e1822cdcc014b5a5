"""What every call of the REST API passes through; the order is that of :mod:`vecdb.rpc.edge`, whose guards it shares.

1. The path and the method choose the operation; the call is counted, and refused above ``concurrent_calls``.
2. Deadline (``X-Timeout-Ms`` or ``?timeout_ms=``, else the default; never beyond the longest), request id.
3. Who calls, at what rate, whether the role allows it; the form and the size that the headers tell of the body.
4. The body is read: held in the budget of bytes as it comes, and refused if it comes too slowly
   (:mod:`vecdb.rpc.http.incoming`).
5. The operation.  A client that goes away ends it, and so does the deadline.
6. Any error is answered in one form, with the request id and, where waiting helps, Retry-After.
7. Admin calls are audited, every call observed.
"""

import asyncio
import itertools
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

from vecdb.core.access import Principal
from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    VecdbError,
)
from vecdb.ports import context, tracing
from vecdb.ports.node import Node
from vecdb.ports.observer import Refusal
from vecdb.rpc.door import NOBODY, Guards, good_request_id, note, take, tell
from vecdb.rpc.http.bodies import read
from vecdb.rpc.http.checks import check
from vecdb.rpc.http.incoming import Incoming, Receive
from vecdb.rpc.http.operations import Operation, Request, Routes
from vecdb.rpc.http.replies import Failure, Refused, Reply, failure, too_large

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BACKSTOP_S: Final = 5.0
"""How long after its deadline an operation that does not end by itself is waited for."""

MAX_QUERY_STRING: Final = 4 << 10
_AUDITED: Final = 16 << 10
_UNREAD: Final = 64 << 10
"""A longer body that nobody wants is not read to its end: the connection is closed."""

CERTIFICATE: Final = "vecdb.certificate"
"""The extension of a scope with the name from a client's certificate."""

_MILLISECONDS: Final = re.compile(r"[1-9][0-9]{0,9}")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_MAY_HAPPEN: Final = "the write may still happen; the same request with the same Idempotency-Key settles it"


@dataclass(slots=True, eq=False)
class _Exchange:
    """One request and what is known of it so far."""

    scope: Scope
    headers: dict[str, str]
    request_id: str
    call: Call
    peer: str
    incoming: Incoming
    principal: Principal = NOBODY
    operation: Operation | None = None
    request: Request | None = None
    body_left: bool = False
    path: dict[str, str] = field(default_factory=dict)


class RestEdge:
    """An ASGI application for the operations of ``routes``; belongs to one event loop.

    ``message_bytes``: longest body.
    """

    def __init__(self, routes: Routes, node: Node, guards: Guards, workers: Executor, message_bytes: int) -> None:
        self._routes = routes
        self._node = node
        self._guards = guards
        self._workers = workers
        self._message_bytes = message_bytes
        self._ids = itertools.count(1)
        self._id_prefix = os.urandom(4).hex()
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._open(scope)
        try:
            operation, exchange.path = self._routes.find(scope["method"], _raw_path(scope))
        except VecdbError as error:
            exchange.body_left = True
            await self._send(exchange, failure(error, exchange.request_id).reply, send)
            return
        exchange.operation = operation
        observer = self._guards.observer
        began = observer.call_began(operation.name)
        self.running += 1
        self._guards.inside.calls += 1
        code, sent = "OK", 0
        try:
            try:
                reply = await self._answer(exchange, operation, receive)
            except asyncio.CancelledError:
                code = "CANCELLED"
                exchange.call.end(Stopped.CANCELLED)
                await self._send(exchange, failure(_stopping(operation), exchange.request_id).reply, send)
                raise
            except Exception as error:
                failed = self._failed(exchange, operation, error)
                code, reply = failed.code, failed.reply
            sent = len(reply.body)
            await self._send(exchange, reply, send)
        finally:
            self.running -= 1
            self._guards.inside.calls -= 1
            exchange.incoming.release()
            observer.call_ended(operation.name, began, self._collection(exchange), code, exchange.incoming.size, sent)
            if operation.audited:
                self._audit(exchange, operation, code)

    # --- the way in -------------------------------------------------------------------------------

    def _open(self, scope: Scope) -> _Exchange:
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            text = name.decode("latin-1").lower()
            headers[text] = value.decode("latin-1") if text not in headers else \
                f"{headers[text]}, {value.decode('latin-1')}"
        given = headers.get("x-request-id", "")
        request_id = given if good_request_id(given) else f"{self._id_prefix}-{next(self._ids):x}"
        return _Exchange(scope, headers, request_id, Call(request_id=request_id), peer_of(scope),
                         Incoming(self._guards))

    def _admit(self, exchange: _Exchange, operation: Operation) -> Any:
        """Steps 1 to 3; returns the checked parameters."""
        guards = self._guards
        if self.running > guards.concurrent_calls:
            guards.observer.refused(Refusal.CALLS)
            raise Refused(503, Overloaded.code, "Overloaded", f"{guards.concurrent_calls} calls run already",
                          (("retry-after", "1"),), limit=guards.concurrent_calls, retry_after_s=1.0)
        query = _query(exchange.scope)
        default = guards.deadline_max_s if operation.long and operation.tag == "collections" else guards.deadline_s
        exchange.call.deadline = time.monotonic() + min(_timeout_s(exchange.headers, query, default),
                                                        guards.deadline_max_s)
        exchange.principal = principal = authenticate(guards, exchange.scope)
        exchange.call.principal = principal.label
        take(guards, principal)
        if operation.role is not None:
            principal.require(operation.role, exchange.path.get("name"))
        context.bind(exchange.request_id, exchange.path.get("name", ""), principal.label)
        params = check(operation.params, query)
        self._check_form(exchange, operation)
        return params

    def _check_form(self, exchange: _Exchange, operation: Operation) -> None:
        """What the headers tell of the body, before a byte of it is read."""
        length = exchange.headers.get("content-length")
        if length is not None:
            if not _LENGTH.fullmatch(length):
                raise InvalidArgument("content-length", "is no number", got=length[:64], limit="decimal digits")
            if int(length) > self._message_bytes:
                self._guards.observer.refused(Refusal.MESSAGE_BYTES)
                raise too_large(int(length), self._message_bytes)
        empty = length == "0" or (length is None and "transfer-encoding" not in exchange.headers)
        if empty or not operation.bodies:
            return
        kind, _, parameters = exchange.headers.get("content-type", "").partition(";")
        charset = parameters.strip().lower().partition("charset=")[2].strip('" ')
        if kind.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
            raise Refused(415, InvalidArgument.code, "UnsupportedMediaType",
                          "content-type: the body must be application/json in UTF-8",
                          (("accept", "application/json"),), argument="content-type",
                          got=exchange.headers.get("content-type", "")[:100], limit="application/json")
        if exchange.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, InvalidArgument.code, "UnsupportedMediaType",
                          "content-encoding: compressed bodies are not taken", (("accept-encoding", "identity"),),
                          argument="content-encoding", got=exchange.headers["content-encoding"][:100], limit="identity")

    # --- the operation ----------------------------------------------------------------------------

    async def _answer(self, exchange: _Exchange, operation: Operation, receive: Receive) -> Reply:
        exchange.body_left = True
        params = self._admit(exchange, operation)
        assert exchange.call.deadline is not None
        body = await exchange.incoming.read(receive, int(exchange.headers.get("content-length", 0)),
                                            self._message_bytes, exchange.call.deadline)
        exchange.body_left = False
        if operation.bodies and not body and not operation.optional_body:
            raise InvalidArgument("body", "is missing", got="nothing", limit="a JSON object")
        if body and not operation.bodies:
            raise InvalidArgument("body", "this operation takes none", got=f"{len(body)} bytes", limit="no body")
        request = Request(self._node, exchange.call, exchange.principal, self._workers, exchange.path, params, body,
                          exchange.headers)
        exchange.request = request
        tracer = tracing.get()
        if not tracer.enabled:
            return await self._watched(exchange, operation, request, receive)
        attributes: dict[str, tracing.Value] = {
            "http.request.method": operation.verb, "http.route": operation.path,
            "vecdb.request_id": exchange.request_id}
        if name := exchange.path.get("name"):
            attributes["db.collection.name"] = name
        with tracer.start(f"vecdb.v1.{operation.name}", tracing.Kind.SERVER, exchange.headers, attributes):
            return await self._watched(exchange, operation, request, receive)

    async def _watched(self, exchange: _Exchange, operation: Operation, request: Request, receive: Receive) -> Reply:
        """The operation, until it ends, its client goes away, or its deadline is long past."""
        call = exchange.call
        assert call.deadline is not None
        loop = asyncio.get_running_loop()
        timer = loop.call_later(max(0.0, call.deadline - time.monotonic()), call.end, Stopped.DEADLINE)
        work = loop.create_task(_run(operation, request))
        gone = loop.create_task(_gone(receive))
        try:
            left = max(0.0, call.deadline - time.monotonic()) + BACKSTOP_S
            await asyncio.wait((work, gone), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone.done():
                call.end(Stopped.CANCELLED)
                raise Cancelled("the caller went away before the call was done")
            call.end(Stopped.DEADLINE)
            if operation.write:
                raise OutcomeUnknown(f"the deadline passed, and {_MAY_HAPPEN}")
            raise DeadlineExceeded("the deadline passed before the work was done")
        finally:
            timer.cancel()
            for task in (gone, work):
                if not task.done():
                    if task is work:
                        call.end(Stopped.CANCELLED)
                    task.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await task

    # --- the way out ------------------------------------------------------------------------------

    def _failed(self, exchange: _Exchange, operation: Operation, error: Exception) -> Failure:
        tell(self._guards, error, exchange.request_id, operation.name)
        return failure(error, exchange.request_id)

    async def _send(self, exchange: _Exchange, reply: Reply, send: Send) -> None:
        headers = [(b"content-type", reply.content_type.encode())] if reply.status != 204 else []
        if reply.status != 204:
            headers.append((b"content-length", str(len(reply.body)).encode()))
        headers += [(b"x-request-id", exchange.request_id.encode()), (b"cache-control", b"no-store"),
                    (b"x-content-type-options", b"nosniff")]
        headers += [(name.encode(), value.encode("latin-1", "replace")) for name, value in reply.headers]
        if exchange.body_left and _long_body(exchange.headers):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        body = b"" if exchange.scope["method"] == "HEAD" or reply.status == 204 else reply.body
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _collection(self, exchange: _Exchange) -> str:
        path = exchange.path if exchange.request is None else exchange.request.path
        return path.get("name", "")

    def _audit(self, exchange: _Exchange, operation: Operation, code: str) -> None:
        """Arguments under the names that they have in gRPC's messages."""
        arguments: dict[str, Any] = {}
        request = exchange.request
        if request is not None and 0 < len(request.body) < _AUDITED:
            with suppress(VecdbError):
                arguments.update(read(request.body))
        arguments |= {"id" if name == "key" else name: text for name, text in exchange.path.items()}
        if request is not None:
            arguments |= request.noted
        note(self._guards, principal=exchange.principal, peer=exchange.peer, method=operation.name,
             collection=self._collection(exchange), outcome=code, request_id=exchange.request_id, arguments=arguments)


def _stopping(operation: Operation) -> VecdbError:
    """Who cancels a request is the face that stops and has waited long enough."""
    if operation.write:
        return OutcomeUnknown(f"the node stops, and {_MAY_HAPPEN}")
    return Unavailable("the node stops before the call was done", retry_after_s=1.0)


async def _run(operation: Operation, request: Request) -> Reply:
    return await operation.handle(request)


async def _gone(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _raw_path(scope: Scope) -> bytes:
    raw = scope.get("raw_path")
    path: bytes = raw if raw is not None else scope["path"].encode("utf-8", "surrogateescape")
    return path


def _long_body(headers: dict[str, str]) -> bool:
    length = headers.get("content-length")
    if length is None:
        return "transfer-encoding" in headers
    return not _LENGTH.fullmatch(length) or int(length) > _UNREAD


def _query(scope: Scope) -> dict[str, str]:
    raw: bytes = scope.get("query_string", b"")
    if not raw:
        return {}
    if len(raw) > MAX_QUERY_STRING:
        raise InvalidArgument("query", f"{len(raw)} bytes behind the '?', more than {MAX_QUERY_STRING}", got=len(raw),
                              limit=MAX_QUERY_STRING)
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        raise InvalidArgument("query", "what stands behind the '?' cannot be read", got="bytes",
                              limit="name=value&…, percent-encoded UTF-8") from None
    out = dict(pairs)
    if len(out) != len(pairs):
        raise InvalidArgument("query", "a parameter is given twice", got=len(pairs), limit="each once")
    return out


def _timeout_s(headers: dict[str, str], query: dict[str, str], default_s: float) -> float:
    given = (("x-timeout-ms", headers.get("x-timeout-ms")), ("timeout_ms", query.pop("timeout_ms", None)))
    found = []
    for argument, text in given:
        if text is not None:
            if not _MILLISECONDS.fullmatch(text):
                raise InvalidArgument(argument, "must be whole milliseconds from 1 on", got=text[:64],
                                      limit="1..9999999999")
            found.append(int(text) / 1e3)
    return min(found, default=default_s)


def authenticate(guards: Guards, scope: Scope) -> Principal:
    """Who calls, by API key and by certificate."""
    pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    certificate = (scope.get("extensions") or {}).get(CERTIFICATE, {}).get("name", "")
    return guards.authenticator.check(pairs, peer_of(scope), certificate)


def peer_of(scope: Scope) -> str:
    """As gRPC writes it."""
    client = scope.get("client")
    if not client:
        return "unix:"
    host, port = client[0], client[1]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
