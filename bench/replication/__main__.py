"""Replication: the stock library against ours by size of command, and a cluster's writes, failovers and restore.

    python -m bench.replication [--parts log,writes,failover,restore] [--rounds N] [--seconds S]
                                [--out build/replication.json]
    python -m bench.replication --quick          # seconds: does the harness work

``log``: three processes of nothing but the replicated log, on loopback; the stock library as it ships (it knows no
fsync), ours with every promise on stable storage and mutual TLS.  The others: three ``vecdb serve`` and the SDK.
``writes``: batches as users send them, those of 1 MB with 8 and with 16 under way (40 MB/s is the aim), single writes,
ingest with indexing in the background.  ``failover``: killed leaders.  ``restore``: a replica from nothing.
``cluster``: these three on one cluster.  Medians of the rounds; the disk's own fsync is measured beside them.
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from bench.replication import cluster, disk, processes, report

LOADS = ((100, 1), (100, 64), (51_200, 1), (51_200, 16), (1_048_576, 8), (3_145_728, 4))
"""Bytes of a command, and how many are under way."""
GROUPS = (1, 64, 500)
"""Groups of a process that do nothing but stay together."""
STOCK_MOST = 1 << 20
"""Above it the stock library makes no progress: its queue fills and nothing is committed."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.replication", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--parts", default="log,cluster", help="of: log, writes, failover, restore, cluster")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--kills", type=int, default=50, help="leaders killed for the failover figures")
    parser.add_argument("--restore-mb", type=int, default=2_048, help="size of the replica that is restored")
    parser.add_argument("--place", type=Path, default=None, help="folder for the nodes' data (a temporary one)")
    parser.add_argument("--out", type=Path, default=Path("build/replication.json"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.kills, options.restore_mb = 1, 1.0, 1, 32
    parts = options.parts.split(",")
    if unknown := set(parts) - {"log", "cluster", *cluster.PARTS}:
        parser.error(f"--parts: there is no {', '.join(sorted(unknown))}")
    place = Path(tempfile.mkdtemp(prefix="vecdb-bench-", dir=options.place))
    found: dict[str, Any] = {"about": {"cores": len(os.sched_getaffinity(0)), "rounds": options.rounds,
                                       "seconds": options.seconds}}  # fmt: skip
    try:
        if "log" in parts:
            found["log"] = log(place, options)
        if asked := [part for part in cluster.PARTS if part in parts or "cluster" in parts]:
            found["cluster"] = cluster.measure(place, options, asked)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    report.tell(found)


def log(place: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Each load on the stock library and on ours, one after the other, in every round."""
    rows: dict[tuple[int, int], dict[str, list[dict[str, Any]]]] = {}
    fsyncs, idle = [], []
    for turn in range(options.rounds):
        fsyncs.append(disk.fsyncs(place, min(2.0, options.seconds)))
        for name, make in (("stock", processes.stock), ("ours", processes.ours)):
            at = place / f"{name}.{turn}"
            at.mkdir()
            trio = make(at)
            try:
                for size, window in LOADS:
                    if name == "stock" and size > STOCK_MOST:
                        continue
                    result = trio.load(size, window, options.seconds)
                    rows.setdefault((size, window), {}).setdefault(name, []).append(result)
                if name == "ours" and turn == 0:
                    idle = [trio.idle(groups, options.seconds) for groups in GROUPS]
            finally:
                trio.end()
                shutil.rmtree(at, ignore_errors=True)
    table = [{"bytes": size, "window": window, **{name: _middle(runs) for name, runs in sides.items()}}
             for (size, window), sides in rows.items()]  # fmt: skip
    return {"fsync": _middle(fsyncs), "rows": table, "idle": idle}


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, figure by figure; of runs in which nothing was committed a latency is missing."""
    out = {}
    for key in runs[0]:
        values = [run[key] for run in runs if isinstance(run[key], int | float)]
        out[key] = median(values) if values else None
    return out


if __name__ == "__main__":
    main()
