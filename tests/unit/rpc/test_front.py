"""A front process's handler before an engine's peer service, both in one loop: queries gathered, all else handed on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.fake_node import FakeNode
from tests.unit.rpc.test_edge import Calls, Door, Face, query_message, refused
from vecdb.client.remote.failures import failure
from vecdb.core.errors import CollectionNotFound, OutcomeUnknown, Overloaded, Unauthenticated, Unavailable
from vecdb.core.query import QueryRequest
from vecdb.core.records import UpsertBatch
from vecdb.internal.v1 import peer_pb2
from vecdb.rpc import peer
from vecdb.rpc.door import Guards
from vecdb.rpc.edge import PREFIX, Edge
from vecdb.rpc.exchange import Exchange
from vecdb.rpc.front import Front
from vecdb.rpc.peer import PEER_PREFIX, PROTOCOL, PeerServicer, peer_guards
from vecdb.rpc.server import GrpcServer, ServerOptions
from vecdb.rpc.servicers import CollectionsServicer, QueriesServicer, RecordsServicer
from vecdb.v1 import queries_pb2, records_pb2
from vecdb.wire import convert


class Pair(Face):
    """A face whose calls go through the front; ``engine`` is the server behind it."""

    engine: GrpcServer
    socket: str
    seen: list[tuple[dict[str, str], str, str]]


class Seeing(Door):
    """Notes what the engine was told of each caller."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[dict[str, str], str, str]] = []

    def check(self, metadata: Any, peer: str, certificate: str = "") -> Any:
        self.seen.append((dict(metadata), peer, certificate))
        return super().check(metadata, peer, certificate)


@asynccontextmanager
async def paired(folder: Path, **limits: Any) -> AsyncIterator[Pair]:
    node, door, calls = FakeNode(), Seeing(), Calls()
    guards = Guards(door, door, door, door, calls, lambda error, request_id, method: door.faults.append(error),
                    relayed=True)
    socket = f"unix:{folder / 'engine.sock'}"
    with ThreadPoolExecutor(2) as workers:
        public = Edge([*CollectionsServicer(node).methods(), *RecordsServicer(node, calls).methods(),
                       *QueriesServicer(node, calls, 60.0).methods()], guards, workers)
        inside = Edge(PeerServicer(public, "engine", "1").methods(), peer_guards(guards), workers, prefix=PEER_PREFIX)
        engine = GrpcServer([public, inside], ServerOptions(socket, -1, 1_000))
        await engine.start()
        await engine.ready()
        inner = grpc.aio.insecure_channel(socket)
        exchange = Exchange(inner, "front-0")
        front = GrpcServer([Front(inner, exchange, certificates=False, **limits)],
                           ServerOptions("127.0.0.1:0", 1 << 20, 1_000))
        port = await front.start()
        await front.ready()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            pair = Pair(channel, node, door, calls, front)
            pair.engine, pair.socket, pair.seen = engine, socket, door.seen
            yield pair
        await front.stop(1.0)
        await exchange.close()
        await inner.close()
        await engine.stop(1.0)


def drive(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


def test_records_and_queries_go_through(tmp_path: Path) -> None:
    async def test() -> None:
        async with paired(tmp_path) as pair:
            await pair.fill()
            replies = await asyncio.gather(*(
                pair.ask("Queries/Query", query_message(row % 4), queries_pb2.QueryReply) for row in range(50)))
            for row, reply in enumerate(replies):
                assert convert.result_from_wire(reply).matches[0].ids[0] == row % 4
            stream = pair.channel.stream_stream(PREFIX + "Queries/QueryStream")()
            for tag in range(1, 10):
                await stream.write(query_message(1.0, tag=tag).SerializeToString())
            await stream.done_writing()
            tags = [queries_pb2.QueryReply.FromString(data).tag async for data in stream]
            assert sorted(tags) == list(range(1, 10))

    drive(test)


def test_what_the_caller_sent_is_handed_on_and_what_it_may_not_say_is_not(tmp_path: Path) -> None:
    async def test() -> None:
        async with paired(tmp_path) as pair:
            await pair.fill()
            pair.seen.clear()
            sent = (("authorization", "Bearer vdb_x"), ("x-vecdb-peer", "ipv4:6.6.6.6:1"), ("x-request-id", "mine"),
                    ("x-vecdb-certificate-bin", b"root"), ("x-other", "y"))
            await pair.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply, metadata=sent)
            await pair.ask("Records/Count", records_pb2.CountRequest(collection="docs"), records_pb2.CountReply,
                           metadata=sent)
            calls = [one for one in pair.seen if "authorization" in one[0]]
            assert len(calls) == 2
            for metadata, peer, certificate in calls:
                assert metadata["authorization"] == "Bearer vdb_x"
                assert peer.startswith("ipv4:127.0.0.1:") or "127.0.0.1" in peer
                assert certificate == ""
                assert "x-other" not in metadata
            assert [call.request_id for _, _, call in pair.node.calls][-1] == "mine"

    drive(test)


