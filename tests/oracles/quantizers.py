"""What quantizers compute, slowly, in NumPy float64; and every score of a family's scorer, for comparison."""

from collections.abc import Callable
from typing import Any

import numpy as np

from vecdb.ann.codes import Codes
from vecdb.kernels._jit import kernel
from vecdb.kernels.registry import Family, made

L2, DOT, COSINE = "l2", "dot", "cosine"


def distances(metric: str, queries, rows):
    """Raw distances (nq, n); rows and queries are normalised already where the metric is cosine."""
    queries, rows = np.asarray(queries, np.float64), np.asarray(rows, np.float64)
    if metric == L2:
        return np.square(queries[:, None] - rows[None]).sum(axis=2)
    return (1.0 if metric == COSINE else 0.0) - queries @ rows.T


def nearest(points, centroids):
    """Squared distances (n, k) in float64."""
    return distances(L2, points, centroids)


def lloyd(points, centroids, iterations):
    """Lloyd's algorithm without the re-seeding of empty clusters."""
    centroids = np.array(centroids, np.float64)
    for _ in range(iterations):
        labels = nearest(points, centroids).argmin(axis=1)
        for c in range(len(centroids)):
            if (labels == c).any():
                centroids[c] = np.asarray(points, np.float64)[labels == c].mean(axis=0)
    return centroids


def hadamard(size):
    """The orthogonal Walsh-Hadamard matrix (Sylvester's order)."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / np.sqrt(size)


def rotation(signs):
    """The matrix P of RaBitQ's rotation, from its signs (rounds, D): a turned vector is ``P @ x``."""
    size = signs.shape[1]
    power = 1 << (size.bit_length() - 1)
    half = size // 2
    kac = np.eye(size)
    if power < size:
        eye = np.eye(half)
        kac = np.block([[eye, eye], [eye, -eye]]) * np.sqrt(0.5)
    whole = np.eye(size)
    for r, row in enumerate(np.asarray(signs, np.float64)):
        transform = np.eye(size)
        place = slice(0, power) if r % 2 == 0 else slice(size - power, size)
        transform[place, place] = hadamard(power)
        whole = kac @ transform @ np.diag(row) @ whole
    return whole


def rabitq_values(codes, bits, size):
    """The grid values (n, size) of packed codes, and their two floats (n, 2)."""
    raw = np.ascontiguousarray(codes).view(np.uint8).reshape(len(codes), -1)
    terms = np.ascontiguousarray(raw[:, -8:]).view(np.float32).astype(np.float64)
    raw = raw[:, :-8]
    if bits == 8:
        return raw[:, :size].astype(np.int64), terms
    if bits == 4:
        blocks = raw.reshape(len(raw), -1, 32)
        return np.concatenate((blocks & 15, blocks >> 4), axis=2).reshape(len(raw), size).astype(np.int64), terms
    planes = np.unpackbits(raw.reshape(len(raw), bits, size // 8), axis=2, bitorder="little").astype(np.int64)
    return (planes << np.arange(bits)[None, :, None]).sum(axis=1), terms


def rabitq_scores(metric, queries, centre, signs, bits, values, rows):
    """The estimates (nq, n) from grid values and the exact query: factors worked out again from the rows."""
    turn = rotation(signs)
    size = len(turn)

    def turned(vectors):
        wide = np.zeros((len(vectors), size))
        wide[:, :vectors.shape[1]] = np.asarray(vectors, np.float64) - centre
        return wide @ turn.T

    grid = values - (2**bits - 1) / 2
    residuals, asked = turned(rows), turned(queries)
    square = np.square(residuals).sum(axis=1)
    along = (grid * residuals).sum(axis=1)
    factor = np.where(square > 0, square / np.where(along > 0, along, 1), 0)
    product = (asked @ grid.T) * factor
    if metric == L2:
        return np.square(asked).sum(axis=1)[:, None] + square[None] - 2 * product
    centre = np.asarray(centre, np.float64)
    constant = (1.0 if metric == COSINE else 0.0) - np.asarray(queries, np.float64) @ centre
    shift = (np.asarray(rows, np.float64) - centre) @ centre
    return constant[:, None] - shift[None] - product


def _make_scores(family: Family) -> Callable[..., Any]:
    score = family.score

    @kernel(f"tests.scores.{family.name}")
    def scores(codes, aux, qcodes, qaux, out):
        for q in range(out.shape[0]):
            for i in range(out.shape[1]):
                out[q, i] = score(codes, aux, qcodes, qaux, q, i)

    return scores


def scores(codes: Codes, queries):
    """Every score (nq, n) of a family's compiled scorer."""
    prepared = codes.prepare(queries)
    out = np.zeros((len(queries), len(codes.codes)), np.float32)
    made("tests.scores", codes.family, _make_scores)(codes.codes, codes.aux, prepared.codes, prepared.aux, out)
    return out
