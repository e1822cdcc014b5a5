"""Whom a read is asked of, when it is asked for twice, and what travels together."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from vecdb.core.calls import Call
from vecdb.core.errors import DeadlineExceeded, InvalidArgument, Unavailable
from vecdb.core.query import Matches, QueryRequest, QueryResult
from vecdb.services.coordinator.gathering import FEW_ROWS, MOST_ROWS, Gathering
from vecdb.services.coordinator.loads import EXTRA, FAILED_S, HALVED_S, LEAST_S, SAVED, SURE, UNSURE_S, Budget, Loads


def test_who_is_slow_busy_far_or_has_failed_is_asked_less() -> None:
    loads = Loads()
    assert loads.load("a", 0.0, near=True) == loads.load("b", 0.0, near=True)
    loads.began("a")
    assert loads.load("a", 0.0, near=True) == 2 * loads.load("b", 0.0, near=True), "who has a call under way"
    loads.ended("a", 1.0, 0.02)
    assert loads.load("a", 1.0, near=True) > loads.load("b", 1.0, near=False), "who is slow, even if others are far"
    assert loads.load("b", 1.0, near=False) == 2 * loads.load("b", 1.0, near=True)
    assert loads.load("a", 1.0 + HALVED_S, near=True) == pytest.approx(0.01), "by and by that is forgotten"
    loads.began("b")
    loads.ended("b", 2.0, 0.001, failed=True)
    assert loads.load("b", 2.0, near=True) >= FAILED_S
    assert loads.load("b", 2.1 + FAILED_S, near=True) < FAILED_S
    loads.began("a")
    loads.ended("a", 3.0, 5.0, given_up=True)
    assert loads.load("a", 3.0, near=True) > 1.0, "who was given up on takes as long at least"


def test_a_second_attempt_comes_after_what_most_take() -> None:
    loads = Loads()
    assert loads.hedge_after(1, "query") == UNSURE_S
    for at in range(SURE):
        loads.answered(1, "query", 0.010 + at * 0.001)
    assert loads.hedge_after(1, "query") == pytest.approx(0.025)
    assert loads.hedge_after(1, "count") == UNSURE_S, "another kind of read"
    for _ in range(200):
        loads.answered(2, "query", 1e-5)
    assert loads.hedge_after(2, "query") == LEAST_S
    assert loads.stuck_after(2, "query") >= 0.5


def test_second_attempts_are_few() -> None:
    budget = Budget()
    second = 0
    for _ in range(10_000):
        budget.gain()
        second += budget.take()
    assert second <= 10_000 * EXTRA + SAVED + 1
    assert second >= 10_000 * EXTRA - 1


class Shard:
    """Answers each query with its first component when it is let."""

    def __init__(self) -> None:
        self.calls: list[tuple[QueryRequest, Call]] = []
        self.open = asyncio.Event()
        self.failing: Exception | None = None

    async def ask(self, request: QueryRequest, call: Call) -> QueryResult:
        self.calls.append((request, call))
        await self.open.wait()
        if self.failing is not None and len(request.vectors) > 1:
            raise self.failing
        return QueryResult([Matches([int(row[0])], row[:1].astype(np.float32)) for row in request.vectors])


def asking(*numbers: int, **more: Any) -> QueryRequest:
    return QueryRequest(np.array([[one, 0] for one in numbers], np.float32), 3, **more)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


async def begin(gathering: Gathering, shard: Shard, *requests: QueryRequest, calls: Any = None) -> list[Any]:
    tasks = [asyncio.create_task(gathering.query((1, "n2"), one, call or Call(), shard.ask))
             for one, call in zip(requests, calls or [None] * len(requests), strict=True)]
    await asyncio.sleep(0)
    return tasks


def ids(result: QueryResult) -> list[Any]:
    return [one.ids[0] for one in result.matches]


def test_one_call_is_under_way_and_what_comes_meanwhile_goes_together() -> None:
    async def test() -> None:
        gathering, shard = Gathering(), Shard()
        tasks = await begin(gathering, shard, asking(1), asking(2), asking(3, 4), asking(5))
        assert len(shard.calls) == 1
        shard.open.set()
        assert [ids(await task) for task in tasks] == [[1], [2], [3, 4], [5]]
        assert [len(request.vectors) for request, _ in shard.calls] == [1, 4]
        assert gathering.gathered == 3
        (again,) = await begin(gathering, shard, asking(6))
        assert ids(await again) == [6], "nobody stands in a line that is done"
        assert not gathering._lanes

    run(test())


def test_only_what_is_asked_alike_goes_together() -> None:
    async def test() -> None:
        gathering, shard = Gathering(), Shard()
        big = asking(*range(FEW_ROWS + 1))
        tasks = await begin(gathering, shard, asking(1), asking(2, exact=True), asking(3, explain=True), big)
        assert len(shard.calls) == 4
        shard.open.set()
        await asyncio.gather(*tasks)
        more = await begin(gathering, Shard(), *(asking(*range(50)) for _ in range(1)))
        for task in more:
            task.cancel()

    run(test())


def test_what_goes_together_is_bounded() -> None:
    async def test() -> None:
        gathering, shard = Gathering(), Shard()
        tasks = await begin(gathering, shard, *(asking(*range(60)) for _ in range(20)))
        shard.open.set()
        await asyncio.gather(*tasks)
        assert max(len(request.vectors) for request, _ in shard.calls) < MOST_ROWS + FEW_ROWS
        assert len(shard.calls) == 4

    run(test())


def test_a_call_for_several_lasts_as_long_as_the_longest_and_sees_what_each_must() -> None:
    async def test() -> None:
        gathering, shard = Gathering(), Shard()
        calls = [Call(9.0), Call(5.0, session=((1, 4),)), Call(7.0, session=((1, 9),))]
        tasks = await begin(gathering, shard, asking(1), asking(2), asking(3), calls=calls)
        shard.open.set()
        await asyncio.gather(*tasks)
        together = shard.calls[1][1]
        assert (together.deadline, together.session) == (7.0, ((1, 9),))
        assert together.stop is not calls[1].stop

    run(test())


def test_a_fault_of_one_is_not_the_others() -> None:
    async def test() -> None:
        gathering, shard = Gathering(), Shard()
        shard.failing = InvalidArgument("vectors", "are wrong")
        tasks = await begin(gathering, shard, asking(1), asking(2), asking(3))
        shard.open.set()
        assert [ids(await task) for task in tasks] == [[1], [2], [3]]
        shard.failing = Unavailable("it went away")
        shard.open.clear()
        tasks = await begin(gathering, shard, asking(1), asking(2), asking(3))
        shard.open.set()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in ends] == [QueryResult, Unavailable, Unavailable]
        assert ends[1] is not ends[2], "each has its own"

    run(test())


def test_who_goes_is_not_waited_for() -> None:
    async def test() -> None:
        gathering, shard = Gathering(), Shard()
        first, second, third = await begin(gathering, shard, asking(1), asking(2), asking(3))
        second.cancel()
        first.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [len(request.vectors) for request, _ in shard.calls] == [1, 1], "the next one leaves"
        third.cancel()
        await asyncio.sleep(0.01)
        assert not gathering._lanes
        with pytest.raises((asyncio.CancelledError, DeadlineExceeded)):
            await third

    run(test())
