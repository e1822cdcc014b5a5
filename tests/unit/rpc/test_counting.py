"""Messages of very many small parts are known by their number of parts, and refused unread."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.rpc.test_edge import drive, refused, serving
from vecdb.core.errors import LimitExceeded
from vecdb.core.limits import MAX_BATCH_RECORDS
from vecdb.core.records import UpsertBatch
from vecdb.rpc.counting import COUNTED_BYTES, MOST_PARTS, parts
from vecdb.v1 import queries_pb2, records_pb2, types_pb2
from vecdb.wire import convert


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def piece(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


MANY = MOST_PARTS + 1
TINY = {
    "metadata": (records_pb2.UpsertRequest, b"\x22\x00" * MANY),
    "strings of ids": (records_pb2.UpsertRequest, piece(2, b"\x12\x00" * MANY)),
    "ids again and again": (records_pb2.UpsertRequest, b"\x12\x00" * MANY),
    "one number again and again": (records_pb2.UpsertRequest, b"\x38\x00" * MANY),
    "unknown numbers": (records_pb2.UpsertRequest, b"\x98\x06\x00" * MANY),
    "unknown groups": (records_pb2.UpsertRequest, b"\x9b\x06\x9c\x06" * MANY),
    "numbers of eight bytes": (records_pb2.UpsertRequest, (b"\x99\x06" + bytes(8)) * MANY),
    "numbers of four bytes": (records_pb2.UpsertRequest, (b"\x9d\x06" + bytes(4)) * MANY),
    "packed numbers": (queries_pb2.QueryRequest, piece(16, piece(4, bytes(MANY)))),
    "positions": (queries_pb2.QueryRequest, piece(16, b"\x12\x00" * MANY)),
    "after a large matrix": (records_pb2.UpsertRequest, piece(3, piece(4, bytes(1 << 20))) + b"\x22\x00" * MANY),
}


@pytest.mark.parametrize("name", TINY)
def test_every_kind_of_small_part_is_counted(name: str) -> None:
    kind, raw = TINY[name]
    kind.FromString(raw)  # nothing but their number is wrong with them
    assert parts(raw, kind) > MOST_PARTS


def test_the_largest_batch_of_strings_and_metadata_is_none_of_them() -> None:
    count = MAX_BATCH_RECORDS
    batch = UpsertBatch(tuple(f"id-{place}" for place in range(count)), np.zeros((count, 2), np.float32),
                        (b'{"a":1}',) * count)
    raw = convert.upsert_to_wire("docs", batch, key=b"k" * 64).SerializeToString()
    assert 2 * count < parts(raw, records_pb2.UpsertRequest) <= MOST_PARTS
    read = [types_pb2.Position(shard=1 << 60, log_index=1 << 60)] * 4_096
    query = queries_pb2.QueryRequest(read=types_pb2.ReadOptions(session=read)).SerializeToString()
    assert parts(query, queries_pb2.QueryRequest) == 1 + 3 * 4_096


def test_a_node_refuses_them_before_it_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            short = {name: one for name, one in TINY.items() if len(one[1]) < 1_000_000}  # what this server takes
            assert len(short) >= 8
            for name, (kind, raw) in short.items():
                method = "Records/Upsert" if kind is records_pb2.UpsertRequest else "Queries/Query"
                _, error = await refused(face.raw(method, raw))
                assert isinstance(error, LimitExceeded), name
                assert error.fields["limit"] == MOST_PARTS, name
            stream = face.channel.stream_stream("/vecdb.v1.Records/UpsertStream")()
            await stream.write(TINY["metadata"][1])
            _, error = await refused(stream.read())
            assert isinstance(error, LimitExceeded)
            assert face.door.held == 0

    drive(test)


def count_slowly(message: Message) -> int:
    """What a parsed message has, of fields that are set."""
    total = 0
    for field, value in message.ListFields():
        values = list(value) if field.is_repeated else [value]
        if field.message_type is not None:
            total += sum(1 + count_slowly(one) for one in values)
        elif field.is_repeated and field.type not in (field.TYPE_STRING, field.TYPE_BYTES):
            total += 1  # packed: at least one
        else:
            total += len(values)
    return total


@given(st.binary(max_size=300), st.sampled_from([records_pb2.UpsertRequest, queries_pb2.QueryRequest]))
def test_what_the_parser_reads_is_never_more_than_was_counted(raw: bytes, kind: type[Message]) -> None:
    found = parts(raw, kind)
    assert 0 <= found <= 2 * len(raw)
    try:
        message = kind.FromString(raw)
    except DecodeError:
        return
    assert count_slowly(message) <= found


@given(st.lists(st.sampled_from([b"\x22\x00", b"\x22\x02{}", b"\x12\x02\x12\x00", b"\x1a\x04\x08\x01\x10\x02",
                                 b"\x38\x07", b"\x9b\x06\x9c\x06", b"\x45\x01\x02\x03\x04", b"\x82\x01\x02\x22\x00"]),
                max_size=40))
def test_what_is_well_formed_is_counted_whole(pieces: list[bytes]) -> None:
    raw = b"".join(pieces)
    message = records_pb2.UpsertRequest.FromString(raw)
    assert count_slowly(message) <= parts(raw, records_pb2.UpsertRequest) <= len(raw)
    assert parts(raw, records_pb2.UpsertRequest) >= len(pieces)
    assert COUNTED_BYTES < MOST_PARTS, "what is not counted cannot have more"
