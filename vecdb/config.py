"""Settings: defaults, then a TOML file, then ``VECDB_`` variables, then flags; an unknown name anywhere is an error.

The file is the one given, or the one ``VECDB_CONFIG`` names, or ``vecdb.toml`` in the current directory if
there is one.  ``VECDB_DATA_DIR=/srv/vec`` sets ``data_dir``; ``VECDB_ENGINE__SEAL_RECORDS=500000`` sets
``seal_records`` in ``[engine]``; ``VECDB_URL`` and ``VECDB_API_KEY`` are short for those of ``[client]``.
Sizes may be written ``4GiB`` or ``512MB``, lengths of time ``30s`` or ``1h30m``.  :func:`load` also tells where each
value came from.  Only this module and :mod:`vecdb.app` look at the environment.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from vecdb.core.errors import InvalidArgument
from vecdb.core.units import parse_bytes, parse_seconds

PREFIX: Final = "VECDB_"
_OTHER_VARIABLES: Final = ("VECDB_CONFIG", "VECDB_DATA")
"""Ours, but no settings: where the file of settings is, and where benchmark data sets are."""

_OTHER_PREFIXES: Final = ("VECDB_TEST_", "VECDB_BENCH_")
_ALIASES: Final = {"VECDB_URL": "client.url", "VECDB_API_KEY": "client.api_key"}
MASK: Final = "********"
_ALIKE: Final = 0.6
"""How alike (0 to 1) a known name must be to be proposed; difflib's own default."""


def _said(parse: Callable[[str], float]) -> Callable[[Any], Any]:
    """Read what is text, and leave numbers to the field."""
    return lambda value: parse(value) if isinstance(value, str) else value


Bytes: TypeAlias = Annotated[int, BeforeValidator(_said(parse_bytes))]
Seconds: TypeAlias = Annotated[float, BeforeValidator(_said(parse_seconds))]
File: TypeAlias = Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)]
"""A path; the empty string is none, as a variable that a shell left empty says."""

class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EngineSettings(_Section):
    """``[engine]``: how an embedded engine is opened, by the names of :func:`vecdb.app.open_embedded`.

    ``threads``: for builds and batch queries; 0 is one per core.  ``seal_records``: records in a growing segment
    before it is sealed; 0 lets the size of a vector decide.  ``memory_bytes``: what vectors, graphs and codes may
    take; 0 is 70 % of the memory there is.  ``background``: seal and merge while the database
    is open.  ``verify``: read every byte of sealed files at opening and hold it against its checksum.
    """

    threads: int = Field(default=0, ge=0, le=1024)
    seal_records: int = Field(default=0, ge=0, le=1 << 30)
    memory_bytes: Bytes = Field(default=0, ge=0)
    background: bool = True
    verify: bool = True


class ServerSettings(_Section):
    """``[server]``: where the node listens.

    ``host``: an address of this machine; loopback unless said otherwise.  ``grpc_port``/``http_port``: 0 takes a free
    one, ``http_port=-1`` leaves the HTTP face out.  ``processes``: front processes on the port (1: everything in
    one; 0: chosen by the cores).  ``drain_s``: how long a stop waits for running calls.  ``node_id``: empty makes one
    and keeps it in the data directory.
    """

    host: str = Field(default="127.0.0.1", min_length=1, max_length=255)
    grpc_port: int = Field(default=7700, ge=0, le=65535)
    http_port: int = Field(default=7701, ge=-1, le=65535)
    processes: int = Field(default=1, ge=0, le=64)
    drain_s: Seconds = Field(default=20.0, ge=0, le=600)
    reflection: bool = True
    warm_up: bool = True
    node_id: str = Field(default="", max_length=64, pattern=r"^[A-Za-z0-9_.\-]*$")


