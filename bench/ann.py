"""Recall and queries per second of our indexes and of others', in one run on one machine.

    python -m bench.ann --data FILE.hdf5 --out OUT.json [--systems vecdb-hnsw,hnswlib,…] [--plot PICTURE.png]

Every system is built in turn; then the sweeps are interleaved: each round goes through the efforts, and at each effort
through the systems, in an order that turns with the round, so that whatever else the machine does hits all alike.  What
is reported is the median over the rounds.  ``--clock cpu`` counts the process's CPU seconds instead of wall seconds:
on a machine shared with others that is the steadier figure for one thread.

OUT.json is a list of rows ``{system, params, threads, mode, k, recall, qps, p50_ms, p99_ms, build_seconds,
bytes_per_vector, dataset}``.  ``mode`` is ``single`` (one query a call; milliseconds of a call) or ``batch`` (many a
call; milliseconds of a call over its queries).  ``params`` also says ``build_cpu_seconds``, ``build_threads``, the
effort and the clock.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.hdf5 import AnnSet, find, read, recall
from bench.systems import SYSTEMS, MissingError, Settings, System

BATCH = 1000
QUERIES_MIN = 50
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(slots=True)
class Point:
    """One system at one effort in one mode, over the rounds."""

    system: str
    effort: int
    mode: str
    recall: float = 0.0
    qps: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Built:
    """A system that stands, and what it took."""

    name: str
    system: System
    seconds: float
    cpu_seconds: float
    bytes_per_vector: float


def build(name: str, data: AnnSet, settings: Settings) -> Built | None:
    """Builds one system, or says why not."""
    try:
        system = SYSTEMS[name](settings)
        system.warm(data.train)
    except MissingError as reason:
        print(f"{name}: left out, {reason}", flush=True)
        return None
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    system.build(data.train)
    built = Built(name, system, time.perf_counter() - wall, time.process_time() - cpu, float(system.bytes_per_vector()))
    print(f"{name}: built in {built.seconds:.1f} s ({built.cpu_seconds:.1f} s of CPU), "
          f"{built.bytes_per_vector:.0f} bytes a vector", flush=True)  # fmt: skip
    return built


def sweep(system: System, test: np.ndarray, size: int, budget: float, clock: Callable[[], float]):
    """Asks ``size`` queries a call until all are asked or the budget of seconds is spent.

    Returns the ordinals found, the seconds of each call, and the seconds of all of them on ``clock``.
    """
    found, calls = [], []
    began, elapsed = time.perf_counter(), 0.0
    for begin in range(0, len(test), size):
        queries = test[begin : begin + size]
        tick, called = clock(), time.perf_counter()
        answer = system.search(queries)
        calls.append(time.perf_counter() - called)
        elapsed += clock() - tick
        found.append(answer)
        if time.perf_counter() - began > budget and begin + size >= QUERIES_MIN:
            break
    return np.concatenate(found), np.array(calls), elapsed


def measure(point: Point, built: Built, data: AnnSet, options: argparse.Namespace) -> None:
    """One visit to a point."""
    system = built.system
    system.set_effort(point.effort)
    size = 1 if point.mode == "single" else BATCH
    system.search(data.test[:10])
    found, calls, elapsed = sweep(system, data.test, size, options.seconds, CLOCKS[options.clock])
    if not point.qps:
        point.recall = recall(data, found, options.k)
    point.qps.append(len(found) / max(elapsed, 1e-9))
    milliseconds = calls * 1e3 / np.minimum(size, len(data.test))
    point.p50_ms.append(float(np.percentile(milliseconds, 50)))
    point.p99_ms.append(float(np.percentile(milliseconds, 99)))


def run(standing: list[Built], data: AnnSet, options: argparse.Namespace) -> list[Point]:
    """All rounds over all points, interleaved."""
    efforts = {built.name: built.system.efforts(options.sweep) for built in standing}
    points = {
        (built.name, effort, mode): Point(built.name, effort, mode)
        for built in standing
        for effort in efforts[built.name]
        for mode in options.modes
    }
    for turn in range(options.rounds):
        order = standing[turn % len(standing) :] + standing[: turn % len(standing)]
        for place in range(max(map(len, efforts.values()))):
            for mode in options.modes:
                for built in order:
                    if place < len(efforts[built.name]):
                        measure(points[built.name, efforts[built.name][place], mode], built, data, options)
        print(f"round {turn + 1} of {options.rounds}", flush=True)
    return list(points.values())


def rows_of(
    points: list[Point], standing: list[Built], data: AnnSet, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The rows of OUT.json."""
    by_name = {built.name: built for built in standing}
    rows = []
    for point in points:
        built = by_name[point.system]
        params = {
            **built.system.params(),
            built.system.effort_name: point.effort,
            "build_threads": options.build_threads,
            "build_cpu_seconds": round(built.cpu_seconds, 2),
            "clock": options.clock,
        }
        params.pop("none", None)
        rows.append({
            "system": point.system,
            "params": params,
            "threads": options.threads,
            "mode": point.mode,
            "k": options.k,
            "recall": round(point.recall, 5),
            "qps": round(float(np.median(point.qps)), 1),
            "p50_ms": round(float(np.median(point.p50_ms)), 4),
            "p99_ms": round(float(np.median(point.p99_ms)), 4),
            "build_seconds": round(built.seconds, 2),
            "bytes_per_vector": round(built.bytes_per_vector, 1),
            "dataset": data.name,
        })  # fmt: skip
    return rows


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.ann", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--data", required=True, help="an HDF5 file in the ann-benchmarks layout, or a set's name")
    parser.add_argument("--out", required=True, type=Path, help="where the rows go, as JSON")
    parser.add_argument("--plot", type=Path, help="where the recall/QPS picture goes, as PNG or SVG")
    parser.add_argument("--systems", default="vecdb-hnsw,vecdb-hnsw-sq8,hnswlib,faiss-hnsw,usearch",
                        help=f"any of {','.join(SYSTEMS)}")  # fmt: skip
    parser.add_argument("--m", type=int, default=16)
    parser.add_argument("--ef-construction", type=int, default=200)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="threads of a search")
    parser.add_argument("--build-threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="only so many records, with their own exact neighbours")
    parser.add_argument("--queries", type=int, help="only so many queries")
    parser.add_argument("--sweep", type=numbers, default=numbers("10,20,30,40,60,80,120,160,240,320,480,640"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="at most so long at one point of a round")
    parser.add_argument("--modes", type=lambda text: text.split(","), default=["single", "batch"])
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--recall", type=float, default=0.95, help="the recall at which the table compares")
    options = parser.parse_args()
    unknown = [name for name in options.systems.split(",") if name not in SYSTEMS]
    if unknown:
        parser.error(f"no system {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    if not set(options.modes) <= {"single", "batch"}:
        parser.error("--modes takes single, batch or both")
    return options


def main() -> None:
    options = parse()
    data = read(find(options.data), limit=options.limit, queries=options.queries)
    print(
        f"{data.name}: {len(data.train):,} x {data.train.shape[1]}, {data.metric}, {len(data.test):,} queries",
        flush=True,
    )
    settings = Settings(
        data.metric, data.train.shape[1], options.k, options.m, options.ef_construction, options.build_threads,
        options.threads,
    )  # fmt: skip
    built = [build(name, data, settings) for name in options.systems.split(",")]
    standing = [system for system in built if system is not None]
    if not standing:
        raise SystemExit("no system to measure")
    rows = rows_of(run(standing, data, options), standing, data, options)
    for system in standing:
        system.system.close()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    report.table(rows, options.recall)
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        report.picture(rows, options.plot)


if __name__ == "__main__":
    main()
