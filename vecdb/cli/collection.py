"""``vecdb collection``: list, describe, create, drop, optimize, count, verify."""

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vecdb.cli import options as o
from vecdb.cli.admin import administration
from vecdb.cli.exits import DATA_LOSS, DeclinedError
from vecdb.cli.output import Output, count, size
from vecdb.cli.session import open_database
from vecdb.cli.target import HERE, Target, resolve, with_target
from vecdb.core.errors import InvalidArgument, VecdbError
from vecdb.core.schema import IndexKind, IndexSpec, Quantization

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vecdb.client.database import Database
    from vecdb.core.query import Description
    from vecdb.core.shards import ShardInfo

commands = typer.Typer(help="Whole collections.", no_args_is_help=True)


@commands.command("list")
@with_target
def list_(target: Target = HERE,
          counts: Annotated[bool, typer.Option("--count", "-n", help="With their records; opens each.")] = False,
          as_json: o.Json = False) -> None:
    """The collections of a database and their settings."""
    out = Output(as_json)
    rows: list[dict[str, Any]] = []
    with open_database(target, verify=False) as database:
        for name in database.list_collections():
            collection = database.collection(name)
            schema = collection.schema
            rows.append({"name": name, **({"records": collection.count()} if counts else {}), "dim": schema.dim,
                         "metric": schema.metric.value, "vector_type": schema.vector_type.value,
                         "index": schema.index.kind.value, "quantization": schema.index.quantization.value})
    if as_json:
        out.emit({"collections": rows})
    elif not rows:
        out.say("no collections yet; vecdb import FILE --collection NAME makes one")
    else:
        titles = {"name": "name", "dim": "dim", "metric": "metric", "vector_type": "vectors", "index": "index",
                  "quantization": "codes", **({"records": "records"} if counts else {})}
        out.table("", list(titles.values()),
                  [[count(r[c]) if c == "records" else r[c] for c in titles] for r in rows], left=(0, 2, 3, 4, 5))


def described(found: "Description", schema: Any) -> dict[str, Any]:
    """A description as ``--json`` prints it."""
    told = dataclasses.asdict(schema)
    return {"name": found.name, "records": found.records, "schema": told,
            **{name: value for name, value in found.details.items() if name not in told}}


