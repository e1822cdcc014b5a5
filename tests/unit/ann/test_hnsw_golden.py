"""Recall, hops and comparisons of each phase of a graph's life, per metric and filter, against the golden file.

Figures are shares, so that one tolerance fits: recall@10; hops per place in the beam; comparisons per vertex and query.
Changes of the search or the build show here though every other test passes: look at them, then rewrite the file with
VECDB_REWRITE_GOLDEN=1.
"""

import numpy as np

from tests import goldens
from tests.oracles import distances as oracle
from tests.unit.ann.hnsw_data import COUNT, DIM, build, exact, rows_of
from vecdb.ann import hnsw
from vecdb.ann.quantize.sq8 import ScalarQuantizer8
from vecdb.ann.space import Space
from vecdb.core.schema import Metric, VectorType

EF = 60


class Figures:
    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, name, found, truth, members):
        """``found`` in ordinals that number ``members``, places in the rows of ``truth``."""
        nearest, _ = oracle.nearest(truth[:, members], 10)
        queries = len(truth)
        self.values |= {
            f"{name} recall": oracle.recall(found.ordinals, nearest),
            f"{name} hops": found.hops / queries / EF,
            f"{name} comparisons": found.comparisons / queries / COUNT,
        }


def life(figures: Figures, name: str, space: Space) -> None:
    rows, queries = rows_of(space), rows_of(space, 80, seed=13)[:, :space.row_items]
    truth = oracle.raw(space, queries, rows[:, :space.row_items])
    everything = np.arange(COUNT)

    def search(graph, rows, **options):
        return hnsw.search(graph, exact(space, rows), queries, k=10, ef=EF, **options)

    built = build(space, rows)
    figures.add(f"{name} built", search(built, rows), truth, everything)
    half = build(space, rows, upto=COUNT // 2, capacity=COUNT // 2)
    inserted = half.copy(COUNT)
    hnsw.grow(inserted, space, rows, space.aux(rows), COUNT)
    figures.add(f"{name} inserted", search(inserted, rows), truth, everything)
    flags = np.random.default_rng(14).random(COUNT) < 0.8
    live = oracle.bitset(flags)
    deleted = search(built, rows, allowed=live)
    rank = np.cumsum(flags) - 1
    figures.add(f"{name} deleted", hnsw_found(deleted, rank), truth, np.flatnonzero(flags))
    small, order = hnsw.consolidate(built, space, rows, space.aux(rows), live)
    figures.add(f"{name} consolidated", search(small, hnsw.permute(rows, order)), truth, order)
    arrays = {key: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
              for key, array in small.arrays().items()}
    again = hnsw.Graph.from_arrays(arrays, ef_construction=60, seed=5)
    figures.add(f"{name} restarted", search(again, hnsw.permute(rows, order)), truth, order)


def hnsw_found(found, rank):
    """``found`` with ordinals replaced by their rank among those allowed."""
    return type(found)(np.where(found.ordinals >= 0, rank[found.ordinals], -1).astype(np.int32), found.distances,
                       found.hops, found.comparisons)


def test_figures_of_every_phase_are_as_written():
    figures = Figures()
    for metric in ("l2", "dot", "cosine"):
        life(figures, metric, Space(Metric(metric), VectorType.FLOAT32, DIM))
    life(figures, "hamming", Space(Metric.HAMMING, VectorType.BINARY, 128))
    space = Space(Metric.COSINE, VectorType.FLOAT32, DIM)
    rows, queries = rows_of(space), rows_of(space, 80, seed=13)[:, :DIM]
    truth = oracle.raw(space, queries, rows[:, :DIM])
    graph = build(space, rows)
    for share in (0.02, 0.1, 0.5):
        flags = np.random.default_rng(15).random(COUNT) < share
        rank = np.cumsum(flags) - 1
        for mode in ("post", "filtered"):
            found = hnsw.search(graph, exact(space, rows), queries, k=10, ef=EF, allowed=oracle.bitset(flags),
                                mode=mode)
            figures.add(f"filter {share} {mode}", hnsw_found(found, rank), truth, np.flatnonzero(flags))
    quantizer = ScalarQuantizer8.train(space, rows[:, :DIM])
    codes = quantizer.codes(*quantizer.encode(rows[:, :DIM]))
    found = hnsw.Searcher(graph, codes, exact(space, rows)).search(queries, k=10, ef=EF, keep=20)
    figures.add("sq8 reranked", found, truth, np.arange(COUNT))
    goldens.check("ann_hnsw", figures.values, tolerance=0.03)
