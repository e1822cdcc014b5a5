"""The few things a procedure waits for, and the two wires they are done on.

An :class:`Rpc` names a method.  :class:`Unary` is a call and its answer; :class:`Start` and :class:`Wait` are the same
in two steps, so that several can be under way; for streams see :mod:`~vecdb.client.remote.streams`.  Every failure is a
:class:`~vecdb.client.remote.retry.Failed`.

A wire has a channel for each address.  Calls go round, but for writes, which go where the last one was carried out
without being handed on (:class:`Route`): every node takes them, and the one that leads saves the way to itself.  An
address that failed is left alone for a moment while another one is up, and for longer each time that it fails again; so
is one whose node says that it reaches no other.  Then one call is made there, and no other until that one is answered.
"""

import asyncio
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

import grpc

from vecdb.client.remote.failures import Hint, failure, no_hint, untyped
from vecdb.client.remote.retry import Failed
from vecdb.core.errors import DeadlineExceeded, Unavailable

DOWN_S: Final = 2.0
DOWN_MOST_S: Final = 30.0
"""How long an address that failed is left alone while another one is up: twice as long each time, at most this."""
SPARE: Final = 1 / 3
SPARE_MOST_S: Final = 3.0
"""Of a read's time what is kept for another address, where one is up: a third, at most so many seconds."""

Metadata = Sequence[tuple[str, str]] | None


class Rpc:
    """A method of the API; ``kind`` is the name of the channel's factory for it."""

    __slots__ = ("kind", "number", "path")
    _numbers = itertools.count()

    def __init__(self, name: str, kind: str = "unary_unary") -> None:
        self.path = f"/vecdb.v1.{name}"
        self.kind = kind
        self.number = next(Rpc._numbers)


class Route:
    """Where a write of the collection ``name`` should go: ``label`` of an address, empty for any; then the one that it
    went to.
    """

    __slots__ = ("label", "name")

    def __init__(self, label: str = "", name: str = "") -> None:
        self.label = label
        self.name = name


class Link:
    """One address: its channel, and the callables made on it; ``hint``: what a failed connection may mean.

    ``others``: links to other addresses.
    """

    __slots__ = ("_calls", "_hint", "channel", "doubtful", "down_until", "failures", "label", "others", "probing",
                 "refusals", "refused_until")

    def __init__(self, channel: Any, label: str, hint: Hint = no_hint) -> None:
        self.channel = channel
        self.label = label
        self._hint = hint
        self.down_until = 0.0
        self.failures = 0
        self.refusals = 0
        """How often in a row its node said that it reaches no other; what it answers all the same ends no such row."""
        self.refused_until = 0.0
        self.doubtful = False
        """It has failed, and answered nothing since."""
        self.probing = False
        """One call is under way there to see how it is."""
        self.others: tuple[Link, ...] = ()
        self._calls: dict[int, Any] = {}

    def method(self, rpc: Rpc) -> Any:
        found = self._calls.get(rpc.number)
        if found is None:
            found = self._calls[rpc.number] = getattr(self.channel, rpc.kind)(rpc.path)
        return found

    def failed(self, error: Any, limit: float | None = None) -> Failed:
        """``limit``: the seconds that the call had, where it may take longer elsewhere."""
        known = failure(error, self.label, self._hint)
        now = time.monotonic()
        if known.transport:
            # Calls that were under way together fail together: that is one failure.  What answers is not gone for long.
            asked = self.probing or self.down_until <= now
            if asked and not known.answered:
                self.failures += 1
            times = self.failures
            if known.error.fields.get("elsewhere"):
                if asked:
                    self.refusals = self.refusals + 1 if now < self.refused_until + DOWN_MOST_S else 1
                times = self.refusals
            self._leave(now, min(DOWN_MOST_S, DOWN_S * 2.0 ** min(max(times - 1, 0), 8)))
            if times and times == self.refusals:
                self.refused_until = self.down_until
            known.elsewhere = any(other.down_until <= now for other in self.others)
        elif self.others and isinstance(known.error, DeadlineExceeded):
            self.slow()
            if limit is not None:
                told = Unavailable(f"the server {self.label} did not answer in {limit:.3g} s", target=self.label)
                return Failed(told, decided=False, transport=True, elsewhere=True)
        return known

    def _leave(self, now: float, seconds: float) -> None:
        """Alone for so long."""
        self.down_until = now + seconds
        self.doubtful, self.probing = True, False

    def claim(self, now: float) -> None:
        """A call goes there: if it failed last, others wait for what becomes of this one, as long as that may take."""
        if self.doubtful:
            self.down_until = now + DOWN_S
            self.probing = True

    def slow(self) -> None:
        """Time ran out there: it may be frozen, or cut off; if the call was only long, no harm is done."""
        self._leave(time.monotonic(), DOWN_S)

    def cut(self, error: asyncio.CancelledError) -> BaseException:
        """What a call ended with: of a channel that was closed under it grpc.aio tells as of a task's cancellation."""
        task = asyncio.current_task()
        if task is None or task.cancelling():
            return error
        return untyped(14, "the channel was closed under it", self.label)

    def refused(self) -> bool:
        """In a stream this server said that it serves nobody: leave it alone for a moment; is there another one?"""
        self._leave(time.monotonic(), DOWN_S)
        return any(other.down_until <= time.monotonic() for other in self.others)

    def answered(self) -> None:
        """A call was answered."""
        if self.doubtful and (self.failures or self.probing):
            self.failures = 0
            self.down_until = 0.0
            self.doubtful = self.probing = False


