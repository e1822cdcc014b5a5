"""When to try again: full jitter, within the deadline, and never so often that retries feed an overload.

Backoff as in "Exponential Backoff And Jitter" (M. Brooker, AWS Architecture Blog, 2015): a uniform delay from 0 to
``base * 2**n``.  A server's own hint is a lower bound, up to ``HINT_MOST_S``.  The budget is a token bucket for the
whole connection, filled by successes and slowly by time (as gRPC's retry throttling, A6): when most calls fail, most
failures are final.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Final

from vecdb.core.errors import UNFOUNDED, NoNodeForReplica, OutcomeUnknown, Overloaded, Unavailable, VecdbError

BASE_S: Final = 0.05
MOST_S: Final = 2.0
HINT_MOST_S: Final = 30.0
"""Longest that a server's hint is obeyed: a call without a deadline must not sleep for as long as somebody says."""
UNFOUNDED_S: Final = 1.5
"""How long a cluster is waited for whose nodes were not all started: that is for people to do.  One that is founded,
and that nobody leads at the moment, is waited for as anything else."""
STREAM_RETRIES: Final = 20
"""Reconnections of a bulk upsert without progress between them: about 15 seconds, a restart of the server."""


class Failed(Exception):
    """A call did not come to an answer.

    ``decided``: the work was certainly not done, or the server said what became of it; otherwise nobody here knows.
    ``transport``: the connection failed, or the server serves nobody, so another address may do better.
    ``answered``: it is the server that says so.
    ``elsewhere``: there is another address, and it is not known to be down.
    """

    def __init__(self, error: VecdbError, *, decided: bool, transport: bool = False, answered: bool = False,
                 elsewhere: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.decided = decided
        self.transport = transport
        self.answered = answered
        self.elsewhere = elsewhere


class Budget:
    """Tokens: a retry takes one, a success gives back ``per_success``, a second ``per_second``."""

    __slots__ = ("_at", "_lock", "_most", "_now", "_per_second", "_per_success", "_tokens")

    def __init__(self, most: float = 20.0, per_success: float = 0.1, per_second: float = 1.0,
                 now: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._per_success = per_success
        self._per_second = per_second
        self._now = now
        self._lock = threading.Lock()
        self._tokens = most
        self._at = now()

    def gain(self) -> None:
        """A call succeeded.  Unlocked: a token lost to a race is no harm."""
        if self._tokens < self._most:
            self._tokens = min(self._most, self._tokens + self._per_success)

    def take(self) -> bool:
        with self._lock:
            now = self._now()
            self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_second)
            self._at = now
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


class Attempts:
    """The attempts of one call, at most ``most`` for each of ``addresses``."""

    __slots__ = ("_addresses", "_budget", "_count", "_deadline", "_most", "_moves", "_unfounded")

    def __init__(self, most: int, budget: Budget, deadline: float | None, addresses: int = 1) -> None:
        self._most = most * addresses
        self._budget = budget
        self._deadline = deadline
        self._addresses = addresses
        self._count = 0
        self._moves = 0
        self._unfounded: float | None = None
        """Until when a cluster is waited for that a node said not to be founded."""

    def progress(self) -> None:
        """Something came through: count from the start again."""
        self._count = 0
        self._moves = 0

    def after(self, failed: Failed) -> float | None:
        """:meth:`delay` after a failure; a call that moves on to an address that is up waits for its turn alone.

        Twice for each address such a move costs nothing of the budget, for it feeds no overload: a node that dies with
        a hundred calls under way has all of them made again at the others.
        """
        return self.delay(failed.error, elsewhere=failed.elsewhere)

    def delay(self, error: VecdbError, *, elsewhere: bool = False) -> float | None:
        """Seconds to wait before the next attempt, or None: this failure is final."""
        if self._count >= self._most or not isinstance(error, Unavailable | Overloaded | OutcomeUnknown) \
                or isinstance(error, NoNodeForReplica):  # asked again, it is refused again
            return None
        if error.fields.get(UNFOUNDED) and self._unfounded is None:
            self._unfounded = time.monotonic() + UNFOUNDED_S
        wait = random.uniform(0.0, min(MOST_S, BASE_S * 2.0 ** self._count))  # noqa: S311  # jitter, no secret
        hint = error.fields.get("retry_after_s")
        asked = float(hint) if isinstance(hint, int | float) and hint > 0 else 0.0
        if self._deadline is not None and time.monotonic() + wait + asked >= self._deadline:
            return None
        if self._unfounded is not None and time.monotonic() + wait + asked >= self._unfounded:
            return None
        # That nobody knows the end of a write is no sign of too much work, and to ask once more settles it.
        free = isinstance(error, OutcomeUnknown) and self._count == 0
        if elsewhere and not isinstance(error, Overloaded) and self._moves < 2 * self._addresses:
            self._moves += 1
            free = True
        if not free and not self._budget.take():
            return None
        self._count += 1
        return wait + min(asked, HINT_MOST_S)
