"""TLS for both faces, from PEM files that may change while the node runs.

gRPC asks for its configuration at every new connection (``dynamic_ssl_server_credentials``; also under ``grpc.aio``,
where the question comes in a thread of gRPC's own).  The HTTP face holds one ``SSLContext``, whose server-name callback
hands every handshake to the context loaded last.  That OpenSSL calls it without a server name too, and that a client
CA which was taken out is then no longer believed, is shown by the tests; loading anew into a live context, the usual
way, would go on believing it.  Tickets are off for HTTP: a resumed session would outlive its certificate.

New files are looked at as a whole: read, held against each other (the key belongs to the certificate), and used only
if they did not change meanwhile.  What cannot be used leaves the old in use and is said once.
"""

import asyncio
import contextlib
import os
import ssl
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import grpc

from vecdb.core.errors import InvalidArgument
from vecdb.ports.clock import Clock
from vecdb.ports.tell import Tell, tell_nobody
from vecdb.rpc.certificates import expiries

SOON_DAYS: Final = 14.0
"""From how many days before its end on a certificate is warned of when it is loaded."""

_MAX_FILE_BYTES: Final = 4 << 20
_CA: Final = "client_ca_file"


class TlsFiles(Protocol):
    """What is read of :class:`vecdb.config.TlsSettings`."""

    @property
    def cert_file(self) -> Path | None: ...

    @property
    def key_file(self) -> Path | None: ...

    @property
    def client_ca_file(self) -> Path | None: ...

    @property
    def reload_s(self) -> float: ...


_Signature = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Loaded:
    signature: _Signature
    chain: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext
    ends: dict[str, float]


def open_certificates(settings: TlsFiles, clock: Clock, tell: Tell = tell_nobody) -> "Certificates | None":
    """The certificates the settings name; None without TLS.  Raises :class:`InvalidArgument` naming the setting."""
    if settings.cert_file is None:
        for name in ("key_file", "client_ca_file"):
            if getattr(settings, name) is not None:
                raise InvalidArgument(f"settings.tls.{name}", "says nothing without cert_file", got=name,
                                      limit="cert_file and key_file")
        return None
    if settings.key_file is None:
        raise InvalidArgument("settings.tls.key_file", "is needed with cert_file", got=None, limit="a PEM file")
    return Certificates(settings, clock, tell)


