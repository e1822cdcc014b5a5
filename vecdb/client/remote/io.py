"""The few things a procedure waits for, and the two wires they are done on.

An :class:`Rpc` names a method.  :class:`Unary` is a call and its answer; :class:`Start` and :class:`Wait` are the same
in two steps, so that several can be under way; a stream is opened, written, read and let go.  Every failure is a
:class:`~vecdb.client.remote.retry.Failed`.

A wire has a channel for each address.  Calls go round, but for writes, which go where the last one was carried out
without being handed on (:class:`Route`): every node takes them, and the one that leads saves the way to itself.  An
address that failed is left alone for a moment while another one is up, and for longer each time that it fails again.
"""

import asyncio
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, Protocol

import grpc

from vecdb.client.remote.failures import Hint, failure, no_hint, untyped
from vecdb.client.remote.retry import Failed
from vecdb.core.errors import DeadlineExceeded

DOWN_S: Final = 2.0
DOWN_MOST_S: Final = 30.0
"""How long an address that failed is left alone while another one is up: twice as long each time, at most this."""

EOF: Final[Any] = getattr(grpc.aio, "EOF")  # noqa: B009  # the stubs do not know it

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

    __slots__ = ("_calls", "_hint", "channel", "down_until", "failures", "label", "others")

    def __init__(self, channel: Any, label: str, hint: Hint = no_hint) -> None:
        self.channel = channel
        self.label = label
        self._hint = hint
        self.down_until = 0.0
        self.failures = 0
        self.others: tuple[Link, ...] = ()
        self._calls: dict[int, Any] = {}

    def method(self, rpc: Rpc) -> Any:
        found = self._calls.get(rpc.number)
        if found is None:
            found = self._calls[rpc.number] = getattr(self.channel, rpc.kind)(rpc.path)
        return found

    def failed(self, error: Any) -> Failed:
        known = failure(error, self.label, self._hint)
        now = time.monotonic()
        if known.transport:
            # Calls that were under way together fail together: that is one failure.  What answers is not gone for long.
            if self.down_until <= now and not known.answered:
                self.failures += 1
            self.down_until = now + min(DOWN_MOST_S, DOWN_S * 2.0 ** min(max(self.failures - 1, 0), 8))
            known.elsewhere = any(other.down_until <= now for other in self.others)
        elif self.others and isinstance(known.error, DeadlineExceeded):
            self.down_until = now + DOWN_S  # it may be frozen, or cut off; if the call was only long, no harm is done
        return known

    def cut(self, error: asyncio.CancelledError) -> BaseException:
        """What a call ended with: of a channel that was closed under it grpc.aio tells as of a task's cancellation."""
        task = asyncio.current_task()
        if task is None or task.cancelling():
            return error
        return untyped(14, "the channel was closed under it", self.label)

    def refused(self) -> bool:
        """In a stream this server said that it serves nobody: leave it alone for a moment; is there another one?"""
        self.down_until = time.monotonic() + DOWN_S
        return any(other.down_until <= time.monotonic() for other in self.others)

    def answered(self) -> None:
        """A call was answered."""
        if self.failures:
            self.failures = 0
            self.down_until = 0.0


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
        if route is not None:
            route.label = found.label
        return found


class Linked(Protocol):
    """What has a link for a call."""

    def link(self, route: Route | None = None) -> Link: ...


