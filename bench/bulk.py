"""Bulk loading: ``python -m bench.bulk --records 1000000 --dim 96 --shards 4 --out build/bulk.json``.

Two steps, together or one at a time (``--steps build``, later ``--steps attach``, with ``--folder`` for what lies
between them; both write their part of ``--out``).

**build** makes clustered vectors from a seed and runs ``vecdb bulk build`` over them.  While it runs, its processes are
looked at: the CPU seconds until the last input file is spooled and after it, and the most memory that one of them ever
held, as the kernel counts it.  **attach** starts three ``vecdb serve`` on loopback with mutual TLS between them, runs
``vecdb bulk attach``, counts the records, has all replicas compared by digest, and asks for the nearest of vectors that
are not in the collection, against the exact search.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import vecdb
from bench.hdf5 import exact
from bench.open import clustered
from bench.replication.nodes import NODES, Cluster, wait_until
from bench.server.processes import Child, family
from vecdb.core.cluster import NodeState

STEPS = ("build", "attach")
NAME = "docs"
LOOK_S = 0.1
HEARD_S = 2.0
BATCH = 100
GB = 1e9


def files_of(folder: Path) -> dict[str, Any]:
    found = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"files": len(found), "bytes": sum(found)}


def peak_bytes(pid: int) -> int:
    """The most resident memory a process ever had; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def command(arguments: list[str], place: Path, name: str, look: Callable[[Child], None] = lambda child: None
            ) -> tuple[dict[str, Any], float, float]:  # fmt: skip
    """Run ``vecdb ARGUMENTS --json``; its answer, and its seconds of wall and CPU."""
    answer = place / f"{name}.out"
    begin = time.monotonic()
    with answer.open("wb") as out:
        child = Child([sys.executable, "-m", "vecdb.cli", *arguments, "--json"], log=place / f"{name}.log",
                      stdout=out.fileno())  # fmt: skip
    cpu = 0.0
    while child.process.poll() is None:
        cpu = max(cpu, child.cpu_s())
        look(child)
        time.sleep(LOOK_S)
    wall = time.monotonic() - begin
    if child.end():
        raise SystemExit(f"vecdb {' '.join(arguments[:2])} failed:\n{child.last_words()}")
    told: dict[str, Any] = json.loads(answer.read_bytes())
    return told, wall, cpu


class Build:
    """What is seen of a build from outside: ``spool_cpu_s`` until all input is spooled, memory of its processes."""

    def __init__(self, scratch: Path) -> None:
        self._spooled = scratch / "parts" / "00000.json"
        self.spool_cpu_s: float | None = None
        self.peaks: dict[int, int] = {}

    def look(self, child: Child) -> None:
        if self.spool_cpu_s is None and self._spooled.exists():
            self.spool_cpu_s = child.cpu_s()
        for pid in family(child.pid)[1:]:
            self.peaks[pid] = max(self.peaks.get(pid, 0), peak_bytes(pid))


