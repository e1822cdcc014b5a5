"""Which of two processes that speak by one node's name is that node: the one that answers at the node's address.

A certificate and a name can be copied, an address cannot.  So where calls come by a name from another process than
before (each call's greeting says from which, :mod:`vecdb.rpc.peer_names`), the process at the address that the cluster
has of the node is asked which one it is.  After a restart that is the new one, at once; where nobody answers (the
old one is gone, the new one is elsewhere, or an older release does not know the question) the later one is believed;
and where another one answers there are **two**, and the caller is refused as :data:`TWICE`, so it displaces no stream,
joins no group and is not registered.  The question tells the node itself that somebody has its name.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from vecdb.core.errors import VecdbError

TWICE: Final = "node_twice"
"""The kind of such refusals."""
ASK_S: Final = 1.0
AGAIN_S: Final = 1.0
"""An answer is good for so long: two that call all the time make one question a second."""

CONTESTED_S: Final = 10.0
"""For so long, after two have called by turns and nobody could say which is the node, it is asked again."""

Ask = Callable[[str, int, str], Awaitable[int]]
"""``(node, incarnation, host)``: the number of the process at the node's address, told that a process of this number
calls from there by its name; 0 or ``VecdbError``: not known.
"""


class Twins:
    """Which process each node is, as far as is known.  Belongs to one event loop."""

    def __init__(self, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._known: dict[str, int] = {}
        self._confirmed: dict[str, int] = {}
        self._asked: dict[str, tuple[float, asyncio.Task[int]]] = {}
        self._before: dict[str, int] = {}
        """Which was believed before another one was, on nobody's word."""
        self._contested: dict[str, float] = {}
        """When one that was given up called again: both live."""

    def settled(self, node: str, incarnation: int) -> bool:
        """Whether nothing is to be asked: it calls as it did before, or for the first time."""
        if self._known.setdefault(node, incarnation) != incarnation:
            return False
        return node not in self._contested or self._clock() - self._contested[node] > CONTESTED_S

    def confirmed(self, node: str, incarnation: int) -> bool:
        """Whether this very process has answered at the node's address."""
        return self._confirmed.get(node) == incarnation

    async def admits(self, node: str, incarnation: int, host: str) -> bool:
        """Whether a process may speak by the name, as far as can be found out within :data:`ASK_S`."""
        answer = await self._answer(node, incarnation, host)
        if answer:
            self._confirmed[node] = answer
            self._contested.pop(node, None)
            self._before.pop(node, None)
        elif self._known.get(node, incarnation) != incarnation:
            if self._before.get(node) == incarnation:
                self._contested[node] = self._clock()
            self._before[node] = self._known[node]
        self._known[node] = answer or incarnation
        return answer in (0, incarnation)

    async def _answer(self, node: str, incarnation: int, host: str) -> int:
        now = self._clock()
        at, task = self._asked.get(node, (now, None))
        if task is None or (task.done() and now - at >= AGAIN_S):
            task = asyncio.get_running_loop().create_task(self._once(node, incarnation, host))
            self._asked[node] = (now, task)
        return await asyncio.shield(task)

    async def _once(self, node: str, incarnation: int, host: str) -> int:
        try:
            async with asyncio.timeout(ASK_S):
                return await self._ask(node, incarnation, host)
        except (VecdbError, TimeoutError):
            return 0
