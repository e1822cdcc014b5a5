"""K-means on any number of threads with one result.

Lloyd's algorithm from a seeded sample of the points.  Every step is cut into thunks by the data and not by the
number of threads: blocks of points when points look for centroids, ranges of clusters when clusters look for their
mean (summed in float64, in the order of the points).  A cluster that lost all its points takes over a
point far from its centroid.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import frozen
from vecdb.kernels import kmeans as kernels

Run = Callable[[Sequence[Callable[[], None]]], None]
"""Runs thunks to completion, on threads or one by one."""

Floats = npt.NDArray[np.float32]

_BLOCK_POINTS = 4_096
_BLOCK_CLUSTERS = 64


def serial(thunks: Sequence[Callable[[], None]]) -> None:
    """Run thunks one by one, in order."""
    for thunk in thunks:
        thunk()


def blocks(count: int, size: int) -> list[tuple[int, int]]:
    """``count`` places cut into ranges of ``size``, the last one shorter."""
    return [(lo, min(lo + size, count)) for lo in range(0, count, size)]


def assign(points: Floats, centroids: Floats, run: Run = serial) -> tuple[npt.NDArray[np.int32], Floats]:
    """The nearest centroid of each point.

    ``points`` float32 (n, d), ``centroids`` float32 (k, d), both borrowed.  Returns labels int32 (n), the first of
    equally near centroids, and squared distances float32 (n).
    """
    points = frozen(np.asarray(points, np.float32))
    centroids_t, half_norms = (frozen(part) for part in kernels.dimension_major(centroids))
    labels = np.zeros(len(points), np.int32)
    scores = np.zeros(len(points), np.float32)

    def block(lo: int, hi: int) -> Callable[[], None]:
        return lambda: kernels.nearest(points, centroids_t, half_norms, lo, hi, labels, scores)

    run([block(lo, hi) for lo, hi in blocks(len(points), _BLOCK_POINTS)])
    squares = np.einsum("nd,nd->n", points, points)
    return labels, np.maximum(2 * scores + squares, 0).astype(np.float32)


def _update(points: Floats, labels: npt.NDArray[np.int32], centroids: Floats, run: Run) -> npt.NDArray[np.int64]:
    """Move centroids to the means of their clusters, in place; return the clusters' sizes."""
    order = frozen(np.argsort(labels, kind="stable"))
    sizes = np.bincount(labels, minlength=len(centroids)).astype(np.int64)
    starts = frozen(np.concatenate(([0], np.cumsum(sizes))))

    def block(lo: int, hi: int) -> Callable[[], None]:
        return lambda: kernels.cluster_means(points, order, starts, lo, hi, centroids)

    run([block(lo, hi) for lo, hi in blocks(len(centroids), _BLOCK_CLUSTERS)])
    return sizes


def _reseed(points: Floats, far: Floats, sizes: npt.NDArray[np.int64], centroids: Floats) -> bool:
    """Give each empty cluster one of the points farthest from their centroids; return whether any moved."""
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return False
    order = np.argsort(-far, kind="stable")[:len(empty)]
    worth = order[far[order] > 0]
    centroids[empty[:len(worth)]] = points[worth]
    return len(worth) > 0


def refine(points: Floats, centroids: Floats, iterations: int, run: Run = serial) -> Floats:
    """Lloyd's algorithm from given centroids; returns new ones, float32 (k, d)."""
    points = frozen(np.asarray(points, np.float32))
    centroids = np.array(centroids, np.float32, order="C")
    before: npt.NDArray[np.int32] | None = None
    for _ in range(iterations):
        labels, far = assign(points, centroids, run)
        if before is not None and np.array_equal(labels, before):
            break
        sizes = _update(points, labels, centroids, run)
        moved = _reseed(points, far, sizes, centroids)
        before = None if moved else labels
    return centroids


def kmeans(points: Floats, k: int, *, seed: int, iterations: int = 12, run: Run = serial) -> Floats:
    """``k`` centroids float32 (k, d) of ``points`` float32 (n, d), borrowed; n >= 1.

    With fewer points than centroids every point is one, and the last is repeated.  The same points and seed give the
    same centroids on any number of threads.  Source: Lloyd 1982; seeded by a random sample of the points.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(points))[:k])
    start = points[chosen]
    if len(points) <= k:
        return np.concatenate((start, np.repeat(start[-1:], k - len(start), axis=0))).astype(np.float32)
    return refine(points, start, iterations, run)


def as_floats(space: Any, stored: npt.NDArray[Any]) -> Floats:
    """``stored`` (n, row_items or more) as float32 (n, dim), copied, normalised where the space's rows are not."""
    floats = np.array(stored[:, :space.row_items], np.float32, order="C")
    if space.has_aux:
        norms = np.sqrt(np.einsum("nd,nd->n", floats, floats, dtype=np.float64))[:, None]
        floats /= np.where(norms > 0, norms, 1).astype(np.float32)
    return floats
