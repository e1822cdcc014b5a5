"""The server beside the bare index and beside an empty reply, in one run.

    python -m bench.server [--data fashion-mnist] [--records N] [--out build/server.json] [--modes query,ingest]
    python -m bench.server --quick          # made data, seconds: does the harness work

Asks with 1, 8 and 64 calls in flight: single queries by grpc's raw clients and by the SDK (threads, tasks), streams,
and batches of 64, at the narrowest beam that reaches the recall asked for.  OUT.json holds ``about``, ``rows``,
``verdicts`` and ``ingest``.

``--apart`` gives the servers, the node and the floor alike, a core that the clients stay away from, as if they were
machines of their own.  On shared cores the threads of both are moved about, and an empty reply took 0.43 ms for 0.26.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bench import hdf5
from bench.server import report
from bench.server.bare import CODED, Embedded, Index, fill
from bench.server.points import Point, Setting, take_here, visit
from bench.server.processes import Driver, start_floor, start_node
from vecdb.v1 import collections_pb2, types_pb2

EFS = (10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640)
BATCH = 64
METRICS = {"cosine": types_pb2.METRIC_COSINE, "dot": types_pb2.METRIC_DOT, "l2": types_pb2.METRIC_L2}
INGESTS = (("unary", 1), ("unary", 8), ("stream", 1), ("stream", 4), ("sdk", 1))


def made_set(records: int = 3_000, dim: int = 32) -> hdf5.AnnSet:
    """Clustered vectors, for trying the harness."""
    random = np.random.default_rng(11)
    centres = random.standard_normal((50, dim)).astype(np.float32)
    rows = centres[random.integers(0, 50, records + 200)]
    rows += np.float32(0.3) * random.standard_normal(rows.shape, dtype=np.float32)
    train, test = np.ascontiguousarray(rows[:records]), np.ascontiguousarray(rows[records:])
    neighbors, distances = hdf5.exact(train, test, "l2")
    return hdf5.AnnSet("made", "l2", train, test, neighbors, distances)


def points_of(options: argparse.Namespace, cores: int) -> dict[tuple[str, str, int, int], Point]:
    """All points, in the order of the table."""
    flights, batch = options.inflight, BATCH
    points = [Point("index", "threads", count, rows) for rows in (1, batch) for count in sorted({1, cores})]
    points += [Point("embedded", "threads", count, rows) for rows in (1, batch) for count in sorted({1, cores})]
    for side, hows in (("floor", options.raw), ("node", [*options.raw, *options.sdk])):
        points += [Point(side, how, count) for how in hows for count in flights]
        points += [Point(side, how, count, batch) for how in options.batch for count in flights if count <= 8]
    return {point.key: point for point in points}


class Bench:
    """Everything that stands while points are visited; :meth:`close` ends it all."""

    def __init__(self, options: argparse.Namespace, data: hdf5.AnnSet, place: Path) -> None:
        self.options, self.data, self.place = options, data, place
        all_cores = sorted(os.sched_getaffinity(0))
        self.threads = len(all_cores)
        self.mine: set[int] | None = None
        self.clients: set[int] | None = None
        if options.apart:
            if len(all_cores) < 2:
                raise SystemExit("--apart needs two cores, and there is one")
            self.mine, self.clients = {all_cores[-1]}, set(all_cores[:-1])
        self.cores = len(self.mine or all_cores)
        self.queries = place / "queries.npy"
        np.save(self.queries, data.test)
        self.points = points_of(options, self.cores)
        self.index: Index | None = None
        self.embedded: Embedded | None = None
        self.ends: list[Any] = []

    def stand(self) -> dict[str, Any]:
        """Build, start, and find the beams; returns what there is to know of it."""
        options, data, place = self.options, self.data, self.place
        fill(place / "served", data, options.m, options.ef_construction, options.quantization)
        shutil.copytree(place / "served", place / "embedded")
        self.index = Index(data, options.k, options.m, options.ef_construction, options.quantization, self.threads)
        self.index.ef, index_recall = self.beam(self.index.answers)
        self.node, ready = start_node(place / "served", place, cores=self.mine)
        self.ends.append(self.node.end)
        self.target = f"127.0.0.1:{ready['grpc_port']}"
        self.floor, port = start_floor(place, ["--dim", str(data.train.shape[1]), "--k", str(options.k)],
                                             cores=self.mine)  # fmt: skip
        self.ends.append(self.floor.end)
        self.floor_target = f"127.0.0.1:{port}"
        self.drivers = [Driver(place, f"client{number}", cores=self.clients) for number in range(options.clients)]
        self.ends += [driver.end for driver in self.drivers]
        ef, recall = self.beam(self.answers)
        self.setting = Setting(self.queries, options.k, ef, options.seconds)
        self.embedded = Embedded(place / "embedded", data.test, options.k, ef, self.cores)
        return {
            "dataset": data.name, "records": len(data.train), "dim": data.train.shape[1], "metric": data.metric,
            "k": options.k, "quantization": options.quantization,
            "cores": self.cores, "apart": options.apart, "clients": options.clients,
            "grpcio": grpc.__version__, "index": {"ef": self.index.ef, "recall": round(index_recall, 4)},
            "node": {"ef": ef, "recall": round(recall, 4)}, "rounds": options.rounds, "seconds": options.seconds,
        }  # fmt: skip

    def answers(self, ef: int) -> np.ndarray:
        """Ids that the node finds, by a client."""
        out = self.place / "answers.npy"
        self.drivers[0].tell({"do": "answers", "target": self.target, "queries": str(self.queries), "rows": BATCH,
                              "k": self.options.k, "ef": ef, "out": str(out)})  # fmt: skip
        self.drivers[0].answer(120)
        return np.load(out)

    def beam(self, answers: Any) -> tuple[int, float]:
        """The narrowest beam that reaches the recall, and the recall it has."""
        found = 0.0
        for ef in EFS:
            if ef >= self.options.k:
                found = hdf5.recall(self.data, answers(ef), self.options.k)
                if found >= self.options.recall:
                    return ef, found
        raise SystemExit(f"recall {self.options.recall} is not reached at ef {EFS[-1]}: {found:.3f}")

    def visit(self, point: Point) -> None:
        if point.side == "node":
            visit(point, self.node, self.target, self.drivers, self.setting)
        elif point.side == "floor":
            visit(point, self.floor, self.floor_target, self.drivers, self.setting)
        else:
            here = self.index if point.side == "index" else self.embedded
            assert here is not None
            take_here(point, *here.load(point.rows, point.inflight, self.setting.seconds))

    def run(self) -> None:
        """The points in rounds, in an order that turns."""
        points = list(self.points.values())
        for turn in range(self.options.rounds):
            start = turn * len(points) // self.options.rounds
            for point in points[start:] + points[:start]:
                if not point.missing:
                    self.visit(point)
            print(f"round {turn + 1} of {self.options.rounds}", flush=True)

    def ingest(self) -> list[dict[str, Any]]:
        """Durable writes, each way into a collection of its own, beside the embedded database's."""
        train = self.data.train[: self.options.ingest_records]
        matrix = self.place / "train.npy"
        np.save(matrix, train)
        rows = [ingest_embedded(self.place / "ingest", train, self.data.metric)]
        for how, lanes in INGESTS:
            rows.append(self.ingest_one(how, lanes, matrix, train))
        return rows

    def ingest_one(self, how: str, lanes: int, matrix: Path, train: np.ndarray) -> dict[str, Any]:
        name = f"ingest-{how}-{lanes}"
        create(self.target, name, train.shape[1], self.data.metric)
        before = self.node.cpu_s()
        self.drivers[0].tell({"do": "ingest", "how": how, "target": self.target, "queries": str(matrix), "low": 0,
                              "high": len(train), "lanes": lanes, "collection": name})  # fmt: skip
        answer = self.drivers[0].answer(400)
        spent = self.node.cpu_s() - before
        drop(self.target, name)
        if "missing" in answer:
            return {"how": how, "lanes": lanes, "missing": answer["missing"]}
        return {"how": how, "lanes": lanes,
                **rates(answer["records"], answer["seconds"], train.shape[1], spent, answer["cpu_s"])}  # fmt: skip

    def close(self) -> None:
        for end in reversed(self.ends):
            end()
        for here in (self.embedded, self.index):
            if here is not None:
                here.close()


