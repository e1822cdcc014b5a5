"""``vecdb bulk``: files of records made into shards with their indexes built, and brought into a running cluster."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vecdb.cli import changing
from vecdb.cli import options as o
from vecdb.cli import snapshots as s
from vecdb.cli.output import Output, count, duration, size
from vecdb.cli.target import HERE, Target, resolve, with_target
from vecdb.core.errors import InvalidArgument
from vecdb.core.schema import CollectionSchema, IndexKind, IndexSpec, Metric, Quantization, VectorType, check_name
from vecdb.core.units import parse_bytes

if TYPE_CHECKING:
    from vecdb.bulk import Built, Engine
    from vecdb.formats import SourceOptions

commands = typer.Typer(help="Many records at once: shards built apart, and attached to a cluster.",
                       no_args_is_help=True)


@commands.command()
@with_target
def build(collection: o.Collection,
          source: Annotated[list[Path], typer.Option("--from", metavar="FILE", help="Repeat it; of equal ids the last "
                                                     "is kept.  As vecdb import reads them.")],
          shards: Annotated[int, typer.Option("--shards", min=1, help="A worker holds the vectors of its shard twice, "
                                              "and the graph.")] = 1,
          workers: Annotated[int, typer.Option("--workers", min=0, help="Shards built at once; 0: one a core.")] = 0,
          threads: Annotated[int, typer.Option("--threads", min=0, help="Of each worker; 0: its share of the "
                                               "cores.")] = 0,
          at: s.At = None,
          snapshot: Annotated[str, typer.Option("--snapshot", help="The name it gets there.  [default: the "
                                                "collection's]", show_default=False)] = "",
          scratch: Annotated[Path | None, typer.Option("--scratch", help="A folder with room for the records twice; "
                                                       "what was done is found there again.  [default: NAME.bulk]",
                                                       show_default=False)] = None,
          ray: Annotated[str | None, typer.Option("--ray", metavar="ADDRESS", help="Build on a Ray cluster that has "
                                                  "the files, the scratch folder and the place: its address, auto, "
                                                  "or local.", show_default=False)] = None,
          shard_key: o.ShardKey = None,
          replication_factor: Annotated[int, typer.Option("--replication-factor", min=1, max=7, help="It has when it "
                                                          "is attached, unless that says another.")] = 3,
          shard_memory: Annotated[str | None, typer.Option("--shard-memory", metavar="SIZE", help="What a shard may "
                                                           "take where it serves, as 8GB; above it codes shrink.  "
                                                           "[default: most of this machine's]",
                                                           show_default=False)] = None,
          metadata: Annotated[Path | None, typer.Option("--metadata", help="JSONL with ids and metadata, a line a "
                                                        "vector, beside .npy and .*vecs.")] = None,
          id_column: Annotated[str | None, typer.Option("--id-column", help="Column of ids.",
                                                        show_default=False)] = None,
          vector_column: Annotated[str | None, typer.Option("--vector-column", help="Column (HDF5: dataset) of "
                                                            "vectors.", show_default=False)] = None,
          metric: o.OptMetric = None, vector_type: o.OptVectorType = None, indexed_field: o.IndexedField = None,
          index: o.OptIndex = IndexKind.AUTO, quantization: o.OptQuantization = Quantization.AUTO, m: o.M = 16,
          ef_construction: o.EfConstruction = 200, ef_search: o.EfSearchDefault = 0, nlist: o.Nlist = 0,
          nprobe: o.Nprobe = 0, subspaces: o.Subspaces = 0, bits: o.Bits = 1, oversample: o.Oversample = 0.0,
          vectors_on_disk: o.OnDisk = False, target: Target = HERE, as_json: o.Json = False) -> None:
    """Make a snapshot of files, its shards with their indexes built in parallel.  Killed, the same call goes on."""
    spec = IndexSpec(**o.index_settings(locals()))
    out, place = Output(as_json), resolve(target)
    from vecdb.bulk import Job
    from vecdb.bulk import build as run
    from vecdb.cli.machine import installed
    from vecdb.formats import SourceOptions

    options = SourceOptions(id_column, vector_column, metadata)
    if metadata is not None and len(source) > 1:
        raise InvalidArgument("metadata", "is of one file", got=f"{len(source)} files", limit="one --from")
    cores = os.cpu_count() or 1
    at_once = workers or max(1, min(cores, shards))
    each = threads or max(1, cores // at_once)
    schema = _schema(check_name(collection), source, options, metric, vector_type, indexed_field, spec, out)
    job = Job(schema, tuple(source), shards, s.place_url(place, at), snapshot or collection,
              scratch or Path(f"{collection}.bulk"), shard_key, replication_factor, options,
              parse_bytes(shard_memory) if shard_memory else 0, each)
    engine = _engine(ray, at_once, each)
    try:
        with out.stages() as report:
            built = run(job, engine, place.settings.backup, version=installed("vecdb") or "", report=report)
    finally:
        engine.close()
    _tell(out, job.url, built)


def _engine(ray: str | None, workers: int, threads: int) -> "Engine":
    from vecdb.bulk import LocalEngine, RayEngine

    return LocalEngine(workers) if ray is None else RayEngine(ray, threads)


def _schema(name: str, files: list[Path], options: "SourceOptions", metric: Metric | None,
            vector_type: VectorType | None, indexed_field: list[str] | None, spec: IndexSpec,
            out: Output) -> CollectionSchema:
    """As the files say: every one is opened, so that a wrong one is told at once."""
    from vecdb.formats import open_source

    found: CollectionSchema | None = None
    for path in files:
        source = open_source(path, options)
        try:
            kind = vector_type.value if vector_type else source.vector_type or "float32"
            dim = source.dim * 8 if kind == "binary" and source.vector_type != "binary" else source.dim
            chosen = metric.value if metric else source.metric or ("hamming" if kind == "binary" else "cosine")
            mine = CollectionSchema(name, dim, Metric(chosen), VectorType(kind), spec,
                                    tuple(indexed_field or ()) or None)
        finally:
            source.close()
        if found is None and metric is None and source.metric is None and kind != "binary":
            out.warn(f"{path} does not say its metric: took {chosen}; --metric says another")
        if found is not None and mine != found:
            raise InvalidArgument("from", f"{path} has {mine.dim} dimensions, {mine.metric} and {mine.vector_type}, "
                                  f"{files[0]} has {found.dim}, {found.metric} and {found.vector_type}",
                                  got=str(path), limit="files that fit together")
        found = mine
    if found is None:
        raise InvalidArgument("from", "names no file", got="nothing", limit="one or more files")
    return found


def _tell(out: Output, url: str, built: "Built") -> None:
    if out.as_json:
        out.emit({"url": url, **asdict(built)})
        return
    info = built.snapshot
    (collection,) = info.collections
    replaced = f" ({count(built.replaced)} rows replaced by a later one of their id)" if built.replaced else ""
    out.say(f"{info.name}: {count(info.records)} records{replaced} in {count(collection.shards)} shards, "
            f"{size(info.bytes)}; partitioned in {duration(built.partition_s)}, built in {duration(built.build_s)}")
    out.note(f"vecdb bulk attach {info.name} --at {url} --url SERVER brings it into a cluster")


@commands.command()
@with_target
def attach(name: s.Name,
           collection: Annotated[list[str] | None, typer.Option(
               "--collection", "-c", metavar="NAME[=NEW]", help="Only these of it, each maybe under a new "
               "name.")] = None,
           replication_factor: Annotated[int | None, typer.Option(
               "--replication-factor", min=1, help="Of each collection.  [default: as it says]",
               show_default=False)] = None,
           at: s.At = None, pace: s.Pace = None, yes: changing.Yes = False, dry_run: changing.DryRun = False,
           wait: changing.Wait = True, target: Target = HERE, as_json: o.Json = False) -> None:
    """Bring collections of a snapshot into a cluster by their files: replicas take the indexes as they were built."""
    out, place, names = Output(as_json), resolve(target), s.renamed(collection)
    if not place.is_server:
        raise InvalidArgument("url", "attaching is a cluster's: into a directory, vecdb snapshot restore brings it",
                              got=str(place.name), limit="--url")
    args: dict[str, Any] = {"url": s.place_url(place, at), **({"bytes_per_s": parse_bytes(pace)} if pace else {})}
    asked: dict[str, Any] = {"collections": names, "replication_factor": replication_factor}
    s.change_here(place, "attach", name, args | {key: value for key, value in asked.items() if value}, out, yes=yes,
                  dry_run=dry_run, wait=wait)
