"""The face on a socket: limits that only a connection has, TLS, and how it stops."""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
import trustme

from tests.unit.rpc.http.conftest import Face
from vecdb.core.errors import Unavailable
from vecdb.ports.observer import NullObserver
from vecdb.rpc.http import HttpFace, HttpOptions
from vecdb.rpc.http.protocol import FEW, MAX_HEAD_BYTES, MAX_HEADERS, _name

COUNT = b"POST /v1/collections/docs/records:count HTTP/1.1\r\nhost: node\r\ncontent-length: 0\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: node\r\n\r\n"


def on_socket(face: Face, test: Callable[[HttpFace], Awaitable[None]], **options: Any) -> None:
    """Run ``test`` against the face on a free port of loopback."""
    face.docs()

    async def run() -> None:
        served = HttpFace(face.app(), HttpOptions(port=0, **options), NullObserver())
        assert await served.start() == served.port > 0
        try:
            async with asyncio.timeout(20):
                await test(served)
        finally:
            await served.stop(0.2)
        assert served.connections == 0

    asyncio.run(run())


class Wire:
    """One connection, spoken by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, served: HttpFace, **more: Any) -> "Wire":
        return cls(*await asyncio.open_connection("127.0.0.1", served.port, **more))

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        self.writer.write(data)
        await self.writer.drain()
        return await self.answer()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(head[0].split()[1]), headers, body

    async def ended(self) -> bool:
        return await self.reader.read() == b""


def kind(body: bytes) -> str:
    return str(orjson.loads(body)["error"]["kind"])


def test_requests_follow_each_other_on_one_connection(face: Face) -> None:
    async def test(served: HttpFace) -> None:
        wire = await Wire.to(served)
        for _ in range(3):
            assert (await wire.ask(COUNT))[2] == b'{"count":3}'
        assert (await wire.ask(COUNT + HEALTH))[2] == b'{"count":3}'
        assert (await wire.answer())[0] == 200
        body = b'{"vector": [0, 0], "k": 1}'
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:9], body[9:])) + b"0\r\n\r\n"
        status, headers, _ = await wire.ask(
            b"POST /v1/collections/docs:query HTTP/1.1\r\nhost: n\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n")
        assert status == 100
        status, headers, answer = await wire.ask(chunks)
        assert (status, headers["x-content-type-options"]) == (200, "nosniff")
        assert orjson.loads(answer)["results"][0]["matches"][0]["id"] == 7

    on_socket(face, test)


@pytest.mark.parametrize("head", [
    b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nhost: n\r\n\r\n",
    b"GET / HTTP/1.1\r\nx: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (MAX_HEADERS + 2) + b"\r\n"])
def test_long_heads_are_refused(face: Face, head: bytes) -> None:
    async def test(served: HttpFace) -> None:
        wire = await Wire.to(served)
        status, headers, body = await wire.ask(head)
        assert (status, kind(body), headers["connection"]) == (431, "LimitExceeded", "close")
        assert await wire.ended()

    on_socket(face, test)


@pytest.mark.parametrize("data", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GARBAGE\r\n\r\n",
    b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
    b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n",
    b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", b"GET \xff HTTP/1.1\r\nhost: n\r\n\r\n",
    b"GET / HTTP/1.1\r\nx : y\r\n\r\n", b"GET /healthz HTTP/1.1\r\nx: y\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nhost: a\r\nHost: a\r\n\r\n", b"GET / HTTP/1.0\r\nhost: a\r\nHost: b\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_what_is_no_request_is_refused(face: Face, data: bytes) -> None:
    async def test(served: HttpFace) -> None:
        wire = await Wire.to(served)
        status, _, body = await wire.ask(data)
        assert (status, kind(body)) == (400, "MalformedRequest")
        assert await wire.ended()

    on_socket(face, test)


@pytest.mark.parametrize("data", [b"", b"GET /healthz HTTP/1.1\r\nhost"])
def test_a_head_that_does_not_come(face: Face, data: bytes) -> None:
    async def test(served: HttpFace) -> None:
        wire = await Wire.to(served)
        status, _, body = await wire.ask(data)
        assert (status, kind(body)) == (408, "RequestTimeout")
        assert await wire.ended()

    on_socket(face, test, head_s=0.05)


UPLOAD = (b"POST /v1/collections/docs:query HTTP/1.1\r\nhost: n\r\ncontent-type: application/json\r\n"
          b"content-length: %d\r\n\r\n{")


def test_a_body_that_comes_slowly(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecdb.rpc.http.incoming.WINDOW_S", 0.1)

    async def test(served: HttpFace) -> None:
        wire = await Wire.to(served)
        wire.writer.write(UPLOAD % 100_000)
        answer = asyncio.create_task(wire.answer())
        while not answer.done():
            wire.writer.write(b" ")
            await asyncio.sleep(0.01)
        status, headers, body = await answer
        assert (status, kind(body), headers["connection"]) == (408, "RequestTimeout", "close")

    on_socket(face, test)


def test_lengths_that_are_declared_keep_nobody_out(face: Face) -> None:
    """Eight that declare all there is together, and send next to nothing: the next call has room."""
    async def test(served: HttpFace) -> None:
        face.door.most = face.message_bytes
        slow = [await Wire.to(served) for _ in range(8)]
        for wire in slow:
            wire.writer.write(UPLOAD % (face.message_bytes // 2))
        while face.door.held < len(slow):
            await asyncio.sleep(0.005)
        assert face.door.held == len(slow)
        body = b'{"vector":[0,0],"filter":null}' + b" " * (1 << 20)
        status, _, answer = await (await Wire.to(served)).ask(UPLOAD[:-1] % len(body) + body)
        assert (status, len(orjson.loads(answer)["results"])) == (200, 1)
        for wire in slow:
            wire.writer.close()
        while served.app.running:
            await asyncio.sleep(0.005)
        assert not face.door.held

    on_socket(face, test)


def test_http_of_old_needs_no_host(face: Face) -> None:
    async def test(served: HttpFace) -> None:
        wire = await Wire.to(served)
        assert (await wire.ask(b"GET /healthz HTTP/1.0\r\n\r\n"))[0] == 200
        assert await wire.ended()

    on_socket(face, test)


def test_connections_above_the_limit_when_all_are_at_work(face: Face) -> None:
    async def test(served: HttpFace) -> None:
        gate = face.node.gate["count"] = asyncio.Event()
        held = [await Wire.to(served) for _ in range(3)]
        for wire in held:
            wire.writer.write(COUNT)
        while served.app.running < 3:
            await asyncio.sleep(0.005)
        more = await Wire.to(served)
        status, headers, body = await more.answer()
        assert (status, kind(body), headers["retry-after"]) == (503, "Overloaded", "1")
        assert await more.ended()
        gate.set()
        for wire in held:
            assert (await wire.answer())[2] == b'{"count":3}'
        assert (await (await Wire.to(served)).ask(HEALTH))[0] == 200
        assert await held[0].ended(), "the one that was idle first"
        assert (await held[1].ask(HEALTH))[0] == 200

    on_socket(face, test, connections=3)


def test_who_does_nothing_keeps_nobody_out(face: Face) -> None:
    async def test(served: HttpFace) -> None:
        gate = face.node.gate["count"] = asyncio.Event()
        busy, idle = await Wire.to(served), await Wire.to(served)
        assert (await idle.ask(HEALTH))[0] == 200
        busy.writer.write(COUNT)
        while not served.app.running:
            await asyncio.sleep(0.005)
        silent = [await Wire.to(served) for _ in range(20)]
        for wire in silent[:-2]:
            assert await wire.ended()
        assert served.connections <= 4
        for _ in range(10):
            assert (await (await Wire.to(served)).ask(HEALTH))[0] == 200
        gate.set()
        assert (await busy.answer())[2] == b'{"count":3}'

    on_socket(face, test, connections=4)


def test_hardly_any_descriptors_left(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecdb.rpc.http.listener._last_descriptor", lambda: -1.0)

    async def test(served: HttpFace) -> None:
        face.node.gate["count"] = asyncio.Event()
        busy = [await Wire.to(served) for _ in range(FEW)]
        for wire in busy:
            wire.writer.write(COUNT)
        while served.app.running < FEW:
            await asyncio.sleep(0.005)
        status, headers, body = await (await Wire.to(served)).answer()
        assert (status, kind(body), headers["retry-after"]) == (503, "Overloaded", "1")
        assert b"file descriptors" in body

    on_socket(face, test)


def test_a_body_that_is_no_chunks(face: Face) -> None:
    async def test(served: HttpFace) -> None:
        wire = await Wire.to(served)
        status, headers, body = await wire.ask(
            b"POST /v1/collections/docs:query HTTP/1.1\r\nhost: n\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\nzz\r\n")
        assert (status, kind(body), headers["connection"]) == (400, "MalformedRequest", "close")
        assert await wire.ended()
        while served.app.running:
            await asyncio.sleep(0.005)

    on_socket(face, test)


def test_a_client_that_reads_nothing_is_cut_off(face: Face) -> None:
    face.docs()
    face.ask("POST", "/v1/collections", {"name": "wide", "dim": 4096, "metric": "dot"})
    face.ask("POST", "/v1/collections/wide/records", {"ids": list(range(40)), "vectors": [[0.5] * 4096] * 40})
    face.ask("DELETE", "/v1/collections/docs")
    scan = b'{"include":["vector"]}'

    async def test(served: HttpFace) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", served.port))
        request = (b"POST /v1/collections/wide/records:scan HTTP/1.1\r\nhost: n\r\ncontent-type: application/json\r\n"
                   b"content-length: %d\r\n\r\n%s" % (len(scan), scan))
        await asyncio.get_running_loop().sock_sendall(sock, request * 20)
        while not served.connections:
            await asyncio.sleep(0.01)
        while served.connections:
            await asyncio.sleep(0.01)
        sock.close()

    on_socket(face, test, write_s=0.1)


def test_a_client_that_hangs_up_ends_its_work(face: Face) -> None:
    face.node.gate["count"] = asyncio.Event()

    async def test(served: HttpFace) -> None:
        wire = await Wire.to(served)
        wire.writer.write(COUNT)
        while not served.app.running:
            await asyncio.sleep(0.005)
        wire.writer.close()
        while served.app.running:
            await asyncio.sleep(0.005)
        assert face.node.calls[-1][2].stop[0] == 2

    on_socket(face, test)


def test_stopping_lets_running_calls_end(face: Face) -> None:
    face.docs()
    gate = face.node.gate["count"] = asyncio.Event()

    async def run() -> None:
        served = HttpFace(face.app(), HttpOptions(port=0), NullObserver())
        await served.start()
        idle, busy = await Wire.to(served), await Wire.to(served)
        assert (await idle.ask(HEALTH))[0] == 200
        busy.writer.write(COUNT)
        while not served.app.running:
            await asyncio.sleep(0.005)
        stopping = asyncio.create_task(served.stop(10.0))
        assert await idle.ended()
        with pytest.raises(OSError):
            await Wire.to(served)
        gate.set()
        assert (await busy.answer())[2] == b'{"count":3}'
        await stopping
        await served.stop(1.0)

    asyncio.run(run())


def test_stopping_cuts_off_what_does_not_end(face: Face) -> None:
    face.docs()
    face.node.gate["count"] = asyncio.Event()

    async def run() -> None:
        served = HttpFace(face.app(), HttpOptions(port=0), NullObserver())
        await served.start()
        busy = await Wire.to(served)
        busy.writer.write(COUNT)
        while not served.app.running:
            await asyncio.sleep(0.005)
        await served.stop(0.05)
        status, headers, body = await busy.answer()
        assert (status, kind(body), headers["retry-after"]) == (503, "Unavailable", "1")
        assert await busy.ended()
        assert face.node.calls[-1][2].stop[0] == 2
        assert not served.app.running

    asyncio.run(run())


def test_a_port_that_is_taken(face: Face) -> None:
    async def run() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(Unavailable, match="cannot listen on"):
                await HttpFace(face.app(), HttpOptions(port=taken.getsockname()[1]), NullObserver()).start()

    asyncio.run(run())


def test_tls_with_a_client_certificate(face: Face) -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("node.test").configure_cert(server)
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(client)
    authority.issue_cert("client.test").configure_cert(client)

    async def test(served: HttpFace) -> None:
        wire = await Wire.to(served, ssl=client, server_hostname="node.test")
        assert (await wire.ask(COUNT))[0] == 200
        assert face.door.peers[-1][1] == "client.test"
        plain = await Wire.to(served)
        plain.writer.write(COUNT)
        assert b"200" not in await plain.reader.read()

    on_socket(face, test, ssl_context=server)


def test_names_in_certificates() -> None:
    assert _name(None) == ""
    assert _name({"subject": ((("commonName", "cn"),),)}) == "cn"
    assert _name({"subject": ((("commonName", "cn"),),), "subjectAltName": (("URI", "spiffe://a/b"),)}) == "spiffe://a/b"
    assert _name({"subject": ((("commonName", "a\nb"),),)}) == "'a\\nb'"
