"""``vecdb shard move|split|merge|replicate|rebalance|repair``: shards that change their places.

Each prints its plan and asks.
"""

from typing import Annotated, Any

import typer

from vecdb.cli import changing
from vecdb.cli import options as o
from vecdb.cli.completing import collections, nodes
from vecdb.cli.output import Output
from vecdb.cli.session import open_database
from vecdb.cli.shards import find
from vecdb.cli.target import HERE, Target, with_target
from vecdb.core.errors import InvalidArgument

Shard = Annotated[str, typer.Argument(metavar="SHARD", help="Its number (vecdb shard list), or a collection that has "
                                      "one.", autocompletion=collections)]


def add_to(commands: typer.Typer) -> None:
    """Make them commands of ``vecdb shard``."""
    for one in (move, split, merge, replicate, rebalance, repair):
        commands.command()(with_target(one))


def _run(target: Target, kind: str, what: str, args: dict[str, Any], as_json: bool, yes: bool, dry_run: bool,
         wait: bool) -> None:
    with open_database(target) as database:
        changing.change(database, kind, what, args, Output(as_json), as_json=as_json, yes=yes, dry_run=dry_run,
                        wait=wait)


def _number(target: Target, what: str) -> int:
    """Of a shard that is named by it, or by its collection."""
    if not what.isdecimal():
        with open_database(target) as database:
            return find(database, what)[0].group
    if not int(what):
        raise InvalidArgument("shard", "0 is the control group, which stays where it is", got=what, limit="1 or more")
    return int(what)


def move(shard: Shard,
         source: Annotated[str, typer.Option("--from", metavar="NODE", help="Whose replica goes.",
                                             autocompletion=nodes)],
         to: Annotated[str, typer.Option("--to", metavar="NODE", help="Where it goes.", autocompletion=nodes)],
         yes: changing.Yes = False, dry_run: changing.DryRun = False, wait: changing.Wait = True,
         target: Target = HERE, as_json: o.Json = False) -> None:
    """Move a replica of a shard from one node to another, while it serves."""
    _run(target, "move", str(_number(target, shard)), {"from": source, "to": to}, as_json, yes, dry_run, wait)


def split(shard: Shard,
          into: Annotated[int | None, typer.Option("--into", min=2, max=64, help="How many of equal ranges.  "
                                                   "[default: 2]", show_default=False)] = None,
          at: Annotated[str | None, typer.Option("--at", help="An id, or a value of the shard key, at whose hash it is "
                                                 "cut.")] = None,
          apart: Annotated[str | None, typer.Option("--apart", help="An id, or a value of the shard key (a tenant), "
                                                    "that gets a shard of its own.")] = None,
          yes: changing.Yes = False, dry_run: changing.DryRun = False, wait: changing.Wait = True,
          target: Target = HERE, as_json: o.Json = False) -> None:
    """Split a shard by the hashes of its records, while it serves."""
    given = {"into": into, "at": at, "apart": apart}
    if sum(one is not None for one in given.values()) > 1:
        raise InvalidArgument("into", "is one of three: give --into, --at or --apart", got="several", limit="one")
    _run(target, "split", str(_number(target, shard)), {name: one for name, one in given.items() if one is not None},
         as_json, yes, dry_run, wait)


def merge(shard: Shard, other: Annotated[int, typer.Argument(metavar="OTHER", help="The number of a neighbour of it.",
                                                             min=1)],
          yes: changing.Yes = False, dry_run: changing.DryRun = False, wait: changing.Wait = True,
          target: Target = HERE, as_json: o.Json = False) -> None:
    """Make two shards whose ranges follow each other one, while they serve."""
    _run(target, "merge", str(_number(target, shard)), {"with": other}, as_json, yes, dry_run, wait)


def replicate(name: Annotated[str, typer.Argument(metavar="COLLECTION", autocompletion=collections)],
              factor: Annotated[int, typer.Option("--factor", min=1, max=7, help="Replicas of each of its shards.")],
              yes: changing.Yes = False, dry_run: changing.DryRun = False, wait: changing.Wait = True,
              target: Target = HERE, as_json: o.Json = False) -> None:
    """Give the shards of a collection more or fewer replicas, while they serve."""
    _run(target, "replication", name, {"factor": factor}, as_json, yes, dry_run, wait)


def rebalance(collection: Annotated[str | None, typer.Option("--collection", "-c", help="Move only shards of this one; "
                                                             "the load of all counts.",
                                                             autocompletion=collections)] = None,
              to: Annotated[str | None, typer.Option("--to", metavar="NODE", help="Move only what goes there: to a "
                                                     "new node, say.", autocompletion=nodes)] = None,
              yes: changing.Yes = False, dry_run: changing.DryRun = False, wait: changing.Wait = True,
              target: Target = HERE, as_json: o.Json = False) -> None:
    """Spread replicas evenly over nodes by their capacity, by as few moves as that takes."""
    given = {"collection": collection, "to": to}
    _run(target, "rebalance", "", {name: one for name, one in given.items() if one is not None}, as_json, yes, dry_run,
         wait)


def repair(name: Annotated[str, typer.Argument(metavar="COLLECTION", autocompletion=collections)],
           shard: Annotated[int | None, typer.Option("--shard", min=1, help="Only this one.")] = None,
           yes: changing.Yes = False, dry_run: changing.DryRun = False, wait: changing.Wait = True,
           target: Target = HERE, as_json: o.Json = False) -> None:
    """Compare the replicas of shards, and build anew one that differs from the others or is damaged.

    Every record is read again, and every file of sealed segments, from the disk, against its checksums.
    """
    _run(target, "scrub", name, {} if shard is None else {"shard": shard}, as_json, yes, dry_run, wait)
