"""The listener for other nodes of the cluster: port 7702.

**Who gets in.**  With TLS both sides show certificates of the cluster's CA; a connection that does not is closed in the
handshake, within :data:`HANDSHAKE_MS`: below Python, which hears nothing of it, so that such connections are neither
counted nor told here, but by the side that calls (:mod:`vecdb.rpc.probing`).  Every call is greeted
(:mod:`vecdb.rpc.peer_names`), and refused with its message unread where the protocol or the cluster is another one, the
name is unknown, ours, or not in the caller's certificate, or it is another node that is meant.  Refusals are counted,
and told once a minute for each kind and peer.  A service sees only calls that were let in, and asks :func:`peer_name`
who calls.

**Who is known** is looked up at each call: nodes come and go.  Methods that are *open* are for those who are to become
known: a certificate of the cluster is enough, and who cannot know yet whom it reaches means the bearer of its own name.

**Two processes by one name**: the one at the node's address is believed, the other refused; see
:mod:`vecdb.rpc.peer_twins`.

**Bounds** that gRPC keeps: connections, calls of a connection, calls at all, the largest message, metadata.  Pings are
allowed as often as peers like, because they find dead connections within two seconds by them.
"""

import inspect
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final

import grpc

from vecdb.core.errors import InvalidArgument, Unavailable, VecdbError
from vecdb.ports.tell import Tell, tell_nobody
from vecdb.rpc.peer_names import PROTOCOL, Greeting, certified
from vecdb.rpc.peer_twins import TWICE, Ask, Twins
from vecdb.rpc.reading import Readers
from vecdb.rpc.seldom import Seldom

MESSAGE_BYTES: Final = 128 << 20
"""Largest message: one of the largest batch with what stands around it, or a frame with such a command."""
HANDSHAKE_MS: Final = 5_000
KEEPALIVE_MS: Final = 2_000
KEEPALIVE_TIMEOUT_MS: Final = 2_000
IDLE_MS: Final = 60_000
"""A connection without a call is closed: peers always have one."""
MAX_METADATA_BYTES: Final = 8 << 10
STREAMS_PER_CONNECTION: Final = 4_096
CONNECTIONS: Final = 512
CALLS: Final = 16_384
_CODES: Final = {"no_greeting": grpc.StatusCode.UNAUTHENTICATED, "not_certified": grpc.StatusCode.PERMISSION_DENIED}

_GREETING: ContextVar[Greeting] = ContextVar("vecdb_peer")


@dataclass(frozen=True, slots=True)
class PeerServerOptions:
    """``nodes``: all of the cluster, of the moment; ``removed``: who was one.  ``open_methods``: for everybody with a
    certificate of the cluster.  ``credentials``: of gRPC, asking for a certificate; without any ``insecure`` must
    be said.  ``ask``: which process a node is, without it all are believed; ``unasked_methods``: by which
    that is asked.
    """

    node: str
    cluster: str
    address: str
    nodes: Collection[str]
    credentials: grpc.ServerCredentials | None = None
    insecure: bool = False
    message_bytes: int = MESSAGE_BYTES
    tell: Tell = field(default=tell_nobody)
    removed: Callable[[], Collection[str]] = tuple
    open_methods: Collection[str] = ()
    ask: Ask | None = None
    unasked_methods: Collection[str] = ()


class Refused(Exception):
    """A call of another node, refused; ``kind`` is for counters, ``about`` the name it is about, if any."""

    def __init__(self, kind: str, why: str, about: str = "") -> None:
        super().__init__(why)
        self.kind, self.why, self.about = kind, why, about


def peer_name(context: Any) -> str:
    """The node whose call this is, as verified; for handlers behind a :class:`PeerServer`, in their own task."""
    return _GREETING.get().node


def peer_greeting(context: Any) -> Greeting:
    """All that the caller said of itself, its name verified."""
    return _GREETING.get()


def _channel_options(options: PeerServerOptions) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", options.message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
        ("grpc.max_allowed_incoming_connections", CONNECTIONS),
        ("grpc.max_connection_idle_ms", IDLE_MS),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 100),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.max_pings_without_data", 0),
        # Beyond 1,000 calls that the loop has not taken yet gRPC would cancel some, without a word of why.
        ("grpc.server.max_pending_requests", CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * CALLS),
        ("grpc.so_reuseport", 0),
    ]


