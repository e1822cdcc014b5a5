"""How much one caller, and all together, may ask at once: pure bookkeeping, decided before a message is parsed."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vecdb.core.access import Principal
from vecdb.core.errors import Overloaded
from vecdb.ports.clock import Clock

MAX_BUCKETS: Final = 10_000
BYTES_RETRY_S: Final = 0.1


class RateLimiter:
    """A token bucket for each caller: ``rate`` tokens a second, ``burst`` at once (0: one second's worth, at least 1).

    ``rate`` 0: no limit.  A caller is a key, or where there are none a client certificate or an address.  A cost
    above ``burst`` is let in by a full bucket and paid off afterwards, so that nothing is refused for ever.  The
    ``most`` callers seen last are remembered; who is forgotten begins with a full bucket.

    Kept is one number a caller, the moment at which its bucket will be full again (the generic cell rate algorithm,
    ITU-T I.371): a bucket that is full needs no memory of it.
    """

    def __init__(self, rate: float, burst: float, clock: Clock, most: int = MAX_BUCKETS) -> None:
        self._rate, self._burst = rate, burst or max(1.0, rate)
        self._clock, self._most = clock, most
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, principal: Principal, cost: float = 1.0) -> None:
        """Take ``cost`` tokens, or raise :class:`Overloaded` with the seconds until they are there."""
        if not self._rate:
            return
        who = principal.id or principal.certificate or principal.address
        with self._lock:
            now = self._clock.monotonic()
            ahead = max(0.0, self._full_at.get(who, now) - now)  # seconds of refilling that the bucket lacks
            wait = ahead - (self._burst - min(cost, self._burst)) / self._rate
            if wait > 1e-9:
                self._full_at.move_to_end(who)  # who insists is not forgotten
                raise Overloaded(f"{principal.label} calls more than {self._rate:g} times a second",
                                 retry_after_s=round(wait, 3) or 0.001, limit=self._rate)
            self._full_at[who] = now + ahead + cost / self._rate
            self._full_at.move_to_end(who)
            if len(self._full_at) > self._most:
                self._full_at.popitem(last=False)


class InflightBytes:
    """Bytes of requests that are held at once.  One alone is let in whatever its size, so that none waits for ever."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self.used = 0

    def acquire(self, size: int) -> None:
        """Count ``size`` bytes in, or raise :class:`Overloaded`; each acquire needs its release."""
        with self._lock:
            if self.used and self.used + size > self._limit:
                raise Overloaded(f"requests of {self.used:,} bytes are held, and {size:,} more pass "
                                 f"limits.inflight_bytes ({self._limit:,})", retry_after_s=BYTES_RETRY_S,
                                 got=size, limit=self._limit)
            self.used += size

    def release(self, size: int) -> None:
        with self._lock:
            self.used -= size

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        self.acquire(size)
        try:
            yield
        finally:
            self.release(size)
