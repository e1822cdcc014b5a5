"""``vecdb completion``: scripts for shells, and the names of collections and nodes that they complete.

Names come from the catalog of a directory alone, read-only and beside whoever has it open, or from a server within a
second.  Whatever goes wrong, nothing is proposed and nothing is said: the person is in the middle of a line.
"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from vecdb.cli.target import Place
    from vecdb.client.database import Database

_WAIT_S: Final = 1.0


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="Which shell.")]) -> None:
    """Print a script that completes commands, options and collections.

    bash: source <(vecdb completion bash) in ~/.bashrc; zsh: the same in ~/.zshrc, after compinit;
    fish: vecdb completion fish > ~/.config/fish/completions/vecdb.fish.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # it names no __all__

    typer.echo(get_completion_script(prog_name="vecdb", complete_var="_VECDB_COMPLETE", shell=shell.value))


def collections(ctx: typer.Context, incomplete: str) -> list[str]:
    """The collections whose names begin so, of the place that the line names so far."""
    try:
        return [name for name in _names(ctx.params) if name.startswith(incomplete)]
    except Exception:
        return []


def nodes(ctx: typer.Context, incomplete: str) -> list[str]:
    """The nodes whose names begin so, of those that hold replicas in the cluster that the line names so far."""
    try:
        place = _place(ctx.params)
        with _opened(place) as database:
            shards = database.admin.shards(ctx.params.get("name"))
        return sorted({one.node for shard in shards for one in shard.replicas if one.node.startswith(incomplete)})
    except Exception:
        return []


def _place(given: dict[str, Any]) -> "Place":
    from dataclasses import fields

    from vecdb.cli.target import Target, resolve

    known = {field.name: given.get(field.name) for field in fields(Target)}
    known["data"] = None if known["data"] is None else Path(known["data"])
    return resolve(Target(**known), tell=False)


def _names(given: dict[str, Any]) -> list[str]:
    place = _place(given)
    return _of_server(place) if place.directory is None else _of_directory(place.directory)


def _of_directory(directory: Path) -> list[str]:
    if not (directory / "catalog").is_dir():
        return []
    from contextlib import closing

    from vecdb.services.catalog import Catalog
    from vecdb.storage.rocksdict import RocksStore

    with closing(Catalog(lambda: RocksStore(directory / "catalog", read_only=True))) as catalog:
        return sorted(catalog.entries)


def _of_server(place: "Place") -> list[str]:
    with _opened(place) as database:
        return database.list_collections()


def _opened(place: "Place") -> "Database":
    import vecdb

    options = {**place.connection(), "timeout": _WAIT_S, "connect_timeout": _WAIT_S, "retries": 0}
    return vecdb.connect(place.url, api_key=place.api_key, **options)
