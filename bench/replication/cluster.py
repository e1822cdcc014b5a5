"""What a cluster of three does with writes, kills and a lost disk, seen through the SDK."""

import argparse
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import vecdb
from bench.replication import disk
from bench.replication.nodes import NAMES, Cluster, healthy, leader, replica, wait_until
from bench.replication.report import COMMIT_FSYNCS, COMMIT_MS
from vecdb.core.errors import VecdbError

PARTS = ("writes", "failover", "restore")
LARGE_WINDOWS = (8, 16)
"""Batches of 1 MB under way: 40 MB/s are asked of them."""
SETTLE_S = 2.0
"""Between a cluster that is whole again and the next kill, so that no kill meets the last one's elections."""
FAILOVER_COLLECTION, RESTORE_DIM = "failover", 768
TRICKLE = 20
"""Records a second that go on being written while a replica is restored."""


def measure(place: Path, options: argparse.Namespace, parts: Collection[str] = PARTS) -> dict[str, Any]:
    """Those ``parts``, on one cluster; ``rows`` are for people."""
    cluster = Cluster(place)
    try:
        with vecdb.connect(cluster.url) as db:
            found: dict[str, Any] = {"fsync": disk.fsyncs(place)}
            if "writes" in parts:
                found["writes"] = writes(db, options.rounds, options.seconds)
            if "failover" in parts:
                found["failover"] = failover(cluster, db, options.kills)
            if "restore" in parts:
                found["restore"] = restore(cluster, db, options.restore_mb)
    finally:
        cluster.end()
    return {**found, "rows": rows(found)}


def writes(db: vecdb.Database, rounds: int, seconds: float) -> dict[str, Any]:
    """Each load in every round, one after the other; medians, figure by figure."""
    loads: dict[str, Callable[[str], dict[str, Any]]] = {
        "batches_51kb": lambda name: batches(db, name, 128, 100, 16, seconds),
        **{f"batches_1mb_{window}": partial(_large, db, window, seconds) for window in LARGE_WINDOWS},
        "single": lambda name: batches(db, name, 128, 1, 1, seconds),
        "ingest": lambda name: ingest(db, name, seconds)}  # fmt: skip
    runs: dict[str, list[dict[str, Any]]] = {what: [] for what in loads}
    for turn in range(rounds):
        for what, load in loads.items():
            name = f"{what}-{turn}"
            runs[what].append(load(name))
            db.drop_collection(name)
    return {what: {"runs": each, **{key: median(run[key] for run in each) for key in each[0] if key != "details"}}
            for what, each in runs.items()}  # fmt: skip


def _large(db: vecdb.Database, window: int, seconds: float, name: str) -> dict[str, Any]:
    return batches(db, name, 768, 341, window, seconds)


def _together(threads: int, work: Callable[[int], None]) -> float:
    """Run ``work`` in threads; returns the seconds until the last has ended."""
    began = time.perf_counter()
    running = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(threads)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    return time.perf_counter() - began


def batches(db: vecdb.Database, name: str, dim: int, count: int, threads: int, seconds: float) -> dict[str, Any]:
    """Upserts of ``count`` new vectors each, ``threads`` under way: MB/s of vectors, and how long a call takes."""
    collection = db.create_collection(name, dim=dim, metric="l2")
    vectors = np.random.default_rng(3).standard_normal((count, dim), dtype=np.float32)
    took: list[float] = []
    until = time.perf_counter() + seconds

    def work(number: int) -> None:
        first = number << 32
        while (began := time.perf_counter()) < until:
            collection.upsert(ids=list(range(first, first + count)), vectors=vectors)
            took.append(time.perf_counter() - began)
            first += count

    spent = _together(threads, work)
    took.sort()
    return {"bytes": vectors.nbytes, "threads": threads, "mb_s": round(len(took) * vectors.nbytes / 1e6 / spent, 1),
            "records_s": round(len(took) * count / spent), "p50_ms": round(median(took) * 1e3, 1),
            "p99_ms": round(took[int(len(took) * 0.99)] * 1e3, 1)}  # fmt: skip


def ingest(db: vecdb.Database, name: str, seconds: float) -> dict[str, Any]:
    """Batches of 1,000 for at least ten seconds; ``details``: what is indexed when the last is acknowledged."""
    out = batches(db, name, 128, 1_000, 4, max(seconds, 10.0))
    told = db.collection(name).describe()
    return {**out, "records": told.records, "details": told.details}