class Wire:
    """The links of one connection."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._turn = itertools.count()
        self._take(links)

    def _take(self, links: Sequence[Link]) -> None:
        self.links = tuple(links)
        for link in self.links:
            link.others = tuple(other for other in self.links if other.label != link.label)

    def link(self, route: Route | None = None) -> Link:
        """The next address in turn of those that did not fail just now, or the one that failed longest ago.

        The address of ``route`` comes before others unless it failed just now.
        """
        links = self.links
        if len(links) == 1:
            return links[0]
        now, first = time.monotonic(), next(self._turn)
        found = None
        for step in range(len(links)):
            link = links[(first + step) % len(links)]
            if link.down_until <= now:
                if route is None or not route.label or link.label == route.label:
                    found = link
                    break
                found = found or link
        if found is None:
            found = min(links, key=lambda link: link.down_until)
        if found.doubtful:
            found.claim(now)
        if route is not None:
            route.label = found.label
        return found


class Linked(Protocol):
    """What has a link for a call."""

    def link(self, route: Route | None = None) -> Link: ...


class Unary:
    """Call ``rpc`` and answer with the reply's bytes.

    ``spare``: it may be made again at another address, so some of the time is kept for that while there is one that is
    up (:data:`SPARE`).
    """

    __slots__ = ("metadata", "payload", "route", "rpc", "spare", "timeout")

    def __init__(self, rpc: Rpc, payload: bytes, timeout: float | None, metadata: Metadata,
                 route: Route | None = None, spare: bool = False) -> None:
        self.rpc = rpc
        self.payload = payload
        self.timeout = timeout
        self.metadata = metadata
        self.route = route
        self.spare = spare

    def within(self, link: Link) -> tuple[float | None, float | None]:
        """Seconds that the call may take at ``link``; the same again where it may take longer elsewhere, else None."""
        if not self.spare or self.timeout is None or not any(one.down_until <= time.monotonic() for one in link.others):
            return self.timeout, None
        mine = self.timeout - min(SPARE * self.timeout, SPARE_MOST_S)
        return mine, mine

    def run(self, wire: Linked) -> bytes:
        link = wire.link(self.route)
        seconds, limit = self.within(link)
        try:
            reply: bytes = link.method(self.rpc)(self.payload, seconds, self.metadata)
        except grpc.RpcError as error:
            raise link.failed(error, limit) from None
        except ValueError as error:  # "Cannot invoke RPC on closed channel!"
            raise untyped(1, str(error), link.label) from None
        link.answered()
        return reply

    async def arun(self, wire: Linked) -> bytes:
        link = wire.link(self.route)
        seconds, limit = self.within(link)
        try:
            reply: bytes = await link.method(self.rpc)(self.payload, timeout=seconds, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            raise link.failed(error, limit) from None
        except grpc.aio.UsageError as error:
            raise untyped(1, str(error), link.label) from None
        except asyncio.CancelledError as error:
            raise link.cut(error) from None
        link.answered()
        return reply


class UnaryOn(Unary):
    """The same on a link of its own."""

    __slots__ = ("link",)

    def __init__(self, link: Link, rpc: Rpc, payload: bytes, timeout: float | None, metadata: Metadata) -> None:
        super().__init__(rpc, payload, timeout, metadata)
        self.link = link

    def run(self, wire: Linked) -> bytes:
        return super().run(_On(self.link))

    async def arun(self, wire: Linked) -> bytes:
        return await super().arun(_On(self.link))


class _On:
    """A wire of one link."""

    __slots__ = ("_link",)

    def __init__(self, link: Link) -> None:
        self._link = link

    def link(self, route: Route | None = None) -> Link:
        return self._link


class Pending:
    """A unary call under way; ``limit``: the seconds it has, where it may take longer elsewhere."""

    __slots__ = ("call", "limit", "link")

    def __init__(self, call: Any, link: Link, limit: float | None = None) -> None:
        self.call = call
        self.link = link
        self.limit = limit

    def cancel(self) -> None:
        self.call.cancel()


class Start(Unary):
    """Send a call; answers with a :class:`Pending`."""

    __slots__ = ()

    def run(self, wire: Linked) -> Any:
        link = wire.link(self.route)
        seconds, limit = self.within(link)
        try:
            return Pending(link.method(self.rpc).future(self.payload, seconds, self.metadata), link, limit)
        except ValueError as error:
            raise untyped(1, str(error), link.label) from None

    async def arun(self, wire: Linked) -> Any:
        link = wire.link(self.route)
        seconds, limit = self.within(link)
        try:
            return Pending(link.method(self.rpc)(self.payload, timeout=seconds, metadata=self.metadata), link, limit)
        except grpc.aio.UsageError as error:
            raise untyped(1, str(error), link.label) from None


class StartOn(Start):
    """The same on a link of its own."""

    __slots__ = ("link",)

    def __init__(self, link: Link, rpc: Rpc, payload: bytes, timeout: float | None, metadata: Metadata) -> None:
        super().__init__(rpc, payload, timeout, metadata)
        self.link = link

    def run(self, wire: Linked) -> Any:
        return super().run(_On(self.link))

    async def arun(self, wire: Linked) -> Any:
        return await super().arun(_On(self.link))


class Wait:
    """The reply's bytes of a pending call."""

    __slots__ = ("pending",)

    def __init__(self, pending: Pending) -> None:
        self.pending = pending

    def run(self, wire: Wire) -> bytes:
        try:
            reply: bytes = self.pending.call.result()
        except grpc.FutureCancelledError as error:
            raise untyped(1, str(error), self.pending.link.label) from None
        except grpc.RpcError as error:
            raise self.pending.link.failed(error, self.pending.limit) from None
        self.pending.link.answered()
        return reply

    async def arun(self, wire: Wire) -> bytes:
        try:
            reply: bytes = await self.pending.call
        except grpc.aio.AioRpcError as error:
            raise self.pending.link.failed(error, self.pending.limit) from None
        except asyncio.CancelledError as error:
            raise self.pending.link.cut(error) from None
        self.pending.link.answered()
        return reply


