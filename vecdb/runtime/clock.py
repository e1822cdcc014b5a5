"""The process's real clock."""

import time


class SystemClock:
    """:class:`vecdb.ports.clock.Clock` by the operating system."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
