"""``vecdb job``: what a database does in the background."""

from typing import Annotated, Any

import typer

from vecdb.cli import options as o
from vecdb.cli.admin import administration
from vecdb.cli.output import Output, count
from vecdb.cli.target import HERE, Target, resolve, with_target

commands = typer.Typer(help="Work in the background: seals, merges, builds.", no_args_is_help=True)


@commands.command("list")
@with_target
def list_(collection: Annotated[str | None, typer.Option("--collection", "-c", help="Only of this one.")] = None,
          target: Target = HERE, as_json: o.Json = False) -> None:
    """Jobs that run, wait or failed.  A directory that nobody serves has none: they run while it is open."""
    out = Output(as_json)
    with administration(resolve(target)) as admin:
        jobs = admin.jobs(collection)
    if as_json:
        out.emit({"jobs": jobs})
    elif not jobs:
        out.say("no jobs")
    else:
        out.table("", ["collection", "job", "state", "stage", "done", "error"], [_row(job) for job in jobs],
                  left=(0, 1, 2, 3, 5))


def _row(job: dict[str, Any]) -> list[str]:
    done, total = int(job.get("done") or 0), int(job.get("total") or 0)
    return [str(job.get("collection", "")), str(job.get("kind", "")), str(job.get("state", "")),
            str(job.get("stage") or ""), f"{count(done)} of {count(total)}" if total else "",
            str(job.get("error") or "")]
