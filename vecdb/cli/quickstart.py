"""``vecdb quickstart``: real data in, real questions out, and what it cost, in about a minute.

Everything goes through the public API.  The truth that recall is measured against is computed here, in NumPy,
from the data set itself, and not by the engine that is being measured.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vecdb.cli import options as o
from vecdb.cli.output import Advance, Output, count, duration, shorten, size
from vecdb.cli.session import open_database
from vecdb.cli.target import HERE, Place, Target, resolve, with_target
from vecdb.core.schema import AUTO_HNSW_RECORDS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vecdb.client.collection import Collection
    from vecdb.client.database import Database
    from vecdb.datasets import Dataset

_NAME = "wordnet"
_K = 10
_BATCH = 2_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """A filter as the database gets it, and as plain Python decides it."""

    filter: str | None
    matches: Callable[[dict[str, Any]], bool]

    @property
    def title(self) -> str:
        return self.filter or "no filter"


SCENARIOS = (
    Scenario(None, lambda row: True),
    Scenario("pos == 'verb'", lambda row: row["pos"] == "verb"),
    Scenario("tag_count >= 5", lambda row: row["tag_count"] >= 5),
    Scenario("lexname in ['noun.animal', 'noun.plant', 'noun.food']",
             lambda row: row["lexname"] in ("noun.animal", "noun.plant", "noun.food")),
    Scenario("pos == 'adj' and tag_count >= 50", lambda row: row["pos"] == "adj" and row["tag_count"] >= 50),
)


@dataclass(slots=True)
class Measured:
    """One scenario's row of the table; times in milliseconds."""

    filter: str
    matching: int
    share: float
    recall: float
    p50_ms: float
    p99_ms: float
    qps: float
    batch_qps: float
    plan: str


@with_target
def quickstart(target: Target = HERE,
               keep: Annotated[bool, typer.Option("--keep", help="Keep the collection; in the default directory if "
                                                  "none is named.")] = False,
               queries: Annotated[int, typer.Option("--queries", min=1, help="How many queries a row of the "
                                                    "table.")] = 300,
               as_json: o.Json = False) -> None:
    """Load a real data set that ships with vecdb, query it, and show recall, latency and memory.

    In a temporary directory if none is named.  On a server the collection is dropped again, unless --keep is given.
    """
    out = Output(as_json)
    with ExitStack() as stack:
        if target == HERE and not keep:
            made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vecdb-quickstart-")))
            place = resolve(Target(data=made))
        else:
            place = resolve(target)
        kept = keep or target.data is not None
        with open_database(place, create=True) as database:
            told = _run(database, place, queries, out)
            if place.is_server and not kept:
                database.drop_collection(_NAME)
        told["kept"] = kept
        if as_json:
            out.emit(told)
        else:
            _next_steps(out, place if kept else None, told["examples"][0]["hits"][0]["id"])


def _run(database: "Database", place: Place, queries: int, out: Output) -> dict[str, Any]:
    from vecdb.datasets import load_wordnet

    dataset = load_wordnet()
    n, dim = dataset.vectors.shape
    out.say(f"WordNet 3.0: {count(n)} word senses with their sentence embeddings ({dim} dimensions, {dataset.metric}), "
            f"and {count(len(dataset.queries))} more as queries.")
    if n < AUTO_HNSW_RECORDS:
        out.say(f"An HNSW graph is asked for, to show one: index='auto' scans exactly below {count(AUTO_HNSW_RECORDS)} "
                "records.")
    collection = database.create_collection(_NAME, dim, dataset.metric, index="hnsw")
    load_s = _load(collection, dataset, out)
    begin = time.monotonic()
    with out.stages() as report:
        collection.optimize(progress=report)
    build_s = time.monotonic() - begin
    begin = time.monotonic()
    collection.query(dataset.queries[0], k=_K)
    warm_s = time.monotonic() - begin
    out.note(f"index built in {duration(build_s)}; first query, loading its kernels, {duration(warm_s)}")
    measured = _measure_all(collection, dataset, min(queries, len(dataset.queries)), out)
    facts = _facts(collection, place, load_s, build_s, n)
    _tables(out, measured, facts)
    examples = _examples(collection, dataset, out)
    from dataclasses import asdict

    return {"dataset": dataset.name, "records": n, "dim": dim, "metric": dataset.metric, "k": _K, "index": "hnsw",
            "queries": [asdict(one) for one in measured], **facts, "examples": examples}


