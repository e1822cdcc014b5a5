"""Who calls: an API key from a call's metadata becomes a :class:`~vecdb.core.access.Principal`.

A key comes as ``authorization: Bearer vdb_…`` or ``x-api-key: vdb_…``, the same for gRPC and HTTP.  Without an admin
key and before the first key is made nobody is asked (``require_keys = "auto"``), which is for loopback and for
first steps; :func:`loud_binding` is what a node says when it listens elsewhere in that state.

Wrong keys are counted per address.  What a key is good for is not held back by that: a key of the ring is 256 random
bits, so guessing needs no stopping, and others behind the same address go on working.  An admin key is chosen by a
person, so it is not even looked at for an address that has just been wrong too often.
"""

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote

from vecdb.core.access import ANONYMOUS, EVERYTHING, Principal
from vecdb.core.errors import InvalidArgument, Overloaded, Unauthenticated
from vecdb.core.nodes import is_loopback
from vecdb.ports.clock import Clock

ADMIN_KEY_MIN: Final = 16
"""Fewest characters of ``security.admin_key``."""

FAILURES_AT_ONCE: Final = 10
FAILURES_PER_S: Final = 0.5
MAX_ADDRESSES: Final = 4096
ADMIN_NAME: Final = "admin_key"
"""What the holder of ``security.admin_key`` is called."""

_LONGEST: Final = 4096

Metadata = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]


class _Secret(Protocol):
    def get_secret_value(self) -> str: ...


class Security(Protocol):
    """What is read of :class:`vecdb.config.SecuritySettings`."""

    @property
    def require_keys(self) -> str: ...

    @property
    def admin_key(self) -> _Secret: ...


class Keys(Protocol):
    """What is asked of :class:`vecdb.services.keys.KeyRing`."""

    @property
    def required(self) -> bool: ...

    def principal(self, secret: str) -> Principal: ...


class Authenticator:
    """Of one node.  ``check`` costs about two microseconds for a key that is known and never waits.

    Raises :class:`InvalidArgument` for an admin key that is too short to be one.
    """

    def __init__(self, keys: Keys | None, settings: Security, clock: Clock) -> None:
        self._keys, self._mode = keys, settings.require_keys
        admin = settings.admin_key.get_secret_value()
        if admin and len(admin) < ADMIN_KEY_MIN:
            raise InvalidArgument("settings.security.admin_key", f"{len(admin)} characters can be guessed; it needs "
                                  f"{ADMIN_KEY_MIN} or more", got=len(admin), limit=f"{ADMIN_KEY_MIN} or more")
        self._admin = _digest(admin) if admin else None
        self._anonymous: dict[str, Principal] = {}
        self._wrong = Failures(clock)

    @property
    def required(self) -> bool:
        """Whether calls need a key now."""
        if self._mode == "auto":
            return self._admin is not None or (self._keys is not None and self._keys.required)
        return self._mode == "always"

    @property
    def failures(self) -> int:
        """Refused secrets since the start, for metrics."""
        return self._wrong.total

    def check(self, metadata: Metadata, peer: str, certificate: str = "") -> Principal:
        """The caller, or :class:`Unauthenticated`; :class:`Overloaded` for an address that was wrong too often.

        ``metadata``: pairs, or a mapping with names in lower case.  ``peer``: as gRPC writes it (``ipv4:…:port``) or
        a bare address.  ``certificate``: the name from the client's certificate (:func:`certificate_name`).
        """
        if not self.required:
            principal = self._anonymous.get(peer) or self._new_anonymous(peer)
        else:
            secret = _secret_of(metadata)
            if secret is None:
                raise Unauthenticated("an API key is needed: send 'authorization: Bearer vdb_…' (api_key= in the SDK)",
                                      reason="missing")
            principal = self._of_secret(secret, peer)
        if certificate:
            named = principal.id or principal.name == ADMIN_NAME
            return replace(principal, name=principal.name if named else certificate, certificate=certificate)
        return principal

    def _new_anonymous(self, peer: str) -> Principal:
        """Kept by connection, so that its address is worked out once."""
        principal = self._anonymous[peer] = replace(ANONYMOUS, address=peer_address(peer))
        if len(self._anonymous) > MAX_ADDRESSES:
            self._anonymous.pop(next(iter(self._anonymous)), None)
        return principal

    def _of_secret(self, secret: str, peer: str) -> Principal:
        failure = Unauthenticated("the API key is not known here", reason="unknown")
        if self._keys is not None:
            try:
                return self._keys.principal(secret)
            except Unauthenticated as error:
                failure = error
        address = peer_address(peer)
        self._wrong.check(address)
        if self._admin is not None and hmac.compare_digest(_digest(secret), self._admin):
            return Principal("", ADMIN_NAME, EVERYTHING, address=address)
        self._wrong.note(address)
        raise failure


