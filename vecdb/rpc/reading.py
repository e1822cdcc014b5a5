"""The message of a unary call, read after its headers have been looked at.

gRPC hands a unary handler the whole message: by then a stranger's 64 MiB are in memory before anybody has asked who he
is.  A handler of a stream reads when it wants to, and on the wire a stream of one message is a unary call, so unary
methods are registered as streams of requests (measured: no dearer).  Who may not call is refused with his message
unread, in gRPC's flow-control windows.

A caller who sends headers and never a message would hold a place for ever; :class:`Readers` ends those that take
longer than :data:`MESSAGE_S`, by a look every few seconds in place of a timer for each call.
"""

import asyncio
import time
from typing import Any, Final

import grpc

from vecdb.core.errors import DeadlineExceeded, InvalidArgument

MESSAGE_S: Final = 30.0
LOOK_S: Final = 5.0
EOF: Final[Any] = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs


class Readers:
    """Calls whose message is awaited; belongs to one event loop."""

    def __init__(self, within_s: float = MESSAGE_S, look_s: float = LOOK_S) -> None:
        self._within_s, self._look_s = within_s, look_s
        self._since: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._since)

    async def read(self, rpc: Any) -> bytes:
        """The one message of a call; raises InvalidArgument if there is none, DeadlineExceeded if it does not come."""
        task = asyncio.current_task()
        assert task is not None
        self._since[task] = time.monotonic()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)
        try:
            raw = await rpc.read()
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            task.uncancel()
            raise DeadlineExceeded(f"the call's message did not come within {self._within_s:g} s") from None
        finally:
            del self._since[task]
            self._late.discard(task)
        if raw is EOF:
            raise InvalidArgument("message", "the call came without one", got=None, limit="one message")
        return raw  # type: ignore[no-any-return]

    def _look(self) -> None:
        """End those that wait too long; they are in the order of their beginning."""
        self._timer = None
        before = time.monotonic() - self._within_s
        for task, since in list(self._since.items()):
            if since > before:
                break
            if task not in self._late:
                self._late.add(task)
                task.cancel()
        if self._since:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)
