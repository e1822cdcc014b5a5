"""Metadata on the way in: compact JSON or an error that names the place."""

import datetime as dt
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb.core.errors import InvalidMetadata
from vecdb.core.limits import MAX_METADATA_BYTES, MAX_METADATA_DEPTH
from vecdb.core.metadata import check_metadata, parse_metadata

scalars = (st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=10)
           | st.floats(allow_nan=False, allow_infinity=False))
objects = st.dictionaries(st.text(max_size=5), st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8), max_size=5)


@settings(max_examples=200, deadline=None)
@given(objects)
def test_json_comes_back_as_it_went_in(value):
    data = check_metadata(value)
    assert parse_metadata(data) == value
    assert repr(json.loads(data)) == repr(parse_metadata(data))
    assert check_metadata(parse_metadata(data)) == data


def nested(levels):
    value = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(("value", "argument"), [
    (None, "metadata[7]"), ([1], "metadata[7]"), ("{}", "metadata[7]"),
    ({"a": float("nan")}, "metadata[7].a"), ({"a": {"b": [1, float("inf")]}}, "metadata[7].a.b.1"),
    ({"a": np.float32("nan")}, "metadata[7].a"), ({"a": 2**64}, "metadata[7].a"),
    ({"a": -(2**63) - 1}, "metadata[7].a"),
    ({1: 2}, "metadata[7]"), ({"a": {None: 1}}, "metadata[7].a"), ({"a": b"x"}, "metadata[7].a"),
    ({"a": {1, 2}}, "metadata[7].a"), ({"a": object()}, "metadata[7].a"), ({"a": "\ud800"}, "metadata[7].a"),
    ({"\udfff": 1}, "metadata[7]"), ({"a": {"x.y": 1j}}, "metadata[7].a.x\\.y"),
    ({"a": np.datetime64("NaT")}, "metadata[7].a"),
    ({"a": "x" * (MAX_METADATA_BYTES + 1)}, "metadata[7]"), ({"a": ["x"] * 40_000}, "metadata[7]"),
    ({"a": [0] * 10_000_000}, "metadata[7]"), (nested(MAX_METADATA_DEPTH + 1), "metadata[7].a.a.a.a"),
    ({"a": np.zeros(3)}, "metadata[7].a"),
])
def test_what_is_refused_is_named(value, argument):
    with pytest.raises(InvalidMetadata) as caught:
        check_metadata(value, 7)
    assert caught.value.argument == argument
    assert caught.value.fields["limit"] is not None
    assert caught.value.fields["got"] is not None
    str(caught.value).encode()


def test_an_error_repeats_only_the_beginning_of_what_is_far_too_long():
    value: object = float("nan")
    for _ in range(30):
        value = {"k." * 30_000: value}
    with pytest.raises(InvalidMetadata) as caught:
        check_metadata(value)
    assert len(caught.value.argument) <= len("metadata.") + 400
    assert len(str(caught.value)) < 600
    assert caught.value.argument.startswith("metadata.k\\.k")


def test_a_cycle_is_refused():
    loop: dict = {"a": 1}
    loop["self"] = loop
    endless: list = []
    endless.append(endless)
    for value in (loop, {"a": endless}):
        with pytest.raises(InvalidMetadata):
            check_metadata(value)


def test_the_limits_themselves_are_allowed():
    assert check_metadata(nested(MAX_METADATA_DEPTH))
    size = MAX_METADATA_BYTES - len('{"a":""}')
    assert len(check_metadata({"a": "x" * size})) == MAX_METADATA_BYTES
    assert parse_metadata(check_metadata({"a": 2**64 - 1, "b": -(2**63)})) == {"a": 2**64 - 1, "b": -(2**63)}


def test_values_of_python_and_numpy_become_json():
    zone = dt.timezone(dt.timedelta(hours=2))
    value = {"i": np.int32(5), "f": np.float64(0.5), "b": np.bool_(True), "s": np.str_("x"), "t": (1, np.uint8(2)),
             "naive": dt.datetime(2024, 1, 1), "aware": dt.datetime(2024, 1, 1, tzinfo=zone),
             "utc": dt.datetime(2024, 1, 1, 0, 0, 0, 5, tzinfo=dt.UTC), "date": dt.date(2024, 1, 31),
             "np": np.datetime64("2024-01-01T00:00:00")}
    assert parse_metadata(check_metadata(value)) == {
        "i": 5, "f": 0.5, "b": True, "s": "x", "t": [1, 2], "naive": "2024-01-01T00:00:00Z",
        "aware": "2024-01-01T00:00:00+02:00", "utc": "2024-01-01T00:00:00.000005Z", "date": "2024-01-31",
        "np": "2024-01-01T00:00:00Z"}
    assert check_metadata({}) == b"{}"
