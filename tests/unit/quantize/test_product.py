"""Product quantization: codes, tables and scores against float64; rotations; odd shapes."""

import numpy as np
import pytest

from tests.oracles import quantizers as oracle
from vecdb.ann.quantize import ProductQuantizer
from vecdb.ann.quantize.pq import layout
from vecdb.ann.quantize.rotation import learn, rotate
from vecdb.ann.space import Space
from vecdb.core.schema import Metric, VectorType
from vecdb.kernels import pq as kernels
from vecdb.kernels._jit import signatures

METRICS = [Metric.L2, Metric.DOT, Metric.COSINE]


def space_of(metric, dim, kind=VectorType.FLOAT32):
    return Space(metric, kind, dim)


def stored(space, count, seed):
    vectors = np.random.default_rng(seed).standard_normal((count, space.dim))
    return space.encode(vectors * (40 if not space.is_float else 1) + (100 if space.vector_type == "uint8" else 0))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("dim", "subspaces"), [(1, 0), (3, 2), (17, 0), (100, 0), (100, 33), (784, 98)])
def test_scores_are_distances_to_the_reconstruction(metric, dim, subspaces):
    space = space_of(metric, dim)
    rows, queries = stored(space, 300, 1), stored(space, 4, 2)
    quantizer = ProductQuantizer.train(space, rows, subspaces)
    codes, aux = quantizer.encode(rows)
    assert codes.shape == (300, quantizer.code_bytes)
    assert aux.shape == (300, 0)
    back = quantizer.reconstruct(codes).astype(np.float64)
    exact = oracle.distances(metric, queries, back)
    if metric is Metric.COSINE:
        exact = oracle.distances("l2", queries, back) / 2
    scores = oracle.scores(quantizer.codes(codes, aux), queries)
    np.testing.assert_allclose(scores, exact, rtol=1e-4, atol=1e-4 * dim**0.5)


@pytest.mark.parametrize(("dim", "subspaces"), [(3, 2), (17, 5), (64, 16)])
def test_codes_are_the_nearest_centroids(dim, subspaces):
    space = space_of(Metric.L2, dim)
    rows = stored(space, 400, 3)
    quantizer = ProductQuantizer.train(space, rows, subspaces)
    codes, _ = quantizer.encode(rows)
    cut = quantizer.books.cut
    padded = np.zeros((400, cut.padded))
    padded[:, :dim] = rows
    for m in range(cut.subspaces):
        exact = oracle.nearest(padded[:, m * cut.width:(m + 1) * cut.width], quantizer.books.centroids[m])
        chosen = exact[np.arange(400), codes[:, m]]
        np.testing.assert_allclose(chosen, exact.min(axis=1), atol=1e-4)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("count", [1, 2, 100, 255])
def test_a_sample_smaller_than_the_codebook_is_kept_without_loss(rotated, count):
    space = space_of(Metric.L2, 10)
    rows = stored(space, count, 4)
    quantizer = ProductQuantizer.train(space, rows, 5, rotated=rotated)
    codes, _ = quantizer.encode(rows)
    np.testing.assert_allclose(quantizer.reconstruct(codes), rows, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", [VectorType.FLOAT16, VectorType.INT8, VectorType.UINT8])
def test_stored_types_are_quantized_as_their_values(metric, kind):
    space = space_of(metric, 20, kind)
    rows, queries = stored(space, 500, 5), stored(space, 3, 6)
    quantizer = ProductQuantizer.train(space, rows, 10)
    codes, aux = quantizer.encode(space.pad(rows))
    scores = oracle.scores(quantizer.codes(codes, aux), queries)
    floats, asked = rows.astype(np.float64), queries.astype(np.float64)
    if metric is Metric.COSINE:
        floats /= np.linalg.norm(floats, axis=1, keepdims=True)
        asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    exact = oracle.distances(metric, asked, floats)
    assert np.corrcoef(scores.ravel(), exact.ravel())[0, 1] > 0.98


def test_constant_and_zero_vectors():
    for value in (0.0, 2.5):
        space = space_of(Metric.L2, 9)
        rows = np.full((400, 9), value, np.float32)
        quantizer = ProductQuantizer.train(space, rows, rotated=True)
        codes, aux = quantizer.encode(rows)
        np.testing.assert_allclose(quantizer.reconstruct(codes), rows, atol=1e-4)
        assert np.isfinite(oracle.scores(quantizer.codes(codes, aux), rows[:2])).all()


def test_more_subspaces_lose_less():
    space = space_of(Metric.L2, 32)
    rows = stored(space, 2000, 7)
    losses = []
    for subspaces in (4, 8, 16):
        quantizer = ProductQuantizer.train(space, rows, subspaces)
        losses.append(np.square(quantizer.reconstruct(quantizer.encode(rows)[0]) - rows).mean())
    assert losses[0] > 1.2 * losses[1] > 1.4 * losses[2]


def test_the_rotation_is_orthogonal_and_pays_on_correlated_dimensions():
    rng = np.random.default_rng(8)
    mixed = rng.standard_normal((3000, 6)) @ rng.standard_normal((6, 24)) + 0.05 * rng.standard_normal((3000, 24))
    space = space_of(Metric.L2, 24)
    rows = space.encode(mixed)
    plain = ProductQuantizer.train(space, rows, 6)
    turned = ProductQuantizer.train(space, rows, 6, rotated=True)
    matrix = turned.books.rotation[0].astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(24), atol=1e-5)
    loss = [np.square(q.reconstruct(q.encode(rows)[0]) - rows).mean() for q in (plain, turned)]
    assert loss[1] < 0.8 * loss[0], loss


def test_a_rotation_in_blocks_turns_each_block_by_itself():
    cut = layout(2100, 300, rotated=True)
    assert cut.blocks == 3
    assert cut.subspaces % 3 == 0
    assert cut.padded >= 2100
    assert cut.padded // cut.blocks <= 1024
    points = np.random.default_rng(9).standard_normal((50, 12)).astype(np.float32)
    blocks = np.stack([learn(points[:, :6], 3, 0), learn(points[:, 6:], 3, 0)])
    whole = rotate(points, blocks).astype(np.float64)
    np.testing.assert_allclose(whole[:, :6], points[:, :6] @ blocks[0].astype(np.float64), atol=1e-5)
    np.testing.assert_allclose(whole[:, 6:], points[:, 6:] @ blocks[1].astype(np.float64), atol=1e-5)


@pytest.mark.parametrize(("dim", "subspaces", "expected"), [
    (1, 0, (1, 1)), (3, 0, (1, 3)), (17, 0, (5, 4)), (100, 0, (25, 4)), (784, 0, (196, 4)), (5, 9, (5, 1)),
    (10, 4, (4, 3))])
def test_layouts(dim, subspaces, expected):
    cut = layout(dim, subspaces)
    assert (cut.subspaces, cut.width) == expected
    assert cut.padded >= dim


def test_each_kernel_was_compiled_for_one_set_of_types():
    space = space_of(Metric.L2, 8)
    rows = stored(space, 20, 1)
    quantizer = ProductQuantizer.train(space, rows)
    quantizer.codes(*quantizer.encode(rows)).prepare(rows[:2])
    for entry in (kernels.encode, kernels.fill_tables):
        assert len(signatures(entry)) == 1, entry
