"""What a run of :mod:`bench.ann` says: a table at one recall, and the picture of all."""

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
REFERENCE = "hnswlib"


def frontier(rows: list[Row]) -> list[Row]:
    """The rows that no other row beats in both recall and QPS, by ascending recall."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row["recall"], -row["qps"])):
        if not best or row["qps"] > best[-1]["qps"]:
            best.append(row)
    return best[::-1]


def qps_at(rows: list[Row], recall: float) -> tuple[float, str] | None:
    """QPS at a recall, on the frontier, log QPS linear in recall between points; None where it is never reached.

    With the figure comes ``""``, or ``">="`` when even the least effort has more recall than asked for.
    """
    best = frontier(rows)
    above = [row for row in best if row["recall"] >= recall]
    below = [row for row in best if row["recall"] < recall]
    if not above:
        return None
    if not below:
        return above[0]["qps"], ">="
    low, high = below[-1], above[0]
    share = (recall - low["recall"]) / (high["recall"] - low["recall"])
    return math.exp((1 - share) * math.log(low["qps"]) + share * math.log(high["qps"])), ""


def of(rows: list[Row], system: str, mode: str) -> list[Row]:
    return [row for row in rows if row["system"] == system and row["mode"] == mode]


def systems_of(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["system"] for row in rows))


def cells(rows: list[Row], system: str, mode: str, recall: float) -> list[str]:
    """QPS at the recall, and its ratio to the reference system's in the same mode."""
    found = qps_at(of(rows, system, mode), recall)
    if found is None:
        best = max((row["recall"] for row in of(rows, system, mode)), default=0.0)
        return [f"(at most {best:.3f})", ""]
    reference = qps_at(of(rows, REFERENCE, mode), recall)
    return [f"{found[1]}{found[0]:,.0f}", f"{found[0] / reference[0]:.2f}" if reference else ""]


def table(rows: list[Row], recall: float) -> None:
    """Prints one line a system."""
    first = rows[0]
    grid = Table(title=f"{first['dataset']}, k={first['k']}, {first['threads']} thread(s), at recall {recall}")
    grid.add_column("system")
    modes = [mode for mode in ("single", "batch") if any(row["mode"] == mode for row in rows)]
    for mode in modes:
        grid.add_column(f"{mode} QPS", justify="right")
        grid.add_column(f"x {REFERENCE}", justify="right")
    for heading in ("p50 ms", "p99 ms", "build s", "build CPU s", "bytes/vector"):
        grid.add_column(heading, justify="right")
    for system in systems_of(rows):
        one = [row for row in frontier(of(rows, system, modes[0])) if row["recall"] >= recall]
        shown = one[0] if one else of(rows, system, modes[0])[-1]
        figures = [text for mode in modes for text in cells(rows, system, mode, recall)]
        grid.add_row(
            system, *figures, f"{shown['p50_ms']:.3f}", f"{shown['p99_ms']:.3f}", f"{shown['build_seconds']:.1f}",
            f"{shown['params']['build_cpu_seconds']:.1f}", f"{shown['bytes_per_vector']:.0f}",
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 150).print(grid)


def picture(rows: list[Row], path: Path) -> None:
    """Draws recall against QPS, one panel a mode."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed (pip install -e .[bench])")
        return
    modes = [mode for mode in ("single", "batch") if any(row["mode"] == mode for row in rows)]
    figure = Figure(figsize=(7.5 * len(modes), 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(modes), squeeze=False)[0]
    for panel, mode in zip(panels, modes, strict=True):
        for place, system in enumerate(systems_of(rows)):
            line = frontier(of(rows, system, mode))
            style = "-" if system.startswith("vecdb") else "--"
            panel.plot(
                [row["recall"] for row in line], [row["qps"] for row in line], style, marker="o", markersize=4,
                color=f"C{place % 10}", label=system,
            )  # fmt: skip
        panel.set(yscale="log", xlabel=f"recall@{rows[0]['k']}", ylabel="queries per second", title=mode)
        panel.grid(True, which="both", alpha=0.3)
        panel.legend(fontsize=8)
    figure.suptitle(f"{rows[0]['dataset']}, {rows[0]['threads']} thread(s)")
    figure.savefig(path, dpi=120)
