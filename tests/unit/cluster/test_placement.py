"""Placement: even, stable, spread."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb.cluster.placement import SLACK, Candidate, place, score
from vecdb.core.errors import InvalidArgument

NODES = 100
SHARDS = 10_000


def nodes(count, zones=1, **kwargs):
    return [Candidate(f"n{at}", zone=f"z{at % zones}", **kwargs) for at in range(count)]


def held(candidates, shards=SHARDS, replicas=3):
    return {shard: frozenset(place(shard, candidates, replicas)) for shard in range(shards)}


@pytest.fixture(scope="module")
def by_hash():
    return held(nodes(NODES), SHARDS // 4)


def test_by_the_hash_alone_shares_are_those_of_chance(by_hash):
    loads = Counter(node for some in by_hash.values() for node in some)
    mean = sum(loads.values()) / NODES
    assert len(loads) == NODES
    # 75 replicas a node: five standard deviations of a binomial are 58 %.
    assert max(loads.values()) / mean < 1.58
    assert min(loads.values()) / mean > 0.42


def test_a_node_that_comes_takes_its_share_and_moves_nothing_else(by_hash):
    after = held([*nodes(NODES), Candidate("new", zone="z0")], SHARDS // 4)
    moved = [shard for shard in by_hash if by_hash[shard] != after[shard]]
    for shard in moved:
        assert after[shard] - by_hash[shard] == {"new"}
    share = 3 / (NODES + 1)
    assert 0.5 * share < len(moved) / len(by_hash) < 1.6 * share


def test_a_node_that_leaves_loses_its_own_and_moves_nothing_else(by_hash):
    after = held(nodes(NODES)[:-1], SHARDS // 4)
    for shard, before in by_hash.items():
        assert (before == after[shard]) == (f"n{NODES - 1}" not in before)
        assert len(before - after[shard]) <= 1


def test_ten_thousand_shards_on_a_hundred_nodes_stay_within_the_slack():
    loads = Counter()
    for shard in range(SHARDS):
        known = [Candidate(f"n{at}", load=loads[f"n{at}"], zone=f"z{at % 4}") for at in range(NODES)]
        chosen = place(shard, known, 3)
        assert len(set(chosen)) == 3
        assert len({int(node[1:]) % 4 for node in chosen}) == 3
        loads.update(chosen)
    mean = sum(loads.values()) / NODES
    assert max(loads.values()) <= (1 + SLACK) * mean + 1


def test_capacity_is_weight():
    candidates = [Candidate("small"), Candidate("large", capacity=3.0), Candidate("middle", capacity=2.0)]
    first = Counter(place(shard, candidates, 1)[0] for shard in range(6_000))
    assert abs(first["small"] - 1_000) < 200
    assert abs(first["middle"] - 2_000) < 250
    assert abs(first["large"] - 3_000) < 250


def test_full_nodes_are_passed_over_unless_their_zone_has_no_other():
    roomy = [Candidate("a", load=0), Candidate("b", load=0), Candidate("full", load=90)]
    assert all("full" not in place(shard, roomy, 2) for shard in range(50))
    assert set(place(1, roomy, 3)) == {"a", "b", "full"}
    zoned = [Candidate("a", zone="x"), Candidate("b", zone="x"), Candidate("full", zone="y", load=90)]
    assert all("full" in place(shard, zoned, 2) for shard in range(50))


def test_nodes_that_are_not_well_are_taken_last():
    candidates = [Candidate("a", zone="x"), Candidate("b", zone="x"), Candidate("ill", zone="y", well=False)]
    assert all("ill" not in place(shard, candidates, 2) for shard in range(50))
    assert set(place(1, candidates, 3)) == {"a", "b", "ill"}


@given(shard=st.integers(0, (1 << 64) - 1), zones=st.lists(st.sampled_from("abcd"), min_size=1, max_size=12),
       replicas=st.integers(1, 7), loads=st.lists(st.integers(0, 50), min_size=12, max_size=12))
def test_zones_are_filled_evenly_whatever_the_loads(shard, zones, replicas, loads):
    candidates = [Candidate(f"n{at}", zone=zone, load=loads[at]) for at, zone in enumerate(zones)]
    chosen = place(shard, candidates, replicas)
    assert len(set(chosen)) == len(chosen) == min(replicas, len(zones))
    assert place(shard, candidates[::-1], replicas) == chosen
    scores = [score(shard, candidates[int(node[1:])]) for node in chosen]
    assert scores == sorted(scores, reverse=True)
    used = Counter(zones[int(node[1:])] for node in chosen)
    for zone in set(zones):
        room = zones.count(zone) - used[zone]
        assert not room or used[zone] >= max(used.values()) - 1


@given(shard=st.integers(0, 1 << 32), zones=st.lists(st.sampled_from("abc"), min_size=2, max_size=10),
       replicas=st.integers(1, 5))
def test_at_most_one_replica_moves_when_a_node_comes_into_any_zone(shard, zones, replicas):
    candidates = [Candidate(f"n{at}", zone=zone) for at, zone in enumerate(zones)]
    before, after = set(place(shard, candidates[:-1], replicas)), set(place(shard, candidates, replicas))
    assert len(before - after) <= 1
    assert after - before <= {candidates[-1].node}


def test_what_cannot_be_placed_is_refused():
    with pytest.raises(InvalidArgument):
        place(1, [], 3)
    with pytest.raises(InvalidArgument):
        place(1, [Candidate("a"), Candidate("a")], 3)
    for capacity in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument):
            Candidate("a", capacity=capacity)
