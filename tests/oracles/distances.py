"""Raw distances in slow NumPy float64, from stored rows: what every exact kernel is held to."""

import numpy as np

from vecdb.ann.space import Space
from vecdb.core.schema import Metric


def raw(space: Space, queries, rows):
    """Raw distances (nq, n) of stored (unpadded or padded) ``queries`` and ``rows``."""
    if space.metric is Metric.HAMMING:
        left, right = (np.unpackbits(np.ascontiguousarray(part), axis=1) for part in (queries, rows))
        return (left[:, None] != right[None]).sum(axis=2).astype(np.float64)
    left, right = np.asarray(queries, np.float64), np.asarray(rows, np.float64)
    if space.metric is Metric.L2:
        return np.square(left[:, None] - right[None]).sum(axis=2)
    dots = left @ right.T
    if space.metric is Metric.DOT:
        return -dots
    if space.is_float:  # rows are normalised as they enter
        return 1 - dots
    norms = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)[None]
    return 1 - np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)


def nearest(distances, k):
    """The ordinals of the k smallest of each row of (nq, n), ties by ordinal, and their distances."""
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


def recall(found, truth):
    """Mean share of ``truth`` (nq, k) that is in the rows of ``found``."""
    return float(np.mean([len(set(a.tolist()) & set(b.tolist())) / len(b) for a, b in zip(found, truth, strict=True)]))


def bitset(flags):
    """The bitset of a boolean array."""
    words = np.zeros((len(flags) + 63) // 64, np.uint64)
    packed = np.packbits(flags, bitorder="little")
    words.view(np.uint8)[:len(packed)] = packed
    return words


def clustered(count, dim, seed, spread=0.35):
    """Float32 vectors in a few dozen clusters: graphs on them behave as on real data, unlike on white noise."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, dim))
    return (centres[rng.integers(0, 40, count)] + spread * rng.normal(size=(count, dim))).astype(np.float32)
