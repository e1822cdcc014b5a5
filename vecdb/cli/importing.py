"""``vecdb import``: a file of vectors into a collection, batch by batch."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vecdb.cli import options as o
from vecdb.cli.output import Advance, Output, count, duration
from vecdb.cli.session import open_database
from vecdb.core.errors import InvalidArgument, VecdbError
from vecdb.core.schema import IndexKind, IndexSpec, Metric, Quantization, VectorType

if TYPE_CHECKING:
    from vecdb.client.collection import Collection
    from vecdb.client.database import Database
    from vecdb.formats import Batch, Source


@dataclass(slots=True)
class Tally:
    """What an import did; ``row`` is the next row of the file, ``merged`` rows another of their batch replaced."""

    row: int = 0
    read: int = 0
    inserted: int = 0
    updated: int = 0
    merged: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def import_(file: Annotated[Path, typer.Argument(metavar="FILE", help=".hdf5 (ann-benchmarks), .parquet, .npy, "
                                                 ".fvecs, .bvecs, .ivecs or .jsonl")],
            collection: o.Collection, data: o.Data = None,
            metadata: Annotated[Path | None, typer.Option(
                "--metadata", help="JSONL with ids and metadata, a line a vector, beside .npy and .*vecs.")] = None,
            id_column: Annotated[str | None, typer.Option(
                "--id-column", help="Column of ids.  [default: id if there is one, else the row number]",
                show_default=False)] = None,
            vector_column: Annotated[str | None, typer.Option(
                "--vector-column", help="Column (HDF5: dataset) of vectors.  [default: found by name and type]",
                show_default=False)] = None,
            batch_size: Annotated[int | None, typer.Option(
                "--batch-size", min=1, max=100_000, help="Records a batch.  [default: by size]",
                show_default=False)] = None,
            start_row: Annotated[int, typer.Option("--start-row", min=0, help="Skip the rows before.")] = 0,
            limit: Annotated[int | None, typer.Option("--limit", min=1, help="Stop after so many rows.")] = None,
            create: Annotated[bool, typer.Option("--create/--no-create", help="Make the collection if it does not "
                                                 "exist.")] = True,
            build: Annotated[bool, typer.Option("--optimize/--no-optimize", help="Build the index when all is "
                                                "in.")] = True,
            metric: o.OptMetric = None, vector_type: o.OptVectorType = None, indexed_field: o.IndexedField = None,
            index: o.OptIndex = IndexKind.AUTO, quantization: o.OptQuantization = Quantization.AUTO, m: o.M = 16,
            ef_construction: o.EfConstruction = 200, ef_search: o.EfSearchDefault = 0, nlist: o.Nlist = 0,
            nprobe: o.Nprobe = 0, subspaces: o.Subspaces = 0, bits: o.Bits = 1, oversample: o.Oversample = 0.0,
            vectors_on_disk: o.OnDisk = False, as_json: o.Json = False) -> None:
    """Import a file of vectors; importing it again replaces the records and doubles none."""
    spec = IndexSpec(**o.index_settings(locals()))
    out = Output(as_json)
    from vecdb.formats import SourceOptions, open_source

    source = open_source(file, SourceOptions(id_column, vector_column, metadata))
    try:
        with open_database(data, create=create, write=True) as database:
            is_new = collection not in database.list_collections()
            target = _target(database, collection, source, create, metric, vector_type, indexed_field, spec, out)
            tally = Tally(row=start_row)
            try:
                _copy(source, target, tally, batch_size, limit, out)
            except BaseException:
                if is_new:
                    _undo(database, target, out)
                raise
            if build:
                begin = time.monotonic()
                with out.stages() as report:
                    target.optimize(progress=report)
                tally.seconds["optimize"] = time.monotonic() - begin
            _report(out, file, target, tally)
    finally:
        source.close()


def _undo(database: "Database", made: "Collection", out: Output) -> None:
    """Drop the collection that a failed import made, if nothing is in it; the import's own error comes first."""
    with suppress(VecdbError):
        if not made.count():
            database.drop_collection(made.name)
            out.note(f"dropped collection {made.name} again: nothing was stored")


