"""The batcher: deadlines, cancellation, bounds and failures."""

import asyncio
import threading

import numpy as np
import pytest

from tests.batches import Bench, drive, gather_everything, ids, settle
from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import Cancelled, CollectionNotFound, DeadlineExceeded
from vecdb.core.query import Matches, QueryRequest, QueryResult
from vecdb.ports.observer import NullObserver
from vecdb.services.batching import QueryBatcher

__all__ = ["gather_everything"]


def test_a_deadline_ends_its_query_alone_and_the_last_stops_the_batch() -> None:
    async def test() -> None:
        bench = Bench(row_s=2.0)
        await bench.know()
        running = bench.ask(1)
        await settle()
        late, patient = bench.ask(2), bench.ask(3)
        await settle()
        bench.pool.run_one()
        await running
        late.cancel()  # both are in the batch that waits for its worker now
        with pytest.raises(asyncio.CancelledError):
            await late
        bench.pool.run_one()
        assert ids(await patient) == [3]
        assert bench.ran[-1][1].stop[0] == Stopped.NO

        bench.clock.now += 1
        alone = bench.ask(4, call=Call(deadline=bench.clock.now + 0.01))
        await settle()
        with pytest.raises(DeadlineExceeded):
            await alone
        bench.pool.run_one()  # finds its call ended: nothing is computed
        await asyncio.sleep(0.001)
        assert bench.ran[-1][0].vectors[0, 0] == 2.0
        assert bench.batcher.running == 0

    drive(test)


def test_those_who_gave_up_in_the_queue_leave_it() -> None:
    async def test() -> None:
        bench = Bench(row_s=2.0, queued_rows=1_000)
        await bench.know()
        running = bench.ask(0)
        await settle()
        waiting = [bench.ask(row) for row in range(200)]
        await settle()
        assert bench.batcher.queued_rows == 200
        for task in waiting[:150]:
            task.cancel()
        await asyncio.gather(*waiting[:150], return_exceptions=True)
        assert bench.batcher.queued_rows == 50
        bench.pool.run_one()
        await running
        bench.pool.run_one()
        assert [ids(await task) for task in waiting[150:]] == [[row] for row in range(150, 200)]
        assert bench.batcher.queued_rows == 0

    drive(test)


def test_one_that_is_late_and_cancelled_at_once_counts_once() -> None:
    """Its deadline's timer and its client's going may fall into one turn of the loop: the others' batch goes on."""
    async def test() -> None:
        bench = Bench(row_s=2.0)
        await bench.know()
        running = bench.ask(0)
        await settle()
        late, patient = bench.ask(1), bench.ask(2)
        await settle()
        bench.pool.run_one()
        await running
        await settle()
        batch = next(iter(bench.batcher._lanes.values()))
        assert batch.running == 1
        waiter = late.get_coro().cr_await  # type: ignore[union-attr]
        assert waiter is not None
        waiting = waiter.cr_frame.f_locals["waiter"]
        bench.batcher._give_up(waiting, Stopped.DEADLINE)
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        bench.pool.run_one()
        assert ids(await patient) == [2]

    drive(test)


def test_lanes_of_filters_are_let_go_with_their_work() -> None:
    async def test() -> None:
        from vecdb.core.filters import parse

        bench = Bench(row_s=1e-5)
        await bench.know()
        for number in range(50):
            task = bench.ask(number, filter=parse(f"n == {number}"))
            await settle()
            if bench.pool.waiting:
                bench.pool.run_one()
            assert ids(await task) == [number]
        assert [lane.filter for lane in bench.batcher._lanes.values()] == [None]
        assert bench.told.batches[-1][2], "what rows under a filter take is remembered for the next filter"

    drive(test)


def test_a_queue_of_one_lane_is_not_priced_as_anothers_bounded() -> None:
    """Many cheap rows wait: a dear query of another lane is next but one, and is not told of hours."""
    async def test() -> None:
        bench = Bench(row_s=0.001, queued_rows=100_000)
        await bench.know()
        bench.row_s = 2.0
        dear = bench.ask(1, ef_search=5)
        await settle()
        bench.pool.run_one()
        await dear
        bench.row_s = 0.001
        running = bench.ask(0)
        await settle()
        cheap = [bench.ask(*range(100)) for _ in range(20)]
        await settle()
        asked = bench.ask(2, ef_search=5, call=Call(deadline=bench.clock.now + 1.0))
        await settle()
        assert not asked.done(), "two thousand cheap rows are two seconds, and take turns"
        while bench.pool.waiting:
            bench.pool.run_one()
            await asyncio.sleep(0.001)
        await asyncio.gather(running, *cheap, return_exceptions=True)
        assert ids(await asked) == [2]

    drive(test)


