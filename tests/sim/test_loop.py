"""asyncio on virtual time: what asyncio promises holds, nothing waits, and what was killed stays so."""

import asyncio
import gc
import inspect
import weakref
from contextlib import suppress

import pytest

from vecdb.testing.loop import CLOSINGS, Threads, VirtualLoop
from vecdb.testing.world import World


def test_time_passes_without_passing():
    world = World(1)
    loop = VirtualLoop(world)

    async def work():
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(3600)
        results = await asyncio.gather(*(asyncio.sleep(at, at) for at in (3, 1, 2)))
        return asyncio.get_running_loop().time() - began, results

    assert loop.run(work(), 4000) == (3603.0, [3, 1, 2])


def test_deadlines_events_locks_and_cancellation():
    world = World(1)
    loop = VirtualLoop(world)
    told = []

    async def holder(lock):
        async with lock:
            try:
                await asyncio.sleep(10)
            finally:
                told.append(("let go", loop.time()))

    async def work():
        lock = asyncio.Lock()
        task = asyncio.create_task(holder(lock))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout_at(loop.time() + 1.5):
                await lock.acquire()
        told.append(("late", loop.time()))
        task.cancel()
        await lock.acquire()
        return task.cancelled()

    assert loop.run(work(), 20)
    assert told == [("late", 1.5), ("let go", 1.5)]


def test_callbacks_keep_their_order():
    world = World(1)
    loop = VirtualLoop(world)
    told = []
    for at in range(5):
        loop.call_soon(told.append, at)
    loop.call_later(1, told.append, "late").cancel()
    world.run(2)
    assert told == list(range(5))


def test_threads_take_time_and_tell_their_errors():
    world = World(1)
    loop = VirtualLoop(world)
    pool = Threads(loop, 1, lambda random: 1.0)

    def fails():
        raise ValueError("no")

    async def work():
        first, second = loop.run_in_executor(pool, lambda: loop.time()), loop.run_in_executor(pool, fails)
        with pytest.raises(ValueError, match="no"):
            await second
        return await first, loop.time()

    assert loop.run(work(), 10) == (1.0, 2.0)


def test_who_is_killed_runs_no_line_more_and_who_is_paused_catches_up():
    world = World(1)
    told = []

    async def work(name):
        try:
            await asyncio.sleep(1)
            told.append(name)
        finally:
            told.append(f"{name} over")

    loops = {name: VirtualLoop(world, name) for name in ("killed", "paused")}
    for name, loop in loops.items():
        loop.create_task(work(name))
        Threads(loop).submit(told.append, f"{name} thread")
    loops["killed"].kill()
    loops["paused"].pause()
    world.run(5)
    assert told == []
    loops["paused"].resume()
    world.run(5)
    assert told == ["paused thread", "paused", "paused over"]
    for loop in loops.values():
        loop.end()


def test_what_nobody_hears_is_kept():
    world = World(1)
    loop = VirtualLoop(world)
    loop.call_soon(lambda: 1 / 0)
    world.run(1)
    assert "ZeroDivisionError" in loop.errors[0]


@pytest.mark.filterwarnings("error")
def test_what_a_task_begins_as_it_is_closed_holds_nothing_when_the_world_is_gone():
    """It cleans up in another task, which it would wait for."""
    closed = []

    async def clean(loop, left):
        closed.append(left)
        await loop.run_in_executor(None, closed.append, left)

    async def work(loop):
        try:
            await asyncio.sleep(3600)
        finally:
            for left in (2, 1):
                await asyncio.shield(asyncio.ensure_future(clean(loop, left)))

    def whole():
        world = World(1)
        loop = VirtualLoop(world)
        loop.create_task(work(loop))
        world.run(1)
        loop.end()
        return weakref.ref(world), [*loop.errors]

    world, errors = whole()
    gc.collect()
    assert world() is None
    assert (closed, errors) == ([], []), "what never ran cleans nothing up"


def test_a_task_that_does_not_end_as_it_is_closed_is_told_of():
    async def stays():
        for _ in range(2 * CLOSINGS):
            with suppress(GeneratorExit):
                await asyncio.sleep(3600)

    world, coroutine = World(1), stays()
    loop = VirtualLoop(world)
    loop.create_task(coroutine)
    world.run(1)
    with pytest.raises(AssertionError, match="does not end"):
        loop.end()
    while inspect.getcoroutinestate(coroutine) != inspect.CORO_CLOSED:
        with suppress(RuntimeError):
            coroutine.close()
