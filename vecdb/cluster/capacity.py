"""How many nodes a collection and its queries need, from figures that were measured on one machine.

Pure: what was measured is :class:`Calibration`, what is asked :class:`Demand`, and :func:`plan` adds up.

**A query** is asked of every shard at once.  Its CPU is a call from the client, a hop to each shard, and a search in
each shard: of one segment as it was measured, ``a + b ln(records)`` over three sizes, for as many segments as the shard
has.  **Nodes** are as many as memory asks for, as kernels' CPU does, and as the one thread of each node that takes
calls apart and puts answers together (Python's) does, which any node may do, replicas or none; of each only
:data:`BUSY` is used.  More replicas of a shard than were asked for are made where its searches, or its side of the
hops, need more nodes than hold it: beyond :data:`MOST_REPLICAS` these are clusters side by side, each with all records.
**Shards** may be larger than those a cluster makes by itself, up to what fits a node: of the sizes tried the one with
the fewest nodes is taken, since each shard more is another hop.

**Latency** is that of the slowest shard: the quantile of one search's measured times that all of so many stay below
with the wanted probability, pauses of the machine among them; and of the call, the hops, and the wait for a core
(Erlang C, all of a node's cores as one queue).  What the largest index in the calibration did not show (memory beyond
caches at a hundred times the size) and what a calibration on one machine cannot (a network) is not in it, but for a
round trip that is said.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from vecdb.cluster.placement import SHARD_RECORDS
from vecdb.core.cluster import MAX_COLLECTION_SHARDS
from vecdb.core.errors import InvalidArgument, LimitExceeded
from vecdb.core.sizing import Workload, size

BUSY: Final = 0.6
"""Of a node's time, what queries may take."""
MEMORY_SHARE: Final = 0.7
"""Of a node's memory, what segments may take: as the engine has it."""
DISK_FACTOR: Final = 2.0
"""Of the data on a disk, for what is written while segments merge and replicas are taken."""
MOST_REPLICAS: Final = 7
PAUSE: Final = 2.0
TRIES: Final = 5
"""Shards of 10 million records, and of twice as many, and so on: so often."""
QUANTILES: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured on ``machine`` with ``cores``.  ``searches``: records of a segment and the CPU of one search in it, in
    microseconds; ``spread``: times of a search in the largest at :data:`QUANTILES`, as shares of the median.
    ``call_*`` and ``hop_*``: of one call of a client, and of asking one more shard on another node, both ends
    together; of time, without others at work.
    """

    machine: str
    cores: int
    searches: tuple[tuple[int, float], ...]
    spread: tuple[float, ...]
    call_cpu_us: float
    call_us: float
    hop_cpu_us: float
    hop_us: float

    def __post_init__(self) -> None:
        numbers = (*(one for pair in self.searches for one in pair), *self.spread, self.call_cpu_us, self.call_us,
                   self.hop_cpu_us, self.hop_us)
        if len(self.searches) < 2 or len(self.spread) != len(QUANTILES) or \
                not all(math.isfinite(one) and one >= 0 for one in numbers) or not all(cpu for _, cpu in self.searches):
            raise InvalidArgument("calibration", "does not hold what a plan needs", got=str(self.searches)[:80],
                                  limit="two sizes and times above 0")

    def search_us(self, records: float) -> float:
        """CPU of a search in a segment of so many records: never less than in a smaller one."""
        known = sorted(self.searches)
        if records <= known[0][0]:
            return known[0][1]
        xs, ys = [math.log(n) for n, _ in known], [cpu for _, cpu in known]
        mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
        spread = sum((x - mean_x) ** 2 for x in xs)
        slope = max(0.0, sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread)
        return max(known[0][1], mean_y + slope * (math.log(records) - mean_x))

    def slowest_us(self, service: float, probability: float, searches: int) -> float:
        """What all of so many searches, of which half take ``service``, stay below with this probability.

        They vary with what they take; beyond :data:`PAUSE` times the median they are pauses, as long whatever is
        searched.
        """
        share = self.slowest(probability, searches)
        return min(share, PAUSE) * service + max(0.0, share - PAUSE) * max(self.searches)[1]

    def slowest(self, probability: float, searches: int) -> float:
        """The time, as a share of the median, that all of so many searches stay below with this probability."""
        wanted: float = probability ** (1.0 / max(1, searches))
        for (low, under), (high, over) in zip(zip(QUANTILES, self.spread, strict=True),
                                              list(zip(QUANTILES, self.spread, strict=True))[1:], strict=False):
            if wanted <= high:
                return under + (over - under) * (wanted - low) / (high - low)
        return self.spread[-1]

    def to_json(self) -> dict[str, Any]:
        return {"machine": self.machine, "cores": self.cores, "searches": [list(one) for one in self.searches],
                "spread": list(self.spread), "call_cpu_us": self.call_cpu_us, "call_us": self.call_us,
                "hop_cpu_us": self.hop_cpu_us, "hop_us": self.hop_us}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Raises ``InvalidArgument`` for what is none."""
        try:
            return cls(str(value["machine"]), int(value["cores"]),
                       tuple((int(n), float(cpu)) for n, cpu in value["searches"]), tuple(map(float, value["spread"])),
                       float(value["call_cpu_us"]), float(value["call_us"]), float(value["hop_cpu_us"]),
                       float(value["hop_us"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgument("calibration", "cannot be read", got=type(error).__name__,
                                  limit="what a calibration wrote") from error


@dataclass(frozen=True, slots=True)
class NodeShape:
    """A machine like the one measured, but for these."""

    cores: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Demand:
    """``network_us``: of a round trip between two machines, which a calibration on one does not show."""

    work: Workload
    qps: float
    replication_factor: int = 3
    network_us: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.qps) and self.qps > 0):
            raise InvalidArgument("qps", f"{self.qps} is no number of queries a second", got=self.qps, limit="above 0")
        if not 1 <= self.replication_factor <= MOST_REPLICAS:
            raise LimitExceeded("replication_factor", "is not what a collection may have", got=self.replication_factor,
                                limit=f"1..{MOST_REPLICAS}")


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """``nodes_for``: what memory, kernels and calls ask for, each alone; ``bound``: which of them decides.
    ``memory_bytes``, ``disk_bytes``: of one copy of the data, as ``sizing`` has it.  ``clusters``: side by side, each
    with all records, where one cannot have so many ``replicas`` of a shard.
    """

    shards: int
    shard_records: int
    replicas: int
    nodes: int
    nodes_for: dict[str, int]
    bound: str
    memory_bytes: int
    disk_bytes: int
    node_memory_bytes: int
    node_disk_bytes: int
    clusters: int
    query_cpu_us: float
    p50_ms: float
    p99_ms: float


def plan(demand: Demand, node: NodeShape, measured: Calibration) -> ClusterPlan:
    """The fewest nodes; ``LimitExceeded`` where there cannot be as many shards as fit nodes like that."""
    found = size(demand.work)
    records, fits = demand.work.records, node.memory_bytes * MEMORY_SHARE
    least = max(1, math.ceil(found.memory_bytes / fits))
    if least > MAX_COLLECTION_SHARDS:
        raise LimitExceeded("records", f"{records} need {least} shards of what fits a node", got=least,
                            limit=MAX_COLLECTION_SHARDS)
    plans = []
    for power in range(TRIES):
        shards = min(MAX_COLLECTION_SHARDS, max(least, math.ceil(records / (SHARD_RECORDS << power))))
        one = _with(demand, node, measured, shards, found.memory_bytes, found.disk_bytes)
        plans.append(one)
    return min(plans, key=lambda one: (one.nodes, one.shards))


def _with(demand: Demand, node: NodeShape, measured: Calibration, shards: int, memory: int, disk: int
          ) -> ClusterPlan:
    work, qps = demand.work, demand.qps / 1e6
    segment = min(work.records / shards, work.max_segment_records)
    search = measured.search_us(segment) * max(1.0, work.records / shards / work.max_segment_records)
    hops = shards if shards > 1 else 0
    calls = measured.call_cpu_us + hops * measured.hop_cpu_us
    kernels = math.ceil(qps * shards * search / (node.cores * BUSY))
    loops = math.ceil(qps * calls / BUSY)
    answers = math.ceil(qps * measured.hop_cpu_us / 2 / BUSY) if hops else 1  # a shard's other half of every hop
    replicas = max(demand.replication_factor, math.ceil(kernels / shards), answers)
    asked = {"memory": math.ceil(memory * replicas / (node.memory_bytes * MEMORY_SHARE)), "kernels": kernels,
             "calls": loops, "replicas": replicas}
    nodes = max(asked.values())
    bound = max(asked, key=lambda name: asked[name])
    load = qps * shards * search / (nodes * node.cores)
    fixed = measured.call_us + demand.network_us
    if hops:
        # half of a hop is the other node's, and only the first is waited for alone
        fixed += measured.hop_us + demand.network_us + (hops - 1) * measured.hop_cpu_us / 2
    times = [fixed + measured.slowest_us(search, quantile, shards) + _wait(node.cores, load, search, quantile)
             for quantile in (0.5, 0.99)]
    return ClusterPlan(shards, math.ceil(work.records / shards), replicas, nodes, asked, bound, memory, disk,
                       math.ceil(memory * replicas / nodes), math.ceil(disk * replicas * DISK_FACTOR / nodes),
                       math.ceil(replicas / MOST_REPLICAS), calls + shards * search, times[0] / 1e3, times[1] / 1e3)


def _wait(cores: int, load: float, service: float, quantile: float) -> float:
    """How long a search waits for a core at most, with this probability: M/M/c, ``load`` of each core below 1."""
    offered = load * cores
    blocked = 1.0
    for busy in range(1, cores + 1):  # Erlang B, by its recursion
        blocked = offered * blocked / (busy + offered * blocked)
    waits = blocked / (1.0 - load * (1.0 - blocked))
    if waits <= 1.0 - quantile:
        return 0.0
    return math.log(waits / (1.0 - quantile)) * service / (cores * (1.0 - load))


def assumptions(demand: Demand, node: NodeShape, measured: Calibration) -> Sequence[str]:
    """What the plan takes for granted, for people."""
    sizes = ", ".join(f"{cpu:.0f} us at {n:,}" for n, cpu in measured.searches)
    largest = max(n for n, _ in measured.searches)
    return (
        f"measured on {measured.machine}, {measured.cores} cores: one search {sizes} records of random vectors whose "
        "variance falls with the dimension, k 10, at the width that the build chose for recall; beyond "
        f"{largest:,} it is extrapolated with the logarithm of the records",
        f"a call of a client {measured.call_cpu_us:.0f} us of CPU and each further shard {measured.hop_cpu_us:.0f} us, "
        "both ends together, over the loopback, with 64 queries of one client under way; a query in a batch costs less",
        f"nodes have {node.cores} cores as fast as these; {BUSY:.0%} of the cores, and of the one thread of a node "
        f"that takes calls, is used; {MEMORY_SHARE:.0%} of memory is for segments; disks hold the data "
        f"{DISK_FACTOR:g} times",
        f"every query asks all shards (no shard key pins it); round trips between machines take "
        f"{demand.network_us:.0f} us",
        "no writes, no failed node, and no filters are counted; keep a node in reserve for each zone that may fail",
    )
