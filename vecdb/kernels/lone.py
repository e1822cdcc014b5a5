# mypy: disable-error-code="no-untyped-def"
"""What stands before and after the search of a query that comes alone: its stored form, its answer as callers see it.

Done in NumPy these are a dozen calls of a microsecond or more each, and several times that in a server that has done
other things meanwhile.  Sums are added in order, in float64.
"""

import math

import numpy as np
from numba import carray

from vecdb.kernels import simd
from vecdb.kernels._jit import inline, kernel

SHORT, UNIT, NORMALIZED = 0, 1, 2
"""What a query must be: short enough for dot and l2, of unit length already, or brought to it."""
# A query's plan: its dimension, what it must be, where it stands ...
B_DIM, B_FORM, B_QUERY, B_ITEMS = range(4)
# ... and an answer's: results, whether distances are squared, whether they end at zero, and the addresses of ordinals
# int32, raw distances float32 and all ids int64, and of the places for ids int64 and distances float32.
A_K, A_SQUARED, A_ENDS, A_ORDINALS, A_RAW, A_IDS, A_OUT_IDS, A_OUT_DISTANCES, A_ITEMS = range(9)

_SHORT_SQUARED = 0.98 * 9.0e18 * 9.0e18
_UNIT_LOW, _UNIT_HIGH = 0.9991 ** 2, 1.0009 ** 2


@inline
def formed(plan):
    """Bring the query to its stored form; False, leaving anything in it, where it needs a closer look.

    The bounds are a hair narrower than those of who looks closer (:mod:`vecdb.core.vectors`); NaN is outside of all.
    """
    query = carray(simd.pointer(plan[B_QUERY]), (plan[B_DIM],), np.float32)
    squared = 0.0
    for d in range(len(query)):
        squared += np.float64(query[d]) * np.float64(query[d])
    if plan[B_FORM] == SHORT:
        return squared < _SHORT_SQUARED
    if plan[B_FORM] == UNIT:
        return _UNIT_LOW < squared < _UNIT_HIGH
    if not 0.0 < squared < np.inf:
        return False
    length = math.sqrt(squared)
    for d in range(len(query)):
        query[d] = np.float32(np.float64(query[d]) / length)
    return True


@kernel("lone.form")
def form(plan):
    """:func:`formed`."""
    return formed(plan)


@kernel("lone.answer")
def answer(plan):
    """Write the ids and the users' distances of what was found; False if that is fewer than was asked for."""
    k = plan[A_K]
    ordinals = carray(simd.pointer(plan[A_ORDINALS]), (k,), np.int32)
    raw = carray(simd.pointer(plan[A_RAW]), (k,), np.float32)
    if ordinals[k - 1] < 0:
        return False
    ids = carray(simd.pointer(plan[A_IDS]), (1,), np.int64)
    out_ids = carray(simd.pointer(plan[A_OUT_IDS]), (k,), np.int64)
    distances = carray(simd.pointer(plan[A_OUT_DISTANCES]), (k,), np.float32)
    for j in range(k):
        out_ids[j] = ids[np.int64(ordinals[j])]
        distance = raw[j]
        if plan[A_ENDS] != 0:
            distance = max(distance, np.float32(0))
        distances[j] = np.sqrt(distance) if plan[A_SQUARED] != 0 else distance
    return True
