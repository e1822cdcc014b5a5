"""Commands to bytes and back, and what comes of bytes that are none."""

import contextlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb.core.calls import WriteToken
from vecdb.core.errors import VecdbError
from vecdb.core.filters import parse
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch
from vecdb.shard import codec
from vecdb.shard.marks import Mark

IDS = st.lists(st.integers(0, 2**63 - 1) | st.text(st.characters(codec="utf-8"), min_size=1, max_size=20), max_size=12,
               unique=True).map(tuple)
TOKENS = st.none() | st.builds(WriteToken, st.binary(min_size=1, max_size=64), st.integers(0, 2**64 - 1))


@st.composite
def commands(draw: st.DrawFn) -> Command:
    kind = draw(st.sampled_from(("upsert", "delete", "where", "update")))
    if kind == "where":
        return DeleteWhere(parse(draw(st.sampled_from((
            "year >= 2020 and lang in ['en', 'de']", "not exists a.b or `x.y` == null", "true", "name startswith 'ä'",
            "t > time('2024-05-01T00:00:00Z')", "geo_radius(place, 1.5, 2.5, 1000)")))))
    ids = draw(IDS)
    blobs = tuple(draw(st.lists(st.binary(max_size=30), min_size=len(ids), max_size=len(ids))))
    if kind == "delete":
        return DeleteIds(ids)
    if kind == "update":
        return UpdateMetadata(ids, blobs, draw(st.booleans()))
    dtype = draw(st.sampled_from(("float32", "float16", "int8", "uint8")))
    width = draw(st.integers(1, 5))
    return UpsertBatch(ids, np.arange(len(ids) * width).reshape(len(ids), width).astype(dtype), blobs)


def same(a: Command, b: Command) -> bool:
    if not isinstance(a, UpsertBatch):
        return a == b
    return isinstance(b, UpsertBatch) and (a.ids, a.metadata, a.vectors.dtype) == (b.ids, b.metadata, b.vectors.dtype) \
        and np.array_equal(a.vectors, b.vectors) and a.vectors.shape == b.vectors.shape


@given(command=commands(), token=TOKENS)
def test_what_is_written_is_read(command: Command, token: WriteToken | None) -> None:
    data = codec.encode(command, token)
    found, found_token = codec.decode(data)
    assert same(command, found)
    assert found_token == token
    assert codec.encode(found, found_token) == data, "one command has one form: replicas may compare bytes"


@given(command=commands(), token=TOKENS, cut=st.floats(0, 1, exclude_max=True))
def test_a_command_cut_short_or_made_longer_is_refused(command: Command, token: WriteToken | None, cut: float) -> None:
    data = codec.encode(command, token)
    with pytest.raises(VecdbError):
        codec.decode(data[:int(cut * len(data))])
    with pytest.raises(VecdbError):
        codec.decode(data + b"\x00" if not isinstance(command, DeleteWhere) else data + b"}")


@given(command=commands(), seed=st.integers(0, 2**32))
def test_damage_is_refused_or_another_command_but_never_a_fault(command: Command, seed: int) -> None:
    data = bytearray(codec.encode(command))
    chance = random.Random(seed)
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    with contextlib.suppress(VecdbError):
        codec.decode(bytes(data))


@given(data=st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with contextlib.suppress(VecdbError):
        codec.decode(data)


@pytest.mark.parametrize(("data", "says"), [
    (b"\x0a\x01\x00" + bytes(8), "opcode 10"), (b"\x01\x02\x00" + bytes(8), "version 2"),
    (b"\x02\x01\x00" + bytes(8) + b"\xff\xff\xff\xff", "ids"),
    (b"\x02\x01\x00" + bytes(8) + b"\x02\x00\x00\x00\x00\x00" + bytes(16), "twice"),
    (b"\x02\x01\x00" + bytes(8) + b"\x01\x00\x00\x00\x00" + b"\xff" * 8, "outside"),
    (b"\x01\x01\x00" + bytes(8) + bytes(4) + b"\x09\x01\x00\x00\x00", "unknown kind"),
    (b"\x01\x01\x41" + b"k" * 65 + bytes(8) + bytes(4), "idempotency_key")])
def test_refusals_say_what_is_wrong(data: bytes, says: str) -> None:
    with pytest.raises(VecdbError, match=says):
        codec.decode(data)


def test_a_huge_count_takes_no_memory() -> None:
    data = b"\x01\x01\x00" + bytes(8) + (100_000).to_bytes(4, "little") + b"\x01" * 10
    with pytest.raises(VecdbError, match="ends after"):
        codec.decode(data)


@given(token=TOKENS)
def test_a_mark_is_a_command_without_a_body(token: WriteToken | None) -> None:
    data = codec.encode(Mark(), token)
    assert codec.decode(data) == (Mark(), token)
    with pytest.raises(VecdbError):
        codec.decode(data + b"\x00")
