"""Spaces: padding, normalisation, users' distances; memory that is aligned."""

import numpy as np
import pytest

from vecdb.ann.memory import HUGE_PAGE, allocate
from vecdb.ann.space import Space
from vecdb.core.schema import Metric, VectorType


@pytest.mark.parametrize("kind", list(VectorType))
def test_rows_are_whole_lines(kind):
    space = Space(Metric.HAMMING if kind is VectorType.BINARY else Metric.DOT, kind, 104)
    rows = space.empty(5)
    assert rows.shape == (5, space.row_width)
    assert space.row_bytes % 64 == 0
    assert rows.ctypes.data % 64 == 0
    space.fill(rows, 2, np.ones((3, space.row_items), space.row_dtype))
    assert rows[2:, :space.row_items].all()
    assert not rows[2:, space.row_items:].any()
    assert not rows[:2].any()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_cosine_rows_are_unit_vectors_however_long_they_came(scale):
    space = Space(Metric.COSINE, VectorType.FLOAT32, 3)
    stored = space.encode(np.array([[3, 0, 4], [0, 0, 0]], np.float64) * scale)
    np.testing.assert_allclose(stored, [[0.6, 0, 0.8], [0, 0, 0]], atol=1e-6)


def test_floats_for_an_integer_space_are_rounded_and_clipped():
    space = Space(Metric.L2, VectorType.INT8, 4)
    assert space.encode(np.array([[-300.0, -1.5, 2.6, 300.0]])).tolist() == [[-128, -2, 3, 127]]


def test_integer_cosine_carries_inverse_norms():
    space = Space(Metric.COSINE, VectorType.UINT8, 2)
    rows = space.pad(np.array([[3, 4], [0, 0]], np.uint8))
    np.testing.assert_allclose(space.aux(rows), [0.2, 0.0])
    assert len(Space(Metric.COSINE, VectorType.FLOAT32, 2).aux(rows.astype(np.float32))) == 0


def test_users_distances_go_there_and_back():
    l2 = Space(Metric.L2, VectorType.FLOAT32, 2)
    assert l2.to_distance(np.array([9.0, -1e-9], np.float32)).tolist() == [3.0, 0.0]
    for distance in (0.0, 0.1, 3.0, 1e10):
        assert np.float32(l2.from_distance(distance)) >= np.float32(distance) ** 2
    assert l2.from_distance(-1.0) < 0
    assert l2.from_distance(1e30) == np.inf
    dot = Space(Metric.DOT, VectorType.FLOAT32, 2)
    assert dot.to_distance(np.array([-2.0], np.float32)).tolist() == [-2.0]
    assert dot.from_distance(-2.0) == pytest.approx(-2.0, rel=1e-6)


@pytest.mark.parametrize("items", [0, 1, 1000, HUGE_PAGE])
def test_allocated_memory_is_zero_writable_and_aligned(items):
    array = allocate((items, 4), np.float32)
    assert array.shape == (items, 4)
    assert items == 0 or array.ctypes.data % 64 == 0
    assert not array.any()
    array[:] = 1
    assert array.sum() == items * 4