class LimitSettings(_Section):
    """``[limits]``: what the node takes on before it refuses with RESOURCE_EXHAUSTED.

    ``memory_bytes``: resident memory from which writes are refused; 0 is 80 % of what the process may use.
    ``message_bytes``: largest message.  ``inflight_bytes``: bytes of requests held at once.  ``queued_queries``: query
    rows waiting for their turn.  ``concurrent_calls``: calls at once; ``connections`` HTTP connections at once.
    ``write_threads``: writes at once (they share fsyncs).  ``rate``/``burst``: calls a second of one key (0: no limit).
    ``deadline_s``: the deadline of a call that names none; ``deadline_max_s``: the longest one.
    """

    memory_bytes: Bytes = Field(default=0, ge=0)
    message_bytes: Bytes = Field(default=72 << 20, ge=1 << 16, le=1 << 30)
    inflight_bytes: Bytes = Field(default=512 << 20, ge=1 << 20)
    queued_queries: int = Field(default=4096, ge=1)
    concurrent_calls: int = Field(default=2048, ge=1)
    connections: int = Field(default=4096, ge=1)
    write_threads: int = Field(default=16, ge=1, le=256)
    rate: float = Field(default=0.0, ge=0)
    burst: float = Field(default=0.0, ge=0)
    deadline_s: Seconds = Field(default=60.0, gt=0)
    deadline_max_s: Seconds = Field(default=3600.0, gt=0)


class TlsSettings(_Section):
    """``[tls]``: PEM files; ``client_ca_file`` makes clients show a certificate of that authority (mutual TLS).

    Files that change are loaded within ``reload_s`` seconds; one that cannot be used leaves the old one in use.
    """

    cert_file: File = None
    key_file: File = None
    client_ca_file: File = None
    reload_s: Seconds = Field(default=10.0, gt=0)


class SecuritySettings(_Section):
    """``[security]``: who may do what.

    ``require_keys``: "auto" asks for API keys as soon as one exists or ``admin_key`` is set; "always" and "never" say
    it outright.  ``admin_key``: a secret with the role admin, for the first start; ``admin_key_file`` holds it instead.
    ``audit_file``: where admin calls are logged, beside the log; empty: ``audit.jsonl`` in the data directory.
    """

    require_keys: Literal["auto", "always", "never"] = "auto"
    admin_key: SecretStr = SecretStr("")
    admin_key_file: File = None
    audit_file: File = None


