"""What shards weigh, by what was measured of them: pure functions, for planners that make loads even.

A replica weighs 1 where nothing is known.  Where bytes and work were measured its weight is the mean of three shares,
each in units of what a replica has on average: that it is there at all (a log, heartbeats, files), what it holds, and
how busy it keeps its nodes.  Weights are bounded and come in steps, so that a little more or less changes no plan.
"""

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from vecdb.cluster.control import ControlState
from vecdb.cluster.planning import Room
from vecdb.core.cluster import ShardState

STEP: Final = 0.25
LEAST, MOST = 0.25, 8.0
MOST_WEIGHTS: Final = 512
"""Of a plan: those furthest from 1.  More would be remembered with the job, and change little."""


class ShardLoad(NamedTuple):
    """Of a shard: ``bytes`` that a replica holds, and ``busy``: seconds a second that queries of it keep a core busy,
    all replicas together.
    """

    bytes: float
    busy: float


def weights(state: ControlState, measured: Mapping[int, ShardLoad]) -> dict[int, float]:
    """What a replica of each shard weighs, for those that do not weigh 1."""
    known = {entry.group: (measured[entry.group], max(1, len(entry.desired))) for entry in state.shards.values()
             if entry.state is not ShardState.RETIRED and entry.group in measured}
    replicas = sum(count for _, count in known.values())
    if not replicas:
        return {}
    held = sum(load.bytes * count for load, count in known.values()) / replicas
    busy = sum(load.busy for load, _ in known.values()) / replicas
    found = {}
    for group, (load, count) in known.items():
        parts = [1.0, *([load.bytes / held] if held > 0 else []), *([load.busy / count / busy] if busy > 0 else [])]
        weight = min(max(round(sum(parts) / len(parts) / STEP) * STEP, LEAST), MOST)
        if weight != 1.0:
            found[group] = weight
    furthest = sorted(found, key=lambda group: (-abs(found[group] - 1.0), group))[:MOST_WEIGHTS]
    return {group: found[group] for group in sorted(furthest)}


def uneven(state: ControlState, away: Collection[str], weights: Mapping[int, float]) -> float:
    """How far the node that is furthest from its share is from it, as a part of that; what one average replica and a
    half can explain counts as nothing.
    """
    room = Room(state, away, weights)
    nodes = [node for node in room.nodes if room.open(node)]
    total, capacity = sum(room.load[node] for node in nodes), sum(room.nodes[node].capacity for node in nodes)
    if len(nodes) < 2 or not total:
        return 0.0
    off = 0.0
    for node in nodes:
        share = total * room.nodes[node].capacity / capacity
        if abs(room.load[node] - share) >= 1.5:
            off = max(off, abs(room.load[node] / share - 1.0))
    return off
