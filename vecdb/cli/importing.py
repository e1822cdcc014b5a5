"""``vecdb import``: a file of vectors into a collection, batch by batch."""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vecdb.cli import options as o
from vecdb.cli.output import Output, count, duration
from vecdb.cli.session import open_database
from vecdb.cli.target import HERE, Target, resolve, with_target
from vecdb.core.errors import InvalidArgument, VecdbError
from vecdb.core.schema import IndexKind, IndexSpec, Metric, Quantization, VectorType

if TYPE_CHECKING:
    from vecdb.client.collection import Collection
    from vecdb.client.database import Database
    from vecdb.core.ids import RecordId
    from vecdb.core.records import WriteResult
    from vecdb.formats import Batch, Source

PARALLEL = 4
"""Batches on their way to a server at once: enough that it is never idle while one travels."""


@dataclass(slots=True)
class Tally:
    """What an import did; ``row`` is the next row of the file, ``merged`` rows another of their batch replaced."""

    row: int = 0
    read: int = 0
    inserted: int = 0
    updated: int = 0
    merged: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@with_target
def import_(file: Annotated[Path, typer.Argument(metavar="FILE", help=".hdf5 (ann-benchmarks), .parquet, .npy, "
                                                 ".fvecs, .bvecs, .ivecs or .jsonl")],
            collection: o.Collection, target: Target = HERE,
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
            parallel: Annotated[int | None, typer.Option(
                "--parallel", min=1, max=32, help="Batches on their way at once.  [default: 4 to a server, 1 to a "
                "directory]", show_default=False)] = None,
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
        place = resolve(target)
        at_once = parallel or (PARALLEL if place.is_server else 1)
        with open_database(place, create=create, write=True) as database:
            is_new = collection not in database.list_collections()
            into = _target(database, collection, source, create, metric, vector_type, indexed_field, spec, out)
            tally = Tally(row=start_row)
            try:
                _copy(source, _Flight(source, into, at_once), tally, batch_size, limit, out)
            except BaseException:
                if is_new:
                    _undo(database, into, out)
                raise
            if build:
                begin = time.monotonic()
                with out.stages() as report:
                    into.optimize(progress=report)
                tally.seconds["optimize"] = time.monotonic() - begin
            _report(out, file, into, tally)
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


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch on its way: ``first`` is its first row in the file."""

    first: int
    rows: int
    ids: "frozenset[RecordId]"
    answer: "Future[WriteResult]"


class _Flight:
    """Upserts batches, several at once, and settles them in the order of the file.

    Batches that share an id never travel together, for of two versions of a record the later row must win.
    """

    def __init__(self, source: "Source", into: "Collection", at_once: int) -> None:
        self._source, self._into, self._at_once = source, into, at_once
        self._pool = ThreadPoolExecutor(at_once, "vecdb-import") if at_once > 1 else None
        self._sent: deque[_Sent] = deque()

    def send(self, batch: "Batch", part: slice, tally: Tally) -> None:
        """Upsert the wanted rows of one batch; waits until there is room."""
        ids = batch.ids[part]
        if not len(ids):
            return
        metadata = None if batch.metadata is None else batch.metadata[part]
        first = batch.first_row + part.start

        def upsert() -> "WriteResult":
            return self._into.upsert(ids=ids, vectors=batch.vectors[part], metadata=metadata)

        if self._pool is None:
            answer: Future[WriteResult] = Future()
            self._sent.append(_Sent(first, len(ids), frozenset(), answer))
            try:
                answer.set_result(upsert())
            except BaseException as error:
                answer.set_exception(error)  # settling raises it
            self.settle(tally, 0)
            return
        named = frozenset(ids.tolist() if hasattr(ids, "tolist") else ids)
        self.settle(tally, self._at_once - 1)
        while any(not named.isdisjoint(sent.ids) for sent in self._sent):
            self.settle(tally, len(self._sent) - 1)
        self._sent.append(_Sent(first, len(ids), named, self._pool.submit(upsert)))

    def settle(self, tally: Tally, left: int) -> None:
        """Wait, oldest first, until at most ``left`` are on their way; a refusal names the file and the rows."""
        while len(self._sent) > left:
            sent = self._sent[0]
            try:
                done = sent.answer.result()
            except BaseException as error:
                if sent.answer.done():  # later ones may arrive, but the file is to be gone on with from this one
                    self._sent.clear()
                if not isinstance(error, InvalidArgument):
                    raise
                path, last = self._source.path, sent.first + sent.rows - 1
                raise InvalidArgument("file", f"{path}, rows {sent.first}..{last}: {error.message}",
                                      got=error.fields.get("got"), limit=error.fields.get("limit"),
                                      path=str(path), row=sent.first) from error
            self._sent.popleft()
            tally.inserted += done.inserted
            tally.updated += done.updated
            tally.merged += sent.rows - done.inserted - done.updated
            tally.read += sent.rows
            tally.row = sent.first + sent.rows

    @property
    def rows(self) -> int:
        """Rows on their way."""
        return sum(sent.rows for sent in self._sent)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _copy(source: "Source", flight: _Flight, tally: Tally, batch_size: int | None, limit: int | None,
          out: Output) -> None:
    begin = time.monotonic()
    start = tally.row
    total = None if source.rows is None else max(0, source.rows - start)
    if limit is not None:
        total = limit if total is None else min(limit, total)
    try:
        with out.progress(f"importing {source.path.name}", total) as advance:
            for batch in source.batches(batch_size):
                part = slice(max(0, start - batch.first_row), None)
                if limit is not None:
                    room = limit - tally.read - flight.rows
                    if room <= 0:
                        break
                    part = slice(part.start, part.start + room)
                flight.send(batch, part, tally)
                advance(tally.read, None)
            flight.settle(tally, 0)
            advance(tally.read, None)
    except BaseException:
        with suppress(VecdbError):  # what went before the fault may still arrive, and moves the row to go on from
            flight.settle(tally, 0)
        if tally.read:
            out.warn(f"stopped after row {tally.row - 1}; go on with --start-row {tally.row}")
        raise
    finally:
        flight.close()
    tally.seconds["import"] = time.monotonic() - begin


def _report(out: Output, file: Path, into: "Collection", tally: Tally) -> None:
    records = into.count()
    if out.as_json:
        told: dict[str, Any] = {"file": str(file), "collection": into.name, "rows": tally.read,
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
            f"{into.name} has {count(records)} records")