class PeerServer:
    """Belongs to the event loop that starts it.  ``services`` are ``grpc.GenericRpcHandler``; the first that knows a
    method answers it.  Those with ``drain()`` are told when the server stops: their streams have no end of their own.
    """

    def __init__(self, options: PeerServerOptions, services: Sequence[Any]) -> None:
        if options.credentials is None and not options.insecure:
            raise InvalidArgument("insecure", "nodes without certificates believe whoever reaches them: say that this "
                                  "is meant", got=False, limit="credentials, or insecure=True")
        self._options = options
        self._services = tuple(services)
        self.guard = Guard(options)
        self._server: Any = None
        self.port = 0

    @property
    def refused(self) -> Counter[str]:
        """Calls that were refused, by kind."""
        return self.guard.refused

    async def start(self) -> int:
        """Bind and serve; returns the port.  Raises :class:`Unavailable` where the address cannot be had."""
        options = self._options
        server = grpc.aio.server(options=_channel_options(options), maximum_concurrent_rpcs=CALLS)
        server.add_generic_rpc_handlers((_Guarded(self.guard, self._services),))
        try:
            port = server.add_insecure_port(options.address) if options.credentials is None \
                else server.add_secure_port(options.address, options.credentials)
        except RuntimeError:
            port = 0
        if not port:
            del server  # it ends in the loop that runs now, not whenever this error is forgotten
            raise Unavailable(f"cannot listen for other nodes on {options.address}: it is in use, not of this machine, "
                              "or not allowed", address=options.address)
        self._server, self.port = server, int(port)
        await server.start()
        return self.port

    async def stop(self, grace: float = 0.0) -> None:
        """End streams of frames at once; other calls have ``grace`` seconds to end."""
        for service in self._services:
            drain = getattr(service, "drain", None)
            if drain is not None:
                drain()
        if self._server is not None:
            await self._server.stop(grace)


class Guard:
    """Looks at who calls."""

    def __init__(self, options: PeerServerOptions) -> None:
        self._options = options
        self.refused: Counter[str] = Counter()
        self._seldom = Seldom(options.tell)
        self._twins = None if options.ask is None else Twins(options.ask)

    def greeted(self, metadata: Any, method: str = "") -> Greeting:
        """The greeting of a call, as far as it can be checked without the connection; raises :class:`Refused`."""
        options = self._options
        agent = next((value for key, value in metadata or () if key == "user-agent"), "")
        greeting = Greeting.read(agent) if isinstance(agent, str) else None
        if greeting is None:
            raise Refused("no_greeting", "this port is for nodes of a cluster alone")
        if greeting.protocol != PROTOCOL:
            raise Refused("protocol", f"protocol {greeting.protocol}; this node speaks {PROTOCOL}")
        if greeting.cluster != options.cluster:
            raise Refused("cluster", f"this node is of another cluster than {greeting.cluster!r}")
        if greeting.node == options.node:
            raise Refused("own_name", f"{greeting.node!r} is the name of this node: two nodes have it, or an address "
                          "leads back")
        if method in options.open_methods:
            if greeting.to not in (options.node, greeting.node):
                raise Refused("not_meant", f"this is {options.node!r}, not {greeting.to!r}")
            return greeting
        if greeting.node in options.removed():
            raise Refused("removed", f"{greeting.node!r} was removed from this cluster; it has to join anew")
        if greeting.node not in options.nodes:
            raise Refused("unknown_node", f"{greeting.node!r} is not among the nodes of this cluster")
        if greeting.to != options.node:
            raise Refused("not_meant", f"this is {options.node!r}, not {greeting.to!r}")
        return greeting

    def certified(self, greeting: Greeting, context: Any) -> None:
        """Raise :class:`Refused` unless the connection's certificate has the name."""
        if self._options.credentials is None:
            return
        names = (name.decode("ascii", "replace") for name in context.auth_context().get("peer_dns", ()))
        if greeting.node not in certified(names, self._options.cluster):
            raise Refused("not_certified", f"the certificate is not of {greeting.node!r} in this cluster")

    async def single(self, greeting: Greeting, context: Any, method: str) -> Greeting:
        """The greeting, with what is known of its process; raises :class:`Refused` where another one is the node."""
        twins, options, node = self._twins, self._options, greeting.node
        if twins is None or method in options.unasked_methods:
            return greeting
        if not twins.settled(node, greeting.incarnation) and not await twins.admits(
                node, greeting.incarnation, _host(context.peer())):
            where = options.nodes.get(node, "its address") if isinstance(options.nodes, Mapping) else "its address"
            raise Refused(TWICE, f"two nodes have this name (node_twice): {node!r} is the process at {where}, and this "
                          "is another one", node)
        return replace(greeting, confirmed=True) if twins.confirmed(node, greeting.incarnation) else greeting

    async def refuse(self, refusal: Refused, context: Any) -> None:
        """Count it, tell it, and end the call."""
        self.refused[refusal.kind] += 1
        peer = _address(context.peer())
        if refusal.kind == TWICE:
            self._seldom("error", TWICE, refusal.kind, peer, about=refusal.about, why=refusal.why)
        else:
            self._seldom("warning", "peer_refused", refusal.kind, peer, why=refusal.why)
        await context.abort(_CODES.get(refusal.kind, grpc.StatusCode.FAILED_PRECONDITION), refusal.why,
                            (("vecdb-refused", refusal.kind),))


