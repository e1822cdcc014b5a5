"""What a node makes of finding that it reaches no other member of a group."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from vecdb.core.calls import Call
from vecdb.core.errors import Unavailable
from vecdb.services.coordinator import cut_off
from vecdb.services.coordinator.cut_off import AGAIN_S, HEARD_S, LASTS_S, CutOff
from vecdb.services.leaders import Task

TASK = Task(5, ("a", "b", "c"), Call(), reads=True, name="docs", elsewhere=True)
OTHER = Task(6, ("a", "b", "c"), Call(), reads=True, name="more", elsewhere=True)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class Node:
    """``alone``: what is found out; ``hears``: of a leader that is another node."""

    def __init__(self) -> None:
        self.alone, self.hears, self.asked = True, False, 0
        self.clock = Clock()
        self.cut_off = CutOff(self._alone, lambda group: self.hears, self.clock)  # type: ignore[arg-type]

    async def _alone(self, task: Task) -> bool:
        self.asked += 1
        await asyncio.sleep(0)
        return self.alone


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_off, "PATIENCE_S", 0.01)


def run(work: Callable[[Node], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work(Node()))


async def hangs() -> str:
    await asyncio.sleep(60)
    return "too late"


def test_what_hangs_is_given_up_where_nobody_says_anything_and_waited_for_where_one_does() -> None:
    async def work(node: Node) -> None:
        with pytest.raises(Unavailable, match="reaches no other member of 'docs'") as caught:
            await node.cut_off.watch(TASK, hangs())
        assert caught.value.fields["elsewhere"] is True
        node.alone = False

        async def slow() -> str:
            await asyncio.sleep(0.1)
            return "found"

        assert await node.cut_off.watch(TASK, slow()) == "found"
        assert not node.cut_off.known(TASK), "one has spoken"

    run(work)


def test_who_comes_after_is_refused_at_once_until_somebody_says_something() -> None:
    async def work(node: Node) -> None:
        await asyncio.gather(*(node.cut_off.look(TASK) for _ in range(5)), return_exceptions=True)
        assert node.asked == 1, "one question at a time"
        with pytest.raises(Unavailable):
            node.cut_off.check(TASK)
        assert not node.cut_off.known(OTHER)
        assert node.asked == 1
        node.clock.now += AGAIN_S
        node.alone = False
        assert node.cut_off.known(TASK)
        await asyncio.sleep(0.01)
        assert node.asked == 2, "in the background"
        node.cut_off.check(TASK)

    run(work)


def test_a_finding_lasts_while_no_leader_is_heard_of() -> None:
    async def work(node: Node) -> None:
        node.cut_off.note(5)
        node.clock.now += LASTS_S - 1
        assert node.cut_off.known(TASK)
        await asyncio.sleep(0.01)
        node.hears = True
        node.clock.now += HEARD_S
        assert not node.cut_off.known(TASK)
        node.hears = False
        assert not node.cut_off.known(TASK), "it is forgotten"

    run(work)
