"""One call, and several at once: deadlines, repetitions, and what is said when nobody knows the end."""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from vecdb.client.remote.io import Link, Metadata, Pending, Route, Rpc, Sleep, Start, Unary, Wait
from vecdb.client.remote.options import Options
from vecdb.client.remote.retry import Attempts, Budget, Failed
from vecdb.client.steps import Steps
from vecdb.core.calls import PART, Call, check
from vecdb.core.errors import (
    Cancelled,
    DeadlineExceeded,
    LimitExceeded,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    VecdbError,
)
from vecdb.ports import tracing

T = TypeVar("T")
M = TypeVar("M", bound=Message)
P = TypeVar("P")

PIPELINE: Final = 4
"""Parts of one call under way at once: one computed, one on its way there, one back, one for jitter."""

STRAYED: Final = 4
"""Batches of a stream that were handed on before another node is tried, where it is not known who leads."""
ELSEWHERE: Final = "x-vecdb-elsewhere"
"""Tells a node that its caller knows of others."""
HOMES_MOST: Final = 1_024
"""Collections of which it is remembered which address writes: forgotten all at once, and found again."""

LONG_S: Final = 3_600.0
"""How long a stream or a long job may take without being asked for again: what servers allow as they come."""


class Caller:
    """What every call of a connection shares."""

    def __init__(self, options: Options, label: str, addresses: int = 1) -> None:
        self.label = label
        self.options = options
        self.addresses = addresses
        self.budget = Budget()
        self._homes: dict[str, str] = {}
        self._base: Metadata = None
        if options.api_key is not None:
            self._base = (("authorization", f"Bearer {options.api_key}"),)
        if addresses > 1:
            self._base = (*(self._base or ()), (ELSEWHERE, "1"))

    def deadline(self, call: Call | None, default_s: float | None = None) -> float | None:
        """The caller's own, or ``default_s`` or the connection's for a call that has none."""
        if call is not None and call.deadline is not None:
            return call.deadline
        timeout = self.options.timeout if default_s is None else default_s
        return None if timeout is None else time.monotonic() + timeout

    def route(self, name: str) -> Route | None:
        """Where writes of a collection go: to the address that carried out the last one itself, if there was one."""
        return None if self.addresses == 1 else Route(self._homes.get(name, ""), name)

    def forget(self, route: Route | None) -> None:
        """A write that went there failed, or nobody knows: the next one goes to any address that is up."""
        if route is not None:
            if self._homes.get(route.name) == route.label:
                self._homes.pop(route.name, None)
            route.label = ""

    def learn(self, name: str, label: str, handed_on: bool) -> None:
        """A write of the collection was done by the address ``label``, or by another node that it was handed on to."""
        if not handed_on:
            if len(self._homes) >= HOMES_MOST:
                self._homes.clear()
            self._homes[name] = label
        elif self._homes.get(name) == label:
            self._homes.pop(name, None)

    def strays(self, name: str, link: Link, handed_on: int) -> bool:
        """Whether a stream of writes of the collection, at ``link``, which handed on the last so many, would do better
        at another address.
        """
        home = self._homes.get(name)
        if home is None and handed_on < STRAYED:
            return False
        return home != link.label and any(home in (None, other.label) and other.down_until <= time.monotonic()
                                          for other in link.others)

    def attempts(self, deadline: float | None) -> Attempts:
        return Attempts(self.options.retries, self.budget, deadline, self.addresses)

    def metadata(self, call: Call | None) -> Metadata:
        """The key, the request id, the trace and what a part is of; where there are several addresses, that there are.
        """
        traced = tracing.get()
        base = self._base
        if not traced.enabled and (call is None or not (call.request_id or call.part)):
            return base
        out = list(base or ())
        if call is not None and call.request_id:
            out.append(("x-request-id", call.request_id))
        if call is not None and call.part is not None:
            out.append((PART, f"{call.part[0]}/{call.part[1]}"))
        if traced.enabled:
            traced.inject(out)
        return tuple(out)

    def call(self, rpc: Rpc, payload: bytes, call: Call | None, *, write: bool = False, repeat: bool = True,
             default_s: float | None = None, route: Route | None = None) -> Steps[bytes]:
        """Call until there is an answer.

        ``write``: an end that nobody knows is OutcomeUnknown.  ``repeat=False``: only what was certainly not
        done is done again.
        """
        tracer = tracing.get()
        if not tracer.enabled:
            return (yield from self._call(rpc, payload, call, write, repeat, default_s, route))
        with tracer.start(rpc.path[1:], tracing.Kind.CLIENT):
            return (yield from self._call(rpc, payload, call, write, repeat, default_s, route))

    def _call(self, rpc: Rpc, payload: bytes, call: Call | None, write: bool, repeat: bool,
              default_s: float | None, route: Route | None) -> Steps[bytes]:
        deadline = self.deadline(call, default_s)
        try:
            reply: bytes = yield Unary(rpc, payload, left(deadline), self.metadata(call), route,
                                       repeat and not write and spares(call))
        except Failed as failed:
            self.forget(route)
            return (yield from self._again(rpc, payload, call, failed, deadline, write, repeat, route))
        self.budget.gain()
        return reply

    def _again(self, rpc: Rpc, payload: bytes, call: Call | None, failed: Failed, deadline: float | None,
               write: bool = False, repeat: bool = True, route: Route | None = None) -> Steps[bytes]:
        """What follows a failure: repetitions, or the error."""
        attempts = self.attempts(deadline)
        unsure: VecdbError | None = None
        said: VecdbError | None = None
        while True:
            check(call)
            if write and not failed.decided:
                unsure = failed.error
            said = failed.error if failed.answered else said
            wait = attempts.after(failed) if repeat or failed.decided else None
            if wait is None:
                raise outcome(last_of(failed, said), unsure) from None
            yield Sleep(wait)
            try:
                reply: bytes = yield Unary(rpc, payload, left(deadline), self.metadata(call), route,
                                           repeat and not write and spares(call))
            except Failed as again:
                self.forget(route)
                failed = again
            else:
                self.budget.gain()
                return reply

    def quick(self, rpc: Rpc, payload: bytes, call: Call | None) -> Steps[bytes]:
        """A read without the layers that only failures, parts and traces need."""
        if tracing.get().enabled:
            return (yield from self.call(rpc, payload, call))
        deadline = self.deadline(call)
        try:
            reply: bytes = yield Unary(rpc, payload, left(deadline), self.metadata(call), spare=spares(call))
        except Failed as failed:
            return (yield from self._again(rpc, payload, call, failed, deadline))
        self.budget.gain()
        return reply

    def several(self, rpc: Rpc, parts: Sequence[P], call: Call | None, encode: Callable[[P], bytes],
                decode: Callable[[bytes, P], T], halve: Callable[[P], Sequence[P]]) -> Steps[list[T]]:
        """Call for each part of a read, several at once; answers in their order.

        ``halve`` makes smaller parts of one whose answer does not fit a message; a part of one piece is itself.
        Each call says how many are to come, so that a node that stops meanwhile lets them in.
        """
        if len(parts) == 1:
            return (yield from self._part(rpc, parts[0], call, encode, decode, halve))
        name, after = (os.urandom(8).hex(), 0) if call is None or call.part is None else call.part
        base, sent = call or Call(), 0

        def of(rest: int) -> Call:
            return replace(base, part=(name, after + rest))

        out: list[T] = []
        flying: deque[tuple[P, Pending]] = deque()
        deadline = self.deadline(call)
        attempts = self.attempts(deadline)
        waiting = iter(parts)
        try:
            while True:
                while len(flying) < PIPELINE and (part := next(waiting, None)) is not None:
                    sent += 1
                    pending = yield Start(rpc, encode(part), left(deadline), self.metadata(of(len(parts) - sent)),
                                          spare=spares(call))
                    flying.append((part, pending))
                if not flying:
                    return out
                part, pending = flying.popleft()
                try:
                    reply: bytes = yield Wait(pending)
                except Failed as failed:
                    check(call)
                    wait = attempts.after(failed)
                    if wait is not None:
                        yield Sleep(wait)
                    elif not _too_large(failed.error):
                        raise failed.error from None
                    out += yield from self._part(rpc, part, of(len(parts) - sent), encode, decode, halve)
                else:
                    self.budget.gain()
                    attempts.progress()
                    out.append(decode(reply, part))
        finally:
            for _, pending in flying:
                pending.cancel()

    def _part(self, rpc: Rpc, part: P, call: Call | None, encode: Callable[[P], bytes],
              decode: Callable[[bytes, P], T], halve: Callable[[P], Sequence[P]]) -> Steps[list[T]]:
        try:
            reply = yield from self.call(rpc, encode(part), call)
        except LimitExceeded as error:
            smaller = halve(part)
            if not _too_large(error) or len(smaller) < 2:
                raise
            out: list[T] = []
            name, rest = (os.urandom(8).hex(), 0) if call is None or call.part is None else call.part
            for place, one in enumerate(smaller, 1):
                its = replace(call or Call(), part=(name, rest + len(smaller) - place))
                out += yield from self._part(rpc, one, its, encode, decode, halve)
            return out
        return [decode(reply, part)]


