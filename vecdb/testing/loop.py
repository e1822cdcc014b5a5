"""asyncio on virtual time: the event loop of one simulated process, and executors without threads.

What a process does is events of its :class:`~vecdb.testing.world.World`, in the world's order.  A process that is
killed runs no line more, not even one that cleans up: its tasks are kept as they are until :meth:`VirtualLoop.end`, so
that no collector closes a coroutine in the middle of a run.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import Context
from functools import partial
from random import Random
from typing import Any, Final, TypeVar

from vecdb.testing.world import World

T = TypeVar("T")


CLOSINGS: Final = 100
"""More awaits than that no coroutine comes to as it is closed."""


def _close(coroutine: Any) -> None:
    """Until it has ended: it may want to wait for something, more than once."""
    for _ in range(CLOSINGS):
        with suppress(BaseException):
            coroutine.close()
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED:
            return
    raise AssertionError(f"{coroutine} does not end")


class VirtualLoop(asyncio.AbstractEventLoop):
    """The event loop of one life of a process.

    ``rate``: how fast its clock goes.  ``do`` does everything that happens in it: on its disk, say.
    """

    def __init__(self, world: World, who: str = "", rate: float = 1.0,
                 do: Callable[[Callable[[], None]], None] = lambda act: act()) -> None:
        self.world = world
        self.who = who
        self.alive = True
        self.paused = False
        self.errors: list[str] = []
        """What callbacks and tasks raised and nobody heard."""
        self.do = do
        self.pools: list[Threads] = []
        self._rate = rate
        self._default: Threads | None = None
        self._behind: deque[Callable[[], None]] = deque()
        self._tasks: list[asyncio.Task[Any]] = []

    # --- life -------------------------------------------------------------------------------------

    def kill(self) -> None:
        """No callback runs any more."""
        self.alive = False
        self._behind.clear()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        """Everything that should have run meanwhile runs, in order, now."""
        self.paused = False
        behind, self._behind = self._behind, deque()
        for act in behind:
            self.world.at(0.0, act)

    def when_resumed(self, act: Callable[[], None]) -> None:
        self._behind.append(act)

    def end(self) -> None:
        """The simulation is over: let go of what the tasks hold.

        What a coroutine begins as it is closed belongs here as well, where it never runs, and is closed in its turn: a
        collector would close it where no loop runs, and asyncio would make one that keeps it for good.
        """
        self.kill()
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            for task in self._tasks:  # those that are begun here are added at its end
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is pending on purpose
                    _close(task.get_coro())
        finally:
            asyncio._set_running_loop(before)
        self._tasks.clear()

    def run(self, coroutine: Coroutine[Any, Any, T], at_most: float) -> T:
        """Let time pass until a coroutine has ended; its result."""
        task = self.create_task(coroutine)
        if not self.world.run_until(task.done, at_most):
            raise TimeoutError(f"not done within {at_most} virtual seconds")
        result: T = task.result()
        return result

    def _run(self, handle: asyncio.Handle) -> None:
        if not self.alive or handle.cancelled():
            return
        if self.paused:
            self.when_resumed(partial(self._run, handle))
            return
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            self.do(handle._run)
        finally:
            asyncio._set_running_loop(before)

    # --- the loop ---------------------------------------------------------------------------------

    def time(self) -> float:
        return self.world.now * self._rate

    def call_soon(self, callback: Callable[..., object], *args: Any,  # type: ignore[override]
                  context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.world.at(0.0, partial(self._run, handle))
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]  # there are no threads

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any,  # type: ignore[override]
                   context: Context | None = None) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any,  # type: ignore[override]
                context: Context | None = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.world.at(max(0.0, (when - self.time()) / self._rate), partial(self._run, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Its event finds it cancelled."""

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> "asyncio.Task[Any]":
        task = asyncio.Task(coro, loop=self, name=name or f"{self.who}-{len(self._tasks)}", context=context)
        self._tasks.append(task)
        return task

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T],  # type: ignore[override]
                        *args: Any) -> "asyncio.Future[T]":
        if executor is None:
            executor = self._default = self._default or Threads(self, 1 << 30)
        chosen = executor
        return asyncio.wrap_future(chosen.submit(func, *args), loop=self)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.alive:
            return
        error = context.get("exception")
        self.errors.append(f"{context.get('message')}: {type(error).__name__}: {error}")
        self.world.say(self.who, "unheard_error", error=self.errors[-1])

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    async def shutdown_asyncgens(self) -> None:
        """There are none that outlive the run."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """It has no threads."""


def virtual_loop(world: World, who: str, rate: float = 1.0,
                 do: Callable[[Callable[[], None]], None] = lambda act: act()) -> VirtualLoop:
    """The loop of a process: see :class:`VirtualLoop`."""
    return VirtualLoop(world, who, rate, do)  # type: ignore[abstract]  # what it lacks is of sockets and subprocesses


class Threads(Executor):
    """As many as are asked for, in virtual time: work is done whole at its end, and dies with its process.

    ``seconds`` draws how long a piece of work takes.
    """

    def __init__(self, loop: VirtualLoop, threads: int = 1,
                 seconds: Callable[[Random], float] = lambda random: random.uniform(0.0001, 0.002)) -> None:
        self._loop = loop
        self._free = threads
        self._seconds = seconds
        loop.pools.append(self)
        self._queue: deque[Callable[[], None]] = deque()
        self._running: deque[Callable[[], None]] = deque()
        self._closed = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._queue.append(work)
        self._start()
        return future

    def _start(self) -> None:
        while self._free and self._queue:
            self._free -= 1
            work = self._queue.popleft()
            self._running.append(work)
            world = self._loop.world
            world.at(self._seconds(world.random), partial(self._end, work))

    def _end(self, work: Callable[[], None]) -> None:
        if not self._loop.alive:
            return
        if self._loop.paused:
            self._loop.when_resumed(partial(self._end, work))
            return
        self._running.remove(work)
        self._loop.do(work)
        self._free += 1
        self._start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """What is queued is still done; nobody waits, as there is no thread to wait in."""
        self._closed = True

    @property
    def under_way(self) -> list[Callable[[], None]]:
        """What threads are at: of a process that is killed some of it may have been done."""
        return list(self._running)
