"""The short way of a single query and the long one agree, and refuse alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vecdb.core.errors import VecdbError
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import check_queries

NUMBERS = st.floats(width=32) | st.sampled_from([0.0, 9e18, 9.1e18, -9e18, 3e38, 1e-45, float("nan"), float("inf")])


def outcome(schema: CollectionSchema, value: np.ndarray):
    try:
        return check_queries(schema, value)
    except VecdbError as error:
        return type(error), error.message


@given(row=hnp.arrays(np.float32, 3, elements=NUMBERS), metric=st.sampled_from(["l2", "dot"]), two=st.booleans())
def test_both_ways_agree(row: np.ndarray, metric: str, two: bool) -> None:
    schema = CollectionSchema("docs", 3, metric)  # type: ignore[arg-type]
    value = row[None, :] if two else row
    short, long = outcome(schema, value), outcome(schema, value.astype(np.float64))
    if isinstance(short[0], np.ndarray):
        assert np.array_equal(short[0], long[0])
        assert short[1] == long[1] == (not two)
        flags = short[0].flags
        assert flags.carray
        assert not np.shares_memory(short[0], row)
    else:
        assert short == long


@pytest.mark.parametrize("shape", [(3, 1), (1, 3, 1), (1, 1, 3), (3, 1, 1)])
def test_as_many_numbers_in_another_shape_are_no_query(shape: tuple[int, ...]) -> None:
    schema = CollectionSchema("docs", 3, "l2")  # type: ignore[arg-type]
    with pytest.raises(VecdbError):
        check_queries(schema, np.ones(shape, np.float32))


def test_every_other_element_of_an_array_is_a_query() -> None:
    schema = CollectionSchema("docs", 3, "l2")  # type: ignore[arg-type]
    stored, single = check_queries(schema, np.arange(6, dtype=np.float32)[::2])
    assert stored.tolist() == [[0.0, 2.0, 4.0]]
    assert single
