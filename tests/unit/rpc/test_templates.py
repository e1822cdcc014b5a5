"""Messages that differ in the vector alone, and answers written by hand."""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rpc.test_edge import drive, query_message, refused, serving
from vecdb.core.access import ANONYMOUS, Grant, Principal, Role
from vecdb.core.calls import Call
from vecdb.core.errors import PermissionDenied
from vecdb.core.query import Matches, QueryRequest, QueryResult
from vecdb.ports import tracing
from vecdb.rpc import templates as rooms
from vecdb.rpc.templates import MOST, Templates, gap, reply_parts
from vecdb.v1 import queries_pb2, types_pb2
from vecdb.wire import convert

REQUESTS = st.builds(
    queries_pb2.QueryRequest, collection=st.text(min_size=1, max_size=40), k=st.integers(0, 10_000),
    vectors=st.builds(types_pb2.Matrix, rows=st.integers(0, 3), items=st.integers(0, 300), dtype=st.just(1),
                      data=st.binary(min_size=1, max_size=400)),
    ef_search=st.integers(0, 2**32 - 1), exact=st.booleans(), normalized=st.booleans(), tag=st.integers(0, 2**64 - 1),
    schema_shape=st.integers(0, 2**32 - 1), within=st.none() | st.floats(allow_nan=False),
    filter=st.none() | st.builds(types_pb2.Filter, expression=st.text(max_size=10)))  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(message=REQUESTS, random=st.randoms(use_true_random=False))
def test_whatever_stands_in_the_gap_is_the_vector(message: queries_pb2.QueryRequest, random: Any) -> None:
    raw = message.SerializeToString()
    found = gap(raw)
    assert found is not None
    start, stop = found
    assert raw[start:stop] == message.vectors.data
    for other in (random.randbytes(stop - start), bytes(byte ^ 0xFF for byte in raw[start:stop]), bytes(stop - start)):
        parsed = queries_pb2.QueryRequest.FromString(raw[:start] + other + raw[stop:])
        assert parsed.vectors.data == other
        parsed.vectors.data = message.vectors.data
        assert parsed == message


def test_messages_whose_vector_is_not_plain_to_see_have_no_gap() -> None:
    plain = query_message(1.0).SerializeToString()
    twice = plain + queries_pb2.QueryRequest(vectors=types_pb2.Matrix(data=b"12345678")).SerializeToString()
    assert queries_pb2.QueryRequest.FromString(twice).vectors.data == b"12345678"
    inner = types_pb2.Matrix(rows=1, items=2, dtype=1, data=b"12345678").SerializeToString()
    doubled = b"\x12" + bytes([2 * len(inner)]) + inner + inner
    queries_pb2.QueryRequest.FromString(doubled)
    group = plain + b"\xa3\x06\xa4\x06"  # an unknown group
    queries_pb2.QueryRequest.FromString(group)
    for raw in (twice, doubled, group, b"", queries_pb2.QueryRequest(collection="x").SerializeToString()):
        assert gap(raw) is None
    unknown = plain + b"\xa2\x06\x03abc" + b"\xa5\x06abcd" + b"\xa1\x06abcdefgh" + b"\xa0\x06\x96\x01"
    queries_pb2.QueryRequest.FromString(unknown)
    assert gap(unknown) == gap(plain)


@settings(max_examples=100, deadline=None)
@given(k=st.integers(1, 256), tag=st.sampled_from([0, 1, 127, 128, 2**64 - 1]), data=st.data())
def test_a_reply_by_hand_is_the_one_that_is_generated(k: int, tag: int, data: Any) -> None:
    ids = data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=k, max_size=k))
    distances = np.array(data.draw(st.lists(st.floats(width=32), min_size=k, max_size=k)), np.float32)
    expected = convert.result_to_wire(QueryResult([Matches(ids, distances)]), tag).SerializeToString()
    head, middle, tail = reply_parts(k, tag)
    assert head + np.array(ids, np.int64).tobytes() + middle + distances.tobytes() + tail == expected


