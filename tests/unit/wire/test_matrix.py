"""Matrices: lengths, dtypes, unit vectors; everything against the schema as the facade checks it."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb.core.errors import DimensionMismatch, InvalidArgument, LimitExceeded, NonFiniteVector, VecdbError
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import check_queries, check_vectors, stored_dtype
from vecdb.v1 import types_pb2 as pb
from vecdb.wire.convert import matrix_from_wire, matrix_to_wire
from vecdb.wire.matrix import queries_from_wire, stored_from_wire

DTYPES = (np.float32, np.float16, np.float64, np.int8, np.uint8)


def sent(array):
    return pb.Matrix.FromString(matrix_to_wire(array).SerializeToString())


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(0, 5), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_every_dtype_comes_back_to_the_bit(dtype, rows, items, seed):
    values = np.random.default_rng(seed).integers(0, 256, rows * items * np.dtype(dtype).itemsize, dtype=np.uint8)
    array = values.view(dtype).reshape(rows, items)
    got = matrix_from_wire(sent(array))
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert got.tobytes() == array.tobytes()
    assert not got.flags.writeable


def test_strided_and_foreign_endian_arrays_are_written_as_what_they_mean():
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    for array in (base[:, ::2], base.T, base[::-1], base.astype(">f4"), np.asfortranarray(base)):
        np.testing.assert_array_equal(matrix_from_wire(sent(array)), array)


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.int64), np.zeros((2, 2), np.bool_), np.zeros(3, np.float32),
                                   np.zeros((1, 2), np.complex64)])
def test_what_a_matrix_cannot_hold_is_refused(array):
    with pytest.raises(InvalidArgument):
        matrix_to_wire(array)


@pytest.mark.parametrize(("rows", "items", "dtype", "data", "words"), [
    (1, 2, pb.DATA_TYPE_FLOAT32, b"x" * 7, "7 bytes of data; 1 rows of 2 float32 components take 8"),
    (2, 2, pb.DATA_TYPE_FLOAT32, b"x" * 8, "take 16"),
    (2**32 - 1, 2**32 - 1, pb.DATA_TYPE_FLOAT64, b"x" * 8, "8 bytes"),
    (1, 1, pb.DATA_TYPE_FLOAT32, b"", "0 bytes"),
    (0, 0, pb.DATA_TYPE_INT8, b"x", "1 bytes"),
    (1, 1, pb.DATA_TYPE_UNSPECIFIED, b"xxxx", "dtype is not given"),
    (1, 1, 99, b"xxxx", "dtype 99 is unknown"),
    (1, 1, -5, b"xxxx", "dtype -5 is unknown"),
])
def test_lengths_and_dtypes_are_checked(rows, items, dtype, data, words):
    with pytest.raises(InvalidArgument, match=words) as caught:
        matrix_from_wire(pb.Matrix(rows=rows, items=items, dtype=dtype, data=data), "vectors")
    assert caught.value.argument == "vectors"
    assert caught.value.fields["limit"] is not None


SCHEMAS = [CollectionSchema("c", 16, metric, kind) for kind in ("float32", "float16", "int8", "uint8")
           for metric in ("cosine", "dot", "l2")] + [CollectionSchema("c", 16, "hamming", "binary")]


def first_of_queries(schema, array):
    return check_queries(schema, array)[0]


def outcome(read, *arguments):
    """What came out, or what was refused and how."""
    try:
        return read(*arguments), None, None, None
    except VecdbError as error:
        return None, type(error), error.message, error.fields


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: f"{s.metric}-{s.vector_type}")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_wire_checks_and_converts_as_the_facade(schema, dtype):
    rng = np.random.default_rng(7)
    for values in (rng.integers(0, 2, (5, 16)), rng.integers(-3, 100, (5, 16)), rng.normal(size=(5, 16)),
                   np.zeros((5, 16)), np.full((5, 16), 300.0), np.ones((5, 2)), np.ones((5, 15)), np.empty((0, 16))):
        with np.errstate(all="ignore"):
            array = values.astype(dtype)
        msg = sent(array)
        for whole, ours in ((check_vectors, stored_from_wire), (first_of_queries, queries_from_wire)):
            expected, got = outcome(whole, schema, array), outcome(ours, schema, msg, False)
            assert got[1:] == expected[1:]
            if expected[0] is not None:
                assert got[0].dtype == expected[0].dtype == stored_dtype(schema)
                assert got[0].tobytes() == expected[0].tobytes()
                assert got[0].flags.carray


@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("rows", [1, 300])
def test_normalized_vectors_are_verified_and_kept_to_the_bit(kind, rows):
    schema = CollectionSchema("c", 64, "cosine", kind)
    unit = check_vectors(schema, np.random.default_rng(3).normal(size=(rows, 64)))
    for read in (stored_from_wire, queries_from_wire):
        got = read(schema, sent(unit), True)
        assert got.tobytes() == unit.tobytes()
        assert got.flags.carray
        assert got.flags.owndata
    for scale, fine in ((1.0 + 0.0009, True), (1.0 - 0.0009, True), (1.003, False), (0.997, False), (0.0, False)):
        off = unit.copy()
        off[-1] = (off[-1].astype(np.float64) * scale).astype(unit.dtype)
        if fine:
            assert stored_from_wire(schema, sent(off), True).tobytes() == off.tobytes()
            continue
        with pytest.raises(InvalidArgument, match="said to be normalized") as caught:
            stored_from_wire(schema, sent(off), True)
        assert caught.value.argument == f"vectors[{rows - 1}]"
        with pytest.raises(InvalidArgument) as caught:
            queries_from_wire(schema, sent(off), True)
        assert caught.value.argument == ("vector" if rows == 1 else f"vector[{rows - 1}]")


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity"),
                                             (3e38, "length")])
def test_normalized_lets_nothing_through(rows, value, what):
    schema = CollectionSchema("c", 8)
    unit = check_vectors(schema, np.random.default_rng(5).normal(size=(rows, 8)))
    unit[-1, 3] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidArgument, match=what) as caught:
            stored_from_wire(schema, sent(unit), True)
    assert isinstance(caught.value, NonFiniteVector) == (what != "length")


def test_normalized_means_nothing_where_it_cannot_hold():
    v = np.array([[3.0, 4.0]], np.float32)
    assert stored_from_wire(CollectionSchema("c", 2, "l2"), sent(v), True).tolist() == [[3.0, 4.0]]
    assert stored_from_wire(CollectionSchema("c", 2, "cosine", "int8"), sent(v), True).tolist() == [[3, 4]]
    got = stored_from_wire(CollectionSchema("c", 2), sent(v.astype(np.float64)), True)  # not as it is stored: made so
    np.testing.assert_allclose(got, [[0.6, 0.8]], rtol=1e-6)


def test_limits_of_rows():
    with pytest.raises(LimitExceeded):
        queries_from_wire(CollectionSchema("c", 8, "hamming", "binary"),
                          pb.Matrix(rows=100_001, items=1, dtype=pb.DATA_TYPE_UINT8, data=bytes(100_001)), False)
    with pytest.raises(DimensionMismatch):
        stored_from_wire(CollectionSchema("c", 8), pb.Matrix(rows=2**32 - 1, dtype=pb.DATA_TYPE_INT8), True)
