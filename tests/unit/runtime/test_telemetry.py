"""All of it over a real engine: one page, sampled recall, slow queries with their plans; and a front's page."""

import asyncio
import io
import json

import numpy as np
import pytest

from vecdb.app import open_embedded
from vecdb.core.calls import Call
from vecdb.core.query import QueryRequest
from vecdb.core.records import UpsertBatch
from vecdb.core.schema import CollectionSchema, Metric
from vecdb.runtime import logs
from vecdb.runtime.clock import SystemClock
from vecdb.runtime.exposition import read_pages
from vecdb.runtime.telemetry import Telemetry, TelemetryOptions
from vecdb.services.node import LocalNode, NodeLimits


@pytest.fixture
def engine(tmp_path):
    db = open_embedded(tmp_path / "db", background=False)
    db.create_collection(CollectionSchema("docs", 4, Metric.L2))
    db.upsert("docs", UpsertBatch(tuple(range(10)), np.eye(10, 4, dtype=np.float32), (b"{}",) * 10))
    yield db
    db.close()


def test_a_node_tells_of_its_queries(tmp_path, engine):
    out = io.StringIO()
    undo = logs.configure("info", "json", stream=out)
    options = TelemetryOptions("1.2.3", tmp_path, slow_query_ms=1e-6, recall_samples_per_minute=60_000,
                               recall_cpu_share=1.0, build={"node": "n1"})

    async def run() -> str:
        telemetry = Telemetry(options, SystemClock(), engine)
        node = LocalNode(engine, SystemClock(), telemetry.metrics, NodeLimits(threads=1), lambda: 0,
                         telemetry.slow.wants_plan)
        telemetry.start()
        for number in range(3):
            await node.query("docs", QueryRequest(np.ones((1, 4), np.float32), 3), Call(request_id=f"r{number}"))
        text = ""
        while 'vecdb_recall_samples_total{outcome="exact"}' not in text:
            await asyncio.sleep(0.01)
            text = (await asyncio.to_thread(telemetry.page))[1].decode()
        await telemetry.close()
        return text

    try:
        text = asyncio.run(run())
    finally:
        undo()
    assert 'vecdb_build_info{version="1.2.3",' in text
    assert 'vecdb_query_recall_ratio_sum{collection="docs",selectivity="none"} ' in text
    assert 'vecdb_slow_queries_total{collection="docs"} 3.0' in text
    assert 'vecdb_collection_records{collection="docs"} 10.0' in text
    assert "process_open_fds " in text
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    slow = [line for line in lines if line["event"] == "slow_query"]
    assert [line["request_id"] for line in slow] == ["r0", "r1", "r2"]
    assert slow[0]["level"] == "warning"
    assert slow[0]["plan"]["segments"][0]["strategy"] == "exact"


def test_what_is_switched_off_does_not_run(tmp_path, engine):
    telemetry = Telemetry(TelemetryOptions("1", tmp_path, slow_query_ms=0, recall_samples_per_minute=0), SystemClock(),
                          engine)
    assert telemetry.metrics._listeners == ()

    async def run() -> None:
        telemetry.start()
        await telemetry.close()

    asyncio.run(run())


def test_a_fronts_calls_are_on_the_engines_page(tmp_path, engine):
    (tmp_path / "pages").mkdir()
    front = Telemetry(TelemetryOptions("1", tmp_path, process="front-1", pages=tmp_path / "pages"), SystemClock(), None)
    node = Telemetry(TelemetryOptions("1", tmp_path, process="engine", pages=tmp_path / "pages"), SystemClock(), engine)
    metrics = front.metrics
    metrics.call_ended("Queries/Query", metrics.call_began("Queries/Query"), "docs", "OK", 1, 1)

    async def run() -> None:
        front.start()
        while not read_pages(tmp_path / "pages"):
            await asyncio.sleep(0.01)
        text = node.page()[1].decode()
        assert 'vecdb_requests_total{method="Queries/Query",collection="docs",code="OK",process="front-1"} 1.0' in text
        assert 'vecdb_collection_records{collection="docs",process="engine"} 10.0' in text
        assert "vecdb_collection_records" not in front.page()[1].decode()
        await front.close()

    asyncio.run(run())
    assert read_pages(tmp_path / "pages") == {}
