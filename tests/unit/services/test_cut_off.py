"""A node that reaches no other member of a group says so to who knows of other nodes; to others it waits."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from vecdb.core.calls import Call
from vecdb.core.errors import NodeRemoved, NoNodeForReplica, NotLeader, OutcomeUnknown, Unavailable, VecdbError
from vecdb.runtime.clock import SystemClock
from vecdb.services import leaders
from vecdb.services.leaders import Leaders, Task

NODES = ("a", "b", "c")
LONG_S = 30.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaders, "PATIENCE_S", 0.02)
    monkeypatch.setattr(leaders, "ALONE_S", 0.02)


class Group:
    """As node ``a`` sees it: whom its own replica takes for the leader, and what the others say of that."""

    def __init__(self, known: str | None, says: str | VecdbError | None = None, *, silent: bool = False) -> None:
        self.known = known
        self.says = says
        self.silent = silent
        self.asked = 0
        self.leaders = Leaders("a", lambda group: self.known, self._ask_leader, SystemClock(), Random(7))

    async def _ask_leader(self, group: int, node: str) -> str | None:
        self.asked += 1
        if self.silent:
            await asyncio.sleep(LONG_S)
        if isinstance(self.says, VecdbError):
            raise self.says
        return self.says

    def ask(self, ask: Callable[[str], Awaitable[str]], seconds: float = LONG_S, *, elsewhere: bool = True,
            reads: bool = False) -> str:
        async def run() -> str:
            call = Call(deadline=SystemClock().monotonic() + seconds)
            async with asyncio.timeout(LONG_S / 2):
                return await self.leaders.ask(Task(5, NODES, call, reads=reads, elsewhere=elsewhere), ask)

        return asyncio.run(run())


async def hangs(node: str) -> str:
    await asyncio.sleep(LONG_S)
    return node


async def unreachable(node: str) -> str:
    if node == "a":
        raise NotLeader("this group has no leader at the moment")
    raise Unavailable(f"node {node} cannot be reached")


@pytest.mark.parametrize("known", ["a", "b"], ids=["as the leader", "as a follower"])
def test_an_attempt_without_an_end_is_given_up(known: str) -> None:
    for group in (Group(known, silent=True), Group(known, Unavailable("cannot be reached"))):
        with pytest.raises(OutcomeUnknown) as caught:
            group.ask(hangs)
        assert caught.value.fields["elsewhere"] is True
        with pytest.raises(Unavailable) as read:
            group.ask(hangs, reads=True)
        assert read.value.fields["elsewhere"] is True


def test_what_was_given_up_is_cancelled() -> None:
    ended: list[str] = []

    async def tells(node: str) -> str:
        try:
            return await hangs(node)
        finally:
            ended.append(node)

    with pytest.raises(OutcomeUnknown):
        Group("a", silent=True).ask(tells)
    assert ended == ["a"]


def test_where_nobody_leads_and_nobody_can_be_reached_nothing_was_done() -> None:
    with pytest.raises(Unavailable, match="nothing was done") as caught:
        Group(None, silent=True).ask(unreachable)
    assert caught.value.fields["elsewhere"] is True


def test_what_may_have_been_done_before_stays_open() -> None:
    tried: list[str] = []

    async def loses(node: str) -> str:
        tried.append(node)
        if tried == ["a"]:
            raise OutcomeUnknown("the leadership ended before the write was committed", leader=None)
        return await unreachable(node)

    with pytest.raises(OutcomeUnknown) as caught:
        Group("a", silent=True).ask(loses)
    assert caught.value.fields["elsewhere"] is True
    assert {"b", "c"} <= set(tried)


def test_who_knows_of_no_other_node_waits() -> None:
    group = Group("a", silent=True)

    async def slow(node: str) -> str:
        await asyncio.sleep(0.3)
        return node

    assert group.ask(slow, elsewhere=False) == "a"
    assert group.asked == 0
    with pytest.raises(Unavailable) as caught:
        Group(None, silent=True).ask(unreachable, 0.3, elsewhere=False)
    assert "elsewhere" not in caught.value.fields


def test_an_election_is_waited_for_and_so_is_a_slow_leader() -> None:
    group = Group(None, None)

    async def elects(node: str) -> str:
        if group.asked < 3:
            return await unreachable(node)
        group.known = "a"
        await asyncio.sleep(0.1)
        return node if node == "a" else await unreachable(node)

    assert group.ask(elects) == "a"
    assert group.asked >= 4


def test_one_other_member_that_answers_is_enough() -> None:
    group = Group("a")

    async def one_of_two(number: int, node: str) -> str | None:
        if node == "b":
            await asyncio.sleep(LONG_S)
        return None

    group.leaders = Leaders("a", lambda group: "a", one_of_two, SystemClock(), Random(7))

    async def slow(node: str) -> str:
        await asyncio.sleep(0.3)
        return node

    assert group.ask(slow) == "a"


def test_a_group_of_one_is_not_alone() -> None:
    async def run() -> str:
        group = Group("a", silent=True)

        async def slow(node: str) -> str:
            await asyncio.sleep(0.1)
            return node

        return await group.leaders.ask(Task(5, ("a",), Call(), elsewhere=True), slow)

    assert asyncio.run(run()) == "a"


def test_what_asking_again_does_not_change_is_told_at_once() -> None:
    """A plan that no node can meet; and a node that the others refuse, for it was removed."""
    here = NodeRemoved("node b says: 'a' was removed")
    here.here = True
    for error in (NoNodeForReplica("there are 2 nodes"), here):
        asked: list[str] = []

        async def refuses(node: str, error: VecdbError = error, asked: list[str] = asked) -> str:
            asked.append(node)
            raise error

        with pytest.raises(type(error)):
            Group("b").ask(refuses)
        assert asked == ["b"]


def test_another_node_that_was_removed_is_passed_over() -> None:
    async def gone(node: str) -> str:
        if node == "b":
            raise NodeRemoved("this node was removed")
        return node

    assert Group("b").ask(gone) in ("a", "c")
