"""``vecdb snapshot``: collections saved to a folder or a bucket, and restored from there, also elsewhere.

Of a cluster the jobs are the cluster's, and the place must be one that its nodes reach; ``list`` and ``show`` look at
it from here, with the credentials of here.  Of a directory all is done here, while nobody else has it open.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vecdb.cli import changing, exits
from vecdb.cli import options as o
from vecdb.cli.output import Output, count, size
from vecdb.cli.session import open_database
from vecdb.cli.target import HERE, Place, Target, resolve, with_target
from vecdb.core.cluster import Plan, PlanStep
from vecdb.core.errors import InvalidArgument, StorageError, VecdbError
from vecdb.core.units import parse_bytes

if TYPE_CHECKING:
    from vecdb.services.backup.local import LocalBackups
    from vecdb.services.backup.repository import Repository
    from vecdb.services.backup.saving import Watch

commands = typer.Typer(help="Collections saved to a folder or a bucket, and restored from there.",
                       no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="The snapshot's name.")]
At = Annotated[str | None, typer.Option("--at", metavar="URL", help="Where it is: file:///path, which all nodes must "
                                        "have, or s3://bucket/prefix.  [default: url in \\[backup]]",
                                        show_default=False)]
Pace = Annotated[str | None, typer.Option("--pace", metavar="SIZE", help="Bytes a second that each node sends or "
                                          "takes, as 50MB.  [default: as fast as it goes]", show_default=False)]


@commands.command()
@with_target
def create(name: Annotated[str, typer.Argument(metavar="[SNAPSHOT]", help="Its name.  [default: of the time]",
                                               show_default=False)] = "",
           collection: Annotated[list[str] | None, typer.Option("--collection", "-c", help="Only these.")] = None,
           at: At = None, pace: Pace = None, yes: changing.Yes = False, dry_run: changing.DryRun = False,
           wait: changing.Wait = True, target: Target = HERE, as_json: o.Json = False) -> None:
    """Save collections, or all of them, as they are now.  What an earlier snapshot there has is not sent again."""
    out, place = Output(as_json), resolve(target)
    name = name or time.strftime("%Y-%m-%dT%H.%M.%SZ", time.gmtime())
    args: dict[str, Any] = {"collections": list(collection)} if collection else {}
    if place.is_server:
        change_here(place, "snapshot", name, {**_args(place, at, pace), **args}, out, yes=yes, dry_run=dry_run,
                    wait=wait)
        return
    with _local(place) as backups:
        names = list(collection) if collection else backups.names()
        url = place_url(place, at)
        with suppress(StorageError):  # a folder that is to be made
            _repository(place, at).check_new(name)
        plan = Plan("snapshot", tuple(PlanStep("save", one, f"save {one!r} to {url}") for one in names))
        if not _agreed(out, plan, f"snapshot {name}", yes=True, dry_run=dry_run):
            return
        with _watched(out, backups, f"saving {name}", pace) as watch:
            info = backups.create(_repository(place, at, create=True), name, names, watch)
    if as_json:
        out.emit({"plan": asdict(plan), "snapshot": asdict(info)})
    else:
        out.say(f"{info.name}: {count(info.records)} records, {size(info.bytes)}, {size(info.added_bytes)} of them new")


@commands.command("list")
@with_target
def list_(at: At = None, target: Target = HERE, as_json: o.Json = False) -> None:
    """Snapshots at a place."""
    out, place = Output(as_json), resolve(target)
    repository = _repository(place, at)
    found, damaged = [], []
    for name in repository.names():
        try:
            found.append(repository.load(name).info())
        except VecdbError as error:  # the others are listed all the same
            damaged.append((name, error.message))
    found.sort(key=lambda one: one.created_s)
    if as_json:
        out.emit({"url": repository.url, "snapshots": [asdict(one) for one in found],
                  "damaged": [{"name": name, "error": why} for name, why in damaged]})
    elif not found and not damaged:
        out.say(f"no snapshots at {repository.url}")
    else:
        out.table(repository.url, ["snapshot", "made", "cluster", "collections", "records", "bytes", "new then"], [
            [one.name, _when(one.created_s), one.cluster or "-", count(len(one.collections)), count(one.records),
             size(one.bytes), size(one.added_bytes)] for one in found], left=(0, 1, 2))
    for name, why in damaged:
        out.warn(f"{name}: {why}")
    if damaged:
        raise typer.Exit(exits.DATA_LOSS)


@commands.command()
@with_target
def show(name: Name, at: At = None, target: Target = HERE, as_json: o.Json = False) -> None:
    """What a snapshot has."""
    out, place = Output(as_json), resolve(target)
    info = _repository(place, at).load(name).info()
    if as_json:
        out.emit(asdict(info))
        return
    out.table(f"{info.name}, made {_when(info.created_s)} by version {info.version or '?'}",
              ["collection", "shards", "replicas", "shard key", "records", "bytes", "digest"], [
                  [one.name, count(one.shards), count(one.replication_factor), one.shard_key or "-",
                   count(one.records), size(one.bytes), one.digest] for one in info.collections], left=(0, 3, 6))


@commands.command()
@with_target
def verify(name: Name, at: At = None, pace: Pace = None, wait: changing.Wait = True, target: Target = HERE,
           as_json: o.Json = False) -> None:
    """Read all of it again, open every shard in scratch space, and compare its records.

    The exit code is 0 if it is whole; else 6, of a job of a cluster 4.
    """
    out, place = Output(as_json), resolve(target)
    if place.is_server:
        change_here(place, "snapshot_verify", name, _args(place, at, pace), out, yes=True, dry_run=False, wait=wait)
        return
    with _local(place) as backups, _watched(out, backups, f"reading {name}", pace) as watch:
        found = backups.verify(_repository(place, at), name, watch)
    if as_json:
        out.emit(asdict(found))
    elif found.whole:
        out.say(f"{name} is whole: {count(found.records)} records in {count(found.shards)} shards, "
                f"{count(found.objects)} objects, {size(found.bytes)}")
    for problem in found.problems:
        out.warn(problem)
    if not found.whole:
        raise typer.Exit(exits.DATA_LOSS)


@commands.command()
@with_target
def restore(name: Name,
            collection: Annotated[list[str] | None, typer.Option(
                "--collection", "-c", metavar="NAME[=NEW]", help="Only these, each maybe under a new name.")] = None,
            shards: Annotated[int | None, typer.Option("--shards", min=1, help="Of each collection.  [default: as "
                                                       "they were]", show_default=False)] = None,
            replication_factor: Annotated[int | None, typer.Option(
                "--replication-factor", min=1, help="Of each collection.  [default: as it was]",
                show_default=False)] = None,
            with_settings: Annotated[bool, typer.Option("--with-settings", help="The cluster's settings that are not "
                                                        "set here, too.")] = False,
            with_keys: Annotated[bool, typer.Option("--with-keys", help="API keys that are not here, too.")] = False,
            at: At = None, pace: Pace = None, yes: changing.Yes = False, dry_run: changing.DryRun = False,
            wait: changing.Wait = True, target: Target = HERE, as_json: o.Json = False) -> None:
    """Make collections of those that a snapshot has.  None that is here is overwritten; none is seen half done."""
    out, place, names = Output(as_json), resolve(target), renamed(collection)
    if place.is_server:
        args = _args(place, at, pace)
        asked: dict[str, Any] = {"collections": names, "shards": shards, "replication_factor": replication_factor,
                                 "settings": with_settings, "api_keys": with_keys}
        args |= {key: value for key, value in asked.items() if value}
        change_here(place, "restore", name, args, out, yes=yes, dry_run=dry_run, wait=wait)
        return
    if shards or replication_factor or with_settings or with_keys:
        raise InvalidArgument("shards", "and what else is a cluster's can only be said for one", got=str(place.name),
                              limit="--url")
    with _local(place, create=True) as backups:
        repository = _repository(place, at)
        wanted = backups.wanted(repository, name, names)
        plan = Plan("restore", tuple(PlanStep("restore", to, f"restore {to!r} from {one!r} of {name!r}", bytes_)
                                     for one, to, bytes_ in wanted))
        if not _agreed(out, plan, f"restore {name}", yes=yes, dry_run=dry_run):
            return
        with _watched(out, backups, f"restoring {name}", pace) as watch:
            done = backups.restore(repository, name, names, watch)
    if as_json:
        out.emit({"plan": asdict(plan), "collections": [asdict(one) for one in done]})
    for one in [] if as_json else done:
        out.say(f"{one.name}: {count(one.records)} records")


@commands.command()
@with_target
def delete(name: Name, at: At = None, yes: changing.Yes = False, dry_run: changing.DryRun = False,
           wait: changing.Wait = True, target: Target = HERE, as_json: o.Json = False) -> None:
    """Delete a snapshot, and what no other one there needs."""
    out, place = Output(as_json), resolve(target)
    if place.is_server:
        change_here(place, "snapshot_delete", name, _args(place, at, None), out, yes=yes, dry_run=dry_run, wait=wait)
        return
    repository = _repository(place, at)
    repository.load(name)
    plan = Plan("snapshot_delete", (PlanStep("delete", name, f"delete {name!r} at {repository.url}, and what no other "
                                             "snapshot there needs"),))
    if not _agreed(out, plan, f"deleting {name}", yes=yes, dry_run=dry_run):
        return
    done = repository.remove(name, name)
    if as_json:
        out.emit({"plan": asdict(plan), "removed": asdict(done)})
    else:
        out.say(f"{name} is gone, and {count(done.objects)} objects of {size(done.bytes)}")
    if done.withheld:
        out.note(done.withheld)


# --- what they have in common ---------------------------------------------------------------------


def place_url(place: Place, at: str | None) -> str:
    """Where snapshots are, as it was said or as the settings say."""
    from vecdb.core.backups import parse_place

    said = at or place.settings.backup.url
    if not said:
        raise InvalidArgument("at", "says where snapshots are", got="nothing", limit="--at file:///path")
    return parse_place(said).url


def _repository(place: Place, at: str | None, *, create: bool = False) -> "Repository":
    from vecdb.app import repositories

    return repositories(place.settings.backup)(place_url(place, at), create=create)


def _args(place: Place, at: str | None, pace: str | None) -> dict[str, Any]:
    return {"url": place_url(place, at), **({"bytes_per_s": parse_bytes(pace)} if pace else {})}


def renamed(collections: Sequence[str] | None) -> dict[str, str] | None:
    """``a=b`` restores ``a`` as ``b``."""
    if not collections:
        return None
    pairs = [one.partition("=") for one in collections]
    return {name: to or name for name, _, to in pairs}


def change_here(place: Place, kind: str, name: str, args: dict[str, Any], out: Output, *, yes: bool, dry_run: bool,
                wait: bool) -> None:
    """Plan, ask, begin and watch, of a server."""
    with open_database(place) as database:
        changing.change(database, kind, name, args, out, as_json=out.as_json, yes=yes, dry_run=dry_run, wait=wait)


def _agreed(out: Output, plan: Plan, what: str, *, yes: bool, dry_run: bool) -> bool:
    if not out.as_json:
        changing.show_plan(out, plan)
    if dry_run:
        if out.as_json:
            out.emit({"plan": asdict(plan)})
        return False
    if not yes:
        changing.agree(what)
    return True


@contextmanager
def _local(place: Place, *, create: bool = False) -> Iterator["LocalBackups"]:
    """Of a directory that nobody else has open."""
    from vecdb.app import open_embedded, open_store
    from vecdb.cli.exits import NotFoundError
    from vecdb.cli.machine import installed
    from vecdb.runtime.clock import SystemClock
    from vecdb.services.backup.local import LocalBackups

    assert place.directory is not None
    if not create and not place.directory.is_dir():
        raise NotFoundError(f"there is no database at {place.directory} (say where with --data or VECDB_DATA_DIR)",
                            path=str(place.directory))
    options = place.settings.engine.model_dump() | {"background": False}
    database = open_embedded(place.directory, **options)
    try:
        yield LocalBackups(database, open_store, SystemClock(), version=installed("vecdb") or "")
    finally:
        database.close()


@contextmanager
def _watched(out: Output, backups: "LocalBackups", what: str, pace: str | None) -> Iterator["Watch"]:
    """A watch whose progress is shown."""
    import threading

    watch = backups.watch(parse_bytes(pace) if pace else None)
    over = threading.Event()
    with out.progress(what, unit="B") as advance:
        shower = threading.Thread(target=_show, args=(watch, over, advance), daemon=True)
        shower.start()
        try:
            yield watch
        finally:
            over.set()
            shower.join()


def _show(watch: "Watch", over: Any, advance: Callable[[int, int | None], None]) -> None:
    while not over.wait(0.2):
        advance(watch.done, watch.total or None)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
