"""The batcher: who runs where, and with whom."""

import asyncio

import pytest

from tests.batches import Bench, drive, gather_everything, ids, settle
from vecdb.core.calls import Call
from vecdb.core.errors import Overloaded
from vecdb.ports.observer import Refusal

__all__ = ["gather_everything"]


def test_a_lone_query_of_a_known_lane_runs_on_the_loop() -> None:
    async def test() -> None:
        bench = Bench()
        await bench.know()
        assert ids(await bench.ask(5)) == [5]
        assert not bench.pool.waiting
        assert bench.told.batches[-1] == (1, 1, True)

    drive(test)


def test_a_lane_never_seen_and_one_that_is_slow_go_to_a_worker() -> None:
    async def test() -> None:
        bench = Bench(row_s=1.0)
        await bench.know()
        bench.clock.now += 10
        slow = bench.ask(1)
        await settle()
        assert len(bench.pool.waiting) == 1
        bench.pool.run_one()
        assert ids(await slow) == [1]

    drive(test)


def test_queries_that_come_while_one_runs_are_one_batch() -> None:
    async def test() -> None:
        bench = Bench(row_s=2.0)
        await bench.know()
        first = bench.ask(1)
        await settle()
        others = [bench.ask(row, row + 100) for row in range(2, 7)]
        await settle()
        assert len(bench.pool.waiting) == 1, "one batch of a lane at a time"
        bench.pool.run_one()
        assert ids(await first) == [1]
        assert len(bench.pool.waiting) == 1
        bench.pool.run_one()
        assert [ids(await one) for one in others] == [[row, row + 100] for row in range(2, 7)]
        assert len(bench.ran[-1][0].vectors) == 10
        assert bench.batcher.queued_rows == 0
        assert bench.batcher.running == 0

    drive(test)


def test_those_that_come_in_one_turn_of_the_loop_are_one_batch() -> None:
    async def test() -> None:
        bench = Bench()
        await bench.know()
        crowd = [bench.ask(row) for row in range(5)]
        await settle()
        assert len(bench.pool.waiting) == 1
        bench.pool.run_one()
        assert [ids(await one) for one in crowd] == [[row] for row in range(5)]
        assert bench.told.batches[-1] == (5, 5, False)
        assert ids(await bench.ask(9)) == [9]
        assert bench.told.batches[-1] == (1, 1, True), "alone again"

    drive(test)


def test_options_make_lanes_and_lanes_take_turns() -> None:
    async def test() -> None:
        bench = Bench(row_s=2.0, workers=1)
        await bench.know()
        tasks = [bench.ask(1), bench.ask(2), bench.ask(3, ef_search=9), bench.ask(4), bench.ask(5, ef_search=9)]
        await settle()
        while bench.pool.waiting:
            bench.pool.run_one()
            await asyncio.sleep(0.001)
        assert [ids(await task) for task in tasks] == [[1], [2], [3], [4], [5]]
        assert [request.ef_search for request, _ in bench.ran[1:]] == [0, 9], "by arrival, a lane at once"

    drive(test)


def test_plan_and_cost_go_to_those_who_asked() -> None:
    async def test() -> None:
        bench = Bench(row_s=2.0)
        await bench.know()
        plain = bench.ask(9)
        await settle()
        first = bench.ask(1)
        told = bench.ask(2, explain=True, profile=True)
        await settle()
        bench.pool.run_one()
        await plain
        bench.pool.run_one()
        assert (await first).plan is None
        assert (await first).cost is None
        answer = await told
        assert answer.plan == {"plan": 2}
        assert answer.cost is not None
        assert (answer.cost.batched, answer.cost.hops) == (2, 7)
        assert answer.cost.queue_ms == pytest.approx(2_000)
        assert answer.cost.compute_ms == pytest.approx(4_000)

    drive(test)


def test_too_many_waiting_rows_are_refused_with_a_time() -> None:
    async def test() -> None:
        bench = Bench(row_s=2.0, queued_rows=4)
        await bench.know()
        tasks = [bench.ask(0)]
        await settle()
        tasks += [bench.ask(row) for row in range(1, 5)]
        await settle()
        with pytest.raises(Overloaded) as refused:
            await bench.ask(9)
        assert refused.value.fields["retry_after_s"] >= 2.0
        assert bench.told.refusals == [Refusal.QUEUE]
        while bench.pool.waiting:
            bench.pool.run_one()
            await asyncio.sleep(0.001)
        assert [ids(await task)[0] for task in tasks] == [0, 1, 2, 3, 4]

    drive(test)


def test_a_first_batch_that_compiled_its_kernel_makes_nobody_late() -> None:
    async def test() -> None:
        bench = Bench(row_s=5.0, workers=1)
        first = bench.ask(0)
        await settle()
        bench.pool.run_one()
        await first
        bench.row_s = 0.001
        deadline = bench.clock.now + 1.0
        tasks = [bench.ask(row, call=Call(deadline=deadline)) for row in range(4)]
        await settle()
        while bench.pool.waiting:
            bench.pool.run_one()
            await settle()
        assert [ids(await task) for task in tasks] == [[0], [1], [2], [3]]
        assert not bench.told.refusals

    drive(test)


def test_a_lane_that_is_slow_twice_is_slow() -> None:
    async def test() -> None:
        bench = Bench(row_s=5.0, workers=1)
        await bench.know()
        running = bench.ask(0)
        await settle()
        queued = bench.ask(1)
        await settle()
        with pytest.raises(Overloaded):
            await bench.ask(2, call=Call(deadline=bench.clock.now + 1.0))
        while bench.pool.waiting:
            bench.pool.run_one()
            await settle()
        assert [ids(await running), ids(await queued)] == [[0], [1]]

    drive(test)


def test_one_that_would_be_late_is_refused_at_once() -> None:
    async def test() -> None:
        bench = Bench(row_s=2.0)
        await bench.know()
        tasks = [bench.ask(0)]
        await settle()
        tasks.append(bench.ask(1))
        await settle()
        with pytest.raises(Overloaded):
            await bench.ask(2, call=Call(deadline=bench.clock.now + 0.5))
        assert bench.told.refusals == [Refusal.DEADLINE]
        while bench.pool.waiting:
            bench.pool.run_one()
            await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)

    drive(test)
