"""Certificates that change under running servers: real handshakes with gRPC's aio server and an asyncio TLS server."""

import asyncio
import datetime
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import trustme

from vecdb.core.errors import InvalidArgument
from vecdb.rpc.certificates import expiries, not_after
from vecdb.rpc.tls import Certificates, open_certificates
from vecdb.runtime.clock import SystemClock

SERVER = trustme.CA()
CLIENTS, OTHERS = trustme.CA(), trustme.CA()


class Clock(SystemClock):
    """``ahead``: how far the monotonic clock is turned on."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


class Files:
    """PEM files of a node, and what was told about them."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key, self.ca = folder / "cert.pem", folder / "key.pem", folder / "ca.pem"
        self.told: list[tuple[str, str, dict[str, Any]]] = []
        self.clock = Clock()
        self.mutual = False

    def write(self, issued: trustme.LeafCert) -> None:
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.key.chmod(0o600)

    def trust(self, *authorities: trustme.CA) -> None:
        self.mutual = True
        self.ca.write_bytes(b"".join(ca.cert_pem.bytes() for ca in authorities))

    def open(self) -> Certificates:
        made = open_certificates(
            SimpleNamespace(cert_file=self.cert, key_file=self.key, client_ca_file=self.ca if self.mutual else None,
                            reload_s=10.0), self.clock, lambda *said, **fields: self.told.append((*said, fields)))
        assert made is not None
        return made

    def events(self) -> list[str]:
        return [event for _, event, _ in self.told]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path)
    made.write(issue())
    return made


def issue(**named: Any) -> trustme.LeafCert:
    return SERVER.issue_cert("localhost", "127.0.0.1", **named)


def serial(issued: trustme.LeafCert) -> str:
    return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode()).hex()


def handshake(port: int, client: trustme.LeafCert | None = None, *, name: str | None = "localhost",
              alpn: str = "h2", version: ssl.TLSVersion | None = None) -> str | None:
    """The server's certificate as a new connection sees it (hex of DER), None where the handshake is refused."""
    context = ssl.create_default_context()
    SERVER.configure_trust(context)
    context.set_alpn_protocols([alpn])
    context.check_hostname = name is not None
    if version is not None:
        context.maximum_version = version
    if client is not None:
        client.configure_cert(context)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as plain, \
                context.wrap_socket(plain, server_hostname=name) as secure:
            seen = secure.getpeercert(binary_form=True)
            if not secure.recv(1):  # in TLS 1.3 a refused client hears of it with the first read
                return None
            assert seen is not None
            return seen.hex()
    except (ssl.SSLError, ConnectionError):
        return None


@asynccontextmanager
async def grpc_server(certificates: Certificates) -> AsyncIterator[int]:
    server = grpc.aio.server()

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
        "test", {"Echo": grpc.unary_unary_rpc_method_handler(echo)}),))
    port = server.add_secure_port("127.0.0.1:0", certificates.grpc_credentials())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[int]:
    """What uvicorn does with an SSLContext, without the rest of it."""
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def channel(port: int, client: trustme.LeafCert | None = None) -> Any:
    pair: dict[str, bytes] = {} if client is None else {
        "private_key": client.private_key_pem.bytes(),
        "certificate_chain": b"".join(blob.bytes() for blob in client.cert_chain_pems)}
    return grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(SERVER.cert_pem.bytes(), **pair))


async def echoed(made: Any) -> bytes:
    reply: bytes = await made.unary_unary("/test/Echo")(b"hello", timeout=20)
    return reply


# --- gRPC ------------------------------------------------------------------------------------------

def test_a_running_grpc_server_takes_over_new_files(files: Files) -> None:
    first, second = issue(), issue()
    files.write(first)
    certificates = files.open()

    async def run() -> None:
        async with grpc_server(certificates) as port, channel(port) as old:
            assert await echoed(old) == b"hello"
            assert await asyncio.to_thread(handshake, port) == serial(first)
            files.write(second)
            assert await asyncio.to_thread(handshake, port) == serial(first), "not due yet"
            files.clock.ahead += 11
            assert await asyncio.to_thread(handshake, port) == serial(second)
            assert await echoed(old) == b"hello", "the old connection goes on"
            async with channel(port) as new:
                assert await echoed(new) == b"hello"

    asyncio.run(run())
    assert files.events() == ["certificates_loaded"]


