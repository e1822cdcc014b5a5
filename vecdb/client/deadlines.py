"""``timeout=`` in a process: who sets a call's ``stop`` when its time is over.

One daemon thread sleeps until the earliest deadline of all calls under way; it starts with the first call that has
one, so a program that gives no timeouts has no such thread.  A call that ends in time leaves its entry behind,
emptied, and the thread is not woken for it: watching a call costs a few microseconds.
"""

import heapq
import itertools
import os
import threading
import time
from types import TracebackType
from typing import Final

from vecdb.client.options import check_finite
from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import InvalidArgument

MAX_TIMEOUT_S: Final = 30 * 86_400.0
"""Longest timeout: what is meant to take longer needs none."""
_IDLE: Final = 64
"""Entries of ended calls that may lie in the heap before it is swept."""


def check_timeout(timeout: object) -> float | None:
    """Seconds above 0, or None."""
    if timeout is None:
        return None
    seconds = check_finite("timeout", timeout)
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidArgument("timeout", f"must be more than 0 seconds and at most {MAX_TIMEOUT_S:.0f}, not {seconds}",
                              got=seconds, limit=f"0..{MAX_TIMEOUT_S:.0f}")
    return seconds


class _Entry:
    """A call and its deadline; ``call`` is None once it has ended."""

    __slots__ = ("call", "deadline", "turn")

    def __init__(self, deadline: float, turn: int, call: Call) -> None:
        self.deadline = deadline
        self.turn = turn
        self.call: Call | None = call

    def __lt__(self, other: "_Entry") -> bool:
        return (self.deadline, self.turn) < (other.deadline, other.turn)


class Watcher:
    """Sets ``stop`` of watched calls at their deadlines, from a thread of its own."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heap: list[_Entry] = []
        self._turns = itertools.count()
        self._idle = 0
        self._thread: threading.Thread | None = None

    def watch(self, call: Call, deadline: float) -> _Entry:
        """End ``call`` at ``deadline`` (monotonic clock) unless it is forgotten before."""
        entry = _Entry(deadline, next(self._turns), call)
        with self._changed:
            heapq.heappush(self._heap, entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="vecdb-deadlines", daemon=True)
                self._thread.start()
            elif self._heap[0] is entry:
                self._changed.notify()
        return entry

    def forget(self, entry: _Entry) -> None:
        """The call is over."""
        with self._changed:
            if entry.call is None:
                return
            entry.call = None
            self._idle += 1
            if self._idle > _IDLE and 2 * self._idle > len(self._heap):
                self._heap = [one for one in self._heap if one.call is not None]
                heapq.heapify(self._heap)
                self._idle = 0

    @property
    def watched(self) -> int:
        """Calls under way that have a deadline."""
        with self._changed:
            return len(self._heap) - self._idle

    def _loop(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                while self._heap and self._heap[0].deadline <= now:
                    entry = heapq.heappop(self._heap)
                    if entry.call is None:
                        self._idle -= 1
                    else:
                        entry.call.end(Stopped.DEADLINE)
                        entry.call = None
                self._changed.wait(self._heap[0].deadline - now if self._heap else None)


_watcher = Watcher()


def _anew() -> None:
    """A forked child has none of its parent's threads, and must not touch a lock one of them may have held."""
    global _watcher
    _watcher = Watcher()


os.register_at_fork(after_in_child=_anew)


class Limited:
    """``with Limited(seconds) as call``: a call that is ended after that time; without ``seconds``, None."""

    __slots__ = ("_entry", "_seconds", "_watcher")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._entry: _Entry | None = None
        self._watcher = _watcher

    def __enter__(self) -> Call | None:
        if self._seconds is None:
            return None
        deadline = time.monotonic() + self._seconds
        call = Call(deadline)
        self._entry = self._watcher.watch(call, deadline)
        return call

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._entry is not None:
            self._watcher.forget(self._entry)


def limited(timeout: object) -> Limited:
    """Check ``timeout`` (seconds, None: no end) and make the context of one call."""
    return Limited(check_timeout(timeout))
