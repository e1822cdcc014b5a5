"""Whatever bytes come as messages and metadata: a typed refusal, no fault, and the memory stays where it is."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from tests.server.nodes import DIM, OPTIONS, Node, integers, matrix, node, query, upsert, vectors
from vecdb.v1 import collections_pb2, queries_pb2, records_pb2, types_pb2

MESSAGE_BYTES = 1 << 20
SEED = 20_261
FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE,
          grpc.StatusCode.DEADLINE_EXCEEDED)
METHODS = ("Collections/Create", "Collections/Drop", "Collections/List", "Collections/Get", "Collections/Describe",
           "Records/Upsert", "Records/Delete", "Records/UpdateMetadata", "Records/Fetch", "Records/Scan",
           "Records/Count", "Queries/Query", "Admin/GetServer", "Admin/CreateKey", "Admin/RevokeKey", "Admin/ListJobs")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    with node(tmp_path_factory.mktemp("hostile"), limits__message_bytes=MESSAGE_BYTES) as standing:
        standing.create("docs")
        standing.upsert("docs", np.arange(200), vectors(200, 1), [b'{"n": %d}' % i for i in range(200)])
        yield standing
        assert standing.running
        assert "Traceback" not in standing.words()


def outcome(standing: Node, method: str, raw: bytes, metadata=()) -> grpc.StatusCode:
    """What became of some bytes."""
    try:
        standing.channel.unary_unary(f"/vecdb.v1.{method}")(raw, timeout=30, metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def still_answers(standing: Node) -> None:
    assert standing.running
    reply = standing.query("docs", vectors(1, 2), k=5)
    assert list(reply.counts) == [5]


def good_messages() -> list[tuple[str, bytes]]:
    """One of each kind, small; nothing that would drop the collection of the tests."""
    some = vectors(3, 3)
    docs = "docs"
    made = [
        ("Records/Upsert", upsert(docs, np.arange(1000, 1003), some, [b'{"a": [1, "x"]}'] * 3)),
        ("Records/Delete", records_pb2.DeleteRequest(collection=docs, ids=integers(np.array([5_000])))),
        ("Records/UpdateMetadata", records_pb2.UpdateMetadataRequest(
            collection=docs, ids=integers(np.array([1, 2])), patches=[b'{"b": 2}'])),
        ("Records/Fetch", records_pb2.FetchRequest(collection=docs, ids=types_pb2.Ids(
            integers=b"\x01" + bytes(7), strings=["x"], kinds=b"\x00\x01"))),
        ("Records/Scan", records_pb2.ScanRequest(collection=docs, limit=3, filter=types_pb2.Filter(
            expression="n < 5 and not n == 2"))),
        ("Records/Count", records_pb2.CountRequest(collection=docs, filter=types_pb2.Filter(
            json=b'{"n": {"$gt": 3}}'))),
        ("Queries/Query", query(docs, some, k=3, with_metadata=True, explain=True, profile=True,
                                filter=types_pb2.Filter(expression="n in [1, 2, 3]"))),
        ("Collections/Create", collections_pb2.CreateCollectionRequest(schema=types_pb2.Schema(name=docs, dim=8))),
        ("Collections/Get", collections_pb2.GetCollectionRequest(name=docs)),
    ]
    return [(method, message.SerializeToString()) for method, message in made]


def mutated(raw: bytes, chance: random.Random) -> bytes:
    """Cut, flipped, doubled, stretched."""
    data = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        if not data:
            break
        place = chance.randrange(len(data))
        match chance.randrange(5):
            case 0:
                del data[place:]
            case 1:
                data[place] ^= 1 << chance.randrange(8)
            case 2:
                data[place:place] = data[max(0, place - 9):place]
            case 3:
                data[place:place + 1] = chance.randbytes(chance.randint(1, 6))
            case 4:
                data[place] = chance.choice((0, 0x7F, 0x80, 0xFF))
    return bytes(data)


def storm(standing: Node, count: int, seed: int) -> dict[str, int]:
    """So many bad messages, eight at a time; returns how often each status came."""
    chance = random.Random(seed)
    good = good_messages()
    made = []
    for _ in range(count):
        if chance.random() < 0.3:
            made.append((chance.choice(METHODS), chance.randbytes(chance.choice((0, 1, 3, 17, 300)))))
        else:
            method, raw = chance.choice(good)
            made.append((method, mutated(raw, chance)))
    seen: dict[str, int] = {}
    with ThreadPoolExecutor(8) as threads:
        for (method, raw), code in zip(made, threads.map(lambda one: outcome(standing, *one), made), strict=True):
            assert code not in FAULTS, f"seed {seed}: {method} answered {code.name} to {raw!r}"
            seen[code.name] = seen.get(code.name, 0) + 1
    return seen


def test_a_storm_of_bad_messages_is_refused_and_leaks_nothing(hostile: Node) -> None:
    print(f"seed {SEED}")
    storm(hostile, 1_500, SEED)
    before = hostile.rss()
    seen = storm(hostile, 3_000, SEED + 1)
    assert seen["INVALID_ARGUMENT"] > 300
    # A leak of a kilobyte a message would be three megabytes more; what allocators keep is not far from that.
    assert hostile.rss() - before < 24 << 20
    still_answers(hostile)


HOSTILE_MATRICES = {
    "no rows said, data there": types_pb2.Matrix(rows=0, items=DIM, dtype=1, data=bytes(4 * DIM)),
    "a row too many": types_pb2.Matrix(rows=2, items=DIM, dtype=1, data=bytes(4 * DIM)),
    "a byte too few": types_pb2.Matrix(rows=1, items=DIM, dtype=1, data=bytes(4 * DIM - 1)),
    "a product that overflows": types_pb2.Matrix(rows=2**32 - 1, items=2**32 - 1, dtype=1, data=b"1234"),
    "a product that is zero in 32 bits": types_pb2.Matrix(rows=2**16, items=2**16, dtype=1, data=b""),
    "an unknown dtype": types_pb2.Matrix(rows=1, items=DIM, dtype=77, data=bytes(4 * DIM)),  # type: ignore[arg-type]
    "no dtype": types_pb2.Matrix(rows=1, items=DIM, data=bytes(4 * DIM)),
    "not a number": matrix(np.full((1, DIM), np.nan)),
    "infinity": matrix(np.full((1, DIM), np.inf)),
    "another dimension": matrix(np.zeros((1, DIM + 1))),
    "nothing": types_pb2.Matrix(),
}


@pytest.mark.parametrize("what", HOSTILE_MATRICES)
def test_a_matrix_that_lies_is_refused(hostile: Node, what: str) -> None:
    lie = HOSTILE_MATRICES[what]
    asked = queries_pb2.QueryRequest(collection="docs", vectors=lie, k=3)
    assert outcome(hostile, "Queries/Query", asked.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT
    written = records_pb2.UpsertRequest(collection="docs", ids=integers(np.array([1])), vectors=lie)
    assert outcome(hostile, "Records/Upsert", written.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT
    still_answers(hostile)


HOSTILE_JSON = {
    "not JSON": b"{",
    "no object": b"[1]",
    "deeper than allowed": b'{"a":' * 60 + b"1" + b"}" * 60,
    "deep enough to break a parser": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "larger than allowed": json.dumps({"a": "x" * 70_000}).encode(),
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "half a surrogate": b'{"a": "\\ud800"}',
    "not a number": b'{"a": NaN}',
    "a number beyond all": b'{"a": 1e999}',
    "an empty text": b"",
    "a nul": b'{"a": "\x00"}',
}


@pytest.mark.parametrize("what", HOSTILE_JSON)
def test_metadata_that_is_none_is_refused(hostile: Node, what: str) -> None:
    asked = upsert("docs", np.array([1]), vectors(1, 4), [HOSTILE_JSON[what]])
    assert outcome(hostile, "Records/Upsert", asked.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT
    still_answers(hostile)


HOSTILE_FILTERS = {
    "nested too deep": types_pb2.Filter(expression="(" * 30_000 + "a == 1" + ")" * 30_000),
    "a mapping nested too deep": types_pb2.Filter(json=b'{"$not":' * 20_000 + b'{"a":1}' + b"}" * 20_000),
    "not a filter": types_pb2.Filter(expression="drop table docs"),
    "not JSON": types_pb2.Filter(json=b"\xff"),
    "too many conditions": types_pb2.Filter(expression=" or ".join(f"a == {i}" for i in range(5_000))),
}


@pytest.mark.parametrize("what", HOSTILE_FILTERS)
def test_a_filter_that_is_none_is_refused(hostile: Node, what: str) -> None:
    asked = query("docs", vectors(1, 5), k=3, filter=HOSTILE_FILTERS[what])
    assert outcome(hostile, "Queries/Query", asked.SerializeToString()) is grpc.StatusCode.INVALID_ARGUMENT
    still_answers(hostile)


@pytest.mark.parametrize("change", [{"k": 2**32 - 1}, {"ef_search": 2**31}, {"nprobe": 2**31}, {"within": float("nan")},
                                    {"collection": "../../etc"}, {"collection": ""}])
def test_numbers_and_names_out_of_bounds_are_refused(hostile: Node, change: dict) -> None:
    asked = query("docs", vectors(1, 6), k=3)
    for name, value in change.items():
        setattr(asked, name, value)
    code = outcome(hostile, "Queries/Query", asked.SerializeToString())
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    still_answers(hostile)


def test_unknown_enums_are_refused(hostile: Node) -> None:
    for field, value in (("metric", 99), ("vector_type", 99)):
        schema = types_pb2.Schema(name="odd", dim=8)
        setattr(schema, field, value)
        raw = collections_pb2.CreateCollectionRequest(schema=schema).SerializeToString()
        assert outcome(hostile, "Collections/Create", raw) is grpc.StatusCode.INVALID_ARGUMENT
    still_answers(hostile)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_beyond_the_limit_is_refused_however_small_it_travels(hostile: Node, compression) -> None:
    with grpc.insecure_channel(hostile.target, OPTIONS) as channel:
        before = hostile.rss()
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/vecdb.v1.Queries/Query")(bytes(24 << 20), timeout=30, compression=compression)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert hostile.rss() - before < 64 << 20
    still_answers(hostile)


def test_hostile_headers_are_refused_or_ignored(hostile: Node) -> None:
    asked = query("docs", vectors(1, 7), k=3).SerializeToString()
    odd = [
        ("x-request-id", "r" * 5_000), ("traceparent", "00-zz-zz-zz"), ("authorization", "Bearer vdb_~_x"),
        ("authorization", "Basic " + "A" * 4_000), ("x-anything-bin", bytes(range(256))),
        ("grpc-tags-bin", b"\xff" * 99),
    ]
    for header in odd:
        assert outcome(hostile, "Queries/Query", asked, (header,)) not in FAULTS, header
    many = tuple((f"x-{i}", "v" * 100) for i in range(400))
    assert outcome(hostile, "Queries/Query", asked, many) in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OK)
    still_answers(hostile)


def test_an_unknown_method_is_unimplemented(hostile: Node) -> None:
    for method in ("Queries/Nothing", "Nothing/At/All", "Queries"):
        assert outcome(hostile, method, b"") is grpc.StatusCode.UNIMPLEMENTED


def test_bad_messages_in_a_stream_are_refused_one_by_one(hostile: Node) -> None:
    bad = query("docs", vectors(1, 8, DIM + 1), k=3, tag=2)
    asked = [query("docs", vectors(1, 8), k=3, tag=1), bad, query("docs", vectors(1, 8), k=3, tag=3)]
    replies = hostile.channel.stream_stream("/vecdb.v1.Queries/QueryStream")(
        iter([one.SerializeToString() for one in asked]), timeout=30)
    found = {one.tag: one for one in map(queries_pb2.QueryReply.FromString, replies)}
    assert set(found) == {1, 2, 3}
    assert found[2].error.kind == "DimensionMismatch"
    assert list(found[1].counts) == list(found[3].counts) == [3]
    with pytest.raises(grpc.RpcError) as caught:
        list(hostile.channel.stream_stream("/vecdb.v1.Queries/QueryStream")(iter([b"\xff\xff\xff"]), timeout=30))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    still_answers(hostile)
