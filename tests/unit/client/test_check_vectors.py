"""Vectors at the edge: what is stored is what a float64 oracle says, and what cannot be stored is refused by name."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vecdb.core.errors import DimensionMismatch, InvalidArgument, LimitExceeded, NonFiniteVector
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import MAX_NORM, check_queries, check_vectors


def schema(dim: int = 4, metric: str = "cosine", vector_type: str = "float32") -> CollectionSchema:
    return CollectionSchema("c", dim, metric, vector_type)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8", "longdouble", "i1", "u1", "i4", "u8", ">i2"])
@pytest.mark.parametrize(("vector_type", "tolerance"), [("float32", 2e-7), ("float16", 1e-3)])
def test_cosine_is_normalised_from_any_real_dtype(dtype: str, vector_type: str, tolerance: float) -> None:
    raw = np.random.default_rng(1).integers(1, 100, size=(50, 7)).astype(dtype)
    before = raw.copy()
    got = check_vectors(schema(7, vector_type=vector_type), raw)
    wide = raw.astype(np.float64)
    np.testing.assert_allclose(got, wide / np.linalg.norm(wide, axis=1, keepdims=True), atol=tolerance)
    assert got.dtype == np.dtype(vector_type)
    np.testing.assert_array_equal(raw, before)


@given(hnp.arrays(np.float64, (3, 5), elements=st.floats(allow_nan=False, allow_infinity=False)))
@settings(max_examples=200, deadline=None)
def test_cosine_of_any_finite_float64_is_a_unit_vector_or_zero_is_refused(raw: np.ndarray) -> None:
    if not raw.any(axis=1).all():
        with pytest.raises(NonFiniteVector):
            check_vectors(schema(5), raw)
        return
    got = check_vectors(schema(5), raw).astype(np.float64)
    for row in range(3):
        np.testing.assert_allclose(check_queries(schema(5), raw[row])[0][0], got[row], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-6)
    scaled = raw / np.abs(raw).max(axis=1, keepdims=True)
    np.testing.assert_allclose(got, scaled / np.linalg.norm(scaled, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("layout", ["fortran", "strided", "readonly", "unaligned", "subclass"])
def test_any_layout_comes_out_plain(layout: str) -> None:
    plain = np.arange(12, dtype=np.float32).reshape(3, 4)
    raw = {"fortran": np.asfortranarray(plain), "strided": np.repeat(plain, 2, axis=1)[:, ::2],
           "readonly": np.frombuffer(plain.tobytes(), dtype=np.float32).reshape(3, 4),
           "unaligned": np.frombuffer(b"x" + plain.tobytes(), dtype=np.uint8)[1:].view(np.float32).reshape(3, 4),
           "subclass": np.ma.masked_array(plain)}[layout]
    got = check_vectors(schema(metric="l2"), raw)
    np.testing.assert_array_equal(got, plain)
    assert type(got) is np.ndarray
    assert got.flags.c_contiguous
    assert got.flags.aligned
    assert got.flags.writeable


def test_stored_form_is_borrowed() -> None:
    raw = np.ones((2, 4), dtype=np.float32)
    assert check_vectors(schema(metric="dot"), raw) is raw


@pytest.mark.parametrize(("value", "kind", "argument"), [
    ([[1, 2, 3]], DimensionMismatch, "vectors"),
    (np.zeros((0, 4)), InvalidArgument, "vectors"),
    ([], InvalidArgument, "vectors"),
    ([1, 2, 3, 4], DimensionMismatch, "vectors"),
    (np.zeros((2, 2, 4)), DimensionMismatch, "vectors"),
    (5, DimensionMismatch, "vectors"),
    ([[1, 2, 3, 4], [1, 2, 3]], DimensionMismatch, "vectors[1]"),
    ([[1, 2, 3, 4], [1, 2, np.nan, 4]], NonFiniteVector, "vectors[1]"),
    ([[1, 2, 3, np.inf]], NonFiniteVector, "vectors[0]"),
    ([[1, 2, 3, 4], [0, 0, 0, 0]], NonFiniteVector, "vectors[1]"),
    ([[1, 2, 3, None]], InvalidArgument, "vectors"),
    ([["1", "2", "3", "4"]], InvalidArgument, "vectors"),
    (np.ones((1, 4), dtype=complex), InvalidArgument, "vectors"),
    (np.ones((1, 4), dtype=object), InvalidArgument, "vectors"),
    (np.ones((1, 4), dtype=bool), InvalidArgument, "vectors"),
    (np.zeros((1, 4), dtype="M8[s]"), InvalidArgument, "vectors"),
    (np.zeros(1, dtype=[("a", "f4")]), InvalidArgument, "vectors"),
    (np.ma.masked_array([[1, 2, 3, 4]], mask=[[0, 0, 0, 1]]), InvalidArgument, "vectors"),
    ([[10 ** 400, 1, 1, 1]], InvalidArgument, "vectors"),
    (None, InvalidArgument, "vectors"), ({}, InvalidArgument, "vectors"), (b"1234", InvalidArgument, "vectors"),
])
def test_refusals_name_argument_kind_and_limit(value: object, kind: type[InvalidArgument], argument: str) -> None:
    with pytest.raises(kind) as info:
        check_vectors(schema(), value)
    assert type(info.value) is kind
    assert info.value.argument == argument
    assert info.value.fields["got"] is not None
    assert info.value.fields["limit"] is not None


def test_rows_are_counted_from_first() -> None:
    with pytest.raises(NonFiniteVector, match=r"vectors\[101\]"):
        check_vectors(schema(), [[1, 1, 1, 1], [0, 0, 0, 0]], first=100)
    with pytest.raises(NonFiniteVector, match=r"vectors\[400000\]"):
        check_vectors(schema(), np.concatenate([np.ones((400_000, 4)), np.zeros((1, 4))]))


def test_float16_overflow() -> None:
    half = schema(metric="l2", vector_type="float16")
    np.testing.assert_array_equal(check_vectors(half, [[65504, -65504, 0, 1]]), [[65504, -65504, 0, 1]])
    with pytest.raises(NonFiniteVector, match="65504"):
        check_vectors(half, [[65520, 0, 0, 0]])
    with pytest.raises(NonFiniteVector, match="NaN"):
        check_vectors(half, [[np.nan, 0, 0, 0]])


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_vectors_too_long_for_distances_in_float32(metric: str) -> None:
    edge = MAX_NORM / 2 * 0.999
    stored = check_vectors(schema(metric=metric), np.full((2, 4), [[edge], [-edge]]))
    squared = np.sum((stored[0] - stored[1]) ** 2, dtype=np.float32)
    assert np.isfinite(squared)
    with pytest.raises(LimitExceeded, match=r"vectors\[1\]"):
        check_vectors(schema(metric=metric), [[1, 1, 1, 1], [MAX_NORM, MAX_NORM, 0, 0]])
    with pytest.raises(NonFiniteVector, match="float32"):
        check_vectors(schema(metric=metric), [[1e39, 0, 0, 0]])
    check_vectors(schema(metric=metric), [[MAX_NORM * 0.999, 0, 0, 0]])


@pytest.mark.parametrize(("vector_type", "low", "high"), [("int8", -128, 127), ("uint8", 0, 255)])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "i8", "u8", "f4", "f8"])
def test_integer_types(vector_type: str, low: int, high: int, dtype: str) -> None:
    spec = schema(2, "l2", vector_type)
    info = np.finfo(dtype) if dtype[0] == "f" else np.iinfo(dtype)
    for value in (low, high, 0, 1):
        if info.min <= value <= info.max:
            raw = np.array([[value, 1]], dtype=dtype)
            got = check_vectors(spec, raw)
            assert got.dtype == np.dtype(vector_type)
            assert got.tolist() == [[value, 1]]
    for value in (low - 1, high + 1):
        if info.min <= value <= info.max:
            with pytest.raises(LimitExceeded, match=rf"vectors\[1\].*{low}\.\.{high}"):
                check_vectors(spec, np.array([[1, 1], [1, value]], dtype=dtype))


def test_integer_types_want_whole_numbers_and_cosine_stays_raw() -> None:
    with pytest.raises(InvalidArgument, match=r"vectors\[0\].*whole"):
        check_vectors(schema(2, "l2", "int8"), [[0.5, 1]])
    with pytest.raises(NonFiniteVector):
        check_vectors(schema(2, "l2", "int8"), [[np.nan, 1]])
    assert check_vectors(schema(2, "cosine", "int8"), [[3, -4]]).tolist() == [[3, -4]]
    with pytest.raises(NonFiniteVector, match="zero"):
        check_vectors(schema(2, "cosine", "uint8"), [[0, 0]])


def test_binary_packed_and_unpacked_agree() -> None:
    spec = schema(16, "hamming", "binary")
    bits = np.random.default_rng(2).integers(0, 2, size=(20, 16))
    packed = np.packbits(bits, axis=1)
    for form in (packed, packed.astype(np.int64), bits, bits.astype(bool), bits.tolist(), packed.tolist()):
        got = check_vectors(spec, form)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, packed)
    for wrong, kind in [(np.full((1, 16), 2), LimitExceeded), (np.full((1, 2), 256), LimitExceeded),
                        (np.full((1, 2), -1), LimitExceeded), (np.ones((1, 2), bool), InvalidArgument),
                        (np.ones((1, 16), float), InvalidArgument), (np.ones((1, 8), int), DimensionMismatch)]:
        with pytest.raises(kind):
            check_vectors(spec, wrong)


def test_queries_single_and_many() -> None:
    one, single = check_queries(schema(metric="l2"), [1, 2, 3, 4])
    assert single
    assert one.tolist() == [[1, 2, 3, 4]]
    many, single = check_queries(schema(metric="l2"), [[1, 2, 3, 4]])
    assert not single
    assert many.shape == (1, 4)
    for wrong in (np.zeros((100_001, 4)), range(100_001)):
        with pytest.raises(LimitExceeded, match="100001"):
            check_queries(schema(metric="l2"), wrong)
    with pytest.raises(NonFiniteVector) as info:
        check_queries(schema(), [0, 0, 0, 0])
    assert info.value.argument == "vector"


def test_the_callers_floating_point_settings_do_not_matter() -> None:
    with np.errstate(all="raise"):
        for metric, kind in [("cosine", "float32"), ("cosine", "float16"), ("l2", "float16"), ("dot", "float32")]:
            spec = schema(metric=metric, vector_type=kind)
            for rows in ([[1e-320, 1, 1e-40, 1e-8]], [[1e-320, 1, 1e-40, 1e-8]] * 2):
                assert check_vectors(spec, np.array(rows))[0, 1] > 0.9
            with pytest.raises(NonFiniteVector):
                check_vectors(spec, np.array([[np.nan, np.inf, 1e300, 1e-300]]))
        assert check_queries(schema(), [1e300, 0, 1e300, 1e-300])[0][0, 0] == pytest.approx(0.5 ** 0.5)


def test_objects_that_refuse_to_be_arrays() -> None:
    class Hostile:
        def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
            raise RuntimeError("no")

    with pytest.raises(InvalidArgument, match="no"):
        check_vectors(schema(), Hostile())
