"""How long the logs' disk takes to say that a batch is on it: operators are told, and leaders whose disk hangs go."""

from typing import Final

MINUTE_S: Final = 60.0


class SyncTimes:
    """Of one process, whose syncs come one after the other.  Times are the host's clock, in seconds."""

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0
        self._begun: float | None = None
        self._minute: tuple[float, float, float] = (0.0, 0.0, 0.0)
        """When the minute at hand began, its slowest, and that of the one before."""

    def begun(self, now: float) -> None:
        self._begun = now

    def ended(self, now: float) -> None:
        took, self._begun = self.waiting_s(now), None
        self.count += 1
        self.total_s += took
        begun, slowest, before = self._turned(now)
        self._minute = begun, max(slowest, took), before

    def waiting_s(self, now: float) -> float:
        """How long the one under way has taken already; 0 where there is none."""
        return 0.0 if self._begun is None else max(0.0, now - self._begun)

    def slowest_s(self, now: float) -> float:
        """The slowest of the last minute, or two, the one under way as well."""
        return max(*self._turned(now)[1:], self.waiting_s(now))

    def _turned(self, now: float) -> tuple[float, float, float]:
        begun, slowest, _ = self._minute
        if now - begun < MINUTE_S:
            return self._minute
        return now, 0.0, slowest if now - begun < 2 * MINUTE_S else 0.0