def _target(database: "Database", name: str, source: "Source", create: bool, metric: Metric | None,
            vector_type: VectorType | None, indexed_field: list[str] | None, spec: IndexSpec,
            out: Output) -> "Collection":
    """The existing collection if its shape fits the file, else a new one made from what the file says."""
    kind = vector_type.value if vector_type else source.vector_type or "float32"
    dim = source.dim * 8 if kind == "binary" and source.vector_type != "binary" else source.dim
    if name not in database.list_collections() and create:
        chosen = metric.value if metric else source.metric or ("hamming" if kind == "binary" else "cosine")
        made = database.create_collection(name, dim, chosen, vector_type=kind, index=spec,
                                          indexed_fields=indexed_field or None)
        out.note(f"made collection {name}: dim {dim}, {chosen}, {kind}")
        if metric is None and source.metric is None and kind != "binary":
            out.warn(f"{source.path} does not say its metric: took {chosen}, the default, which stores unit vectors "
                     "and not their lengths; --metric l2 or dot keeps them")
        return made
    found = database.collection(name)
    schema = found.schema
    if schema.vector_type is VectorType.BINARY and source.vector_type != "binary":
        dim = source.dim * 8
    if schema.dim != dim:
        raise InvalidArgument("file", f"{source.path} has vectors of {dim} dimensions, collection {name} has "
                              f"{schema.dim}", got=dim, limit=schema.dim)
    for argument, wanted, existing in (("metric", metric, schema.metric), ("vector_type", vector_type,
                                                                           schema.vector_type)):
        if wanted is not None and wanted is not existing:
            raise InvalidArgument(argument, f"collection {name} exists and has {existing}, not {wanted}",
                                  got=wanted.value, limit=existing.value)
    if source.metric is not None and metric is None and source.metric != schema.metric.value:
        out.warn(f"{source.path} says its metric is {source.metric}; collection {name} has {schema.metric}")
    return found


def _copy(source: "Source", target: "Collection", tally: Tally, batch_size: int | None, limit: int | None,
          out: Output) -> None:
    begin = time.monotonic()
    start = tally.row
    total = None if source.rows is None else max(0, source.rows - start)
    if limit is not None:
        total = limit if total is None else min(limit, total)
    try:
        with out.progress(f"importing {source.path.name}", total) as advance:
            for batch in source.batches(batch_size):
                room = None if limit is None else limit - tally.read
                if room is not None and room <= 0:
                    break
                _write(source, target, batch, slice(max(0, start - batch.first_row), None), room, tally, advance)
    except BaseException:
        if tally.read:
            out.warn(f"stopped after row {tally.row - 1}; go on with --start-row {tally.row}")
        raise
    tally.seconds["import"] = time.monotonic() - begin


def _write(source: "Source", target: "Collection", batch: "Batch", part: slice, room: int | None, tally: Tally,
           advance: Advance) -> None:
    """Upsert the wanted rows of one batch; a refusal names the file and the rows."""
    if room is not None:
        part = slice(part.start, part.start + room)
    ids = batch.ids[part]
    if not len(ids):
        return
    first = batch.first_row + part.start
    try:
        done = target.upsert(ids=ids, vectors=batch.vectors[part],
                             metadata=None if batch.metadata is None else batch.metadata[part])
    except InvalidArgument as error:
        raise InvalidArgument("file", f"{source.path}, rows {first}..{first + len(ids) - 1}: {error.message}",
                              got=error.fields.get("got"), limit=error.fields.get("limit"),
                              path=str(source.path), row=first) from error
    tally.inserted += done.inserted
    tally.updated += done.updated
    tally.merged += len(ids) - done.inserted - done.updated
    tally.read += len(ids)
    tally.row = first + len(ids)
    advance(tally.read, None)


def _report(out: Output, file: Path, target: "Collection", tally: Tally) -> None:
    records = target.count()
    if out.as_json:
        told: dict[str, Any] = {"file": str(file), "collection": target.name, "rows": tally.read,
                                "inserted": tally.inserted, "updated": tally.updated,
                                "duplicates": tally.merged, "records": records,
                                "next_row": tally.row,
                                "seconds": {name: round(spent, 3) for name, spent in tally.seconds.items()}}
        out.emit(told)
        return
    spent = max(tally.seconds["import"], 1e-9)
    built = f", index built in {duration(tally.seconds['optimize'])}" if "optimize" in tally.seconds else ""
    merged = f", {count(tally.merged)} replaced by a later row of their batch" if tally.merged else ""
    out.say(f"{count(tally.read)} rows in {duration(spent)} ({count(round(tally.read / spent))}/s){built}: "
            f"{count(tally.inserted)} inserted, {count(tally.updated)} updated{merged}; "
            f"{target.name} has {count(records)} records")
