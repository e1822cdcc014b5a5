"""``vecdb job``: what a database does in the background, and the jobs that change a cluster."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vecdb.cli import changing, exits
from vecdb.cli import options as o
from vecdb.cli.admin import opened_administration
from vecdb.cli.output import Output, count
from vecdb.cli.session import open_database
from vecdb.cli.target import HERE, Target, resolve, with_target
from vecdb.core.cluster import PAST_CANCELLING, Plan, PlanStep
from vecdb.core.errors import InvalidArgument, PermissionDenied, Unsupported

if TYPE_CHECKING:
    from vecdb.client.database import Database
    from vecdb.core.cluster import JobInfo

commands = typer.Typer(help="Work in the background: of collections, and of a cluster.", no_args_is_help=True)

Id = Annotated[int, typer.Argument(metavar="JOB", help="Its number.", min=1)]


@commands.command("list")
@with_target
def list_(collection: Annotated[str | None, typer.Option("--collection", "-c", help="Only of this one.")] = None,
          ended: Annotated[bool, typer.Option("--ended", help="Those of the cluster that have ended, too.")] = False,
          target: Target = HERE, as_json: o.Json = False) -> None:
    """Jobs that run, wait or failed: of the cluster, if it is one (shards that move, split, ...), and seals, merges
    and builds of collections.  A directory that nobody serves has none: they run while it is open.
    """
    out = Output(as_json)
    place = resolve(target)
    with opened_administration(place) as (database, admin):
        jobs = admin.jobs(collection)
        cluster = [] if collection or place.directory is not None else _of_cluster(database, ended)
    if as_json:
        out.emit({"jobs": jobs, "cluster": [asdict(one) for one in cluster]})
        return
    if cluster:
        out.table("of the cluster", changing.JOB_COLUMNS, [changing.job_row(one) for one in cluster],
                  left=(1, 2, 3, 4, 5, 8))
    if not jobs and not cluster:
        out.say("no jobs")
    elif jobs:
        out.table("", ["collection", "job", "state", "stage", "done", "error"], [_row(job) for job in jobs],
                  left=(0, 1, 2, 3, 5))


@commands.command()
@with_target
def show(job: Id, target: Target = HERE, as_json: o.Json = False) -> None:
    """One job of the cluster: what was asked, and how far it is."""
    out = Output(as_json)
    with open_database(target) as database:
        found = database.admin.cluster.job(job)
    _tell(out, found, as_json)


@commands.command()
@with_target
def wait(job: Id, target: Target = HERE, as_json: o.Json = False) -> None:
    """Until a job of the cluster has ended; the exit code is 0 if it was done, else 4."""
    out = Output(as_json)
    with open_database(target) as database:
        found = changing.watch(database.admin.cluster, job, out, as_json)
    _tell(out, found, as_json)
    if found.state != "done":
        raise typer.Exit(exits.PRECONDITION)


@commands.command()
@with_target
def cancel(job: Id, yes: changing.Yes = False, dry_run: changing.DryRun = False, target: Target = HERE,
           as_json: o.Json = False) -> None:
    """Ask a job of the cluster to end, and to take back what is half done."""
    out = Output(as_json)
    with open_database(target) as database:
        now = database.admin.cluster.job(job)
        what = f"{now.kind} {now.target}".strip()
        if now.state not in changing.ENDED:
            if now.phase in PAST_CANCELLING:
                raise InvalidArgument("job", f"job {job}, {what}, is past taking back: calls go to what it made",
                                      got=now.phase)
            plan = Plan("cancel", (PlanStep("cancel", str(job), f"job {job}, {what}, {now.phase or now.state}: it "
                                            "ends, and takes back what is half done"),))
            if not changing.agreed(out, plan, yes=yes, dry_run=dry_run):
                return
        found = now if dry_run else database.admin.cluster.cancel(job)
    if now.state in changing.ENDED or (found.state == "done" and not found.error):
        out.note(f"job {job}, {what}, had ended before ({found.state}): there is nothing to cancel")
    _tell(out, found, as_json)


def _tell(out: Output, job: "JobInfo", as_json: bool) -> None:
    if as_json:
        out.emit(asdict(job))
    else:
        out.table("", changing.JOB_COLUMNS, [changing.job_row(job)], left=(1, 2, 3, 4, 5, 8))


def _of_cluster(database: "Database", ended: bool) -> "list[JobInfo]":
    """None where there is no cluster, and for who may not ask."""
    try:
        return database.admin.cluster.jobs(ended=ended)
    except (Unsupported, PermissionDenied):
        return []


def _row(job: dict[str, Any]) -> list[str]:
    done, total = int(job.get("done") or 0), int(job.get("total") or 0)
    return [str(job.get("collection", "")), str(job.get("kind", "")), str(job.get("state", "")),
            str(job.get("stage") or ""), f"{count(done)} of {count(total)}" if total else "",
            str(job.get("error") or "")]
