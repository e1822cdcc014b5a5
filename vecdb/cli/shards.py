"""``vecdb shard``: who holds what in a cluster, who leads, and whether all replicas hold the same."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vecdb.cli import changing, exits
from vecdb.cli import options as o
from vecdb.cli.completing import collections, nodes
from vecdb.cli.output import Output, count, size
from vecdb.cli.session import open_database
from vecdb.cli.target import HERE, Target, resolve, with_target
from vecdb.core.cluster import Plan, PlanStep
from vecdb.core.errors import DeadlineExceeded, InvalidArgument, ShardNotFound, Unavailable
from vecdb.core.shards import CATCHING_UP

if TYPE_CHECKING:
    from vecdb.client.database import Database
    from vecdb.core.shards import ReplicaDigest, ReplicaInfo, ShardInfo, ShardVerification

commands = typer.Typer(help="Shards of a cluster and their replicas.", no_args_is_help=True)

CONTROL: Final = "(control)"
"""What the group is called that keeps the list of collections: no collection's name has brackets."""

LOADING: Final = "loading"
RETIRED: Final = "retired"

_LED_S: Final = 10.0
"""For a leader to be known again, where no --timeout says how long."""
_COMPARE_S: Final = 60.0
"""For the replicas of a shard to be compared, where no --timeout says how long: to read its records takes longer."""
_LOOK_S: Final = 0.1

Some = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Collections; none: all.",
                                                  autocompletion=collections, show_default=False)]


@commands.command("list")
@with_target
def list_(target: Target = HERE, as_json: o.Json = False) -> None:
    """Every shard: who leads it, and how its replicas are."""
    out = Output(as_json)
    shards = _shards(target, None)
    if as_json:
        out.emit({"shards": [told(one) for one in shards]})
    elif not shards:
        out.say("no collections")
    else:
        out.table("", ["collection", "shard", "leader", "replicas", "state", "lag"], [
            [one.collection or CONTROL, one.group, one.leader or "none", _nodes(one), state_of(one), _lag(one)]
            for one in shards], left=(0, 2, 3, 4))


@commands.command()
@with_target
def status(name: Some = None, target: Target = HERE, as_json: o.Json = False) -> None:
    """Every replica of some shards, or of all: its role, how far it is, its log.

    The exit code is 0 if each of these shards has a leader and all its replicas are well, else 4.
    """
    out = Output(as_json)
    shards = _shards(target, name)
    if as_json:
        out.emit({"healthy": all(one.healthy for one in shards), "shards": [told(one) for one in shards]})
    for one in shards:
        replicas(out, one)
    if not all(one.healthy for one in shards):
        raise typer.Exit(exits.PRECONDITION)


def replicas(out: Output, shard: "ShardInfo") -> None:
    """A table of a shard's replicas."""
    out.table(f"{shard.collection or CONTROL}, shard {shard.group}: {state_of(shard)}",
              ["replica", "state", "role", "term", "committed", "applied", "lag", "behind", "log", "log bytes",
               "error"], [_replica(replica) for replica in shard.replicas], left=(0, 1, 2, 10))


@commands.command()
@with_target
def verify(name: Some = None,
           deep: Annotated[bool, typer.Option("--deep", help="Every replica rereads its records and files.")] = False,
           target: Target = HERE, as_json: o.Json = False) -> None:
    """Compare what all replicas hold, at one place of the log.

    The exit code is 0 if all hold the same, 6 if two differ or one is damaged, 11 if some could not be asked.
    """
    out = Output(as_json)
    found: list[ShardVerification] = []
    place = resolve(target)
    seconds = place.settings.client.timeout_s or (None if deep else _COMPARE_S)
    silent = False
    with open_database(place) as database:
        # Asked of each by its name, they are those that calls go to; of all, also what is filled, or is no more.
        some = name or sorted({one.collection for one in database.admin.shards() if one.collection})
        for one in labels([shard for collection in some for shard in database.admin.shards(collection)]):
            out.note(f"comparing the replicas of {one}")
            try:
                found.append(database.admin.verify_shard(one, deep=deep, timeout=seconds))
            except (Unavailable, DeadlineExceeded) as error:
                silent = True
                out.warn(f"the replicas of {one} could not be compared: {error.message}")
    if as_json:
        complete = not silent and all(shard.complete for shard in found)
        out.emit({"agree": all(shard.agree for shard in found), "complete": complete,
                  "shards": [asdict(shard) for shard in found]})
    for shard in found:
        at = f", at log index {count(shard.log_index)}" if shard.log_index else ""
        out.table(f"{shard.collection}, shard {shard.group}{at}: {verdict(shard)}",
                  ["replica", "state", "records", "digest", "read again", "error"],
                  [digest(replica) for replica in shard.replicas], left=(0, 1, 3, 4, 5))
    if not as_json and not found and not silent:
        out.say("no collections")
    codes = [_exit_code(shard) for shard in found] + ([exits.UNREACHABLE] if silent else [])
    code = max(codes, key=_ORDER.index, default=exits.OK)
    if code:
        raise typer.Exit(code)


