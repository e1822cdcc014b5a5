"""The engine for asyncio: pools with bounds, deadlines, cancellation, memory."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from tests.memory_backend import MemoryBackend
from tests.waiting import until
from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import Cancelled, DatabaseClosed, DeadlineExceeded, Overloaded
from vecdb.core.records import DeleteIds, UpsertBatch
from vecdb.core.schema import CollectionSchema
from vecdb.ports.observer import NullObserver, Refusal
from vecdb.runtime.clock import SystemClock
from vecdb.services.node import WAITING_PER_THREAD, LocalNode, NodeLimits

SCHEMA = CollectionSchema("docs", 2, "l2")  # type: ignore[arg-type]


class Slow(MemoryBackend):
    """Writes wait for ``open``; ``seen`` are the calls that began."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.seen: list[Call] = []

    def at_hand(self, name: str) -> bool:
        return True

    def upsert(self, name: str, batch: UpsertBatch, call: Call | None = None) -> Any:
        assert call is not None
        self.seen.append(call)
        assert self.open.wait(20)
        return super().upsert(name, batch, call=call)


class Told(NullObserver):
    def __init__(self) -> None:
        self.refusals: list[Refusal] = []

    def refused(self, reason: Refusal) -> None:
        self.refusals.append(reason)


class Bench:
    def __init__(self, **limits: Any) -> None:
        self.backend, self.told, self.used = Slow(), Told(), 0
        self.backend.create_collection(SCHEMA)
        self.node = LocalNode(self.backend, SystemClock(), self.told,  # type: ignore[arg-type]
                              NodeLimits(threads=1, write_threads=1, **limits), lambda: self.used)

    def write(self, number: int, call: Call | None = None) -> "asyncio.Task[Any]":
        batch = UpsertBatch((number,), np.ones((1, 2), np.float32), (b"{}",))
        return asyncio.get_running_loop().create_task(self.node.upsert("docs", batch, call or Call()))


def drive(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_queued_write_that_is_given_up_frees_what_it_holds_and_never_runs() -> None:
    async def test() -> None:
        bench = Bench()
        running = bench.write(1)
        await until(lambda: bench.backend.seen)

        jobs: list[Any] = []
        submit = bench.node._writes.submit
        bench.node._writes.submit = lambda job: (jobs.append(job), submit(job))  # type: ignore[method-assign,return-value]
        task = bench.write(2)
        await until(lambda: jobs)
        assert jobs[0]._work is not None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert jobs[0]._work is None, "the executor's queue would hold a batch's megabytes until its turn"
        assert bench.node._writes.gate.inside == 2, "its place in the executor's queue is not free yet"
        bench.backend.open.set()
        await running
        await bench.node.close()
        assert bench.node._writes.gate.inside == 0
        assert len(bench.backend.seen) == 1

    drive(test)


def test_a_queue_that_is_full_refuses_also_when_its_callers_have_gone() -> None:
    async def test() -> None:
        bench = Bench()
        tasks = [bench.write(number) for number in range(1 + WAITING_PER_THREAD)]
        await until(lambda: bench.backend.seen and bench.node._writes.gate.inside == len(tasks))
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks[1:], return_exceptions=True)
        with pytest.raises(Overloaded):
            await bench.write(999)
        assert bench.told.refusals == [Refusal.QUEUE]
        bench.backend.open.set()
        await tasks[0]
        await until(lambda: bench.node._writes.gate.inside == 0)
        await bench.write(1_000)
        await bench.node.close()

    drive(test)


def test_a_write_whose_deadline_passes_in_the_queue_changes_nothing_and_one_that_has_begun_ends() -> None:
    async def test() -> None:
        bench = Bench()
        begun = bench.write(1, Call(deadline=SystemClock().monotonic() + 1.0))
        await until(lambda: bench.backend.seen)
        queued = bench.write(2, Call(deadline=SystemClock().monotonic() + 0.1))
        await until(lambda: bench.backend.seen[0].stop[0] == Stopped.DEADLINE)
        bench.backend.open.set()
        with pytest.raises(DeadlineExceeded):
            await queued
        outcome = (await asyncio.gather(begun, return_exceptions=True))[0]
        assert not isinstance(outcome, Overloaded)
        assert len(bench.backend.seen) == 1
        await bench.node.close()

    drive(test)


def test_memory_that_runs_short_refuses_what_grows_and_lets_the_rest_go_on() -> None:
    async def test() -> None:
        bench = Bench(memory_bytes=1_000_000)
        bench.backend.open.set()
        await bench.write(1)
        bench.used = 999_999
        await asyncio.sleep(0.06)  # the guard looks again
        with pytest.raises(Overloaded) as refused:
            await bench.write(2)
        assert refused.value.fields["retry_after_s"] > 0
        assert bench.told.refusals == [Refusal.MEMORY]
        assert (await bench.node.delete("docs", DeleteIds((1,)), Call())).deleted == 1
        assert await bench.node.count("docs", None, Call()) == 0
        bench.used = 0
        await asyncio.sleep(0.06)
        await bench.write(3)
        await bench.node.close()

    drive(test)


def test_writes_that_run_have_their_memory_reserved() -> None:
    async def test() -> None:
        bench = Bench(memory_bytes=2_000)
        tasks = [bench.write(number) for number in range(8)]  # each needs some 530 bytes
        done, waiting = await asyncio.wait(tasks, timeout=0.2)
        assert len(waiting) == 3
        assert all(isinstance(task.exception(), Overloaded) for task in done)
        bench.backend.open.set()
        await asyncio.gather(*waiting)
        await bench.write(99)
        await bench.node.close()

    drive(test)


def test_after_close_everything_says_so() -> None:
    async def test() -> None:
        bench = Bench()
        bench.backend.open.set()
        await bench.node.close()
        await bench.node.close()
        with pytest.raises(DatabaseClosed):
            await bench.write(1)

    drive(test)


def test_a_call_that_was_cancelled_before_it_is_run_says_so() -> None:
    async def test() -> None:
        bench = Bench()
        call = Call()
        call.end(Stopped.CANCELLED)
        bench.backend.open.set()
        with pytest.raises(Cancelled):
            await bench.node.count("docs", None, call)
        await bench.node.close()

    drive(test)
