"""``vecdb plan --qps``: the cluster that a collection and its queries need, and what that is computed from."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecdb.cli.output import Output, count, size

if TYPE_CHECKING:
    from vecdb.core.sizing import Sizing, Workload


@dataclass(frozen=True, slots=True)
class Asked:
    """``node_*``: None for a node like this machine."""

    qps: float
    replication_factor: int
    node_cores: int | None
    node_memory: int | None
    network_us: float
    recalibrate: bool


def cache_path() -> Path:
    """Where what was measured here is kept."""
    return Path.home() / ".cache" / "vecdb" / "calibration.json"


def show(out: Output, work: "Workload", found: "Sizing", asked: Asked, show_size: Callable[[], None],
         size_json: Callable[[], dict[str, Any]]) -> None:
    """Measure, or know what was measured; compute, and print, with ``--json`` one value."""
    from vecdb.cli.calibrating import calibration
    from vecdb.cluster.capacity import MOST_REPLICAS, Demand, NodeShape, assumptions, plan
    from vecdb.runtime.memory import memory

    demand = Demand(work, asked.qps, asked.replication_factor, asked.network_us)
    measured = calibration(work.schema, found.index, cache_path(), anew=asked.recalibrate, say=out.note)
    node = NodeShape(asked.node_cores or os.cpu_count() or 1, asked.node_memory or memory().total_bytes)
    made, told = plan(demand, node, measured), assumptions(demand, node, measured)
    if out.as_json:
        out.emit({**size_json(), "cluster": {**asdict(made), "node": asdict(node), "calibration": measured.to_json(),
                                             "assumptions": list(told)}})
        return
    show_size()
    rows = [
        ["nodes", count(made.nodes), ", ".join(f"{name} {number}" for name, number in made.nodes_for.items()) +
         f": {made.bound} decides"],
        ["shards", count(made.shards), f"of {count(made.shard_records)} records, {made.replicas} replicas of each"],
        ["memory of a node", size(made.node_memory_bytes), f"of {size(node.memory_bytes)}, for segments"],
        ["disk of a node", size(made.node_disk_bytes), "with room for merges and replicas on their way"],
        ["latency p50", f"{made.p50_ms:.1f} ms", f"at {asked.qps:g} queries a second"],
        ["latency p99", f"{made.p99_ms:.1f} ms", "of the slowest of the shards"],
        ["CPU of a query", f"{made.query_cpu_us / 1e3:.2f} ms", "over all nodes"],
    ]
    out.table(f"a cluster for {asked.qps:g} queries a second, nodes of {node.cores} cores and "
              f"{size(node.memory_bytes)}", ["", "", ""], rows, left=(0, 2))
    for line in told:
        out.note(line)
    if made.clusters > 1:
        out.warn(f"a collection has at most {MOST_REPLICAS} replicas of a shard: this is {made.clusters} clusters side "
                 "by side, each with all records and its part of the queries")
