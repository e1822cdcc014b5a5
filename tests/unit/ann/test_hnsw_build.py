"""Building: the same graph whatever the threads, sound at every batch, searchable meanwhile."""

import threading

import numpy as np
import pytest

from tests.oracles import distances as oracle
from tests.unit.ann.hnsw_data import COUNT, DIM, L2, build, exact, on_threads, rows_of, shared
from vecdb.ann import hnsw
from vecdb.ann.hnsw.graph import draw_levels
from vecdb.ann.quantize.sq8 import ScalarQuantizer8
from vecdb.ann.space import Space
from vecdb.core.schema import Metric, VectorType

SPACES = [("l2", "float16"), ("dot", "float32"), ("cosine", "float32"), ("cosine", "int8"), ("l2", "uint8"),
          ("hamming", "binary")]


def same(a, b):
    count = a.count
    assert count == b.count
    assert a.entry == b.entry
    assert (a.links0[:count] == b.links0[:count]).all()
    assert (a.levels == b.levels).all()
    assert (a.upper == b.upper).all()


def test_any_number_of_threads_makes_the_same_graph():
    rows, graph, _, _ = shared()
    same(graph, build(L2, rows, run=on_threads(3)))
    same(graph, build(L2, rows, run=on_threads(1)))


def test_the_seed_decides_the_levels_and_their_shares():
    levels = draw_levels(0, 100_000, 16, 1)
    assert (levels[:500] == draw_levels(0, 500, 16, 1)).all()
    assert (levels[300:500] == draw_levels(300, 500, 16, 1)).all()
    assert (levels != draw_levels(0, 100_000, 16, 2)).any()
    assert (levels > 0).mean() == pytest.approx(1 / 16, rel=0.1)
    assert (levels > 1).mean() == pytest.approx(1 / 256, rel=0.2)


@pytest.mark.parametrize(("metric", "kind"), SPACES)
def test_every_kind_of_row_makes_a_graph_that_finds(metric, kind):
    space = Space(Metric(metric), VectorType(kind), 64 if kind == "binary" else DIM)
    rows = rows_of(space, 1_200)
    queries = rows_of(space, 30, seed=13)[:, :space.row_items]
    graph = build(space, rows)
    assert graph.damage() is None
    found = hnsw.search(graph, exact(space, rows), queries, k=10, ef=120)
    truth = oracle.raw(space, queries, rows[:, :space.row_items])
    _, nearest = oracle.nearest(truth, 10)
    # by distance, since small integers tie
    assert np.mean(found.distances <= nearest[:, -1:] + 1e-3 * np.abs(truth).max()) >= 0.97


def test_growing_step_by_step_keeps_links_below_the_count_published():
    rows, _, queries, truth = shared()
    graph = hnsw.Graph.allocate(COUNT, m=8, ef_construction=60, seed=5)
    seen: list[int] = []

    def check(count: int) -> None:
        seen.append(count)
        assert graph.count == count
        assert graph.damage() is None

    for upto in (1, 2, 70, 1_000, 1_000, COUNT):
        hnsw.grow(graph, L2, rows, L2.aux(rows), upto, on_batch=check)
        assert graph.count == upto
    assert sorted(set(seen)) == seen
    found = hnsw.search(graph, exact(L2, rows), queries, k=10, ef=120)
    assert oracle.recall(found.ordinals, oracle.nearest(truth, 10)[0]) >= 0.97


def test_a_refused_batch_leaves_a_graph_that_goes_on():
    rows, whole, _, _ = shared()
    graph = hnsw.Graph.allocate(COUNT, m=8, ef_construction=60, seed=5)

    class Full(Exception):
        pass

    def refuse(count: int) -> None:
        if count > 500:
            raise Full

    with pytest.raises(Full):
        hnsw.grow(graph, L2, rows, L2.aux(rows), COUNT, on_batch=refuse)
    assert 500 < graph.count < COUNT
    hnsw.grow(graph, L2, rows, L2.aux(rows), COUNT)
    same(graph, whole)