@commands.command("transfer-leader")
@with_target
def transfer_leader(
        name: Annotated[str | None, typer.Argument(metavar="[SHARD]", help="Its number, or a collection that has one.",
                                                   autocompletion=collections, show_default=False)] = None,
        to: Annotated[str | None, typer.Option("--to", metavar="NODE", help="Who is to lead: a node, or a replica.  "
                                               "[default: the one that is furthest]", show_default=False,
                                               autocompletion=nodes)] = None,
        control: Annotated[bool, typer.Option("--control", help="Of the control group instead.")] = False,
        yes: changing.Yes = False, dry_run: changing.DryRun = False,
        target: Target = HERE, as_json: o.Json = False) -> None:
    """Hand the leadership of a shard to another replica, before work on its node, say."""
    out = Output(as_json)
    if control == (name is not None):
        raise InvalidArgument("name", "give a collection, or --control", got="both" if control else "neither",
                              limit="one of the two")
    place = resolve(target)
    until = time.monotonic() + (place.settings.client.timeout_s or _LED_S)
    with open_database(place) as database:
        shard, label = find(database, name or "0")
        if to is not None and not any(to in (one.node, one.name) for one in shard.replicas):
            raise InvalidArgument("to", f"{to[:100]} holds no replica of {label or CONTROL}; {_nodes(shard)} "
                                  f"{'do' if len(shard.replicas) > 1 else 'does'}", got=to[:100], limit=_nodes(shard))
        plan = Plan("transfer-leader", (PlanStep(
            "transfer", str(shard.group), f"{label or CONTROL}: {shard.leader or 'whoever leads'} hands the leadership "
            f"to {to or 'the replica that is furthest'}, and writes wait meanwhile"),))
        if not changing.agreed(out, plan, yes=yes, dry_run=dry_run):
            return
        database.admin.transfer_leader(label, to)
        leader = _leader(database, shard, until)
    if as_json:
        out.emit({"collection": shard.collection, "shard": shard.group, "leader": leader})
    else:
        out.say(f"{label or CONTROL}: {leader} leads")


def find(database: "Database", what: str) -> "tuple[ShardInfo, str]":
    """One shard, by its number, as ``docs@7``, or by the name of a collection that has one; and what to ask for it by:
    empty for the control group.
    """
    name, _, number = what.partition("@")
    if what.isdecimal():
        shards = database.admin.shards()
        found = [one for one in shards if one.group == int(what)]
    else:
        shards = database.admin.shards(name)
        found = [one for one in shards if number in ("", str(one.group))]
    if not found:
        raise ShardNotFound(f"there is no shard {what[:80]} (vecdb shard list)", shard=what[:80])
    if len(found) != 1:
        raise InvalidArgument("shard", f"{name!r} has {len(found)} shards: say which by its number, one of "
                              f"{', '.join(str(one.group) for one in found[:64])}", got=what[:80],
                              limit=[one.group for one in found][:64])
    one = found[0]
    many = one.collection and sum(other.collection == one.collection for other in shards) > 1
    return one, f"{one.collection}@{one.group}" if many else one.collection


