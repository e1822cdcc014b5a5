"""HTTP/1.1 on a socket: uvicorn's protocol with the limits that it leaves to a proxy in front.

httptools bounds neither the head of a request nor the time it takes (uvicorn issue 157 and others), and a response that
its client does not read is held for ever.  Here: a head of :data:`MAX_HEAD_BYTES` and :data:`MAX_HEADERS` lines within
``head_s``, connections up to a number, writes that make progress within ``write_s``.  Bodies are the affair of
:mod:`vecdb.rpc.http.incoming`, which knows what it is reading them for.

**When there are too many connections** a new one takes the place of one that does nothing: of those that never asked
anything the oldest, else of those between two requests.  Otherwise whoever opens enough of them and idles would cut off
everyone else, and the probes by which an orchestrator judges the node.  Only where all are at work is one refused.
"""

import asyncio
from itertools import islice
from typing import Any, ClassVar, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from vecdb.rpc.http.edge import CERTIFICATE
from vecdb.rpc.http.replies import Refused, failure

MAX_HEAD_BYTES: Final = 32 << 10
MAX_HEADERS: Final = 100
KEEP_ALIVE_S: Final = 75
FEW: Final = 8
"""So many connections there may be even where descriptors are scarce, for those who look what is the matter."""
HEAD_S: Final = 10.0
WRITE_S: Final = 30.0


class HttpProtocol(HttpToolsProtocol):
    """One connection; :func:`protocol` sets the limits, and keeps ``silent`` and ``idle`` in the order of their coming.

    ``refusal``: why there is hardly room for it.
    """

    refusal = ""
    silent: ClassVar[dict["HttpProtocol", None]] = {}
    idle: ClassVar[dict["HttpProtocol", None]] = {}
    most_connections = 4_096
    head_s = HEAD_S
    write_s = WRITE_S

    def __init__(self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any],
                 _loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._certificate = ""
        self._refused = Refused(400, "INVALID_ARGUMENT", "MalformedRequest", "this is no HTTP/1.1 request")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._certificate = _name(transport.get_extra_info("peercert"))
        why = self.refusal if len(self.connections) > FEW else ""
        if not why and len(self.connections) > self.most_connections:
            why = f"{self.most_connections} connections are open already"
        if why and not self._make_room():
            self._refused = Refused(503, "RESOURCE_EXHAUSTED", "Overloaded", why, (("retry-after", "1"),))
            self.send_400_response("")
            return
        self.silent[self] = None
        self._await_head()

    def _make_room(self) -> bool:
        """Close a connection that does nothing, if there is one."""
        for other in (*islice(self.silent, 1), *islice(self.idle, 1)):
            other._leave()
            other.transport.close()
            return True
        return False

    def _leave(self) -> None:
        self.connections.discard(self)
        self._works()

    def _works(self) -> None:
        self.silent.pop(self, None)
        self.idle.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self.idle[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        self._works()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def _stop_timers(self) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._write_timer = None

    # --- the head ---------------------------------------------------------------------------------

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_s, self._head_late)

    def _head_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refused = Refused(408, "DEADLINE_EXCEEDED", "RequestTimeout",
                                    f"the head of a request took more than {self.head_s:g} seconds")
            try:
                self.send_400_response("")
            except RuntimeError:  # uvloop's, of a handle that was closed beneath the transport: nobody tells of that
                self.connection_lost(None)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._await_head()
        if self._certificate:
            self.scope["extensions"] = {CERTIFICATE: {"name": self._certificate}}

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refused = Refused(431, "INVALID_ARGUMENT", "LimitExceeded",
                                    f"a request's head of more than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} lines")
            raise ValueError("the head is too long")

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._works()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):  # RFC 9112, 3.2
            self._refused = Refused(400, "INVALID_ARGUMENT", "MalformedRequest", f"a request has one Host header, not "
                                    f"{hosts}", argument="host", got=hosts, limit=1)
            raise ValueError("no host, or more than one")
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """In the form of all errors; the connection is of no more use."""
        reply = failure(self._refused, "").reply
        head = [STATUS_LINE[reply.status], b"content-type: application/json\r\nconnection: close\r\n",
                b"content-length: %d\r\n" % len(reply.body)]
        head += [f"{name}: {value}\r\n".encode() for name, value in reply.headers]
        cycle = self.cycle
        bad_body = cycle is not None and cycle.more_body and not cycle.response_started and not self.pipeline
        if cycle is None or cycle.response_complete or bad_body:  # else this would stand in the middle of an answer
            self.transport.write(b"".join([*head, b"\r\n", reply.body]))
        self.transport.close()

    # --- the answer -------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.write_s, self._unread, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def _unread(self, before: int) -> None:
        """A client that reads nothing at all is cut off; one that reads slowly may go on."""
        self._write_timer = None
        now = self.transport.get_write_buffer_size()
        if now >= before:
            self.transport.abort()
        else:
            self._write_timer = self.loop.call_later(self.write_s, self._unread, now)


def protocol(connections: int, head_s: float = HEAD_S, write_s: float = WRITE_S) -> type[HttpProtocol]:
    """The protocol with limits of its own."""
    return type("LimitedHttpProtocol", (HttpProtocol,),
                {"most_connections": connections, "head_s": head_s, "write_s": write_s, "silent": {}, "idle": {}})


def _name(certificate: Any) -> str:
    """The name in a client's certificate: SPIFFE id or DNS name, else the common name; "" without one."""
    if not certificate:
        return ""
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind in ("URI", "DNS")]
    names += [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    name = str(names[0])[:256] if names else ""
    return name if name.isprintable() else ascii(name)
