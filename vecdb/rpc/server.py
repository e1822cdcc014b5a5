"""The gRPC face of a node: its server, from bind to drain.

Limits that gRPC itself keeps: the largest message, streams a connection, metadata's size, how long a handshake may
take, pings.  Idle connections cost a descriptor and some kilobytes each; dead ones are found by keepalive.  A port is
bound by one process alone unless ``reuse_port`` says that others will share it: otherwise a second server would take
half of the calls of the first.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from vecdb.core.errors import Unavailable
from vecdb.rpc.health import BoundedHealth, BoundedReflection

SERVICES: Final = ("Collections", "Records", "Queries", "Admin", "Shards", "Cluster")
KEEPALIVE_MS: Final = 60_000
KEEPALIVE_TIMEOUT_MS: Final = 20_000
IDLE_MS: Final = 1_800_000
"""A connection without a call for so long is closed; clients open another one with their next call."""
MIN_PING_MS: Final = 750
"""Clients that know several nodes ping every second while they wait, so as to leave one that is frozen."""
POLL_S: Final = 0.01
STREAMS_S: Final = 1.0
CUT_S: Final = 0.5
"""For what was refused last to reach its callers."""
HEALTH_NAME: Final = "grpc.health.v1.Health"
REFLECTION_NAME: Final = "grpc.reflection.v1alpha.ServerReflection"
HANDSHAKE_MS: Final = 15_000
MAX_METADATA_BYTES: Final = 16 << 10
STREAMS_PER_CONNECTION: Final = 1_000
PENDING_CALLS: Final = 32_768
"""Calls that gRPC holds until the loop takes and, if they are too many, refuses them."""
NOTICE_S: Final = 0.05
"""Between telling health checks that the node goes and refusing calls: those on their way still get in."""


class Handler(Protocol):
    """A ``grpc.GenericRpcHandler`` that knows how many of its calls run, how many of those are streams, and whether
    reads that have begun have a call to come yet."""

    @property
    def running(self) -> int: ...

    @property
    def streams(self) -> int: ...

    @property
    def awaits(self) -> bool: ...

    def drain(self) -> None: ...

    def service(self, handler_call_details: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """``credentials``: grpc server credentials or None for plaintext; ``hard_calls``: calls at which gRPC refuses.

    ``streams``: calls of one connection at once; what is beyond waits at the client.  ``connections``: at once; more
    are closed as they come.
    """

    address: str
    message_bytes: int
    hard_calls: int
    credentials: Any = None
    reuse_port: bool = False
    reflect: bool = True
    streams: int = STREAMS_PER_CONNECTION
    connections: int = 4_096


def _channel_options(options: ServerOptions) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", options.message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", options.streams),
        ("grpc.max_allowed_incoming_connections", options.connections),
        ("grpc.max_connection_idle_ms", IDLE_MS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # This is what is waited for (measured with 1.82); by default a minute, whatever the former says.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_MS),
        # Beyond 1,000 calls that the loop has not taken yet gRPC would cancel some, without a word of why.
        ("grpc.server.max_pending_requests", PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_CALLS),
        ("grpc.so_reuseport", 1 if options.reuse_port else 0),
    ]


class GrpcServer:
    """Belongs to the event loop that starts it; ``edges`` answer the calls, the first that knows a method.

    ``inner``: those for our own processes, whose calls are not counted.
    """

    def __init__(self, edges: Sequence[Handler], options: ServerOptions, inner: Sequence[Handler] = ()) -> None:
        self._edges = edges
        self._inner = inner
        self._options = options
        self._health = BoundedHealth()
        self._reflection = BoundedReflection((*(f"vecdb.v1.{name}" for name in SERVICES), HEALTH_NAME, REFLECTION_NAME))
        self._server: Any = None
        self.port = 0

    async def start(self) -> int:
        """Bind and serve; returns the port.  Health says NOT_SERVING until :meth:`ready`."""
        self._server = server = grpc.aio.server(options=_channel_options(self._options),
                                                maximum_concurrent_rpcs=self._options.hard_calls)
        handlers: tuple[Any, ...] = (*self._edges, *self._inner)
        server.add_generic_rpc_handlers(handlers)  # the first, for they are asked in turn, at each call
        add_HealthServicer_to_server(self._health, server)
        if self._options.reflect:
            add_ServerReflectionServicer_to_server(self._reflection, server)
        await self._tell(False)
        self.port = self._bind(server)
        await server.start()
        return self.port

    def _bind(self, server: Any) -> int:
        options = self._options
        try:
            port = server.add_insecure_port(options.address) if options.credentials is None \
                else server.add_secure_port(options.address, options.credentials)
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on {options.address}: {_reason(str(error))}",
                              address=options.address) from None
        if not port and not options.address.startswith("unix:"):
            raise Unavailable(f"cannot listen on {options.address}", address=options.address)
        return int(port)

    async def ready(self) -> None:
        await self._tell(True)

    async def _tell(self, serving: bool) -> None:
        state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *(f"vecdb.v1.{service}" for service in SERVICES)):
            await self._health.set(name, state)

    async def stop(self, drain_s: float) -> None:
        """Say goodbye to health checks, take no new calls, let those that run end within ``drain_s``."""
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(min(NOTICE_S, drain_s))
        self._health.watchers.end()  # they have been told, and would hold the drain to its end
        self._reflection.streams.end()
        await self._drain(drain_s)
        await self._server.stop(CUT_S if drain_s else 0.0)

    async def _drain(self, within_s: float) -> None:
        """Let calls end that have begun, and refuse others by ourselves.

        gRPC's own way cuts off calls that it has taken and not handed over yet; refused here they say that nothing was
        done, and are made again; a read of which a part was answered is let in to its end.  Streams have no end of
        their own: each message under way is finished, and what is still open a little later is cut.
        """
        for edge in self._edges:
            edge.drain()
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        while (self.running > self.streams or any(edge.awaits for edge in self._edges)) and loop.time() < until:
            await asyncio.sleep(POLL_S)
        until = min(until, loop.time() + STREAMS_S)
        while self.running and loop.time() < until:
            await asyncio.sleep(POLL_S)

    @property
    def running(self) -> int:
        count = 0
        for edge in self._edges:  # asked at each query: a generator costs twice as much
            count += edge.running
        return count

    @property
    def streams(self) -> int:
        return sum(edge.streams for edge in self._edges)


def _reason(text: str) -> str:
    """The kernel's words out of gRPC's."""
    for words in ("Address already in use", "Permission denied", "Cannot assign requested address"):
        if words.lower() in text.lower():
            return words.lower()
    return text[:200]


