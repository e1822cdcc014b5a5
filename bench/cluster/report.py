"""What a run of :mod:`bench.cluster` says: one table of queries, one of everything else."""

from collections.abc import Iterable
from typing import Any

from rich.table import Table

from bench.server.report import console

QUERIES = ("shard nodes", "replicas", "way", "in flight", "QPS", "p50 ms", "p99 ms", "nodes us", "client us")
OTHERS = ("nodes", "replicas", "recall@10 (ef)", "writes/s", "indexed/s", "kill: writes", "kill: reads", "move",
          "split", "merge", "errors")  # fmt: skip
CHANGES = ("move", "split", "merge")


def tell(found: dict[str, Any]) -> None:
    """Both tables, and below them what changes did to the clients' calls."""
    about = found["about"]
    print(f"{about['command']}: vecdb {about['vecdb']}, Python {about['python']}, grpcio {about['grpcio']}, "
          f"NumPy {about['numpy']}; {about['dataset']} ({about['records']:,} x {about['dim']}, "
          f"{about['metric']})")  # fmt: skip
    print(f"ALL nodes (3 coordinators beside the shard nodes) and the clients share the {about['cores']} cores of one "
          "machine: what is measured is the work of each layout, not how a cluster scales")  # fmt: skip
    _print("queries, one a call, by the SDK; medians of rounds", QUERIES, queries(found["rows"]))
    _print("records acknowledged and indexed a second; ms: gaps after kills (median, worst), and what changes took",
           OTHERS, others(found["rows"]))
    for row in found["rows"]:
        print(f"{row['nodes']} nodes, {row['replicas']} replicas: all nodes together take {row['idle_percent']} % of a "
              "core when idle; it is in the columns of CPU time, too")  # fmt: skip
    for line in calls(found["rows"]):
        print(line)


def _print(title: str, headings: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    grid = Table(title=title)
    for heading in headings:
        grid.add_column(heading, justify="right")
    for row in rows:
        grid.add_row(*row)
    console().print(grid)


def queries(rows: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each layout, way and number of calls in flight."""
    return [(str(row["nodes"]), str(row["replicas"]), point["side"], str(point["inflight"]), f"{point['qps']:,.0f}",
             f"{point['p50_ms']:.2f}", f"{point['p99_ms']:.2f}", f"{point['server_us']:,.0f}",
             f"{point['client_us']:,.0f}")
            for row in rows for point in row.get("points", [])]  # fmt: skip


def others(rows: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each layout; a dash for what it has not, as a move where every node holds the shard."""
    out = []
    for row in rows:
        kills, changes = row.get("failover"), row.get("changes", {})
        gaps = ["-" if kills is None else f"{kills[f'{what}_median_ms']:,}, {kills[f'{what}_worst_ms']:,}"
                for what in ("writes", "reads")]  # fmt: skip
        took = [f"{changes[kind]['seconds'] * 1e3:,.0f}" if kind in changes else "-" for kind in CHANGES]
        out.append((str(row["nodes"]), str(row["replicas"]), f"{row['recall']:.3f} ({row['ef']})",
                    f"{row['ingest']['acknowledged_s']:,}", f"{row['ingest']['indexed_s']:,}", *gaps, *took,
                    str(errors(row))))  # fmt: skip
    return out


def _seen(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What was done and what clients saw of it."""
    kills = [(f"kill of {one['node']}", one) for one in row.get("failover", {}).get("kills", [])]
    changes = row.get("changes", {})
    return kills + [(kind, changes[kind]) for kind in CHANGES if kind in changes]


def errors(row: dict[str, Any]) -> int:
    """Exceptions that a client of this layout met, whatever was done."""
    return sum(sum(seen[what]["errors"].values()) for _, seen in _seen(row) for what in ("reads", "writes"))


def calls(rows: Iterable[dict[str, Any]]) -> list[str]:
    """A line for everything that was done under load."""
    out = []
    for row in rows:
        for name, seen in _seen(row):
            said = []
            for what in ("writes", "reads"):
                one = seen[what]
                took = "none succeeded" if one["p50_ms"] is None else \
                    f"p50 {one['p50_ms']} p99 {one['p99_ms']} longest {one['longest_ms']} ms"
                wrong = "".join(f"; {count} x {error}" for error, count in one["errors"].items())
                said.append(f"{one['calls']} {what} ({took}{wrong})")
            out.append(f"{row['nodes']} nodes, {row['replicas']} replicas, {name}: {', '.join(said)}")
        if "changes" in row:
            out.append(f"{row['nodes']} nodes, {row['replicas']} replicas: recall@10 {row['recall']:.3f} before, "
                       f"{row['changes']['recall']:.3f} in the changed collection")  # fmt: skip
    return out
