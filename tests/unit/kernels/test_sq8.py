"""8-bit codes: what encode and prepare write, and how near a score is to the exact distance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import distances as oracle
from vecdb.ann import flat
from vecdb.ann.codes import QuickCodes, RowCodes
from vecdb.ann.quantize.sq8 import ScalarQuantizer8
from vecdb.ann.space import Space
from vecdb.core.schema import Metric, VectorType


def scores(codes, queries, count):
    """All raw scores (nq, count), by ordinal."""
    found = flat.scan(codes, queries, k=count)
    assert np.sort(found.ordinals, axis=1).tolist() == [list(range(count))] * len(queries)
    out = np.empty_like(found.distances)
    np.put_along_axis(out, found.ordinals.astype(np.int64), found.distances, axis=1)
    return out


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
@settings(max_examples=15, deadline=None)
@given(dim=st.integers(1, 200), seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["float32", "float16", "int8"]))
def test_scores_are_the_distances_of_the_reconstruction_to_the_query(metric, dim, seed, kind):
    space = Space(Metric(metric), VectorType(kind), dim)
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.1, 5, dim) * (20 if kind == "int8" else 1)
    stored = space.encode((rng.normal(size=(60, dim)) * scale).astype(np.float32))
    quantizer = ScalarQuantizer8.train(space, stored)
    codes, aux = quantizer.encode(stored)
    assert codes.shape == (60, quantizer.code_bytes)
    assert quantizer.code_bytes % 64 == 0
    points = stored.astype(np.float64)
    if metric == "cosine":
        norms = np.linalg.norm(points, axis=1, keepdims=True)
        points /= np.where(norms > 0, norms, 1)
    # half a step where the range was not cut, and no more than what the cut tails lose
    error = np.abs(quantizer.reconstruct(codes) - points)
    assert np.median(error / np.where(quantizer.step > 0, quantizer.step, 1)) <= 0.51
    wide = Space(Metric(metric), VectorType.FLOAT32, dim)
    truth = oracle.raw(wide, points[:4], quantizer.reconstruct(codes))
    queried = quantizer.step * np.abs(points[:4] - (quantizer.mid if metric == "l2" else 0)).max()
    bound = 2 * 128 * np.abs(queried).sum() / 254 * 2 + 1e-4 * np.abs(truth).max() + 1e-5
    assert np.abs(scores(quantizer.codes(codes, aux), stored[:4], 60) - truth).max() <= bound


def test_whole_numbers_within_a_byte_are_kept_without_loss():
    space = Space(Metric.L2, VectorType.FLOAT32, 30)
    stored = np.random.default_rng(3).integers(0, 256, (500, 30)).astype(np.float32)
    stored[0], stored[1] = 0, 255
    quantizer = ScalarQuantizer8.train(space, stored)
    np.testing.assert_allclose(quantizer.reconstruct(quantizer.encode(stored)[0]), stored, atol=1e-3)


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
def test_a_single_query_is_prepared_as_among_many(metric):
    space = Space(Metric(metric), VectorType.FLOAT32, 50)
    stored = space.encode(oracle.clustered(100, 50, 5))
    quantizer = ScalarQuantizer8.train(space, stored)
    codes = quantizer.codes(*quantizer.encode(stored))
    rows = RowCodes(space, space.pad(stored), np.zeros(0, np.float32))
    for source in (codes, rows):
        assert isinstance(source, QuickCodes)
        many = source.prepare(stored[:5])
        one = source.prepare(stored[:1])
        buffers = one.codes.copy(), one.aux.copy()
        preparer = source.preparer(*buffers)
        for q in range(5):
            preparer(stored[q:q + 1])
            assert (buffers[0] == many.codes[q]).all()
            np.testing.assert_allclose(buffers[1][0], many.aux[q], rtol=1e-6)


def test_state_makes_the_same_quantizer_and_constant_dimensions_cost_nothing():
    space = Space(Metric.COSINE, VectorType.FLOAT32, 10)
    stored = space.encode(oracle.clustered(300, 10, 6))
    stored[:, 4] = 0.25
    quantizer = ScalarQuantizer8.train(space, stored)
    again = ScalarQuantizer8.from_state(space, quantizer.state())
    assert (again.encode(stored)[0] == quantizer.encode(stored)[0]).all()
    assert quantizer.step[4] == 0
    assert quantizer.reconstruct(quantizer.encode(stored)[0])[:, 4].tolist() == [0.25] * 300
