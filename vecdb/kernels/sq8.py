# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""Scalar quantization to 8 bits, scored against an 8-bit query: the codes that graphs are walked on by default.

A component is ``mid + step * (code - 128)`` with ``mid`` and ``step`` of its dimension.  ``step`` folds into the query,
which is then quantized to int8 once, so that a score is one dot product of bytes (``vpdpbusd`` where the host has it:
64 products an instruction) and a constant of the query.  l2 also needs the row's own squared length about ``mid``: it
stands in the last four bytes of the row, so that a score touches no other memory.  Rows are padded with zeros to
whole 64-byte lines; the query is zero there and over the row's term.
"""

import numpy as np
from numba import carray

from vecdb.kernels import simd
from vecdb.kernels._jit import inline, kernel
from vecdb.kernels._loose import loose
from vecdb.kernels.lone import formed
from vecdb.kernels.lowbit import row_float
from vecdb.kernels.registry import register

TERM_BYTES = 4


@inline
def _l2(codes, aux, qcodes, qaux, q, i):
    dot = np.float32(simd.dot_u8_i8(codes, i, qcodes, q))
    return row_float(codes, i, codes.shape[1] - TERM_BYTES) + qaux[q, 0] + qaux[q, 1] * dot


@inline
def _dot(codes, aux, qcodes, qaux, q, i):
    return qaux[q, 0] + qaux[q, 1] * np.float32(simd.dot_u8_i8(codes, i, qcodes, q))


@kernel("sq8.encode")
def encode(points, mid, step, codes, terms):
    """Write the codes of ``points`` float32 (n, dim) into ``codes`` uint8 (n, >= dim) and the rows' terms.

    ``mid``, ``step`` float32 (dim), step 0 where a dimension is constant.  ``terms`` float32 (n): squared length of
    the reconstruction about ``mid``.
    """
    dim = points.shape[1]
    for p in range(points.shape[0]):
        term = 0.0
        for d in range(dim):
            code = np.float32(128)
            if step[d] > 0:
                code = np.rint((points[p, d] - mid[d]) / step[d]) + np.float32(128)
                code = min(max(code, np.float32(0)), np.float32(255))
            codes[p, d] = np.uint8(code)
            centred = np.float64(step[d]) * (np.float64(code) - 128.0)
            term += centred * centred
        terms[p] = np.float32(term)


@loose
def _prepare(query, mid, step, is_l2, constant, weights, qcodes, qaux):
    # Sums stand in loops that store nothing: where LLVM finds a store it looks at run time whether the arrays may meet,
    # takes the plain loop if they lie close to each other, and adds in another order.
    dim = mid.shape[0]
    offset = np.float32(0)
    if is_l2:
        for d in range(dim):
            x = query[d] - mid[d]
            offset += x * x
        for d in range(dim):
            weights[d] = (query[d] - mid[d]) * step[d]
    else:
        for d in range(dim):
            offset -= query[d] * mid[d]
        for d in range(dim):
            weights[d] = query[d] * step[d]
    # the largest magnitude through the bits, whose order is that of the magnitudes: integers vectorize, NaN or not
    bits = weights.view(np.int32)
    largest = np.int32(0)
    for d in range(dim):
        largest = max(largest, bits[d] & np.int32(0x7FFFFFFF))
    bits[0], largest = largest, bits[0]
    peak = weights[0]
    bits[0] = largest
    scale = np.float32(127) / peak if peak > 0 else np.float32(0)
    total = np.int32(0)
    for d in range(dim):
        value = np.int32(np.rint(weights[d] * scale))
        qcodes[d] = value
        total += value
    factor = (2.0 if is_l2 else 1.0) * np.float64(peak) / 127.0
    qaux[0] = constant + np.float64(offset) + factor * 128.0 * total
    qaux[1] = -factor


@kernel("sq8.prepare")
def prepare(queries, mid, step, is_l2, constant, weights, qcodes, qaux):
    """Fill ``qcodes`` int8 (nq, width; zero beyond dim) and ``qaux`` float32 (nq, 2) for the scorers.

    ``queries`` float32 (nq, dim or more); ``constant``: what the similarity is subtracted from; ``weights``: scratch
    float32 (dim).
    """
    for q in range(queries.shape[0]):
        _prepare(queries[q], mid, step, is_l2, constant, weights, qcodes[q], qaux[q])


@kernel("sq8.prepare_one")
def prepare_one(plan):
    """As :func:`prepare` for one query; ``plan`` int64 (9): dim, whether l2, whether the constant is 1, and the
    addresses of query, mid, step, weights, qcodes and qaux."""
    dim = plan[0]
    _prepare(carray(simd.pointer(plan[3]), (dim,), np.float32), carray(simd.pointer(plan[4]), (dim,), np.float32),
             carray(simd.pointer(plan[5]), (dim,), np.float32), plan[1] != 0, np.float64(plan[2]),
             carray(simd.pointer(plan[6]), (dim,), np.float32), carray(simd.pointer(plan[7]), (dim,), np.int8),
             carray(simd.pointer(plan[8]), (2,), np.float32))


@kernel("sq8.form_and_prepare")
def form_and_prepare(form, plan):
    """:func:`vecdb.kernels.lone.formed`, then :func:`prepare_one` of the same query; False: nothing was prepared."""
    if not formed(form):
        return False
    dim = plan[0]
    _prepare(carray(simd.pointer(plan[3]), (dim,), np.float32), carray(simd.pointer(plan[4]), (dim,), np.float32),
             carray(simd.pointer(plan[5]), (dim,), np.float32), plan[1] != 0, np.float64(plan[2]),
             carray(simd.pointer(plan[6]), (dim,), np.float32), carray(simd.pointer(plan[7]), (dim,), np.int8),
             carray(simd.pointer(plan[8]), (2,), np.float32))
    return True


register("sq8.l2", _l2, code_dtype=np.uint8, query_dtype=np.int8)
register("sq8.dot", _dot, code_dtype=np.uint8, query_dtype=np.int8)
