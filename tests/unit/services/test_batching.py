"""The batcher with a clock and workers that the test drives."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future

import numpy as np
import pytest

from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import Cancelled, CollectionNotFound, DeadlineExceeded, Overloaded
from vecdb.core.query import Cost, Matches, QueryRequest, QueryResult
from vecdb.ports.observer import NullObserver, Refusal
from vecdb.services import batching
from vecdb.services.batching import QueryBatcher


@pytest.fixture(autouse=True)
def gather_everything(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine here is slow so that queries must wait; how much is gathered has tests of its own."""
    if "bounded" not in request.node.name:
        monkeypatch.setattr(batching, "BATCH_S", 1e9)
        monkeypatch.setattr(batching, "HEAVY_S", 1e9)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Workers(Executor):
    """Holds what is submitted until the test runs it."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def,override]
        self.waiting.append(lambda: fn(*args, **kwargs))
        return Future()

    def run_one(self) -> None:
        self.waiting.pop(0)()


class Told(NullObserver):
    def __init__(self) -> None:
        self.batches: list[tuple[int, int, bool]] = []
        self.refusals: list[Refusal] = []
        self.queries: list[Cost] = []

    def batch_ran(self, collection, rows, waits_s, compute_s, inline):  # type: ignore[no-untyped-def]
        self.batches.append((rows, len(waits_s), inline))

    def refused(self, reason):  # type: ignore[no-untyped-def]
        self.refusals.append(reason)

    def queried(self, collection, request, result, cost, call):  # type: ignore[no-untyped-def]
        self.queries.append(cost)


class Bench:
    """A batcher whose engine answers each row with its own first component as the id."""

    def __init__(self, *, workers: int = 1, queued_rows: int = 64, row_s: float = 1e-4) -> None:
        self.clock, self.pool, self.told = Clock(), Workers(), Told()
        self.row_s = row_s
        self.ran: list[tuple[QueryRequest, Call]] = []
        self.error: Exception | None = None
        self.batcher = QueryBatcher(self.run, self.pool, self.clock, self.told, workers=workers,
                                    queued_rows=queued_rows)

    def run(self, name: str, request: QueryRequest, call: Call) -> QueryResult:
        call.check()
        self.ran.append((request, call))
        self.clock.now += self.row_s * len(request.vectors)
        if self.error is not None:
            raise self.error
        matches = [Matches([int(row[0])], np.zeros(1, np.float32)) for row in request.vectors]
        return QueryResult(matches, {"plan": len(matches)} if request.explain else None,
                           cost=Cost(hops=7) if request.profile else None)

    def ask(self, *rows: int, call: Call | None = None, **options: object) -> "asyncio.Task[QueryResult]":
        vectors = np.array([[row, 0] for row in rows], np.float32)
        request = QueryRequest(vectors, 3, **options)  # type: ignore[arg-type]
        return asyncio.get_running_loop().create_task(self.batcher.query("c", request, call or Call()))

    async def know(self) -> None:
        """Let the lane be known."""
        first = self.ask(0)
        await settle()
        self.pool.run_one()
        await first
        self.clock.now += 1.0


async def settle() -> None:
    """Let what was begun come to where it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


def ids(result: QueryResult) -> list[int]:
    return [match.ids[0] for match in result.matches]  # type: ignore[misc]


def drive(test: Callable[[], object]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))  # type: ignore[arg-type]


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