class Way:
    """Answers with the bytes it was asked with."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.told: list[tuple[str, tuple[int, int]]] = []
        self.stale = self.closed = False
        self.error: Exception | None = None

    def answer(self, data: bytes) -> tuple[bytes, bytes] | None:
        self.asked.append(data)
        if self.error is not None:
            raise self.error
        return None if self.closed or self.stale else (np.array([7, 8], np.int64).tobytes(), data)

    def tell(self, method: str, began: float, sizes: tuple[int, int], answer: tuple[bytes, bytes], call: Any) -> None:
        assert isinstance(call(), Call)
        self.told.append((method, sizes))


def answered(templates: Templates, message: queries_pb2.QueryRequest, times: int = 2) -> bytes:
    raw = message.SerializeToString()
    vectors = np.frombuffer(message.vectors.data, np.float32).reshape(message.vectors.rows, -1)
    for _ in range(times):
        templates.answered(raw, message, QueryRequest(vectors, message.k))
    return raw


def test_a_template_is_made_of_what_comes_twice() -> None:
    way = Way()
    templates = Templates(lambda name, request, normalized: way)
    raw = answered(templates, query_message(1.0), times=1)
    assert templates.find(raw) is None
    answered(templates, query_message(2.0), times=1)
    template = templates.find(raw)
    assert template is not None
    assert templates.find(query_message(3.0, tag=4).SerializeToString()) is None
    assert templates.find(query_message(3.0, name="dogs").SerializeToString()) is None
    assert templates.find(query_message(3.0, exact=True).SerializeToString()) is None
    reply = template.answer(raw, ANONYMOUS, "Queries/Query", 0.0, Call)
    assert reply is not None
    assert list(queries_pb2.QueryReply.FromString(reply).counts) == [2]
    assert way.asked == [np.array([1.0, 0.0], np.float32).tobytes()]
    assert way.told == [("Queries/Query", (len(raw), len(reply)))]


def test_who_may_not_read_the_collection_goes_the_long_way_which_says_so() -> None:
    templates = Templates(lambda name, request, normalized: Way())
    raw = answered(templates, query_message(1.0))
    template = templates.find(raw)
    assert template is not None
    other = Principal("k", "other", (Grant(Role.ADMIN, ("dogs",)),))
    for principal, may in ((other, False), (ANONYMOUS, True), (other, False), (ANONYMOUS, True)):
        assert (template.answer(raw, principal, "Queries/Query", 0.0, Call) is not None) == may


def test_templates_are_bounded() -> None:
    templates = Templates(lambda name, request, normalized: Way())
    for length in range(5 * MOST):
        answered(templates, query_message(1.0, name="x" * (1 + length % 50) + "y" * (length // 50)))
        answered(templates, query_message(1.0, name=f"{length:05}"))
        assert len(templates) <= MOST
        assert len(templates._seen) <= MOST
    assert sum(map(len, templates._by_length.values())) == len(templates)


def test_a_way_that_is_stale_is_found_anew_but_not_at_every_query(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[Way] = []
    templates = Templates(lambda name, request, normalized: ways.append(Way()) or ways[-1])  # type: ignore[func-returns-value]
    monkeypatch.setattr(rooms, "AGAIN_S", 1e-9)
    raw = answered(templates, query_message(1.0), times=5)
    template = templates.find(raw)
    assert template is not None
    assert len(ways) == 1
    ways[0].stale = True
    assert template.answer(raw, ANONYMOUS, "Queries/Query", 0.0, Call) is None
    answered(templates, query_message(1.0))
    assert len(ways) == 2
    monkeypatch.setattr(rooms, "AGAIN_S", 1e9)
    ways[1].stale = True
    answered(templates, query_message(1.0))
    ways[2].stale = True
    answered(templates, query_message(1.0))
    assert len(ways) == 3


@pytest.fixture(autouse=True)
def untraced() -> Any:
    """A traced call goes the long way, and another test may have left traces on."""
    before = tracing.use(tracing.NullTracer())
    yield
    tracing.use(before)


async def over(face: Any) -> None:
    """Return once the server has done with every call: a reply is with the client a moment before that."""
    inside = face.server._edges[0]._guards.inside
    while inside.calls or face.server.running:
        await asyncio.sleep(0.001)


def test_over_the_wire() -> None:
    async def test() -> None:
        async with serving() as face:
            way = Way()
            templates = face.server._edges[0]._methods["Queries/Query"].templates  # type: ignore[attr-defined]
            templates._find_way = lambda name, request, normalized: way
            await face.fill()
            for row in (1.0, 2.0):
                await over(face)
                reply = await face.ask("Queries/Query", query_message(row), queries_pb2.QueryReply)
                assert convert.result_from_wire(reply).matches[0].ids[0] == int(row)
            await over(face)
            before = len(face.node.calls)
            reply = await face.ask("Queries/Query", query_message(3.0), queries_pb2.QueryReply)
            assert convert.result_from_wire(reply).matches[0].ids == [7, 8]
            assert len(face.node.calls) == before
            assert [told[0] for told in way.told] == ["Queries/Query"]
            way.closed = True
            await over(face)
            reply = await face.ask("Queries/Query", query_message(3.0), queries_pb2.QueryReply)
            assert convert.result_from_wire(reply).matches[0].ids[0] == 3
            await over(face)
            assert face.calls.ended[-1] == ("Queries/Query", "docs", "OK")
            way.closed = False
            face.door.principal = Principal("k", "reader", (Grant(Role.READ, ("dogs",)),))
            _, error = await refused(face.ask("Queries/Query", query_message(3.0), queries_pb2.QueryReply))
            assert isinstance(error, PermissionDenied)
            await over(face)
            face.door.principal = ANONYMOUS
            way.error = RuntimeError("a fault of ours")
            raw, _ = await refused(face.ask("Queries/Query", query_message(3.0), queries_pb2.QueryReply))
            assert raw.code() is grpc.StatusCode.INTERNAL
            await over(face)
            assert len(face.door.faults) == 1
            assert face.calls.ended[-1] == ("Queries/Query", "", "INTERNAL")
            assert face.server.running == 0
            assert face.door.held == 0

    drive(test)


def test_others_that_are_under_way_are_seen() -> None:
    async def test() -> None:
        async with serving() as face:
            inside = face.server._edges[0]._guards.inside  # type: ignore[attr-defined]
            await face.fill()
            await over(face)
            face.node.gate["query"] = asyncio.Event()
            running = [asyncio.create_task(face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply))
                       for _ in range(3)]
            while sum(one[0] == "query" for one in face.node.calls) < 3:
                await asyncio.sleep(0.01)
            assert inside.calls == 3
            face.node.gate["query"].set()
            await asyncio.gather(*running)
            await over(face)

    drive(test)