def test_batches_are_bounded_by_what_they_should_take() -> None:
    async def test() -> None:
        bench = Bench(row_s=0.01)
        await bench.know()
        first = bench.ask(0)
        await settle()
        others = [bench.ask(row) for row in range(1, 13)]
        await settle()
        while bench.pool.waiting:
            bench.pool.run_one()
            await asyncio.sleep(0.001)
        await asyncio.gather(first, *others)
        assert [len(request.vectors) for request, _ in bench.ran[2:]] == [4, 4, 4], "rounding below 0.05 / 0.01"

    drive(test)


def test_heavy_work_is_bounded_to_leave_a_worker_to_others() -> None:
    async def test() -> None:
        bench = Bench(row_s=0.5, workers=2)
        await bench.know()
        heavy = [bench.ask(row, ef_search=row) for row in range(1, 5)]
        await settle()
        assert len(bench.pool.waiting) == 2, "nothing is known of these lanes yet"
        while bench.pool.waiting:
            bench.pool.run_one()
            await asyncio.sleep(0.001)
        await asyncio.gather(*heavy)
        again = [bench.ask(row, ef_search=row) for row in range(1, 5)]
        await settle()
        assert len(bench.pool.waiting) == 1
        light = bench.ask(9, ef_search=99)  # of a lane that nothing is known of
        await settle()
        assert len(bench.pool.waiting) == 2
        while bench.pool.waiting:
            bench.pool.run_one()
            await asyncio.sleep(0.001)
        assert ids(await light) == [9]
        await asyncio.gather(*again)

    drive(test)


def test_a_collection_that_is_not_at_hand_is_asked_in_a_worker() -> None:
    async def test() -> None:
        bench = Bench()
        await bench.know()
        bench.batcher._may_run_here = lambda name: False
        away = bench.ask(1)
        await settle()
        assert len(bench.pool.waiting) == 1
        bench.pool.run_one()
        assert ids(await away) == [1]

    drive(test)


def test_a_failed_batch_fails_each_with_an_error_of_its_own() -> None:
    async def test() -> None:
        bench = Bench(row_s=2.0)
        await bench.know()
        first = bench.ask(0)
        await settle()
        bench.error = CollectionNotFound("c")
        pair = [bench.ask(1), bench.ask(2)]
        await settle()
        bench.pool.run_one()
        bench.pool.run_one() if bench.pool.waiting else await settle()
        while bench.pool.waiting or not first.done():
            await asyncio.sleep(0.001)
            if bench.pool.waiting:
                bench.pool.run_one()
        errors = await asyncio.gather(first, *pair, return_exceptions=True)
        assert all(isinstance(error, CollectionNotFound) for error in errors)
        assert errors[1] is not errors[2]

    drive(test)


def test_a_call_that_was_ended_before_is_not_run_on_the_loop() -> None:
    async def test() -> None:
        bench = Bench()
        await bench.know()
        call = Call()
        call.end(Stopped.CANCELLED)
        ran = len(bench.ran)
        with pytest.raises(Cancelled):
            await bench.ask(1, call=call)
        assert len(bench.ran) == ran

    drive(test)


def test_real_threads_give_everyone_their_own_answer() -> None:
    """Against real workers: 400 queries of three lanes, some given up, each answered with its own row."""
    from concurrent.futures import ThreadPoolExecutor

    seen = threading.Lock()
    largest = 0

    def run(name: str, request: QueryRequest, call: Call) -> QueryResult:
        nonlocal largest
        with seen:
            largest = max(largest, len(request.vectors))
        threading.Event().wait(0.002)
        return QueryResult([Matches([int(row[0])], np.zeros(1, np.float32)) for row in request.vectors])

    async def test() -> None:
        from vecdb.runtime.clock import SystemClock

        with ThreadPoolExecutor(2) as pool:
            batcher = QueryBatcher(run, pool, SystemClock(), NullObserver(), workers=2, queued_rows=1_000)

            async def ask(row: int) -> list[int]:
                request = QueryRequest(np.array([[row, 0]], np.float32), 1, ef_search=row % 3)
                return ids(await batcher.query("c", request, Call()))

            tasks = [asyncio.create_task(ask(row)) for row in range(400)]
            await asyncio.sleep(0.004)
            for task in tasks[::7]:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [answer for row, answer in enumerate(answers) if row % 7] == [[row] for row in range(400) if row % 7]
            assert largest > 1
            assert batcher.queued_rows == 0

    drive(test)
