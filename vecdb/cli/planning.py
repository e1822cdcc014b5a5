"""``vecdb plan``: the memory and disk a collection will need, or whether a real one needs what was foretold."""

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vecdb.cli import options as o
from vecdb.cli.output import Output, count, size
from vecdb.cli.target import HERE, Target, with_target
from vecdb.core.errors import InvalidArgument
from vecdb.core.schema import CollectionSchema, IndexKind, IndexSpec, Metric, Quantization, VectorType
from vecdb.core.units import parse_bytes

if TYPE_CHECKING:
    from vecdb.core.sizing import Sizing, Workload

_NUMBER = re.compile(r"(\d[\d_,]*\.?\d*)(?:e\+?(\d{1,2}))?\s*([kmgbt]?)", re.IGNORECASE)
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}


def parse_count(text: str, what: str = "records") -> int:
    """``1e9``, ``10M``, ``2.5k``, ``1_000_000`` or ``1,000,000`` as an integer."""
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        raise InvalidArgument(what, f"{text[:40]!r} is no number of {what}; write 1000000, 1e6 or 1M",
                              got=text[:40], limit="a number")
    exponent = 10.0 ** int(found[2] or 0) * _SCALE[found[3].lower()]
    return round(float(found[1].replace("_", "").replace(",", "")) * exponent)


def parse_size(text: str) -> int:
    """``8GiB``, ``500MB`` or plain bytes as an integer."""
    try:
        size_bytes = parse_bytes(text)
    except ValueError as error:
        raise InvalidArgument("memory", str(error), got=text[:40], limit="a size") from None
    if not size_bytes:
        raise InvalidArgument("memory", f"{text[:40]!r} is no memory at all", got=text[:40], limit="a size")
    return size_bytes


@with_target
def plan(records: Annotated[str | None, typer.Option("--records", "-n", help="How many: 1000000, 1e9, 10M.")] = None,
         dim: Annotated[int | None, typer.Option("--dim", "-d", help="Components of a vector.")] = None,
         metric: o.OptMetric = None, vector_type: o.OptVectorType = None, index: o.OptIndex = IndexKind.AUTO,
         quantization: o.OptQuantization = Quantization.AUTO, m: o.M = 16, ef_construction: o.EfConstruction = 200,
         ef_search: o.EfSearchDefault = 0, nlist: o.Nlist = 0, nprobe: o.Nprobe = 0, subspaces: o.Subspaces = 0,
         bits: o.Bits = 1, oversample: o.Oversample = 0.0, vectors_on_disk: o.OnDisk = False,
         id_bytes: Annotated[float, typer.Option("--id-bytes", help="Bytes of a string id; 0: integers.")] = 0.0,
         metadata_bytes: Annotated[float, typer.Option("--metadata-bytes", help="Of one record's metadata, as "
                                                       "JSON.")] = 0.0,
         metadata_fields: Annotated[float, typer.Option("--metadata-fields", help="Indexed scalars a record.")] = 0,
         text_bytes: Annotated[float, typer.Option("--text-bytes", help="Of a record's indexed strings that no other "
                                                   "record has.")] = 0.0,
         memory: Annotated[str | None, typer.Option("--memory", help="Fit vectors, graphs and codes into this: 8GiB, "
                                                    "500MB.")] = None,
         qps: Annotated[str | None, typer.Option("--qps", help="Queries a second: nodes of a cluster and their latency "
                                                 "too, from what this machine measures.", show_default=False)] = None,
         replication_factor: o.ReplicationFactor = None,
         node_cores: Annotated[int | None, typer.Option("--node-cores", min=1, help="Of a node, for --qps.  [default: "
                                                        "as here]", show_default=False)] = None,
         node_memory: Annotated[str | None, typer.Option("--node-memory", help="Of a node, for --qps.  [default: as "
                                                         "here]", show_default=False)] = None,
         network_us: Annotated[float, typer.Option("--network-us", min=0.0, help="A round trip between two machines, "
                                                   "for --qps.")] = 200.0,
         recalibrate: Annotated[bool, typer.Option("--recalibrate", help="Measure again, for --qps.")] = False,
         check: Annotated[bool, typer.Option("--check", help="Compare with a real collection.")] = False,
         collection: Annotated[str | None, typer.Option("--collection", "-c", help="Which, for --check.")] = None,
         target: Target = HERE, as_json: o.Json = False) -> None:
    """Foretell memory and disk for N records of D dimensions, component by component."""
    out = Output(as_json)
    if check:
        _check(out, target, collection)
        return
    if records is None or dim is None:
        missing = "records" if records is None else "dim"
        raise InvalidArgument(missing, f"--{missing} is needed, as in: vecdb plan --records 1e6 --dim 384",
                              got="none", limit="a number")
    from vecdb.core import sizing

    kind = vector_type or (VectorType.BINARY if metric is Metric.HAMMING else VectorType.FLOAT32)
    chosen = metric or (Metric.HAMMING if kind is VectorType.BINARY else Metric.COSINE)
    spec = IndexSpec(**o.index_settings(locals()))
    schema = CollectionSchema("plan", dim, chosen, kind, spec)
    work = sizing.Workload(parse_count(records), schema, id_bytes, metadata_bytes, metadata_fields, text_bytes,
                           None if memory is None else parse_size(memory))
    found = sizing.size(work)
    if qps is None:
        _print(out, work, found)
    else:
        from vecdb.cli.capacity import Asked, show

        show(out, work, found, Asked(parse_count(qps, "qps"), replication_factor or 3, node_cores,
                                     None if node_memory is None else parse_size(node_memory), network_us,
                                     recalibrate), lambda: _print(out, work, found), lambda: _json(work, found))
    if found.exceeds is not None and work.memory_limit is not None:
        which = "even the smallest layout takes" if spec.quantization is Quantization.AUTO else "this layout takes"
        out.warn(f"{which} {size(work.memory_limit + found.exceeds)} for vectors, graphs and codes: more than the "
                 f"{size(work.memory_limit)} of --memory, which will not be kept")


