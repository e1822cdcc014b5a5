"""Who hands which leadership to whom: that it ends, that it is even, and when nothing is handed over."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb.cluster.control import CollectionEntry, ControlState, JobEntry, ShardEntry
from vecdb.core.calls import Call
from vecdb.core.cluster import JobState
from vecdb.core.errors import Unavailable
from vecdb.core.schema import CollectionSchema
from vecdb.ports.replicator import ReplicaStatus
from vecdb.services.balance import MOST, Balancer, BalanceSettings, at_once, choose
from vecdb.services.replicas import CONTROL

NODES = ("n1", "n2", "n3", "n4", "n5")


def test_the_group_that_stands_first_goes_to_the_node_that_leads_fewest() -> None:
    leaders = {1: "n1", 2: "n1", 3: "n1", 4: "n2", 5: "n3", 6: "n3", 7: None}
    able = {3: ["n2", "n3"], 1: ["n2", "n3"], 2: ["n2"]}
    assert choose("n1", leaders, able) == (3, "n2")
    assert choose("n1", leaders, {1: ["n3"], 3: ["n2"]}) == (3, "n2")
    assert choose("n1", leaders, {1: ["n3"]}) is None
    assert choose("n1", leaders, {}) is None
    assert choose("n3", leaders, able) is None
    assert choose("n3", leaders, {5: ["n2", "n1"]}) is None
    assert choose("n1", {1: "n1", 2: "n1"}, {1: ["n1"], 2: ["n1"]}) is None


@given(st.lists(st.sampled_from(NODES), max_size=30), st.integers(2, 5), st.randoms())
def test_where_all_can_take_all_it_ends_with_differences_below_two(led: list[str], count: int, random: Any) -> None:
    nodes = NODES[:count]
    leaders: dict[int, str | None] = {group: nodes[NODES.index(node) % count] for group, node in enumerate(led, 1)}
    for moves in range(len(leaders) + 1):
        chosen = {node: found for node in nodes if (found := choose(node, leaders, _all_of(node, leaders, nodes)))}
        if not chosen:
            break
        assert moves < len(leaders), "more hand-overs than there are groups"
        group, to = chosen[random.choice(sorted(chosen))]
        leaders[group] = to
    counts = Counter(leaders.values())
    assert max(counts[node] for node in nodes) - min(counts[node] for node in nodes) < 2


def _all_of(node: str, leaders: dict[int, str | None], nodes: Iterable[str]) -> dict[int, list[str]]:
    return {group: [one for one in nodes if one != node] for group, leader in leaders.items() if leader == node}


@given(st.lists(st.sets(st.sampled_from(NODES), min_size=1, max_size=3), max_size=25), st.randoms())
def test_it_ends_wherever_replicas_are_and_never_turns_an_imbalance_round(places: list[set[str]], random: Any) -> None:
    leaders: dict[int, str | None] = {group: random.choice(sorted(held)) for group, held in enumerate(places, 1)}
    squares = _squares(leaders)
    while True:
        chosen = {}
        for node in NODES:
            movable = {group: sorted(places[group - 1] - {node}) for group, leader in leaders.items() if leader == node}
            if found := choose(node, leaders, movable):
                chosen[node] = found
                assert found[1] in movable[found[0]]
        if not chosen:
            return
        node = random.choice(sorted(chosen))
        group, to = chosen[node]
        leaders[group] = to
        counts = Counter(leaders.values())
        assert counts[to] <= counts[node]
        assert _squares(leaders) < squares  # so it cannot come back to where it was
        squares = _squares(leaders)


def _squares(leaders: dict[int, str | None]) -> int:
    return sum(count * count for count in Counter(leaders.values()).values())


@given(st.lists(st.sampled_from(NODES), max_size=200), st.integers(2, 5), st.randoms())
def test_who_gives_several_at_a_look_never_turns_an_imbalance_round_and_needs_few_looks(
        led: list[str], count: int, random: Any) -> None:
    nodes = NODES[:count]
    leaders: dict[int, str | None] = {group: nodes[NODES.index(node) % count] for group, node in enumerate(led, 1)}
    while True:
        able = [node for node in nodes if choose(node, leaders, _all_of(node, leaders, nodes))]
        if not able:
            return
        node, most, given = random.choice(able), 1, 0
        while given < most and (chosen := choose(node, leaders, _all_of(node, leaders, nodes))):
            group, to = chosen
            counts, squares = Counter(leaders.values()), _squares(leaders)
            most = at_once(counts[node] - counts[to]) if not given else most
            leaders[group] = to
            given += 1
            assert _squares(leaders) < squares
        assert 1 <= given <= MOST


def test_how_many_at_once() -> None:
    assert [at_once(one) for one in (2, 4, 7, 8, 12, 31, 54, 10_000)] == [1, 1, 1, 2, 3, 7, MOST, MOST]


# --- the balancer -------------------------------------------------------------------------------------


class World:
    """The groups of a cluster as ``me`` sees them, and the others when they are asked."""

    def __init__(self, places: dict[int, str], leaders: dict[int, str], me: str = "n1") -> None:
        """``places``: numbers of the nodes with replicas, as ``123``."""
        self.nodes = {group: tuple(f"n{one}/7" for one in held) for group, held in places.items()}
        self.leaders: dict[int, str | None] = dict(leaders)
        self.terms = dict.fromkeys(places, 1)
        self.changes: dict[int, dict[str, Any]] = {}
        self.me, self.well = me, True
        self.given: list[tuple[int, str]] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.now, self.slept = 100.0, list[float]()
        shards = {group: ShardEntry.only(CollectionSchema(name=f"c{group}", dim=2), group, held)
                  for group, held in self.nodes.items()}
        self.state = ControlState({one.name: CollectionEntry(one.schema, (group,), 3) for group, one in shards.items()},
                                  shards)

    def look(self, group: int, at: str | None = None) -> ReplicaStatus | None:
        assert group != CONTROL
        me, leader, names = f"{at or self.me}/7", self.leaders[group], self.nodes[group]
        others = [one for one in names if one != me]
        if me not in names:
            return None
        told = {"me": me, "state": "ok", "role": "leader" if me == f"{leader}/7" else "follower",
                "term": self.terms[group], "leader": leader and f"{leader}/7", "commit": 5_000, "applied": 5_000,
                "first": 1, "last": 5_000, "log_bytes": 1, "voters": names, "matches": dict.fromkeys(others, 5_000),
                "heard_s": dict.fromkeys(others, 0.1), "steady_s": dict.fromkeys(others, 60.0)}
        return ReplicaStatus(**{**told, **self.changes.get(group, {})})

    async def transfer(self, group: int, to: str | None, call: Call) -> None:
        assert to is not None
        assert call.deadline is not None
        assert call.deadline > self.now
        if self.error is not None:
            raise self.error
        self.given.append((group, to))
        self.lead(group, to.partition("/")[0])

    def lead(self, group: int, node: str) -> None:
        self.leaders[group] = node
        self.terms[group] += 1

    def other(self, name: str) -> Any:
        world = self

        class Other:
            async def status(self, groups: Sequence[int], call: Call) -> dict[int, ReplicaStatus]:
                world.asked.append(name)
                if world.error is not None:
                    raise world.error
                return {group: status for group in groups if (status := world.look(group, name)) is not None}

        return Other()

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        raise AssertionError("it blocks the loop")

    def balancer(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> Balancer:
        return Balancer(self.me, self, lambda: self.state, self.other, self, Random(1), well=lambda: self.well,
                        tell=lambda level, event, **fields: self.told.append((event, fields)), sleep=sleep)

    def looks(self, count: int = 1) -> list[tuple[int, str]]:
        """What is given away in so many looks of a new balancer."""
        balancer = self.balancer()

        async def look() -> None:
            for _ in range(count):
                await balancer.look()

        asyncio.run(look())
        return self.given


def three(count: int) -> World:
    """Groups on three nodes, all led by the first."""
    return World(dict.fromkeys(range(1, count + 1), "123"), dict.fromkeys(range(1, count + 1), "n1"))


def test_one_a_look_until_it_is_even() -> None:
    world = three(7)
    assert world.looks(9) == [(1, "n2/7"), (2, "n3/7"), (3, "n2/7"), (4, "n3/7")]
    assert [event for event, _ in world.told] == ["leader_balanced"] * 4
    assert world.told[0][1] == {"group": 1, "collection": "c1", "to": "n2", "left": 6}
    assert world.asked == ["n2", "n3", "n2", "n3"], "only whether it has applied what was committed"


def test_who_leads_far_too_many_gives_some_at_the_same_time() -> None:
    world = three(56)
    together = 0

    async def transfer(group: int, to: str | None, call: Call) -> None:
        nonlocal together
        together += 1
        await asyncio.sleep(0)  # all others have begun before any is done
        assert together >= MOST
        await World.transfer(world, group, to, call)

    world.transfer = transfer  # type: ignore[method-assign]
    assert world.looks() == [(group, f"n{2 + (group + 1) % 2}/7") for group in range(1, MOST + 1)]
    assert [fields["left"] for _, fields in world.told] == list(range(55, 55 - MOST, -1))
    world.given.clear()
    world.looks(40)
    counts = Counter(world.leaders.values())
    assert max(counts.values()) - min(counts.values()) < 2


def test_a_group_that_came_back_is_not_given_again_within_a_minute() -> None:
    world = World(dict.fromkeys((1, 2, 3), "123"), {1: "n1", 2: "n1", 3: "n2"})
    balancer = world.balancer()

    async def looks() -> None:
        await balancer.look()
        assert world.given == [(1, "n3/7")]
        world.lead(1, "n1")
        world.changes[2] = {"learners": ("n4/7",)}
        for _ in range(3):
            world.now += 19
            await balancer.look()
        assert world.given == [(1, "n3/7")]
        world.now += 19
        await balancer.look()

    asyncio.run(looks())
    assert world.given == [(1, "n3/7")] * 2


def test_a_difference_of_one_stays() -> None:
    assert three(1).looks(3) == []
    assert World({1: "123", 2: "123"}, {1: "n1", 2: "n2"}).looks(3) == []


def test_what_was_won_last_is_given_away_last() -> None:
    world = World(dict.fromkeys((1, 2, 3), "123"), {1: "n3", 2: "n1", 3: "n2"})
    balancer = world.balancer()

    async def look() -> None:
        await balancer.look()
        world.lead(1, "n1")
        for _ in range(3):
            await balancer.look()

    asyncio.run(look())
    assert world.given == [(2, "n3/7")]


@pytest.mark.parametrize("change", [
    {"heard_s": {"n2/7": 1.5, "n3/7": 1.5}}, {"heard_s": {}}, {"matches": {"n2/7": 4_000, "n3/7": 3_999}},
    {"matches": {}}, {"learners": ("n4/7",)}, {"joining": ("n4/7",)}, {"voters": ("n1/7",)}, {"state": "halted"},
    {"steady_s": {"n2/7": 9.0, "n3/7": 9.0}}, {"steady_s": {}},
])
def test_nobody_is_given_what_he_cannot_take(change: dict[str, Any]) -> None:
    world = three(4)
    world.changes = dict.fromkeys((1, 2, 3), change)
    assert world.looks() == [(4, "n2/7")]
    world = three(4)
    world.changes = dict.fromkeys((1, 2, 3, 4), change)
    assert world.looks(2) == []


@pytest.mark.parametrize("change", [{"applied": 4_000}, {"current": False}, {"state": "joining"}])
def test_who_has_not_applied_what_was_committed_is_given_nothing(change: dict[str, Any]) -> None:
    world, look = three(4), World.look

    def behind(group: int, at: str | None = None) -> ReplicaStatus | None:
        status = look(world, group, at)
        return status if at is None or status is None else replace(status, **change)

    world.look = behind  # type: ignore[method-assign]
    assert world.looks(2) == []
    assert [event for event, _ in world.told] == ["leader_not_balanced"] * 2
    world.look = partial(look, world)  # type: ignore[method-assign]
    assert world.looks() == [(1, "n2/7")]


@pytest.mark.parametrize("job", [
    JobEntry(1, "rebalance", "", {}, JobState.RUNNING, data={"moving": {"1": {"desired": [], "before": []}}}),
    JobEntry(1, "split", "1", {}, JobState.WAITING), JobEntry(1, "merge", "9", {"with": "1"}, JobState.RUNNING)])
def test_a_shard_that_a_job_changes_stays_with_who_leads_it(job: JobEntry) -> None:
    world = three(4)
    world.state = replace(world.state, jobs={1: job})
    assert world.looks() == [(2, "n2/7")]
    world = three(4)
    world.state = replace(world.state, jobs={1: replace(job, state=JobState.DONE)})
    assert world.looks() == [(1, "n2/7")]


def test_nothing_is_moved_while_something_is_wrong() -> None:
    world = three(4)
    world.well = False
    assert world.looks() == []
    world = three(4)
    world.leaders[4] = None
    assert world.looks() == []
    world = three(4)
    world.changes[2] = {"leader": None, "role": "candidate"}
    assert world.looks() == []


def test_a_node_that_has_just_lost_a_leadership_is_not_given_one() -> None:
    world = World(dict.fromkeys(range(1, 6), "123"), {1: "n1", 2: "n1", 3: "n2", 4: "n2", 5: "n3"})
    balancer = world.balancer()

    async def looks() -> None:
        await balancer.look()
        world.lead(5, "n1")  # as the third stops
        await balancer.look()
        assert world.given == []
        await balancer.look()

    asyncio.run(looks())
    assert world.given == [(1, "n3/7")]


def test_a_lost_leadership_is_noticed_over_a_time_without_a_leader() -> None:
    world = World(dict.fromkeys(range(1, 6), "123"), {1: "n1", 2: "n1", 3: "n2", 4: "n3", 5: "n2"})
    balancer = world.balancer()

    async def looks() -> None:
        await balancer.look()
        world.leaders[4] = None
        await balancer.look()
        world.lead(4, "n1")
        await balancer.look()

    asyncio.run(looks())
    assert world.given == []


def test_a_node_that_leads_what_is_not_here_is_asked_and_spared() -> None:
    """Two nodes that see too little of each other would hand group 1 or 2 to and fro for ever."""
    places = {1: "125", 2: "125"} | dict.fromkeys(range(3, 8), "234")
    world = World(places, {1: "n1", 2: "n1", 5: "n3", 6: "n3", 7: "n4"} | dict.fromkeys((3, 4), "n2"))
    world.changes = {group: {"heard_s": {"n2/7": 0.1}} for group in (1, 2)}
    assert world.looks(2) == []
    assert world.asked == ["n2", "n2"]
    world.leaders |= {3: "n3", 4: "n4"}
    assert world.looks() == [(1, "n2/7")]


def test_one_that_cannot_be_asked_is_passed_over() -> None:
    world = World({1: "123", 2: "123", 3: "123", 4: "234"}, {1: "n1", 2: "n1", 3: "n1", 4: "n4"})
    world.error = Unavailable("it is away")
    assert world.looks() == []
    assert world.asked == ["n2", "n3"]
    assert [event for event, _ in world.told] == ["leader_not_balanced"] * 2


def test_a_hand_over_that_fails_is_told_and_tried_again() -> None:
    world = three(3)
    world.error = Unavailable("it did not take over in time")
    assert world.looks(2) == []
    assert [(event, fields["to"], fields["group"]) for event, fields in world.told] \
        == [("leader_not_balanced", "n2", 1)] * 2


def test_it_looks_at_its_times_until_it_is_stopped_and_survives_what_is_raised() -> None:
    world = three(7)
    settings = BalanceSettings()
    looks = 0

    async def run() -> None:
        nonlocal looks
        done = asyncio.Event()

        async def sleep(seconds: float) -> None:
            world.slept.append(seconds)
            world.error = ValueError("a bug") if len(world.slept) == 2 else None
            if len(world.slept) == 5:
                done.set()
                await asyncio.Event().wait()

        balancer = world.balancer(sleep)
        balancer.start()
        await done.wait()
        looks = len(world.given)
        await balancer.stop()
        await balancer.stop()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert looks == 3
    assert [event for event, _ in world.told].count("leader_not_balanced") == 1
    assert settings.first_s <= world.slept[0] <= settings.first_s * (1 + settings.jitter)
    assert all(settings.period_s <= one <= settings.period_s * (1 + settings.jitter) for one in world.slept[1:])
    assert len(set(world.slept[1:])) == 4, "they differ from time to time"