def _load(collection: "Collection", dataset: "Dataset", out: Output) -> float:
    begin = time.monotonic()
    n = len(dataset.ids)
    with out.progress("storing", n) as advance:
        for lo in range(0, n, _BATCH):
            part = slice(lo, lo + _BATCH)
            collection.upsert(ids=dataset.ids[part], vectors=dataset.vectors[part], metadata=dataset.metadata[part])
            advance(min(lo + _BATCH, n), None)
    return time.monotonic() - begin


def _measure_all(collection: "Collection", dataset: "Dataset", queries: int, out: Output) -> list[Measured]:
    measured = []
    with out.progress("measuring", len(SCENARIOS) * queries, "queries") as advance:
        for place, scenario in enumerate(SCENARIOS):
            measured.append(_measure(collection, dataset, scenario, queries, advance, place * queries))
    return measured


def _measure(collection: "Collection", dataset: "Dataset", scenario: Scenario, queries: int,
             advance: Advance, base: int) -> Measured:
    import numpy as np

    mask = np.fromiter(map(scenario.matches, dataset.metadata), np.bool_, len(dataset.metadata))
    # Spread over the set, which is sorted: its head alone would be nouns.
    vectors = dataset.queries[np.linspace(0, len(dataset.queries) - 1, queries).astype(np.int64)]
    truth = _truth(dataset.vectors[mask], vectors)
    plan = collection.query(vectors[0], k=_K, filter=scenario.filter, explain=True).plan
    times = np.empty(queries)
    found = 0
    for place in range(queries):
        begin = time.perf_counter()
        hits = collection.query(vectors[place], k=_K, filter=scenario.filter)
        times[place] = time.perf_counter() - begin
        # By distance and not by id: of records that are equally near any is right.
        if truth.shape[1]:
            found += min(truth.shape[1], int(np.count_nonzero(hits.distances <= truth[place, -1] + 1e-5)))
        if place % 16 == 15:
            advance(base + place + 1, None)
    collection.query(vectors[:2], k=_K, filter=scenario.filter)  # what only batches use is loaded now
    begin = time.perf_counter()
    collection.query(vectors, k=_K, filter=scenario.filter)
    batch_s = time.perf_counter() - begin
    advance(base + queries, None)
    return Measured(scenario.title, int(mask.sum()), float(mask.mean()), found / truth.size if truth.size else 1.0,
                    float(np.percentile(times, 50)) * 1e3, float(np.percentile(times, 99)) * 1e3,
                    queries / float(times.sum()), queries / batch_s, _plan_name(plan))


def _truth(vectors: "npt.NDArray[np.float32]", queries: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float32]":
    """Distances (q, k) of the exact nearest, ascending, by comparing with every record."""
    import numpy as np

    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    distances: npt.NDArray[np.float32] = 1.0 - unit @ vectors.T
    k = min(_K, vectors.shape[0])
    if k == 0:
        return distances
    return np.sort(np.partition(distances, k - 1, axis=1)[:, :k], axis=1)