class Certificates:
    """A key, its certificate chain and maybe a client CA; safe from any thread."""

    def __init__(self, settings: TlsFiles, clock: Clock, tell: Tell = tell_nobody, *,
                 check: Callable[[bytes], None] | None = None, section: str = "tls",
                 ca_name: str = "client_ca_file") -> None:
        """``check`` raises for a chain that must not be used; refusals name settings of ``section``."""
        assert settings.cert_file is not None
        assert settings.key_file is not None
        self._chain_file, self._key_file, self._ca_file = settings.cert_file, settings.key_file, settings.client_ca_file
        self._clock, self._tell, self._reload_s = clock, tell, settings.reload_s
        self._check, self._section, self._ca_name = check, section, ca_name
        self._lock = threading.Lock()
        self._refused: _Signature | None = None
        self._due = clock.monotonic() + settings.reload_s
        self._loaded = self._load(self._signature())
        self.generation = 1
        """Counts what was loaded."""
        self._warn()

    @property
    def mutual(self) -> bool:
        """Whether clients must show a certificate."""
        return self._ca_file is not None

    @property
    def ends_s(self) -> dict[str, float]:
        """When the first of the certificates in use ends, in seconds since 1970: ``certificate``, ``client_ca``."""
        return dict(self._loaded.ends)

    @property
    def days_left(self) -> float:
        """Days until the chain in use ends; negative after that."""
        return (self._loaded.ends["certificate"] - self._clock.wall()) / 86_400

    def warnings(self) -> list[str]:
        """What is wrong with the files as they are: a key that others may read, an end that is near."""
        found = []
        with contextlib.suppress(OSError):
            mode = stat.S_IMODE(self._key_file.stat().st_mode)
            if mode & 0o077:
                found.append(f"the private key {self._key_file} can be read by others (mode {mode:04o}): chmod 600")
        for name, end in self._loaded.ends.items():
            days = (end - self._clock.wall()) / 86_400
            if days < SOON_DAYS:
                file = self._ca_file if name == "client_ca" else self._chain_file
                found.append(f"a certificate in {file} has expired {-days:.1f} days ago" if days < 0 else
                             f"a certificate in {file} expires in {days:.1f} days")
        return found

    # -- what servers are given

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For ``add_secure_port`` of a server, ``grpc.aio`` too; each server needs its own."""
        given = self._loaded

        def fetch() -> Any:
            nonlocal given
            self._refresh_when_due()
            loaded = self._loaded
            if loaded is given:
                return None
            given = loaded
            return _grpc_configuration(loaded)

        return grpc.dynamic_ssl_server_credentials(_grpc_configuration(given), fetch,
                                                   require_client_authentication=self.mutual)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel to a server whose certificate is of the client CA too; as they are loaded now."""
        loaded = self._loaded
        return grpc.ssl_channel_credentials(loaded.client_ca, loaded.key, loaded.chain)

    def ssl_context(self) -> ssl.SSLContext:
        """For the HTTP face: every handshake gets what is loaded by then; itself it holds no certificate."""
        front = _bare_context(mutual=self.mutual)

        def choose(handshake: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            handshake.context = self._loaded.context

        front.sni_callback = choose
        return front

    # -- loading anew

    def refresh(self) -> bool:
        """Look whether the files changed and take over what they hold now; returns whether anything was."""
        with self._lock:
            self._due = self._clock.monotonic() + self._reload_s
            now = self._signature()
            if now in (self._loaded.signature, self._refused):
                return False
            try:
                loaded = self._load(now)
                if self._signature() != now:
                    return False  # somebody is writing: next time
            except InvalidArgument as error:
                self._refused = now
                self._tell("error", "certificates_refused", reason=error.message, days_left=round(self.days_left, 1))
                return False
            self._loaded, self._refused = loaded, None
            self.generation += 1
        self._tell("info", "certificates_loaded", file=str(self._chain_file), days_left=round(self.days_left, 1))
        self._warn()
        return True

    def _refresh_when_due(self) -> None:
        if self._clock.monotonic() >= self._due:
            self.refresh()

    async def watch(self) -> None:
        """Refresh for ever, every ``reload_s`` seconds; ends when cancelled."""
        while True:
            await asyncio.sleep(self._reload_s)
            await asyncio.to_thread(self.refresh)

    def _warn(self) -> None:
        for warning in self.warnings():
            self._tell("warning", "certificates_warning", reason=warning)

    def _files(self) -> list[tuple[str, Path]]:
        files = [("cert_file", self._chain_file), ("key_file", self._key_file)]
        return files if self._ca_file is None else [*files, (_CA, self._ca_file)]

    def _signature(self) -> _Signature:
        return tuple(_stamp(path) for _, path in self._files())

    def _load(self, signature: _Signature) -> _Loaded:
        try:
            loaded = self._read(signature)
        except _Bad as bad:
            name = self._ca_name if bad.name == _CA else bad.name
            raise InvalidArgument(f"settings.{self._section}.{name}", str(bad), got=str(bad.path),
                                  limit="a PEM file") from None
        if self._check is not None:
            self._check(loaded.chain)
        return loaded

    def _read(self, signature: _Signature) -> _Loaded:
        data = {name: _read(name, path) for name, path in self._files()}
        client_ca = data.get(_CA)
        ends = {"certificate": _end("cert_file", self._chain_file, data["cert_file"])}
        if client_ca is not None and self._ca_file is not None:
            ends["client_ca"] = _end(_CA, self._ca_file, client_ca)
        context = _context(self._chain_file, self._key_file, client_ca)
        return _Loaded(signature, data["cert_file"], data["key_file"], client_ca, context, ends)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read(name: str, path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise _Bad(name, path, f"cannot be read: {error.strerror}") from None


def _end(name: str, path: Path, data: bytes) -> float:
    try:
        ends = expiries(data.decode("ascii", "replace"))
    except ValueError as error:
        raise _Bad(name, path, str(error)) from None
    if not ends:
        raise _Bad(name, path, "holds no certificate in PEM")
    return min(ends)


def _bare_context(*, mutual: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _context(chain: Path, key: Path, client_ca: bytes | None) -> ssl.SSLContext:
    context = _bare_context(mutual=client_ca is not None)
    try:
        context.load_cert_chain(chain, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise _Bad("key_file", key, f"and {chain} are no usable pair: {_reason(error)}") from None
    if client_ca is not None:
        try:
            context.load_verify_locations(cadata=client_ca.decode("ascii"))
        except (OSError, ValueError) as error:
            raise _Bad(_CA, "given", f"holds no usable certificates: {_reason(error)}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted, and there is nobody to ask for its password")


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error).replace("_", " ").lower()


class _Bad(Exception):
    """What is wrong with the file of the setting ``name``."""

    def __init__(self, name: str, path: object, why: str) -> None:
        super().__init__(f"{path} {why}")
        self.name, self.path = name, path


def _grpc_configuration(loaded: _Loaded) -> Any:
    make: Callable[..., Any] = grpc.ssl_server_certificate_configuration
    return make([(loaded.key, loaded.chain)], root_certificates=loaded.client_ca)
