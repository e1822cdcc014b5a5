"""Searching: filters in both modes, counts, stop, radius, codes with rerank, one query and many."""

import numpy as np
import pytest

from tests.oracles import distances as oracle
from tests.unit.ann.hnsw_data import COUNT, DIM, L2, exact, shared
from vecdb.ann import hnsw
from vecdb.ann.quantize.sq8 import ScalarQuantizer8
from vecdb.kernels._jit import signatures
from vecdb.kernels.beam import search_for


def recall_among(found, truth, members, k=10):
    order, _ = oracle.nearest(truth[:, members], k)
    return oracle.recall(found.ordinals, np.asarray(members)[order])


def test_results_are_sorted_unique_and_counted():
    rows, graph, queries, truth = shared()
    found = hnsw.search(graph, exact(L2, rows), queries, k=10, ef=120)
    assert recall_among(found, truth, np.arange(COUNT)) >= 0.97
    assert (np.diff(found.distances, axis=1) >= 0).all()
    assert all(len(set(row)) == 10 for row in found.ordinals.tolist())
    np.testing.assert_allclose(found.distances, np.take_along_axis(truth, found.ordinals.astype(int), 1), rtol=1e-4)
    assert found.hops >= 120 * len(queries)
    assert found.hops < found.comparisons < COUNT * len(queries) / 2
    assert not found.stopped


def test_k_above_what_there_is_is_padded():
    rows, _, queries, _ = shared()
    graph = hnsw.Graph.allocate(50, m=8, ef_construction=60, seed=5)
    empty = hnsw.search(graph, exact(L2, rows), queries, k=3, ef=10)
    assert (empty.ordinals == -1).all()
    assert np.isinf(empty.distances).all()
    hnsw.grow(graph, L2, rows, L2.aux(rows), 7)
    found = hnsw.search(graph, exact(L2, rows), queries, k=10, ef=10)
    assert np.sort(found.ordinals[:, :7], axis=1).tolist() == [list(range(7))] * len(queries)
    assert (found.ordinals[:, 7:] == -1).all()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("mode", ["post", "filtered"])
def test_only_allowed_vertices_are_found_and_nearly_all_of_the_nearest(mode, share):
    rows, graph, queries, truth = shared()
    flags = np.random.default_rng(2).random(COUNT) < share
    found = hnsw.search(graph, exact(L2, rows), queries, k=10, ef=120, allowed=oracle.bitset(flags), mode=mode)
    members = np.flatnonzero(flags)
    assert set(found.ordinals.ravel().tolist()) <= set(members.tolist()) | {-1}
    assert recall_among(found, truth, members) >= 0.95


