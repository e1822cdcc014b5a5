"""Other databases, as servers, on the data and in the harness that vecdb is measured on.

    python -m bench.peers --install chroma,milvus-lite,pgvector,redis            # environments of their own, by pip
    python -m bench.peers --systems vecdb,chroma,milvus-lite,pgvector --data glove-100 --records 50000 --out OUT.json

Every system gets the same records, k, m and ef_construction, then the narrowest search that reaches the recall, then
1, 8 and 64 single queries in flight and batches of 64, from its own client library.  One system stands at a time; rates
are medians of the rounds.  CPU time is of the server and of its clients.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bench import hdf5
from bench.peers.systems import PEERS, Peer, Started
from bench.server.points import Point
from bench.server.processes import Driver
from bench.server.report import console

SHAPES = ((1, 1), (8, 1), (64, 1), (1, 64), (8, 64))


class Standing:
    """One system and its clients."""

    def __init__(self, peer: Peer, place: Path, data: hdf5.AnnSet, options: argparse.Namespace) -> None:
        self.peer, self.place, self.data, self.options = peer, place, data, options
        self.rows, self.queries = place / "rows.npy", place / "queries.npy"
        np.save(self.rows, _ready(data.train, data.metric))
        np.save(self.queries, _ready(data.test, data.metric))
        self.started: Started = peer.start(place)
        count = options.clients if self.started.server is not None else 1
        command = [str(peer.python), "-m", "bench.peers.client", peer.name, self.started.target]
        self.drivers = [Driver(place, f"{peer.name}-client{number}", command) for number in range(count)]

    def tell(self, driver: Driver, seconds: float, **command: Any) -> dict[str, Any]:
        driver.tell({"metric": self.data.metric, "dim": self.data.train.shape[1], "k": self.options.k, **command})
        return driver.answer(seconds)

    def load(self) -> dict[str, Any]:
        before = self.server_s()
        answer = self.tell(self.drivers[0], 900, do="load", rows=str(self.rows))
        return {"build_seconds": round(answer["seconds"], 2),
                "build_cpu_seconds": round(answer["cpu_s"] + self.server_s() - before, 2)}  # fmt: skip

    def server_s(self) -> float:
        return self.started.server.cpu_s() if self.started.server is not None else 0.0

    def beam(self) -> tuple[int, float]:
        """The narrowest effort that reaches the recall, or the widest there is."""
        out, found, ef = self.place / "answers.npy", 0.0, 0
        for ef in self.peer.efforts:
            for driver in self.drivers:
                self.tell(driver, 60, do="effort", ef=ef)
            self.tell(self.drivers[0], 300, do="answers", queries=str(self.queries), out=str(out))
            found = hdf5.recall(self.data, np.load(out), self.options.k)
            if found >= self.options.recall:
                break
        return ef, found

    def visit(self, point: Point) -> None:
        used = self.drivers[: min(len(self.drivers), point.inflight)]
        before = self.server_s()
        for place, driver in enumerate(used):
            share = point.inflight // len(used) + (place < point.inflight % len(used))
            driver.tell({"metric": self.data.metric, "dim": self.data.train.shape[1], "k": self.options.k,
                         "do": "query", "queries": str(self.queries), "size": point.rows, "inflight": share,
                         "seconds": self.options.seconds})  # fmt: skip
        answers = [driver.answer(self.options.seconds + 180) for driver in used]
        queries = point.rows * sum(answer["calls"] + answer["warm"] for answer in answers)
        rate = sum(point.rows * answer["calls"] / answer["seconds"] for answer in answers)
        point.take(np.concatenate([answer["calls_ms"] for answer in answers]), rate,
                   (self.server_s() - before) / queries * 1e6,
                   sum(answer["cpu_s"] for answer in answers) / queries * 1e6)  # fmt: skip

    def close(self) -> None:
        for driver in self.drivers:
            driver.end()
        if self.started.server is not None:
            self.started.server.end()


def _ready(rows: np.ndarray, metric: str) -> np.ndarray:
    if metric != "cosine":
        return rows
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-30))


def measure(peer: Peer, data: hdf5.AnnSet, options: argparse.Namespace) -> dict[str, Any]:
    """One system from start to end."""
    missing = peer.missing() or ("" if data.metric in peer.metrics else f"it has no {data.metric} distance")
    if missing:
        return {"system": peer.name, "missing": missing}
    place = Path(tempfile.mkdtemp(prefix=f"vecdb-peer-{peer.name}-"))
    standing = None
    try:
        standing = Standing(peer, place, data, options)
        built = standing.load()
        ef, recall = standing.beam()
        points = [Point("peer", peer.name, inflight, rows) for inflight, rows in SHAPES]
        for _ in range(options.rounds):
            for point in points:
                standing.visit(point)
        return {"system": peer.name, "version": peer.versions(), "note": peer.note, "ef": ef,
                "recall": round(recall, 4), **built, "rows": [point.row() for point in points]}  # fmt: skip
    except SystemExit as error:
        return {"system": peer.name, "missing": str(error)[:2_000]}
    finally:
        if standing is not None:
            standing.close()
        shutil.rmtree(place, ignore_errors=True)


def table(found: list[dict[str, Any]], title: str) -> None:
    grid = Table(title=title)
    for heading in ("system", "recall", "ef", "build s"):
        grid.add_column(heading)
    for inflight, rows in SHAPES:
        grid.add_column(f"QPS {inflight}x{rows}", justify="right")
    for heading in ("p50 ms", "p99 ms", "p99 ms at 64", "CPU us"):
        grid.add_column(heading, justify="right")
    for one in found:
        if "missing" in one:
            grid.add_row(one["system"], "left out")
            continue
        rows = one["rows"]
        grid.add_row(one["system"], f"{one['recall']:.3f}", str(one["ef"]), f"{one['build_seconds']:.1f}",
                     *(f"{row['qps']:,.0f}" for row in rows), f"{rows[0]['p50_ms']:.2f}", f"{rows[0]['p99_ms']:.2f}",
                     f"{rows[2]['p99_ms']:.1f}", f"{rows[0]['server_us'] + rows[0]['client_us']:,.0f}")  # fmt: skip
    console().print(grid)
    print("QPS AxB: A calls in flight of B queries each; p50, p99, CPU (both sides): one query in flight")
    for one in found:
        if "missing" in one:
            print(f"{one['system']}: left out, {one['missing']}")
        else:
            print(f"{one['system']}: {one['version']}{', ' + one['note'] if one['note'] else ''}")


def parse() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        chosen = [part for part in text.split(",") if part]
        unknown = [part for part in chosen if part not in PEERS]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(PEERS)}")
        return chosen

    parser = argparse.ArgumentParser(prog="bench.peers", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--install", type=names, default=[], help="make these environments, and do no more")
    parser.add_argument("--systems", type=names, default=list(PEERS))
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--data", default="glove-100", help="an HDF5 file in the ann-benchmarks layout, or a set")
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse()
    environments = options.environments.resolve()
    for name in options.install:
        PEERS[name](environments).install()
        print(f"{name}: {PEERS[name](environments).versions()}")
    if options.install:
        return
    data = hdf5.read(hdf5.find(options.data), limit=options.records, queries=options.queries)
    found = []
    for name in options.systems:
        found.append(measure(PEERS[name](environments), data, options))
        print(json.dumps({key: value for key, value in found[-1].items() if key != "rows"}), flush=True)
    title = f"{data.name}, k={options.k}, {len(os.sched_getaffinity(0))} cores for servers and clients"
    table(found, title)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"dataset": data.name, "systems": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
