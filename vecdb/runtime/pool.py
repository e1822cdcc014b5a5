"""The threads that run kernels.

Kernels free the GIL, so a few threads keep all cores busy; more would only fight for memory bandwidth.
``run`` is what layers below are given to run independent pieces of work: the caller takes part, so a task that
itself calls ``run`` makes progress even when every pool thread is busy, and no call can wait for a thread that
waits for it.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, Self, TypeVar

from vecdb.core.errors import DatabaseClosed, InvalidArgument

_P = ParamSpec("_P")
_T = TypeVar("_T")


def available_cores() -> int:
    """Cores this process may run on (its affinity, not the machine's count)."""
    try:
        return len(os.sched_getaffinity(0)) or 1
    except AttributeError:
        return os.cpu_count() or 1


class _Round:
    """One call of ``run``: thunks handed out one at a time to whoever asks, until done or one has failed."""

    def __init__(self, thunks: Sequence[Callable[[], None]]) -> None:
        self._thunks = thunks
        self._changed = threading.Condition()
        self._next = 0
        self._running = 0
        self._error: BaseException | None = None

    def help(self) -> None:
        """Run thunks until none is left to begin."""
        while True:
            with self._changed:
                if self._error is not None or self._next == len(self._thunks):
                    return
                thunk = self._thunks[self._next]
                self._next += 1
                self._running += 1
            error: BaseException | None = None
            try:
                thunk()
            except BaseException as raised:
                error = raised
            with self._changed:
                self._running -= 1
                if error is not None and self._error is None:
                    self._error = error
                if not self._running:
                    self._changed.notify_all()

    def finish(self) -> None:
        """Wait for what others still run, then raise the first error.

        The round keeps neither thunks nor error: a helper that comes late holds it in the queue.
        """
        with self._changed:
            while self._running:
                self._changed.wait()
            error, self._error = self._error, None
            self._thunks, self._next = (), 0
        if error is not None:
            raise error


class _Sharing:
    """How many pieces of work are under way; see :class:`vecdb.ports.compute.Compute`."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._under_way = 0

    def __enter__(self) -> int:
        with self._lock:
            self._under_way += 1
            return max(1, self._threads // self._under_way)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._under_way -= 1


class KernelPool:
    """At most ``threads`` threads (0: one per available core) for kernels, counting the caller of ``run``.

    ``begin`` is run first in each of the pool's own threads.
    """

    def __init__(self, threads: int = 0, begin: Callable[[], None] | None = None) -> None:
        if threads < 0:
            raise InvalidArgument("threads", f"{threads} is negative", got=threads, limit="0 (all cores) or more")
        self._threads = threads or available_cores()
        self._closed = False
        self._sharing = _Sharing(self._threads)
        self._executor = ThreadPoolExecutor(max(1, self._threads - 1), thread_name_prefix="vecdb-kernel",
                                            initializer=begin)

    @property
    def threads(self) -> int:
        return self._threads

    @property
    def sharing(self) -> _Sharing:
        return self._sharing

    def run(self, thunks: Sequence[Callable[[], None]]) -> None:
        """Run all thunks to completion, the calling thread taking part; raise the first error.

        After an error no further thunk is begun, and those running are waited for.  May be called from several threads
        and from within a thunk.
        """
        helpers = min(len(thunks), self._threads) - 1
        if helpers <= 0:
            for thunk in thunks:
                thunk()
            return
        work = _Round(thunks)
        try:
            for _ in range(helpers):
                self.submit(work.help)
        except DatabaseClosed:
            if self._closed:
                raise
            # the interpreter ends and takes no more work: the caller finishes alone what it began
        work.help()
        work.finish()

    def submit(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run ``function`` on a pool thread; raises :class:`DatabaseClosed` after ``close``."""
        try:
            return self._executor.submit(function, *args, **kwargs)
        except RuntimeError as error:
            raise DatabaseClosed("the kernel pool is closed") from error

    def close(self) -> None:
        """Let running work end, drop what has not begun, end the threads.  A second call does nothing."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
