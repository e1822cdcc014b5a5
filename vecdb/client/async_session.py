"""One open node shared by an AsyncDatabase, its collections and any number of tasks of one event loop.

``close`` refuses new calls, waits for those that run and then closes the node.  As with the sync
:class:`~vecdb.client.session.Session` a child forked from the process is refused at once.
"""

import asyncio
import os
import time
from collections.abc import Iterable
from typing import Any, TypeVar

from vecdb.client.asking import Bound
from vecdb.client.deadlines import Limited
from vecdb.client.positions import Positions
from vecdb.client.session import forked
from vecdb.client.steps import Steps, adrive
from vecdb.core.calls import Call, Consistency, Stopped
from vecdb.core.errors import DatabaseClosed, InvalidArgument

T = TypeVar("T")


class AsyncSession:
    """Counts running calls; belongs to the event loop it was made in."""

    def __init__(self, node: Any, label: str, consistency: Consistency = Consistency.SESSION) -> None:
        self.label = label
        self.positions = Positions(consistency)
        self.batch_bytes: int | None = getattr(node, "batch_bytes", None)
        self._node = node
        self._keeps_time = bool(getattr(node, "keeps_time", False))
        self._loop = asyncio.get_running_loop()
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._ended: asyncio.Task[None] | None = None
        self._pid = os.getpid()

    @property
    def closed(self) -> bool:
        return self._closing or self._pid != os.getpid()

    def check_process(self) -> None:
        if self._pid != os.getpid():
            raise forked(self.label, self._pid)

    def check_open(self) -> None:
        self.check_process()
        if self._closing:
            raise DatabaseClosed(f"the database {self.label} is closed", target=self.label)
        if asyncio.get_running_loop() is not self._loop:
            raise InvalidArgument("loop", f"the database {self.label} was opened in another event loop; connect again "
                                  "in this one", got="another event loop", limit="the loop of connect_async")

    async def run(self, steps: Steps[T], timeout: float | None = None, consistency: Consistency | None = None,
                  partial: bool = False) -> T:
        """Run the steps of one call, at most ``timeout`` (checked) seconds, its reads by ``consistency``.

        ``partial``: they may be answered by some of the shards.
        """
        self.check_open()
        self._running += 1
        self._idle.clear()
        try:
            if self._keeps_time:
                call = None if timeout is None else Call(time.monotonic() + timeout)
                return await adrive(steps, Bound(self._node, call, self.positions, consistency, partial))
            with Limited(timeout) as limited:
                call = Call() if limited is None else limited
                try:
                    return await adrive(steps, Bound(self._node, call, self.positions, consistency, partial))
                except asyncio.CancelledError:
                    call.end(Stopped.CANCELLED)
                    raise
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def session_token(self, names: Iterable[str]) -> str:
        """What was written, as text; closed or not, but not in a forked child."""
        self.check_process()
        return self.positions.token(tuple(names) or None)

    def use_session_token(self, token: object) -> None:
        self.check_open()
        self.positions.use(token)

    async def close(self) -> None:
        """Close once; whoever closes again waits for the same end."""
        if self._pid != os.getpid():
            return
        self._closing = True
        if self._ended is None:
            self._ended = asyncio.create_task(self._end())
        await asyncio.shield(self._ended)

    async def _end(self) -> None:
        await self._idle.wait()
        await self._node.close()