class LogSettings(_Section):
    """``[log]``: ``format`` is "auto" (console on a terminal, JSON otherwise), "json" or "console".

    ``slow_query_ms``: queries that take longer are logged with their plan; 0 logs none.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    slow_query_ms: float = Field(default=250.0, ge=0)


class TelemetrySettings(_Section):
    """``[telemetry]``: ``otlp_endpoint`` (empty: no traces) and the share of calls traced.

    ``recall_samples_per_minute``: queries run again exactly in the background to measure recall, at most
    ``recall_cpu_share`` of one core; 0 samples none.
    """

    otlp_endpoint: str = ""
    otlp_insecure: bool = False
    trace_ratio: float = Field(default=0.01, ge=0, le=1)
    recall_samples_per_minute: float = Field(default=30.0, ge=0)
    recall_cpu_share: float = Field(default=0.02, ge=0, le=1)


class ClientSettings(_Section):
    """``[client]``: the server that commands ask where no directory is named, and how they come in.

    ``url``: as ``grpc://host:7700``; empty: none, commands open ``data_dir``.  ``api_key``: better in
    ``api_key_file`` or the environment than in a file that others read.  ``ca_file``: the authority of the server's
    certificate; ``cert_file``/``key_file``: our own, for mutual TLS.  ``insecure``: an API key may travel without TLS.
    ``timeout_s``: of a call; 0 is the client's own.
    """

    url: str = Field(default="", max_length=2048)
    api_key: SecretStr = SecretStr("")
    api_key_file: File = None
    ca_file: File = None
    cert_file: File = None
    key_file: File = None
    timeout_s: Seconds = Field(default=0.0, ge=0)
    insecure: bool = False


class Settings(_Section):
    """Everything that can be set from outside; see the module for where it comes from."""

    data_dir: Path = Path("./data")
    engine: EngineSettings = EngineSettings()
    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    tls: TlsSettings = TlsSettings()
    security: SecuritySettings = SecuritySettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    client: ClientSettings = ClientSettings()


_SECTIONS: Final = {name: field.annotation for name, field in Settings.model_fields.items()
                    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)}
NAMES: Final = (*(name for name in Settings.model_fields if name not in _SECTIONS),
                *(f"{name}.{inner}" for name, section in _SECTIONS.items() for inner in section.model_fields))
"""All settings by their dotted names."""


class Origin(NamedTuple):
    """Where a value came from: a layer, and the file, variable or flag; the later layer wins."""

    layer: Literal["default", "file", "env", "flag"]
    where: str

    @property
    def rank(self) -> int:
        return ("default", "file", "env", "flag").index(self.layer)


_DEFAULT: Final = Origin("default", "default")
_Given = dict[str, tuple[Any, Origin]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and by dotted name the origins of those that are not left at their default."""

    settings: Settings
    origins: Mapping[str, Origin]

    def origin(self, name: str) -> Origin:
        return self.origins.get(name, _DEFAULT)

    def rows(self) -> Iterator[tuple[str, Any, Origin]]:
        """Every setting with its value, secrets masked, and its origin; plain values that JSON and TOML can hold."""
        for name in NAMES:
            value: Any = self.settings
            for part in name.split("."):
                value = getattr(value, part)
            yield name, _plain(value), self.origin(name)

    def masked(self) -> dict[str, Any]:
        """The settings as nested tables, secrets masked."""
        told: dict[str, Any] = {}
        for name, value, _ in self.rows():
            _put(told, name, value)
        return told

    def secrets_on_command_line(self) -> list[str]:
        """Secrets given by a flag, where every user of the machine can read them."""
        return [name for name, value, origin in self.rows() if value == MASK and origin.layer == "flag"]


def load_settings(file: Path | None = None) -> Settings:
    """Read the settings; raises :class:`InvalidArgument` naming the setting and where it stands."""
    return load(file).settings


def load(file: Path | None = None, flags: Mapping[str, tuple[Any, str]] | None = None) -> Loaded:
    """Read the settings and where they came from; ``flags`` maps dotted names to a value and the flag it stood in.

    Raises :class:`InvalidArgument` that names the setting, where it stands, and the nearest name of an unknown one.
    """
    path = file or (Path(os.environ["VECDB_CONFIG"]) if os.environ.get("VECDB_CONFIG") else None)
    if path is None and Path("vecdb.toml").is_file():
        path = Path("vecdb.toml")
    given: _Given = {} if path is None else _from_file(path)
    given |= _from_environment()
    for name, (value, flag) in (flags or {}).items():
        if name not in NAMES:
            raise _unknown(name, flag, name, NAMES)
        given[name] = (value, Origin("flag", flag))
    for secret in ("security.admin_key", "client.api_key"):
        _read_secret(given, secret)
    nested: dict[str, Any] = {}
    for name, (value, _) in given.items():
        _put(nested, name, value)
    origins = {name: origin for name, (_, origin) in given.items()}
    try:
        settings = Settings.model_validate(nested)
    except ValidationError as error:
        raise _refusal(error, origins) from None
    _check(settings, origins)
    return Loaded(settings, origins)


