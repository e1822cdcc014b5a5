"""Accepting connections, in a way that outlives a process without file descriptors.

uvloop closes a server for good, and without a word, when its ``accept`` finds no descriptor; before that it resets all
that wait.  Here they wait in the kernel's queue until there are descriptors again.  So that it seldom comes to that,
the last ones are not for connections: files of the store and calls that run already need them more.

A connection that is being taken while the listener closes is taken to the end, and then closed as all others are:
uvloop closes the handle of one whose taking is cancelled, and never tells its protocol, which a drain then waits for.
"""

import asyncio
import errno
import resource
import socket
import ssl
from collections.abc import Callable
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

BACKLOG: Final = 1024
AT_ONCE: Final = 64
"""Connections accepted before the loop turns."""
PAUSE_S: Final = 0.1
HANDSHAKE_S: Final = 15.0
MOST_RESERVED: Final = 64
TLS_SHUTDOWN_S: Final = 3.0
"""For a client to answer that a connection ends: one that idles in a client's pool is read by nobody there."""

_SHORT: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

Make = Callable[[str], HttpToolsProtocol]
"""A protocol for a connection; what it is given, if not "", is why the connection is to be refused."""


class Listener:
    """Belongs to an event loop; ``sock`` is bound and does not block, and is closed by its owner.

    ``handshakes``: most TLS handshakes at once.  ``on_short(error)`` hears, once for each time, that descriptors or
    memory are used up.
    """

    def __init__(self, sock: socket.socket, make: Make, ssl_context: ssl.SSLContext | None, handshakes: int,
                 on_short: Callable[[OSError], None]) -> None:
        self._sock = sock
        self._make = make
        self._ssl = ssl_context
        self._handshakes = handshakes
        self._on_short = on_short
        self._last = _last_descriptor()
        self._short = False
        self._resuming: asyncio.TimerHandle | None = None
        self._taking: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(self) -> None:
        self._sock.listen(BACKLOG)
        self._resume()

    def close(self) -> None:
        """Accept no more; what is in the middle of a handshake is cut off."""
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
        asyncio.get_running_loop().remove_reader(self._sock)
        self._closed = True
        if self._ssl is not None:
            for task in self._taking:
                task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._taking, return_exceptions=True)

    def _resume(self) -> None:
        self._resuming = None
        asyncio.get_running_loop().add_reader(self._sock, self._accept)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _SHORT:
                    self._pause(error)
                    return
                continue  # it went away while it waited
            self._short = False
            connection.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._take(connection))
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    def _pause(self, error: OSError) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock)
        self._resuming = loop.call_later(PAUSE_S, self._resume)
        if not self._short:
            self._short = True
            self._on_short(error)

    async def _take(self, connection: socket.socket) -> None:
        # The kernel gives the lowest number that is free: a high one says how many are in use.
        refusal = "the process has hardly any file descriptors left" if connection.fileno() > self._last else ""
        try:
            if self._ssl is not None and (refusal or len(self._taking) > self._handshakes):
                connection.close()
                return
            if self._closed:
                connection.close()
                return
            _, protocol = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._make(refusal), connection, ssl=self._ssl,
                ssl_handshake_timeout=None if self._ssl is None else HANDSHAKE_S,
                ssl_shutdown_timeout=None if self._ssl is None else TLS_SHUTDOWN_S)
            if self._closed:
                protocol.shutdown()
        except OSError:  # a handshake that was none, or a client that has gone
            connection.close()
        except BaseException:
            connection.close()
            raise


def _last_descriptor() -> float:
    """The highest that a connection may have."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return float("inf") if limit == resource.RLIM_INFINITY else limit - 1 - min(MOST_RESERVED, limit // 8)
