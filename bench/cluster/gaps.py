"""What a client saw: calls with their beginnings and ends, and what follows from them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from vecdb.cluster.placement import ranges
from vecdb.cluster.routing import hash_of_id


@dataclass(frozen=True, slots=True)
class Seen:
    """One call; ``begun`` and ``ended``: seconds of the machine's monotonic clock; ``error``: empty if it succeeded."""

    begun: float
    ended: float
    error: str = ""


def longest_gap(calls: Iterable[Seen], since: float, until: float) -> float:
    """Seconds: the longest time between ``since`` and ``until`` in which no call succeeded."""
    ends = sorted(one.ended for one in calls if not one.error and since < one.ended < until)
    marks = [since, *ends, until]
    return max(after - before for before, after in pairwise(marks))


def during(calls: Iterable[Seen], since: float, until: float) -> list[Seen]:
    """The calls that were under way at some moment from ``since`` to ``until``."""
    return [one for one in calls if one.ended > since and one.begun < until]


def summary(calls: Sequence[Seen]) -> dict[str, Any]:
    """How many, the errors by name, and of those that succeeded the median, 99th percentile and longest, in ms."""
    took = [(one.ended - one.begun) * 1e3 for one in calls if not one.error]
    errors = Counter(one.error for one in calls if one.error)
    if not took:
        return {"calls": len(calls), "errors": dict(errors), "p50_ms": None, "p99_ms": None, "longest_ms": None}
    return {"calls": len(calls), "errors": dict(errors), "p50_ms": round(float(np.percentile(took, 50)), 2),
            "p99_ms": round(float(np.percentile(took, 99)), 2), "longest_ms": round(max(took), 1)}  # fmt: skip


def one_of_each(count: int, shards: int) -> list[list[int]]:
    """Ids below ``count`` in groups, of which each has one of every shard's, as long as all shards have some left.

    A write of such a group is acknowledged only if every shard takes its part.
    """
    edges = [high for _, high in ranges(shards)]
    mine: list[list[int]] = [[] for _ in edges]
    for identity in range(count):
        hashed = hash_of_id(identity)
        mine[next(place for place, high in enumerate(edges) if hashed < high)].append(identity)
    return [list(group) for group in zip(*mine, strict=False)]


def layouts(nodes: Iterable[int], replications: Iterable[int]) -> list[tuple[int, int]]:
    """Pairs of shard nodes and replicas of a shard, of which there are never more than nodes; in the order to visit."""
    wanted = sorted(set(replications))
    return [(count, factor) for count in sorted(set(nodes)) for factor in wanted if factor <= count]
