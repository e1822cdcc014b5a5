"""The tree of commands; what a command needs is imported when it runs."""

from typing import Annotated

import typer

from vecdb.cli import (
    bulk,
    cluster,
    collection,
    completing,
    doctor,
    exporting,
    importing,
    jobs,
    keys,
    moving,
    nodes,
    planning,
    querying,
    quickstart,
    serve,
    shards,
    showing,
    snapshots,
    top,
    warming,
)
from vecdb.cli import options as o
from vecdb.cli.machine import installed
from vecdb.cli.output import Output

app = typer.Typer(name="vecdb", no_args_is_help=True, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="An open vector database: import vectors, and find the nearest, under a filter.",
                  epilog="A directory: --data, VECDB_DATA_DIR, or ./data.  A server: --url or VECDB_URL, with "
                         "VECDB_API_KEY.  Exit codes: 0 done, 2 refused, 3 not found, 4 precondition, 5 storage, "
                         "6 data loss, 7 deadline, 10 not let in, 11 unreachable; others in vecdb.cli.")


def _version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def _root(_asked: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_version,
                                               is_eager=True)] = False) -> None:
    """Only options that stand before any command."""


@app.command()
def version(as_json: o.Json = False) -> None:
    """Print the version."""
    out = Output(as_json)
    number = installed("vecdb") or "0+unknown"
    if as_json:
        out.emit({"version": number})
    out.say(number)


app.command()(quickstart.quickstart)
app.command()(serve.serve)
app.command()(warming.warmup)
app.command("import")(importing.import_)
app.command()(exporting.export)
app.command()(querying.query)
app.add_typer(collection.commands, name="collection")
app.add_typer(keys.commands, name="key")
app.add_typer(jobs.commands, name="job")
moving.add_to(shards.commands)
showing.add_to(shards.commands)
app.add_typer(shards.commands, name="shard")
app.add_typer(cluster.commands, name="cluster")
app.add_typer(nodes.commands, name="node")
app.add_typer(snapshots.commands, name="snapshot")
app.add_typer(bulk.commands, name="bulk")
app.command()(top.top)
app.command()(planning.plan)
app.command("doctor")(doctor.doctor)
app.command()(completing.completion)
