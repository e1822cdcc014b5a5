"""Telling what may happen a thousand times a second, once a minute."""

import time
from collections.abc import Callable
from typing import Any, Final

from vecdb.ports.tell import Tell

EVERY_S: Final = 60.0
MOST: Final = 1_024
"""Kinds and peers remembered; of a flood of others only the first within a minute are told."""


class Seldom:
    """Tells each kind of event of each peer at most once in ``every_s``, and then how often it came.

    Belongs to one thread.
    """

    def __init__(self, tell: Tell, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._every_s, self._clock = tell, every_s, clock
        self._told: dict[tuple[str, str, str], tuple[float, int]] = {}
        """When it was told last, and how often it has come since."""

    def __call__(self, level: str, event: str, kind: str, peer: str, **fields: Any) -> bool:
        """Whether it was told."""
        now = self._clock()
        key = (event, kind, peer)
        before, since = self._told.get(key, (0.0, 0))
        if key in self._told and now - before < self._every_s:
            self._told[key] = (before, since + 1)
            return False
        if key not in self._told and len(self._told) >= MOST:
            self._told = {key: told for key, told in self._told.items() if now - told[0] < self._every_s}
            if len(self._told) >= MOST:
                return False
        self._told[key] = (now, 0)
        more = {"times": since + 1} if since else {}
        self._tell(level, event, kind=kind, peer=peer, **more, **fields)
        return True
