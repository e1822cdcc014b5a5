"""``vecdb node``: the nodes of a cluster, and what is done with each."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vecdb.cli import changing, exits
from vecdb.cli import options as o
from vecdb.cli.output import Output, count, duration, size
from vecdb.cli.session import open_database, patience
from vecdb.cli.target import HERE, Target, resolve, with_target
from vecdb.core.cluster import CLOCK_OFF_S, MISSED_S, SILENT_S, SLOW_SYNC_S, Plan, PlanStep, disk_state
from vecdb.core.errors import NodeNotFound
from vecdb.core.shards import UNREACHABLE

if TYPE_CHECKING:
    from vecdb.client.database import Database
    from vecdb.core.cluster import NodeInfo
    from vecdb.core.operations import ClusterInfo

commands = typer.Typer(help="Nodes of a cluster.", no_args_is_help=True)

Node = Annotated[str, typer.Argument(metavar="NODE", help="The node's name.")]


@commands.command("list")
@with_target
def list_(target: Target = HERE, as_json: o.Json = False) -> None:
    """Every node: what it does, where it is, how it is."""
    out = Output(as_json)
    place = resolve(target)
    with open_database(place) as database:
        info = database.admin.cluster.info(timeout=patience(place))
        away = {} if info.leader else unreached(database, patience(place))
    if as_json:
        out.emit({"nodes": [asdict(one) for one in info.nodes]})
    else:
        show(out, info.nodes, led=bool(info.leader))
    if not info.leader and info.nodes:
        leaderless(out, info, away)
    if not info.nodes:
        out.warn(f"{info.name} is being founded: no node is entered yet")
        raise typer.Exit(exits.UNREACHABLE)


def unreached(database: "Database", seconds: float) -> dict[str, str]:
    """Nodes that the one that is asked does not reach, and why not."""
    return {replica.node: replica.error for shard in database.admin.shards(timeout=seconds)
            for replica in shard.replicas if replica.state == UNREACHABLE}


def leaderless(out: Output, info: "ClusterInfo", away: dict[str, str]) -> None:
    """Say that it is what one node knows, and end as what cannot be reached does."""
    told = "; ".join(f"{node} is not reached" + (f" ({why})" if why else "") for node, why in sorted(away.items()))
    out.warn(f"nobody is known to lead the control group, so this is what {info.node} knows by itself, and nothing can "
             f"be changed; {told or 'it reaches all nodes'}")
    raise typer.Exit(exits.UNREACHABLE)


def show(out: Output, nodes: "tuple[NodeInfo, ...]", *, led: bool = True) -> None:
    """A table of nodes; ``led``: by the leader, who hears of them."""
    out.table("", ["node", "role", "zone", "state", "heard", "replicas", "leads", "disk free", "memory", "address",
                   "version"], [_row(one, led) for one in nodes], left=(0, 1, 2, 3, 4, 9, 10))


def state_of(one: "NodeInfo", *, led: bool = True) -> str:
    """What the cluster wants of it, and whether it is there at all, as far as its leader (``led``) knows."""
    if not led:
        return one.state
    disk = disk_state(one.stats)
    if disk and one.silence_s <= SILENT_S:
        return f"{one.state}, {disk}"
    if one.silence_s > SILENT_S:
        return f"{one.state}, silent"
    if one.heard_s < 0:
        return f"{one.state}, not heard yet"
    return f"{one.state}, heard {duration(one.heard_s)} ago" if one.heard_s > MISSED_S else one.state


def heard_of(one: "NodeInfo") -> str:
    """How long ago its last word was, or how long the leader leads that has heard none."""
    if one.heard_s >= 0:
        return f"{duration(one.heard_s)} ago"
    return "never" if one.silent_s < 0 else f"not in {duration(one.silent_s)}"


def _row(one: "NodeInfo", led: bool) -> list[str]:
    heard = heard_of(one) if led else "-"
    off = one.stats.get("clock_off_s", 0.0)
    if abs(off) > CLOCK_OFF_S:
        heard += f", its clock {off:+.0f} s off"
    if (slowest := one.stats.get("sync_slowest_s", 0.0)) > SLOW_SYNC_S:
        heard += f", its disk took {duration(slowest)}"
    free, memory = one.stats.get("disk_free_bytes"), one.stats.get("memory_bytes")
    return [one.name + ("*" if one.voter else ""), one.role, one.zone or "-", state_of(one, led=led), heard,
            str(one.replicas), "-" if one.leaders < 0 else str(one.leaders), "-" if free is None else size(free),
            "-" if memory is None else size(memory), one.address, one.version or "-"]


@commands.command()
@with_target
def zones(target: Target = HERE, as_json: o.Json = False) -> None:
    """Zones with their nodes, capacity and replicas."""
    out = Output(as_json)
    with open_database(target) as database:
        info = database.admin.cluster.info()
    found: dict[str, list[NodeInfo]] = {}
    for one in info.nodes:
        found.setdefault(one.zone, []).append(one)
    if as_json:
        out.emit({"zones": {zone: [one.name for one in nodes] for zone, nodes in sorted(found.items())}})
        return
    out.table("", ["zone", "nodes", "capacity", "replicas"], [
        [zone or "-", ", ".join(one.name for one in nodes), f"{sum(one.capacity for one in nodes):g}",
         str(sum(one.replicas for one in nodes))] for zone, nodes in sorted(found.items())], left=(0, 1))


@commands.command()
@with_target
def drain(node: Node, yes: changing.Yes = False, dry_run: changing.DryRun = False, wait: changing.Wait = True,
          target: Target = HERE, as_json: o.Json = False) -> None:
    """Move everything off a node, and give it nothing more, before it is taken away for long."""
    with open_database(target) as database:
        changing.change(database, "drain", node, {}, Output(as_json), as_json=as_json, yes=yes, dry_run=dry_run,
                        wait=wait)


@commands.command()
@with_target
def repair(node: Node,
           force: Annotated[bool, typer.Option("--force", help="Even if it is heard.")] = False,
           yes: changing.Yes = False, dry_run: changing.DryRun = False, wait: changing.Wait = True,
           target: Target = HERE, as_json: o.Json = False) -> None:
    """Build anew elsewhere what a lost node held, without waiting until the cluster does so by itself."""
    with open_database(target) as database:
        changing.change(database, "repair", node, {"force": True} if force else {}, Output(as_json), as_json=as_json,
                        yes=yes, dry_run=dry_run, wait=wait)


@commands.command()
@with_target
def activate(node: Node, yes: changing.Yes = False, dry_run: changing.DryRun = False, target: Target = HERE,
             as_json: o.Json = False) -> None:
    """Use a node again that was drained."""
    out = Output(as_json)
    with open_database(target) as database:
        one = _known(database.admin.cluster.info(), node)
        plan = Plan("activate", (PlanStep("activate", node, f"{node}, {one.state}: it may be given replicas again"),),
                    ("vecdb shard rebalance gives it some",))
        if not changing.agreed(out, plan, yes=yes, dry_run=dry_run):
            return
        database.admin.cluster.activate_node(node)
    if as_json:
        out.emit({"node": node, "state": "active"})
    else:
        out.say(f"{node} is active")


@commands.command()
@with_target
def remove(node: Node, yes: changing.Yes = False, dry_run: changing.DryRun = False, target: Target = HERE,
           as_json: o.Json = False) -> None:
    """Take a drained node out of the cluster.  It is refused from then on, until it joins anew."""
    out = Output(as_json)
    with open_database(target) as database:
        info = database.admin.cluster.info()
        one = _known(info, node)
        notes = []
        if one.replicas:
            notes.append(f"{node} should hold {count(one.replicas)} replicas yet, so this will be refused: vecdb node "
                         f"drain {node}, or vecdb node repair {node} if it is lost")
        voters = sum(other.voter for other in info.nodes)
        if one.voter:
            notes.append(f"{node} votes in the control group: {voters - 1} of {voters} are left to do so")
        plan = Plan("remove", (PlanStep("remove", node, f"{node}, {one.state}, leaves the cluster: it is refused until "
                                        "it joins anew, and its data directory stays as it is"),), tuple(notes))
        if not changing.agreed(out, plan, yes=yes, dry_run=dry_run):
            return
        database.admin.cluster.remove_node(node)
    if as_json:
        out.emit({"node": node, "state": "left"})
    else:
        out.say(f"{node} is no part of the cluster any more")


def _known(info: "ClusterInfo", node: str) -> "NodeInfo":
    found = next((one for one in info.nodes if one.name == node), None)
    if found is None:
        raise NodeNotFound(f"there is no node {node[:80]!r}", node=node[:80],
                           known=[one.name for one in info.nodes][:64])
    return found
