"""Options of a connection, checked before anything is opened."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from vecdb.client.options import check_flag, check_int, kind_of, refuse_unknown
from vecdb.client.remote.target import Target, is_loopback
from vecdb.core.errors import InvalidArgument, LimitExceeded

MAX_MESSAGE: Final = 1 << 30
"""Largest reply read: the vectors of one answer may take a gibibyte, as embedded."""

MAX_TIMEOUT_S: Final = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class Options:
    """How to reach a server; every field is an argument of ``vecdb.connect``.

    ``ca_file``: authorities that sign the server's certificate (PEM; None: the system's).  ``cert_file`` and
    ``key_file``: this client's certificate, for mutual TLS.  ``server_name``: the name that the server's certificate
    carries, if not the host's.  ``insecure``: send the API key without TLS to another machine.
    ``timeout``: seconds for each call that names none (None: no end).  ``connect_timeout``: seconds for the first
    connection (where nothing listens at most two are spent); 0 leaves it to the first call.  ``retries``: most
    repetitions of one call for each address; 0 for none.  ``retry_writes``: send an idempotency key of its own with
    each write, so that one whose end nobody knows can be made again without being done twice; False: such a write is
    OutcomeUnknown, unless the caller gives a key.
    ``max_message_bytes``: largest reply.  ``auto_batch``: single queries that wait at the same time travel together.
    ``schema_ttl``: seconds for which a collection's schema is taken to be as it was; a call that meets another one asks
    again at once.  ``direct``: ask the nodes that hold a collection's shards themselves, one hop less; every node's
    address for clients (``server.advertise``) must be reachable from here, and what does not work out goes the usual
    way.  ``connections``: to each address; calls take turns on them.  One carries thousands of calls at once,
    but ends in one process of a server that has several.
    """

    api_key: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    insecure: bool = False
    timeout: float | None = 60.0
    connect_timeout: float = 10.0
    retries: int = 8
    retry_writes: bool = True
    max_message_bytes: int = MAX_MESSAGE
    auto_batch: bool = True
    direct: bool = False
    schema_ttl: float = 5.0
    connections: int = 1


def check(target: Target, api_key: str | None, given: Mapping[str, Any]) -> Options:
    """Check every option, and that a key does not travel in the clear; raises InvalidArgument."""
    refuse_unknown(given, [one.name for one in fields(Options) if one.name != "api_key"], "option")
    values = dict(given)
    for name in ("ca_file", "cert_file", "key_file"):
        if values.get(name) is not None:
            values[name] = _path(name, values[name])
    if values.get("server_name") is not None:
        values["server_name"] = _text("server_name", values["server_name"])
    for name in ("insecure", "auto_batch", "retry_writes", "direct"):
        if name in values:
            values[name] = check_flag(name, values[name])
    if values.get("timeout", 1.0) is not None:
        values["timeout"] = _seconds("timeout", values.get("timeout", 60.0), positive=True)
    for name in ("connect_timeout", "schema_ttl"):
        if name in values:
            values[name] = _seconds(name, values[name])
    if "retries" in values:
        values["retries"] = check_int("retries", values["retries"], 0, 1_000)
    if "connections" in values:
        values["connections"] = check_int("connections", values["connections"], 1, 64)
    if "max_message_bytes" in values:
        values["max_message_bytes"] = check_int("max_message_bytes", values["max_message_bytes"], 1 << 16, MAX_MESSAGE)
    options = Options(api_key=None if api_key is None else _key(api_key), **values)
    _check_security(target, options)
    return options


def _check_security(target: Target, options: Options) -> None:
    if not target.secure:
        for name in ("ca_file", "cert_file", "key_file", "server_name"):
            if getattr(options, name) is not None:
                raise InvalidArgument(name, "is for TLS, and the target is grpc://; give grpcs://…",
                                      got=name, limit="a grpcs:// target")
        if options.api_key is not None and not target.local and not options.insecure:
            raise InvalidArgument("api_key", f"would travel unencrypted to another machine ({target.label}); give a "
                                  "grpcs:// target, or insecure=True where the network itself is safe",
                                  got="an API key and grpc://", limit="grpcs://, a loopback address, or insecure=True")
    if (options.cert_file is None) != (options.key_file is None):
        missing = "key_file" if options.key_file is None else "cert_file"
        raise InvalidArgument(missing, "is missing: a client's certificate is a pair of files", got="None",
                              limit="cert_file and key_file")


def may_send(address: str, target: Target, options: Options) -> bool:
    """Whether a connection to ``target`` may go on to an address that it was told there: with a key only where the key
    does not leave this machine in the clear.
    """
    host = address.rpartition(":")[0].strip("[]")
    return target.secure or options.api_key is None or options.insecure or is_loopback(host)


def _key(value: str) -> str:
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise InvalidArgument("api_key", "must be printable ASCII without spaces", got=f"{len(value)} characters",
                              limit="a key as 'vecdb key create' shows it")
    if len(value) > 512:
        raise LimitExceeded("api_key", f"{len(value)} characters, more than 512", got=len(value), limit=512)
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidArgument(name, f"must be a non-empty str, not {kind_of(value)}", got=kind_of(value), limit="str")
    return value


def _path(name: str, value: object) -> str:
    if not isinstance(value, str | os.PathLike):
        raise InvalidArgument(name, f"must be a path, not {kind_of(value)}", got=kind_of(value), limit="a PEM file")
    return str(os.fspath(value))


def _seconds(name: str, value: object, *, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise InvalidArgument(name, f"must be a number of seconds, not {kind_of(value)}", got=kind_of(value),
                              limit=f"0..{MAX_TIMEOUT_S:.0f}")
    if value < 0 or (positive and value == 0) or value > MAX_TIMEOUT_S:
        raise LimitExceeded(name, f"{value} is outside 0..{MAX_TIMEOUT_S:.0f} seconds", got=value,
                            limit=f"0..{MAX_TIMEOUT_S:.0f}")
    return float(value)


def read_file(name: str, path: str | None) -> bytes | None:
    """The bytes of a PEM file; raises InvalidArgument naming the option."""
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(name, f"{path} cannot be read: {error.strerror}", got=path,
                              limit="a PEM file") from None
