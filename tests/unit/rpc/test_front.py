"""A front process's handler before an engine's peer service, both in one loop: queries gathered, all else handed on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fake_node import FakeNode
from tests.unit.rpc.test_edge import Calls, Door, Face, query_message, refused
from vecdb.core.errors import CollectionNotFound, Unauthenticated, Unavailable
from vecdb.core.query import QueryRequest
from vecdb.internal.v1 import peer_pb2
from vecdb.rpc.edge import PREFIX, Edge, Guards
from vecdb.rpc.front import Exchange, Front
from vecdb.rpc.peer import PEER_PREFIX, PROTOCOL, PeerServicer
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
async def paired(folder: Path) -> AsyncIterator[Pair]:
    node, door, calls = FakeNode(), Seeing(), Calls()
    guards = Guards(door, door, door, door, calls, lambda error, request_id, method: door.faults.append(error),
                    relayed=True)
    socket = f"unix:{folder / 'engine.sock'}"
    with ThreadPoolExecutor(2) as workers:
        public = Edge([*CollectionsServicer(node).methods(), *RecordsServicer(node, calls).methods(),
                       *QueriesServicer(node, calls, 60.0).methods()], guards, workers)
        peer = Edge(PeerServicer(public, "engine", "1").methods(), guards, workers, prefix=PEER_PREFIX)
        engine = GrpcServer([public, peer], ServerOptions(socket, -1, 1_000))
        await engine.start()
        await engine.ready()
        inner = grpc.aio.insecure_channel(socket)
        exchange = Exchange(inner, "front-0")
        front = GrpcServer([Front(inner, exchange, certificates=False)],
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
                    ("x-vecdb-certificate", "root"), ("x-other", "y"))
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
