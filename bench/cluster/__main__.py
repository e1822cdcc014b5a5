"""A cluster of real processes: queries, writes, kills and changes, by shard nodes and replicas.

    python -m bench.cluster [--nodes 1,2,3] [--replicas 1,3] [--data glove-100] [--out build/cluster.json]
    python -m bench.cluster --quick                      # made data, a minute: does the harness work
    python -m bench.cluster --tell build/cluster-*.json  # one table of runs made in parts

Three coordinators and the shard nodes are ``vecdb serve`` on loopback with mutual TLS between them, the clients
processes of their own.  A collection has a shard for each shard node.  Each layout is filled through the coordinators,
asked by the SDK through them and directly, with 1 and 8 calls in flight, at the narrowest beam that reaches the recall
asked for; where shards have three replicas their leaders are killed under load; and of a collection of three shards one
is moved and split and the two others are merged while clients read and write.  ``--parts query,failover,changes``.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vecdb
from bench import hdf5
from bench.cluster import report
from bench.cluster.gaps import layouts
from bench.cluster.measure import Bench
from bench.server.__main__ import made_set, names

PARTS = ("query", "failover", "changes")


def numbers(text: str) -> list[int]:
    return [int(one) for one in names(text)]


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--nodes", type=numbers, default=[1, 2, 3], help="shard nodes; a run grows through them")
    parser.add_argument("--replicas", type=numbers, default=[1, 3], help="of a shard; more than nodes are left out")
    parser.add_argument("--parts", type=names, default=list(PARTS))
    parser.add_argument("--data", default="glove-100", help="an HDF5 file in the ann-benchmarks layout, or a set")
    parser.add_argument("--records", type=int, default=60_000, help="with their own exact neighbours")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--inflight", type=numbers, default=[1, 8])
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--m", type=int, default=16)
    parser.add_argument("--ef-construction", type=int, default=200)
    parser.add_argument("--quantization", choices=("sq8", "none"), default="sq8")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one point in one round")
    parser.add_argument("--kills", type=int, default=3, help="leaders killed")
    parser.add_argument("--place", type=Path, default=None, help="folder for the nodes' data (a temporary one)")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--tell", type=Path, nargs="+", help="measure nothing; one table of earlier runs")
    parser.add_argument("--quick", action="store_true", help="made data, one short round, one kill")
    options = parser.parse_args(given)
    if options.quick:
        options.rounds, options.seconds, options.kills, options.nodes = 1, 0.3, 1, [1, 3]
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"--parts: {part!r} is none of {', '.join(PARTS)}")
    if not options.tell and not layouts(options.nodes, options.replicas):
        parser.error("--replicas: none is possible on so few nodes")
    return options


def about(options: argparse.Namespace, data: hdf5.AnnSet) -> dict[str, Any]:
    return {"command": " ".join(["python -m bench.cluster", *sys.argv[1:]]), "vecdb": vecdb.__version__,
            "python": platform.python_version(), "grpcio": version("grpcio"), "numpy": version("numpy"),
            "cores": len(os.sched_getaffinity(0)), "dataset": data.name, "records": len(data.train),
            "dim": data.train.shape[1], "metric": data.metric, "k": options.k, "quantization": options.quantization,
            "rounds": options.rounds, "seconds": options.seconds, "kills": options.kills}  # fmt: skip


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every layout; what was measured before something failed is written all the same."""
    data = made_set() if options.quick else hdf5.read(hdf5.find(options.data), limit=options.records,
                                                      queries=options.queries)  # fmt: skip
    found: dict[str, Any] = {"about": about(options, data), "rows": []}
    with tempfile.TemporaryDirectory(prefix="vecdb-bench-", dir=options.place) as folder:
        bench = Bench(options, data, Path(folder))
        try:
            for count, factor in layouts(options.nodes, options.replicas):
                began = time.monotonic()
                found["rows"].append(bench.layout(count, factor))
                print(f"{count} shard nodes, {factor} replicas: {time.monotonic() - began:.0f} s", flush=True)
        finally:
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            bench.close()
    return found


def together(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One of several: rows by their layout, a later run's in place of an earlier one's; refused if they differ in what
    was measured."""
    same = [{key: value for key, value in one["about"].items() if key != "command"} for one in runs]
    for other in same[1:]:
        if other != same[0]:
            differ = sorted(key for key in same[0] if other.get(key) != same[0][key])
            raise SystemExit(f"these runs are not of one kind: {', '.join(differ)} differ")
    rows = {(row["nodes"], row["replicas"]): row for one in runs for row in one["rows"]}
    command = "; ".join(one["about"]["command"] for one in runs)
    return {"about": {**runs[0]["about"], "command": command}, "rows": [rows[key] for key in sorted(rows)]}


def main() -> None:
    options = parse()
    if options.tell:
        report.tell(together([json.loads(path.read_text(encoding="utf-8")) for path in options.tell]))
    else:
        report.tell(run(options))


if __name__ == "__main__":
    main()