def test_refusals_come_through_whole(tmp_path: Path) -> None:
    async def test() -> None:
        async with paired(tmp_path) as pair:
            await pair.fill()
            _, error = await refused(pair.ask("Queries/Query", query_message(1.0, name="nope"), queries_pb2.QueryReply))
            assert isinstance(error, CollectionNotFound)
            _, error = await refused(pair.ask("Records/Count", records_pb2.CountRequest(collection="nope"),
                                              records_pb2.CountReply))
            assert isinstance(error, CollectionNotFound)
            raw, _ = await refused(pair.raw("Queries/Query", b"\xff" * 9))
            assert raw.code() is grpc.StatusCode.INVALID_ARGUMENT
            await asyncio.sleep(0.05)
            pair.door.refuse = Unauthenticated("no")
            for method, request in (("Queries/Query", query_message(1.0)),
                                    ("Records/Count", records_pb2.CountRequest(collection="docs"))):
                raw, error = await refused(pair.raw(method, request.SerializeToString()))
                assert isinstance(error, Unauthenticated), method

    drive(test)


def test_a_client_that_goes_ends_its_query_in_the_engine(tmp_path: Path) -> None:
    async def test() -> None:
        async with paired(tmp_path) as pair:
            await pair.fill()
            pair.node.gate["query"] = asyncio.Event()
            raw, _ = await refused(pair.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply, timeout=0.2))
            assert raw.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            task = asyncio.create_task(pair.ask("Queries/Query", query_message(2.0), queries_pb2.QueryReply))
            while sum(one[0] == "query" for one in pair.node.calls) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            call = [one[2] for one in pair.node.calls if one[0] == "query"][-1]
            while not call.stop[0]:
                await asyncio.sleep(0.01)

    drive(test)


def test_an_engine_that_is_gone_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    async def test() -> None:
        async with paired(tmp_path) as pair:
            await pair.fill()
            await pair.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply)
            pair.node.gate["query"] = asyncio.Event()
            waiting = asyncio.create_task(pair.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply))
            while sum(one[0] == "query" for one in pair.node.calls) < 2:
                await asyncio.sleep(0.01)
            await pair.engine.stop(0.0)
            _, error = await refused(waiting)
            assert isinstance(error, Unavailable)

    drive(test)


def asked(node: Any) -> int:
    return sum(one[0] == "query" for one in node.calls)


def test_calls_beyond_the_limit_are_refused_typed_and_before_they_go_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with paired(tmp_path, calls=3) as pair:
            await pair.fill()
            pair.node.gate["query"] = asyncio.Event()
            held = [asyncio.create_task(pair.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply))
                    for _ in range(2)]
            stream = pair.channel.stream_stream(PREFIX + "Queries/QueryStream")()
            await stream.write(query_message(1.0).SerializeToString())
            while asked(pair.node) < 3:
                await asyncio.sleep(0.01)
            pair.seen.clear()
            for call in (pair.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply),
                         pair.ask("Records/Count", records_pb2.CountRequest(collection="docs"), records_pb2.CountReply),
                         pair.channel.stream_stream(PREFIX + "Queries/QueryStream")(iter(())).read()):
                raw, error = await refused(call)
                assert raw.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert isinstance(error, Overloaded)
                assert dict(raw.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "100"
            assert pair.seen == []
            pair.node.gate["query"].set()
            await asyncio.gather(*held)
            assert queries_pb2.QueryReply.FromString(await stream.read()).counts
            stream.cancel()
            while pair.server.running:
                await asyncio.sleep(0.01)
            await pair.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply)

    drive(test)


def test_bytes_beyond_the_limit_are_refused_in_calls_and_in_streams(tmp_path: Path) -> None:
    async def test() -> None:
        async with paired(tmp_path, inflight_bytes=60_000) as pair:
            await pair.fill()
            large = query_message(*[1.0] * 5_000)
            assert 30_000 < large.ByteSize() < 60_000
            pair.node.gate["query"] = asyncio.Event()
            held = asyncio.create_task(pair.ask("Queries/Query", large, queries_pb2.QueryReply))
            while not asked(pair.node):
                await asyncio.sleep(0.01)
            _, error = await refused(pair.ask("Queries/Query", large, queries_pb2.QueryReply))
            assert isinstance(error, Overloaded)
            stream = pair.channel.stream_stream(PREFIX + "Queries/QueryStream")()
            await stream.write(large.SerializeToString())
            raw, error = await refused(stream.read())
            assert isinstance(error, Overloaded), raw
            pair.node.gate["query"].set()
            await held
            assert (await pair.ask("Queries/Query", large, queries_pb2.QueryReply)).counts[:1] == [2]
            front = pair.server._edges[0]
            assert front.budget.used == 0
            assert pair.door.held == 0

    drive(test)


