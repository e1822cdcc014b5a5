"""The gRPC face over a FakeNode: what each call passes, what comes back, what is refused."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from tests.fake_node import FakeNode
from tests.waiting import until
from vecdb.core.access import ANONYMOUS, Grant, Principal, Role
from vecdb.core.errors import (
    CollectionExists,
    CollectionNotFound,
    DimensionMismatch,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    VecdbError,
)
from vecdb.core.query import QueryRequest
from vecdb.core.records import UpsertBatch
from vecdb.core.schema import CollectionSchema
from vecdb.ports.observer import NullObserver
from vecdb.rpc.admin import AdminServicer
from vecdb.rpc.door import Guards
from vecdb.rpc.edge import PREFIX, Edge
from vecdb.rpc.server import SERVICES, GrpcServer, ServerOptions
from vecdb.rpc.servicers import STREAM_WINDOW, CollectionsServicer, QueriesServicer, RecordsServicer
from vecdb.rpc.shards import ShardsServicer
from vecdb.services.alone import LoneShards
from vecdb.v1 import admin_pb2, collections_pb2, queries_pb2, records_pb2, shards_pb2
from vecdb.wire import convert, status

SCHEMA = CollectionSchema("docs", 2, "l2")  # type: ignore[arg-type]


class Door:
    """Guards that a test sets; ``told`` is what was audited and observed."""

    def __init__(self) -> None:
        self.principal = ANONYMOUS
        self.refuse: VecdbError | None = None
        self.audited: list[dict[str, Any]] = []
        self.faults: list[BaseException] = []
        self.held = 0
        self.most_held = 0

    def check(self, metadata: Any, peer: str, certificate: str = "") -> Principal:
        if self.refuse is not None:
            raise self.refuse
        return self.principal

    def take(self, principal: Principal, cost: float = 1.0) -> None:
        return None

    def acquire(self, count: int) -> None:
        self.held += count
        self.most_held = max(self.held, self.most_held)

    def release(self, count: int) -> None:
        self.held -= count

    def record(self, **told: Any) -> None:
        self.audited.append(told)


class Calls(NullObserver):
    def __init__(self) -> None:
        self.ended: list[tuple[str, str, str]] = []

    def call_ended(self, method, began, collection, code, bytes_in, bytes_out):  # type: ignore[no-untyped-def]
        self.ended.append((method, collection, code))
        return 0.0


class Face:
    """A served FakeNode and a channel to it."""

    def __init__(self, channel: grpc.aio.Channel, node: FakeNode, door: Door, calls: Calls, server: GrpcServer) -> None:
        self.channel, self.node, self.door, self.calls, self.server = channel, node, door, calls, server

    async def raw(self, method: str, data: bytes, **options: Any) -> bytes:
        return await self.channel.unary_unary(PREFIX + method)(data, **options)  # type: ignore[no-any-return]

    async def ask(self, method: str, request: Any, reply: Any, **options: Any) -> Any:
        return reply.FromString(await self.raw(method, request.SerializeToString(), **options))

    async def fill(self, rows: int = 4) -> None:
        await self.ask("Collections/Create", collections_pb2.CreateCollectionRequest(
            schema=convert.schema_to_wire(SCHEMA)), collections_pb2.CreateCollectionReply)
        batch = UpsertBatch(tuple(range(rows)), np.array([[i, 0] for i in range(rows)], np.float32), (b"{}",) * rows)
        await self.ask("Records/Upsert", convert.upsert_to_wire("docs", batch), records_pb2.UpsertReply)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Face]:
    node, door, calls = FakeNode(), Door(), Calls()
    guards = Guards(door, door, door, door, calls, lambda error, request_id, method: door.faults.append(error),
                    **options)
    with ThreadPoolExecutor(2) as workers:
        methods = [*CollectionsServicer(node).methods(), *RecordsServicer(node, calls).methods(),
                   *QueriesServicer(node, calls, 60.0).methods(),
                   *AdminServicer(node, None, lambda: {"version": "1", "node_id": "n", "secret_path": "x"}).methods(),
                   *ShardsServicer(LoneShards(node, "n")).methods()]
        server = GrpcServer([Edge(methods, guards, workers)], ServerOptions("127.0.0.1:0", 1 << 20, 1_000))
        port = await server.start()
        await server.ready()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Face(channel, node, door, calls, server)
        await server.stop(1.0)


def drive(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


async def refused(awaited: Awaitable[Any]) -> tuple[grpc.aio.AioRpcError, VecdbError]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaited
    error = caught.value
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    return error, status.from_status(error.code().value[0], error.details() or "", details)  # type: ignore[arg-type]


def query_message(*rows: float, tag: int = 0, name: str = "docs", **options: Any) -> queries_pb2.QueryRequest:
    vectors = np.array([[row, 0] for row in rows], np.float32)
    return convert.query_to_wire(name, QueryRequest(vectors, 2, **options), tag)


def test_every_method_of_the_protos_has_a_handler() -> None:
    async def test() -> None:
        async with serving() as face:
            edge = face.server._edges[0]
            for module, name in ((collections_pb2, "Collections"), (records_pb2, "Records"), (queries_pb2, "Queries"),
                                 (admin_pb2, "Admin"), (shards_pb2, "Shards")):
                assert name in SERVICES
                for method in module.DESCRIPTOR.services_by_name[name].methods:
                    handler = edge._handlers[f"{PREFIX}{name}/{method.name}"]
                    assert handler.request_streaming, "one message or many: it is read once the headers are known"
                    assert handler.response_streaming == method.server_streaming

    drive(test)


def test_records_go_in_and_are_found() -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            reply = await face.ask("Queries/Query", query_message(3.2, 0.1, profile=True), queries_pb2.QueryReply)
            result = convert.result_from_wire(reply)
            assert [match.ids for match in result.matches] == [[3, 2], [0, 1]]
            fetched = await face.ask("Records/Fetch", convert.fetch_to_wire("docs", [2, 99]), records_pb2.FetchReply)
            assert [record.id for record in convert.records_from_wire(fetched)] == [2]
            count = await face.ask("Records/Count", records_pb2.CountRequest(collection="docs"), records_pb2.CountReply)
            assert count.count == 4
            assert face.door.held == 0
            assert face.door.most_held > 0
            assert face.calls.ended[-1] == ("Records/Count", "docs", "OK")

    drive(test)


def test_an_error_carries_class_fields_request_id_and_standard_details() -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            wrong = convert.query_to_wire("docs", QueryRequest(np.zeros((1, 3), np.float32), 1))
            raw, error = await refused(face.ask("Queries/Query", wrong, queries_pb2.QueryReply,
                                                metadata=(("x-request-id", "mine-7"),)))
            assert isinstance(error, DimensionMismatch)
            trailing = dict(raw.trailing_metadata() or ())
            assert trailing["x-request-id"] == "mine-7"
            details = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
            kinds = {one.type_url.rpartition("/")[2] for one in details.details}
            assert error_details_pb2.ErrorInfo.DESCRIPTOR.full_name in kinds
            _, error = await refused(face.ask("Queries/Query", query_message(1.0, name="nope"), queries_pb2.QueryReply))
            assert isinstance(error, CollectionNotFound)
            assert face.calls.ended[-1][2] == "NOT_FOUND"
            face.node.fail["query"] = Overloaded("full", retry_after_s=0.25)
            raw, error = await refused(face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply))
            assert isinstance(error, Overloaded)
            assert error.fields["retry_after_s"] == 0.25
            assert dict(raw.trailing_metadata() or ())["grpc-retry-pushback-ms"] == "250"

    drive(test)


def test_a_fault_is_told_without_its_text_and_heard_of_inside() -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            face.node.fail["query"] = RuntimeError("the password is hunter2")
            raw, error = await refused(face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply))
            assert raw.code() is grpc.StatusCode.INTERNAL
            assert "hunter2" not in (raw.details() or "")
            assert "hunter2" not in str(error.fields)
            assert "hunter2" in str(face.door.faults[0])

    drive(test)


def test_garbage_is_refused_and_nothing_ends() -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            whole = query_message(1.0).SerializeToString()
            for data in (b"\xff" * 40, whole[:-3], b"\x00", bytes(range(256))):
                raw, error = await refused(face.raw("Queries/Query", data))
                assert raw.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert isinstance(error, InvalidArgument)
            raw, _ = await refused(face.raw("Queries/Nothing", b""))
            assert raw.code() is grpc.StatusCode.UNIMPLEMENTED
            raw, _ = await refused(face.raw("Queries/Query", b"\x00" * (2 << 20)))
            assert raw.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert not face.door.faults
            await face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply)

    drive(test)


def test_roles_are_asked_before_a_name_is_looked_up() -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            face.door.principal = Principal("k", "reader", (Grant(Role.READ, ("docs",)),))
            await face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply)
            for method, request, reply in (
                    ("Queries/Query", query_message(1.0, name="other"), queries_pb2.QueryReply),
                    ("Records/Delete", records_pb2.DeleteRequest(collection="docs"), records_pb2.DeleteReply),
                    ("Collections/Drop", collections_pb2.DropCollectionRequest(name="docs"),
                     collections_pb2.DropCollectionReply),
                    ("Admin/ListKeys", admin_pb2.ListKeysRequest(), admin_pb2.ListKeysReply)):
                _, error = await refused(face.ask(method, request, reply))
                assert isinstance(error, PermissionDenied), method
            listed = await face.ask("Collections/List", collections_pb2.ListCollectionsRequest(),
                                    collections_pb2.ListCollectionsReply)
            assert list(listed.names) == ["docs"]
            face.door.principal = Principal("k", "stranger", (Grant(Role.READ, ("else",)),))
            listed = await face.ask("Collections/List", collections_pb2.ListCollectionsRequest(),
                                    collections_pb2.ListCollectionsReply)
            assert not listed.names
            server = await face.ask("Admin/GetServer", admin_pb2.GetServerRequest(), admin_pb2.GetServerReply)
            assert server.details_json == b"{}", "what the node says of itself is not for a key of one collection"
            face.door.refuse = Unauthenticated("no key")
            raw, _ = await refused(face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply))
            assert raw.code() is grpc.StatusCode.UNAUTHENTICATED

    drive(test)


def test_admin_calls_are_audited_with_their_outcome() -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            create = collections_pb2.CreateCollectionRequest(schema=convert.schema_to_wire(SCHEMA))
            _, error = await refused(face.ask("Collections/Create", create, collections_pb2.CreateCollectionReply))
            assert isinstance(error, CollectionExists)
            told = [(one["method"], one["collection"], one["outcome"]) for one in face.door.audited]
            assert told == [("Collections/Create", "docs", "OK"), ("Collections/Create", "docs", "ALREADY_EXISTS")]

    drive(test)


def test_the_deadline_and_a_cancellation_reach_the_node() -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            face.node.gate["query"] = asyncio.Event()
            raw, _ = await refused(face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply, timeout=0.1))
            assert raw.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            call = face.node.calls[-1][2]
            assert call.deadline is not None
            assert call.deadline - time.monotonic() < 0.2
            asked = len(face.node.calls)
            task = asyncio.create_task(face.ask("Queries/Query", query_message(2.0), queries_pb2.QueryReply))
            while len([one for one in face.node.calls[asked:] if one[0] == "query"]) < 1:
                await asyncio.sleep(0.005)
            task.cancel()
            call = face.node.calls[-1][2]
            while not call.stop[0]:
                await asyncio.sleep(0.005)
            face.node.gate["query"].set()

    drive(test)


def test_calls_beyond_the_limit_are_refused() -> None:
    async def test() -> None:
        async with serving(concurrent_calls=3) as face:
            await face.fill()
            face.node.gate["query"] = asyncio.Event()
            tasks = [asyncio.create_task(face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply))
                     for _ in range(8)]
            done, waiting = await asyncio.wait(tasks, timeout=2.0)
            while len(done) < 5:
                done, waiting = await asyncio.wait(tasks, timeout=0.1)
            assert len(waiting) == 3
            for task in done:
                error = task.exception()
                assert isinstance(error, grpc.aio.AioRpcError)
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            face.node.gate["query"].set()
            await asyncio.gather(*waiting)
            assert face.server.running == 0

    drive(test)


def test_a_query_stream_answers_each_and_survives_a_refused_one() -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            stream = face.channel.stream_stream(PREFIX + "Queries/QueryStream")()
            for tag in range(1, 40):
                message = query_message(1.0, tag=tag, name="docs" if tag % 5 else "nope")
                await stream.write(message.SerializeToString())
            await stream.done_writing()
            replies = {}
            async for data in stream:
                reply = queries_pb2.QueryReply.FromString(data)
                replies[reply.tag] = reply
            assert sorted(replies) == list(range(1, 40))
            for tag, reply in replies.items():
                assert reply.HasField("error") == (tag % 5 == 0)
            assert isinstance(status.from_error(replies[5].error), CollectionNotFound)

    drive(test)


def test_a_stream_that_nobody_reads_takes_no_more_than_its_window() -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            face.node.gate["query"] = asyncio.Event()
            stream = face.channel.stream_stream(PREFIX + "Queries/QueryStream")()
            message = query_message(1.0, tag=1).SerializeToString()

            async def write() -> None:
                for _ in range(STREAM_WINDOW + 200):
                    await stream.write(message)

            writer = asyncio.create_task(write())
            def asked() -> int:
                return sum(one[0] == "query" for one in face.node.calls)

            await until(lambda: asked() >= STREAM_WINDOW)
            await asyncio.sleep(0.5)  # for more of them to come
            assert asked() == STREAM_WINDOW
            writer.cancel()
            stream.cancel()
            while face.server.running:
                await asyncio.sleep(0.01)
            face.node.gate["query"].set()

    drive(test)


def test_an_upsert_stream_is_acknowledged_in_order_with_its_errors() -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            stream = face.channel.stream_stream(PREFIX + "Records/UpsertStream")()
            for tag in range(6):
                width = 3 if tag == 2 else 2
                batch = UpsertBatch((100 + tag,), np.ones((1, width), np.float32), (b"{}",))
                await stream.write(convert.upsert_to_wire("docs", batch, tag=tag).SerializeToString())
            await stream.done_writing()
            replies = [records_pb2.UpsertReply.FromString(data) async for data in stream]
            assert [reply.tag for reply in replies] == list(range(6))
            assert [reply.HasField("error") for reply in replies] == [False, False, True, False, False, False]

    drive(test)


def test_optimize_tells_of_progress_and_ends_with_the_description() -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            stream = face.channel.unary_stream(PREFIX + "Collections/Optimize")(
                collections_pb2.OptimizeCollectionRequest(name="docs").SerializeToString())
            events = [collections_pb2.OptimizeCollectionReply.FromString(data) async for data in stream]
            assert events[-1].done.records == 4

    drive(test)


def test_health_and_reflection_and_the_drain() -> None:
    async def test() -> None:
        async with serving() as face:
            await face.fill()
            check = face.channel.unary_unary("/grpc.health.v1.Health/Check")
            for service in ("", "vecdb.v1.Queries"):
                data = await check(health_pb2.HealthCheckRequest(service=service).SerializeToString())
                state = health_pb2.HealthCheckResponse.FromString(data).status
                assert state == health_pb2.HealthCheckResponse.SERVING
            from grpc_reflection.v1alpha import reflection_pb2

            stream = face.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")()
            await stream.write(reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="vecdb.v1.Queries").SerializeToString())
            await stream.done_writing()
            told = [reflection_pb2.ServerReflectionResponse.FromString(data) async for data in stream]
            assert told[0].file_descriptor_response.file_descriptor_proto

            face.node.gate["query"] = asyncio.Event()
            running = asyncio.create_task(face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply))
            while not any(one[0] == "query" for one in face.node.calls):
                await asyncio.sleep(0.005)
            stopping = asyncio.create_task(face.server.stop(10.0))
            await asyncio.sleep(0.2)
            assert not stopping.done()
            late, _ = await refused(face.ask("Queries/Query", query_message(1.0), queries_pb2.QueryReply))
            assert late.code() is grpc.StatusCode.UNAVAILABLE
            face.node.gate["query"].set()
            assert (await running).counts
            await stopping

    drive(test)