def build(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Make the vectors, and of them the shards."""
    rows = clustered(options.records + options.queries, options.dim)
    np.save(place / "rows.npy", rows[: options.records])
    np.save(place / "queries.npy", rows[options.records :])
    del rows
    seen = Build(place / "scratch")
    told, wall, cpu = command(
        ["bulk", "build", "--from", str(place / "rows.npy"), "-c", NAME, "--shards", str(options.shards), "--workers",
         str(options.workers), "--at", f"file://{place / 'place'}", "--scratch", str(place / "scratch"),
         "--metric", "l2", "--index", "hnsw", "--m", str(options.m), "--ef-construction",
         str(options.ef_construction)], place, "build", seen.look)  # fmt: skip
    spool_cpu = cpu if seen.spool_cpu_s is None else seen.spool_cpu_s
    return {"wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "spool_wall_s": round(told["partition_s"], 1),
            "spool_cpu_s": round(spool_cpu, 1), "build_wall_s": round(told["build_s"], 1),
            "build_cpu_s": round(cpu - spool_cpu, 1), "process_peak_bytes": max(seen.peaks.values(), default=0),
            "records": told["rows"], **files_of(place / "place")}  # fmt: skip


def recall(docs: Any, queries: np.ndarray, truth: np.ndarray, k: int, ef: int | None) -> float:
    """Mean share of the k exact nearest that are found; the ids of records are their rows."""
    right = 0
    for begin in range(0, len(queries), BATCH):
        found = docs.query(queries[begin : begin + BATCH], k=k, ef=ef)
        right += sum(len({hit.id for hit in hits} & set(map(int, near[:k])))
                     for hits, near in zip(found, truth[begin : begin + BATCH], strict=True))  # fmt: skip
    return round(right / (k * len(queries)), 4)


def attach(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Bring what was built into three nodes, and ask it."""
    if not (place / "place").is_dir():
        raise SystemExit(f"nothing is built in {place}: --steps build, with the same --folder")
    rows, queries = np.load(place / "rows.npy", mmap_mode="r"), np.load(place / "queries.npy")
    with tempfile.TemporaryDirectory(prefix="nodes-", dir=place) as nodes:
        cluster = Cluster(Path(nodes))
        try:
            with vecdb.connect(cluster.url, timeout=120.0) as db:
                wait_until(lambda: sum(one.state == NodeState.ACTIVE and 0 <= one.heard_s < HEARD_S
                                       for one in db.admin.cluster.info().nodes) == NODES, "nodes that are heard")
                before = cluster.cpu_s()
                told, wall, cpu = command(["bulk", "attach", NAME, "--at", f"file://{place / 'place'}", "--url",
                                           cluster.url, "--yes"], place, "attach")  # fmt: skip
                cpu += cluster.cpu_s() - before
                job, held = told["job"], files_of(Path(nodes))
                docs = db[NAME]
                count = docs.count()
                groups = [one.group for one in db.admin.shards(NAME)]
                agree = all(verified.agree and verified.complete for verified in (
                    db.admin.verify_shard(f"{NAME}@{group}" if len(groups) > 1 else NAME, deep=True)
                    for group in groups))  # fmt: skip
                truth, _ = exact(np.ascontiguousarray(rows), queries, "l2", options.k)
                recalls = {"recall": recall(docs, queries, truth, options.k, None),
                           "recall_at_ef": recall(docs, queries, truth, options.k, options.ef)}  # fmt: skip
        finally:
            cluster.end()
    return {"wall_s": round(wall, 1), "job_s": round(job["updated_s"] - job["created_s"], 1), "cpu_s": round(cpu, 1),
            "records": count, "digests_agree": agree, "replicas": NODES, **held, **recalls, "ef": options.ef,
            "queries": len(queries), "k": options.k}  # fmt: skip


def about(options: argparse.Namespace) -> dict[str, Any]:
    return {"vecdb": vecdb.__version__, "python": platform.python_version(), "cores": len(os.sched_getaffinity(0)),
            "records": options.records, "dim": options.dim, "shards": options.shards, "workers": options.workers,
            "m": options.m, "ef_construction": options.ef_construction}  # fmt: skip


def run(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """The steps asked for, beside those that ``--out`` has of the same build."""
    result: dict[str, Any] = {"about": about(options)}
    if options.out and options.out.exists():
        earlier = json.loads(options.out.read_text(encoding="utf-8"))
        if earlier.get("about") == result["about"]:
            result |= {step: earlier[step] for step in STEPS if step in earlier}
    for step, work in (("build", build), ("attach", attach)):
        if step in options.steps:
            result[step] = work(options, place)
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def lines(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """``(step, wall s, CPU s, what else)`` of a result."""
    found = []
    if built := result.get("build"):
        rate = built["records"] / max(built["build_cpu_s"], 0.1)
        found += [("spool", f"{built['spool_wall_s']:,.1f}", f"{built['spool_cpu_s']:,.1f}", ""),
                  ("build", f"{built['build_wall_s']:,.1f}", f"{built['build_cpu_s']:,.1f}",
                   f"{rate:,.0f} records a CPU second, {built['bytes'] / GB:.2f} GB in {built['files']:,} files, "
                   f"at most {built['process_peak_bytes'] / GB:.2f} GB of memory a process")]  # fmt: skip
    if there := result.get("attach"):
        found.append(("attach", f"{there['wall_s']:,.1f}", f"{there['cpu_s']:,.1f}",
                      f"{there['records']:,} records on {there['replicas']} nodes, {there['bytes'] / GB:.2f} GB, "
                      f"digests {'agree' if there['digests_agree'] else 'DIFFER'}; recall@{there['k']} of "
                      f"{there['queries']} queries {there['recall']:.4f} at the built width, "
                      f"{there['recall_at_ef']:.4f} at ef {there['ef']}"))  # fmt: skip
    return found


def tell(result: dict[str, Any]) -> None:
    what = result["about"]
    grid = Table(title=f"{what['records']:,} x {what['dim']} in {what['shards']} shards, HNSW m {what['m']}, width "
                 f"{what['ef_construction']}; {what['cores']} cores")  # fmt: skip
    for heading in ("step", "wall s", "CPU s", ""):
        grid.add_column(heading, justify="right" if heading.endswith(" s") else "left")
    for line in lines(result):
        grid.add_row(*line)
    Console(width=None if Console().is_terminal else 150).print(grid)


def steps(text: str) -> list[str]:
    found = text.split(",")
    if unknown := [one for one in found if one not in STEPS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(STEPS)}")
    return found


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.bulk", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0, help="shards built at once; 0: one a core")
    parser.add_argument("--m", type=int, default=16)
    parser.add_argument("--ef-construction", type=int, default=200)
    parser.add_argument("--queries", type=int, default=1_000, help="vectors that are not in the collection")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--ef", type=int, default=64, help="the fixed width, beside the one the build measured")
    parser.add_argument("--steps", type=steps, default=list(STEPS), help=",".join(STEPS))
    parser.add_argument("--folder", type=Path, help="where the input and the shards are kept (a temporary one)")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    options = parser.parse_args(given)
    if options.steps == ["attach"] and options.folder is None:
        parser.error("--steps attach needs the --folder that was built in")
    return options


def main() -> None:
    options = parse()
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        tell(run(options, options.folder.absolute()))
        return
    with tempfile.TemporaryDirectory(prefix="vecdb-bulk-") as place:
        tell(run(options, Path(place)))


if __name__ == "__main__":
    main()
