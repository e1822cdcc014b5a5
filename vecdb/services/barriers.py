"""Questions that many reads ask at the same time, asked once: where the log of a group is now.

A read may use the answer to a question that was asked after the read began.  So those that come while one is under way
share the next: at most two a group, however many reads there are.
"""

import asyncio
from collections.abc import Awaitable, Callable


class _Round:
    """One question; it is given up with the last who waits for it."""

    def __init__(self) -> None:
        self.waiting = 0
        self.task: asyncio.Task[int]


class Barriers:
    """``ask(group)`` returns a place in the log as of a moment after it was called.  Belongs to one event loop."""

    def __init__(self, ask: Callable[[int], Awaitable[int]]) -> None:
        self._ask = ask
        self._now: dict[int, _Round] = {}
        self._next: dict[int, _Round] = {}

    async def index(self, group: int) -> int:
        """As ``ask``; raises what it raises."""
        shared = self._next.get(group)
        if shared is None:
            shared = self._next[group] = _Round()
            shared.task = asyncio.get_running_loop().create_task(self._run(group, shared, self._now.get(group)))
            shared.task.add_done_callback(_looked_at)
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.task.done():
                self._leave(group, shared)
                shared.task.cancel()

    async def _run(self, group: int, mine: _Round, before: _Round | None) -> int:
        """Begins in the loop's next turn at the soonest, so that who comes in the same one is of the same round."""
        try:
            if before is not None and not before.task.done():
                await asyncio.wait((before.task,))
            self._next.pop(group, None)
            self._now[group] = mine
            return await self._ask(group)
        finally:
            self._leave(group, mine)

    def _leave(self, group: int, mine: _Round) -> None:
        for rounds in (self._now, self._next):
            if rounds.get(group) is mine:
                del rounds[group]


def _looked_at(task: "asyncio.Task[int]") -> None:
    """A failure is for those who wait; where nobody does any more, asyncio would complain of it."""
    if not task.cancelled():
        task.exception()