class Failures:
    """Wrong secrets by address: ten at once, then one every two seconds, for the 4096 addresses seen last."""

    def __init__(self, clock: Clock, most: int = MAX_ADDRESSES) -> None:
        self._clock, self._most = clock, most
        self._free_at: OrderedDict[str, float] = OrderedDict()
        self.total = 0

    def __len__(self) -> int:
        return len(self._free_at)

    def check(self, address: str) -> None:
        """Raise :class:`Overloaded` while ``address`` has no guess left."""
        ahead = self._free_at.get(address, 0.0) - self._clock.monotonic()
        most = (FAILURES_AT_ONCE - 1) / FAILURES_PER_S
        if ahead > most:
            self.total += 1
            self._free_at.move_to_end(address)
            raise Overloaded("too many wrong API keys from this address", retry_after_s=round(ahead - most, 3))

    def note(self, address: str) -> None:
        """Count one."""
        self.total += 1
        free_at = max(self._free_at.get(address, 0.0), self._clock.monotonic())
        self._free_at[address] = free_at + 1.0 / FAILURES_PER_S
        self._free_at.move_to_end(address)
        if len(self._free_at) > self._most:
            self._free_at.popitem(last=False)


def peer_address(peer: str) -> str:
    """The address in a gRPC peer, without the port; of IPv6 the /64, all of which is one subscriber's.

    ``unix:…`` is ``unix``: a local socket has no address.
    """
    kind, _, rest = unquote(peer).partition(":")
    if kind == "unix" or kind.startswith("unix-"):
        return "unix"
    if kind in ("ipv4", "ipv6"):
        rest = rest.rsplit(":", 1)[0]
    else:
        rest = unquote(peer)
    rest = rest.strip("[]").partition("%")[0]
    if ":" not in rest:
        return rest
    if rest.lower().startswith("::ffff:") and "." in rest:
        return rest[7:]
    return _network(rest)


def _network(address: str) -> str:
    try:
        packed = IPv6Address(address).packed
    except ValueError:
        return address[:64]
    return f"{IPv6Address(packed[:8] + bytes(8))}/64"


def certificate_name(auth_context: Mapping[str, Iterable[bytes]]) -> str:
    """The client's name from gRPC's ``context.auth_context()`` under mutual TLS: SPIFFE id or DNS name, else the
    common name; empty without a client certificate."""
    for field in ("x509_subject_alternative_name", "x509_common_name"):
        for value in auth_context.get(field, ()):
            name = value.decode("utf-8", "replace")[:256]
            if name:
                return name if name.isprintable() else ascii(name)
    return ""


def _secret_of(metadata: Metadata) -> str | None:
    found: str | None = None
    for name, value in metadata.items() if isinstance(metadata, Mapping) else metadata:
        if name != "authorization" and name != "x-api-key":
            continue
        text = value if isinstance(value, str) else value.decode("latin-1")
        if len(text) > _LONGEST:
            raise Unauthenticated("the API key is not known here", reason="unknown")
        if name == "authorization":
            scheme, _, text = text.partition(" ")
            if scheme.lower() != "bearer":
                continue  # a proxy's own, perhaps
        text = text.strip()
        if found is not None and found != text:
            raise Unauthenticated("two different API keys in one call", reason="ambiguous")
        found = text or found
    return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


class _Server(Protocol):
    @property
    def host(self) -> str: ...


class _Tls(Protocol):
    @property
    def cert_file(self) -> Path | None: ...

    @property
    def client_ca_file(self) -> Path | None: ...


class Exposure(Protocol):
    """What is read of :class:`vecdb.config.Settings`."""

    @property
    def server(self) -> _Server: ...

    @property
    def tls(self) -> _Tls: ...

    @property
    def security(self) -> Security: ...


def loud_binding(settings: Exposure, *, keys_required: bool) -> list[str]:
    """What to say at the start of a node that others than this machine reach without keys or TLS; empty: nothing.

    ``keys_required``: :attr:`Authenticator.required`.
    """
    host, tls = settings.server.host, settings.tls
    if is_loopback(host):
        return []
    warnings = []
    if not keys_required:
        certified = tls.cert_file is not None and tls.client_ca_file is not None
        whom = "every holder of a client certificate" if certified else "everyone who reaches it"
        warnings.append(f"listening on {host} without API keys: {whom} can read, change and delete everything. "
                        "Make a key with 'vecdb key create', set security.admin_key, or bind to 127.0.0.1.")
    if tls.cert_file is None:
        exposed = "API keys, vectors and metadata" if keys_required else "vectors and metadata"
        warnings.append(f"listening on {host} without TLS: {exposed} cross the network in the clear. "
                        "Set tls.cert_file and tls.key_file, or bind to 127.0.0.1.")
    return warnings
