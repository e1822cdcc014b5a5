"""Group commit: many who wait for durability share one fsync.

A caller's writes are durable once a flush has ended that *began* after them.  Each caller notes how many
writes had been made when it came; one of those waiting runs the flush, which covers all writes made
before it began; who is covered returns, and one of the rest runs the next.
"""

import threading
from collections.abc import Callable


class GroupCommit:
    """``flush`` makes all earlier writes durable; it is called by one thread at a time, and may raise.

    A raised error reaches the caller that ran the flush, and through ``check``, which must raise once a
    flush has failed, all who waited for it.
    """

    def __init__(self, flush: Callable[[], None], check: Callable[[], None]) -> None:
        self._flush = flush
        self._check = check
        self._changed = threading.Condition()
        self._written = 0
        self._durable = 0
        self._flushing = False
        self.flushes = 0
        """How many flushes have run: what a test counts instead of fsyncs."""

    def wrote(self) -> None:
        """Note one completed write."""
        with self._changed:
            self._written += 1

    def sync(self) -> None:
        """Return once every write noted before the call is durable."""
        with self._changed:
            mine = self._written
            while True:
                self._check()
                if self._durable >= mine:
                    return
                if not self._flushing:
                    break
                self._changed.wait()
            self._flushing = True
            covered = self._written
        done = False
        try:
            self._flush()
            done = True
        finally:
            with self._changed:
                self._flushing = False
                self.flushes += 1
                if done:
                    self._durable = covered
                self._changed.notify_all()