def _print(out: Output, work: "Workload", found: "Sizing") -> None:
    if out.as_json:
        out.emit(_json(work, found))
        return
    schema, n = work.schema, work.records
    rows: list[list[str]] = [[c.name + (" (estimate)" if c.estimate else ""), size(c.memory_bytes), size(c.disk_bytes),
                              f"{c.memory_bytes / n:.1f}", c.formula] for c in found.components]
    rows.append(["together", size(found.memory_bytes), size(found.disk_bytes), f"{found.memory_bytes / n:.1f}", ""])
    out.table(f"{count(n)} records, dim {schema.dim}, {schema.metric}, {schema.vector_type}: "
              f"{found.index.kind.value}, {_codes(found)}, {count(found.segments)} segment"
              f"{'' if found.segments == 1 else 's'}",
              ["component", "memory", "disk", "bytes a record", "formula"], rows, left=(0, 4), totals=True)
    out.say(f"On top: {size(found.process_bytes)} for the process; up to {size(found.cache_bytes)} of block cache and "
            f"write buffers; up to {size(found.building_bytes)} while segments are built and merged.")


def _codes(found: "Sizing") -> str:
    spec = found.index
    codes = {"none": "no codes", "rabitq": f"{spec.bits}-bit codes"}.get(spec.quantization.value,
                                                                          f"{spec.quantization.value} codes")
    return codes + (", vectors on disk" if spec.vectors_on_disk else "")


def _json(work: "Workload", found: "Sizing") -> dict[str, Any]:
    from dataclasses import asdict

    return {"records": work.records, "dim": work.schema.dim, "metric": work.schema.metric.value,
            "vector_type": work.schema.vector_type.value, "index": found.index.kind.value,
            "quantization": found.index.quantization.value, "bits": found.index.bits,
            "vectors_on_disk": found.index.vectors_on_disk, "memory_limit": work.memory_limit,
            "fits": None if work.memory_limit is None else found.exceeds is None,
            "segments": found.segments,
            "components": [asdict(one) for one in found.components],
            "memory_bytes": found.memory_bytes, "disk_bytes": found.disk_bytes,
            "process_bytes": found.process_bytes,
            "cache_bytes": found.cache_bytes, "building_bytes": found.building_bytes}


