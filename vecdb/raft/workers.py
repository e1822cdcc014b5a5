"""Threads for what a replica waits for: as few steps as there can be between a loop and a thread and back.

A commit waits for four such ways, one after another (a follower's log there and back, a leader's state machine there
and back).  ``ThreadPoolExecutor`` takes a future with its lock, a semaphore and several wake-ups for each; here work
goes through one queue of the C library's kind, and its end straight to whom it concerns.
"""

import atexit
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

Work = Callable[[], Any]
Told = Callable[[Any, BaseException | None], None]


class Workers:
    """Up to ``count`` threads, begun with the first work.  ``told`` is called in the thread, and must not raise."""

    def __init__(self, count: int, name: str) -> None:
        self._queue: SimpleQueue[tuple[Work, Told] | None] = SimpleQueue()
        self._count, self._name = count, name
        self._threads: list[Thread] = []
        self._ended = False

    def post(self, work: Work, told: Told) -> None:
        """Have ``work`` done, in the order of the calls; ``RuntimeError`` after :meth:`shutdown`."""
        if self._ended:
            raise RuntimeError(f"the threads {self._name!r} were shut down")
        if not self._threads:
            self._begin()
        self._queue.put((work, told))

    def _begin(self) -> None:
        """Raises ``RuntimeError`` where the system gives no thread at all: the next call tries again."""
        for number in range(self._count):
            thread = Thread(target=_wait_for_work, args=(self._queue,), name=f"{self._name}_{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if not self._threads:
                    raise
                break  # fewer will do
            self._threads.append(thread)
        _open.add(self)

    def shutdown(self) -> None:
        """Return once all that was asked for is done.  For one thread, at the end."""
        self._ended = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []


def _wait_for_work(queue: "SimpleQueue[tuple[Work, Told] | None]") -> None:
    while True:
        one = queue.get()
        if one is None:
            return
        work, told = one
        try:
            result = work()
        except BaseException as error:  # whoever asked is told
            told(None, error)
        else:
            told(result, None)
            result = None
        one = work = told = None  # type: ignore[assignment]  # what it held is not kept until the next


_open: "weakref.WeakSet[Workers]" = weakref.WeakSet()


@atexit.register
def _end() -> None:
    """What threads are at when the interpreter ends is done before: they would be stopped in the middle of it."""
    for workers in list(_open):
        workers.shutdown()