class Sleep:
    """Wait some seconds."""

    __slots__ = ("seconds",)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, wire: Wire) -> None:
        time.sleep(self.seconds)

    async def arun(self, wire: Wire) -> None:
        await asyncio.sleep(self.seconds)


_live: "weakref.WeakSet[Any]" = weakref.WeakSet()
_kept: list[Any] = []


def keep(wire: Any) -> None:
    """In a forked child hold on to ``wire``: to let go of its channels there would wait for threads that are not."""
    _live.add(wire)


os.register_at_fork(after_in_child=lambda: _kept.extend(_live))


class SyncWire(Wire):
    """For threads; closes once."""

    def __init__(self, links: Sequence[Link]) -> None:
        super().__init__(links)
        self._once = threading.Lock()

    def close(self) -> None:
        if self._once.acquire(blocking=False):
            for link in self.links:
                link.channel.close()


class AioWire(Wire):
    """For the event loop it was made in; opened at the first use, for a channel belongs to a loop."""

    def __init__(self, open_links: Callable[[], Sequence[Link]]) -> None:
        super().__init__(())
        self._open = open_links
        self._loop: asyncio.AbstractEventLoop | None = None

    def here(self) -> "AioWire":
        """This wire, opened; raises RuntimeError in another event loop than the first one."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._take(self._open())
        elif self._loop is not loop:
            raise RuntimeError("this connection belongs to another event loop; connect again in this one")
        return self

    async def close(self) -> None:
        for link in self.links:
            with suppress(asyncio.CancelledError):
                await link.channel.close()
