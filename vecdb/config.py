"""Settings: defaults, then a TOML file, then ``VECDB_`` variables; an unknown name anywhere is an error.

The file is the one given, or the one ``VECDB_CONFIG`` names, or ``vecdb.toml`` in the current directory if
there is one.  ``VECDB_DATA_DIR=/srv/vec`` sets ``data_dir``; ``VECDB_ENGINE__SEAL_RECORDS=500000`` sets
``seal_records`` in ``[engine]``.  Only this module and :mod:`vecdb.app` look at the environment.
"""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
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


class Settings(BaseSettings):
    """Everything that can be set from outside; see the module for where it comes from."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    data_dir: Path = Path("./data")
    engine: EngineSettings = EngineSettings()

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
