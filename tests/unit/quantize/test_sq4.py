"""Scalar quantization to 4 bits: reconstruction bounded by the step, scores against float64."""

import numpy as np
import pytest

from tests.oracles import quantizers as oracle
from vecdb.ann.quantize import ScalarQuantizer4
from vecdb.ann.space import Space
from vecdb.core.schema import Metric, VectorType
from vecdb.kernels import sq4 as kernels
from vecdb.kernels._jit import signatures

METRICS = [Metric.L2, Metric.DOT, Metric.COSINE]
DIMS = [1, 3, 17, 64, 100, 784]


def trained(metric, dim, count=300, seed=1, shift=0.5):
    space = Space(metric, VectorType.FLOAT32, dim)
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.2, 3, dim)
    rows = space.encode(rng.standard_normal((count, dim)) * spread + shift)
    queries = space.encode(rng.standard_normal((4, dim)) * spread + shift)
    return ScalarQuantizer4.train(space, rows), rows, queries


@pytest.mark.parametrize("dim", DIMS)
def test_values_inside_the_range_are_kept_to_half_a_step(dim):
    quantizer, rows, _ = trained(Metric.L2, dim)
    codes, aux = quantizer.encode(rows)
    assert codes.shape == (300, quantizer.code_bytes)
    assert aux.shape == (300, 0)
    low = quantizer.mid - 7.5 * quantizer.step
    high = quantizer.mid + 7.5 * quantizer.step
    back = quantizer.reconstruct(codes)
    expected = np.clip(rows, low, high)
    assert np.all(np.abs(back - expected) <= 0.5001 * quantizer.step + 1e-6)
    assert np.mean((rows >= low - 1e-6) & (rows <= high + 1e-6)) > 0.94


def expected_scores(metric, quantizer, codes, rows, queries):
    """The estimate's definition in float64, with the exact query."""
    back = quantizer.reconstruct(codes).astype(np.float64)
    scores = oracle.distances(metric, queries, back)
    if metric is Metric.COSINE:
        scores += (np.square(back).sum(axis=1) - np.square(rows.astype(np.float64)).sum(axis=1))[None] / 2
    elif metric is Metric.DOT:
        scores -= ((rows - back) @ quantizer.mid.astype(np.float64))[None]
    return scores


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", DIMS)
def test_scores_are_the_estimate_up_to_the_querys_rounding(metric, dim):
    quantizer, rows, queries = trained(metric, dim)
    codes, aux = quantizer.encode(rows)
    scores = oracle.scores(quantizer.codes(codes, aux), queries)
    asked = queries - (quantizer.mid if metric is Metric.L2 else 0)
    weights = np.abs(asked * quantizer.step)
    # half a query step on each weight, met by at most 7.5 levels; twice that for l2
    bound = weights.max(axis=1) / 127 * 0.5 * 7.5 * dim * (2 if metric is Metric.L2 else 1)
    error = np.abs(scores - expected_scores(metric, quantizer, codes, rows, queries))
    assert np.all(error <= bound[:, None] + 1e-3)
    assert error.mean() <= 3 * bound.mean() / dim**0.5 + 1e-3


@pytest.mark.parametrize("metric", METRICS)
def test_a_row_is_its_own_nearest_by_score(metric):
    _, rows, _ = trained(Metric.COSINE, 100, shift=0.0)
    quantizer = ScalarQuantizer4.train(Space(metric, VectorType.FLOAT32, 100), rows)
    codes, aux = quantizer.encode(rows)
    scores = oracle.scores(quantizer.codes(codes, aux), rows[:50])
    assert np.mean(scores.argmin(axis=1) == np.arange(50)) > 0.98


def test_constant_dimensions_cost_nothing_and_are_exact():
    space = Space(Metric.L2, VectorType.FLOAT32, 6)
    rows = np.zeros((50, 6), np.float32)
    rows[:, 2] = 7.25
    rows[:, 3] = np.arange(50) / 50
    quantizer = ScalarQuantizer4.train(space, rows)
    back = quantizer.reconstruct(quantizer.encode(rows)[0])
    assert np.all(back[:, [0, 1, 2, 4, 5]] == rows[:, [0, 1, 2, 4, 5]])
    one = ScalarQuantizer4.train(space, rows[:1])
    assert np.array_equal(one.reconstruct(one.encode(rows[:1])[0]), rows[:1])


def test_a_few_outliers_do_not_widen_every_step():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((4000, 4)).astype(np.float32)
    rows[:2] = 9
    quantizer = ScalarQuantizer4.train(Space(Metric.L2, VectorType.FLOAT32, 4), rows)
    whole = (rows.max(axis=0) - rows.min(axis=0)) / 15
    assert np.all(quantizer.step < 0.75 * whole)


def test_each_kernel_was_compiled_for_one_set_of_types():
    quantizer, rows, queries = trained(Metric.L2, 5)
    quantizer.codes(*quantizer.encode(rows)).prepare(queries)
    for entry in (kernels.encode, kernels.prepare):
        assert len(signatures(entry)) == 1, entry
