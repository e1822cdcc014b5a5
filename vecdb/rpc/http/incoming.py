"""The bytes of a request's body: held in the budget as they come, at no less than a rate, and not for ever.

A length that was declared costs its caller nothing, so nothing is held for it: eight sockets that declare all there is
and send a byte now and then would keep every other call out.  What is held has been sent; who sends it slowly is
refused, and whatever his rate after :data:`LONGEST_S`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from vecdb.core.errors import Cancelled, DeadlineExceeded
from vecdb.ports.observer import Refusal
from vecdb.rpc.door import hold
from vecdb.rpc.http.replies import Refused, too_large

if TYPE_CHECKING:
    from vecdb.rpc.door import Guards

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

SLOWEST_BYTES_S: Final = 64 << 10
WINDOW_S: Final = 10.0
"""Over so many seconds the rate is measured; a body that is done sooner may come as slowly as it likes."""
LONGEST_S: Final = 120.0


class Incoming:
    """The body of one request.  ``size``: bytes that have come; they are held until :meth:`release`."""

    __slots__ = ("_guards", "_held", "size")

    def __init__(self, guards: "Guards") -> None:
        self._guards = guards
        self._held = 0
        self.size = 0

    async def read(self, receive: Receive, declared: int, most: int, deadline: float) -> bytes:
        """The whole body.

        ``declared``: the length that the headers tell, or 0; ``most``: bytes; ``deadline``: on ``time.monotonic``.
        Raises Refused (408, 413), Overloaded, DeadlineExceeded, Cancelled.
        """
        self._look_for_room(declared)
        loop = asyncio.get_running_loop()
        began = loop.time()
        in_time = began + deadline - time.monotonic()
        end = min(began + LONGEST_S, in_time)
        parts: list[bytes] = []
        counted = 0
        try:
            async with asyncio.timeout_at(min(end, began + WINDOW_S)) as limit:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Cancelled("the caller went away while its body was read")
                    part = message.get("body", b"")
                    self._count(len(part), most)
                    parts.append(part)
                    if not message.get("more_body", False):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
                    if self.size - counted >= SLOWEST_BYTES_S * WINDOW_S:
                        counted = self.size
                        limit.reschedule(min(end, loop.time() + WINDOW_S))
        except TimeoutError:
            if loop.time() >= in_time:
                raise DeadlineExceeded("the deadline passed before the whole body had come") from None
            raise self._late(loop.time() >= end) from None

    def release(self) -> None:
        """Give back what is held; a second call does nothing."""
        if self._held:
            held, self._held = self._held, 0
            self._guards.budget.release(held)

    def _look_for_room(self, size: int) -> None:
        """Refuse a body that would find no room now, before it is sent for nothing."""
        if size:
            hold(self._guards, size)
            self._guards.budget.release(size)

    def _count(self, more: int, most: int) -> None:
        self.size += more
        if self.size > most:
            self._guards.observer.refused(Refusal.MESSAGE_BYTES)
            raise too_large(f"over {most}", most)
        if more:
            hold(self._guards, more)
            self._held += more

    def _late(self, whole: bool) -> Refused:
        limit = LONGEST_S if whole else SLOWEST_BYTES_S
        why = f"took more than {LONGEST_S:g} seconds" if whole else f"came slower than {SLOWEST_BYTES_S} bytes a second"
        return Refused(408, DeadlineExceeded.code, "RequestTimeout", f"the body {why}", argument="body", got=self.size,
                       limit=limit)