@pytest.mark.parametrize("mode", ["post", "filtered"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_filters_that_exclude_all_that_is_near_still_find_the_nearest_allowed(share, mode):
    rows, graph, queries, truth = shared()
    # a half-space away from each query: what is allowed is far from where the walk begins and ends
    far = np.argsort(-truth[0])[:int(share * COUNT)]
    flags = np.zeros(COUNT, bool)
    flags[far] = True
    found = hnsw.search(graph, exact(L2, rows), queries[:1], k=10, ef=120, allowed=oracle.bitset(flags), mode=mode)
    assert recall_among(found, truth[:1], np.sort(far)) >= 0.9


@pytest.mark.parametrize("mode", ["post", "filtered"])
def test_k_are_found_whenever_k_are_allowed_in_a_batch_of_near_and_far(mode):
    rows, graph, queries, truth = shared()
    for share in (0.004, 0.03, 0.3, 0.6):
        flags = np.zeros(COUNT, bool)
        flags[np.argsort(truth[3])[:int(share * COUNT)]] = True
        found = hnsw.search(graph, exact(L2, rows), queries, k=12, ef=30, allowed=oracle.bitset(flags), mode=mode)
        assert (found.ordinals >= 0).all()
        assert flags[found.ordinals].all()
        assert (np.diff(found.distances, axis=1) >= 0).all()


def test_no_allowed_vertex_no_result():
    rows, graph, queries, _ = shared()
    for mode in ("post", "filtered"):
        found = hnsw.search(graph, exact(L2, rows), queries, k=5, ef=20, mode=mode,
                            allowed=np.zeros((COUNT + 63) // 64, np.uint64))
        assert (found.ordinals == -1).all()


def test_only_vertices_below_the_count_are_seen():
    rows, graph, queries, _ = shared()
    found = hnsw.search(graph, exact(L2, rows), queries, k=10, ef=60, count=1_000)
    assert found.ordinals.max() < 1_000
    assert (hnsw.search(graph, exact(L2, rows), queries, k=10, ef=60, count=0).ordinals == -1).all()


def test_one_query_a_call_answers_as_many_in_one_on_rows_and_on_codes():
    rows, graph, queries, truth = shared()
    quantizer = ScalarQuantizer8.train(L2, rows[:, :DIM])
    codes = quantizer.codes(*quantizer.encode(rows[:, :DIM]))
    order = oracle.nearest(truth, 10)[0]
    for searcher in (hnsw.Searcher(graph, exact(L2, rows)), hnsw.Searcher(graph, codes, exact(L2, rows))):
        for settings in ({"ef": 40}, {"ef": 80, "keep": 30}, {"ef": 1}):
            many = searcher.search(queries, k=10, **settings)
            ones = [searcher.search(queries[q:q + 1], k=10, **settings) for q in range(len(queries))]
            assert np.concatenate([one.ordinals for one in ones]).tolist() == many.ordinals.tolist()
            assert np.concatenate([one.distances for one in ones]).tolist() == many.distances.tolist()
            assert sum(one.hops for one in ones) == many.hops
            assert sum(one.comparisons for one in ones) == many.comparisons
        assert oracle.recall(searcher.search(queries, k=10, ef=120, keep=20).ordinals, order) >= 0.97
        # arguments of one call do not stay for the next
        flags = np.arange(COUNT) % 2 == 0
        odd = searcher.search(queries[:1], k=10, ef=40, allowed=oracle.bitset(flags), stop=np.ones(1, np.int32))
        assert odd.stopped
        assert searcher.search(queries[:1], k=10, ef=40).ordinals.tolist() == \
            searcher.search(queries[:2], k=10, ef=40).ordinals[:1].tolist()


def test_reranked_distances_are_exact():
    rows, graph, queries, truth = shared()
    quantizer = ScalarQuantizer8.train(L2, rows[:, :DIM])
    codes = quantizer.codes(*quantizer.encode(rows[:, :DIM]))
    found = hnsw.Searcher(graph, codes, exact(L2, rows)).search(queries, k=10, ef=120)
    np.testing.assert_allclose(found.distances, np.take_along_axis(truth, found.ordinals.astype(int), 1), rtol=1e-4)
    with pytest.raises(ValueError, match="reranked"):
        hnsw.Searcher(graph, codes, exact(L2, rows)).search(codes.prepare(queries), k=1, ef=1)


def test_read_only_memory_shares_the_compiled_signature(tmp_path):
    rows, graph, queries, _ = shared()
    rows.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=rows.shape)
    arrays = {name: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
              for name, array in graph.arrays().items()}
    again = hnsw.Graph.from_arrays(arrays, ef_construction=60, seed=5)
    want = hnsw.search(graph, exact(L2, rows), queries, k=10, ef=40)
    got = hnsw.search(again, exact(L2, mapped), queries, k=10, ef=40)
    assert got.ordinals.tolist() == want.ordinals.tolist()
    assert len(signatures(search_for("f32.l2", None))) == 1


def test_a_stop_flag_ends_the_search_early():
    rows, graph, queries, _ = shared()
    found = hnsw.search(graph, exact(L2, rows), queries, k=10, ef=500, stop=np.ones(1, np.int32))
    assert found.stopped
    assert found.hops < 40


def test_marks_wrap_around_without_confusion():
    rows, graph, queries, _ = shared()
    searcher = hnsw.Searcher(graph, exact(L2, rows))
    want = searcher.search(queries[:1], k=10, ef=30).ordinals.tolist()
    for _ in range(600):
        assert searcher.search(queries[:1], k=10, ef=30).ordinals.tolist() == want


def test_one_scratch_serves_graphs_of_any_size():
    rows, graph, queries, _ = shared()
    small = hnsw.Graph.allocate(100, m=4, ef_construction=20, seed=1)
    hnsw.grow(small, L2, rows, L2.aux(rows), 100)
    scratch = hnsw.Scratch()
    searchers = [hnsw.Searcher(which, exact(L2, rows), scratch=scratch) for which in (small, graph)]
    want = [hnsw.search(which, exact(L2, rows), queries, k=5, ef=50).ordinals.tolist() for which in (small, graph)]
    for _ in range(3):
        assert [searcher.search(queries, k=5, ef=50).ordinals.tolist() for searcher in searchers] == want


@pytest.mark.parametrize("share", [0.002, 0.05, 0.6])
def test_all_within_a_radius_are_found(share):
    rows, graph, queries, truth = shared()
    radius = float(np.quantile(truth, share))
    found = hnsw.search_within(graph, exact(L2, rows), queries, radius=radius, k=COUNT, ef=40)
    inside = truth <= np.float32(radius)
    assert (found.distances[found.ordinals >= 0] <= np.float32(radius)).all()
    assert (found.ordinals >= 0).sum() >= 0.97 * inside.sum()
    few = hnsw.search_within(graph, exact(L2, rows), queries, radius=radius, k=3, ef=40)
    assert ((few.ordinals >= 0).sum(axis=1) <= np.minimum(inside.sum(axis=1), 3)).all()


def test_codes_shorter_than_the_graph_are_refused():
    rows, graph, _, _ = shared()
    with pytest.raises(ValueError, match="too few"):
        hnsw.Searcher(graph, exact(L2, rows[:10]))
