"""What commands that change a cluster have in common: the plan, the question, and the job that is watched."""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from vecdb.cli import exits
from vecdb.cli.exits import DeclinedError
from vecdb.cli.output import Output, count, duration, size
from vecdb.core.errors import InvalidArgument, NotLeader, Unavailable

if TYPE_CHECKING:
    from vecdb.client.database import Database
    from vecdb.client.operating import Operating
    from vecdb.core.cluster import JobInfo, Plan

LOOK_S: Final = 0.5
ENDED: Final = ("done", "failed", "cancelled")

Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Print the plan, and do nothing.")]
Wait: TypeAlias = Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is done; else vecdb job list says "
                                               "how far it is.")]


def change(database: "Database", kind: str, target: str, args: Mapping[str, Any], out: Output, *, as_json: bool,
           yes: bool, dry_run: bool, wait: bool) -> None:
    """Plan, ask, begin, and watch.  With ``--json`` one value: the plan, and the job as it stands at the end."""
    cluster = database.admin.cluster
    plan = cluster.plan(kind, target, args)
    if not as_json:
        show_plan(out, plan)
    if dry_run or not plan.steps:
        if as_json:
            out.emit({"plan": asdict(plan), "job": None})
        return
    if not yes:
        agree(f"{kind} {target}".strip())
    id = cluster.begin(kind, target, args)
    job = watch(cluster, id, out, as_json) if wait else cluster.job(id)
    if as_json:
        out.emit({"plan": asdict(plan), "job": asdict(job)})
    else:
        out.say(f"job {job.id}: {job.state}{f' ({job.error})' if job.error else ''}")
    if job.state in ("failed", "cancelled"):
        raise typer.Exit(exits.PRECONDITION)


def agreed(out: Output, plan: "Plan", *, yes: bool, dry_run: bool) -> bool:
    """For changes that are done at once, without a job: the plan, and the question; whether to go on."""
    if not out.as_json:
        show_plan(out, plan)
    if dry_run:
        if out.as_json:
            out.emit({"plan": asdict(plan), "done": False})
        return False
    if not yes:
        agree(f"{plan.kind} {plan.steps[0].target if plan.steps else ''}".strip())
    return True


def agree(what: str) -> None:
    """Ask the person at the terminal; raises where nobody can be asked, or says no."""
    if not sys.stdin.isatty():
        raise InvalidArgument("yes", f"{what} needs --yes when nobody can be asked", got="no terminal", limit="--yes")
    if not typer.confirm("Go on?", err=True):
        raise DeclinedError("nothing was changed")


def show_plan(out: Output, plan: "Plan") -> None:
    """For people, before they agree."""
    if plan.steps:
        out.table(f"{plan.kind}: {count(len(plan.steps))} step{'s' if len(plan.steps) > 1 else ''}", ["step", "what"], [
            [at, one.text + (f" ({size(one.bytes)})" if one.bytes else "")] for at, one in enumerate(plan.steps, 1)],
            left=(1,))
    else:
        out.say(f"{plan.kind}: nothing to do")
    for note in plan.notes:
        out.note(note)


def watch(cluster: "Operating", id: int, out: Output, as_json: bool) -> "JobInfo":
    """A job until it has ended, with what it says meanwhile.  Whoever leads may change: that is no end."""
    unit = said = ""
    with out.progress(f"job {id}", unit=lambda: unit, watched=True) as advance:
        while True:
            try:
                job = cluster.job(id)
            except (Unavailable, NotLeader):
                time.sleep(LOOK_S)
                continue
            unit = job.unit
            advance(job.done, job.total or None)
            if job.state in ENDED:
                return job
            if job.error not in ("", said):
                said = job.error
                out.note(f"job {id}: {said}")
            time.sleep(LOOK_S)


def job_row(job: "JobInfo") -> list[str]:
    """Of a table of jobs."""
    done = f"{count(job.done)} of {count(job.total)} {job.unit}" if job.total else ""
    age = duration(max(0.0, time.time() - job.created_s))
    return [str(job.id), job.kind, job.target, job.state, job.phase, done.strip(),
            duration(job.eta_s) if job.eta_s >= 0 else "", age, job.error]


JOB_COLUMNS: Final = ("job", "kind", "target", "state", "phase", "done", "left", "age", "error")
