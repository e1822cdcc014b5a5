"""K-means and its kernels against the slow way, and the same on any number of threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.oracles import quantizers as oracle
from vecdb.ann.quantize.kmeans import assign, kmeans, refine
from vecdb.ann.quantize.rotation import matmul
from vecdb.kernels import kmeans as kernels
from vecdb.kernels._jit import signatures


def on_threads(thunks):
    """Runs thunks on four threads, last first."""
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(thunk) for thunk in reversed(thunks)]:
            future.result()


def normal(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dim", [1, 3, 17, 100, 784])
@pytest.mark.parametrize(("points", "clusters"), [(1, 1), (3, 5), (257, 16), (130, 300)])
def test_nearest_centroid_is_the_exact_one(dim, points, clusters):
    x, c = normal((points, dim), 1), normal((clusters, dim), 2)
    labels, squares = assign(x, c)
    exact = oracle.nearest(x, c)
    chosen = exact[np.arange(points), labels]
    np.testing.assert_allclose(chosen, exact.min(axis=1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(squares, chosen, rtol=1e-3, atol=1e-3 * dim**0.5)


def test_the_first_of_equal_centroids_wins():
    c = np.repeat(normal((4, 5), 3), 100, axis=0)
    labels, _ = assign(normal((50, 5), 4), c)
    assert set(labels) <= {0, 100, 200, 300}


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 17), (9, 100, 64), (3, 33, 300)])
def test_products_agree_with_float64(shape):
    n, d, k = shape
    a, b = normal((n, d), 1), normal((d, k), 2)
    np.testing.assert_allclose(matmul(a, b), a.astype(np.float64) @ b, rtol=1e-4, atol=1e-4)


def test_a_row_alone_has_the_bits_it_has_among_others():
    a, b = normal((7, 40), 1), normal((40, 48), 2)
    together = matmul(a, b)
    for row in range(7):
        assert np.array_equal(matmul(a[row:row + 1], b)[0], together[row])


def test_lloyd_steps_are_the_textbooks():
    x = np.concatenate([normal((60, 6), seed) + 8 * seed for seed in range(4)])
    start = x[[0, 60, 120, 180]]
    np.testing.assert_allclose(refine(x, start, 3), oracle.lloyd(x, start, 3), rtol=1e-4, atol=1e-4)


def test_clustering_lowers_the_loss_of_a_sample_and_uses_every_centroid():
    x = normal((2000, 8), 5)
    centroids = kmeans(x, 64, seed=1)
    labels, far = assign(x, centroids)
    _, far_before = assign(x, x[:64])
    assert far.mean() < 0.8 * far_before.mean()
    assert len(np.unique(labels)) == 64


def test_empty_clusters_take_over_far_points():
    x = np.concatenate((np.zeros((500, 3), np.float32), normal((20, 3), 6) + 50))
    labels, far = assign(x, kmeans(x, 16, seed=2))
    assert len(np.unique(labels)) >= 12
    assert far.max() < 3


@pytest.mark.parametrize("points", [1, 2, 255])
def test_fewer_points_than_centroids_are_all_kept(points):
    x = normal((points, 4), 7)
    centroids = kmeans(x, 256, seed=0)
    assert centroids.shape == (256, 4)
    assert assign(x, centroids)[1].max() < 1e-6


def test_constant_points_give_constant_centroids():
    centroids = kmeans(np.full((1000, 5), 3.5, np.float32), 32, seed=0)
    assert np.all(centroids == np.float32(3.5))


def test_threads_do_not_change_a_bit():
    x = normal((20_000, 12), 8)
    one = kmeans(x, 200, seed=3, iterations=4)
    many = kmeans(x, 200, seed=3, iterations=4, run=on_threads)
    assert np.array_equal(one, many)
    assert not np.array_equal(one, kmeans(x, 200, seed=4, iterations=4))


def test_each_kernel_was_compiled_for_one_set_of_types():
    assign(normal((5, 3), 1), normal((4, 3), 2))
    refine(normal((9, 3), 1), normal((4, 3), 2), 1)
    matmul(normal((5, 3), 1), normal((3, 16), 2))
    for entry in (kernels.nearest, kernels.cluster_means, kernels.products):
        assert len(signatures(entry)) == 1, entry