def _address(peer: str) -> str:
    """Without the port, which is another one each time."""
    return peer.rpartition(":")[0] or peer


def _host(peer: str) -> str:
    """Of ``ipv4:10.0.0.1:4711``, without what is round it."""
    return _address(peer).partition(":")[2] or peer


class _Guarded(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    """The services behind the guard."""

    def __init__(self, guard: Guard, services: Sequence[Any]) -> None:
        self._guard = guard
        self._services = services
        self._readers = Readers()

    def service(self, handler_call_details: Any) -> Any:
        try:
            greeting = self._guard.greeted(handler_call_details.invocation_metadata, handler_call_details.method)
        except Refused as refusal:
            return _refusing(self._guard, refusal)
        for service in self._services:
            handler = service.service(handler_call_details)
            if handler is not None:
                return self._behind(handler, greeting, handler_call_details.method)
        return None

    def _behind(self, handler: Any, greeting: Greeting, method: str) -> Any:
        """The handler, run once the certificate has been looked at; of unary calls the message is read only then."""
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            streaming = self._streaming(inner, greeting, handler, method)
            return grpc.stream_stream_rpc_method_handler(streaming, handler.request_deserializer,
                                                         handler.response_serializer) if handler.request_streaming \
                else grpc.stream_stream_rpc_method_handler(streaming, None, handler.response_serializer)
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
        deserializer = handler.request_deserializer if handler.request_streaming else None
        return grpc.stream_unary_rpc_method_handler(self._answering(inner, greeting, handler, method),
                                                    deserializer, handler.response_serializer)

    async def _enter(self, greeting: Greeting, context: Any, method: str) -> None:
        try:
            self._guard.certified(greeting, context)
            greeting = await self._guard.single(greeting, context, method)
        except Refused as refusal:
            await self._guard.refuse(refusal, context)
        _GREETING.set(greeting)

    async def _message(self, handler: Any, context: Any) -> Any:
        """The one message of a unary call."""
        try:
            raw = await self._readers.read(context)
        except VecdbError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
        try:
            return raw if handler.request_deserializer is None else handler.request_deserializer(raw)
        except Exception:  # whatever the service's own reader raises for what it cannot read
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"these {len(raw)} bytes are no request")

    def _answering(self, inner: Any, greeting: Greeting, handler: Any, method: str) -> Any:
        async def answer(requests: Any, context: Any) -> Any:
            await self._enter(greeting, context, method)
            return await inner(requests if handler.request_streaming else await self._message(handler, context),
                               context)

        return answer

    def _streaming(self, inner: Any, greeting: Greeting, handler: Any, method: str) -> Any:
        if inspect.isasyncgenfunction(inner):
            async def generate(requests: Any, context: Any) -> AsyncIterator[Any]:
                await self._enter(greeting, context, method)
                said = requests if handler.request_streaming else await self._message(handler, context)
                async for reply in inner(said, context):
                    yield reply

            return generate

        async def write(requests: Any, context: Any) -> None:
            await self._enter(greeting, context, method)
            await inner(requests if handler.request_streaming else await self._message(handler, context), context)

        return write


def _refusing(guard: Guard, refusal: Refused) -> Any:
    async def refuse(_: Any, context: Any) -> None:
        await guard.refuse(refusal, context)

    return grpc.stream_stream_rpc_method_handler(refuse)