def _from_file(path: Path) -> _Given:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument("settings", f"{path} cannot be read: {error.strerror}", got=str(path),
                              limit="a TOML file") from None
    except ValueError as error:
        raise InvalidArgument("settings", f"{path} is not TOML: {error}", got=str(path), limit="a TOML file") from None
    given: _Given = {}
    for name, value in tables.items():
        if name in _SECTIONS and isinstance(value, dict):
            inner = {f"{name}.{key}": one for key, one in value.items()}
        elif name in _SECTIONS:
            raise InvalidArgument(f"settings.{name}", f"must be a table, [{name}] (from {path})",
                                  got=repr(value)[:100], limit="a table")
        else:
            inner = {name: value}
        for dotted, one in inner.items():
            if dotted not in NAMES:
                raise _unknown(dotted, str(path), dotted, NAMES)
            given[dotted] = (one, Origin("file", str(path)))
    return given


def _from_environment() -> _Given:
    """What the environment sets; a variable of ours that sets nothing is refused: it might be a misspelt limit."""
    known = {f"{PREFIX}{name}".upper().replace(".", "__"): name for name in (*_SECTIONS, *NAMES)}
    whole: _Given = {}
    single: _Given = {}
    for variable, value in sorted(os.environ.items()):
        upper = variable.upper()
        if not upper.startswith(PREFIX) or upper in _OTHER_VARIABLES or upper.startswith(_OTHER_PREFIXES):
            continue
        origin = Origin("env", variable)
        if upper in _ALIASES:
            if value:
                _once(single, _ALIASES[upper], value, origin)
        elif known.get(upper) in _SECTIONS:
            for key, one in _table(variable, value).items():
                dotted = f"{known[upper]}.{key}"
                if dotted not in NAMES:
                    raise _unknown(dotted, variable, dotted, NAMES)
                whole[dotted] = (one, origin)
        elif upper in known:
            _once(single, known[upper], value, origin)
        else:
            raise _unknown(variable, "the environment", upper, (*known, *_ALIASES))
    return whole | single


def _once(given: _Given, name: str, value: str, origin: Origin) -> None:
    if name in given and given[name][0] != value:
        raise InvalidArgument(f"settings.{name}", f"{given[name][1].where} and {origin.where} say different things",
                              got=f"{given[name][1].where}, {origin.where}", limit="one of them")
    given[name] = (value, origin)


def _table(variable: str, text: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise InvalidArgument("settings", f"{variable} is a whole section and must be a JSON object; {variable}__NAME "
                              "sets one value", got=variable, limit="a JSON object")
    return value


def _read_secret(given: _Given, name: str) -> None:
    """Take a secret from the file its ``_file`` setting names, unless a nearer layer gives it outright."""
    path, origin = given.get(f"{name}_file", ("", _DEFAULT))
    direct = given.get(name, ("", _DEFAULT))[1]
    if not path or direct.rank > origin.rank:
        return
    if direct.rank == origin.rank:
        raise InvalidArgument(f"settings.{name}", f"is given twice, as {name}_file too (from {direct.where} and "
                              f"{origin.where})", got=f"{name}, {name}_file", limit="one of them")
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, TypeError, ValueError) as error:
        raise InvalidArgument(f"settings.{name}_file", f"{path} cannot be read: {error} (from {origin.where})",
                              got=str(path)[:200], limit="a file with the secret") from None
    if not text or "\n" in text:
        raise InvalidArgument(f"settings.{name}_file", f"{path} must hold one line, the secret (from {origin.where})",
                              got=f"{len(text.splitlines())} lines", limit="one line")
    given[name] = (text, origin)


def _put(tables: dict[str, Any], name: str, value: Any) -> None:
    section, dot, key = name.partition(".")
    if dot:
        tables.setdefault(section, {})[key] = value
    else:
        tables[section] = value


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return re.sub(r"(?<=://)[^/@]+@", MASK + "@", value)  # credentials inside a URL
    return value


