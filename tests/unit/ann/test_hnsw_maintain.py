"""Maintenance: consolidation, renumbering, repair."""

import numpy as np
import pytest

from tests.oracles import distances as oracle
from tests.unit.ann.hnsw_data import COUNT, DIM, L2, exact, on_threads, rows_of, shared
from vecdb.ann import hnsw
from vecdb.ann.space import Space
from vecdb.core.schema import Metric, VectorType


def test_reordering_renames_and_changes_nothing_else():
    rows, graph, queries, _ = shared()
    again, order = hnsw.reorder(graph)
    assert np.sort(order).tolist() == list(range(COUNT))
    assert again.damage() is None
    assert again.entry == 0
    before = hnsw.search(graph, exact(L2, rows), queries, k=10, ef=50)
    after = hnsw.search(again, exact(L2, hnsw.permute(rows, order)), queries, k=10, ef=50)
    assert order[after.ordinals].tolist() == before.ordinals.tolist()
    assert after.comparisons == before.comparisons
    near = np.abs(again.links0[:COUNT].astype(np.int64) - np.arange(COUNT)[:, None])[again.links0[:COUNT] >= 0]
    far = np.abs(graph.links0[:COUNT].astype(np.int64) - np.arange(COUNT)[:, None])[graph.links0[:COUNT] >= 0]
    assert near.mean() < far.mean()


def test_a_reordered_graph_with_room_goes_on_growing():
    rows, _, queries, truth = shared()
    half = hnsw.Graph.allocate(COUNT // 2, m=8, ef_construction=60, seed=5)
    hnsw.grow(half, L2, rows, L2.aux(rows), COUNT // 2)
    wide, order = hnsw.reorder(half, capacity=COUNT)
    moved = hnsw.permute(rows, order, capacity=COUNT)
    moved[COUNT // 2:] = rows[COUNT // 2:]
    hnsw.grow(wide, L2, moved, L2.aux(moved), COUNT)
    whole = np.concatenate([order, np.arange(COUNT // 2, COUNT)])
    found = hnsw.search(wide, exact(L2, moved), queries, k=10, ef=120)
    assert oracle.recall(whole[found.ordinals], oracle.nearest(truth, 10)[0]) >= 0.97


@pytest.mark.parametrize("share", [0.99, 0.9, 0.75, 0.4, 0.05])
def test_consolidation_drops_the_dead_and_keeps_recall(share):
    rows, graph, queries, truth = shared()
    flags = np.random.default_rng(9).random(COUNT) < share
    flags[graph.entry] = False
    before = graph.links0.copy()
    small, order = hnsw.consolidate(graph, L2, rows, L2.aux(rows), oracle.bitset(flags))
    assert (graph.links0 == before).all()
    assert order.tolist() == np.flatnonzero(flags).tolist()
    assert small.count == len(order)
    assert small.damage() is None
    found = hnsw.search(small, exact(L2, hnsw.permute(rows, order)), queries, k=10, ef=120)
    nearest, _ = oracle.nearest(truth[:, order], 10)
    assert oracle.recall(found.ordinals, nearest) >= 0.95
    threaded, _ = hnsw.consolidate(graph, L2, rows, L2.aux(rows), oracle.bitset(flags), on_threads(3))
    assert (threaded.links0[:small.count] == small.links0[:small.count]).all()


def test_many_rounds_of_deletion_do_not_wear_the_graph_out():
    rows, graph, queries, truth = shared()
    alive = np.arange(COUNT)
    rng = np.random.default_rng(4)
    for _ in range(8):
        flags = rng.random(len(alive)) < 0.85
        graph, order = hnsw.consolidate(graph, L2, rows, L2.aux(rows), oracle.bitset(flags))
        rows, alive = hnsw.permute(rows, order), alive[order]
    found = hnsw.search(graph, exact(L2, rows), queries, k=10, ef=120)
    assert oracle.recall(found.ordinals, oracle.nearest(truth[:, alive], 10)[0]) >= 0.95


def test_nothing_left_alive_is_an_empty_graph_that_can_grow():
    rows, graph, queries, _ = shared()
    dead = np.zeros((COUNT + 63) // 64, np.uint64)
    empty, order = hnsw.consolidate(graph, L2, rows, L2.aux(rows), dead, capacity=100)
    assert (empty.count, len(order), empty.entry) == (0, 0, -1)
    hnsw.grow(empty, L2, rows, L2.aux(rows), 100)
    assert (hnsw.search(empty, exact(L2, rows), queries, k=3, ef=20).ordinals >= 0).all()


def test_integer_cosine_carries_its_norms_through_consolidation():
    space = Space(Metric.COSINE, VectorType.INT8, DIM)
    rows = rows_of(space, 600)
    graph = hnsw.Graph.allocate(600, m=8, ef_construction=60, seed=5)
    hnsw.grow(graph, space, rows, space.aux(rows), 600)
    flags = np.arange(600) % 10 != 3
    small, order = hnsw.consolidate(graph, space, rows, space.aux(rows), oracle.bitset(flags))
    moved = hnsw.permute(rows, order)
    found = hnsw.search(small, exact(space, moved), moved[:40, :DIM], k=1, ef=30)
    np.testing.assert_allclose(found.distances[:, 0], 0, atol=1e-5)


def test_repair_links_what_nothing_leads_to():
    rows, graph, _, _ = shared()
    broken = graph.copy()
    lost = np.arange(100, 2_900, 150)
    lost = lost[lost != broken.entry]
    for links in (broken.links0, broken.upper):
        for v in lost:
            for row in range(len(links)):
                kept = links[row][(links[row] >= 0) & (links[row] != v)]
                links[row] = -1
                links[row, :len(kept)] = kept
    found = hnsw.search(broken, exact(L2, rows), rows[lost, :DIM], k=1, ef=50)
    assert not (found.ordinals[:, 0] == lost).any()
    assert hnsw.repair(broken, L2, rows, L2.aux(rows)) >= len(lost)
    found = hnsw.search(broken, exact(L2, rows), rows[lost, :DIM], k=1, ef=50)
    assert (found.ordinals[:, 0] == lost).all()
    assert hnsw.repair(broken, L2, rows, L2.aux(rows)) == 0
