"""The planner of clusters: more of anything never needs less, and it agrees with the plan of one collection."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb.cluster.capacity import QUANTILES, Calibration, Demand, NodeShape, assumptions, plan
from vecdb.core.errors import InvalidArgument, LimitExceeded
from vecdb.core.schema import CollectionSchema
from vecdb.core.sizing import Workload, size

MEASURED = Calibration("a machine", 4, ((5_000, 120.0), (15_000, 150.0), (45_000, 185.0)),
                       (0.6, 0.8, 0.9, 1.0, 1.1, 1.3, 1.5, 2.0, 3.0, 5.0), 250.0, 600.0, 120.0, 400.0)
NODE = NodeShape(16, 64 << 30)
SCHEMA = CollectionSchema("plan", 128)


def demand(records: int, qps: float, factor: int = 3) -> Demand:
    return Demand(Workload(records, SCHEMA), qps, factor)


@given(records=st.integers(1_000, 10**10), more=st.integers(0, 10**10), qps=st.floats(0.1, 1e6),
       factor=st.integers(1, 7))
def test_more_records_or_queries_or_replicas_never_need_less(records: int, more: int, qps: float, factor: int) -> None:
    one = plan(demand(records, qps, factor), NODE, MEASURED)
    assert plan(demand(records, qps * 2, factor), NODE, MEASURED).nodes >= one.nodes
    larger = plan(demand(min(records + more, 10**10), qps, factor), NODE, MEASURED)
    assert larger.nodes >= one.nodes
    assert larger.memory_bytes >= one.memory_bytes
    assert plan(demand(records, qps, min(7, factor + 1)), NODE, MEASURED).nodes >= one.nodes
    assert plan(demand(records, qps, factor), NodeShape(32, 128 << 30), MEASURED).nodes <= one.nodes


@given(records=st.integers(1_000, 10**10), qps=st.floats(0.1, 1e6))
def test_a_plan_holds_what_it_says(records: int, qps: float) -> None:
    one, found = plan(demand(records, qps), NODE, MEASURED), size(Workload(records, SCHEMA))
    assert (one.memory_bytes, one.disk_bytes) == (found.memory_bytes, found.disk_bytes)
    assert one.nodes == max(one.nodes_for.values())
    assert one.nodes_for[one.bound] == one.nodes
    assert one.node_memory_bytes <= NODE.memory_bytes * 0.7 + 1
    assert one.node_memory_bytes * one.nodes >= found.memory_bytes * one.replicas
    assert one.shards * one.shard_records >= records
    assert 3 <= one.replicas <= 7 * one.clusters
    assert 0 < one.p50_ms <= one.p99_ms


def test_latency_grows_with_load_and_with_what_is_asked() -> None:
    quiet, busy = (plan(demand(10**9, qps), NODE, MEASURED) for qps in (1.0, 5_000.0))
    assert quiet.nodes == busy.nodes
    assert quiet.p99_ms <= busy.p99_ms
    small = plan(demand(10**5, 1.0), NODE, MEASURED)
    assert (small.shards, small.nodes, small.bound) == (1, 3, "replicas")
    assert small.p50_ms < quiet.p50_ms
    far = plan(replace(demand(10**9, 1.0), network_us=500.0), NODE, MEASURED)
    assert far.p50_ms == pytest.approx(quiet.p50_ms + 1.0)


def test_searches_are_extrapolated_and_never_cheaper_in_more() -> None:
    assert MEASURED.search_us(10) == 120.0
    assert MEASURED.search_us(15_000) == pytest.approx(151.0, abs=3.0)
    assert MEASURED.search_us(10**7) > MEASURED.search_us(10**6) > 185.0
    noisy = replace(MEASURED, searches=((5_000, 120.0), (45_000, 90.0)))
    assert noisy.search_us(10**9) == 120.0
    assert MEASURED.slowest(0.5, 1) == 1.0
    assert MEASURED.slowest(0.99, 1) == 2.0
    assert MEASURED.slowest_us(1_000.0, 0.5, 1) == 1_000.0
    assert 2_000.0 < MEASURED.slowest_us(1_000.0, 0.99, 100) <= 2_000.0 + 3 * 185.0
    assert 2.0 < MEASURED.slowest(0.99, 5) < MEASURED.slowest(0.99, 100) <= 5.0


def test_what_makes_no_sense_is_refused() -> None:
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidArgument):
            demand(1_000, bad)
    with pytest.raises(LimitExceeded):
        demand(1_000, 1.0, 8)
    with pytest.raises(LimitExceeded):
        plan(demand(10**10, 1.0), NodeShape(1, 1 << 27), MEASURED)
    assert Calibration.from_json(MEASURED.to_json()) == MEASURED
    for wrong in ({}, {**MEASURED.to_json(), "spread": [1.0]}, {**MEASURED.to_json(), "searches": [[1, 0], [2, 0]]},
                  {**MEASURED.to_json(), "hop_us": "x"}):
        with pytest.raises(InvalidArgument):
            Calibration.from_json(wrong)
    assert len(MEASURED.spread) == len(QUANTILES)
    assert any("a machine" in one for one in assumptions(demand(10**6, 1.0), NODE, MEASURED))
    assert asdict(plan(demand(10**6, 1.0), NODE, MEASURED))
