"""``vecdb top``: a cluster as it is now, and again every other second."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vecdb.cli import changing
from vecdb.cli import options as o
from vecdb.cli.nodes import heard_of, state_of
from vecdb.cli.output import Output, count, size
from vecdb.cli.session import open_database
from vecdb.cli.target import HERE, Target, with_target

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vecdb.client.database import Database
    from vecdb.core.cluster import JobInfo, NodeInfo
    from vecdb.core.operations import ClusterInfo
    from vecdb.core.shards import ShardInfo

MOST_ROWS: Final = 12
"""Shards and jobs that are shown; those that are not well come first."""


@with_target
def top(every: Annotated[float, typer.Option("--every", min=0.2, max=3_600, help="Seconds from one look to the "
                                             "next.")] = 2.0,
        once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
        target: Target = HERE, as_json: o.Json = False) -> None:
    """A cluster as it is, until Ctrl-C: nodes, shards that are not well, jobs.  Without a terminal it looks once."""
    out = Output(as_json)
    with open_database(target) as database:
        if as_json:
            info, shards, jobs = _look(database)
            out.emit({**asdict(info), "unwell": [asdict(one) for one in shards if not one.healthy],
                      "open_jobs": [asdict(one) for one in jobs]})
        elif once or not out.out.is_terminal:
            out.out.print(_page(*_look(database)))
        else:
            _live(out, database, every)


def _live(out: Output, database: "Database", every: float) -> None:
    from rich.live import Live
    from rich.text import Text

    from vecdb.core.errors import DeadlineExceeded, Unavailable

    with Live(Text("looking"), console=out.out, screen=False, auto_refresh=False) as live:
        while True:
            try:
                live.update(_page(*_look(database)), refresh=True)
            except (Unavailable, DeadlineExceeded) as error:  # between two leaders there is nothing to see
                live.update(Text(f"{time.strftime('%H:%M:%S')}  {error.message}"), refresh=True)
            time.sleep(every)


def _look(database: "Database") -> "tuple[ClusterInfo, list[ShardInfo], list[JobInfo]]":
    cluster = database.admin.cluster
    return cluster.info(timeout=5), database.admin.shards(timeout=5), cluster.jobs(timeout=5)


def _page(info: "ClusterInfo", shards: "list[ShardInfo]", jobs: "list[JobInfo]") -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    amiss = [one for one in shards if not one.healthy]
    head = Text(f"{info.name}  {time.strftime('%H:%M:%S')}  {count(len(info.nodes))} nodes, {count(info.collections)} "
                f"collections, {count(info.shards)} shards ({count(len(amiss))} not well), {count(len(jobs))} jobs, "
                f"epoch {count(info.epoch)}; {info.leader or 'nobody'} leads the control group")
    nodes = Table("node", "role", "zone", "state", "heard", "replicas", "leads", "disk free", "memory", box=None)
    for one in info.nodes:
        nodes.add_row(*_node(one, bool(info.leader)))
    parts: list[RenderableType] = [head, Text(), nodes]
    if amiss:
        table = Table("shard", "collection", "leader", "replicas", box=None)
        for shard in amiss[:MOST_ROWS]:
            table.add_row(str(shard.group), shard.collection or "(control)", shard.leader or "none",
                          ", ".join(f"{one.node} {one.state}" for one in shard.replicas))
        parts += [Text(), table]
    if jobs:
        table = Table(*changing.JOB_COLUMNS, box=None)
        for job in jobs[:MOST_ROWS]:
            table.add_row(*changing.job_row(job))
        parts += [Text(), table]
    return Group(*parts)


def _node(one: "NodeInfo", led: bool) -> list[str]:
    free, memory = one.stats.get("disk_free_bytes"), one.stats.get("memory_bytes")
    return [one.name + ("*" if one.voter else ""), one.role, one.zone or "-", state_of(one, led=led),
            heard_of(one) if led else "-", str(one.replicas),
            "-" if one.leaders < 0 else str(one.leaders), "-" if free is None else size(free),
            "-" if memory is None else size(memory)]
