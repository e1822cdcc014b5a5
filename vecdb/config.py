"""Settings: defaults, then a TOML file, then ``VECDB_`` variables, then flags; an unknown name anywhere is an error.

The file is the one given, or the one ``VECDB_CONFIG`` names, or ``vecdb.toml`` in the current directory if
there is one.  ``VECDB_DATA_DIR=/srv/vec`` sets ``data_dir``; ``VECDB_ENGINE__SEAL_RECORDS=500000`` sets
``seal_records`` in ``[engine]``; ``VECDB_URL`` and ``VECDB_API_KEY`` are short for those of ``[client]``.
Sizes may be written ``4GiB`` or ``512MB``, lengths of time ``30s`` or ``1h30m``.

The reading is pydantic-settings'.  :func:`load` asks its sources one by one instead of letting :class:`Settings` merge
them, because whoever runs a server wants to know where each value came from.  ``Settings(...)`` itself takes what it is
given and asks nobody.  Only this module and :mod:`vecdb.app` look at the environment.
"""

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict, sources

from vecdb.core.errors import InvalidArgument
from vecdb.core.nodes import cluster_rules
from vecdb.sections import (
    BackupSettings,
    ClientSettings,
    ClusterSettings,
    EngineSettings,
    LimitSettings,
    LogSettings,
    SecuritySettings,
    ServerSettings,
    TelemetrySettings,
    TlsSettings,
)

__all__ = [
    "MASK",
    "NAMES",
    "PREFIX",
    "BackupSettings",
    "ClientSettings",
    "ClusterSettings",
    "EngineSettings",
    "LimitSettings",
    "Loaded",
    "LogSettings",
    "Origin",
    "SecuritySettings",
    "ServerSettings",
    "Settings",
    "TelemetrySettings",
    "TlsSettings",
    "kernel_cache_directories",
    "known_variables",
    "load",
    "load_settings",
    "stated",
]

PREFIX: Final = "VECDB_"
_OTHERS: Final = re.compile("VECDB_(CONFIG|DATA|TEST_.*|BENCH_.*)")
"""Ours, but no settings: where the file of settings is, where benchmark data sets are, and what tests are told."""

_SHORT: Final = {"VECDB_URL": "VECDB_CLIENT__URL", "VECDB_API_KEY": "VECDB_CLIENT__API_KEY"}
_SECRETS: Final = ("security.admin_key", "client.api_key", "cluster.token", "backup.s3_secret_access_key")
MASK: Final = "********"

_Source: TypeAlias = sources.PydanticBaseSettingsSource


class Settings(BaseSettings):
    """Everything that can be set from outside; :func:`load` reads it, and ``Settings(...)`` takes what it is given."""

    # Names in a file are as written here; of variables the case does not matter, and their source is told so.
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", case_sensitive=True, extra="forbid",
                                      frozen=True, allow_inf_nan=False)

    data_dir: Path = Path("./data")
    engine: EngineSettings = EngineSettings()
    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    tls: TlsSettings = TlsSettings()
    security: SecuritySettings = SecuritySettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    cluster: ClusterSettings = ClusterSettings()
    backup: BackupSettings = BackupSettings()
    client: ClientSettings = ClientSettings()

    @classmethod
    def settings_customise_sources(cls, settings_cls: type[BaseSettings], init_settings: _Source, *_: _Source,
                                   **__: _Source) -> tuple[_Source, ...]:
        """Only what the caller says: a variable left in a shell must not change what code asks for."""
        return (init_settings,)


_SECTIONS: Final = tuple(name for name, value in Settings() if isinstance(value, BaseModel))


def _dotted(tables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, dict) and (value or name in _SECTIONS):
            yield from ((f"{name}.{key}", one) for key, one in value.items())
        else:
            yield name, value