def _lines(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested details as dotted names and readable values; what is in bytes is said in units."""
    if isinstance(value, dict):
        rows = []
        for name, inner in value.items():
            unit = f"{prefix}.{name}" if prefix else str(name)
            rows += _lines(inner, unit)
        return rows
    if isinstance(value, list | tuple):
        if all(not isinstance(item, dict | list | tuple) for item in value):
            return [(prefix, ", ".join(map(str, value)) or "none")]
        return [row for place, item in enumerate(value) for row in _lines(item, f"{prefix}[{place}]")]
    if isinstance(value, int) and not isinstance(value, bool):
        return [(prefix, size(value) if "bytes" in prefix else count(value))]
    return [(prefix, "-" if value is None else str(value))]


def show(out: Output, found: "Description", schema: Any, shards: "Sequence[ShardInfo]" = ()) -> None:
    """Print a description as tables; ``shards``: whose replicas are told of, too, with how far behind they are."""
    details = described(found, schema)
    replicas = [(shard.group, one) for shard in shards for one in shard.replicas]
    if out.as_json:
        if replicas:
            details["replicas"] = [{"shard": group, "name": one.name, "state": one.state, "role": one.role,
                                    "lag": one.lag} for group, one in replicas]
        out.emit(details)
        return
    segments = details.pop("segments", None)
    details["schema"] = {"vectors": f"{schema.dim} x {schema.vector_type.value}, {schema.metric.value}",
                         "index": _settings(schema.index)}
    if schema.indexed_fields is not None:
        details["schema"]["indexed_fields"] = schema.indexed_fields
    out.table(f"collection {details.pop('name')}", ["", ""], _lines(details), left=(0, 1))
    if isinstance(segments, list) and segments and all(isinstance(one, dict) for one in segments):
        out.table("segments", ["", "state", "records", "dead", "index", "memory", "disk", "why"],
                  [_segment_row(one) for one in segments], left=(1, 4, 7))
    if replicas:
        out.table("replicas", ["shard", "replica", "state", "role", "lag"], [
            [group, one.name, one.state, one.role or "-", count(one.lag) if one.lag >= 0 else "-"]
            for group, one in replicas], left=(1, 2, 3))


def _settings(index: IndexSpec) -> str:
    """The kind of an index and what was set otherwise than by default."""
    usual = dataclasses.asdict(IndexSpec())
    changed = [f"{name}={value}" for name, value in dataclasses.asdict(index).items()
               if name != "kind" and value != usual[name]]
    return ", ".join([index.kind.value, *changed])


def _segment_row(one: dict[str, Any]) -> list[str]:
    index = one.get("index", {})
    codes = index.get("quantization", "none")
    return [str(one.get("id", "")), str(one.get("state", "")), count(one.get("records")), count(one.get("dead")),
            str(index.get("kind", "-")) + ("" if codes == "none" else f" on {codes}"), size(one.get("memory_bytes")),
            size(one.get("disk_bytes")), str(index.get("reason", ""))]


@commands.command()
@with_target
def describe(name: o.Name, target: Target = HERE, as_json: o.Json = False) -> None:
    """Counts, segments, bytes in memory and on disk, and the state of the index.

    Of a collection of a cluster this is what one replica of each shard has; all are named, with the entries of the log
    that each is behind its leader.
    """
    place = resolve(target)
    with open_database(place) as database:
        collection = database.collection(name)
        found, schema = collection.describe(), collection.schema
        shards = _replicated(database, name) if place.is_server else []
    out = Output(as_json)
    show(out, found, schema, shards)
    if not place.is_server:
        _warn_of_memory(out, found, place.settings.engine.memory_bytes)


def _replicated(database: "Database", name: str) -> "list[ShardInfo]":
    """The shards of a collection of a cluster, for those who may know of them."""
    try:
        found = database.admin.shards(name)
    except VecdbError:
        return []
    return found if len(found) > 1 or any(len(one.replicas) > 1 for one in found) else []


def _warn_of_memory(out: Output, found: "Description", limit: int) -> None:
    """Say when a collection alone is above the limit that was set: the smallest layout may not be small enough."""
    used = found.details.get("memory_bytes", {})
    taken = sum(used.get(part, 0) for part in ("vectors", "graph", "codes", "lists"))
    if limit and taken > limit:
        out.warn(f"vectors, graphs and codes of {found.name} take {size(taken)}, more than memory_bytes={limit} "
                 f"({size(limit)}): the smallest layout is larger, or records came in since the last optimize")


@commands.command()
@with_target
def create(name: o.Name, dim: Annotated[int, typer.Option("--dim", "-d", help="Components of a vector (bits if "
                                                          "binary).")],
           target: Target = HERE, metric: o.OptMetric = None, vector_type: o.OptVectorType = None,
           indexed_field: o.IndexedField = None, index: o.OptIndex = IndexKind.AUTO,
           quantization: o.OptQuantization = Quantization.AUTO, m: o.M = 16, ef_construction: o.EfConstruction = 200,
           ef_search: o.EfSearchDefault = 0, nlist: o.Nlist = 0, nprobe: o.Nprobe = 0, subspaces: o.Subspaces = 0,
           bits: o.Bits = 1, oversample: o.Oversample = 0.0, vectors_on_disk: o.OnDisk = False,
           shards: o.Shards = None, replication_factor: o.ReplicationFactor = None, shard_key: o.ShardKey = None,
           expected_records: o.ExpectedRecords = None, as_json: o.Json = False) -> None:
    """Make an empty collection."""
    spec = IndexSpec(**o.index_settings(locals()))
    out = Output(as_json)
    with open_database(target, create=True) as database:
        collection = database.create_collection(
            name, dim, metric.value if metric else "cosine", index=spec, indexed_fields=indexed_field or None,
            vector_type=vector_type.value if vector_type else "float32", shards=shards,
            replication_factor=replication_factor, shard_key=shard_key, expected_records=expected_records)
        out.note(f"made collection {name}")
        if replication_factor == 2:
            out.note("with 2 replicas the loss of either node of a shard stops its writes, and a cluster cannot repair "
                     "it by itself; 3 stand the loss of one")
        if as_json:
            out.emit({"name": name, "schema": dataclasses.asdict(collection.schema)})


@commands.command()
@with_target
def drop(name: o.Name, target: Target = HERE,
         yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
         as_json: o.Json = False) -> None:
    """Delete a collection and its records for good."""
    out = Output(as_json)
    with open_database(target, write=True) as database:
        records = database.collection(name).count()
        if not yes:
            if not sys.stdin.isatty():
                raise InvalidArgument("yes", f"dropping {name} ({count(records)} records) needs --yes when nobody can "
                                      "be asked", got="no terminal", limit="--yes")
            if not typer.confirm(f"Drop {name} and its {count(records)} records for good?", err=True):
                raise DeclinedError("nothing was dropped", collection=name)
        database.drop_collection(name)
    out.note(f"dropped {name} ({count(records)} records)")
    if as_json:
        out.emit({"dropped": name, "records": records})


@commands.command()
@with_target
def optimize(name: o.Name, target: Target = HERE, as_json: o.Json = False) -> None:
    """Seal, merge and build indexes until nothing is left to do."""
    out = Output(as_json)
    with open_database(target, write=True) as database:
        collection = database.collection(name)
        with out.stages() as report:
            found = collection.optimize(progress=report)
        show(out, found, collection.schema)


@commands.command("count")
@with_target
def count_(name: o.Name, target: Target = HERE, where: o.Filter = None, as_json: o.Json = False) -> None:
    """How many records there are, or how many match a filter."""
    out = Output(as_json)
    with open_database(target) as database:
        number = database.collection(name).count(filter=where)
    if as_json:
        out.emit({"collection": name, "filter": where, "count": number})
    out.say(str(number))
    if not number:
        out.hint_paths(where)


@commands.command()
@with_target
def verify(name: o.Name, target: Target = HERE, as_json: o.Json = False) -> None:
    """Read every record and hold it against the digest that each write keeps up (exit code 6 if they differ).

    The files of sealed segments are read again, too, and held against their checksums (6 if one is damaged).
    """
    out = Output(as_json)
    with administration(resolve(target)) as admin:
        found = admin.verify(name)
    if as_json:
        out.emit({"collection": name, **found})
    elif found["equal"]:
        out.say(f"{name}: {count(found['records'])} records, digest {found['digest']}, as written")
    if not found["equal"]:
        out.warn(f"{name}: the digest of what is stored is {found['computed']}, and that of what was written "
                 f"{found['digest']}; vecdb export keeps what can be read")
        raise typer.Exit(DATA_LOSS)