def test_searches_go_on_while_the_graph_grows():
    rows, _, queries, truth = shared()
    graph = hnsw.Graph.allocate(COUNT, m=8, ef_construction=60, seed=5)
    hnsw.grow(graph, L2, rows, L2.aux(rows), 400)
    failures: list[str] = []
    done = threading.Event()

    def searching() -> None:
        searcher = hnsw.Searcher(graph, exact(L2, rows))
        while not done.is_set():
            count = graph.count
            found = searcher.search(queries, k=10, ef=60, count=count)
            order = oracle.nearest(truth[:, :count], 10)[0]
            share = oracle.recall(found.ordinals, order)
            if found.ordinals.max() >= count or found.ordinals.min() < 0 or share < 0.85:
                failures.append(f"count {count}: recall {share}, ordinals up to {found.ordinals.max()}")

    threads = [threading.Thread(target=searching) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        hnsw.grow(graph, L2, rows, L2.aux(rows), COUNT, on_threads(2))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures
    alone = build(L2, rows, upto=400, capacity=COUNT)
    hnsw.grow(alone, L2, rows, L2.aux(rows), COUNT)
    same(graph, alone)


def test_ordered_and_repeated_vectors_are_found():
    rng = np.random.default_rng(3)
    floats = np.sort(oracle.clustered(1_500, DIM, 4), axis=0)  # neighbours come one after the other
    floats[900:1_000] = floats[900]
    rows = L2.pad(floats)
    graph = build(L2, rows)
    picks = rng.integers(0, 900, 50)
    found = hnsw.search(graph, exact(L2, rows), floats[picks], k=1, ef=40)
    assert (found.distances[:, 0] <= 1e-6).mean() >= 0.98
    twins = hnsw.search(graph, exact(L2, rows), floats[950:951], k=10, ef=40)
    assert (twins.distances == 0).all()


def test_walking_on_codes_builds_nearly_as_good_a_graph():
    rows, _, queries, truth = shared()
    quantizer = ScalarQuantizer8.train(L2, rows[:, :DIM])
    codes = quantizer.codes(*quantizer.encode(rows[:, :DIM]))
    graph = build(L2, rows, codes=codes)
    assert graph.damage() is None
    found = hnsw.search(graph, exact(L2, rows), queries, k=10, ef=120)
    assert oracle.recall(found.ordinals, oracle.nearest(truth, 10)[0]) >= 0.97


def test_copies_grow_apart_and_arrays_make_the_same_graph_again():
    rows, _, _, _ = shared()
    first = build(L2, rows, upto=1_000, capacity=1_000)
    before = {name: array.copy() for name, array in first.arrays().items()}
    wider = first.copy(COUNT)
    hnsw.grow(wider, L2, rows, L2.aux(rows), COUNT)
    assert wider.damage() is None
    assert all((before[name] == array).all() for name, array in first.arrays().items())
    for array in before.values():
        array.flags.writeable = False
    same(first, hnsw.Graph.from_arrays(before, ef_construction=60, seed=5))
    with pytest.raises(ValueError, match="capacity"):
        hnsw.grow(first, L2, rows, L2.aux(rows), COUNT)


@pytest.mark.parametrize("break_it", [
    lambda a: a["links0"].__setitem__((3, 0), COUNT), lambda a: a["links0"].__setitem__((3, 0), -7),
    lambda a: a["upper"].__setitem__((0, 0), 1 << 29), lambda a: a["header"].__setitem__(0, COUNT + 1),
    lambda a: a["header"].__setitem__(1, -1), lambda a: a["slots"].__setitem__(slice(None), -5),
    lambda a: a["levels"].__setitem__(slice(None), 200),
])
def test_damage_is_seen_before_a_kernel_meets_it(break_it):
    arrays = {name: array.copy() for name, array in shared()[1].arrays().items()}
    assert hnsw.Graph.from_arrays(arrays, ef_construction=60, seed=5).damage() is None
    break_it(arrays)
    assert hnsw.Graph.from_arrays(arrays, ef_construction=60, seed=5).damage() is not None
