"""Traces of a node: OpenTelemetry's SDK behind the port, sending to a collector.

Needs the extra ``otel``.  The provider is the node's own, not the process's global one: tests and embedding
programs keep theirs.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from vecdb.core.errors import InvalidArgument
from vecdb.ports import tracing

FLUSH_MS: Final = 5_000


def configure(endpoint: str, *, ratio: float, insecure: bool = False, attributes: Mapping[str, str] | None = None,
              processor: Any = None) -> Callable[[], None]:
    """Make spans of ``ratio`` of the calls (all of those whose caller samples them); returns what ends it.

    ``endpoint``: ``host:port`` or URL of an OTLP collector's gRPC port; empty, without a ``processor``: no traces.
    ``attributes`` of the node: ``service.version``, ``service.instance.id``.  ``processor``: a span processor to use
    in place of sending.
    """
    if not endpoint and processor is None:
        return lambda: None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        from vecdb.ports.otel import OtelTracer
    except ImportError:
        raise InvalidArgument("telemetry.otlp_endpoint", "traces need OpenTelemetry: pip install 'vecdb[otel]'",
                              got=endpoint, limit="the extra otel") from None
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False,
                              resource=Resource.create({"service.name": "vecdb", **(attributes or {})}))
    provider.add_span_processor(processor or _sender(endpoint, insecure))
    before = tracing.use(OtelTracer(provider))

    def end() -> None:
        tracing.use(before)
        provider.force_flush(FLUSH_MS)
        provider.shutdown()

    return end


def _sender(endpoint: str, insecure: bool) -> Any:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=insecure or endpoint.startswith("http://")))