def _nested(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for name, value in values:
        section, _, key = name.rpartition(".")
        (tables.setdefault(section, {}) if section else tables)[key] = value
    return tables


NAMES: Final = tuple(name for name, _ in _dotted(Settings().model_dump()))
"""All settings by their dotted names."""

_VARIABLES: Final = {f"{PREFIX}{name}".upper().replace(".", "__"): name for name in (*NAMES, *_SECTIONS)}


class Origin(NamedTuple):
    """Where a value came from: a layer, and the file, variable or flag; the later layer wins."""

    layer: str
    where: str

    @property
    def rank(self) -> int:
        return ("default", "file", "env", "flag").index(self.layer)


_DEFAULT: Final = Origin("default", "default")
_Given: TypeAlias = dict[str, tuple[Any, Origin]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and by dotted name the origins of those that are not left at their default."""

    settings: Settings
    origins: Mapping[str, Origin]

    def origin(self, name: str) -> Origin:
        return self.origins.get(name, _DEFAULT)

    def rows(self) -> Iterator[tuple[str, Any, Origin]]:
        """Every setting with its value, secrets masked, and its origin; plain values that JSON and TOML can hold."""
        for name, value in _dotted(self.settings.model_dump()):
            yield name, _plain(value), self.origin(name)

    def masked(self) -> dict[str, Any]:
        """The settings as nested tables, secrets masked."""
        return _nested((name, value) for name, value, _ in self.rows())

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
    given: _Given = {}
    for layer, source, where in _sources(file, flags or {}):
        for name, value in _dotted(source()):
            if name in _SECTIONS:
                must = f"a JSON object; {where(name)}__NAME sets one value" if layer == "env" else f"a table, [{name}]"
                raise InvalidArgument(f"settings.{name}", f"must be {must} (from {where(name)})",
                                      got=type(value).__name__, limit="a table")
            if name not in NAMES:
                raise _unknown(name, where(name), NAMES)
            given[name] = (value, Origin(layer, where(name)))
    for secret in _SECRETS:
        _read_secret(given, secret)
    return _settled(given)


def stated(values: Mapping[str, Any], where: str) -> Loaded:
    """Settings by their dotted names, as a file ``where`` that is to be written would give them: whatever the
    environment says, and without files of secrets, which need not be there yet.  Refused as :func:`load` refuses.
    """
    for name in values:
        if name not in NAMES:
            raise _unknown(name, where, NAMES)
    return _settled({name: (value, Origin("file", where)) for name, value in values.items()})


def _settled(given: _Given) -> Loaded:
    origins = {name: origin for name, (_, origin) in given.items()}
    try:
        settings = Settings(**_nested((name, value) for name, (value, _) in given.items()))
    except ValidationError as error:
        raise _refusal(error, origins) from None
    _check(settings, origins)
    return Loaded(settings, origins)


def _sources(file: Path | None, flags: Mapping[str, tuple[Any, str]],
             ) -> Iterator[tuple[str, _Source, Callable[[str], str]]]:
    """The sources, the later above the earlier, each with what tells where in it a setting stands."""
    path = file or os.environ.get("VECDB_CONFIG") or ("vecdb.toml" if Path("vecdb.toml").is_file() else None)
    if path:
        yield "file", _toml(Path(path)), lambda _: str(path)
    environment = _Environment(Settings)
    yield "env", environment, environment.where
    said = {name: value for name, (value, _) in flags.items()}
    yield "flag", sources.InitSettingsSource(Settings, said), lambda name: flags[name][1]


def _toml(path: Path) -> _Source:
    try:
        if path.is_file():
            return sources.TomlConfigSettingsSource(Settings, path)
        why = "cannot be read: it is not there, or is no file"  # the source would take it for an empty one
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    except ValueError as error:
        why = f"is not TOML: {error}"
    raise InvalidArgument("settings", f"{path} {why}", got=str(path), limit="a TOML file")


class _Environment(sources.EnvSettingsSource):
    """What the environment sets; a variable of ours that sets nothing is refused: it might be a misspelt limit."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, case_sensitive=False)
        values: dict[str, str | None] = {}
        self._variables: dict[str, str] = {}
        for variable, value in ((one.upper(), value) for one, value in sorted(self.env_vars.items())):
            if not variable.startswith(PREFIX) or _OTHERS.fullmatch(variable) or (variable in _SHORT and not value):
                continue
            long = _SHORT.get(variable, variable)
            if long not in _VARIABLES:
                raise _unknown(variable, "the environment", known_variables())
            name = _VARIABLES[long]
            if values.setdefault(long.lower(), value) != value:
                both = f"{self._variables[name]} and {variable}"
                raise InvalidArgument(f"settings.{name}", f"{both} say different things", got=both, limit="one of them")
            self._variables[name] = variable
        self.env_vars = values

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Read a section that stands in one variable; what is no JSON object stays text, and is refused as that."""
        try:
            table = super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value
        return table if isinstance(table, dict) else value

    def where(self, name: str) -> str:
        """The variable that set this, or its section."""
        return self._variables.get(name) or self._variables[name.partition(".")[0]]


def _read_secret(given: _Given, name: str) -> None:
    """Take a secret from the file its ``_file`` setting names, unless a nearer layer gives it outright."""
    path, origin = given.get(f"{name}_file", ("", _DEFAULT))
    direct = given.get(name, ("", _DEFAULT))[1]
    if not path or direct.rank > origin.rank:
        return
    if direct.rank == origin.rank:
        raise InvalidArgument(f"settings.{name}", f"is given twice, as {name}_file too (from {direct.where} and "
                              f"{origin.where})", got=f"{name}, {name}_file", limit="one of them")
    text, wrong = "", "must hold one line, the secret"
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, TypeError, ValueError) as error:
        wrong = f"cannot be read: {error}"
    if not text or "\n" in text:
        raise InvalidArgument(f"settings.{name}_file", f"{path} {wrong} (from {origin.where})", got=str(path)[:200],
                              limit="a file of one line, the secret")
    given[name] = (text, origin)


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return re.sub(r"(?<=://)[^/@]+@", MASK + "@", value)  # credentials inside a URL
    return value


def _unknown(name: str, where: str, known: Collection[str]) -> InvalidArgument:
    """The refusal of a name that sets nothing, with the one most like it: the whole and its last part count alike."""
    def alike(one: str) -> tuple[float, float]:
        a, b = name.removeprefix(PREFIX), one.removeprefix(PREFIX)
        last_a, last_b = (re.sub(r".*(\.|__)", "", whole) for whole in (a, b))
        return difflib.SequenceMatcher(None, a, b).ratio(), difflib.SequenceMatcher(None, last_a, last_b).ratio()

    near = max(known, key=lambda one: sum(alike(one)))
    # 0.6 is from where difflib itself proposes a name.
    hint = f"did you mean {near}?" if max(alike(near)) >= 0.6 else f"known are {', '.join(known)}"
    return InvalidArgument("settings", f"{name} is no setting; {hint} (from {where})", got=name, limit=hint)


def _refusal(error: ValidationError, origins: Mapping[str, Origin]) -> InvalidArgument:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][:2])
    return InvalidArgument(f"settings.{name}", f"{first['msg'].removeprefix('Value error, ')} (from "
                           f"{origins.get(name, _DEFAULT).where})",
                           got=MASK if name in _SECRETS else repr(first.get("input"))[:100], limit=first["type"])


def _check(settings: Settings, origins: Mapping[str, Origin]) -> None:
    """Hold values against each other; the refusal names both, and where the one at fault came from."""
    server, limits, tls, client, engine = (settings.server, settings.limits, settings.tls, settings.client,
                                           settings.engine)
    # Whether something is wrong, what, and the settings that may be at fault: of these, one that somebody set.
    rules = (
        (tls.cert_file and not tls.key_file, "needs tls.key_file too", "tls.cert_file"),
        (tls.key_file and not tls.cert_file, "needs tls.cert_file too", "tls.key_file"),
        (client.cert_file and not client.key_file, "needs client.key_file too", "client.cert_file"),
        (client.key_file and not client.cert_file, "needs client.cert_file too", "client.key_file"),
        (tls.client_ca_file and not tls.cert_file, "needs tls.cert_file: clients show certificates only over TLS",
         "tls.client_ca_file"),
        (limits.deadline_s > limits.deadline_max_s, f"deadline_s, {limits.deadline_s:g} s, is above deadline_max_s, "
         f"{limits.deadline_max_s:g} s", "limits.deadline_s", "limits.deadline_max_s"),
        (limits.message_bytes > limits.inflight_bytes, f"one message of message_bytes, {limits.message_bytes}, would "
         f"be above inflight_bytes, {limits.inflight_bytes}", "limits.inflight_bytes", "limits.message_bytes"),
        (limits.burst and not limits.rate, "needs limits.rate: a burst is what a rate may be exceeded by",
         "limits.burst"),
        (0 < limits.memory_bytes < engine.memory_bytes, f"{engine.memory_bytes} is above limits.memory_bytes, "
         f"{limits.memory_bytes}: writes would be refused before segments fill what they may", "engine.memory_bytes"),
        (server.grpc_port == server.http_port > 0, f"{server.http_port} is server.grpc_port too", "server.http_port",
         "server.grpc_port"),
        (client.url and "://" not in client.url, f"{client.url[:100]!r} is no URL; write grpc://host:7700",
         "client.url"),
        *cluster_rules(settings.cluster, server.node_id, (server.grpc_port, server.http_port)),
    )
    for wrong, message, *names in rules:
        if wrong:
            name = next((one for one in names if one in origins), names[0])
            raise InvalidArgument(f"settings.{name}", f"{message} (from {origins.get(name, _DEFAULT).where})",
                                  got=_plain(attrgetter(name)(settings)), limit=message)


def known_variables() -> list[str]:
    """The names of all variables that set something."""
    return [*_VARIABLES, *_SHORT]


def kernel_cache_directories() -> list[Path]:
    """Where Numba keeps compiled kernels: ``NUMBA_CACHE_DIR``, or beside the sources."""
    return [Path(os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).parent / "kernels" / "__pycache__")]
