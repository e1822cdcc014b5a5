"""More than a node can do, for some seconds or some minutes: what it still answers, how soon, and what it refuses.

    python -m bench.flood [--inflight 8,64,512,2048] [--idle 1000] [--out build/flood.json]
    python -m bench.flood --soak 300 --idle 4000     # the same over and over; memory is looked at after each round

Queries are exact scans, so that the engine and not the client is what runs out.  ``--idle`` connections are held open
all the while.  The node has the limits of ``--queued`` and ``--calls``; beyond them calls are refused with a hint,
which these clients do not heed.
"""

import argparse
import json
import resource
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bench.server.processes import Child, Driver, start_node
from bench.server.report import console

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
SPARE_FILES = 256


def fill(folder: Path, records: int, dim: int) -> np.ndarray:
    """A collection without an index; returns queries for it."""
    import vecdb

    random = np.random.default_rng(3)
    with vecdb.connect(str(folder)) as database:
        docs = database.create_collection("bench", dim, "l2", index="flat")
        for low in range(0, records, 20_000):
            rows = random.standard_normal((min(20_000, records - low), dim), dtype=np.float32)
            docs.upsert(ids=np.arange(low, low + len(rows)), vectors=rows)
    return random.standard_normal((256, dim), dtype=np.float32)


def idle_connections(port: int, wanted: int) -> list[socket.socket]:
    """HTTP/2 connections that begin and say no more, as many as this process may have open."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    made: list[socket.socket] = []
    for _ in range(min(wanted, hard - SPARE_FILES)):
        one = socket.create_connection(("127.0.0.1", port), timeout=30)
        one.sendall(PREFACE)
        made.append(one)
    return made


def pour(node: Child, target: str, drivers: list[Driver], inflight: int, queries: Path, seconds: float
         ) -> dict[str, Any]:
    """One flood; ``inflight`` shared out over the clients."""
    before = node.cpu_s()
    used = drivers[: min(len(drivers), inflight)]
    for place, driver in enumerate(used):
        share = inflight // len(used) + (place < inflight % len(used))
        driver.tell({"do": "query", "how": "flood", "target": target, "queries": str(queries), "inflight": share,
                     "seconds": seconds, "k": 10})  # fmt: skip
    answers = [driver.answer(seconds + 180) for driver in used]
    calls = np.concatenate([np.array(answer["calls_ms"]) for answer in answers])
    refused: dict[str, int] = {}
    for answer in answers:
        for name, count in answer["refused"].items():
            refused[name] = refused.get(name, 0) + count
    p50, p99 = (float(np.percentile(calls, share)) if len(calls) else float("nan") for share in (50, 99))
    return {"inflight": inflight, "accepted_s": round(sum(a["calls"] / a["seconds"] for a in answers), 1),
            "refused_s": round(sum(refused.values()) / max(a["seconds"] for a in answers), 1), "refused": refused,
            "p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "rss_mib": round(node.rss_bytes() / 2**20, 1),
            "cpu_share": round((node.cpu_s() - before) / max(a["seconds"] for a in answers), 2)}  # fmt: skip


def table(rows: list[dict[str, Any]], title: str) -> None:
    grid = Table(title=title)
    for heading in ("in flight", "accepted/s", "refused/s", "p50 ms", "p99 ms", "RSS MiB", "cores", "refused as"):
        grid.add_column(heading, justify="right")
    for row in rows:
        refused = ", ".join(f"{name} {count}" for name, count in row["refused"].items())
        grid.add_row(str(row["inflight"]), f"{row['accepted_s']:,.0f}", f"{row['refused_s']:,.0f}",
                     f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}", f"{row['rss_mib']:,.0f}",
                     f"{row['cpu_share']:.2f}", refused)  # fmt: skip
    console().print(grid)


def run(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    queries = place / "queries.npy"
    np.save(queries, fill(place / "data", options.records, options.dim))
    limits = {"VECDB_LIMITS__QUEUED_QUERIES": str(options.queued), "VECDB_LIMITS__CONCURRENT_CALLS": str(options.calls)}
    node, ready = start_node(place / "data", place, limits)
    drivers = [Driver(place, f"client{number}") for number in range(2)]
    idle: list[socket.socket] = []
    rows: list[dict[str, Any]] = []
    try:
        target = f"127.0.0.1:{ready['grpc_port']}"
        begun = node.rss_bytes()
        idle = idle_connections(int(ready["grpc_port"]), options.idle)
        time.sleep(0.5)
        held = node.rss_bytes()
        end = time.monotonic() + options.soak
        while not rows or time.monotonic() < end:
            for inflight in options.inflight:
                rows.append(pour(node, target, drivers, inflight, queries, options.seconds))
            if options.soak:
                print(json.dumps(rows[-1]), flush=True)
            if node.process.poll() is not None:
                raise SystemExit(f"the node ended with {node.process.returncode}:\n{node.last_words()}")
        return {"limits": {"queued": options.queued, "calls": options.calls}, "idle": len(idle),
                "idle_kib_each": round((held - begun) / 1024 / max(1, len(idle)), 1), "rows": rows}  # fmt: skip
    finally:
        for one in idle:
            one.close()
        for driver in drivers:
            driver.end()
        node.end()


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.flood", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--inflight", type=numbers, default=[8, 64, 512, 2048])
    parser.add_argument("--queued", type=int, default=256, help="limits.queued_queries of the node")
    parser.add_argument("--calls", type=int, default=1024, help="limits.concurrent_calls of the node")
    parser.add_argument("--idle", type=int, default=200, help="connections that do nothing meanwhile")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one flood")
    parser.add_argument("--soak", type=float, default=0.0, help="go round for so many seconds")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vecdb-flood-") as folder:
        found = run(options, Path(folder))
    table(found["rows"], f"exact scans of {options.records:,} x {options.dim}; {options.queued} queued queries and "
                         f"{options.calls} calls allowed; {found['idle']} idle connections, "
                         f"{found['idle_kib_each']:.0f} KiB each")  # fmt: skip
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