def rates(records: int, seconds: float, dim: int, server_s: float, client_s: float) -> dict[str, float]:
    return {"records": records, "records_s": round(records / seconds, 1),
            "mb_s": round(records * dim * 4 / seconds / 1e6, 2), "server_us": round(server_s / records * 1e6, 2),
            "client_us": round(client_s / records * 1e6, 2)}  # fmt: skip


def create(target: str, name: str, dim: int, metric: str) -> None:
    """A collection without a graph, whose building in the background would be counted into the writes beside it."""
    with grpc.insecure_channel(target) as channel:
        schema = types_pb2.Schema(name=name, dim=dim, metric=METRICS[metric],
                                  index=types_pb2.IndexSpec(kind=types_pb2.INDEX_KIND_FLAT))  # fmt: skip
        channel.unary_unary("/vecdb.v1.Collections/Create")(
            collections_pb2.CreateCollectionRequest(schema=schema).SerializeToString(), timeout=60)  # fmt: skip


def drop(target: str, name: str) -> None:
    with grpc.insecure_channel(target) as channel:
        channel.unary_unary("/vecdb.v1.Collections/Drop")(
            collections_pb2.DropCollectionRequest(name=name).SerializeToString(), timeout=60)  # fmt: skip


def ingest_embedded(folder: Path, train: np.ndarray, metric: str) -> dict[str, Any]:
    import vecdb

    with vecdb.connect(str(folder)) as database:
        docs = database.create_collection("ingest", train.shape[1], metric, index="flat")
        cpu, began = time.process_time(), time.perf_counter()
        docs.upsert(ids=np.arange(len(train)), vectors=train)
        seconds, spent = time.perf_counter() - began, time.process_time() - cpu
    return {"how": "embedded", "lanes": 1, **rates(len(train), seconds, train.shape[1], spent, 0.0)}