class Unary:
    """Call ``rpc`` and answer with the reply's bytes."""

    __slots__ = ("metadata", "payload", "route", "rpc", "timeout")

    def __init__(self, rpc: Rpc, payload: bytes, timeout: float | None, metadata: Metadata,
                 route: Route | None = None) -> None:
        self.rpc = rpc
        self.payload = payload
        self.timeout = timeout
        self.metadata = metadata
        self.route = route

    def run(self, wire: Linked) -> bytes:
        link = wire.link(self.route)
        try:
            reply: bytes = link.method(self.rpc)(self.payload, self.timeout, self.metadata)
        except grpc.RpcError as error:
            raise link.failed(error) from None
        except ValueError as error:  # "Cannot invoke RPC on closed channel!"
            raise untyped(1, str(error), link.label) from None
        link.answered()
        return reply

    async def arun(self, wire: Linked) -> bytes:
        link = wire.link(self.route)
        try:
            reply: bytes = await link.method(self.rpc)(self.payload, timeout=self.timeout, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            raise link.failed(error) from None
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
    """A unary call under way."""

    __slots__ = ("call", "link")

    def __init__(self, call: Any, link: Link) -> None:
        self.call = call
        self.link = link

    def cancel(self) -> None:
        self.call.cancel()


class Start(Unary):
    """Send a call; answers with a :class:`Pending`."""

    __slots__ = ()

    def run(self, wire: Linked) -> Any:
        link = wire.link(self.route)
        try:
            return Pending(link.method(self.rpc).future(self.payload, self.timeout, self.metadata), link)
        except ValueError as error:
            raise untyped(1, str(error), link.label) from None

    async def arun(self, wire: Linked) -> Any:
        link = wire.link(self.route)
        try:
            return Pending(link.method(self.rpc)(self.payload, timeout=self.timeout, metadata=self.metadata), link)
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
            raise self.pending.link.failed(error) from None
        self.pending.link.answered()
        return reply

    async def arun(self, wire: Wire) -> bytes:
        try:
            reply: bytes = await self.pending.call
        except grpc.aio.AioRpcError as error:
            raise self.pending.link.failed(error) from None
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


class Stream:
    """An open stream; ``cancel`` is safe at any time and from any thread."""

    __slots__ = ("call", "link", "outgoing")

    def __init__(self, call: Any, link: Link, outgoing: "SimpleQueue[bytes | None] | None") -> None:
        self.call = call
        self.link = link
        self.outgoing = outgoing

    def cancel(self) -> None:
        if self.outgoing is not None:
            self.outgoing.put(None)  # lets gRPC's thread that reads it end
        self.call.cancel()


class Open(Unary):
    """Open a stream: with a request (``payload``) or, for a bidirectional one, without; answers with a Stream."""

    __slots__ = ()

    def run(self, wire: Linked) -> Any:
        link = wire.link(self.route)
        outgoing: SimpleQueue[bytes | None] | None = None
        first: Any = self.payload
        if self.rpc.kind == "stream_stream":
            outgoing = SimpleQueue()
            first = iter(outgoing.get, None)
        try:
            return Stream(link.method(self.rpc)(first, self.timeout, self.metadata), link, outgoing)
        except ValueError as error:
            raise untyped(1, str(error), link.label) from None

    async def arun(self, wire: Linked) -> Any:
        link = wire.link(self.route)
        given = () if self.rpc.kind == "stream_stream" else (self.payload,)
        try:
            return Stream(link.method(self.rpc)(*given, timeout=self.timeout, metadata=self.metadata), link, None)
        except grpc.aio.UsageError as error:
            raise untyped(1, str(error), link.label) from None


class Write:
    """Send a message on a stream; None says that no more will come."""

    __slots__ = ("payload", "stream")

    def __init__(self, stream: Stream, payload: bytes | None) -> None:
        self.stream = stream
        self.payload = payload

    def run(self, wire: Wire) -> None:
        assert self.stream.outgoing is not None
        self.stream.outgoing.put(self.payload)

    async def arun(self, wire: Wire) -> None:
        call = self.stream.call
        try:
            if self.payload is None:
                await call.done_writing()
            else:
                await call.write(self.payload)
        except grpc.aio.AioRpcError as error:
            raise self.stream.link.failed(error) from None
        except asyncio.InvalidStateError:  # the stream has ended: its reader is told why
            return
        except asyncio.CancelledError as error:
            raise self.stream.link.cut(error) from None


class Read:
    """The next message of a stream, or None at its good end."""

    __slots__ = ("stream",)

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def run(self, wire: Wire) -> bytes | None:
        try:
            reply: bytes | None = next(self.stream.call, None)
        except grpc.RpcError as error:
            raise self.stream.link.failed(error) from None
        self.stream.link.answered()
        return reply

    async def arun(self, wire: Wire) -> bytes | None:
        try:
            reply = await self.stream.call.read()
        except grpc.aio.AioRpcError as error:
            raise self.stream.link.failed(error) from None
        except asyncio.CancelledError as error:
            raise self.stream.link.cut(error) from None
        self.stream.link.answered()
        return None if reply is EOF else reply


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
