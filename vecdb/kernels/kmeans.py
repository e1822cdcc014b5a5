# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"
"""K-means' two inner loops: the nearest centroid of each point, and the mean of each cluster.

The assignment is a small matrix product kept in registers and first-level cache: four points meet a
tile of 256 centroids stored dimension-major, so the innermost loop runs over centroids, whatever the
dimension (product quantization has 4, a coarse quantizer hundreds).  No BLAS: its bits depend on
its thread count, and a codebook must be the same on any machine with the same vector units.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from vecdb.kernels._jit import kernel
from vecdb.kernels._loose import loose
from vecdb.kernels.simd import _call, _load, _row

TILE = 256
"""Centroids met at once: 4 points x 256 float32 scores are 4 KiB, and a PQ codebook is one tile."""

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_V16F, _V16I = ir.VectorType(_F32, 16), ir.VectorType(_I32, 16)


def _splat(builder: Any, value: Any, vector: Any) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(_V16I, [0] * 16))


@intrinsic  # type: ignore[untyped-decorator]
def argmin16(typingctx: Any, rows: Any, i: Any, width: Any) -> Any:
    """Column of the least of ``rows[i, :width]`` (float32; ``width`` a multiple of 16); the first of equals.

    LLVM does not vectorise a minimum with its place: this is 20 times the plain loop.
    """

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        row = _row(context, builder, rows, args[0], args[1])
        lane = ir.Constant(_V16I, list(range(16)))
        best = cgutils.alloca_once_value(builder, ir.Constant(_V16F, [float("inf")] * 16))
        at = cgutils.alloca_once_value(builder, lane)
        step = ir.Constant(_I64, 16)
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), args[2], step, intp=_I64) as (column, _):
            values = _load(builder, builder.add(row, builder.shl(column, ir.Constant(_I64, 2))), _V16F)
            least = builder.load(best)
            less = builder.fcmp_ordered("<", values, least)
            builder.store(builder.select(less, values, least), best)
            here = builder.add(_splat(builder, builder.trunc(column, _I32), _V16I), lane)
            builder.store(builder.select(less, here, builder.load(at)), at)
        least = builder.load(best)
        minimum = _call(builder, "llvm.vector.reduce.fmin.v16f32", _F32, [least], ("nnan", "nsz"))
        equal = builder.fcmp_ordered("==", least, _splat(builder, minimum, _V16F))
        columns = builder.select(equal, builder.load(at), ir.Constant(_V16I, [2**31 - 1] * 16))
        return builder.zext(_call(builder, "llvm.vector.reduce.umin.v16i32", _I32, [columns]), _I64)

    return types.int64(rows, types.int64, types.int64), generate


@loose
def _subtract_products(points, p, last, centroids_t, half_norms, t, w, acc):
    """``acc[j] = half_norms - points[p + j] . centroids`` over columns ``t..t + w``, j in 0..3.

    A tail of fewer than four points repeats its last one.  Columns are sliced from whole rows, here: a slice of the
    matrix would have rows of unknown stride, and the loop over them would not become vector code.
    """
    for j in range(4):
        acc[j, :w] = half_norms[t : t + w]
    a0, a1, a2, a3 = acc[0, :w], acc[1, :w], acc[2, :w], acc[3, :w]
    p1, p2, p3 = min(p + 1, last), min(p + 2, last), min(p + 3, last)
    for i in range(centroids_t.shape[0]):
        x0, x1, x2, x3 = points[p, i], points[p1, i], points[p2, i], points[p3, i]
        row = centroids_t[i, t : t + w]
        for c in range(w):
            v = row[c]
            a0[c] -= x0 * v
            a1[c] -= x1 * v
            a2[c] -= x2 * v
            a3[c] -= x3 * v


@loose
def assign(points, centroids_t, half_norms, lo, hi, acc, labels, scores):
    """Body of :func:`nearest` on points (n, d) of any strides; ``labels`` and ``scores`` are indexed from ``lo``."""
    k = centroids_t.shape[1]
    for p in range(lo, hi, 4):
        m = min(4, hi - p)
        for j in range(m):
            scores[p - lo + j] = np.float32(np.inf)
            labels[p - lo + j] = 0
        for t in range(0, k, TILE):
            w = min(TILE, k - t)
            _subtract_products(points, p, hi - 1, centroids_t, half_norms, t, w, acc)
            for j in range(m):
                at = argmin16(acc, j, w)
                if acc[j, at] < scores[p - lo + j]:
                    scores[p - lo + j] = acc[j, at]
                    labels[p - lo + j] = t + at


@kernel("kmeans.nearest")
def nearest(points, centroids_t, half_norms, lo, hi, labels, scores):
    """Write the nearest centroid of points ``lo..hi`` into ``labels[lo:hi]``, ``|c|^2/2 - x.c`` into ``scores[lo:hi]``.

    ``points`` float32 (n, d); ``centroids_t`` float32 (d, k), dimension-major, ``k`` a multiple of 16 (pad with
    zero columns); ``half_norms`` float32 (k), ``+inf`` at the padding; ``labels`` int32 (n) and ``scores``
    float32 (n) are the caller's.  Of equal centroids the first wins, so that the labels are the same anywhere.
    """
    acc = np.empty((4, TILE), np.float32)
    assign(points, centroids_t, half_norms, lo, hi, acc, labels[lo:hi], scores[lo:hi])


@kernel("kmeans.means")
def cluster_means(points, order, starts, lo, hi, means):
    """Write the means of clusters ``lo..hi`` into ``means`` (float32 (k, d)); empty clusters are left as they are.

    ``order`` int64 (n): points sorted by label, stable; cluster ``c`` is ``order[starts[c]:starts[c + 1]]``.
    Sums are float64 in that order, so the result does not depend on who computes which cluster.
    """
    d = points.shape[1]
    total = np.empty(d, np.float64)
    for c in range(lo, hi):
        count = starts[c + 1] - starts[c]
        if count == 0:
            continue
        total[:] = 0.0
        for s in range(starts[c], starts[c + 1]):
            row = points[order[s]]
            for i in range(d):
                total[i] += row[i]
        for i in range(d):
            means[c, i] = total[i] / count


@loose
def _row_product(point, matrix, out):
    """``out = point @ matrix`` for a row alone (a query): in the order of the four at once, so with the same bits."""
    out[:] = np.float32(0.0)
    for i in range(matrix.shape[0]):
        x = point[i]
        row = matrix[i]
        for c in range(matrix.shape[1]):
            out[c] += x * row[c]


@kernel("kmeans.products")
def products(points, matrix, lo, hi, out):
    """Write ``points[lo:hi] @ matrix`` into ``out[lo:hi]``: float32 (n, d), (d, k) and (n, k), k a multiple of 16.

    The same code as :func:`nearest`, so the same bits on any number of threads, which BLAS does not promise.
    """
    k = matrix.shape[1]
    acc = np.empty((4, TILE), np.float32)
    zeros = np.zeros(k, np.float32)
    whole = lo + (hi - lo) // 4 * 4
    for p in range(lo, whole, 4):
        for t in range(0, k, TILE):
            w = min(TILE, k - t)
            _subtract_products(points, p, hi - 1, matrix, zeros, t, w, acc)
            for j in range(4):
                for c in range(w):
                    out[p + j, t + c] = -acc[j, c]
    for p in range(whole, hi):
        _row_product(points[p], matrix, out[p])


def dimension_major(centroids: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return (``centroids_t`` float32 (d, k padded to 16), ``half_norms`` float32), the form :func:`nearest` reads."""
    k, d = centroids.shape
    width = -(-k // 16) * 16
    centroids_t = np.zeros((d, width), np.float32)
    centroids_t[:, :k] = centroids.T
    half_norms = np.full(width, np.inf, np.float32)
    half_norms[:k] = np.einsum("kd,kd->k", centroids, centroids, dtype=np.float64) / 2
    return centroids_t, half_norms
