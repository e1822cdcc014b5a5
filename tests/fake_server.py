"""A served MemoryBackend in a thread of its own, and the faults that a network has.

The server's face is the real one (:mod:`vecdb.rpc`); below it is a :class:`~tests.fake_node.FakeNode`, above it a layer
that breaks calls: ``server.faults["Records/Upsert"] = [refuse(), lost()]`` is what happens to the next two calls of a
method.  A fault sees the call first: it may refuse it, or let it be done and lose the reply.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc

from tests.fake_node import FakeNode
from tests.memory_backend import MemoryBackend
from vecdb.core.access import ANONYMOUS, Principal
from vecdb.core.errors import VecdbError
from vecdb.ports.observer import NullObserver
from vecdb.rpc.admin import AdminServicer
from vecdb.rpc.door import Guards
from vecdb.rpc.edge import PREFIX, Edge
from vecdb.rpc.server import GrpcServer, ServerOptions
from vecdb.rpc.servicers import CollectionsServicer, QueriesServicer, RecordsServicer
from vecdb.rpc.shards import ShardsServicer
from vecdb.services.alone import LoneShards
from vecdb.wire import status

Fault = Callable[[Callable[[], Any], Any], Any]
"""``async fault(run, context)``: ``await run()`` does the call and gives its reply."""


def refuse(error: VecdbError | None = None, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
           message: str = "not now") -> Fault:
    """Nothing is done: a typed error, or a bare status as gRPC itself makes them."""

    async def fault(run: Callable[[], Any], context: Any) -> Any:
        if error is not None:
            number, text, details = status.to_status(error)
            context.set_trailing_metadata((("grpc-status-details-bin", details),))
            found = next(one for one in grpc.StatusCode if one.value[0] == number)
            await context.abort(found, text)
        await context.abort(code, message)

    return fault


def lost(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, message: str = "Socket closed") -> Fault:
    """The work is done and its reply lost."""

    async def fault(run: Callable[[], Any], context: Any) -> Any:
        await run()
        await context.abort(code, message)

    return fault


def slow(seconds: float) -> Fault:
    async def fault(run: Callable[[], Any], context: Any) -> Any:
        await asyncio.sleep(seconds)
        return await run()

    return fault


def garbage(raw: bytes = b"\xff\xfe\x00garbage") -> Fault:
    async def fault(run: Callable[[], Any], context: Any) -> Any:
        await run()
        return raw

    return fault


def fine() -> Fault:
    async def fault(run: Callable[[], Any], context: Any) -> Any:
        return await run()

    return fault


class Breaking(grpc.GenericRpcHandler):
    """An Edge with faults before it.  In a stream each message counts as a call of ``Method``."""

    def __init__(self, edge: Edge, faults: dict[str, list[Fault]], seen: list[str], metadata: list[Any]) -> None:
        self._edge, self._faults, self._seen, self._metadata = edge, faults, seen, metadata

    running = 0
    streams = 0
    awaits = False

    def service(self, details: Any) -> Any:
        handler = self._edge.service(details)
        if handler is None:
            return None
        name = details.method.removeprefix(PREFIX)
        if handler.stream_unary is not None:  # of one message
            return grpc.stream_unary_rpc_method_handler(self._unary(name, handler.stream_unary))
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(self._stream(name, handler.stream_stream))
        return handler

    def _next(self, name: str) -> Fault | None:
        self._seen.append(name)
        waiting = self._faults.get(name)
        return waiting.pop(0) if waiting else None

    def _unary(self, name: str, inner: Any) -> Any:
        async def run(messages: Any, context: Any) -> Any:
            self._metadata.append(context.invocation_metadata())
            fault = self._next(name)
            if fault is None:
                return await inner(messages, context)
            return await fault(lambda: inner(messages, context), context)

        return run

    def _stream(self, name: str, inner: Any) -> Any:
        async def run(messages: Any, context: Any) -> Any:
            replies = inner(messages, context)
            async for reply in replies:
                fault = self._next(name)

                async def given(reply: Any = reply) -> Any:
                    return reply

                yield reply if fault is None else await fault(given, context)

        return run


class FakeServer:
    """``with FakeServer() as server``: ``server.url``, ``server.node`` (calls, gates), ``server.backend``."""

    def __init__(self, backend: MemoryBackend | None = None, *, credentials: Any = None, keys: Any = None,
                 message_bytes: int = 72 << 20, port: int = 0) -> None:
        self.backend = backend or MemoryBackend()
        self.node = FakeNode(self.backend)
        self.shards: Any = LoneShards(self.node, "n")
        self.faults: dict[str, list[Fault]] = {}
        self.seen: list[str] = []
        self.metadata: list[Any] = []
        self.faulty: list[BaseException] = []
        self.principal: Principal | VecdbError = ANONYMOUS
        self._options = {"credentials": credentials, "message_bytes": message_bytes, "hard_calls": 1_000}
        self._keys = keys
        self.port = port
        self._secure = credentials is not None
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._server: GrpcServer | None = None
        self._workers = ThreadPoolExecutor(2)

    # the guards of the edge
    def check(self, metadata: Any, peer: str, certificate: str = "") -> Principal:
        if isinstance(self.principal, VecdbError):
            raise self.principal
        return self.principal

    def take(self, principal: Principal, cost: float = 1.0) -> None:
        return None

    def acquire(self, count: int) -> None:
        return None

    def release(self, count: int) -> None:
        return None

    def record(self, **told: Any) -> None:
        return None

    @property
    def url(self) -> str:
        return f"{'grpcs' if self._secure else 'grpc'}://localhost:{self.port}" if self._secure \
            else f"grpc://127.0.0.1:{self.port}"

    def start(self) -> Self:
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-server", daemon=True)
        self._thread.start()
        self.run(self._start())
        return self

    async def _start(self) -> None:
        node = self.node
        guards = Guards(self, self, self, self, NullObserver(),
                        lambda error, request_id, method: self.faulty.append(error))
        methods = [*CollectionsServicer(node).methods(), *RecordsServicer(node, NullObserver()).methods(),
                   *QueriesServicer(node, NullObserver(), 60.0).methods(),
                   *AdminServicer(node, self._keys, lambda: {"version": "1", "node_id": "n"}).methods(),
                   *ShardsServicer(self.shards).methods()]
        edge = Breaking(Edge(methods, guards, self._workers), self.faults, self.seen, self.metadata)
        self._server = GrpcServer([edge], ServerOptions(f"127.0.0.1:{self.port}", **self._options))  # type: ignore
        self.port = await self._server.start()
        await self._server.ready()

    def run(self, work: Any) -> Any:
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def count(self, name: str) -> int:
        """Calls of a method that came so far."""
        return self.seen.count(name)

    def stop(self) -> None:
        """Stop serving; the node and what it holds stay, and :meth:`again` serves them on the same port."""
        if self._server is not None:
            self.run(self._server._server.stop(None))
            self._server = None

    def again(self) -> None:
        self.run(self._start())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not None:
            self._thread.join(30)
        self._loop.close()
        self._workers.shutdown()