def _too_large(error: VecdbError) -> bool:
    """Whether a message did not fit the transport."""
    return isinstance(error, LimitExceeded) and error.fields.get("argument") == "request"


def spares(call: Call | None) -> bool:
    """Whether a read may be ended early and made again elsewhere; one that goes without what is late is given less."""
    return call is None or not call.allow_partial


def read(kind: type[M], raw: bytes) -> M:
    """The message in a reply; what is none is the server's fault."""
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise VecdbError(f"the server's reply cannot be read: these {len(raw)} bytes are no {kind.DESCRIPTOR.name}"
                         ) from None


def left(deadline: float | None, most: float | None = None) -> float | None:
    """Seconds until ``deadline``, at most ``most``; raises DeadlineExceeded when it has passed."""
    if deadline is None:
        return most
    rest = deadline - time.monotonic()
    if rest <= 0.0:
        raise DeadlineExceeded("the deadline passed before the call was sent")
    return rest if most is None else min(rest, most)


def last_of(failed: Failed, said: VecdbError | None) -> VecdbError:
    """The error of the last attempt, with what a server ``said`` before it: that an address is silent, or the time is
    over, says less than why another did not serve.
    """
    if said is None or failed.answered or not isinstance(failed.error, Unavailable | DeadlineExceeded):
        return failed.error
    told = type(failed.error)(f"{said.message} ({failed.error.message})", **failed.error.fields)
    told.__cause__ = failed.error.__cause__
    return told


_OPEN_ENDS: Final = (Unavailable, Overloaded, DeadlineExceeded, Cancelled, OutcomeUnknown)


def outcome(error: VecdbError, unsure: VecdbError | None) -> VecdbError:
    """The error to raise: OutcomeUnknown if an attempt may have been done and nobody said what became of it.

    ``unsure``: what the last such attempt failed with; ``error``: the last one of all.
    """
    if unsure is None or not isinstance(error, _OPEN_ENDS):
        return error
    fields: dict[str, Any] = {**error.fields, "cause": type(error).__name__}
    why = unsure.message if unsure.message in error.message else f"{unsure.message}; since then: {error.message}"
    told = OutcomeUnknown(f"the write may or may not have happened: {why}", **fields)
    told.__cause__ = error
    return told
