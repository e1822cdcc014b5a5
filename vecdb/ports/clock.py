"""Time, as the shell sees it; nothing below ``services`` has any."""

from typing import Protocol


class Clock(Protocol):
    """``monotonic`` is for durations and deadlines, ``wall`` for what people and files are told."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...

    def wall(self) -> float:
        """Seconds since 1970 UTC; may jump."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let the calling thread rest for at least ``seconds``."""
        ...