def test_a_stream_refused_while_the_engine_is_at_a_batch_does_not_say_that_nothing_was_done(tmp_path: Path) -> None:
    """Its answer is lost with the stream: a client without keys would do it again, or be told that it was not done."""
    async def test() -> None:
        async with paired(tmp_path, inflight_bytes=60_000) as pair:
            await pair.fill()
            pair.node.gate["query"], pair.node.gate["upsert"] = asyncio.Event(), asyncio.Event()
            held = asyncio.create_task(pair.ask("Queries/Query", query_message(*[1.0] * 6_000), queries_pb2.QueryReply))
            while not asked(pair.node):
                await asyncio.sleep(0.01)
            stream = pair.channel.stream_stream(PREFIX + "Records/UpsertStream")()
            small, large = (convert.upsert_to_wire("docs", UpsertBatch(
                tuple(range(rows)), np.zeros((rows, 2), np.float32), (b"{}",) * rows)) for rows in (1, 4_000))
            await stream.write(small.SerializeToString())
            while [method for method, _, _ in pair.node.calls].count("upsert") < 2:
                await asyncio.sleep(0.01)
            await stream.write(large.SerializeToString())
            raw, error = await refused(stream.read())
            assert isinstance(error, OutcomeUnknown), raw
            assert not failure(raw, "the server").decided
            stream = pair.channel.stream_stream(PREFIX + "Records/UpsertStream")()
            await stream.write(large.SerializeToString())
            raw, error = await refused(stream.read())
            assert isinstance(error, Overloaded), "of nothing that went on the answer is missing"
            pair.node.gate["query"].set()
            await held
            assert pair.server._edges[0].budget.used == 0

    drive(test)


def test_a_query_given_up_before_it_was_sent_never_goes() -> None:
    """Sent with its own cancellation, it would be cancelled first and run after that."""
    async def test() -> None:
        async with grpc.aio.insecure_channel("unix:/nowhere/engine") as channel:
            exchange = Exchange(channel, "front-1")
            task = asyncio.create_task(exchange.ask(peer_pb2.PeerQuery(query=query_message(1.0))))
            await asyncio.sleep(0)
            assert len(exchange._pending) == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not exchange._pending
            assert not exchange._cancelled
            with pytest.raises(Unavailable):
                await exchange.ask(peer_pb2.PeerQuery(query=query_message(1.0)))
            assert not exchange._waiting
            await exchange.close()

    drive(test)


def test_many_queries_go_in_few_messages_and_all_are_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with paired(tmp_path) as pair, grpc.aio.insecure_channel(pair.socket) as channel:
            await pair.fill()
            exchange = Exchange(channel, "front-1")
            replies = await asyncio.gather(*(exchange.ask(peer_pb2.PeerQuery(query=query_message(row % 4)))
                                             for row in range(1_000)))
            for row, reply in enumerate(replies):
                assert convert.result_from_wire(reply).matches[0].ids[0] == row % 4
            await exchange.close()

    drive(test)


def test_a_stream_ends_when_its_key_does(tmp_path: Path) -> None:
    async def test() -> None:
        async with paired(tmp_path) as pair:
            await pair.fill()
            stream = pair.channel.stream_stream(PREFIX + "Queries/QueryStream")()
            await stream.write(query_message(1.0).SerializeToString())
            await stream.read()
            pair.door.refuse = Unauthenticated("revoked")
            await stream.write(query_message(1.0).SerializeToString())
            _, error = await refused(stream.read())
            assert isinstance(error, Unauthenticated)

    drive(test)


def test_answers_go_together_up_to_a_message_of_bounded_size() -> None:
    exchange = peer._Exchange(None)  # type: ignore[arg-type]  # nothing is asked
    small = queries_pb2.QueryReply(distances=bytes(100))
    large = queries_pb2.QueryReply(distances=bytes(peer.BYTES_PER_MESSAGE // 2))
    giant = queries_pb2.QueryReply(distances=bytes(3 * peer.BYTES_PER_MESSAGE))
    for reply in (small, large, large, giant, small, *[small] * peer.ANSWERS_PER_MESSAGE):
        exchange._ready.append(peer_pb2.PeerAnswer(reply=reply))
    taken = []
    while exchange._ready:
        taken.append(len(exchange._some()))
    assert taken == [2, 1, 1, peer.ANSWERS_PER_MESSAGE, 1]


def test_a_peer_of_another_protocol_or_cluster_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with paired(tmp_path) as pair, grpc.aio.insecure_channel(pair.socket) as channel:
            hello = channel.unary_unary(PEER_PREFIX + "Peer/Hello")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await hello(peer_pb2.HelloRequest(protocol=PROTOCOL + 1).SerializeToString())
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await hello(peer_pb2.HelloRequest(protocol=PROTOCOL, cluster_id="x").SerializeToString())
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    drive(test)


def test_the_message_that_a_query_travels_in_is_the_clients_own() -> None:
    """Nothing of a query is lost on the way, whatever fields it has."""
    import numpy as np

    request = QueryRequest(np.ones((2, 3), np.float32), 4, within=0.5, exact=True, include_metadata=True, explain=True)
    raw = convert.query_to_wire("docs", request, 9).SerializeToString()
    query = peer_pb2.PeerQuery(tag=1)
    query.query.ParseFromString(raw)
    assert peer_pb2.PeerQuery.FromString(query.SerializeToString()).query.SerializeToString() == raw
