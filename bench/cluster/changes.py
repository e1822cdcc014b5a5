"""What is done to a cluster while clients read and write: leaders killed, shards moved, split and merged."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.cluster.gaps import Seen, during, longest_gap, summary
from bench.cluster.nodes import Nodes, elsewhere, leader_of
from bench.replication.nodes import wait_until
from bench.server.processes import Driver
from vecdb.core.cluster import JobState
from vecdb.core.shards import ShardInfo

PACE_S = {"read": 0.01, "write": 0.02}
"""From one call of a client to its next while shards are changed: a load, and not all that two cores can do."""
LEAD_S = 1.0
"""Of load before and after whatever is done."""
SETTLE_S = 2.0
AFTER_KILL_S = 8.0
JOB_S = 120.0
LOOK_S = 0.02
END_S = 120.0


@dataclass(frozen=True, slots=True)
class Clients:
    """A process that reads and one that writes ``collection``; files of queries and of its records."""

    drivers: dict[str, Driver]
    files: dict[str, Path]
    targets: str
    collection: str
    shards: int

    @contextlib.contextmanager
    def at_work(self, pace: dict[str, float]) -> Iterator["Heard"]:
        """Load meanwhile; what they saw is there afterwards."""
        heard = Heard()
        for what, driver in self.drivers.items():
            driver.tell({"do": "begin", "what": what, "target": self.targets, "collection": self.collection,
                         "vectors": str(self.files[what]), "pace_s": pace[what], "shards": self.shards})  # fmt: skip
        for driver in self.drivers.values():
            driver.answer(END_S)
        try:
            time.sleep(LEAD_S)
            yield heard
        finally:
            for driver in self.drivers.values():
                driver.tell({"do": "end"})
            for what, driver in self.drivers.items():
                heard.calls[what] = [Seen(*one) for one in driver.answer(END_S)["calls"]]


@dataclass(slots=True)
class Heard:
    """By ``read`` and ``write``: the calls."""

    calls: dict[str, list[Seen]] = field(default_factory=dict)

    def during(self, since: float, until: float) -> dict[str, Any]:
        return {f"{what}s": summary(during(calls, since, until)) for what, calls in self.calls.items()}

    def gaps(self, since: float, until: float) -> dict[str, float]:
        return {f"{what}s_ms": round(longest_gap(calls, since, until) * 1e3) for what, calls in self.calls.items()}


def failover(nodes: Nodes, clients: Clients, factor: int, kills: int) -> dict[str, Any]:
    """Kill the leader of one shard after the other; each write and each query needs all shards.

    Both clients go on without a pause, so a gap is what the kill made, and one ordinary call more.
    """
    rows: list[dict[str, Any]] = []
    for number in range(kills):
        nodes.level(clients.collection, factor)
        time.sleep(SETTLE_S)
        victim = _leader(nodes, clients.collection, number)
        with clients.at_work({"read": 0.0, "write": 0.0}) as heard:
            killed = nodes.kill(victim)
            time.sleep(AFTER_KILL_S)
            until = time.monotonic()
        nodes.start(victim)
        nodes.ready(victim)
        rows.append({"node": victim, **heard.gaps(killed, until), **heard.during(killed - LEAD_S, until)})
    nodes.level(clients.collection, factor)
    return {"kills": rows,
            **{f"{what}_{name}": round(of([row[f"{what}_ms"] for row in rows])) for what in ("reads", "writes")
               for name, of in (("median_ms", median), ("worst_ms", max))}}  # fmt: skip


def _leader(nodes: Nodes, collection: str, number: int) -> str:
    """The node that leads one of the collection's shards, which are counted round."""
    def led() -> str:
        shards = nodes.shards(collection)
        return leader_of(shards[number % len(shards)])

    return str(wait_until(led, "a leader"))


def reshaped(nodes: Nodes, clients: Clients, factor: int) -> dict[str, Any]:
    """Move a replica where there is a node for it, split a shard in two, and merge the two others."""
    found: dict[str, Any] = {}
    nodes.level(clients.collection, factor)
    first, second, third = nodes.shards(clients.collection)
    to = elsewhere(first, nodes.shard_nodes)
    if to is not None:
        found["move"] = _job(nodes, clients, "move", first, {"from": first.replicas[0].node, "to": to})
    found["split"] = _job(nodes, clients, "split", first, {})
    found["merge"] = _job(nodes, clients, "merge", second, {"with": third.group})
    return found


def _job(nodes: Nodes, clients: Clients, kind: str, shard: ShardInfo, args: dict[str, Any]) -> dict[str, Any]:
    """One job under load: its seconds until calls go to what it made, and what clients saw meanwhile."""
    cluster = nodes.db.admin.cluster
    with clients.at_work(PACE_S) as heard:
        began = time.monotonic()
        job = cluster.begin(kind, str(shard.group), args)
        phases: dict[str, float] = {}
        state, error = "", ""
        while time.monotonic() < began + JOB_S:
            info = cluster.job(job)
            phases.setdefault(info.phase, time.monotonic() - began)
            state, error = info.state, info.error
            if info.phase == "retire" or JobState(info.state).ended:
                break
            time.sleep(LOOK_S)
        took = time.monotonic() - began
        time.sleep(LEAD_S)
        until = time.monotonic()
    if state in (JobState.FAILED, JobState.CANCELLED) or took >= JOB_S:
        raise SystemExit(f"{kind} of shard {shard.group}: {state} after {took:.0f} s: {error}")
    return {"seconds": round(took, 2), "phases": {name: round(at, 2) for name, at in phases.items() if name},
            **heard.during(began, until)}  # fmt: skip
