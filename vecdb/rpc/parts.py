"""Reads that come in several calls, and a node that stops between them.

A client cuts a long query into calls of some hundred rows and sends a few at a time.  A node that drains refuses calls
that come, and so would leave such a query half answered.  Each of these calls therefore says which read it is a part of
and how many calls are still to come (:data:`~vecdb.core.calls.PART`), and a read of which a part was taken before the
drain is let in to its end: as with every call that had begun, within the time that a drain has.  Of a read whose next
part does not come within :data:`NEXT_S` nothing more is expected.

That a caller may say so of any call is no more than it could have by one call that takes long.
"""

import re
import time
from collections.abc import Callable
from typing import Any, Final

from vecdb.core.calls import PART

NEXT_S: Final = 1.0
MOST: Final = 4_096
"""Reads remembered, the latest: one that was given up midway is never heard of again."""
_FORM: Final = re.compile(r"([0-9a-f]{8,32})/([0-9]{1,7})")


class _Read:
    __slots__ = ("at", "rest", "running")

    def __init__(self) -> None:
        self.rest, self.running, self.at = 0, 0, 0.0


class Parts:
    """Reads of which more is to come; belongs to one event loop."""

    __slots__ = ("_now", "_reads")

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._reads: dict[str, _Read] = {}

    def __len__(self) -> int:
        return len(self._reads)

    def known(self, metadata: Any) -> bool:
        """Whether a call belongs to a read that has begun."""
        told = _told(metadata)
        return told is not None and told[0] in self._reads

    def begin(self, metadata: Any) -> str:
        """A call was let in; what to :meth:`end` with it, "" if it is no part of anything."""
        told = _told(metadata)
        if told is None:
            return ""
        name, rest = told
        read = self._reads.get(name)
        if read is None:
            if not rest:
                return ""
            if len(self._reads) >= MOST:
                del self._reads[next(iter(self._reads))]
            read = self._reads[name] = _Read()
        read.rest = rest
        read.running += 1
        return name

    def end(self, name: str) -> None:
        read = self._reads.get(name)
        if read is None:  # forgotten: too many came since
            return
        read.running -= 1
        read.at = self._now()
        if read.running <= 0 and not read.rest:
            del self._reads[name]

    @property
    def awaited(self) -> bool:
        """Whether a part is likely to come yet."""
        since = self._now() - NEXT_S
        return any(read.running > 0 or read.at > since for read in self._reads.values())


def _told(metadata: Any) -> tuple[str, int] | None:
    for key, value in metadata or ():
        if key == PART:
            found = _FORM.fullmatch(value) if isinstance(value, str) else None
            return None if found is None else (found[1], int(found[2]))
    return None
