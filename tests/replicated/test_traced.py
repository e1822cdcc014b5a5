"""A query of a collection whose shards are on several nodes is one trace: client, coordinator, every shard, kernels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.replicated_nodes import Together
from vecdb.runtime.tracing import configure

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

SHARDS = 6


def above(span: Any, by_id: dict[int, Any]) -> list[Any]:
    """The spans around it, the nearest first."""
    out = []
    while span.parent is not None and (span := by_id.get(span.parent.span_id)) is not None:
        out.append(span)
    return out


def test_a_query_of_several_nodes_is_one_trace(tmp_path: Path) -> None:
    nodes, exporter = Together(tmp_path), InMemorySpanExporter()
    try:
        with vecdb.connect(nodes.url) as db:
            docs = db.create_collection("docs", dim=4, metric="l2", shards=SHARDS, replication_factor=1)
            docs.upsert(ids=range(200), vectors=np.eye(200, 4, dtype=np.float32))
            assert len({one.leader.rpartition("/")[0] for one in db.admin.shards("docs") if one.leader}) > 1
            docs.query([1, 0, 0, 0], k=3)
            end = configure("", ratio=1.0, processor=SimpleSpanProcessor(exporter))
            try:
                assert docs.query([1, 0, 0, 0], k=3).ids[0] == 0
            finally:
                end()
    finally:
        nodes.stop()
    spans = exporter.get_finished_spans()
    (asked,) = [one for one in spans if one.kind is SpanKind.CLIENT and one.parent is None
                and one.name.endswith("Queries/Query")]
    mine = [one for one in spans if one.context.trace_id == asked.context.trace_id]
    by_id = {one.context.span_id: one for one in mine}
    shards = [one for one in mine if one.name == "shard"]
    assert len(shards) == SHARDS
    assert len([one for one in mine if one.name == "kernel"]) >= SHARDS
    handed_on = 0
    for shard in shards:
        around = above(shard, by_id)
        assert around[-1] is asked, "from the client's call on it hangs together"
        servers = [one for one in around if one.kind is SpanKind.SERVER]
        handed_on += len(servers) == 2
        assert 1 <= len(servers) <= 2, "the coordinator's and, where the shard is elsewhere, its node's"
    assert handed_on > 0
