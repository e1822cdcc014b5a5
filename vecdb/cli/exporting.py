"""``vecdb export``: a collection, or the records that match, into a file."""

import time
from pathlib import Path
from typing import Annotated

import typer

from vecdb.cli import options as o
from vecdb.cli.output import Output, count, duration
from vecdb.cli.session import open_database
from vecdb.core.errors import InvalidArgument
from vecdb.core.schema import Metric


def export(out_file: Annotated[Path, typer.Argument(metavar="OUT", help=".parquet, .jsonl, .npy (and .jsonl "
                                                    "beside it), .hdf5, .fvecs or .bvecs")],
           collection: o.Collection, data: o.Data = None, where: o.Filter = None,
           batch_size: Annotated[int, typer.Option("--batch-size", min=1, max=100_000,
                                                   help="Records a batch.")] = 2_000,
           force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
           as_json: o.Json = False) -> None:
    """Export records to a file; it gets its name only when it is whole."""
    out = Output(as_json)
    if out_file.exists() and not force:
        raise InvalidArgument("out", f"{out_file} exists; --force replaces it", got="an existing file",
                              limit="a new name, or --force")
    from vecdb.formats import open_sink

    begin = time.monotonic()
    done = 0
    with open_database(data) as database:
        source = database.collection(collection)
        schema = source.schema
        total = source.count(filter=where)
        sink = open_sink(out_file, schema)
        try:
            with out.progress(f"exporting {collection}", total) as advance:
                for page in source.scan_batches(where, include=("metadata", "vector"), batch_size=batch_size):
                    assert page.vectors is not None
                    sink.write(page.ids, page.vectors, page.metadata or [{}] * len(page))
                    done += len(page)
                    advance(done, max(done, total))
            sink.close()
        except BaseException:
            sink.abort()
            raise
    if schema.metric is Metric.COSINE:
        out.note("cosine collections keep unit vectors: the lengths of the vectors given are not in the file")
    if as_json:
        out.emit({"collection": collection, "file": str(out_file), "filter": where, "records": done})
    out.say(f"{count(done)} records to {out_file} in {duration(time.monotonic() - begin)}")