@pytest.mark.parametrize("how", ["garbage", "missing", "other key", "cut", "empty"])
def test_files_that_cannot_be_used_leave_the_old_in_use_and_are_told_once(files: Files, how: str) -> None:
    first = issue()
    files.write(first)
    certificates = files.open()

    def spoil() -> None:
        if how == "missing":
            files.key.unlink()
        elif how == "other key":
            files.key.write_bytes(issue().private_key_pem.bytes())
        else:
            whole = files.cert.read_bytes()
            spoiled = {"garbage": b"\xffno certificate", "cut": whole[:len(whole) // 3], "empty": b""}
            files.cert.write_bytes(spoiled[how])

    async def run() -> None:
        async with grpc_server(certificates) as port, tls_server(certificates.ssl_context()) as http:
            spoil()
            for _ in range(3):
                files.clock.ahead += 11
                assert await asyncio.to_thread(handshake, port) == serial(first)
                assert await asyncio.to_thread(handshake, http, alpn="http/1.1") == serial(first)
            assert files.events() == ["certificates_refused"]
            assert files.told[0][0] == "error"
            assert "settings.tls." in files.told[0][2]["reason"]
            second = issue()
            files.write(second)
            files.clock.ahead += 11
            assert await asyncio.to_thread(handshake, port) == serial(second)

    asyncio.run(run())
    assert files.events() == ["certificates_refused", "certificates_loaded"]


def test_grpc_demands_a_certificate_of_the_client_authority_of_the_day(files: Files) -> None:
    files.trust(CLIENTS)
    certificates = files.open()
    assert certificates.mutual
    known, other = CLIENTS.issue_cert("known@example.org"), OTHERS.issue_cert("other@example.org")

    async def refused(port: int, client: trustme.LeafCert | None) -> bool:
        async with channel(port, client) as made:
            try:
                await echoed(made)
            except grpc.aio.AioRpcError as error:
                return error.code() == grpc.StatusCode.UNAVAILABLE
        return False

    async def run() -> None:
        async with grpc_server(certificates) as port:
            async with channel(port, known) as made:
                assert await echoed(made) == b"hello"
            assert await refused(port, None)
            assert await refused(port, other)
            files.trust(OTHERS)
            files.clock.ahead += 11
            assert await refused(port, known), "an authority taken out is no longer believed"
            async with channel(port, other) as made:
                assert await echoed(made) == b"hello"

    asyncio.run(run())


# --- the context of the HTTP face ------------------------------------------------------------------

@pytest.mark.parametrize("name", ["localhost", None])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_live_context_takes_over_new_files_with_and_without_a_server_name(
        files: Files, name: str | None, version: ssl.TLSVersion) -> None:
    first, second = issue(), issue()
    files.write(first)
    files.trust(CLIENTS)
    certificates = files.open()
    known, other = CLIENTS.issue_cert("known@example.org"), OTHERS.issue_cert("other@example.org")

    async def run() -> None:
        async with tls_server(certificates.ssl_context()) as port:
            async def seen(client: trustme.LeafCert | None) -> str | None:
                return await asyncio.to_thread(handshake, port, client, name=name, alpn="http/1.1", version=version)

            assert await seen(known) == serial(first)
            assert await seen(other) is None
            assert await seen(None) is None
            files.write(second)
            files.trust(OTHERS)
            assert certificates.refresh()
            assert not certificates.refresh(), "nothing has changed since"
            assert await seen(other) == serial(second)
            assert await seen(known) is None, "an authority taken out is no longer believed"

    asyncio.run(run())


def test_watching_refreshes_by_itself(files: Files) -> None:
    certificates = Certificates(SimpleNamespace(cert_file=files.cert, key_file=files.key, client_ca_file=None,
                                                reload_s=0.01), files.clock)
    end = certificates.ends_s["certificate"]

    async def run() -> None:
        watching = asyncio.create_task(certificates.watch())
        files.write(issue(not_after=datetime.datetime(2049, 12, 31, tzinfo=datetime.UTC)))
        while certificates.ends_s["certificate"] == end:
            await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(asyncio.wait_for(run(), 60))


# --- opening ---------------------------------------------------------------------------------------

def settings(**given: Any) -> Any:
    return SimpleNamespace(**{"cert_file": None, "key_file": None, "client_ca_file": None, "reload_s": 10.0, **given})


def test_settings_that_do_not_fit_together_are_named(files: Files) -> None:
    assert open_certificates(settings(), files.clock) is None
    with pytest.raises(InvalidArgument, match=r"settings\.tls\.key_file"):
        open_certificates(settings(cert_file=files.cert), files.clock)
    for name in ("key_file", "client_ca_file"):
        with pytest.raises(InvalidArgument, match=rf"settings\.tls\.{name}: says nothing"):
            open_certificates(settings(**{name: files.key}), files.clock)
    with pytest.raises(InvalidArgument, match=r"settings\.tls\.cert_file: .*cannot be read"):
        open_certificates(settings(cert_file=files.cert.parent / "none", key_file=files.key), files.clock)
    with pytest.raises(InvalidArgument, match=r"settings\.tls\.key_file: .*no usable pair"):
        open_certificates(settings(cert_file=files.cert, key_file=files.cert), files.clock)
    with pytest.raises(InvalidArgument, match=r"settings\.tls\.client_ca_file: .*no certificate"):
        open_certificates(settings(cert_file=files.cert, key_file=files.key, client_ca_file=files.key), files.clock)


def test_an_encrypted_key_is_refused_instead_of_asking_the_terminal(files: Files) -> None:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(files.key.read_bytes(), None)
    files.key.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"x")))
    with pytest.raises(InvalidArgument, match="encrypted"):
        files.open()