def _plan_name(plan: Any) -> str:
    """What a plan calls itself, at whatever depth it says so."""
    names: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key in ("strategy", "kind") and isinstance(inner, str):
                    names.append(inner)
                else:
                    look(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                look(inner)

    look(plan)
    return ", ".join(dict.fromkeys(names)).replace("_", " ") or "-"


def _facts(collection: "Collection", place: Place, load_s: float, build_s: float, n: int) -> dict[str, Any]:
    """Of a server, what it says of the collection: its process and its disk are not ours to look at."""
    from vecdb.cli.machine import resident_bytes

    details = collection.describe().details
    memory, files = details.get("memory_bytes", {}), details.get("disk_bytes", {})
    parts = {name: int(value) for name, value in memory.items() if name != "total"} if isinstance(memory, dict) else {}
    if place.directory is not None:
        disk = sum(path.stat().st_size for path in place.directory.rglob("*") if path.is_file())
    else:
        disk = int(files.get("total", sum(files.values()))) if isinstance(files, dict) else int(files)
    return {"load_seconds": round(load_s, 3), "build_seconds": round(build_s, 3),
            "records_per_second": round(n / max(load_s + build_s, 1e-9)), "memory_bytes": parts,
            **({} if place.is_server else {"resident_bytes": resident_bytes()}), "disk_bytes": disk}


def _tables(out: Output, measured: list[Measured], facts: dict[str, Any]) -> None:
    out.table(f"Nearest {_K}, one query a call (and, last, in one batch)",
              ["filter", "matching", f"recall@{_K}", "p50 ms", "p99 ms", "queries/s", "batch/s", "plan"],
              [[m.filter, f"{count(m.matching)} ({m.share:.1%})", f"{m.recall:.4f}", f"{m.p50_ms:.2f}",
                f"{m.p99_ms:.2f}", count(round(m.qps)), count(round(m.batch_qps)), m.plan] for m in measured],
              left=(0, 7))
    rows = [["store (durable)", duration(facts["load_seconds"])], ["build index", duration(facts["build_seconds"])],
            ["together", f"{count(facts['records_per_second'])} records/s"]]
    rows += [[f"memory: {name}", size(value)] for name, value in facts["memory_bytes"].items() if value]
    if "resident_bytes" in facts:
        rows.append(["memory: process (RSS)", size(facts["resident_bytes"])])
    rows.append(["disk", size(facts["disk_bytes"])])
    out.table("What it cost", ["", ""], rows)


_ASKED = (("n02130308", None), ("n02130308", "lexname == 'noun.artifact'"), ("v02642610", "pos == 'verb'"))
"""A cheetah, what comes nearest to one among things made, and to procrastinate."""


def _examples(collection: "Collection", dataset: "Dataset", out: Output) -> list[dict[str, Any]]:
    """A few queries with the texts of what was found, so that a person can judge."""
    told = []
    places = {row["id"]: place for place, row in enumerate(dataset.query_metadata)}
    for identity, where in _ASKED:
        place = places[identity]
        text = str(dataset.query_metadata[place]["text"])
        hits = collection.query(dataset.queries[place], k=3, filter=where, include=["metadata"])
        found = [{"id": hit.id, "score": round(hit.score, 4), "text": (hit.metadata or {})["text"]} for hit in hits]
        told.append({"query": text, "filter": where, "hits": found})
        out.table(f"« {shorten(text, 100)} »" + (f"  where {where}" if where else ""), ["score", "nearest"],
                  [[f"{one['score']:.3f}", shorten(str(one["text"]), 110)] for one in found], left=(1,))
    return told


def _next_steps(out: Output, place: Place | None, identity: str) -> None:
    if place is None:
        out.say("Try next (this database was temporary; --keep keeps it):")
        out.say("  vecdb quickstart --keep --data ./data")
    else:
        out.say(f"Try next (the database is {'at' if place.is_server else 'in'} {place.name}):")
        where = f" {place.flags}"
        out.say(f"  vecdb query -c {_NAME}{where} --like {identity} -k 5 --filter \"tag_count >= 1\" --explain")
        out.say(f"  vecdb collection describe {_NAME}{where}")
        out.say(f"  vecdb export -c {_NAME}{where} wordnet.parquet")
    out.say("  vecdb import vectors.parquet -c docs         (also .hdf5, .npy, .fvecs, .jsonl)")
    out.say("  vecdb plan --records 1e8 --dim 768           (what memory and disk that needs)")
    out.say("  python -c \"import vecdb; help(vecdb.connect)\"")
