"""A group's members follow the wanted nodes: it gets there from anywhere, and never by way of fewer copies."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb.core.calls import Call
from vecdb.core.errors import DeadlineExceeded, InvalidArgument, NotLeader, Unavailable, VecdbError
from vecdb.ports.replicator import ReplicaStatus
from vecdb.runtime.clock import SystemClock
from vecdb.services import keeping
from vecdb.services.keeping import MemberKeeper, Step, Wanted, next_step

NODES = ("n1", "n2", "n3", "n4", "n5", "n6")


def status(voters: Sequence[str], joining: Sequence[str] = (), learners: Sequence[str] = (), me: str = "",
           heard_s: dict[str, float] | None = None) -> ReplicaStatus:
    return ReplicaStatus(me or voters[0], "ok", "leader", 1, me or voters[0], 1, 1, 1, 1, 0, tuple(voters),
                         tuple(learners), tuple(joining), heard_s=heard_s or {})


def test_a_move_adds_waits_and_then_takes_away() -> None:
    desired = ("n1", "n2", "n4")
    assert next_step(desired, status(["n1/1", "n2/1", "n3/1"]), {}) is None
    assert next_step(desired, status(["n1/1", "n2/1", "n3/1"]), {"n4": "n4/9"}) == Step(add="n4/9")
    assert next_step(desired, status(["n1/1", "n2/1", "n3/1"], ["n4/9"]), {}) is None
    assert next_step(desired, status(["n1/1", "n2/1", "n3/1", "n4/9"]), {}) == Step(remove="n3/1")
    assert next_step(desired, status(["n1/1", "n2/1", "n4/9"]), {}) is None


def test_a_cancelled_move_takes_the_joining_one_away_at_once() -> None:
    desired = ("n1", "n2", "n3")
    assert next_step(desired, status(["n1/1", "n2/1", "n3/1"], ["n4/9"]), {}) == Step(remove="n4/9")
    assert next_step(desired, status(["n1/1", "n2/1", "n3/1"], learners=["n4/9"]), {}) == Step(remove="n4/9")


def test_of_several_the_silent_one_goes_first_and_the_leader_last() -> None:
    four = status(["n1/1", "n2/1", "n3/1", "n4/1"], heard_s={"n2/1": 0.1, "n3/1": 9.0, "n4/1": 0.0})
    assert next_step(("n4",), four, {}) == Step(remove="n3/1")
    assert next_step(("n4",), status(["n1/1", "n4/1"]), {}) == Step(remove="n1/1")


def test_nobody_is_given_up_for_a_node_that_is_away() -> None:
    assert next_step(("n1", "n4"), status(["n1/1", "n2/1", "n3/1"]), {}) is None
    assert next_step((), status(["n1/1"]), {}) is None


@given(st.lists(st.sampled_from(NODES), min_size=1, max_size=5, unique=True),
       st.lists(st.lists(st.sampled_from(NODES), min_size=1, max_size=5, unique=True), min_size=1, max_size=3),
       st.randoms(use_true_random=False))
def test_it_gets_there_from_anywhere_and_never_has_too_few(begin: list[str], wishes: list[list[str]], random: Any
                                                           ) -> None:
    """Wishes change on the way; promotions and leaders come as they like."""
    now = status([f"{node}/1" for node in begin])
    number, fewest = 2, len(begin)
    for wish, desired in enumerate(wishes):
        fewest = min(len(now.voters), len(desired))
        patience = 200 if wish == len(wishes) - 1 else random.randrange(6)
        for _ in range(patience):
            now = replace(now, me=random.choice(now.voters))
            if now.joining and random.random() < 0.5:
                one = random.choice(now.joining)
                now = replace(now, voters=(*now.voters, one), joining=tuple(x for x in now.joining if x != one))
                continue
            here = {one.partition("/")[0] for one in (*now.voters, *now.joining)}
            offered = {node: f"{node}/{number}" for node in desired if node not in here and random.random() < 0.7}
            number += 1
            step = next_step(desired, now, offered)
            if step is None:
                continue
            assert (step.add is None) != (step.remove is None)
            if step.add is not None:
                now = replace(now, joining=(*now.joining, step.add))
            else:
                assert step.remove != now.me or len(now.voters) == len(desired) + 1, "the leader goes last"
                now = replace(now, voters=tuple(x for x in now.voters if x != step.remove),
                              joining=tuple(x for x in now.joining if x != step.remove))
            assert len(now.voters) >= fewest
    assert sorted(one.partition("/")[0] for one in now.voters) == sorted(desired)
    assert not now.joining


class Group:
    """A group led here, and the other nodes' replicas."""

    def __init__(self, now: ReplicaStatus) -> None:
        self.now = now
        self.made: list[Step] = []
        self.refuse: VecdbError | None = None
        self.away: set[str] = set()
        self.failing: dict[str, VecdbError] = {}
        self.hanging: set[str] = set()

    def look(self, group: int) -> ReplicaStatus | None:
        return self.now

    def replicator(self, group: int) -> Any:
        return self

    async def change_members(self, add: str | None, remove: str | None, deadline: float | None) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.made.append(Step(add, remove))

    def others(self, node: str) -> Any:
        group = self

        class Other:
            async def status(self, groups: Sequence[int], call: Call) -> dict[int, ReplicaStatus]:
                if node in group.away:
                    raise Unavailable("away")
                if node in group.failing:
                    raise group.failing[node]
                if node in group.hanging:
                    await asyncio.Event().wait()
                return {7: replace(status([f"{node}/5"], me=f"{node}/5"), state="joining", role="learner", voters=())}

        return Other()


