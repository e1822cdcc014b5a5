"""Inverted lists: complete, exact when all are read, calibrated, filtered, the same on any threads and from files."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests import goldens
from vecdb.ann import flat
from vecdb.ann.codes import RowCodes
from vecdb.ann.ivf import Ivf, default_nlist, planned_bytes
from vecdb.ann.quantize import train
from vecdb.ann.rerank import rerank
from vecdb.ann.space import Space
from vecdb.core.errors import Unsupported
from vecdb.core.schema import IndexSpec, Metric, VectorType
from vecdb.kernels._jit import signatures
from vecdb.kernels.ivf import search_for

METRICS = [Metric.L2, Metric.DOT, Metric.COSINE]
FLAT, PQ = IndexSpec(kind="ivf_flat"), IndexSpec(kind="ivf_pq", subspaces=12)
OPQ = IndexSpec(kind="ivf_pq", quantization="opq", subspaces=12)


def on_threads(thunks):
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(thunk) for thunk in reversed(thunks)]:
            future.result()


def clustered(count, dim, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((60, dim))
    return centres[rng.integers(0, 60, count)] + rng.standard_normal((count, dim)) * 0.6


def made(metric, count=3000, dim=24, kind=VectorType.FLOAT32, queries=40):
    """A space, its padded rows and queries; integer types get vectors that fill their range."""
    space = Space(metric, kind, dim)
    scale, shift = (1, 0) if space.is_float else (25, 110 if kind is VectorType.UINT8 else 0)
    rows = space.pad(space.encode(clustered(count, dim, 1) * scale + shift))
    return space, rows, space.encode(clustered(queries, dim, 2) * scale + shift)


def exact(space, rows, queries, k=10, allowed=None):
    return flat.scan(RowCodes(space, rows, space.aux(rows)), queries, k=k, allowed=allowed)


def recall(found, wanted):
    hits = [len(np.intersect1d(a[a >= 0], b[b >= 0])) / max(1, (b >= 0).sum())
            for a, b in zip(found.ordinals, wanted.ordinals, strict=True)]
    return float(np.mean(hits))


def bitset(mask):
    return np.packbits(np.pad(mask, (0, -len(mask) % 64)), bitorder="little").view(np.uint64)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", [VectorType.FLOAT32, VectorType.FLOAT16, VectorType.INT8, VectorType.UINT8])
def test_reading_every_list_is_exact(metric, kind):
    space, rows, queries = made(metric, count=700, kind=kind, queries=6)
    ivf = Ivf.build(space, rows, 700)
    found, wanted = ivf.search(queries, 10, nprobe=ivf.nlist), exact(space, rows, queries)
    np.testing.assert_array_equal(found.distances, wanted.distances)
    assert np.array_equal(found.ordinals, wanted.ordinals)
    assert found.comparisons == 6 * 700
    assert found.hops == 6 * ivf.nlist


def test_every_row_is_in_the_list_of_its_nearest_centroid():
    space, rows, _ = made(Metric.L2)
    ivf = Ivf.build(space, rows, 2500)
    assert np.array_equal(np.sort(ivf.ordinals), np.arange(2500))
    assert ivf.offsets[0] == 0
    assert ivf.offsets[-1] == 2500
    for number in range(ivf.nlist):
        members = ivf.ordinals[ivf.offsets[number]:ivf.offsets[number + 1]]
        assert np.all(np.diff(members) > 0)
        away = np.square(rows[members, None, :24].astype(np.float64) - ivf.centroids[None]).sum(axis=2)
        assert np.all(away[:, number] <= away.min(axis=1) + 1e-4)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("spec", [FLAT, PQ, OPQ], ids=["flat", "pq", "opq"])
def test_defaults_reach_the_recall_promised(metric, spec):
    space, rows, queries = made(metric, count=6000, queries=100)
    ivf = Ivf.build(space, rows, 6000, spec=spec, seed=3)
    wanted = exact(space, rows, queries)
    oversample = 1 if spec is FLAT else 8
    found = ivf.search(queries, 10 * oversample)
    best = rerank(space, rows, space.aux(rows), queries, found, 10)
    measured = {"recall": recall(best, wanted), "nprobe": ivf.nprobe / 100, "rows": found.comparisons / 600_000,
                "codes alone": recall(ivf.search(queries, 10), wanted)}
    assert measured["recall"] >= 0.95
    assert measured["rows"] < 0.5
    name = "flat" if spec is FLAT else "opq" if spec is OPQ else "pq"
    goldens.check(f"ivf_{name}_{metric.value}", measured, tolerance=0.03)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("spec", [PQ, OPQ], ids=["pq", "opq"])
def test_residual_scores_are_distances_to_the_reconstruction(metric, spec):
    space, rows, queries = made(metric, count=800, queries=5)
    ivf = Ivf.build(space, rows, 800, spec=spec)
    found = ivf.search(queries, 800, nprobe=ivf.nlist)
    lists = np.repeat(np.arange(ivf.nlist), np.diff(ivf.offsets))
    back = np.zeros((800, 24))
    back[ivf.ordinals] = ivf.centroids[lists] + ivf.residual.books.decode(ivf.residual.codes)
    if metric is Metric.DOT:
        scores = -(queries.astype(np.float64) @ back.T)
    else:
        scores = np.square(queries[:, None].astype(np.float64) - back[None]).sum(axis=2)
        scores /= 2 if metric is Metric.COSINE else 1
    for q in range(5):
        np.testing.assert_allclose(found.distances[q], scores[q, found.ordinals[q]], rtol=1e-3, atol=1e-3)
        assert len(np.unique(found.ordinals[q])) == 800


@pytest.mark.parametrize("spec", [FLAT, PQ], ids=["flat", "pq"])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.002])
def test_a_filter_gets_all_the_matches_there_are(spec, share):
    space, rows, queries = made(Metric.L2)
    ivf = Ivf.build(space, rows, 3000, spec=spec)
    mask = np.random.default_rng(5).random(3000) < share
    mask[17] = True
    wanted = exact(space, rows, queries, allowed=bitset(mask))
    found = ivf.search(queries, 40, allowed=bitset(mask))
    kept = found.ordinals[found.ordinals >= 0]
    assert mask[kept].all()
    assert np.all((found.ordinals >= 0).sum(axis=1) == min(40, mask.sum()))
    best = rerank(space, rows, space.aux(rows), queries, found, 10)
    assert recall(best, wanted) >= 0.95


def test_a_large_k_is_answered_from_more_lists():
    space, rows, queries = made(Metric.L2)
    ivf = Ivf.build(space, rows, 3000)
    found = ivf.search(queries, 400, nprobe=1)
    assert (found.ordinals >= 0).all()
    assert recall(ivf.search(queries, 400), exact(space, rows, queries, k=400)) > 0.9
    whole = ivf.search(queries[:1], 5000)
    assert (whole.ordinals[0] >= 0).sum() == 3000
    assert np.all(whole.distances[0, 3000:] == np.inf)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100, 255])
@pytest.mark.parametrize("spec", [FLAT, PQ, OPQ], ids=["flat", "pq", "opq"])
def test_small_segments(spec, count):
    space, rows, queries = made(Metric.L2, count=max(count, 1))
    ivf = Ivf.build(space, rows, count, spec=spec)
    found = ivf.search(queries, 5, nprobe=ivf.nlist)
    assert np.all((found.ordinals >= 0).sum(axis=1) == min(5, count))
    if count and spec is FLAT:
        assert np.array_equal(found.ordinals, exact(space, rows[:count], queries, k=5).ordinals)


@pytest.mark.parametrize("spec", [FLAT, PQ], ids=["flat", "pq"])
@pytest.mark.parametrize("dim", [1, 3, 17, 100])
def test_odd_dimensions_duplicates_and_more_lists_than_points(spec, dim):
    space = Space(Metric.L2, VectorType.FLOAT32, dim)
    rows = space.pad(space.encode(np.repeat(clustered(50, dim, 3), 8, axis=0)))
    ivf = Ivf.build(space, rows, 400, nlist=500, spec=spec)
    assert ivf.nlist == 500
    found = ivf.search(rows[:3, :dim], 8, nprobe=500)
    assert np.all(found.distances < 0.1)
    constant = space.pad(np.full((300, dim), 2.0, np.float32))
    ivf = Ivf.build(space, constant, 300, spec=spec)
    assert np.allclose(ivf.search(constant[:2, :dim], 10).distances, 0, atol=1e-4)


@pytest.mark.parametrize("spec", [FLAT, PQ, OPQ], ids=["flat", "pq", "opq"])
def test_arrays_give_it_back_on_any_threads(spec):
    space, rows, queries = made(Metric.COSINE)
    one = Ivf.build(space, rows, 3000, spec=spec, seed=9)
    many = Ivf.build(space, rows, 3000, spec=spec, seed=9, run=on_threads)
    arrays = {name: array.copy() for name, array in one.arrays().items()}
    for name, array in many.arrays().items():
        assert np.array_equal(array, arrays[name]), name
        arrays[name].flags.writeable = False
    rows.flags.writeable = False
    again = Ivf.from_arrays(space, arrays, rows=rows)
    first, second = one.search(queries, 10), again.search(queries, 10)
    assert np.array_equal(first.ordinals, second.ordinals)
    assert np.array_equal(first.distances, second.distances)
    assert again.nprobe == one.nprobe
    assert again.memory_bytes == one.memory_bytes


@pytest.mark.parametrize("kind", [VectorType.FLOAT32, VectorType.INT8])
@pytest.mark.parametrize("spec", [FLAT, PQ, OPQ], ids=["flat", "pq", "opq"])
def test_memory_is_known_beforehand(spec, kind):
    space, rows, _ = made(Metric.COSINE, count=900, kind=kind)
    assert planned_bytes(space, 900, spec) == Ivf.build(space, rows, 900, spec=spec).memory_bytes


def test_rows_put_in_list_order_are_shared():
    space, rows, queries = made(Metric.L2)
    ivf = Ivf.build(space, rows, 3000)
    sorted_rows = space.pad(rows[ivf.ordinals, :24])
    moved = ivf.reordered(sorted_rows)
    assert np.shares_memory(moved.scored.codes, sorted_rows)
    assert moved.memory_bytes == ivf.memory_bytes - rows.nbytes == planned_bytes(space, 3000, FLAT, shared_rows=True)
    before, after = ivf.search(queries, 10), moved.search(queries, 10)
    assert np.array_equal(before.distances, after.distances)
    assert np.array_equal(before.ordinals, ivf.ordinals[after.ordinals])
    again = Ivf.from_arrays(space, moved.arrays(), rows=sorted_rows)
    assert np.shares_memory(again.scored.codes, sorted_rows)


def test_lists_of_any_quantizers_codes():
    space, rows, queries = made(Metric.DOT)
    quantizer = train(IndexSpec(quantization="sq4"), space, rows)
    ivf = Ivf.build(space, rows, 3000, quantizer=quantizer)
    wanted = exact(space, rows, queries)
    found = rerank(space, rows, space.aux(rows), queries, ivf.search(queries, 30), 10)
    assert recall(found, wanted) >= 0.95
    again = Ivf.from_arrays(space, ivf.arrays(), quantizer=quantizer)
    assert np.array_equal(again.search(queries, 10).ordinals, ivf.search(queries, 10).ordinals)
    with pytest.raises(ValueError, match="quantizer"):
        Ivf.from_arrays(space, ivf.arrays())
    with pytest.raises(ValueError, match="rows"):
        Ivf.from_arrays(space, Ivf.build(space, rows, 100).arrays())


def test_a_batch_answers_as_its_queries_alone_do():
    space, rows, queries = made(Metric.L2)
    for spec in (FLAT, PQ):
        ivf = Ivf.build(space, rows, 3000, spec=spec)
        whole = ivf.search(queries, 10)
        for q in range(5):
            alone = ivf.search(queries[q:q + 1], 10)
            assert np.array_equal(alone.ordinals[0], whole.ordinals[q])
            assert np.array_equal(alone.distances[0], whole.distances[q])


def test_what_the_caller_says_wins_over_what_was_measured():
    space, rows, queries = made(Metric.L2)
    spec = IndexSpec(kind="ivf_flat", nlist=30, nprobe=4)
    shares = []
    ivf = Ivf.build(space, rows, 3000, spec=spec, on_progress=shares.append)
    assert (ivf.nlist, ivf.nprobe) == (30, 4)
    assert ivf.search(queries, 1).hops == 4 * len(queries)
    assert ivf.search(queries, 1, nprobe=9).hops == 9 * len(queries)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_binary_vectors_are_refused():
    space = Space(Metric.HAMMING, VectorType.BINARY, 64)
    with pytest.raises(Unsupported, match="binary"):
        Ivf.build(space, space.empty(10), 10)


def test_list_counts():
    assert [default_nlist(n) for n in (0, 1, 100, 10_000, 1_000_000)] == [1, 1, 12, 400, 4000]


def test_the_kernel_was_compiled_for_one_set_of_types():
    space, rows, queries = made(Metric.L2)
    rows.flags.writeable = False
    ivf = Ivf.build(space, rows, 500)
    ivf.search(queries, 3, allowed=bitset(np.ones(500, bool)))
    assert len(signatures(search_for("f32.l2"))) == 1
