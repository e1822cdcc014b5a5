"""What a command works on: a directory, or a server, by one set of options that every data command has.

**Which one.**  ``--url`` or ``--data`` on the command line, never both.  Without either, what is configured: of
``url`` in ``[client]`` (``VECDB_URL``) and ``data_dir`` (``VECDB_DATA_DIR``) the one whose source stands nearer (a
variable above the file), and where both stand in the same source the server, since a directory that a server holds
cannot be opened beside it.  Whoever has configured both is told which was taken.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vecdb.cli import options as o
from vecdb.core.errors import InvalidArgument

if TYPE_CHECKING:
    from vecdb.config import Loaded, Settings

_PANEL: Final = "Server"
_CONNECT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """The options as given; :func:`resolve` makes a place of them."""

    data: Path | None = None
    url: str | None = None
    api_key: str | None = None
    api_key_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    insecure: bool | None = None
    timeout: str | None = None
    consistency: str | None = None


HERE: Final = Target()
"""No option given: what is configured."""

_ANNOTATIONS: Final[dict[str, Any]] = {
    "data": o.Data,
    "url": Annotated[str | None, typer.Option(
        "--url", help="A server instead, as grpc://host:7700 (grpcs:// with TLS; nodes of a cluster by commas).  "
        "[default: VECDB_URL]",
        show_default=False, rich_help_panel=_PANEL)],
    "api_key": Annotated[str | None, typer.Option(
        "--api-key", help="Visible to every user of this machine: better VECDB_API_KEY or --api-key-file.",
        rich_help_panel=_PANEL)],
    "api_key_file": Annotated[Path | None, typer.Option("--api-key-file", help="File that holds the API key.",
                                                        rich_help_panel=_PANEL)],
    "ca_file": Annotated[Path | None, typer.Option("--ca-file", help="TLS: PEM of the server's authority.",
                                                   rich_help_panel=_PANEL)],
    "cert_file": Annotated[Path | None, typer.Option("--cert-file", help="Mutual TLS: our certificate.",
                                                     rich_help_panel=_PANEL)],
    "key_file": Annotated[Path | None, typer.Option("--key-file", help="Mutual TLS: our key.", rich_help_panel=_PANEL)],
    "insecure": Annotated[bool | None, typer.Option("--insecure", help="Let the API key travel without TLS.",
                                                    show_default=False, rich_help_panel=_PANEL)],
    "timeout": Annotated[str | None, typer.Option("--timeout", help="Of one call: 30s, 5m.", rich_help_panel=_PANEL)],
    "consistency": Annotated[str | None, typer.Option(
        "--consistency", metavar="LEVEL", help="What reads see of other commands' writes: linearizable, all of them; "
        "eventual, what the replica asked has.  [default: linearizable]", show_default=False, rich_help_panel=_PANEL)],
}
_SETTINGS: Final = {"data": "data_dir", "timeout": "client.timeout_s"}
"""By option where it is not ``client.`` and the option's name."""


def with_target(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :class:`Target` in place of its parameter ``target``."""
    own = inspect.signature(function).parameters
    parameters: list[inspect.Parameter] = []
    for parameter in own.values():
        if parameter.name == "target":
            parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
                           for name, annotation in _ANNOTATIONS.items()]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(function)
    def command(**given: Any) -> None:
        target = Target(**{name: given.pop(name) for name in _ANNOTATIONS})
        function(target=target, **given)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del command.__wrapped__  # its annotations would be read again
    return command


@dataclass(frozen=True, slots=True)
class Place:
    """A directory, or a server's URL."""

    directory: Path | None
    url: str
    loaded: "Loaded"

    @property
    def settings(self) -> "Settings":
        return self.loaded.settings

    @property
    def is_server(self) -> bool:
        return self.directory is None

    @property
    def name(self) -> str:
        return self.url or str(self.directory)

    @property
    def flags(self) -> str:
        """What names this place on a command line."""
        return f"--url {self.url}" if self.is_server else f"--data {self.directory}"

    @property
    def api_key(self) -> str | None:
        return self.settings.client.api_key.get_secret_value() or None

    def connection(self) -> dict[str, Any]:
        """The options of a connection, as :func:`vecdb.connect` takes them beside the key."""
        client = self.settings.client
        options: dict[str, Any] = {name: str(getattr(client, name)) for name in ("ca_file", "cert_file", "key_file")
                                   if getattr(client, name) is not None}
        options["consistency"] = client.consistency
        if client.insecure:
            options["insecure"] = True
        if client.timeout_s:
            options["timeout"] = client.timeout_s
            options["connect_timeout"] = min(client.timeout_s, _CONNECT_S)
        return options


def resolve(target: Target, *, tell: bool = True, config: Path | None = None,
            others: Mapping[str, tuple[Any, str]] | None = None) -> Place:
    """The place a command works on; ``tell``: say on stderr what was passed over, and what a flag gives away.

    ``config``, ``others``: a file of settings and other flags, as :func:`vecdb.config.load` takes them.
    """
    from vecdb.config import load

    if target.data is not None and target.url is not None:
        raise InvalidArgument("url", "--url and --data exclude each other: a command works on a server or on a "
                              "directory", got="both", limit="one of them")
    given = {field.name: getattr(target, field.name) for field in fields(target)
             if getattr(target, field.name) is not None}
    flags = {_SETTINGS.get(name, f"client.{name}"): (value, _flag(name)) for name, value in given.items()}
    loaded = load(config, {**(others or {}), **flags})
    place = _choose(target, loaded, tell)
    if not place.is_server:
        for name in given:
            if name != "data":
                raise InvalidArgument(name, f"{_flag(name)} is for a server, and this is the directory "
                                      f"{place.directory}; say which server with --url", got=_flag(name), limit="--url")
    if tell and target.api_key is not None:
        sys.stderr.write("vecdb: warning: --api-key can be read by every user of this machine; VECDB_API_KEY and "
                         "--api-key-file cannot\n")
    return place


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _choose(target: Target, loaded: "Loaded", tell: bool) -> Place:
    url, data_dir = loaded.settings.client.url, loaded.settings.data_dir
    if target.data is not None or not url:
        return Place(data_dir, "", loaded)
    server = Place(None, url, loaded)
    if target.url is not None:
        return server
    by_url, by_data = loaded.origin("client.url"), loaded.origin("data_dir")
    local = by_data.rank > by_url.rank
    if tell and by_data.rank:
        taken, other = (f"the directory {data_dir} ({by_data.where})", f"{url} ({by_url.where})") if local else \
            (f"{url} ({by_url.where})", f"{data_dir} ({by_data.where})")
        why = "the nearer source wins" if by_data.rank != by_url.rank else "a server goes before a directory"
        sys.stderr.write(f"vecdb: note: this is {taken}; {other} is configured too, and {why} (--url and --data say "
                         "it outright)\n")
    return Place(data_dir, "", loaded) if local else server
