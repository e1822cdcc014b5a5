"""``vecdb cluster``: what the nodes of a cluster need before they start, and the cluster as a whole."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vecdb.cli import changing, exits, founding, joining, nodes, peers
from vecdb.cli import options as o
from vecdb.cli.output import Output, count, duration
from vecdb.cli.session import open_database, patience
from vecdb.cli.shards import RETIRED
from vecdb.cli.target import HERE, Target, resolve, with_target
from vecdb.core.cluster import Plan, PlanStep
from vecdb.core.errors import InvalidArgument

if TYPE_CHECKING:
    from vecdb.core.operations import ClusterInfo
    from vecdb.core.shards import ShardInfo

commands = typer.Typer(help="A cluster as a whole, and what its nodes need.", no_args_is_help=True)
token = typer.Typer(help="Tokens that nodes join with.", no_args_is_help=True)
commands.add_typer(token, name="token")
commands.command()(founding.init)
commands.command()(joining.join)


_NAMED = 8
"""Shards that nobody leads, in a warning."""


@commands.command()
@with_target
def status(target: Target = HERE, as_json: o.Json = False) -> None:
    """The cluster at a glance: its nodes, how many shards there are, and what jobs run.

    Before it is founded it says which nodes it waits for, and ends with 11; so it does where nobody leads it, with what
    the node that is asked knows by itself and the nodes that it does not reach, and where nobody leads some shard.
    """
    out = Output(as_json)
    place = resolve(target)
    seconds = patience(place)
    with open_database(place) as database:
        info = database.admin.cluster.info(timeout=seconds)
        jobs = database.admin.cluster.jobs(timeout=seconds) if info.leader else []
        away = {} if info.leader else nodes.unreached(database, seconds)
        unled = [one for one in peers.shards(database, seconds) or () if one.collection and one.leader is None
                 and one.state != RETIRED]
    if as_json:
        out.emit({**asdict(info), "open_jobs": [asdict(one) for one in jobs], "unreached": away,
                  "leaderless": [{"collection": one.collection, "shard": one.group} for one in unled]})
        _whole(out, info, away, unled)
        return
    if not info.nodes:
        out.say(f"{info.name}: founding; no node is entered yet")
        _whole(out, info, away, unled)
        return
    out.say(f"{info.name}: {count(len(info.nodes))} nodes, {count(info.collections)} collections, "
            f"{count(info.shards)} shards, epoch {count(info.epoch)}; {info.leader or 'nobody'} leads the control "
            "group")
    nodes.show(out, info.nodes, led=bool(info.leader))
    if jobs:
        out.table("jobs", changing.JOB_COLUMNS, [changing.job_row(one) for one in jobs], left=(1, 2, 3, 4, 5, 8))
    _whole(out, info, away, unled)


def _whole(out: Output, info: "ClusterInfo", away: dict[str, str], unled: "list[ShardInfo]") -> None:
    """End as what cannot be reached does, where nobody leads or there are nodes that were not heard of yet."""
    if unled:
        more = f" and {count(len(unled) - _NAMED)} more" if len(unled) > _NAMED else ""
        named = ", ".join(f"{one.collection} (shard {one.group})" for one in unled[:_NAMED])
        out.warn(f"nobody leads {named}{more}: not written, and read with --consistency eventual alone; vecdb doctor "
                 "says more")
    if not info.leader and info.nodes:
        nodes.leaderless(out, info, away)
    if info.unheard or not info.nodes:
        out.warn(f"{info.name} waits for word of {', '.join(info.unheard) or 'its nodes'}: vecdb doctor, and /readyz "
                 "of each, say more")
    if unled or info.unheard or not info.nodes:
        raise typer.Exit(exits.UNREACHABLE)


@commands.command("set")
@with_target
def set_setting(name: Annotated[str | None, typer.Argument(metavar="[NAME]", show_default=False)] = None,
                value: Annotated[str | None, typer.Argument(metavar="[VALUE]", help="A number; 'default': that again.",
                                                            show_default=False)] = None,
                yes: changing.Yes = False, dry_run: changing.DryRun = False, target: Target = HERE,
                as_json: o.Json = False) -> None:
    """Set a setting of the cluster; without any, tell them all."""
    from vecdb.core.operations import SETTINGS

    out = Output(as_json)
    if name is not None and value is None:
        raise InvalidArgument("value", f"of {name} is missing", got="nothing", limit="a number, or default")
    with open_database(target) as database:
        now = database.admin.cluster.info().settings
        if name is not None and value is not None:
            number = _number(value)
            if name not in SETTINGS:
                raise InvalidArgument("name", f"there is no setting {name[:80]!r}", got=name[:80],
                                      limit=sorted(SETTINGS))
            default, least, most, text = SETTINGS[name]
            if number is not None and not least <= number <= most:
                raise InvalidArgument("value", f"of {name} must be a number from {least:g} to {most:g}",
                                      got=value[:80], limit=[least, most])
            plan = Plan("set", (PlanStep("set", name, f"{name}: {now.get(name, default):g} becomes "
                                         f"{default if number is None else number:g}: {text}"),))
            if not changing.agreed(out, plan, yes=yes, dry_run=dry_run):
                return
            database.admin.cluster.set(name, number)
            now = database.admin.cluster.info().settings
    if as_json:
        out.emit({"settings": dict(now)})
        return
    out.table("", ["setting", "is", "default", "means"], [
        [one, f"{now.get(one, default):g}", f"{default:g}", text]
        for one, (default, _, _, text) in SETTINGS.items()], left=(0, 3))


def _number(text: str) -> float | None:
    if text == "default":
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidArgument("value", "is no number", got=text[:40], limit="a number, or default") from None


@token.command("create")
@with_target
def create_token(ttl: Annotated[str, typer.Option("--ttl", help="How long it is good: 30m, 12h, 7d.")] = "1h",
                 role: Annotated[list[str] | None, typer.Option("--role", help="Only for nodes of this role: both, "
                                                                "coordinator, shard (repeat it).")] = None,
                 target: Target = HERE, as_json: o.Json = False) -> None:
    """Make a token; it is printed this once.  A node is given it as cluster.token or cluster.token_file."""
    from vecdb.cli.keys import seconds_of

    out = Output(as_json)
    with open_database(target) as database:
        made = database.admin.cluster.create_join_token(seconds_of("ttl", ttl), role or ())
    if as_json:
        out.emit({**asdict(made.token), "token": made.secret})
    else:
        out.say(made.secret)
        out.note(f"good for {ttl}, for any number of nodes; vecdb cluster token revoke {made.token.id} ends it")


@token.command("list")
@with_target
def list_tokens(target: Target = HERE, as_json: o.Json = False) -> None:
    """Tokens, without their secrets."""
    out = Output(as_json)
    with open_database(target) as database:
        found = database.admin.cluster.join_tokens()
    if as_json:
        out.emit({"tokens": [asdict(one) for one in found]})
    elif not found:
        out.say("no tokens")
    else:
        now = time.time()
        out.table("", ["token", "roles", "ends"], [
            [one.id, ", ".join(one.roles) or "any", "never" if not one.expires_s else
             f"in {duration(one.expires_s - now)}" if one.expires_s > now else "it has ended"] for one in found],
            left=(0, 1, 2))


@token.command("revoke")
@with_target
def revoke_token(id: Annotated[str, typer.Argument(metavar="ID")], yes: changing.Yes = False,
                 dry_run: changing.DryRun = False, target: Target = HERE, as_json: o.Json = False) -> None:
    """End a token; nodes that have joined with it stay."""
    out = Output(as_json)
    plan = Plan("revoke", (PlanStep("revoke", id, f"no node joins with the token {id} any more; those that did stay"),))
    with open_database(target) as database:
        if not changing.agreed(out, plan, yes=yes, dry_run=dry_run):
            return
        database.admin.cluster.revoke_join_token(id)
    if as_json:
        out.emit({"revoked": id})
    else:
        out.say(f"{id} is revoked")


@commands.command()
def certs(out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where they are written; made if there is "
                                                "none.")],
          nodes: Annotated[str | None, typer.Option("--nodes", metavar="NAME,NAME...", help="Nodes by their names.  "
                                                    "[default: of cluster.nodes]", show_default=False)] = None,
          name: Annotated[str | None, typer.Option("--name", help="The cluster's.  [default: cluster.name]",
                                                   show_default=False)] = None,
          host: Annotated[list[str] | None, typer.Option(
              "--host", metavar="NODE=HOST", help="A DNS name or IP address that a node's certificate has, too, for "
              "other programs (repeat it).")] = None,
          renew: Annotated[bool, typer.Option("--renew", help="Also those that are there, by the same "
                                              "authority.")] = False,
          days: Annotated[int | None, typer.Option("--days", min=1, max=3_650, help="How long they are good.  "
                                                   "[default: 825]", show_default=False)] = None,
          config: o.Config = None, set_: o.Set = None, as_json: o.Json = False) -> None:
    """Make an authority for a cluster, and a certificate for each node; what is there stays.

    Each node gets its own two files and ca.pem (cluster.cert_file, key_file, ca_file).  ca.key signs others: it is
    needed on no node, and is to be kept elsewhere.
    """
    from vecdb.config import load
    from vecdb.rpc.peer_certificates import NODE_DAYS, issue

    out = Output(as_json)
    cluster = load(config, o.settings_of(set_)).settings.cluster
    listed = list(cluster.nodes) if nodes is None else [one.strip() for one in nodes.split(",") if one.strip()]
    if not listed:
        raise InvalidArgument("nodes", "names no node, and neither does cluster.nodes", got="nothing",
                              limit="--nodes n1,n2,n3")
    called = name or cluster.name
    if not called:
        raise InvalidArgument("name", "is missing, and cluster.name is not set: certificates are of one cluster",
                              got="nothing", limit="--name prod")
    written = issue(out_dir, called, listed, _hosts(host), renew=renew, days=days or NODE_DAYS)
    if as_json:
        out.emit({"cluster": called, "written": [str(one) for one in written]})
        return
    for one in written:
        out.say(str(one))
    if not written:
        out.note(f"nothing to do: {out_dir} has certificates of all of them (--renew makes new ones)")
    elif any(one.name == "ca.key" for one in written):
        out.note(f"keep {out_dir / 'ca.key'} where no node is: whoever has it can be any node of {called}")


def _hosts(given: list[str] | None) -> dict[str, list[str]]:
    hosts: dict[str, list[str]] = {}
    for one in given or ():
        node, sign, address = one.partition("=")
        if not sign or not node.strip() or not address.strip():
            raise InvalidArgument("host", f"{one[:60]!r} is no host of a node; write --host n1=10.0.0.1", got=one[:60],
                                  limit="NODE=HOST")
        hosts.setdefault(node.strip(), []).append(address.strip())
    return hosts
