# mypy: disable-error-code="no-untyped-def"
"""The exact families: raw distances between stored rows, over the primitives of :mod:`vecdb.kernels.simd`.

``qaux[q, 0]`` is the constant that the similarity is subtracted from (1 for cosine, 0 for dot), so that cosine over
normalised float rows and dot share kernels.  Integer cosine divides by norms: ``aux[i, 0]`` and ``qaux[q, 1]`` are
inverse norms.  ``pair`` distances, used in building, subtract from 1 whatever the metric.
"""

import numpy as np

from vecdb.kernels import simd
from vecdb.kernels._jit import inline
from vecdb.kernels.registry import register


@inline
def _f32_dot(codes, aux, qcodes, qaux, q, i):
    return qaux[q, 0] - simd.dot_f32(codes, i, qcodes, q)


@inline
def _f32_dot_pair(codes, aux, i, j):
    return np.float32(1) - simd.dot_f32(codes, i, codes, j)


@inline
def _f32_l2(codes, aux, qcodes, qaux, q, i):
    return simd.l2_f32(codes, i, qcodes, q)


@inline
def _f32_l2_pair(codes, aux, i, j):
    return simd.l2_f32(codes, i, codes, j)


@inline
def _f16_dot(codes, aux, qcodes, qaux, q, i):
    return qaux[q, 0] - simd.dot_f16(codes, i, qcodes, q)


@inline
def _f16_dot_pair(codes, aux, i, j):
    return np.float32(1) - simd.dot_f16(codes, i, codes, j)


@inline
def _f16_l2(codes, aux, qcodes, qaux, q, i):
    return simd.l2_f16(codes, i, qcodes, q)


@inline
def _f16_l2_pair(codes, aux, i, j):
    return simd.l2_f16(codes, i, codes, j)


@inline
def _i8_dot(codes, aux, qcodes, qaux, q, i):
    return qaux[q, 0] - np.float32(simd.dot_i8(codes, i, qcodes, q))


@inline
def _i8_dot_pair(codes, aux, i, j):
    return np.float32(1) - np.float32(simd.dot_i8(codes, i, codes, j))


@inline
def _i8_cosine(codes, aux, qcodes, qaux, q, i):
    return qaux[q, 0] - np.float32(simd.dot_i8(codes, i, qcodes, q)) * aux[i, 0] * qaux[q, 1]


@inline
def _i8_cosine_pair(codes, aux, i, j):
    return np.float32(1) - np.float32(simd.dot_i8(codes, i, codes, j)) * aux[i, 0] * aux[j, 0]


@inline
def _i8_l2(codes, aux, qcodes, qaux, q, i):
    return np.float32(simd.l2_i8(codes, i, qcodes, q))


@inline
def _i8_l2_pair(codes, aux, i, j):
    return np.float32(simd.l2_i8(codes, i, codes, j))


@inline
def _u8_dot(codes, aux, qcodes, qaux, q, i):
    return qaux[q, 0] - np.float32(simd.dot_u8(codes, i, qcodes, q))


@inline
def _u8_dot_pair(codes, aux, i, j):
    return np.float32(1) - np.float32(simd.dot_u8(codes, i, codes, j))


@inline
def _u8_cosine(codes, aux, qcodes, qaux, q, i):
    return qaux[q, 0] - np.float32(simd.dot_u8(codes, i, qcodes, q)) * aux[i, 0] * qaux[q, 1]


@inline
def _u8_cosine_pair(codes, aux, i, j):
    return np.float32(1) - np.float32(simd.dot_u8(codes, i, codes, j)) * aux[i, 0] * aux[j, 0]


@inline
def _u8_l2(codes, aux, qcodes, qaux, q, i):
    return np.float32(simd.l2_u8(codes, i, qcodes, q))


@inline
def _u8_l2_pair(codes, aux, i, j):
    return np.float32(simd.l2_u8(codes, i, codes, j))


@inline
def _hamming(codes, aux, qcodes, qaux, q, i):
    return np.float32(simd.hamming(codes, i, qcodes, q))


@inline
def _hamming_pair(codes, aux, i, j):
    return np.float32(simd.hamming(codes, i, codes, j))


for _name, _score, _pair, _dtype in (
    ("f32.dot", _f32_dot, _f32_dot_pair, np.float32),
    ("f32.l2", _f32_l2, _f32_l2_pair, np.float32),
    ("f16.dot", _f16_dot, _f16_dot_pair, np.uint16),
    ("f16.l2", _f16_l2, _f16_l2_pair, np.uint16),
    ("i8.dot", _i8_dot, _i8_dot_pair, np.int8),
    ("i8.cosine", _i8_cosine, _i8_cosine_pair, np.int8),
    ("i8.l2", _i8_l2, _i8_l2_pair, np.int8),
    ("u8.dot", _u8_dot, _u8_dot_pair, np.uint8),
    ("u8.cosine", _u8_cosine, _u8_cosine_pair, np.uint8),
    ("u8.l2", _u8_l2, _u8_l2_pair, np.uint8),
    ("bin.hamming", _hamming, _hamming_pair, np.uint8),
):
    register(_name, _score, pair=_pair, code_dtype=_dtype, query_dtype=_dtype)
