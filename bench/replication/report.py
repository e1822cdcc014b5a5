"""What a run of :mod:`bench.replication` says."""

from typing import Any

from rich.console import Console
from rich.table import Table

COMMIT_FSYNCS, COMMIT_MS = 3, 2.0
"""The aim for one small commit: so many of the disk's fsyncs, and so much more."""


def tell(found: dict[str, Any]) -> None:
    console = Console(width=132)
    if "log" in found:
        log(console, found["log"])
    if "cluster" in found:
        cluster(console, found["cluster"])


def log(console: Console, part: dict[str, Any]) -> None:
    fsync = part["fsync"]
    console.print(f"the disk: one fsync of 512 bytes {fsync['p50_ms']:.2f} ms (p99 {fsync['p99_ms']:.2f}), "
                  f"{fsync['a_second']:,.0f} a second")  # fmt: skip
    table = Table(title="replicated log, three processes; ours with fsync and mutual TLS, stock without either")
    for name in ("command", "under way", "stock MB/s", "ours MB/s", "ratio", "stock /s", "ours /s", "stock p50 ms",
                 "ours p50 ms", "ours p99 ms", "p50 / fsync"):  # fmt: skip
        table.add_column(name, justify="right")
    for row in part["rows"]:
        ours, stock = row["ours"], row.get("stock")
        ratio = ours["mb_s"] / stock["mb_s"] if stock and stock["mb_s"] else None
        table.add_row(_size(row["bytes"]), str(row["window"]), _of(stock, "mb_s"), _of(ours, "mb_s"),
                      "" if ratio is None else f"{ratio:.1f} x", _of(stock, "a_second", 0), _of(ours, "a_second", 0),
                      _of(stock, "p50_ms"), _of(ours, "p50_ms", 2), _of(ours, "p99_ms"),
                      f"{ours['p50_ms'] / fsync['p50_ms']:.1f}" if ours["p50_ms"] else "")  # fmt: skip
    console.print(table)
    for row in part["idle"]:
        console.print(f"{row['groups']} groups that do nothing: {row['core_percent']} % of a core in a node (most "
                      f"{row['core_percent_most']} %), terms up to {row['term_most']}")  # fmt: skip


def cluster(console: Console, part: dict[str, Any]) -> None:
    table = Table(title="three nodes, through the SDK")
    for name in ("what", "figure", "aim"):
        table.add_column(name)
    for name, figure, aim in part["rows"]:
        table.add_row(name, figure, aim)
    console.print(table)


def _size(count: int) -> str:
    return f"{count:,} B"


def _of(side: dict[str, Any] | None, key: str, digits: int = 1) -> str:
    """A figure; empty where it was not taken, a dash where nothing was committed."""
    if side is None:
        return ""
    return "-" if side[key] is None else f"{side[key]:,.{digits}f}"
