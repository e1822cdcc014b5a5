"""The points of a measurement, and a visit to one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench.server.pacing import Done
from bench.server.processes import Driver


class Serving(Protocol):
    """What is asked: a process, or several that answer together."""

    def cpu_s(self) -> float: ...



@dataclass(slots=True)
class Point:
    """``side`` is ``node``, ``floor``, ``embedded`` or ``index``; ``how`` a load of :mod:`bench.server.loads`.

    Each visit adds to the lists: queries a second, milliseconds of a call, CPU microseconds a query on the serving and
    on the asking side (``index`` and ``embedded``: all of it as the serving side's).
    """

    side: str
    how: str
    inflight: int
    rows: int = 1
    qps: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p95_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    server_us: list[float] = field(default_factory=list)
    client_us: list[float] = field(default_factory=list)
    missing: str = ""

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.side, self.how, self.inflight, self.rows

    def take(self, calls_ms: np.ndarray, queries_s: float, server_us: float, client_us: float) -> None:
        self.qps.append(queries_s)
        for kept, share in ((self.p50_ms, 50), (self.p95_ms, 95), (self.p99_ms, 99)):
            kept.append(float(np.percentile(calls_ms, share)))
        self.server_us.append(server_us)
        self.client_us.append(client_us)

    def median(self, name: str) -> float:
        return float(np.median(getattr(self, name)))

    def row(self) -> dict[str, Any]:
        """A row of the JSON."""
        known = {"side": self.side, "how": self.how, "inflight": self.inflight, "rows": self.rows}
        if not self.qps:
            return {**known, "missing": self.missing}
        names = ("qps", "p50_ms", "p95_ms", "p99_ms", "server_us", "client_us")
        return {**known, **{name: round(self.median(name), 4) for name in names}}


@dataclass(frozen=True, slots=True)
class Setting:
    """What every command to a client says: the queries, the collection, k, the beam."""

    queries: Path
    k: int
    ef: int
    seconds: float
    collection: str = "bench"
    sdk: dict[str, Any] = field(default_factory=dict)

    def command(self, point: Point, target: str, inflight: int) -> dict[str, Any]:
        return {"do": "query", "how": point.how, "target": target, "queries": str(self.queries), "inflight": inflight,
                "rows": point.rows, "seconds": self.seconds, "k": self.k, "ef": self.ef,
                "collection": self.collection, "sdk": self.sdk}  # fmt: skip


def visit(point: Point, server: Serving, target: str, drivers: list[Driver], setting: Setting) -> None:
    """Load a server from as many client processes as there are, its calls in flight shared out."""
    used = drivers[: min(len(drivers), point.inflight)]
    before = server.cpu_s()
    for place, driver in enumerate(used):
        share = point.inflight // len(used) + (place < point.inflight % len(used))
        driver.tell(setting.command(point, target, share))
    answers = [driver.answer(setting.seconds + 150) for driver in used]
    spent = server.cpu_s() - before
    if any("missing" in answer for answer in answers):
        point.missing = str(answers[0].get("missing", "a client cannot"))
        return
    calls = sum(answer["calls"] for answer in answers)
    queries = max(1, point.rows * (calls + sum(answer["warm"] for answer in answers)))
    rate = sum(point.rows * answer["calls"] / answer["seconds"] for answer in answers)
    point.take(np.concatenate([np.array(answer["calls_ms"]) for answer in answers]), rate, spent / queries * 1e6,
               sum(answer["cpu_s"] for answer in answers) / queries * 1e6)  # fmt: skip


def take_here(point: Point, done: Done, cpu_s: float) -> None:
    """What was measured in this process."""
    queries = point.rows * max(1, len(done.calls_ms))
    point.take(np.array(done.calls_ms), queries / done.seconds, cpu_s / queries * 1e6, 0.0)
