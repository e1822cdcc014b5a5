"""One query, one trace: from the client's call over headers to the kernels, whatever thread they ran on."""

import threading

import numpy as np
import pytest

import vecdb
from vecdb.core.errors import CollectionNotFound, InvalidArgument
from vecdb.ports import tracing
from vecdb.runtime.tracing import configure

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@pytest.fixture(autouse=True)
def nothing_is_traced_yet():
    """Another file's ``connect`` may have adopted the tracer of a program that imports OpenTelemetry: ours does."""
    before = tracing.use(tracing.NullTracer())
    yield
    tracing.use(before)


@pytest.fixture
def spans():
    """The spans that have ended, by name (the last of each)."""
    exporter = InMemorySpanExporter()
    end = configure("", ratio=1.0, attributes={"service.instance.id": "n1"}, processor=SimpleSpanProcessor(exporter))
    yield lambda: {span.name: span for span in exporter.get_finished_spans()}
    end()
    assert not tracing.get().enabled


def parent_of(spans, name: str) -> int | None:
    parent = spans[name].parent
    return None if parent is None else parent.span_id


def test_one_query_gives_one_trace_from_client_to_kernel(tmp_path, spans):
    db = vecdb.connect(str(tmp_path / "db"))
    docs = db.create_collection("docs", dim=8, metric="l2")
    rng = np.random.default_rng(3)
    docs.upsert(ids=range(50), vectors=rng.standard_normal((50, 8), dtype=np.float32))
    tracer = tracing.get()
    with tracer.start("vecdb.v1.Queries/Query", tracing.Kind.CLIENT):
        headers: list[tuple[str, str]] = [("x-request-id", "r1")]
        tracer.inject(headers)

    def serve() -> None:
        with tracer.start("server", tracing.Kind.SERVER, headers, {"rpc.system": "grpc"}):
            waiting = tracer.current()
            assert waiting is not None
        tracer.record("queue", waiting, 1.0, 2.0)
        with tracer.start("batch", parent=waiting):
            docs.query(rng.standard_normal(8), k=3)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    db.close()
    found = spans()
    assert {span.context.trace_id for span in found.values()} == {found["server"].context.trace_id}
    ids = {name: span.context.span_id for name, span in found.items()}
    assert parent_of(found, "vecdb.v1.Queries/Query") is None
    assert parent_of(found, "server") == ids["vecdb.v1.Queries/Query"]
    assert parent_of(found, "queue") == parent_of(found, "batch") == ids["server"]
    assert parent_of(found, "shard") == ids["batch"]
    assert parent_of(found, "kernel") == ids["shard"]
    assert found["kernel"].attributes["vecdb.comparisons"] > 0
    assert found["shard"].attributes["db.collection.name"] == "docs"
    queue = found["queue"]
    assert queue.end_time - queue.start_time == pytest.approx(1e9, rel=1e-3)
    assert queue.resource.attributes["service.instance.id"] == "n1"


def test_kernels_on_pool_threads_belong_to_their_query(tmp_path, spans):
    db = vecdb.connect(str(tmp_path / "db"), threads=2)
    docs = db.create_collection("docs", dim=8, metric="l2")
    rng = np.random.default_rng(3)
    docs.upsert(ids=range(50), vectors=rng.standard_normal((50, 8), dtype=np.float32))
    with tracing.get().start("call"):
        docs.query(rng.standard_normal((64, 8)), k=3)
    db.close()
    found = spans()
    assert parent_of(found, "kernel") == found["shard"].context.span_id
    assert found["kernel"].context.trace_id == found["call"].context.trace_id


def test_work_without_a_call_makes_no_spans(tmp_path, spans):
    db = vecdb.connect(str(tmp_path / "db"))
    docs = db.create_collection("docs", dim=8, metric="l2")
    docs.upsert(ids=range(5), vectors=np.eye(8, dtype=np.float32)[:5])
    docs.query(np.ones(8), k=3)
    db.close()
    assert spans() == {}


def test_an_error_marks_the_span_with_its_code(spans):
    with pytest.raises(CollectionNotFound), tracing.get().start("call"):
        raise CollectionNotFound("docs")
    (span,) = spans().values()
    assert span.attributes["error.type"] == "NOT_FOUND"
    assert not span.status.is_ok


def test_a_batch_is_linked_to_the_calls_it_ran_for(spans):
    tracer = tracing.get()
    calls = []
    for number in range(3):
        with tracer.start(f"call {number}") as span:
            calls.append(span)
    with tracer.start("batch", parent=calls[0], links=calls[1:]):
        pass
    batch = spans()["batch"]
    assert batch.parent.span_id == spans()["call 0"].context.span_id
    assert [link.context.span_id for link in batch.links] == [spans()[f"call {n}"].context.span_id for n in (1, 2)]


def test_headers_of_http_and_of_bytes_and_none_at_all(spans):
    tracer = tracing.get()
    with tracer.start("client"):
        headers: list[tuple[str, str]] = []
        tracer.inject(headers)
    name, value = headers[0]
    for label, given in (("mapping", {name: value}), ("bytes", [(name, value.encode())]), ("none", []),
                         ("damaged", [(name, "00-zz")])):
        with tracer.start(label, tracing.Kind.SERVER, given):
            pass
    found = spans()
    client = found["client"].context
    assert parent_of(found, "mapping") == parent_of(found, "bytes") == client.span_id
    assert parent_of(found, "none") is parent_of(found, "damaged") is None


def test_a_caller_who_does_not_sample_is_followed(spans):
    with tracing.get().start("server", tracing.Kind.SERVER, {"traceparent": f"00-{'a' * 32}-{'b' * 16}-00"}) as span:
        assert not span.recording
        assert tracing.get().current() is None
    assert spans() == {}


def test_without_a_tracer_everything_is_nothing():
    tracer = tracing.get()
    assert not tracer.enabled
    headers: list[tuple[str, str]] = []
    with tracer.start("a", tracing.Kind.CLIENT, headers) as span:
        tracer.inject(headers)
        span.set("a", 1)
        span.fail("INTERNAL")
        assert not span.recording
    tracer.record("b", span, 0.0, 1.0)
    assert headers == []
    assert tracer.current() is None


def test_a_program_with_opentelemetry_is_joined():
    before = tracing.get()
    try:
        assert tracing.adopt().enabled  # imported above
        with tracing.get().start("a") as span:  # no provider was set: nothing is recorded
            assert not span.recording
    finally:
        tracing.use(before)


def test_no_endpoint_no_traces():
    configure("", ratio=1.0)()
    assert not tracing.get().enabled


def test_an_endpoint_without_the_extra_is_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(InvalidArgument, match="otel"):
        configure("localhost:4317", ratio=1.0)


def test_an_endpoint_that_nobody_answers_at_does_not_hold_the_end_up():
    end = configure("127.0.0.1:9", ratio=0.0, insecure=True)
    assert tracing.get().enabled
    end()
    assert not tracing.get().enabled
