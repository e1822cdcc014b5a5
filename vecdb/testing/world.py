"""Virtual time, one source of chance, and a trace of what happened."""

import heapq
from collections import Counter, deque
from collections.abc import Callable
from random import Random
from typing import Any, ParamSpec

from vecdb.testing.violation import Violation

P = ParamSpec("P")

TRACE_LINES = 600
AT_ONCE = 20_000
"""Events that may follow from each other without time passing: more is somebody who spins."""


class World:
    """Events happen in the order of their moments, and of their scheduling where those are equal."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)  # noqa: S311
        self.now = 0.0
        self.happened = Counter[str]()
        """What was injected and done, for the closing line."""
        self.trace: deque[str] = deque(maxlen=TRACE_LINES)
        self.after_each: Callable[[], None] = lambda: None
        """Runs after every event: invariants."""
        self.failure: Exception | None = None
        """What a judge found where the product would have caught it: raised at the end of the event."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._scheduled = 0
        self._at_once = 0

    def at(self, delay: float, act: Callable[[], None]) -> None:
        """Let ``act`` happen ``delay`` seconds from now."""
        self._scheduled += 1
        heapq.heappush(self._events, (self.now + delay, self._scheduled, act))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            before = self.now
            self.now, _, act = heapq.heappop(self._events)
            self._at_once = self._at_once + 1 if self.now == before else 0
            if self._at_once > AT_ONCE:
                raise Violation(f"time stands still at {self.now}: {AT_ONCE} events follow from each other at once")
            self.happened["events"] += 1
            try:
                act()
                self.after_each()
            finally:
                if self.failure is not None:
                    raise self.failure
        self.now = until

    def run_until(self, true: Callable[[], bool], at_most: float) -> bool:
        """Let time pass until something is so; whether it came to be within ``at_most`` seconds."""
        until = self.now + at_most
        while not true():
            if self.now >= until:
                return False
            self.run(min(0.05, until - self.now))
        return True

    def judging(self, judge: Callable[P, None]) -> Callable[P, None]:
        """``judge`` for use within the product, which takes errors for its own."""
        def judged(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                judge(*args, **kwargs)
            except Exception as error:
                self.failure = self.failure or error
                raise

        return judged

    def say(self, who: str, what: str, **fields: Any) -> None:
        told = " ".join(f"{name}={value}" for name, value in fields.items())
        self.trace.append(f"{self.now:9.4f} {who:<8} {what} {told}".rstrip())
