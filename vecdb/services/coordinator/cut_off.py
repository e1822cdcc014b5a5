"""A node that reaches no other member of a shard's group, and what it says of that to callers who know of other nodes.

What a read must see is then known elsewhere, and where this node has no replica the records are, too: to wait would
use up the time in which another node could answer.  Whoever asks here first waits for the finding, at most some 1.6 s;
whoever comes after is refused at once, while the others are asked again in the background (one question at a time, and
only while such reads come), so that the node serves as soon as one of them says anything.  An election is no such case:
there the others say that nobody leads, and it is waited for.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from vecdb.core.errors import Unavailable
from vecdb.ports.clock import Clock
from vecdb.services.leaders import PATIENCE_S, Task

T = TypeVar("T")

AGAIN_S: Final = 0.5
"""How old a finding may be before the others are asked again."""
HEARD_S: Final = 2.0
"""How long a finding counts where this node's replica has heard of a leader, be it one of before."""
LASTS_S: Final = 60.0
"""How long it counts otherwise: as long as an address may be left alone by those whom it has refused, and longer."""
FOUND_MOST: Final = 16_384
"""Groups of which it is remembered: forgotten all at once, and found again."""


class CutOff:
    """Belongs to one event loop.  ``alone(task)``: whether no other member of its group says anything, in bounded time;
    ``hears(group)``: whether this node's replica knows of a leader that is another node.
    """

    def __init__(self, alone: Callable[[Task], Awaitable[bool]], hears: Callable[[int], bool], clock: Clock) -> None:
        self._alone = alone
        self._hears = hears
        self._clock = clock
        self._found: dict[int, float] = {}
        """When it was found out last."""
        self._asking: dict[int, asyncio.Task[bool]] = {}

    def note(self, group: int) -> None:
        """It was found out."""
        if len(self._found) >= FOUND_MOST and group not in self._found:
            self._found.clear()
        self._found[group] = self._clock.monotonic()

    def known(self, task: Task) -> bool:
        """Whether it is known, as far as anybody can say at once; asks the others again in the background."""
        found = self._found.get(task.group)
        if found is None:
            return False
        age = self._clock.monotonic() - found
        if age >= (HEARD_S if self._hears(task.group) else LASTS_S):
            del self._found[task.group]
            return False
        if age >= AGAIN_S:
            self._ask(task)
        return True

    def check(self, task: Task) -> None:
        """Raise ``Unavailable`` where it is known."""
        if self.known(task):
            raise refusal(task)

    async def look(self, task: Task) -> None:
        """Ask the others, if it is not known; ``Unavailable`` where none says anything."""
        self.check(task)
        if await asyncio.shield(self._ask(task)):
            raise refusal(task)

    async def watch(self, task: Task, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` comes to; given up, with ``Unavailable``, where it takes long and nobody says anything."""
        doing = asyncio.get_running_loop().create_task(work)
        try:
            while True:
                done, _ = await asyncio.wait((doing,), timeout=PATIENCE_S)
                if done:
                    return doing.result()
                if await asyncio.shield(self._ask(task)) and not doing.done():
                    raise refusal(task)
        finally:
            if not doing.done():
                doing.cancel()
                await asyncio.wait((doing,))

    def _ask(self, task: Task) -> "asyncio.Task[bool]":
        """The question, one at a time for each group."""
        asking = self._asking.get(task.group)
        if asking is None:
            asking = asyncio.get_running_loop().create_task(self._run(task))
            asking.add_done_callback(_looked_at)
            self._asking[task.group] = asking
        return asking

    async def _run(self, task: Task) -> bool:
        try:
            alone = await self._alone(task)
        finally:
            del self._asking[task.group]
        if alone:
            self.note(task.group)
        else:
            self._found.pop(task.group, None)
        return alone


def refusal(task: Task) -> Unavailable:
    """Retryable, at another node."""
    return Unavailable(f"this node reaches no other member of {task}, and cannot tell what such a read must see",
                       elsewhere=True)


def _looked_at(task: "asyncio.Task[bool]") -> None:
    if not task.cancelled():
        task.exception()
