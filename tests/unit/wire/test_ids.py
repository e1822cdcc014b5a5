"""Ids in columns: order kept, kinds consistent, every refusal at its place."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb.core.errors import InvalidId, LimitExceeded, VecdbError
from vecdb.core.ids import check_ids
from vecdb.core.limits import MAX_ID_BYTES
from vecdb.v1 import types_pb2 as pb
from vecdb.wire.convert import ids_from_wire, ids_to_wire

integers = st.integers(0, 2**63 - 1)
strings = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(
    lambda s: len(s.encode()) <= MAX_ID_BYTES)


def read(msg, **options):
    return ids_from_wire(pb.Ids.FromString(msg.SerializeToString()), **options)


@settings(max_examples=200, deadline=None)
@given(st.lists(integers, max_size=20) | st.lists(strings, max_size=20) | st.lists(integers | strings, max_size=20))
def test_ids_come_back_in_their_order(ids):
    assert read(ids_to_wire(ids)) == ids
    assert read(ids_to_wire(tuple(ids))) == ids
    assert read(ids_to_wire(iter(ids))) == ids


def test_integers_alone_are_one_field():
    msg = ids_to_wire([1, 2**63 - 1])
    assert msg.integers == struct.pack("<2q", 1, 2**63 - 1)
    assert not msg.kinds
    assert ids_to_wire(["a", 7, "b"]).kinds == b"\x01\x00\x01"


@pytest.mark.parametrize(("msg", "argument"), [
    (pb.Ids(integers=b"1234567"), "ids"),
    (pb.Ids(integers=struct.pack("<3q", 1, -2, 3)), "ids[1]"),
    (pb.Ids(strings=["a", ""]), "ids[1]"),
    (pb.Ids(strings=["a", "b", "x" * 129]), "ids[2]"),
    (pb.Ids(strings=["é" * 65]), "ids[0]"),
    (pb.Ids(strings=["a"], integers=bytes(8)), "ids"),
    (pb.Ids(strings=["a"], integers=bytes(8), kinds=b"\x00\x00"), "ids"),
    (pb.Ids(strings=["a"], integers=bytes(8), kinds=b"\x01\x02"), "ids"),
    (pb.Ids(strings=["a"], integers=bytes(8), kinds=b"\x01\x00\x00"), "ids"),
    (pb.Ids(strings=["a"], integers=bytes(8), kinds=b"\x01"), "ids"),
    (pb.Ids(kinds=b"\x00"), "ids"),
    (pb.Ids(strings=["a", ""], integers=bytes(8), kinds=b"\x01\x00\x01"), "ids[2]"),
    (pb.Ids(strings=["a"], integers=struct.pack("<2q", 5, -1), kinds=b"\x00\x01\x00"), "ids[2]"),
])
def test_what_is_refused_and_where(msg, argument):
    with pytest.raises(InvalidId) as caught:
        read(msg)
    assert caught.value.argument == argument
    assert caught.value.fields["limit"] is not None


def test_the_longest_ids_pass():
    ids = ["x" * MAX_ID_BYTES, "é" * (MAX_ID_BYTES // 2), "\U0001f600" * (MAX_ID_BYTES // 4)]
    assert read(ids_to_wire(ids)) == ids


def test_kinds_may_be_given_where_they_are_not_needed():
    assert read(pb.Ids(integers=bytes(16), kinds=b"\x00\x00")) == [0, 0]
    assert read(pb.Ids(strings=["a"], kinds=b"\x01")) == ["a"]


def test_too_many_are_refused():
    with pytest.raises(LimitExceeded, match="3 in one call, more than 2"):
        read(ids_to_wire([1, 2, 3]), most=2)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.lists(st.text(st.characters(codec="utf-8"), max_size=3), max_size=4),
       st.binary(max_size=8))
def test_whatever_comes_is_ids_or_a_refusal(data, words, kinds):
    try:
        got = read(pb.Ids(integers=data, strings=words, kinds=kinds))
    except VecdbError:
        return
    assert check_ids(got) == got
    assert len(got) == len(data) // 8 + len(words)
