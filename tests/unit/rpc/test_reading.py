"""Who calls is known before his message is read, and a message that does not come ends its call."""

import asyncio

import grpc
import pytest

from tests.unit.rpc.test_edge import drive, query_message, refused, serving
from vecdb.core.access import Grant, Principal, Role
from vecdb.core.errors import LimitExceeded, PermissionDenied, Unauthenticated, Unavailable
from vecdb.rpc.edge import PREFIX
from vecdb.rpc.reading import Readers
from vecdb.v1 import admin_pb2, queries_pb2


def test_a_caller_without_a_key_is_refused_before_a_message_comes() -> None:
    async def test() -> None:
        async with serving() as face:
            face.door.refuse = Unauthenticated("no key")
            call = face.channel.stream_unary(PREFIX + "Queries/Query")()  # headers, and never a message
            _, error = await refused(call)
            assert isinstance(error, Unauthenticated)
            face.door.refuse = None
            face.door.principal = Principal("k", "reader", (Grant(Role.READ, ("docs",)),))
            call = face.channel.stream_unary(PREFIX + "Admin/CreateKey")()
            _, error = await refused(call)
            assert isinstance(error, PermissionDenied)

    drive(test)


def test_a_message_that_does_not_come_ends_its_call() -> None:
    async def test() -> None:
        async with serving() as face:
            face.server._edges[0]._readers = Readers(0.2, 0.05)  # type: ignore[attr-defined]
            waiting = face.channel.stream_unary(PREFIX + "Queries/Query")()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await waiting
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert face.server.running == 0
            empty = face.channel.stream_unary(PREFIX + "Queries/Query")()
            await empty.done_writing()
            raw, _ = await refused(empty)
            assert raw.code() is grpc.StatusCode.INVALID_ARGUMENT

    drive(test)


def test_a_message_may_be_no_larger_than_its_kind() -> None:
    async def test() -> None:
        async with serving() as face:
            many = admin_pb2.CreateKeyRequest(name="x", grants=[admin_pb2.Grant()] * 200_000)
            _, error = await refused(face.raw("Admin/CreateKey", many.SerializeToString()))
            assert isinstance(error, LimitExceeded)
            assert face.door.audited[-1]["arguments"] == {}
            assert face.door.held == 0

    drive(test)


def test_a_node_that_drains_refuses_what_comes_and_ends_what_runs() -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            face.node.gate["query"] = asyncio.Event()
            running = [asyncio.create_task(face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply))
                       for _ in range(5)]
            stream = face.channel.stream_stream(PREFIX + "Queries/QueryStream")()
            await stream.write(query_message(2.0, tag=1).SerializeToString())
            while sum(one[0] == "query" for one in face.node.calls) < 6:
                await asyncio.sleep(0.01)
            stopping = asyncio.create_task(face.server.stop(10.0))
            await asyncio.sleep(0.2)
            _, error = await refused(face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply))
            assert isinstance(error, Unavailable)
            assert error.fields["retry_after_s"] > 0
            face.node.gate["query"].set()
            assert all(reply.counts for reply in await asyncio.gather(*running))
            assert queries_pb2.QueryReply.FromString(await stream.read()).counts
            await stopping

    drive(test)
