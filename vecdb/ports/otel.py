"""The tracing port over OpenTelemetry's API, which is itself a port: without an SDK behind it, it makes nothing.

Imported only where ``opentelemetry`` is there (the extra ``otel``, or the embedding program).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from vecdb.ports.tracing import TRACE_HEADERS, Headers, Kind, NullSpan, Span, Value

_W3C: Final = TraceContextTextMapPropagator()
_KINDS: Final = {Kind.CLIENT: trace.SpanKind.CLIENT, Kind.SERVER: trace.SpanKind.SERVER,
                 Kind.INTERNAL: trace.SpanKind.INTERNAL}


class OtelSpan:
    """:class:`vecdb.ports.tracing.Span` by OpenTelemetry."""

    __slots__ = ("inner",)

    def __init__(self, inner: trace.Span) -> None:
        self.inner = inner

    @property
    def recording(self) -> bool:
        return self.inner.is_recording()

    def set(self, name: str, value: Value) -> None:
        self.inner.set_attribute(name, value)

    def fail(self, code: str, message: str = "") -> None:
        self.inner.set_attribute("error.type", code)
        self.inner.set_status(trace.StatusCode.ERROR, message or code)


class OtelTracer:
    """``provider`` None: the process's global one, whenever the program sets it."""

    enabled: Final = True

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("vecdb", tracer_provider=provider)

    def start(self, name: str, kind: Kind = Kind.INTERNAL, parent: Span | Headers | None = None,
              attributes: Mapping[str, Value] | None = None, links: Sequence[Span] = ()
              ) -> AbstractContextManager[Span]:
        return self._start(name, kind, parent, attributes, links)

    @contextmanager
    def _start(self, name: str, kind: Kind, parent: Span | Headers | None,
               attributes: Mapping[str, Value] | None, links: Sequence[Span]) -> Iterator[Span]:
        joined = [trace.Link(one.inner.get_span_context()) for one in links if isinstance(one, OtelSpan)]
        inner = self._tracer.start_span(name, _context(parent), _KINDS[kind], attributes, joined,
                                        record_exception=False, set_status_on_exception=False)
        span = OtelSpan(inner)
        token = contexts.attach(trace.set_span_in_context(inner))
        try:
            yield span
        except BaseException as error:
            span.fail(getattr(error, "code", type(error).__name__), str(error) if hasattr(error, "code") else "")
            raise
        finally:
            contexts.detach(token)
            inner.end()

    def record(self, name: str, parent: Span, began_s: float, ended_s: float,
               attributes: Mapping[str, Value] | None = None) -> None:
        now_ns, now_s = time.time_ns(), time.monotonic()
        inner = self._tracer.start_span(name, _context(parent), attributes=attributes,
                                        start_time=now_ns - int((now_s - began_s) * 1e9))
        inner.end(now_ns - int((now_s - ended_s) * 1e9))

    def inject(self, headers: list[tuple[str, str]]) -> None:
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        headers += carrier.items()

    def current(self) -> Span | None:
        inner = trace.get_current_span()
        return OtelSpan(inner) if inner.is_recording() else None


def _context(parent: Span | Headers | None) -> Context | None:
    """What a span is started in; headers begin a trace of their own where they name none."""
    if parent is None:
        return None
    if isinstance(parent, OtelSpan):
        return trace.set_span_in_context(parent.inner, Context())
    if isinstance(parent, NullSpan):  # from before tracing was set up
        return Context()
    if not isinstance(parent, Sequence | Mapping):
        return None
    pairs = parent.items() if isinstance(parent, Mapping) else parent
    carrier = {name: value if isinstance(value, str) else bytes(value).decode("latin-1")
               for name, value in pairs if name in TRACE_HEADERS}
    return _W3C.extract(carrier, Context())
