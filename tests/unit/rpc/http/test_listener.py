"""A process that has no file descriptors left: nobody is cut off, and the face answers when there are some again."""

import asyncio
import select
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import trustme
import uvloop

from tests.unit.rpc.http.conftest import Face
from vecdb.ports.observer import NullObserver
from vecdb.rpc.http import HttpFace, HttpOptions

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: node\r\n\r\n"


class Process:
    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "tests.unit.rpc.http.short_of_files"],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = self._line()

    def _line(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def tell(self, command: str) -> int:
        """Returns the number of faults so far."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._line()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def end(self) -> int:
        with self.process as process:
            assert process.stdin is not None
            process.stdin.close()
            try:
                return process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    try:
        yield made
    finally:
        code = made.end()
    assert code == 0


def answer(sock: socket.socket) -> bytes:
    """Head and body of an answer that is short and of JSON."""
    data = b""
    while not data.endswith(b"}") and (part := sock.recv(65_536)):
        data += part
    return data


def ask(sock: socket.socket) -> bytes:
    sock.sendall(HEALTH)
    return answer(sock)


def test_connections_wait_until_there_are_descriptors(process: Process) -> None:
    known = process.connect()
    assert ask(known).startswith(b"HTTP/1.1 200")
    for round_ in (1, 2):
        process.tell("fill 0")
        waiting = [process.connect() for _ in range(20)]
        for sock in waiting:
            sock.sendall(HEALTH)
        assert ask(known).startswith(b"HTTP/1.1 200"), "those that are there are served"
        waiting[0].settimeout(0.3)
        with pytest.raises(TimeoutError):
            waiting[0].recv(1)
        waiting[0].settimeout(20)
        assert process.tell("free") == round_, "told once for each time"
        for sock in waiting:
            assert answer(sock).startswith(b"HTTP/1.1 200")
            sock.close()


def test_the_last_descriptors_are_not_for_more_connections(process: Process) -> None:
    process.tell("fill 16")
    made = []
    for _ in range(60):
        made.append(process.connect())
        assert ask(made[-1]).startswith(b"HTTP/1.1 200")
    closed = select.select(made, [], [], 0)[0]
    assert len(closed) > 60 - 16, "those that did nothing more gave theirs to the next"
    assert process.tell("free") == 0
    assert ask(process.connect()).startswith(b"HTTP/1.1 200")
    assert ask(made[-1]).startswith(b"HTTP/1.1 200")


def closing(face: Face, turns: int, context: ssl.SSLContext | None = None) -> None:
    """A connection comes, the loop turns so often, and the face stops: nobody waits for it."""
    async def run() -> None:
        served = HttpFace(face.app(), HttpOptions(port=0, ssl_context=context), NullObserver())
        await served.start()
        assert served._server is not None
        listener: Any = served._server.servers[0]
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
            while not (listener._taking or served.connections):
                listener._accept()
            for _ in range(turns):
                await asyncio.sleep(0)
            listener.close()
            for connection in list(served._server.server_state.connections):
                connection.shutdown()
            async with asyncio.timeout(25):
                await listener.wait_closed()
                while served.connections:
                    await asyncio.sleep(0.01)
                assert await asyncio.get_running_loop().run_in_executor(None, client.recv, 1) == b""
        await served.stop(0.0)

    uvloop.run(run())


@pytest.mark.parametrize("turns", range(5))
def test_a_connection_that_comes_while_it_closes_is_not_waited_for(face: Face, turns: int) -> None:
    closing(face, turns)


def test_nor_is_a_handshake_that_has_begun(face: Face) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    closing(face, 2, context)


class Gone:
    """A transport of uvloop's whose handle was closed beneath it."""

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    def close(self) -> None:
        """It is."""


def test_a_head_that_is_late_on_a_handle_that_is_gone_ends_the_connection(face: Face) -> None:
    async def run() -> None:
        served = HttpFace(face.app(), HttpOptions(port=0), NullObserver())
        await served.start()
        assert served._server is not None
        with socket.create_connection(("127.0.0.1", served.port), timeout=20):
            async with asyncio.timeout(25):
                while not served.connections:
                    await asyncio.sleep(0.01)
            connection: Any = next(iter(served._server.server_state.connections))
            there, connection.transport = connection.transport, Gone()
            connection._head_late()
            assert served.connections == 0
            there.close()
        await served.stop(0.0)

    asyncio.run(run())