def _leader(database: "Database", shard: "ShardInfo", until: float) -> str:
    """Who leads: whoever took over may be between two answers, or have lost it again already."""
    while True:
        there = database.admin.shards(shard.collection or None)
        leader = next((one.leader for one in there if one.group == shard.group), None)
        if leader is not None:
            return leader
        if time.monotonic() + _LOOK_S >= until:
            raise Unavailable(f"{shard.collection or CONTROL}: the leadership was given up, and nobody is known to "
                              "lead since; vecdb shard status says how its replicas are")
        time.sleep(_LOOK_S)


def labels(shards: "Sequence[ShardInfo]") -> list[str]:
    """What shards are asked for by: the collection's name where there is one of it, else with the number."""
    many = {one.collection for one in shards if sum(other.collection == one.collection for other in shards) > 1}
    return [f"{one.collection}@{one.group}" if one.collection in many else one.collection
            for one in shards if one.collection]


def _shards(target: Target, names: Sequence[str] | None) -> "list[ShardInfo]":
    with open_database(target) as database:
        if not names:
            return database.admin.shards()
        return [shard for name in names for shard in database.admin.shards(name)]


def told(shard: "ShardInfo") -> dict[str, Any]:
    """A shard as JSON."""
    return {**asdict(shard), "healthy": shard.healthy, "lacks": shard.lacks}


def state_of(shard: "ShardInfo") -> str:
    """How a shard is, in some words."""
    if shard.state == RETIRED:
        return "retired, others took its place: it goes soon"
    filled = "being filled, " if shard.state == LOADING else ""
    if shard.leader is None:
        return f"{filled}nobody leads"
    amiss = [f"{one.node} {one.state}{_how_far(one)}" for one in shard.replicas if one.state != "ok"]
    few = f", {len(shard.replicas)} of {shard.wanted} replicas" if shard.lacks else ""
    return filled + (", ".join(amiss) or "well") + few


def _how_far(one: "ReplicaInfo") -> str:
    """Of a replica that catches up, in entries of the log: what it has, of what was committed."""
    return f" ({count(one.applied)} of {count(one.applied + one.lag)})" \
        if one.state == CATCHING_UP and one.lag >= 0 else ""


def _nodes(shard: "ShardInfo") -> str:
    return ", ".join(one.node for one in shard.replicas)


def _lag(shard: "ShardInfo") -> str:
    """Of the replica that is furthest back."""
    return _unknown(max((one.lag for one in shard.replicas), default=-1))


def _unknown(number: int) -> str:
    return "-" if number < 0 else count(number)


def _replica(one: "ReplicaInfo") -> list[str]:
    known = bool(one.role)
    return [one.name, one.state if one.member else f"{one.state}, no member", one.role or "-",
            *(count(number) if known else "-" for number in (one.term, one.commit, one.applied)),
            _unknown(one.lag), _unknown(one.behind), f"{count(one.first)}..{count(one.last)}" if known else "-",
            size(one.log_bytes) if known else "-", one.error]


def verdict(found: "ShardVerification") -> str:
    """What a comparison came to, in some words."""
    if not found.agree:
        return "they differ"
    if any(one.state == "damaged" for one in found.replicas):
        return "one is damaged"
    if not found.log_index and not any(one.digest for one in found.replicas):
        return "not compared"
    if not found.complete:
        return "those that answered hold the same; not all did"
    return "all hold the same" if len(found.replicas) > 1 else "it holds what was written"


_ORDER: Final = (exits.OK, exits.UNREACHABLE, exits.DATA_LOSS)


def _exit_code(found: "ShardVerification") -> int:
    if not found.agree or any(one.state == "damaged" for one in found.replicas):
        return exits.DATA_LOSS
    return exits.OK if found.complete else exits.UNREACHABLE


def digest(one: "ReplicaDigest") -> list[str]:
    known = bool(one.digest)
    deep = one.deep or "-"
    if one.state == "ok" and one.deep not in ("", one.digest):
        deep = "whole, at a later index"  # what was written meanwhile is in it, and it was as remembered
    return [one.name, one.state, count(one.records) if known else "-", one.digest or "-", deep, one.error]
