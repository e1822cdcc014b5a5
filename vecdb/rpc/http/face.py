"""The HTTP face: an application on a port, inside the node's event loop."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn

from vecdb.core.errors import Unavailable
from vecdb.ports.observer import Observer, Watched
from vecdb.rpc.http.app import HttpApp
from vecdb.rpc.http.listener import Listener
from vecdb.rpc.http.protocol import HEAD_S, KEEP_ALIVE_S, WRITE_S, HttpProtocol, protocol

CANCEL_S = 1.0
"""How long cancelled calls may take to say so."""


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """``port`` 0 takes a free one; ``ssl_context`` None: plaintext; ``reuse_port``: other processes share the port."""

    host: str = "127.0.0.1"
    port: int = 7701
    connections: int = 4_096
    ssl_context: ssl.SSLContext | None = None
    reuse_port: bool = False
    head_s: float = HEAD_S
    write_s: float = WRITE_S


class _Server(uvicorn.Server):
    """Listens on a socket that is bound already, and leaves signals to the node."""

    def __init__(self, config: uvicorn.Config, made: type[HttpProtocol], options: HttpOptions,
                 on_short: Callable[[OSError], None]) -> None:
        super().__init__(config)
        self._made = made
        self._options = options
        self._on_short = on_short

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        options = self._options
        await self.lifespan.startup()
        listeners = [Listener(one, self._protocol, options.ssl_context, options.connections, self._on_short)
                     for one in sockets or []]
        for one in listeners:
            one.start()
        self.servers = listeners  # type: ignore[assignment]  # it closes them, and waits until they are
        self.started = True

    def _protocol(self, refusal: str) -> HttpProtocol:
        made = self._made(self.config, self.server_state, {})
        made.refusal = refusal
        return made


class HttpFace:
    """Belongs to the event loop that starts it."""

    def __init__(self, app: HttpApp, options: HttpOptions, observer: Observer) -> None:
        self.app = app
        self._options = options
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = 0
        observer.watch(Watched.CONNECTIONS, lambda: float(self.connections), "http")

    @property
    def connections(self) -> int:
        return 0 if self._server is None else len(self._server.server_state.connections)

    async def start(self) -> int:
        """Bind and serve; returns the port.  Raises Unavailable where the address cannot be had."""
        options = self._options
        sock = _bind(options)
        self.port = int(sock.getsockname()[1])
        limited = protocol(options.connections, options.head_s, options.write_s)
        config = uvicorn.Config(
            self.app, http=limited, ws="none", lifespan="off",
            log_config=None, log_level="critical", access_log=False, proxy_headers=False, server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S)
        self._server = server = _Server(config, limited, options, self.app.fault)
        self._serving = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started:
            if self._serving.done():
                self._serving.result()
                raise Unavailable("the HTTP face ended while it started")
            await asyncio.sleep(0.001)
        return self.port

    async def stop(self, drain_s: float) -> None:
        """Take no new connections, let running calls end within ``drain_s``, then cut off what is left."""
        server, serving = self._server, self._serving
        if server is None or serving is None:
            return
        self._serving = None
        server.config.timeout_graceful_shutdown = max(0.0, drain_s)  # type: ignore[assignment]  # wait_for takes both
        server.should_exit = True
        await asyncio.wait((serving,), timeout=drain_s + 2.0)
        await self.app.background.stop()
        if tasks := list(server.server_state.tasks):
            await asyncio.wait(tasks, timeout=CANCEL_S)
        for connection in list(server.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()
        if not serving.done():
            server.force_exit = True
        await serving


def _bind(options: HttpOptions) -> socket.socket:
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, number)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if options.reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise Unavailable(f"cannot listen on {options.host}:{options.port}: {error.strerror or error}",
                          address=f"{options.host}:{options.port}") from None
    sock.setblocking(False)
    return sock
