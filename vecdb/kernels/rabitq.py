# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"
"""RaBitQ: codes of 1 to 8 bits a dimension with an unbiased estimate of the inner product.

Gao, Long: RaBitQ, SIGMOD 2024; Gao et al.: Practical and Asymptotically Optimal Quantization (extended RaBitQ),
SIGMOD 2025.  A row less the centre, ``r``, is turned by a random orthogonal ``P`` and rounded to the grid
``x = u - (2^bits - 1) / 2``, ``u`` in 0..2^bits - 1, whose direction is nearest to its own.  For a query's turned
residual ``v``

    <r, P^T v>  is estimated by  <x, v> |r|^2 / <x, P r>,

without bias over ``P``, with an error of order |r| |v| / sqrt(D).  Two floats a row carry everything that does not
depend on the query; the metric is folded into them.  The rotation is random signs, a Walsh-Hadamard transform of the
greatest power of two that fits (at the front, then at the back), and one Kac step over the two halves,
four to six times: O(D log D), and exactly orthogonal.

A row of codes: bit planes of 64 dimensions a word (uint64; 1, 2, 3, 5, 6, 7 bits), or nibbles or bytes (uint8; 4 and 8
bits) which an integer dot product reads faster; then the two float32.
"""

import math

import numpy as np

from vecdb.kernels._jit import kernel
from vecdb.kernels._loose import loose
from vecdb.kernels.lowbit import dot_bytes, dot_nibbles, planes_dot, row_float
from vecdb.kernels.registry import register
from vecdb.kernels.sq4 import quantize_query

L2, DOT, COSINE = 0, 1, 2

GAUSSIAN_STEPS = np.array([0.0, 1.596, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308], np.float32)
"""Best uniform step for a normal variable, in its deviations, by bits (Max 1960): a turned row is nearly normal."""

_SPREAD = (0.75, 0.85, 0.95, 1.0, 1.1, 1.25, 1.5)
_REFINEMENTS = 3
_TINY = 1e-60
"""Squared norm below which a row is its centre: its steps would underflow."""


def _score_planes(bits):
    """The scorer of ``bits`` bit planes: a constant number of them, so that their loop is unrolled."""
    dot_planes = planes_dot(bits)

    @loose
    def score(codes, aux, qcodes, qaux, q, i):
        dot = dot_planes(codes, i, qcodes, q, qcodes.shape[1] >> 3)
        end = (codes.shape[1] - 1) * 8
        estimate = qaux[q, 1] * np.float32(dot) - qaux[q, 2]
        return row_float(codes, i, end) + row_float(codes, i, end + 4) * estimate + qaux[q, 0]

    return score


@loose
def score_nibbles(codes, aux, qcodes, qaux, q, i):
    """Two 4-bit components a byte."""
    end = codes.shape[1] - 8
    estimate = qaux[q, 1] * np.float32(dot_nibbles(codes, i, qcodes, q, end)) - qaux[q, 2]
    return row_float(codes, i, end) + row_float(codes, i, end + 4) * estimate + qaux[q, 0]


@loose
def score_bytes(codes, aux, qcodes, qaux, q, i):
    """One 8-bit component a byte."""
    end = codes.shape[1] - 8
    estimate = qaux[q, 1] * np.float32(dot_bytes(codes, i, qcodes, q, end)) - qaux[q, 2]
    return row_float(codes, i, end) + row_float(codes, i, end + 4) * estimate + qaux[q, 0]


@loose
def _hadamard(x):
    """Walsh-Hadamard transform of ``x`` (length a power of two) in place, scaled to be orthogonal."""
    n = x.shape[0]
    h = 1
    while h < n:
        for i in range(0, n, 2 * h):
            front, back = x[i : i + h], x[i + h : i + 2 * h]
            for j in range(h):
                a, b = front[j], back[j]
                front[j] = a + b
                back[j] = a - b
        h *= 2
    scale = np.float32(1.0 / math.sqrt(n))
    for i in range(n):
        x[i] *= scale


@loose
def turn(x, signs):
    """Rotate ``x`` float32 (D), D a multiple of 64, in place, by ``signs`` float32 (rounds, D)."""
    size = x.shape[0]
    power = 64
    while power * 2 <= size:
        power *= 2
    root = np.float32(math.sqrt(0.5))
    half = size // 2
    for r in range(signs.shape[0]):
        for i in range(size):
            x[i] *= signs[r, i]
        _hadamard(x[:power] if r % 2 == 0 else x[size - power :])
        if power < size:
            front, back = x[:half], x[half:]
            for i in range(half):
                a, b = front[i], back[i]
                front[i] = (a + b) * root
                back[i] = (a - b) * root


@loose
def _levels(x, step, top, out):
    """Round ``x / step`` to the half-integer grid of ``top + 1`` levels in ``out``; return (<out, x>, <out, out>)."""
    limit = np.float32(top) * np.float32(0.5)
    inverse = np.float32(1.0) / step
    along, square = np.float32(0.0), np.float32(0.0)
    for i in range(x.shape[0]):
        level = np.floor(x[i] * inverse) + np.float32(0.5)
        level = min(max(level, -limit), limit)
        out[i] = level
        along += level * x[i]
        square += level * level
    return along, square


