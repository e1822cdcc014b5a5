"""Traces: where one call spends its time, over processes and threads.

:func:`get` is the tracer of this process: a :class:`NullTracer` (one attribute read and an empty ``with``) until a
composition root has said :func:`use`.  OpenTelemetry's API is optional: a program that has imported it
gets its spans from the SDK by :func:`adopt`, which ``connect`` calls; a node sets up exporters in
:mod:`vecdb.runtime.tracing`.  Both rooms see only this module, for neither may import the other.

A span is the parent of what is started in the same task or thread inside its ``with``.  Threads do not inherit it: hand
the :class:`Span` over as ``parent``.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import Any, Final, Protocol

Value = str | int | float | bool
Headers = Sequence[tuple[str, Any]] | Mapping[str, Any]
"""gRPC metadata or HTTP headers, with lower-case names; values of text or bytes."""

TRACE_HEADERS: Final = ("traceparent", "tracestate")


class Kind(StrEnum):
    """OpenTelemetry's span kinds."""

    CLIENT = "CLIENT"
    SERVER = "SERVER"
    INTERNAL = "INTERNAL"


class Span(Protocol):
    """One piece of work; safe to hand to other threads as a parent."""

    @property
    def recording(self) -> bool:
        """Whether anybody will see it: attributes that are dear to make may be left out otherwise."""
        ...

    def set(self, name: str, value: Value) -> None: ...

    def fail(self, code: str, message: str = "") -> None:
        """The work failed with a canonical status name."""
        ...


class Tracer(Protocol):
    """Makes spans."""

    @property
    def enabled(self) -> bool: ...

    def start(self, name: str, kind: Kind = Kind.INTERNAL, parent: Span | Headers | None = None,
              attributes: Mapping[str, Value] | None = None, links: Sequence[Span] = ()
              ) -> AbstractContextManager[Span]:
        """A span for the time of the ``with``; an error that leaves it marks it failed.

        ``parent``: a span, headers that a caller sent, or None for the span around this one.  ``links``: other
        spans that this work is also done for, as in a batch of several calls.
        """
        ...

    def record(self, name: str, parent: Span, began_s: float, ended_s: float,
               attributes: Mapping[str, Value] | None = None) -> None:
        """A span that is over already; moments on ``time.monotonic``."""
        ...

    def inject(self, headers: list[tuple[str, str]]) -> None:
        """Append what the server needs to continue the current trace."""
        ...

    def current(self) -> Span | None:
        """The span around this code, if it is recording."""
        ...


class NullSpan:
    """Seen by nobody."""

    recording: Final = False

    def set(self, name: str, value: Value) -> None:
        return None

    def fail(self, code: str, message: str = "") -> None:
        return None


_NOWHERE: Final = nullcontext[Span](NullSpan())


class NullTracer:
    """Makes nothing."""

    enabled: Final = False

    def start(self, name: str, kind: Kind = Kind.INTERNAL, parent: Span | Headers | None = None,
              attributes: Mapping[str, Value] | None = None, links: Sequence[Span] = ()
              ) -> AbstractContextManager[Span]:
        return _NOWHERE

    def record(self, name: str, parent: Span, began_s: float, ended_s: float,
               attributes: Mapping[str, Value] | None = None) -> None:
        return None

    def inject(self, headers: list[tuple[str, str]]) -> None:
        return None

    def current(self) -> Span | None:
        return None


_current: Tracer = NullTracer()


def get() -> Tracer:
    """The process's tracer.  Ask at each use: it may come later."""
    return _current


def use(tracer: Tracer) -> Tracer:
    """Make ``tracer`` the process's; returns the one before."""
    global _current
    before, _current = _current, tracer
    return before


def adopt() -> Tracer:
    """Take part in the traces of a program that uses OpenTelemetry itself; imports nothing it has not imported."""
    if not _current.enabled and "opentelemetry.trace" in sys.modules:
        from vecdb.ports.otel import OtelTracer

        use(OtelTracer())
    return _current
