"""What shards weigh by what was measured, and planners that go by it."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.cluster.test_planning import after, check, clusters, state_of
from vecdb.cluster.control import ControlState, NodeEntry
from vecdb.cluster.loads import LEAST, MOST, STEP, ShardLoad, uneven, weights
from vecdb.cluster.planning import rebalanced

NODES = [NodeEntry(f"n{at}", f"h{at}:1") for at in range(3)]


def heaviness(state: ControlState, heavy: Mapping[int, float]) -> dict[str, float]:
    found = dict.fromkeys(state.nodes, 0.0)
    for entry in state.shards.values():
        for node in entry.desired:
            found[node] += heavy.get(entry.group, 1.0)
    return found


def fullest_first(state: ControlState, heavy: Mapping[int, float]) -> list[float]:
    """How full nodes are.  A move that leaves both its nodes less full than the fuller one was makes this less,
    whatever their capacities are, so that there is an end to such moves.
    """
    loads = heaviness(state, heavy)
    return sorted((loads[name] / node.capacity for name, node in state.nodes.items() if node.role.holds), reverse=True)


def test_what_nobody_measured_weighs_as_all_do() -> None:
    state = state_of(NODES, [["n0"], ["n1"], ["n2"]])
    assert weights(state, {}) == {}
    assert weights(state, {one: ShardLoad(0.0, 0.0) for one in (1, 2, 3)}) == {}
    assert weights(state, {one: ShardLoad(5e9, 0.2) for one in (1, 2, 3)}) == {}
    assert weights(state, {99: ShardLoad(5e9, 0.2)}) == {}, "a shard that is no more"


def test_a_large_shard_and_a_busy_one_weigh_more() -> None:
    state = state_of(NODES, [["n0"], ["n1"], ["n2"]])
    large = weights(state, {1: ShardLoad(8e9, 0.1), 2: ShardLoad(1e9, 0.1), 3: ShardLoad(1e9, 0.1)})
    assert large[1] > 1.0 > max(large[2], large[3])
    busy = weights(state, {1: ShardLoad(1e9, 0.1), 2: ShardLoad(1e9, 0.9), 3: ShardLoad(1e9, 0.1)})
    assert busy[2] > 1.0 > max(busy[1], busy[3])
    shared = weights(state_of(NODES, [["n0"], ["n1", "n2"]]), {1: ShardLoad(1e9, 0.4), 2: ShardLoad(1e9, 0.8)})
    assert shared == {}, "two replicas that do twice the work of one"


@given(clusters(), st.data())
def test_loads_by_weight_end_even_and_stay_so(state: ControlState, data: Any) -> None:
    measured = {group: ShardLoad(data.draw(st.sampled_from([0.0, 1e8, 1e9, 6e10])), data.draw(st.floats(0, 4)))
                for group in state.shards}
    heavy = weights(state, measured)
    assert all(LEAST <= one <= MOST and one % STEP == 0 for one in heavy.values())
    for _ in range(60):
        wishes = rebalanced(state, weights=heavy)
        check(state, wishes)
        done = after(state, wishes)
        if not wishes:
            return
        assert fullest_first(done, heavy) < fullest_first(state, heavy)
        state = done
    pytest.fail("rebalancing does not end")


def test_heavy_shards_of_one_node_are_spread_though_all_have_as_many() -> None:
    shards = [["n0"]] * 4 + [["n1"]] * 4 + [["n2"]] * 4
    state = state_of(NODES, shards)
    heavy = dict.fromkeys(range(1, 5), 4.0)
    assert uneven(state, (), {}) == 0.0
    assert not rebalanced(state)
    assert uneven(state, (), heavy) > 0.5
    done = after(state, rebalanced(state, weights=heavy))
    assert uneven(done, (), heavy) < uneven(state, (), heavy) / 2
    loads = heaviness(done, heavy)
    assert max(loads.values()) - min(loads.values()) <= 4.0


def test_a_replica_more_than_others_have_is_not_uneven() -> None:
    assert uneven(state_of(NODES, [["n0"], ["n0"], ["n1"]]), (), {}) == 0.0
    assert uneven(state_of(NODES, [["n0"], ["n0"], ["n1"], ["n1"]] * 2), (), {}) == 1.0
    assert uneven(state_of(NODES, [["n0"], ["n1"]] * 4), ("n2",), {}) == 0.0, "nothing is owed to one that is away"
    assert uneven(state_of(NODES, []), (), {}) == 0.0