@loose
def _round_row(x, norm, bits, out):
    """Find the grid point whose direction is nearest to ``x``'s (a search over steps, then Lloyd's alternation).

    Extended RaBitQ finds the optimum by sorting 2^bits D thresholds a row; the search comes within 0.1 % of it.
    """
    top = (1 << bits) - 1
    deviation = np.float32(norm / math.sqrt(x.shape[0]))
    best, best_step = np.float32(-1.0), deviation
    if bits > 1:
        for spread in _SPREAD:
            step = deviation * GAUSSIAN_STEPS[bits] * np.float32(spread)
            along, square = _levels(x, step, top, out)
            quality = along * along / square
            if quality > best:
                best, best_step = quality, step
        for _ in range(_REFINEMENTS):
            along, square = _levels(x, best_step, top, out)
            step = along / square
            along, square = _levels(x, step, top, out)
            if along * along / square <= best:
                break
            best, best_step = along * along / square, step
    along, _ = _levels(x, best_step, top, out)
    return along


@kernel("rabitq.encode")
def encode(points, centre, signs, bits, kind, values, terms):
    """Write the grid values ``u`` of ``points`` into ``values`` and the rows' two floats into ``terms``.

    ``points`` float32 (n, dim); ``centre`` float32 (dim); ``signs`` float32 (rounds, D); ``values`` uint8 (n, D);
    ``terms`` float32 (n, 2): what is added, and what multiplies the dot product.
    """
    dim, size = points.shape[1], signs.shape[1]
    x = np.empty(size, np.float32)
    out = np.empty(size, np.float32)
    middle = np.float32(0.5) * np.float32((1 << bits) - 1)
    for p in range(points.shape[0]):
        square, shift = 0.0, 0.0
        x[dim:] = np.float32(0.0)
        for d in range(dim):
            x[d] = points[p, d] - centre[d]
            square += np.float64(x[d]) * x[d]
            shift += np.float64(x[d]) * centre[d]
        factor = 0.0
        out[:] = -middle
        if square > _TINY:
            turn(x, signs)
            along = np.float64(_round_row(x, math.sqrt(square), bits, out))
            factor = square / along if along > 0.0 else 0.0
        for i in range(size):
            values[p, i] = np.uint8(out[i] + middle)
        terms[p, 0] = square if kind == L2 else -shift
        terms[p, 1] = -2.0 * factor if kind == L2 else -factor


@kernel("rabitq.planes")
def pack_planes(values, bits, codes):
    """Pack ``values`` uint8 (n, D) into bit planes ``codes`` uint64 (n, >= bits * D / 64), zeroed, least first."""
    words = values.shape[1] >> 6
    for p in range(values.shape[0]):
        for i in range(values.shape[1]):
            value = np.uint64(values[p, i])
            for b in range(bits):
                bit = (value >> np.uint64(b)) & np.uint64(1)
                codes[p, b * words + (i >> 6)] |= bit << np.uint64(i & 63)


@kernel("rabitq.prepare")
def prepare(queries, centre, signs, bits, kind, values, qaux):
    """Turn and quantize queries: ``values`` int8 (nq, D) and ``qaux`` float32 (nq, 3) for the scorers.

    Rounding is to the nearest and not random as in the paper: at 8 bits its bias is far below the code's error.
    """
    dim, size = queries.shape[1], signs.shape[1]
    x = np.empty(size, np.float32)
    middle = np.float32(0.5) * np.float32((1 << bits) - 1)
    for q in range(queries.shape[0]):
        constant = 1.0 if kind == COSINE else 0.0
        x[dim:] = np.float32(0.0)
        for d in range(dim):
            x[d] = queries[q, d] - centre[d]
            if kind == L2:
                constant += np.float64(x[d]) * x[d]
            else:
                constant -= np.float64(queries[q, d]) * centre[d]
        turn(x, signs)
        delta, total = quantize_query(x, values[q])
        qaux[q, 0] = constant
        qaux[q, 1] = delta
        qaux[q, 2] = delta * middle * np.float32(total)


@kernel("rabitq.query_planes")
def query_planes(values, planes):
    """Transpose int8 ``values`` (nq, D) to ``planes`` uint64 (nq, D / 8): eight words side by side for each 64 dims."""
    for q in range(values.shape[0]):
        planes[q] = np.uint64(0)
        for i in range(values.shape[1]):
            value = np.uint64(np.uint8(values[q, i]))
            for b in range(8):
                bit = (value >> np.uint64(b)) & np.uint64(1)
                planes[q, (i >> 6) * 8 + b] |= bit << np.uint64(i & 63)


for _bits in (1, 2, 3, 5, 6, 7):
    register(f"rabitq.{_bits}", _score_planes(_bits), code_dtype=np.uint64, query_dtype=np.uint64)
register("rabitq.4", score_nibbles, code_dtype=np.uint8, query_dtype=np.int8)
register("rabitq.8", score_bytes, code_dtype=np.uint8, query_dtype=np.int8)
