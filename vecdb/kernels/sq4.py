# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"
"""Scalar quantization to 4 bits, two components a byte, scored against an 8-bit query.

A component is ``mid + step * (code - 7.5)`` with ``mid`` and ``step`` of its dimension.  ``step`` folds into the query,
which is then quantized to int8 once; a score is one integer dot product of nibbles (:mod:`vecdb.kernels.lowbit`) and
a float term of the row.  A row of codes: 32 bytes for each 64 dimensions begun, then that float32.
"""

import numpy as np

from vecdb.kernels._jit import kernel
from vecdb.kernels._loose import loose
from vecdb.kernels.lowbit import dot_nibbles, row_float
from vecdb.kernels.registry import register

L2, DOT, COSINE = 0, 1, 2
"""What the row's own term and the query's constants stand for."""


@loose
def score(codes, aux, qcodes, qaux, q, i):
    """Row term + ``qaux[q, 0]`` + ``qaux[q, 1]`` * integer dot product."""
    count = codes.shape[1] - 4
    dot = dot_nibbles(codes, i, qcodes, q, count)
    return row_float(codes, i, count) + qaux[q, 0] + qaux[q, 1] * np.float32(dot)


@loose
def quantize_query(weights, values):
    """Write ``weights`` as int8 into ``values``, symmetric about zero; return (step, sum of the int8 values)."""
    peak = np.float32(0.0)
    for d in range(weights.shape[0]):
        peak = max(peak, abs(weights[d]))
    inverse = np.float32(127.0) / peak if peak > 0 else np.float32(0.0)
    total = 0
    for d in range(weights.shape[0]):
        value = int(np.rint(weights[d] * inverse))
        values[d] = value
        total += value
    return peak / np.float32(127.0), total


@loose
def _row_term(point, mid, centred, kind):
    """The float32 of a row: what the metric needs beside the dot product with the reconstruction ``mid + centred``.

    l2: the reconstruction's squared distance from ``mid``.  cosine: half the difference of the squared norms,
    which makes the estimate exact for a query equal to the reconstruction, where the nearest are.  dot: the
    error's product with ``mid``, so that only the query's part away from ``mid`` meets the error.
    """
    term = 0.0
    for d in range(point.shape[0]):
        back = mid[d] + centred[d]
        if kind == L2:
            term += np.float64(centred[d]) * centred[d]
        elif kind == COSINE:
            term += 0.5 * (np.float64(back) * back - np.float64(point[d]) * point[d])
        else:
            term -= np.float64(mid[d]) * (point[d] - back)
    return np.float32(term)


@kernel("sq4.encode")
def encode(points, mid, step, kind, codes, terms):
    """Write the packed codes of ``points`` into ``codes`` and the rows' own terms into ``terms``.

    ``points`` float32 (n, dim); ``mid``, ``step`` float32 (dim), step 0 where a dimension is constant; ``codes`` uint8
    (n, 32 a 64 dimensions), zeroed; ``terms`` float32 (n).
    """
    dim = points.shape[1]
    centred = np.empty(dim, np.float32)
    for p in range(points.shape[0]):
        for d in range(dim):
            code = 0
            if step[d] > 0:
                level = np.rint((points[p, d] - mid[d]) / step[d] + np.float32(7.5))
                code = int(min(max(level, np.float32(0.0)), np.float32(15.0)))
            centred[d] = step[d] * (np.float32(code) - np.float32(7.5))
            inside = d & 63
            codes[p, (d >> 6) * 32 + (inside & 31)] |= np.uint8(code << (4 if inside >= 32 else 0))
        terms[p] = _row_term(points[p], mid, centred, kind)


@kernel("sq4.prepare")
def prepare(queries, mid, step, kind, qcodes, qaux):
    """Fill ``qcodes`` int8 (nq, 64 a 64 dimensions; zeroed) and ``qaux`` float32 (nq, 2) for :func:`score`."""
    dim = queries.shape[1]
    weights = np.empty(dim, np.float32)
    for q in range(queries.shape[0]):
        constant = 1.0 if kind == COSINE else 0.0
        for d in range(dim):
            x = queries[q, d]
            if kind == L2:
                x -= mid[d]
                constant += np.float64(x) * x
            else:
                constant -= np.float64(x) * mid[d]
            weights[d] = x * step[d]
        delta, total = quantize_query(weights, qcodes[q])
        factor = np.float32(2.0) if kind == L2 else np.float32(1.0)
        qaux[q, 0] = constant + factor * delta * np.float32(7.5) * total
        qaux[q, 1] = -factor * delta


register("sq4", score, code_dtype=np.uint8, query_dtype=np.int8)
