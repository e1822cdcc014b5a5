"""The model of memory against the engine's own arrays, and its arithmetic at any size."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb.ann.hnsw import Graph
from vecdb.ann.quantize import train
from vecdb.ann.space import Space
from vecdb.cli.planning import parse_count, parse_size
from vecdb.core import sizing
from vecdb.core.errors import InvalidArgument, LimitExceeded
from vecdb.core.schema import CollectionSchema, IndexKind, IndexSpec, Metric, Quantization, VectorType
from vecdb.core.sizing import Workload, size
from vecdb.segment.choice import choose

PAIRS = [(metric, kind) for metric, kind in itertools.product(Metric, VectorType)
         if (metric is Metric.HAMMING) == (kind is VectorType.BINARY)]


def schema(dim=100, metric=Metric.L2, stored=VectorType.FLOAT32, **index) -> CollectionSchema:
    return CollectionSchema("s", dim, metric, stored, IndexSpec(**index))


def part(found: sizing.Sizing, name: str) -> sizing.Component:
    return next(one for one in found.components if one.name == name)


@pytest.mark.parametrize(("metric", "kind"), PAIRS)
@pytest.mark.parametrize("dim", [8, 16, 64, 104, 768, 1000])
def test_rows_are_as_wide_as_the_engines(metric, kind, dim) -> None:
    space = Space(metric, kind, dim)
    assert sizing.row_bytes(schema(dim, metric, kind)) == space.row_bytes
    rows = space.empty(50)
    found = part(size(Workload(50, schema(dim, metric, kind))), "vectors")
    assert found.memory_bytes == rows.nbytes + space.aux(rows).nbytes


@pytest.mark.parametrize(("metric", "kind"), PAIRS)
def test_auto_comes_to_what_the_engine_chooses(metric, kind) -> None:
    for count, on_disk, index, dim, each in itertools.product(
            (100, 19_999, 20_000, 10**6), (False, True), IndexKind, (16, 64), (None, 150, 200, 230, 300, 1000)):
        if kind is VectorType.BINARY and index in (IndexKind.IVF_FLAT, IndexKind.IVF_PQ):
            continue
        wanted = schema(dim, metric, kind, kind=index, vectors_on_disk=on_disk)
        budget = None if each is None else count * each
        ours = sizing.resolve(wanted, count, budget)
        theirs = choose(wanted.index, Space(metric, kind, dim), count, budget)
        assert (ours.kind, ours.quantization, ours.vectors_on_disk) == (
            theirs.kind, theirs.quantization, theirs.on_disk), (count, on_disk, index, dim, each)
        if ours.quantization is Quantization.RABITQ:
            assert ours.bits == theirs.bits


@pytest.mark.parametrize("m", [4, 16, 48])
def test_a_graph_is_as_large_as_drawn(m: int) -> None:
    count = 20_000
    graph = Graph.allocate(count, m=m, ef_construction=40, seed=7)
    graph.header[0] = count
    foretold = part(size(Workload(count, schema(kind=IndexKind.HNSW, m=m))), "graph").memory_bytes
    assert foretold == pytest.approx(graph.nbytes, rel=0.02)


@pytest.mark.parametrize("dim", [33, 64, 100, 384])
@pytest.mark.parametrize("metric", [Metric.L2, Metric.COSINE, Metric.DOT])
@pytest.mark.parametrize("index", [{"quantization": "sq8"}, {"quantization": "sq4"}, {"quantization": "rabitq"},
                                   {"quantization": "rabitq", "bits": 4}, {"quantization": "pq", "subspaces": 8},
                                   {"quantization": "pq"}], ids=str)
def test_codes_are_as_wide_as_the_quantizers(dim, metric, index) -> None:
    wanted = schema(dim, metric, kind="hnsw", **index)
    rows = Space(metric, VectorType.FLOAT32, dim).encode(np.random.default_rng(5).normal(size=(16, dim)))
    codes, aux = train(wanted.index, Space(metric, VectorType.FLOAT32, dim), rows).encode(rows)
    assert sizing.code_bytes(wanted, wanted.index) * 16 == codes.nbytes + aux.nbytes


shapes = st.builds(
    lambda dim, pair, index: schema(dim * 8, *pair, **index), st.integers(1, 500), st.sampled_from(PAIRS),
    st.fixed_dictionaries({"kind": st.sampled_from([IndexKind.FLAT, IndexKind.HNSW, IndexKind.AUTO]),
                           "m": st.integers(2, 128), "vectors_on_disk": st.booleans()}))


@settings(deadline=None)
@given(shape=shapes, count=st.integers(1, 10**12), more=st.integers(0, 10**9))
def test_more_records_never_take_less(shape, count, more) -> None:
    small, large = size(Workload(count, shape)), size(Workload(count + more, shape))
    if small.index == large.index:
        assert small.memory_bytes <= large.memory_bytes
        assert small.disk_bytes <= large.disk_bytes
    for one in small.components:
        assert one.memory_bytes >= 0
        assert one.disk_bytes >= 0


def test_leaving_vectors_on_disk_leaves_codes_in_memory() -> None:
    there = size(Workload(10**6, schema(128, Metric.COSINE, kind="hnsw", vectors_on_disk=True)))
    here = size(Workload(10**6, schema(128, Metric.COSINE, kind="hnsw")))
    assert part(there, "vectors").memory_bytes == 0
    assert part(there, "vectors").disk_bytes == part(here, "vectors").disk_bytes == 512 * 10**6
    assert part(there, "codes").memory_bytes == 128 * 10**6
    assert there.index.quantization is Quantization.SQ8


def test_a_limit_is_kept_by_the_ladder() -> None:
    shape = schema(768, Metric.COSINE)
    for limit, codes, on_disk in ((10**11, "sq8", False), (10**10, "sq8", True), (6 * 10**9, "rabitq", True)):
        found = size(Workload(10**7, shape, memory_limit=limit))
        assert (found.index.quantization.value, found.index.vectors_on_disk) == (codes, on_disk)
        assert found.memory_bytes <= limit * 1.01


def test_a_limit_that_no_layout_keeps_is_told_by_how_much() -> None:
    shape = schema(768, Metric.COSINE)
    assert size(Workload(10**7, shape)).exceeds is None
    assert size(Workload(10**7, shape, memory_limit=10**10)).exceeds is None
    found = size(Workload(10**7, shape, memory_limit=10**8))
    needed = part(found, "vectors").memory_bytes + part(found, "graph").memory_bytes + part(found, "codes").memory_bytes
    assert found.exceeds == needed - 10**8


def test_a_billion_is_many_segments() -> None:
    found = size(Workload(10**9, schema(768)))
    assert found.segments == 63
    assert found.memory_bytes > 10**9 * 768 * 4


@pytest.mark.parametrize("bad", [0, -1, 10**16])
def test_records_are_bounded(bad: int) -> None:
    with pytest.raises(LimitExceeded, match="records"):
        Workload(bad, schema())


@pytest.mark.parametrize("name", ["id_bytes", "metadata_bytes", "metadata_fields", "text_bytes"])
@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_averages_are_numbers(name: str, bad: float) -> None:
    with pytest.raises(InvalidArgument, match=name):
        Workload(10, schema(), **{name: bad})


@pytest.mark.parametrize(("text", "number"), [
    ("1000", 1000), ("1e6", 10**6), ("1E9", 10**9), ("2.5k", 2500), ("10M", 10**7), ("1_000", 1000),
    ("1,000,000", 10**6), ("3 B", 3 * 10**9), ("1e+6", 10**6), ("1t", 10**12),
])
def test_counts_as_people_write_them(text: str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize(("text", "number"), [("8GiB", 8 << 30), ("500MB", 5 * 10**8), ("1024", 1024),
                                              ("1.5 kib", 1536), ("2T", 2 * 10**12)])
def test_sizes_as_people_write_them(text: str, number: int) -> None:
    assert parse_size(text) == number


@pytest.mark.parametrize("text", ["", "GiB", "-1GB", "1XB", "nan", "inf", "1e30"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidArgument, match="memory"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "many", "-5", "1e999", "1x", "e6", "1.2.3"])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(InvalidArgument, match="records"):
        parse_count(text)
