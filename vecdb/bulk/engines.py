"""What runs the pieces of a build: processes of this machine, or Ray.

An engine calls one function with each of many values, some at a time, and tells of every one that is done.  A process
that dies takes no more than its piece with it, which is run again: :data:`MOST_DEATHS` times, then the build ends.
What the function raises ends the build at once, when those that are under way are done or let go.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Final, Protocol, TypeVar

from vecdb.core.errors import Unavailable, Unsupported

T = TypeVar("T")
R = TypeVar("R")
MOST_DEATHS: Final = 3
"""Of processes, one after another without a piece that got done."""
LOOK_S: Final = 5.0
"""How often a caller is told that time passes."""


class Engine(Protocol):
    def run(self, work: Callable[[T], R], pieces: Sequence[T], done: Callable[[R], None],
            idle: Callable[[], None]) -> None:
        """``done`` is told of each result, in any order, ``idle`` every few seconds; both in the calling thread."""
        ...

    def close(self) -> None: ...


class LocalEngine:
    """``workers`` processes of this machine, started anew (spawned), since kernels' threads do not survive a fork."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def run(self, work: Callable[[T], R], pieces: Sequence[T], done: Callable[[R], None],
            idle: Callable[[], None]) -> None:
        left = list(range(len(pieces)))
        deaths = 0
        while left:
            before = len(left)
            try:
                self._run(work, pieces, left, done, idle)
            except BrokenProcessPool:
                self._end(kill=True)
                deaths = deaths + 1 if len(left) == before else 1
                if deaths >= MOST_DEATHS:
                    raise Unavailable(f"{deaths} processes died one after another (was their memory taken?); "
                                      f"{len(left)} of {len(pieces)} pieces are left, and the same call goes on with "
                                      "them", left=len(left)) from None
            except BaseException:
                self._end(kill=True)
                raise

    def _run(self, work: Callable[[T], R], pieces: Sequence[T], left: list[int], done: Callable[[R], None],
             idle: Callable[[], None]) -> None:
        pool = self._pool = self._pool or ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"))
        under_way: dict[Future[R], int] = {}
        waiting = list(left)
        while waiting or under_way:
            while waiting and len(under_way) < self._workers:  # one that dies fails all that were handed in
                number = waiting.pop(0)
                under_way[pool.submit(work, pieces[number])] = number
            ended, _ = wait(under_way, timeout=LOOK_S, return_when=FIRST_COMPLETED)
            broken: BrokenProcessPool | None = None
            for future in ended:
                number = under_way.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    broken = error
                    continue
                left.remove(number)
                done(result)
            if broken is not None:
                raise broken
            idle()

    def _end(self, *, kill: bool = False) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=not kill, cancel_futures=True)
        for process in processes if kill else ():
            process.terminate()
            process.join()

    def close(self) -> None:
        self._end()


class RayEngine:
    """A Ray cluster (the extra ``bulk``): ``address`` as Ray takes it, ``auto``, or ``local`` for one of its own.

    Each piece takes ``threads`` of its CPUs, and is run again by Ray itself where a node is lost.
    """

    def __init__(self, address: str, threads: int) -> None:
        """Raises ``Unsupported`` where Ray is not installed, ``Unavailable`` where it cannot be reached."""
        try:
            import ray
        except ImportError as error:
            raise Unsupported("Ray is not installed: pip install 'vecdb[bulk]'", needed="ray") from error
        self._ray: Any = ray
        self._threads = threads
        self._mine = not ray.is_initialized()
        if self._mine:
            try:
                ray.init(address=None if address == "local" else address, log_to_driver=False,
                         include_dashboard=False if address == "local" else None)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise Unavailable(f"Ray at {address!r} cannot be reached: {error}", address=address) from error

    def run(self, work: Callable[[T], R], pieces: Sequence[T], done: Callable[[R], None],
            idle: Callable[[], None]) -> None:
        ray = self._ray
        task = ray.remote(work).options(num_cpus=self._threads, max_retries=MOST_DEATHS)
        waiting = [task.remote(one) for one in pieces]
        try:
            while waiting:
                ended, waiting = ray.wait(waiting, num_returns=1, timeout=LOOK_S)
                for one in ended:
                    try:
                        result = ray.get(one)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause if isinstance(error.cause, Exception) else error from None
                    except ray.exceptions.RayError as error:
                        raise Unavailable(f"Ray lost a piece {MOST_DEATHS} times: {error}",
                                          left=len(waiting) + 1) from error
                    done(result)
                idle()
        except BaseException:
            for one in waiting:
                ray.cancel(one, force=True)
            raise

    def close(self) -> None:
        if self._mine:
            self._ray.shutdown()