@pytest.mark.parametrize("away", [False, True])
def test_the_keeper_asks_the_wanted_node_for_its_replica(away: bool) -> None:
    async def run() -> list[Step]:
        group = Group(status(["n1/1", "n2/1", "n3/1"]))
        group.away = {"n4"} if away else set()
        keeper = MemberKeeper("n1", group, lambda: [Wanted(7, ("n1", "n2", "n4"), "docs")], group.others, SystemClock())
        keeper.look()
        await asyncio.gather(*keeper._busy.values())
        await keeper.stop()
        return group.made

    assert asyncio.run(run()) == ([] if away else [Step(add="n4/5")])


@pytest.mark.parametrize("hangs", [False, True])
def test_a_node_that_hangs_or_fails_keeps_no_other_from_being_taken_in(hangs: bool) -> None:
    async def run() -> None:
        group = Group(status(["n1/1", "n2/1", "n3/1"]))
        if hangs:
            group.hanging = {"n4"}
        else:
            group.failing = {"n4": DeadlineExceeded("it did not answer"), "n6": InvalidArgument("group", "what?")}
        keeper = MemberKeeper("n1", group, lambda: [Wanted(7, ("n6", "n4", "n5"), "docs")], group.others, SystemClock())
        keeper.look()
        async with asyncio.timeout(60):
            await asyncio.gather(*keeper._busy.values())
        assert group.made in ([Step(add="n5/5")], [Step(add="n6/5")][:hangs])
        await keeper.stop()

    asyncio.run(run())


def test_a_node_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "ASK_S", 0.05)

    async def run() -> None:
        group = Group(status(["n1/1", "n2/1", "n3/1"]))
        group.hanging = {"n4"}
        keeper = MemberKeeper("n1", group, lambda: [Wanted(7, ("n1", "n2", "n4"), "docs")], group.others, SystemClock())
        keeper.look()
        async with asyncio.timeout(60):
            await asyncio.gather(*keeper._busy.values())
        assert group.made == []

    asyncio.run(run())


def test_a_failure_is_told_once_and_a_hand_over_is_none() -> None:
    async def run(error: VecdbError) -> list[str]:
        group = Group(status(["n1/1", "n2/1", "n3/1", "n4/1"]))
        group.refuse = error
        told: list[str] = []
        keeper = MemberKeeper("n1", group, lambda: [Wanted(7, ("n1", "n2", "n4"), "docs")], group.others, SystemClock(),
                              tell=lambda level, event, **fields: told.append(event))
        for _ in range(3):
            keeper.look()
            await asyncio.gather(*keeper._busy.values())
        return told

    assert asyncio.run(run(Unavailable("no majority"))) == ["members_stuck"]
    assert asyncio.run(run(NotLeader("handed over", leader="n2/1"))) == []


def test_groups_that_others_lead_or_that_are_as_they_should_be_are_left_alone() -> None:
    async def run() -> list[Step]:
        group = Group(replace(status(["n1/1", "n2/1", "n3/1"]), role="follower"))
        keeper = MemberKeeper("n1", group, lambda: [Wanted(7, ("n4",), "docs")], group.others, SystemClock())
        keeper.look()
        group.now = status(["n4/1"], me="n4/1")
        keeper.look()
        assert not keeper._busy
        return group.made

    assert asyncio.run(run()) == []
