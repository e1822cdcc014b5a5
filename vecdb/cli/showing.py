"""``vecdb shard show``: one shard with all that is known of it."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vecdb.cli import changing, exits
from vecdb.cli import options as o
from vecdb.cli.completing import collections
from vecdb.cli.output import Output, count
from vecdb.cli.session import open_database
from vecdb.cli.shards import digest, find, replicas, told, verdict
from vecdb.cli.target import HERE, Target, with_target
from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import PermissionDenied, Unsupported, VecdbError

if TYPE_CHECKING:
    from vecdb.client.database import Database
    from vecdb.core.cluster import JobInfo
    from vecdb.core.shard_map import ShardMap, ShardRoute
    from vecdb.core.shards import ShardInfo, ShardVerification


def add_to(commands: typer.Typer) -> None:
    """Make it a command of ``vecdb shard``."""
    commands.command()(with_target(show))


def show(shard: Annotated[str, typer.Argument(metavar="SHARD", help="Its number (0: the control group), or a "
                                              "collection that has one.", autocompletion=collections)],
         compare: Annotated[bool, typer.Option("--digests/--no-digests", help="Compare what its replicas hold, "
                                               "too.")] = True,
         target: Target = HERE, as_json: o.Json = False) -> None:
    """One shard: its range, its replicas and their logs, who leads, whether all hold the same, and its jobs.

    The exit code is 0 if somebody leads and all replicas are well, else 4.
    """
    out = Output(as_json)
    with open_database(target) as database:
        one, label = find(database, shard)
        placed, route = _route(database, one)
        jobs = _jobs(database, one)
        found, why = _compared(database, label) if compare and label and one.leader else (None, "")
    if as_json:
        out.emit({**told(one), "range": None if route is None else {"first": route.lo, "last": route.hi - 1},
                  "shard_key": None if placed is None else placed.shard_key,
                  "epoch": None if placed is None else placed.epoch,
                  "digests": None if found is None else asdict(found), "digests_error": why,
                  "jobs": [asdict(job) for job in jobs]})
    else:
        replicas(out, one)
        if placed is not None and route is not None:
            by = f"of the field {placed.shard_key!r}" if placed.shard_key else "of ids"
            zones = {node.name: node.zone for node in placed.nodes}
            out.say(f"hashes {by}: {route.lo:016x} to {route.hi - 1:016x}, {(route.hi - route.lo) / HASH_SPACE:.1%} of "
                    f"them all; on {', '.join(node + _in(zones.get(node, '')) for node in route.nodes)}; led by "
                    f"{one.leader or 'nobody'}; epoch {count(placed.epoch)}")
        if found is not None:
            out.table(f"at log index {count(found.log_index)}: {verdict(found)}",
                      ["replica", "state", "records", "digest", "read again", "error"],
                      [digest(replica) for replica in found.replicas], left=(0, 1, 3, 4, 5))
        elif why:
            out.note(f"its replicas could not be compared: {why}")
        if jobs:
            out.table("jobs", changing.JOB_COLUMNS, [changing.job_row(job) for job in jobs], left=(1, 2, 3, 4, 5, 8))
    if not one.healthy:
        raise typer.Exit(exits.PRECONDITION)


def _in(zone: str) -> str:
    return f" ({zone})" if zone else ""


def _route(database: "Database", shard: "ShardInfo") -> "tuple[ShardMap | None, ShardRoute | None]":
    """Where calls to it go; nothing of the control group, of a shard that calls do not go to, or without a cluster."""
    if not shard.collection:
        return None, None
    try:
        placed = database.admin.shard_map(shard.collection)
    except (PermissionDenied, Unsupported):
        return None, None
    return placed, next((one for one in placed.shards if one.group == shard.group), None)


def _jobs(database: "Database", shard: "ShardInfo") -> "list[JobInfo]":
    """Open jobs that name the shard, or its collection."""
    try:
        jobs = database.admin.cluster.jobs()
    except (PermissionDenied, Unsupported):
        return []
    number = str(shard.group)
    return [one for one in jobs if one.target in (number, shard.collection or number)
            or str(one.args.get("with", "")) == number]


def _compared(database: "Database", label: str) -> "tuple[ShardVerification | None, str]":
    try:
        return database.admin.verify_shard(label), ""
    except VecdbError as error:
        return None, error.message
