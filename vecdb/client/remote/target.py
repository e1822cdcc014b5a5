"""From ``grpc://host:port`` to addresses, and which of them are on this machine."""

import ipaddress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from vecdb.core.errors import InvalidArgument

DEFAULT_PORT: Final = 7700
MAX_ADDRESSES: Final = 64
SCHEMES: Final = ("grpc", "grpcs")
_FORM: Final = "grpc://host[:port][,host[:port]…] or grpcs://…"


@dataclass(frozen=True, slots=True)
class Target:
    """``addresses`` in gRPC's form; ``secure``: TLS; ``local``: every address is on this machine."""

    addresses: tuple[str, ...]
    secure: bool
    local: bool
    label: str


def parse(text: str) -> Target:
    """Read a URL of one or several addresses, or ``unix:/path``; raises InvalidArgument naming ``target``."""
    if text.startswith("unix:"):
        if len(text) < 6:
            raise _wrong("has no path", text)
        return Target((text,), secure=False, local=True, label=text)
    scheme, mark, rest = text.partition("://")
    if not mark or scheme.lower() not in SCHEMES:
        raise _wrong("is no address of a server", text)
    rest = rest.removesuffix("/")
    if "@" in rest:
        raise InvalidArgument("target", "holds a user or a key; give the key as api_key=", got="a URL with '@'",
                              limit=_FORM)
    parts = rest.split(",")
    if len(parts) > MAX_ADDRESSES:
        raise _wrong(f"holds {len(parts)} addresses, more than {MAX_ADDRESSES}", text)
    hosts = [_address(part.strip(), text) for part in parts]
    addresses = tuple(dict.fromkeys(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts))
    return Target(addresses, scheme.lower() == "grpcs", all(is_loopback(host) for host, _ in hosts),
                  f"{scheme.lower()}://{','.join(addresses)}")


def _address(part: str, text: str) -> tuple[str, int]:
    try:
        split = urlsplit(f"//{part}")
        host, port = split.hostname, split.port
    except ValueError as error:
        raise _wrong(f"holds an address that cannot be read ({error})", text) from None
    if not host or split.path or split.query or split.fragment or any(mark.isspace() for mark in host):
        raise _wrong("holds a path or no host" if not host or split.path else "holds more than addresses", text)
    if port == 0:
        raise _wrong("holds the port 0", text)
    return host, DEFAULT_PORT if port is None else port


def _wrong(why: str, text: str) -> InvalidArgument:
    return InvalidArgument("target", why, got=text[:100], limit=_FORM)


def is_loopback(host: str) -> bool:
    """Whether what is sent to ``host`` stays on this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
