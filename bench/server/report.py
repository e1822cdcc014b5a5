"""What a run of :mod:`bench.server` says: one table, two verdicts."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.server.points import Point

BATCH_SHARE = 0.8
SINGLE_MARGIN = 1.2
Points = dict[tuple[str, str, int, int], Point]


@dataclass(frozen=True, slots=True)
class Verdict:
    """``ratio`` against ``target``; ``least``: the target is the least that is good, else the most."""

    name: str
    ratio: float
    target: float
    least: bool
    meaning: str

    @property
    def met(self) -> bool:
        return self.ratio >= self.target if self.least else self.ratio <= self.target

    def row(self) -> dict[str, Any]:
        return {"name": self.name, "ratio": round(self.ratio, 4), "target": self.target, "met": self.met,
                "meaning": self.meaning}  # fmt: skip


def measured(points: Points, *wanted: tuple[str, str, int, int]) -> list[Point]:
    """The points wanted that were measured."""
    return [points[key] for key in wanted if key in points and points[key].qps]


def verdicts(points: Points, batch: int, cores: int) -> list[Verdict]:
    """The two targets, each in wall-clock time and in CPU time."""
    out = []
    bare = measured(points, ("index", "threads", cores, batch))
    nodes = [one for one in points.values() if one.side == "node" and one.rows == batch and one.qps
             and one.how.startswith("raw")]  # fmt: skip
    if bare and nodes:
        best = max(nodes, key=lambda one: one.median("qps"))
        out.append(Verdict("batch path, CPU", bare[0].median("server_us") / best.median("server_us"), BATCH_SHARE, True,
                           f"CPU of the bare index a query / CPU of the node, batches of {batch}"))  # fmt: skip
        out.append(Verdict("batch path, wall", best.median("qps") / bare[0].median("qps"), BATCH_SHARE, True,
                           f"QPS / the bare index's on {cores} threads; clients share these cores"))  # fmt: skip
    for how in ("raw-sync", "raw-aio"):
        found = measured(points, ("node", how, 1, 1), ("floor", how, 1, 1), ("index", "threads", 1, 1))
        if len(found) == 3:
            node, floor, index = found
            sums = [one.median("server_us") + one.median("client_us") for one in found]
            out.append(Verdict(f"single call, {how}, p50", node.median("p50_ms")
                               / (floor.median("p50_ms") + index.median("p50_ms")), SINGLE_MARGIN, False,
                               "p50 at one in flight / (p50 of the floor + p50 of the bare index)"))  # fmt: skip
            out.append(Verdict(f"single call, {how}, CPU", sums[0] / (sums[1] + sums[2]), SINGLE_MARGIN, False,
                               "CPU of both sides a query / (the floor's + the bare index's)"))  # fmt: skip
    return out


def console() -> Console:
    return Console(width=None if Console().is_terminal else 130)


def table(points: Points, title: str) -> None:
    grid = Table(title=title)
    for heading in ("side", "how", "in flight", "rows"):
        grid.add_column(heading)
    for heading in ("QPS", "p50 ms", "p95 ms", "p99 ms", "server us", "client us"):
        grid.add_column(heading, justify="right")
    last = ""
    for point in points.values():
        if point.side != last and last:
            grid.add_section()
        last = point.side
        first = (point.side, point.how, str(point.inflight), str(point.rows))
        if not point.qps:
            grid.add_row(*first, "left out")
            continue
        times = [f"{point.median(name):.3f}" for name in ("p50_ms", "p95_ms", "p99_ms")]
        grid.add_row(*first, f"{point.median('qps'):,.0f}", *times,
                     *(f"{point.median(name):,.1f}" for name in ("server_us", "client_us")))  # fmt: skip
    console().print(grid)
    for point in points.values():
        if not point.qps:
            print(f"{point.side} {point.how} was left out: {point.missing}")


def tell(found: list[Verdict]) -> None:
    """One line a verdict."""
    for one in found:
        sign = ">=" if one.least else "<="
        word = "met" if one.met else "NOT met"
        print(f"{one.name}: {one.ratio:.2f} (target {sign} {one.target:g}: {word}); {one.meaning}")


def ingest_table(rows: list[dict[str, Any]], title: str) -> None:
    grid = Table(title=title)
    for heading in ("how", "at once"):
        grid.add_column(heading)
    for heading in ("records/s", "MB/s", "server us", "client us", "x embedded"):
        grid.add_column(heading, justify="right")
    embedded = next((row["records_s"] for row in rows if row["how"] == "embedded" and "records_s" in row), 0.0)
    for row in rows:
        if "missing" in row:
            grid.add_row(row["how"], str(row["lanes"]), f"left out: {row['missing']}"[:60])
            continue
        grid.add_row(row["how"], str(row["lanes"]), f"{row['records_s']:,.0f}", f"{row['mb_s']:.1f}",
                     f"{row['server_us']:.1f}", f"{row['client_us']:.1f}",
                     f"{row['records_s'] / embedded:.2f}" if embedded else "")  # fmt: skip
    console().print(grid)
