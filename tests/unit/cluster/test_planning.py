"""Planners: what they wish for is allowed, is enough, and is wished for once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vecdb.cluster.control import CollectionEntry, ControlState, NodeEntry, ShardEntry
from vecdb.cluster.planning import Away, Room, Wish, holding, homeless, moved, rebalanced, replicated, vacated
from vecdb.core.cluster import HASH_SPACE, NodeState, Role
from vecdb.core.errors import InvalidArgument, NoNodeForReplica, ShardNotFound, Unavailable
from vecdb.core.schema import CollectionSchema

SCHEMA = CollectionSchema("docs", 4)


def state_of(nodes: Sequence[NodeEntry], shards: Sequence[Sequence[str]]) -> ControlState:
    width = HASH_SPACE // max(1, len(shards))
    entries = {group: ShardEntry(SCHEMA, group, f"docs@{group}", (group - 1) * width, group * width,
                                 tuple(f"{node}/1" for node in desired), tuple(desired))
               for group, desired in enumerate(shards, 1)}
    return ControlState({"docs": CollectionEntry(SCHEMA, tuple(entries), 3)}, entries,
                        {node.name: node for node in nodes}, next_group=len(shards) + 1)


def after(state: ControlState, wishes: Sequence[Wish]) -> ControlState:
    shards = dict(state.shards)
    for wish in wishes:
        shards[wish.group] = replace(shards[wish.group], desired=wish.desired)
    return replace(state, shards=shards)


@st.composite
def clusters(draw: Any, least: int = 2) -> ControlState:
    zones = draw(st.sampled_from([("",), ("a", "b"), ("a", "b", "c")]))
    nodes = [NodeEntry(f"n{at}", f"h{at}:1", zone=draw(st.sampled_from(zones)),
                       capacity=draw(st.sampled_from([1.0, 1.0, 2.0])),
                       role=draw(st.sampled_from([Role.BOTH, Role.SHARD, Role.SHARD, Role.COORDINATOR])))
             for at in range(draw(st.integers(least, 9)))]
    holding = [node.name for node in nodes if node.role.holds]
    assume(len(holding) >= least)
    shards = draw(st.lists(st.lists(st.sampled_from(holding), min_size=1, max_size=3, unique=True), max_size=25))
    return state_of(nodes, shards)


def check(state: ControlState, wishes: Sequence[Wish], away: Sequence[str] = ()) -> None:
    """Whatever is wished for: distinct nodes, and those that are new may be given replicas."""
    assert len({wish.group for wish in wishes}) == len(wishes)
    for wish in wishes:
        before = state.shards[wish.group].desired
        assert len(set(wish.desired)) == len(wish.desired)
        assert sorted(wish.desired) != sorted(before)
        for node in set(wish.desired) - set(before):
            assert state.nodes[node].role.holds
            assert state.nodes[node].state is NodeState.ACTIVE
            assert node not in away


@given(clusters(), st.data())
def test_a_vacated_node_ends_empty_but_for_what_nobody_else_can_take(state: ControlState, data: st.DataObject) -> None:
    node = data.draw(st.sampled_from(sorted(state.nodes)))
    away = data.draw(st.lists(st.sampled_from(sorted(state.nodes)), max_size=2))
    state = replace(state, nodes={**state.nodes, node: replace(state.nodes[node], state=NodeState.DRAINING)})
    wishes = vacated(state, node, away)
    check(state, wishes, away)
    left = after(state, wishes)
    assert {one.group for one in left.shards.values() if node in one.desired} \
        == {one.group for one in homeless(state, node, away)}
    assert not vacated(left, node, away)
    for wish in wishes:
        assert len(wish.desired) == len(state.shards[wish.group].desired)
        assert set(state.shards[wish.group].desired) - set(wish.desired) == {node}


@given(clusters(), st.integers(1, 5))
def test_a_replication_factor_is_reached_as_far_as_there_are_nodes(state: ControlState, factor: int) -> None:
    wishes = replicated(state, "docs", factor)
    check(state, wishes)
    done = after(state, wishes)
    holding = sum(node.role.holds for node in state.nodes.values())
    assert all(len(one.desired) == min(factor, holding) for one in done.shards.values())
    assert not replicated(done, "docs", factor)
    for wish in wishes:
        before = set(state.shards[wish.group].desired)
        assert before <= set(wish.desired) or set(wish.desired) <= before


@given(clusters(), st.integers(1, 7), st.data())
def test_new_shards_have_all_replicas_there_are_nodes_for_and_those_that_are_heard_first(
        state: ControlState, factor: int, data: st.DataObject) -> None:
    away = data.draw(st.lists(st.sampled_from(sorted(state.nodes)), unique=True))
    able = {one.name for one in holding(state)}
    count, heard = min(factor, len(able)), len(able - set(away))
    room = Room(state, away)
    before = room.load.copy()
    if 2 * min(heard, count) <= count:
        with pytest.raises(Unavailable, match="majority"):
            room.placed(99, factor)
        assert room.load == before
        return
    nodes = room.placed(99, factor)
    assert (len(nodes), len(set(nodes)), set(nodes) <= able) == (count, count, True)
    assert len(set(nodes) & set(away)) == max(0, count - heard)
    assert room.load - before == Counter(nodes)


@given(clusters())
def test_rebalancing_ends_even_keeps_zones_and_then_wishes_for_nothing(state: ControlState) -> None:
    for _ in range(30):
        wishes = rebalanced(state)
        check(state, wishes)
        done = after(state, wishes)
        for wish in wishes:
            assert len(wish.desired) == len(state.shards[wish.group].desired)
            assert crowd(done, wish.desired) <= crowd(state, state.shards[wish.group].desired)
        if wishes:
            assert squares(done) < squares(state)
        state = done
        if not wishes:
            return
    pytest.fail("rebalancing does not end")


@given(clusters())
def test_rebalancing_may_be_of_one_collection_or_onto_one_node(state: ControlState) -> None:
    nodes = sorted(state.nodes)
    for only, onto in (("docs", ""), ("", nodes[0]), ("docs", nodes[-1])):
        wishes = rebalanced(state, only=only, onto=onto)
        check(state, wishes)
        for wish in wishes:
            assert only in ("", state.shards[wish.group].name)
            assert onto in ("", *set(wish.desired) - set(state.shards[wish.group].desired))
        if wishes:
            assert squares(after(state, wishes)) < squares(state)
    assert not rebalanced(state, only="nothing")


def crowd(state: ControlState, nodes: Sequence[str]) -> int:
    """Pairs of replicas in one zone."""
    zones = Counter(state.nodes[node].zone for node in nodes)
    return sum(count * (count - 1) // 2 for count in zones.values())


def squares(state: ControlState) -> float:
    loads = state.loads()
    return sum(loads.get(name, 0) ** 2 / node.capacity for name, node in state.nodes.items() if node.role.holds)


def test_a_node_that_joins_gets_its_share_and_little_else_moves() -> None:
    nodes = [NodeEntry(f"n{at}", f"h{at}:1") for at in range(4)]
    shards = [[f"n{(at + more) % 3}" for more in range(2)] for at in range(60)]
    wishes = rebalanced(state_of(nodes, shards))
    loads = after(state_of(nodes, shards), wishes).loads()
    assert max(loads.values()) - min(loads.values()) <= 2
    assert 28 <= len(wishes) <= 31


def test_replicas_that_leave_one_node_are_spread_over_the_others_and_over_zones() -> None:
    nodes = [NodeEntry(f"n{at}", f"h{at}:1", zone="abc"[at % 3]) for at in range(9)]
    shards = [["n0", "n1", "n2"] for _ in range(30)]
    wishes = vacated(state_of(nodes, shards), "n0")
    loads = after(state_of(nodes, shards), wishes).loads()
    assert {name: loads.get(name, 0) for name in ("n3", "n6")} == {"n3": 15, "n6": 15}


def test_a_move_is_refused_with_what_is_wrong() -> None:
    nodes = [NodeEntry("n1", "h1:1"), NodeEntry("n2", "h2:1"), NodeEntry("n3", "h3:1", state=NodeState.DRAINING),
             NodeEntry("c1", "h4:1", role=Role.COORDINATOR), NodeEntry("n5", "h5:1")]
    state = state_of(nodes, [["n1", "n2"]])
    assert moved(state, 1, "n2", "n5") == Wish(1, ("n1", "n5"))
    with pytest.raises(ShardNotFound):
        moved(state, 2, "n1", "n5")
    for group, source, to in ((1, "n5", "n3"), (1, "n1", "n2"), (1, "n1", "c1"), (1, "n1", "nx")):
        with pytest.raises(InvalidArgument):
            moved(state, group, source, to)
    with pytest.raises(NoNodeForReplica, match="draining"):
        moved(state, 1, "n1", "n3")
    with pytest.raises(NoNodeForReplica, match="not heard"):
        moved(state, 1, "n1", "n5", ["n5"])
    with pytest.raises(InvalidArgument):
        replicated(state, "docs", 8)


def test_a_disk_that_is_nearly_full_is_given_what_no_other_can_take_and_nothing_to_make_loads_even() -> None:
    nodes = [NodeEntry(name, f"{name}:1", zone=zone) for name, zone in zip("abcd", "xxyz", strict=True)]
    state = state_of(nodes, [("a", "b")] * 8)
    low = Away(low="d")
    assert {node for group in range(9, 30) for node in Room(state, low).placed(group, 3)} == set("abc")
    assert sorted(Room(state, low).placed(9, 4)) == list("abcd"), "there is no other"
    assert {node for wish in vacated(state, "a", low) for node in wish.desired} == {"b", "c"}
    assert {node for wish in vacated(state, "a", Away("c", "d")) for node in wish.desired} == {"b", "d"}
    wishes = rebalanced(state, low)
    check(state, wishes)
    assert {node for wish in wishes for node in wish.desired} == set("abc")
    assert rebalanced(state, low, onto="d") == []
    assert moved(state, 1, "a", "d", low).desired == ("d", "b"), "who asks for it by name is not refused"
    assert rebalanced(state, Away(low="abcd")) == rebalanced(state), "where all are, none is"
