"""Exact scorers and scans against the float64 oracle, over types, metrics and dimensions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import distances as oracle
from vecdb.ann import flat
from vecdb.ann.codes import RowCodes
from vecdb.ann.space import Space
from vecdb.core.schema import Metric, VectorType
from vecdb.kernels._jit import signatures
from vecdb.kernels.scan import scan_for

SPACES = [(Metric(metric), VectorType(kind)) for kind in ("float32", "float16", "int8", "uint8")
          for metric in ("l2", "dot", "cosine")] + [(Metric.HAMMING, VectorType.BINARY)]


def stored(space: Space, count: int, seed: int):
    rng = np.random.default_rng(seed)
    if space.vector_type is VectorType.BINARY:
        return rng.integers(0, 256, (count, space.row_items), dtype=np.uint8)
    if space.is_float:
        return space.encode(rng.normal(size=(count, space.dim)).astype(np.float32) * 3)
    info = np.iinfo(space.row_dtype)
    return rng.integers(info.min, info.max, (count, space.dim), dtype=space.row_dtype, endpoint=True)


@pytest.mark.parametrize(("metric", "kind"), SPACES)
@settings(max_examples=15, deadline=None)
@given(dim=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_scan_agrees_with_the_oracle(metric, kind, dim, seed):
    space = Space(metric, kind, dim * 8 if kind is VectorType.BINARY else dim)
    vectors, queries = stored(space, 40, seed), stored(space, 3, seed + 1)
    rows = space.pad(vectors)
    found = flat.scan(RowCodes(space, rows, space.aux(rows)), queries, k=40)
    truth = oracle.raw(space, queries, vectors)
    scale = max(1.0, float(np.abs(truth).max()))
    assert np.sort(found.ordinals, axis=1).tolist() == [list(range(40))] * 3
    at = np.take_along_axis(truth, found.ordinals.astype(np.int64), axis=1)
    np.testing.assert_allclose(found.distances, at, rtol=2e-6, atol=3e-6 * scale)
    assert (np.diff(found.distances, axis=1) >= 0).all()


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_integer_extremes_do_not_overflow(kind):
    for metric in ("l2", "dot"):
        space = Space(Metric(metric), VectorType(kind), 32_768)
        info = np.iinfo(space.row_dtype)
        vectors = np.array([[info.min] * space.dim, [info.max] * space.dim], space.row_dtype)
        rows = space.pad(vectors)
        found = flat.scan(RowCodes(space, rows, space.aux(rows)), vectors, k=2)
        truth = np.sort(oracle.raw(space, vectors, vectors), axis=1)
        np.testing.assert_allclose(found.distances, truth, rtol=1e-6)


def test_a_zero_integer_vector_is_at_distance_one_of_all_by_cosine():
    space = Space(Metric.COSINE, VectorType.INT8, 10)
    rows = space.pad(np.array([[0] * 10, [3] * 10], np.int8))
    found = flat.scan(RowCodes(space, rows, space.aux(rows)), np.array([[5] * 10, [0] * 10], np.int8), k=2)
    np.testing.assert_allclose(found.distances, [[0, 1], [1, 1]], atol=1e-6)


def test_writable_read_only_and_mapped_rows_share_one_compiled_signature(tmp_path):
    space = Space(Metric.L2, VectorType.FLOAT32, 20)
    rows = space.pad(stored(space, 30, 1))
    rows.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=rows.shape)
    frombuffer = np.frombuffer((tmp_path / "rows").read_bytes(), np.float32).reshape(rows.shape)
    locked = rows.copy()
    locked.flags.writeable = False
    answers = [flat.scan(RowCodes(space, part, space.aux(part)), rows[:2, :20], k=5).ordinals.tolist()
               for part in (rows, mapped, frombuffer, locked, rows[:30])]
    assert all(answer == answers[0] for answer in answers)
    assert len(signatures(scan_for("f32.l2"))) == 1


def test_a_row_with_nan_is_no_result_and_harms_no_other():
    space = Space(Metric.L2, VectorType.FLOAT32, 8)
    rows = space.pad(stored(space, 10, 2))
    rows[3, 2] = np.nan
    found = flat.scan(RowCodes(space, rows, space.aux(rows)), rows[:1, :8], k=10)
    assert sorted(found.ordinals[0].tolist()) == [-1, 0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert found.distances[0, -1] == np.inf