def names(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.server", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--data", default="fashion-mnist", help="an HDF5 file in the ann-benchmarks layout, or a set")
    parser.add_argument("--records", type=int, help="only so many, with their own exact neighbours")
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--modes", type=names, default=["query", "ingest"])
    parser.add_argument("--inflight", type=lambda text: [int(one) for one in names(text)], default=[1, 8, 64])
    parser.add_argument("--raw", type=names, default=["raw-sync", "raw-aio", "stream"])
    parser.add_argument("--sdk", type=names, default=["sdk-sync", "sdk-async"])
    parser.add_argument("--batch", type=names, default=["raw-aio"], help="loads that send batches of 64")
    parser.add_argument("--apart", action="store_true", help="servers on one core alone, clients on the others")
    parser.add_argument("--clients", type=int, default=2, help="client processes")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--m", type=int, default=16)
    parser.add_argument("--ef-construction", type=int, default=200)
    parser.add_argument("--quantization", choices=sorted(CODED), default="sq8")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one point in one round")
    parser.add_argument("--ingest-records", type=int, default=50_000)
    parser.add_argument("--quick", action="store_true", help="made data and one short round")
    options = parser.parse_args(given)
    if options.quick:
        options.rounds, options.seconds, options.ingest_records = 1, 0.15, 1_000
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    data = made_set() if options.quick else hdf5.read(hdf5.find(options.data), limit=options.records,
                                                      queries=options.queries)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="vecdb-bench-") as folder:
        bench = Bench(options, data, Path(folder))
        try:
            about = bench.stand()
            print(json.dumps(about), flush=True)
            found: dict[str, Any] = {"about": about, "rows": [], "verdicts": [], "ingest": []}
            if "query" in options.modes:
                bench.run()
                said = report.verdicts(bench.points, BATCH, bench.cores)
                report.table(bench.points, f"{data.name}, recall {about['node']['recall']}, ef {about['node']['ef']}")
                report.tell(said)
                found["rows"] = [point.row() for point in bench.points.values()]
                found["verdicts"] = [one.row() for one in said]
            if "ingest" in options.modes:
                found["ingest"] = bench.ingest()
                report.ingest_table(found["ingest"], f"durable upserts, {data.name}, batches of 500")
            return found
        finally:
            bench.close()


def main() -> None:
    options = parse()
    found = run(options)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
