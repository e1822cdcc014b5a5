"""What the node refuses before it is too late: writes when memory runs short, work when too much waits.

The kernel's killer looks at the control group; this looks at what the process itself cannot give back (resident
memory less mapped files), at most every :data:`LOOK_S`, and refuses writes from the limit on.  Deletes, reads and
queries go on.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from vecdb.core.errors import Overloaded
from vecdb.ports.clock import Clock
from vecdb.ports.observer import Observer, Refusal

LOOK_S: Final = 0.05
RETRY_AFTER_S: Final = 1.0


class MemoryGuard:
    """``used`` measures bytes that cannot be reclaimed; ``limit`` 0 refuses nothing.

    What has been let in and not yet grown is reserved: sixteen writes at once must not each find room for one.
    """

    def __init__(self, used: Callable[[], int], limit: int, clock: Clock, observer: Observer) -> None:
        self._used = used
        self.limit = limit
        self._clock = clock
        self._observer = observer
        self._looked = -1.0
        self._last = 0
        self._lock = threading.Lock()
        self._reserved = 0

    def used(self) -> int:
        now = self._clock.monotonic()
        if self._looked < 0 or now - self._looked >= LOOK_S:
            self._last, self._looked = self._used(), now
        return self._last

    @contextmanager
    def reserve(self, more: int) -> Iterator[None]:
        """Hold ``more`` bytes for a write while it runs, or raise Overloaded if they would pass the limit."""
        with self._lock:
            used = self.used() + self._reserved
            full = bool(self.limit) and used + more > self.limit
            self._reserved += 0 if full else more
        if full:
            self._observer.refused(Refusal.MEMORY)
            raise Overloaded(
                f"the process holds {used} bytes and this write needs some {more} more; the limit is {self.limit} "
                "(limits.memory_bytes)", argument="memory", retry_after_s=RETRY_AFTER_S, got=used, limit=self.limit)
        try:
            yield
        finally:
            with self._lock:
                self._reserved -= more


class Gate:
    """At most ``most`` of something at once; ``label`` says what in the refusal."""

    def __init__(self, label: str, most: int, reason: Refusal, observer: Observer) -> None:
        self._label = label
        self.most = most
        self._reason = reason
        self._observer = observer
        self._lock = threading.Lock()
        self.inside = 0

    def take(self, retry_after_s: float = 0.1) -> None:
        """Enter, or raise Overloaded; who has entered leaves once."""
        with self._lock:
            full = self.inside >= self.most
            self.inside += not full
        if full:
            self._observer.refused(self._reason)
            raise Overloaded(f"{self.most} {self._label} run and wait already", retry_after_s=retry_after_s,
                             got=self.most, limit=self.most)

    def leave(self) -> None:
        with self._lock:
            self.inside -= 1