def test_a_key_that_others_may_read_and_an_end_that_is_near_are_warned_of(files: Files) -> None:
    assert files.open().warnings() == []
    files.key.chmod(0o640)
    now = datetime.datetime.now(datetime.UTC)
    files.write(issue(not_after=now + datetime.timedelta(days=3)))
    files.key.chmod(0o640)
    certificates = files.open()
    assert 2.9 < certificates.days_left < 3.1
    wide, soon = certificates.warnings()
    assert "mode 0640" in wide
    assert "expires in 3.0 days" in soon
    assert files.events() == ["certificates_warning"] * 2
    files.write(issue(not_before=now - datetime.timedelta(days=9), not_after=now - datetime.timedelta(days=2)))
    assert files.open().days_left < 0
    assert "expired 2.0 days ago" in files.open().warnings()[0]


# --- dates -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("year", [1999, 2030, 2049, 2050, 2099])
def test_the_end_of_a_certificate_is_what_another_parser_reads(year: int) -> None:
    from cryptography import x509

    end = datetime.datetime(year, 2, 28, 23, 59, 58, tzinfo=datetime.UTC)
    issued = issue(not_before=end - datetime.timedelta(days=400), not_after=end)
    pem = issued.cert_chain_pems[0].bytes()
    assert expiries(pem.decode()) == [end.timestamp()]
    assert x509.load_pem_x509_certificate(pem).not_valid_after_utc == end


def test_bytes_that_are_no_certificate_are_a_value_error() -> None:
    der = ssl.PEM_cert_to_DER_cert(issue().cert_chain_pems[0].bytes().decode())
    whole = not_after(der)
    for size in range(len(der)):
        with pytest.raises(ValueError):
            not_after(der[:size])
    for at in range(60):
        for bit in range(8):
            try:
                assert isinstance(not_after(der[:at] + bytes([der[at] ^ 1 << bit]) + der[at + 1:]), float)
            except ValueError:
                continue
    assert not_after(der) == whole
