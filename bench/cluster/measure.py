"""One layout after the other: records written, queries asked, leaders killed, shards changed."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import hdf5
from bench.cluster.changes import Clients, failover, reshaped
from bench.cluster.nodes import Nodes
from bench.replication.nodes import wait_until
from bench.server.points import Point, Setting, visit
from bench.server.processes import Driver
from vecdb.segment.growing import GRAPH_STEP

EFS = (10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640)
ROWS = 64
QUERIED, CHANGED = "bench", "changed"
CHANGED_SHARDS = 3
INDEXED_S = 300.0
IDLE_S = 2.0
CLIENTS = 2
PATHS: dict[str, dict[str, Any]] = {"coordinator": {}, "direct": {"direct": True}}


class Bench:
    """The cluster, its clients and its data; :meth:`close` ends it."""

    def __init__(self, options: argparse.Namespace, data: hdf5.AnnSet, place: Path) -> None:
        self.options, self.data, self.place = options, data, place
        self.files = {"read": place / "queries.npy", "write": place / "records.npy"}
        np.save(self.files["read"], data.test)
        np.save(self.files["write"], data.train)
        self.drivers = [Driver(place, f"client{number}", [sys.executable, "-m", "bench.cluster.drive"])
                        for number in range(CLIENTS)]  # fmt: skip
        try:
            self.nodes = Nodes(place, max(options.nodes))
        except BaseException:
            self._end_clients()
            raise

    def close(self) -> None:
        self.nodes.end()
        self._end_clients()

    def _end_clients(self) -> None:
        for driver in self.drivers:
            driver.end()

    def layout(self, count: int, factor: int) -> dict[str, Any]:
        """Everything of ``count`` shard nodes and ``factor`` replicas of each shard."""
        self.nodes.grow(count)
        row: dict[str, Any] = {"nodes": count, "replicas": factor, "shards": count}
        row["ingest"] = self.fill(QUERIED, count, factor)
        self.settle(QUERIED, factor)
        row["ef"], row["recall"] = self.beam(QUERIED)
        row["idle_percent"] = self.idle()
        if "query" in self.options.parts:
            row["points"] = self.asked(row["ef"])
        if "failover" in self.options.parts and factor >= 3:
            row["failover"] = failover(self.nodes, self.clients(QUERIED, count), factor, self.options.kills)
        self.nodes.db.drop_collection(QUERIED)
        if "changes" in self.options.parts:
            row["changes"] = self.changed(factor, row["ef"])
        return row

    def clients(self, collection: str, shards: int) -> Clients:
        drivers = dict(zip(("read", "write"), self.drivers, strict=True))
        return Clients(drivers, self.files, self.nodes.targets, collection, shards)

    # --- writing ----------------------------------------------------------------------------------

    def fill(self, name: str, shards: int, factor: int) -> dict[str, Any]:
        """Write every record; how many a second were acknowledged, and how many in graphs, until the last was."""
        options, data = self.options, self.data
        docs = self.nodes.db.create_collection(
            name, data.train.shape[1], data.metric, index="hnsw", m=options.m, ef_construction=options.ef_construction,
            quantization=options.quantization, shards=shards, replication_factor=factor)  # fmt: skip
        self.nodes.level(name, factor)
        time.sleep(1.0)  # leaders are spread meanwhile
        driver = self.drivers[0]
        before = self.nodes.cpu_s()
        driver.tell({"do": "ingest", "target": self.nodes.targets, "collection": name,
                     "vectors": str(self.files["write"])})  # fmt: skip
        told = driver.answer(INDEXED_S)
        acknowledged = self.nodes.cpu_s() - before
        wait_until(lambda: indexed(docs.describe().details), "an index", INDEXED_S, 0.02)
        linked = time.monotonic()
        records = told["records"]
        if records != len(data.train):
            raise SystemExit(f"{len(data.train)} records were written, and {records} acknowledged")
        return {"records": records, "acknowledged_s": round(records / (told["ended"] - told["began"])),
                "indexed_s": round(records / (linked - told["began"])),
                "nodes_us": round(acknowledged / records * 1e6, 1)}  # fmt: skip

    def settle(self, name: str, factor: int) -> None:
        """Sealed and merged on every replica, so that nothing goes on behind the queries."""
        self.nodes.db.collection(name).optimize()
        self.nodes.level(name, factor)

    def idle(self) -> float:
        """What all nodes together take of a core when nobody asks them for anything, in percent."""
        before, began = self.nodes.cpu_s(), time.monotonic()
        time.sleep(IDLE_S)
        return round((self.nodes.cpu_s() - before) / (time.monotonic() - began) * 100, 1)

    # --- asking -----------------------------------------------------------------------------------

    def answers(self, name: str, ef: int) -> np.ndarray:
        out = self.place / "answers.npy"
        self.drivers[0].tell({"do": "answers", "target": self.nodes.first, "queries": str(self.files["read"]),
                              "rows": ROWS, "k": self.options.k, "ef": ef, "collection": name,
                              "out": str(out)})  # fmt: skip
        self.drivers[0].answer(120)
        found: np.ndarray = np.load(out)
        return found

    def recall(self, name: str, ef: int) -> float:
        return hdf5.recall(self.data, self.answers(name, ef), self.options.k)

    def beam(self, name: str) -> tuple[int, float]:
        """The narrowest beam that reaches the recall, by halving, and the recall it has."""
        efs = [ef for ef in EFS if ef >= self.options.k]
        low, high = 0, len(efs) - 1
        found = {high: self.recall(name, efs[high])}
        if found[high] < self.options.recall:
            raise SystemExit(f"recall {self.options.recall} is not reached at ef {efs[high]}: {found[high]:.3f}")
        while low < high:
            middle = (low + high) // 2
            found[middle] = self.recall(name, efs[middle])
            if found[middle] >= self.options.recall:
                high = middle
            else:
                low = middle + 1
        return efs[high], round(found[high], 4)

    def asked(self, ef: int) -> list[dict[str, Any]]:
        """The points in rounds, in an order that turns."""
        setting = {path: Setting(self.files["read"], self.options.k, ef, self.options.seconds, QUERIED, sdk)
                   for path, sdk in PATHS.items()}  # fmt: skip
        points = [Point(path, "sdk-sync", inflight) for inflight in self.options.inflight for path in PATHS]
        for turn in range(self.options.rounds):
            start = turn % len(points)
            for point in points[start:] + points[:start]:
                visit(point, self.nodes, self.nodes.targets, self.drivers, setting[point.side])
        return [point.row() for point in points]

    # --- changing ---------------------------------------------------------------------------------

    def changed(self, factor: int, ef: int) -> dict[str, Any]:
        """Shards of a collection of three, which a client goes on writing; afterwards everything is there."""
        self.fill(CHANGED, CHANGED_SHARDS, factor)
        self.settle(CHANGED, factor)
        found = reshaped(self.nodes, self.clients(CHANGED, CHANGED_SHARDS), factor)
        count = self.nodes.db.collection(CHANGED).count(consistency="linearizable")
        if count != len(self.data.train):
            raise SystemExit(f"{len(self.data.train)} records before shards were changed, and {count} after it")
        found["recall"] = round(self.recall(CHANGED, ef), 4)
        self.nodes.db.drop_collection(CHANGED)
        return found


def indexed(details: dict[str, Any]) -> bool:
    """Whether graphs hold all records that they are meant to, as a collection's description tells: the last few of a
    segment that grows are scanned on purpose.
    """
    return all(one.get("scanned", 0) < max(GRAPH_STEP, one.get("linked", 0) // 64)
               for one in (segment["index"] for segment in details["segments"]))  # fmt: skip