def failover(cluster: Cluster, db: vecdb.Database, kills: int) -> dict[str, Any]:
    """Kill the leader, again and again: how long until the next write is acknowledged."""
    collection = db.create_collection(FAILOVER_COLLECTION, dim=128, metric="l2")
    vector = np.ones((1, 128), np.float32)
    gaps: list[float] = []
    for number in range(kills):
        wait_until(lambda: healthy(db, FAILOVER_COLLECTION), "a whole cluster")
        time.sleep(SETTLE_S)
        victim = leader(db, FAILOVER_COLLECTION)
        killed = cluster.kill(victim)
        collection.upsert(ids=[number], vectors=vector, timeout=60.0)
        gaps.append(time.monotonic() - killed)
        cluster.start(victim)
        cluster.ready(victim)
    found = collection.count(consistency="linearizable")
    if found != kills:
        raise SystemExit(f"{kills} writes were acknowledged, {found} are there")
    return {"kills": kills, "median_s": round(median(gaps), 2), "worst_s": round(max(gaps), 2)}


def restore(cluster: Cluster, db: vecdb.Database, megabytes: int) -> dict[str, Any]:
    """A follower loses its disk; how long until its replica is a member again and holds everything."""
    name = "restore"
    collection = db.create_collection(name, dim=RESTORE_DIM, metric="l2")
    step, rows_mb = 1_000, RESTORE_DIM * 4 * 1_000 / 1e6
    count = int(megabytes / rows_mb) * step
    random = np.random.default_rng(5)
    for first in range(0, count, step):
        collection.upsert(ids=list(range(first, first + step)),
                          vectors=random.standard_normal((step, RESTORE_DIM), dtype=np.float32))  # fmt: skip
    wait_until(lambda: healthy(db, name), "a whole cluster")
    victim = next(node for node in NAMES if node != leader(db, name))
    cluster.kill(victim)
    cluster.wipe(victim)
    writer = _Trickle(collection, count)
    cluster.start(victim)
    cluster.ready(victim)
    began = time.monotonic()
    wait_until(lambda: healthy(db, name, 100) and replica(db, name, victim), "a restored replica", 600.0, 0.2)
    spent = time.monotonic() - began
    written = writer.end()
    verified = db.admin.verify_shard(name)
    return {"mb": round(count / step * rows_mb), "seconds": round(spent, 1), "written_meanwhile": written,
            "agree": verified.agree and verified.complete}  # fmt: skip


class _Trickle:
    """Writes that go on meanwhile, a record at a time."""

    def __init__(self, collection: Any, first: int) -> None:
        self._collection, self._next, self._first = collection, first, first
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        vector = np.zeros((1, RESTORE_DIM), np.float32)
        while not self._stop.wait(1 / TRICKLE):
            try:
                self._collection.upsert(ids=[self._next], vectors=vector)
            except VecdbError:
                continue
            self._next += 1

    def end(self) -> int:
        self._stop.set()
        self._thread.join()
        return self._next - self._first


def rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, how much it is, and what it should be."""
    out: list[tuple[str, str, str]] = []
    if "writes" in found:
        out += _write_rows(found["writes"], found["fsync"]["p50_ms"])
    if "failover" in found:
        kills = found["failover"]
        out.append((f"leader killed, {kills['kills']} times: until a write is acknowledged",
                    f"median {kills['median_s']} s, worst {kills['worst_s']} s", "median 1.5 s, worst 3 s"))
    if "restore" in found:
        again = found["restore"]
        out.append((f"replica of {again['mb']:,} MB from nothing, {again['written_meanwhile']} writes meanwhile",
                    f"{again['seconds']} s, digests {'agree' if again['agree'] else 'DIFFER'}", "60 s for 2 GB"))
    return out


def _write_rows(found: dict[str, Any], fsync: float) -> list[tuple[str, str, str]]:
    small, one, many = found["batches_51kb"], found["single"], found["ingest"]
    aim = COMMIT_FSYNCS * fsync + COMMIT_MS
    large = [(window, found[f"batches_1mb_{window}"]) for window in LARGE_WINDOWS]
    return [
        ("upserts of 100 x 128-d (51 KB), 16 under way", f"{small['mb_s']:.1f} MB/s, p50 {small['p50_ms']:.1f} ms", ""),
        *((f"upserts of 341 x 768-d (1 MB), {window} under way", f"{run['mb_s']:.1f} MB/s, p50 {run['p50_ms']:.1f} ms",
           "40 MB/s") for window, run in large),
        ("upserts of one record, one under way", f"p50 {one['p50_ms']:.1f} ms, p99 {one['p99_ms']:.1f} ms",
         f"p50 {aim:.1f} ms ({COMMIT_FSYNCS} fsyncs of {fsync} and {COMMIT_MS:.0f})"),
        ("ingest of 128-d in batches of 1,000, indexed in the background", f"{many['records_s']:,.0f} records/s",
         "20,000 records/s"),
    ]  # fmt: skip