def _check(out: Output, place: Target, name: str | None) -> None:
    """Foretell a real collection from its schema, its count and a sample of its records; compare by component."""
    if name is None:
        raise InvalidArgument("collection", "--check needs --collection", got="none", limit="a collection's name")
    from vecdb.cli.session import open_database
    from vecdb.core import sizing

    with open_database(place) as database:
        target = database.collection(name)
        described = target.describe()
        if not described.records:
            raise InvalidArgument("collection", f"{name} is empty: there is nothing to compare", got=0, limit="records")
        work = _observed(target, described.records, _built(target.schema, described.details))
        actual = _memory(described.details)
        disk = described.details.get("disk_bytes", {})
    found = sizing.size(work)
    expected = {one.name: one for one in found.components}
    rows: list[dict[str, Any]] = []
    for part in [*(c.name for c in found.components if c.memory_bytes or actual.get(c.name)),
                 *(key for key in actual if key not in expected)]:
        foretold = expected[part].memory_bytes if part in expected else 0
        used = actual.get(part, 0)
        rows.append({"component": part, "planned_bytes": foretold, "used_bytes": used,
                     "ratio": round(foretold / used, 4) if used else None,
                     "estimate": part in expected and expected[part].estimate})
    total = sum(actual.values())
    files = {"segments": sum(c.disk_bytes for c in found.components if c.name != "records"),
             "rows": expected["records"].disk_bytes}
    ratio = round(found.memory_bytes / total, 4) if total else None
    if out.as_json:
        out.emit({"collection": name, "records": work.records, "components": rows, "planned_bytes": found.memory_bytes,
                  "used_bytes": total, "ratio": ratio,
                  "disk": {part: {"planned_bytes": planned, "used_bytes": disk.get(part, 0)}
                           for part, planned in files.items()}})
        return
    table = [[r["component"] + (" (estimate)" if r["estimate"] else ""), size(r["planned_bytes"]),
              size(r["used_bytes"]), "-" if r["ratio"] is None else f"{r['ratio']:.3f}"] for r in rows]
    table.append(["memory together", size(found.memory_bytes), size(total), "-" if ratio is None else f"{ratio:.3f}"])
    out.table(f"{name}: {count(work.records)} records, memory at rest", ["component", "planned", "used", "ratio"],
              table, totals=True)
    out.table("disk", ["part", "planned", "used", "ratio"],
              [[part, size(planned), size(disk.get(part, 0)),
                f"{planned / disk[part]:.3f}" if disk.get(part) else "-"] for part, planned in files.items()])


_SAMPLE = 1_000


def _built(schema: CollectionSchema, details: dict[str, Any]) -> CollectionSchema:
    """The schema with the index that its largest sealed segment has: memory may have asked for another than usual."""
    sealed = [one for one in details.get("segments", []) if one.get("state") == "sealed"]
    if not sealed:
        return schema
    index = max(sealed, key=lambda one: int(one["records"]))["index"]
    on_disk = not details["memory_bytes"].get("vectors")
    spec = replace(schema.index, kind=index["kind"], quantization=index["quantization"], vectors_on_disk=on_disk,
                   bits=index.get("bits", schema.index.bits))
    return replace(schema, index=spec)


def _observed(target: Any, records: int, schema: CollectionSchema) -> "Workload":
    """The workload a collection turns out to be, from its first records."""
    import itertools
    from collections import Counter

    import orjson

    from vecdb.core.limits import MAX_INDEXED_STRING_BYTES
    from vecdb.core.sizing import Workload

    sample = list(itertools.islice(target.scan(include=("metadata",)), _SAMPLE))
    ids = [len(record.id.encode()) if isinstance(record.id, str) else 0 for record in sample]
    metadata = [len(orjson.dumps(record.metadata)) for record in sample]
    scalars = [_scalars(record.metadata) for record in sample]
    seen = Counter(value for row in scalars for value in row if isinstance(value, str))
    alone = sum(min(len(text.encode()), MAX_INDEXED_STRING_BYTES) for text, times in seen.items() if times == 1)
    some = max(1, len(sample))
    return Workload(records, schema, sum(ids) / some, sum(metadata) / some, sum(map(len, scalars)) / some,
                    alone / some)


def _scalars(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [scalar for inner in value.values() for scalar in _scalars(inner)]
    if isinstance(value, list):
        return [scalar for inner in value for scalar in _scalars(inner)]
    return [value]


def _memory(details: dict[str, Any]) -> dict[str, int]:
    """Bytes in memory by component, from a description."""
    found = details.get("memory_bytes", {})
    if not isinstance(found, dict):
        return {"total": int(found)}
    return {str(name): int(value) for name, value in found.items() if name != "total" and int(value)}
