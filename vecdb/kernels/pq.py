# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"
"""Product quantization: encoding by the nearest centroid of each subspace, scoring by table lookup (ADC).

Jegou, Douze, Schmid: Product Quantization for Nearest Neighbor Search, TPAMI 2011.  A query becomes one table of
256 float32 per subspace, once; a code's distance is then the sum of one entry of each.  The plain loop over it
is what LLVM turns into vector gathers.
"""

import numpy as np

from vecdb.kernels._jit import kernel
from vecdb.kernels._loose import loose
from vecdb.kernels.kmeans import TILE, assign
from vecdb.kernels.registry import register

CENTROIDS = 256
"""Centroids of a codebook: one byte a subspace.  A codebook trained on fewer points repeats its last centroid."""


@loose
def _table_sum(codes, tables, q, i):
    total = np.float32(0.0)
    for m in range(codes.shape[1]):
        total += tables[q, m * CENTROIDS + np.intp(codes[i, m])]
    return total


@loose
def score(codes, aux, qcodes, qaux, q, i):
    """``qaux[q, 0]`` plus the code's entries of the query's tables."""
    return qaux[q, 0] + _table_sum(codes, qcodes, q, i)


@loose
def score_residual(codes, aux, qcodes, qaux, q, i):
    """The same plus the row's own term ``aux[i, 0]`` (see :mod:`vecdb.ann.ivf`)."""
    return qaux[q, 0] + aux[i, 0] + _table_sum(codes, qcodes, q, i)


@kernel("pq.encode")
def encode(points, codebooks_t, half_norms, codes):
    """Write the codes of ``points`` into ``codes``.

    ``points`` float32 (n, subspaces * d); ``codebooks_t`` float32 (subspaces, d, 256), dimension-major;
    ``half_norms`` float32 (subspaces, 256); ``codes`` uint8 (n, subspaces).  Of equal centroids the first wins.
    """
    subspaces, d, _ = codebooks_t.shape
    count = points.shape[0]
    acc = np.empty((4, TILE), np.float32)
    labels = np.empty(count, np.int32)
    scores = np.empty(count, np.float32)
    for m in range(subspaces):
        part = points[:, m * d : (m + 1) * d]
        assign(part, codebooks_t[m], half_norms[m], 0, count, acc, labels, scores)
        for p in range(count):
            codes[p, m] = labels[p]


@kernel("pq.tables")
def fill_tables(queries, codebooks_t, squared, scale, tables):
    """Fill ``tables`` (nq, subspaces * 256) with ``scale * |q_m - c|^2`` if ``squared``, else ``scale * q_m . c``."""
    subspaces, d, _ = codebooks_t.shape
    for q in range(queries.shape[0]):
        for m in range(subspaces):
            table = tables[q, m * CENTROIDS : (m + 1) * CENTROIDS]
            table[:] = np.float32(0.0)
            for i in range(d):
                x = queries[q, m * d + i]
                column = codebooks_t[m, i]
                if squared:
                    for c in range(CENTROIDS):
                        table[c] += scale * (x - column[c]) * (x - column[c])
                else:
                    for c in range(CENTROIDS):
                        table[c] += scale * x * column[c]


register("pq", score, code_dtype=np.uint8, query_dtype=np.float32)
register("pq.residual", score_residual, code_dtype=np.uint8, query_dtype=np.float32)
