"""What a node that stops waits for, told while it waits.

Calls that run are one reason of many for a stop that takes long: builds that come to a place where they can end, files
that are made durable, a disk that hangs.  So it is not the parts that tell, which would have to foresee it, but what
runs: the place where the stop itself stands, and the places of all threads that are at work in this package.  A thread
of its own looks, for the loop may be what is held up.
"""

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

from vecdb.ports.tell import Tell

PERIOD_S: Final = 3.0
NAMED: Final = 8
"""Places that are told at once."""
_PACKAGE: Final = str(Path(__file__).parents[1])
_IDLE: Final = frozenset(("run_node", "_serve"))
"""What stands in a thread that is not held up by anything."""
_RESTING: Final = frozenset(("threading.py wait", "queue.py get", "selectors.py select", "workers.py _wait_for_work"))
"""Where threads stand that wait for work."""


@contextmanager
def watched(stop: "asyncio.Task[Any]", tell: Tell, period_s: float = PERIOD_S) -> Iterator[None]:
    """While it lasts, ``tell`` of ``still_stopping`` every ``period_s``, with ``waits``: what for."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(stop, over, tell, period_s), name="stopping", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(stop: "asyncio.Task[Any]", over: threading.Event, tell: Tell, period_s: float) -> None:
    waited = 0.0
    while not over.wait(period_s):
        waited += period_s
        waits = [*_stands(stop), *_at_work()][:NAMED]
        if not over.is_set():
            tell("info", "still_stopping", seconds=waited, waits=waits)


def _stands(stop: "asyncio.Task[Any]") -> list[str]:
    """The innermost coroutine of ours that a task waits in."""
    found: list[str] = []
    coroutine: Any = stop.get_coro()
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and (place := _place(frame)):
            found.append(place)
        coroutine = getattr(coroutine, "cr_await", None)
    return found[-1:]


def _at_work() -> list[str]:
    """For each thread that is in this package, the innermost place there."""
    names = {one.ident: one.name for one in threading.enumerate()}
    found = []
    for ident, innermost in sys._current_frames().items():
        frame: FrameType | None = innermost
        rests = f"{Path(innermost.f_code.co_filename).name} {innermost.f_code.co_name}" in _RESTING
        if rests or ident == threading.get_ident():
            continue
        while frame is not None and not (place := _place(frame)):
            frame = frame.f_back
        if frame is not None and frame.f_code.co_name not in _IDLE:
            found.append(f"{place} (thread {names.get(ident, ident)})")
    return sorted(found)


def _place(frame: FrameType) -> str:
    """``services/local.py:40 close``; empty outside of this package."""
    path = frame.f_code.co_filename
    if not path.startswith(_PACKAGE):
        return ""
    return f"{path.removeprefix(_PACKAGE).lstrip('/')}:{frame.f_lineno} {frame.f_code.co_name}"