def _unknown(shown: str, where: str, name: str, known: tuple[str, ...]) -> InvalidArgument:
    """The refusal of a name that sets nothing, with the one most like it: section and last part count alike."""
    def parts(one: str) -> tuple[str, str]:
        section, _, key = one.replace("__", ".").rpartition(".")
        return section, key

    def alike(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    section, key = parts(name)
    best = max(known, key=lambda one: alike(section, parts(one)[0]) + alike(key, parts(one)[1]) + alike(name, one))
    near = best if max(alike(name, best), alike(key, parts(best)[1])) >= _ALIKE else ""
    hint = f"; did you mean {near}?" if near else f"; known are {', '.join(known)}"
    return InvalidArgument("settings", f"{shown} is no setting{hint} (from {where})", got=shown,
                           limit=near or ", ".join(known))


def _refusal(error: ValidationError, origins: Mapping[str, Origin]) -> InvalidArgument:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][:2])
    secret = name in ("security.admin_key", "client.api_key")
    return InvalidArgument(f"settings.{name}", f"{first['msg'].removeprefix('Value error, ')} (from "
                           f"{origins.get(name, _DEFAULT).where})",
                           got=MASK if secret else repr(first.get("input"))[:100], limit=first["type"])


def _check(settings: Settings, origins: Mapping[str, Origin]) -> None:
    """Hold values against each other; the message names both, and where the one at fault came from."""
    def refuse(name: str, message: str, got: Any, limit: Any) -> None:
        where = origins[name].where if name in origins else "the default"
        raise InvalidArgument(f"settings.{name}", f"{message} (from {where})", got=got, limit=limit)

    server, limits = settings.server, settings.limits
    for section, part in (("tls", settings.tls), ("client", settings.client)):
        for name, other in (("cert_file", "key_file"), ("key_file", "cert_file")):
            if getattr(part, name) is not None and getattr(part, other) is None:
                refuse(f"{section}.{name}", f"needs {section}.{other} too", str(getattr(part, name)), "both")
    if settings.tls.client_ca_file is not None and settings.tls.cert_file is None:
        refuse("tls.client_ca_file", "needs tls.cert_file: clients show certificates only over TLS",
               str(settings.tls.client_ca_file), "tls.cert_file")
    if limits.deadline_s > limits.deadline_max_s:
        name = "limits.deadline_s" if "limits.deadline_s" in origins else "limits.deadline_max_s"
        refuse(name, f"deadline_s, {limits.deadline_s:g} s, is above deadline_max_s, {limits.deadline_max_s:g} s",
               limits.deadline_s, limits.deadline_max_s)
    if limits.message_bytes > limits.inflight_bytes:
        name = "limits.inflight_bytes" if "limits.inflight_bytes" in origins else "limits.message_bytes"
        refuse(name, f"one message of message_bytes, {limits.message_bytes}, would be above inflight_bytes, "
               f"{limits.inflight_bytes}", limits.message_bytes, limits.inflight_bytes)
    if limits.burst and not limits.rate:
        refuse("limits.burst", "needs limits.rate: a burst is what a rate may be exceeded by", limits.burst, "a rate")
    if 0 < limits.memory_bytes < settings.engine.memory_bytes:
        refuse("engine.memory_bytes", f"{settings.engine.memory_bytes} is above limits.memory_bytes, "
               f"{limits.memory_bytes}: writes would be refused before segments fill what they may",
               settings.engine.memory_bytes, limits.memory_bytes)
    if server.grpc_port == server.http_port > 0:
        refuse("server.http_port", f"{server.http_port} is server.grpc_port too", server.http_port, "another port")
    url = settings.client.url[:100]
    if url and "://" not in url:
        refuse("client.url", f"{url!r} is no URL; write grpc://host:7700", url, "grpc://host:port")


def known_variables() -> list[str]:
    """The names of all variables that set something."""
    return [f"{PREFIX}{name}".upper().replace(".", "__") for name in (*_SECTIONS, *NAMES)] + list(_ALIASES)


def kernel_cache_directories() -> list[Path]:
    """Where Numba keeps compiled kernels: ``NUMBA_CACHE_DIR``, or beside the sources."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named:
        return [Path(named)]
    return [Path(__file__).parent / "kernels" / "__pycache__"]
