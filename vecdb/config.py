"""Settings: defaults, then a TOML file, then ``VECDB_`` variables; an unknown name anywhere is an error.

The file is the one given, or the one ``VECDB_CONFIG`` names, or ``vecdb.toml`` in the current directory if
there is one.  ``VECDB_DATA_DIR=/srv/vec`` sets ``data_dir``; ``VECDB_ENGINE__SEAL_RECORDS=500000`` sets
``seal_records`` in ``[engine]``.  Only this module and :mod:`vecdb.app` look at the environment.
"""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from vecdb.core.errors import InvalidArgument

PREFIX: Final = "VECDB_"
_OTHER_VARIABLES: Final = ("VECDB_CONFIG", "VECDB_DATA")
"""Ours, but no settings: where the file of settings is, and where benchmark data sets are."""

_OTHER_PREFIXES: Final = ("VECDB_TEST_", "VECDB_BENCH_")


class EngineSettings(BaseModel):
    """``[engine]``: how an embedded engine is opened, by the names of :func:`vecdb.app.open_embedded`.

    ``threads``: for builds and batch queries; 0 is one per core.  ``seal_records``: records in a growing segment
    before it is sealed; 0 lets the size of a vector decide.  ``memory_bytes``: what vectors, graphs and codes may
    take; 0 is 70 % of the memory there is.  ``background``: seal and merge while the database
    is open.  ``verify``: read every byte of sealed files at opening and hold it against its checksum.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threads: int = Field(default=0, ge=0, le=1024)
    seal_records: int = Field(default=0, ge=0, le=1 << 30)
    memory_bytes: int = Field(default=0, ge=0)
    background: bool = True
    verify: bool = True


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(_Section):
    """``[server]``: where the node listens.

    ``host``: an address of this machine; loopback unless said otherwise.  ``grpc_port``/``http_port``: 0 takes a free
    one, ``http_port=-1`` leaves the HTTP face out.  ``processes``: front processes on the port (1: everything in
    one; 0: chosen by the cores).  ``drain_s``: how long a stop waits for running calls.  ``node_id``: empty makes one
    and keeps it in the data directory.
    """

    host: str = "127.0.0.1"
    grpc_port: int = Field(default=7700, ge=0, le=65535)
    http_port: int = Field(default=7701, ge=-1, le=65535)
    processes: int = Field(default=1, ge=0, le=64)
    drain_s: float = Field(default=20.0, ge=0, le=600)
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

    memory_bytes: int = Field(default=0, ge=0)
    message_bytes: int = Field(default=72 << 20, ge=1 << 16, le=1 << 30)
    inflight_bytes: int = Field(default=512 << 20, ge=1 << 20)
    queued_queries: int = Field(default=4096, ge=1)
    concurrent_calls: int = Field(default=2048, ge=1)
    connections: int = Field(default=4096, ge=1)
    write_threads: int = Field(default=16, ge=1, le=256)
    rate: float = Field(default=0.0, ge=0)
    burst: float = Field(default=0.0, ge=0)
    deadline_s: float = Field(default=60.0, gt=0)
    deadline_max_s: float = Field(default=3600.0, gt=0)


class TlsSettings(_Section):
    """``[tls]``: PEM files; ``client_ca_file`` makes clients show a certificate of that authority (mutual TLS).

    Files that change are loaded within ``reload_s`` seconds; one that cannot be used leaves the old one in use.
    """

    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    reload_s: float = Field(default=10.0, gt=0)


class SecuritySettings(_Section):
    """``[security]``: who may do what.

    ``require_keys``: "auto" asks for API keys as soon as one exists or ``admin_key`` is set; "always" and "never" say
    it outright.  ``admin_key``: a secret with the role admin, for the first start.  ``audit_file``: where admin calls
    are logged, beside the log; empty: ``audit.jsonl`` in the data directory.
    """

    require_keys: Literal["auto", "always", "never"] = "auto"
    admin_key: SecretStr = SecretStr("")
    audit_file: Path | None = None


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


class Settings(BaseSettings):
    """Everything that can be set from outside; see the module for where it comes from."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    data_dir: Path = Path("./data")
    engine: EngineSettings = EngineSettings()
    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    tls: TlsSettings = TlsSettings()
    security: SecuritySettings = SecuritySettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @classmethod
    def settings_customise_sources(cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
                                   env_settings: PydanticBaseSettingsSource,
                                   dotenv_settings: PydanticBaseSettingsSource,
                                   file_secret_settings: PydanticBaseSettingsSource,
                                   ) -> tuple[PydanticBaseSettingsSource, ...]:
        # What load_settings passes in comes from the file, so the environment stands above it.
        return env_settings, init_settings


def load_settings(file: Path | None = None) -> Settings:
    """Read the settings; raises :class:`InvalidArgument` naming the setting and where it stands."""
    path = file or (Path(os.environ["VECDB_CONFIG"]) if os.environ.get("VECDB_CONFIG") else None)
    if path is None and Path("vecdb.toml").is_file():
        path = Path("vecdb.toml")
    _check_variables()
    try:
        return Settings(**({} if path is None else _read(path)))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidArgument(f"settings.{name}", f"{first['msg']} (from {PREFIX}* or {path or 'no file'})",
                              got=repr(first.get("input"))[:100], limit=first["type"]) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument("settings", f"{path} cannot be read: {error.strerror}", got=str(path),
                              limit="a TOML file") from None
    except ValueError as error:
        raise InvalidArgument("settings", f"{path} is not TOML: {error}", got=str(path), limit="a TOML file") from None


def known_variables() -> list[str]:
    """The names of all variables that set something."""
    names = []
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += [f"{PREFIX}{name}__{inner}".upper() for inner in kind.model_fields]
        names.append(f"{PREFIX}{name}".upper())
    return names


def _check_variables() -> None:
    """Refuse a variable of ours that sets nothing: a misspelt limit would otherwise be no limit."""
    known = known_variables()
    for name in os.environ:
        upper = name.upper()
        if not upper.startswith(PREFIX) or upper in known or upper in _OTHER_VARIABLES \
                or upper.startswith(_OTHER_PREFIXES):
            continue
        near = difflib.get_close_matches(upper, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
        raise InvalidArgument("settings", f"{name} is no setting{hint}", got=name, limit=", ".join(known))


def kernel_cache_directories() -> list[Path]:
    """Where Numba keeps compiled kernels: ``NUMBA_CACHE_DIR``, or beside the sources."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named:
        return [Path(named)]
    return [Path(__file__).parent / "kernels" / "__pycache__"]
