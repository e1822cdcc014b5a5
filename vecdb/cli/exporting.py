"""``vecdb export``: a collection, or the records that match, into a file."""

import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from vecdb.cli import options as o
from vecdb.cli.exits import DATA_LOSS
from vecdb.cli.output import Output, count, duration
from vecdb.cli.session import open_database
from vecdb.cli.target import HERE, Target, with_target
from vecdb.core.errors import DataCorrupted, InvalidArgument
from vecdb.core.schema import Metric

_IDS_SHOWN: Final = 100
"""Ids of damaged records that a warning names; ``--json`` has all."""


@with_target
def export(out_file: Annotated[Path, typer.Argument(metavar="OUT", help=".parquet, .jsonl, .npy (and .jsonl "
                                                    "beside it), .hdf5, .fvecs or .bvecs")],
           collection: o.Collection, target: Target = HERE, where: o.Filter = None,
           batch_size: Annotated[int, typer.Option("--batch-size", min=1, max=100_000,
                                                   help="Records a batch.")] = 2_000,
           force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
           skip_damaged: Annotated[bool, typer.Option("--skip-damaged", help="Leave out records whose vectors are "
                                                      "damaged on disk, and say which (exit code 6).")] = False,
           as_json: o.Json = False) -> None:
    """Export records to a file; it gets its name only when it is whole.

    Metric and vector type go with it: inside Parquet and HDF5, else in OUT.vecdb.json, which import reads.
    """
    out = Output(as_json)
    if out_file.exists() and not force:
        raise InvalidArgument("out", f"{out_file} exists; --force replaces it", got="an existing file",
                              limit="a new name, or --force")
    from vecdb.formats import open_sink

    begin = time.monotonic()
    done = 0
    damaged: list[Any] = []
    with open_database(target) as database:
        source = database.collection(collection)
        schema = source.schema
        total = source.count(filter=where)
        sink = open_sink(out_file, schema)
        try:
            with out.progress(f"exporting {collection}", total) as advance:
                for page in source.scan_batches(where, include=("metadata", "vector"), batch_size=batch_size,
                                                on_damage="skip" if skip_damaged else "raise"):
                    damaged += page.damaged
                    if not len(page):
                        continue
                    assert page.vectors is not None
                    sink.write(page.ids, page.vectors, page.metadata or [{}] * len(page))
                    done += len(page)
                    advance(done, max(done, total))
            sink.close()
        except BaseException as error:
            sink.abort()
            if isinstance(error, DataCorrupted) and not skip_damaged:
                out.warn("nothing was exported; --skip-damaged exports the other records")
            raise
    if schema.metric is Metric.COSINE:
        out.note("cosine collections keep unit vectors: the lengths of the vectors given are not in the file")
    if as_json:
        out.emit({"collection": collection, "file": str(out_file), "filter": where, "records": done,
                  "damaged": len(damaged), "damaged_ids": damaged})
    out.say(f"{count(done)} records to {out_file} in {duration(time.monotonic() - begin)}")
    if damaged:
        shown = ", ".join(map(str, damaged[:_IDS_SHOWN])) + (", ..." if len(damaged) > _IDS_SHOWN else "")
        out.warn(f"{count(len(damaged))} records were left out, their vectors are damaged: {shown}")
        raise typer.Exit(DATA_LOSS)
