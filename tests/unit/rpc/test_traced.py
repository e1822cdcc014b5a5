"""A served query in a trace: the client's span, the server's, the wait, the batch, the shard and the kernels."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import vecdb
from vecdb.app import open_embedded
from vecdb.core.access import ANONYMOUS
from vecdb.core.query import QueryRequest
from vecdb.core.records import UpsertBatch
from vecdb.core.schema import CollectionSchema, Metric
from vecdb.ports import tracing
from vecdb.rpc.door import Guards
from vecdb.rpc.edge import PREFIX, Edge
from vecdb.rpc.server import GrpcServer, ServerOptions
from vecdb.rpc.servicers import CollectionsServicer, QueriesServicer
from vecdb.runtime.clock import SystemClock
from vecdb.runtime.metrics import Metrics
from vecdb.runtime.tracing import configure
from vecdb.services.node import LocalNode, NodeLimits
from vecdb.wire import convert

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

QUERY = "Queries/Query"
WAITED = {"client": None, "server": "client", "queue": "server", "batch": "server", "shard": "batch", "kernel": "shard"}
"""Parents of the spans of a query that did not run on the event loop."""


class OpenDoor:
    """Lets everybody in."""

    def check(self, *told: Any) -> Any:
        return ANONYMOUS

    def take(self, *told: Any) -> None:
        return None

    acquire = release = take

    def record(self, **told: Any) -> None:
        return None


def fault(error: BaseException, request_id: str, method: str) -> None:
    raise AssertionError(method) from error


@asynccontextmanager
async def serving(path: Path, metrics: Metrics) -> AsyncIterator[int]:
    """The port of a server over a real engine with ten records in ``docs``."""
    db: Any = open_embedded(path, background=False)
    db.create_collection(CollectionSchema("docs", 4, Metric.L2))
    db.upsert("docs", UpsertBatch(tuple(range(10)), np.eye(10, 4, dtype=np.float32), (b"{}",) * 10))
    node = LocalNode(db, SystemClock(), metrics, NodeLimits(threads=2), lambda: 0)
    door = OpenDoor()
    with ThreadPoolExecutor(1) as workers:
        guards = Guards(door, door, door, door, metrics, fault)
        methods = [*QueriesServicer(node, metrics, 60.0).methods(), *CollectionsServicer(node).methods()]
        server = GrpcServer([Edge(methods, guards, workers)], ServerOptions("127.0.0.1:0", 1 << 20, 100))
        yield await server.start()
        await server.stop(0)
        await node.close()


async def ask(port: int) -> None:
    """One query as any client could make it."""
    request = convert.query_to_wire("docs", QueryRequest(np.ones((1, 4), np.float32), 3)).SerializeToString()
    tracer = tracing.get()
    with tracer.start("client", tracing.Kind.CLIENT):
        headers: list[tuple[str, str]] = [("x-request-id", "r-1")]
        tracer.inject(headers)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.unary_unary(PREFIX + QUERY)(request, metadata=headers)


def traced(path: Path, work: Callable[[int], Any], ratio: float = 1.0) -> list[dict[str, Any]]:
    """Traces of ``work``: spans by name, and the names by the names of their parents."""
    exporter, metrics = InMemorySpanExporter(), Metrics()

    async def run() -> None:
        async with serving(path, metrics) as port:
            await work(port)

    end = configure("", ratio=ratio, processor=SimpleSpanProcessor(exporter))
    try:
        asyncio.run(run())
    finally:
        end()
    found: dict[int, dict[str, Any]] = {}
    for span in exporter.get_finished_spans():
        assert span.context is not None
        name = span.name if span.kind is SpanKind.INTERNAL else span.kind.name.lower()  # both are called as the method
        found.setdefault(span.context.trace_id, {})[name] = span
    return list(found.values())


def parents(trace: dict[str, Any]) -> dict[str, str | None]:
    names = {span.context.span_id: name for name, span in trace.items()}
    return {name: None if span.parent is None else names[span.parent.span_id] for name, span in trace.items()}


def test_a_query_that_waited_for_its_turn(tmp_path: Path) -> None:
    (trace,) = traced(tmp_path / "db", ask)  # the first of its kind runs in a thread: nobody knows how long it takes
    assert parents(trace) == WAITED
    assert trace["server"].attributes["rpc.system"] == "grpc"
    assert trace["server"].attributes["vecdb.request_id"] == "r-1"
    assert trace["batch"].attributes["db.system.name"] == "vecdb"
    assert trace["batch"].attributes["db.collection.name"] == "docs"
    assert trace["kernel"].attributes["vecdb.comparisons"] == 10


def test_queries_that_ran_together_share_a_batch(tmp_path: Path) -> None:
    async def work(port: int) -> None:
        await asyncio.gather(*(ask(port) for _ in range(30)))

    traces = traced(tmp_path / "db", work)
    assert len(traces) == 30
    batches = [trace["batch"] for trace in traces if "batch" in trace]
    linked = {link.context.trace_id for batch in batches for link in batch.links}
    for trace in traces:
        (trace_id,) = {span.context.trace_id for span in trace.values()}
        assert ("batch" in trace) + (trace_id in linked) + ("queue" not in trace) == 1
        assert "kernel" in trace or trace_id in linked


def test_the_sdks_query(tmp_path: Path) -> None:
    def use(port: int) -> None:
        with vecdb.connect(f"grpc://127.0.0.1:{port}") as db:
            db.collection("docs").query(np.ones(4), k=3)

    async def work(port: int) -> None:
        await asyncio.to_thread(use, port)

    (trace,) = [trace for trace in traced(tmp_path / "db", work) if "kernel" in trace]
    assert parents(trace) == WAITED
    assert trace["client"].name == trace["server"].name == "vecdb.v1.Queries/Query"


def test_what_is_not_sampled_leaves_nothing(tmp_path: Path) -> None:
    assert traced(tmp_path / "db", ask, ratio=0.0) == []
