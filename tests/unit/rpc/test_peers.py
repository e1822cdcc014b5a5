"""What nodes ask of each other's replicas: there and back over a real listener, and every way it may end."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tests.fake_node import FakeNode
from vecdb.client.remote.node import RemoteNode
from vecdb.client.remote.options import Options
from vecdb.cluster.founding import Founding
from vecdb.core.calls import Call, Consistency, Stopped, WriteToken
from vecdb.core.errors import (
    CollectionExists,
    DeadlineExceeded,
    InvalidArgument,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    VecdbError,
)
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.records import Outcome, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.ports import context
from vecdb.ports.observer import NullObserver
from vecdb.ports.replicator import Committed, ReplicaStatus
from vecdb.rpc.door import Guards
from vecdb.rpc.edge import Edge
from vecdb.rpc.peer import PEER_PREFIX
from vecdb.rpc.peer_channels import PeerChannels
from vecdb.rpc.peers import FoundingServicer, RemotePeers, RemoteWitnesses, ReplicasServicer, cluster_guards
from vecdb.rpc.peers_server import PeerServer, PeerServerOptions
from vecdb.rpc.servicers import CollectionsServicer, QueriesServicer, RecordsServicer
from vecdb.runtime.clock import SystemClock
from vecdb.shard.marks import MarkResult

SCHEMA = CollectionSchema("docs", 2, "l2")  # type: ignore[arg-type]
STATUS = ReplicaStatus("n2/7", "ok", "follower", 3, "n1/5", 10, 9, 2, 11, 512, ("n1/5", "n2/7"), ("n3/1",), ("n3/2",),
                       error="none")
MARK = MarkResult(8, 3, 100, "0123abcd")


class Own:
    """A node's replicas that answer what the test says; ``seen``: what they were asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []
        self.calls: list[Call] = []
        self.failing: VecdbError | None = None
        self.hangs = False
        self.result: object = WriteResult(inserted=3, log_index=8)

    async def _asked(self, call: Call, *what: Any) -> None:
        self.seen.append(what)
        self.calls.append(call)
        if self.hangs:
            await asyncio.Event().wait()
        if self.failing is not None:
            raise self.failing

    async def propose(self, group: int, command: bytes, call: Call) -> Committed:
        await self._asked(call, "propose", group, command)
        return Committed(9, self.result)

    async def change(self, what: CollectionSchema | str, call: Call, layout: Layout = ANYHOW) -> int:
        await self._asked(call, "change", what, *([layout] if layout.given else []))
        return 12

    async def read_index(self, group: int, call: Call) -> int:
        await self._asked(call, "read_index", group)
        return 10

    async def status(self, groups: Sequence[int], call: Call) -> dict[int, ReplicaStatus]:
        await self._asked(call, "status", tuple(groups))
        return {4: STATUS}

    async def mark(self, group: int, log_index: int, call: Call) -> MarkResult:
        await self._asked(call, "mark", group, log_index)
        return MARK

    async def transfer(self, group: int, to: str | None, call: Call) -> None:
        await self._asked(call, "transfer", group, to)


class _Refusing:
    """Nobody may get in, no call has room: what the public door would say."""

    def check(self, *_: Any) -> Any:
        raise AssertionError("nodes are not asked for keys")

    def take(self, *_: Any) -> None:
        raise AssertionError("calls of nodes are not counted against a rate")

    acquire = release = take

    def record(self, **_: Any) -> None:
        return None


class Bench:
    def __init__(self, own: Own, node: FakeNode, peers: RemotePeers, channels: PeerChannels, server: PeerServer,
                 faults: list[BaseException]) -> None:
        self.own, self.node, self.peers, self.channels, self.server = own, node, peers, channels, server
        self.faults = faults
        self.there = peers.replicas("n2")


@asynccontextmanager
async def between(own: Any = None, without: str = "") -> AsyncIterator[Bench]:
    """Node n1 asks node n2, which may be of a release that lacks a method."""
    own, node, refusing = own or Own(), FakeNode(), _Refusing()
    faults: list[BaseException] = []
    guards = cluster_guards(Guards(refusing, refusing, refusing, refusing, NullObserver(),
                                   lambda error, request_id, method: faults.append(error)))
    with ThreadPoolExecutor(1) as workers:
        internal = [*(one for one in ReplicasServicer(own).methods() if one.name != without),
                    *FoundingServicer(lambda: Founding(7, ("n1/1",), (), True)).methods()]
        public = [*CollectionsServicer(node).methods(), *RecordsServicer(node, NullObserver()).methods(),
                  *QueriesServicer(node, NullObserver(), 60.0).methods()]
        edges = [Edge(internal, guards, workers, prefix=PEER_PREFIX), Edge(public, guards, workers)]
        server = PeerServer(PeerServerOptions("n2", "tests", "127.0.0.1:0", ("n1", "n2"), insecure=True), edges)
        port = await server.start()
        channels = PeerChannels("n1", "tests", {"n1": "127.0.0.1:1", "n2": f"127.0.0.1:{port}"}, None)
        peers = RemotePeers(channels, lambda channel, label: RemoteNode(
            channel, Options(timeout=None, retries=0, auto_batch=False)), SystemClock())
        try:
            yield Bench(own, node, peers, channels, server, faults)
        finally:
            await peers.close()
            await channels.close()
            await server.stop()


def run(test: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(30), between() as bench:
            await test(bench)

    asyncio.run(whole())


def soon(seconds: float = 10.0) -> Call:
    return Call(deadline=time.monotonic() + seconds)


def test_everything_comes_back_as_it_was() -> None:
    async def test(bench: Bench) -> None:
        own, there = bench.own, bench.there
        assert await there.propose(4, b"command", soon()) == Committed(9, WriteResult(inserted=3, log_index=8))
        own.result = WriteResult(inserted=3, log_index=8, outcomes=(Outcome(2, None, (3, 0, 0, 0)),
                                                                    Outcome(0, 0, (0, 0, 0, 0))))
        told = (await there.propose(4, b"", soon())).result
        assert told == own.result
        assert isinstance(told, WriteResult)
        assert told.outcomes == own.result.outcomes
        own.result = MARK
        assert await there.propose(4, b"", soon()) == Committed(9, MARK)
        own.result = None
        assert await there.propose(4, b"\x00" * (5 << 20), soon()) == Committed(9, None)
        call = soon()
        call.token = WriteToken(b"key")
        assert await there.change(SCHEMA, call) == 12
        assert await there.change(SCHEMA, call, Layout(3, 2, "tenant", 9)) == 12
        assert await there.change("docs", call) == 12
        assert own.calls[-1].token == call.token
        assert await there.read_index(4, soon()) == 10
        assert await there.status([], soon()) == {4: STATUS}
        assert await there.status([0, 4], soon()) == {4: STATUS}
        assert await there.mark(4, 8, soon()) == MARK
        await there.transfer(4, None, soon())
        await there.transfer(0, "n3/2", soon())
        assert [one for one in own.seen if one[0] != "propose"] == [
            ("change", SCHEMA), ("change", SCHEMA, Layout(3, 2, "tenant", 9)), ("change", "docs"),
            ("read_index", 4), ("status", ()), ("status", (0, 4)),
            ("mark", 4, 8), ("transfer", 4, None), ("transfer", 0, "n3/2")]
        assert own.seen[0] == ("propose", 4, b"command")
        assert await RemoteWitnesses(bench.peers).founding("n2") == Founding(7, ("n1/1",), (), True)

    run(test)


def test_a_call_carries_for_whom_it_is_and_until_when() -> None:
    async def test(bench: Bench) -> None:
        call = soon(5.0)
        call.request_id = "request-1"
        context.bind("request-1", "docs", "key Zoë")
        await bench.there.read_index(4, call)
        (seen,) = bench.own.calls
        assert (seen.request_id, seen.principal) == ("request-1", "key Zoë")
        assert seen.deadline is not None
        # what is left of it travels in whole milliseconds or more, rounded up
        assert seen.deadline <= time.monotonic() + 5.1
        await bench.node.create_collection(SCHEMA, soon())
        read = Call(soon().deadline, None, "request-2", "", Consistency.SESSION, ((4, 9),))
        assert await bench.peers.node("n2").count("docs", None, read) == 0

    run(test)


@pytest.mark.parametrize("error", [
    NotLeader("not here", leader="n3/2"), Overloaded("full", retry_after_s=0.5), CollectionExists("docs"),
    InvalidArgument("vectors", "no", got=1, limit=2), OutcomeUnknown("it stepped down"), Unavailable("no replica")])
def test_what_the_other_node_raises_is_raised_here(error: VecdbError) -> None:
    async def test(bench: Bench) -> None:
        bench.own.failing = error
        with pytest.raises(type(error)) as caught:
            await bench.there.propose(4, b"", soon())
        assert type(caught.value) is type(error)
        assert caught.value.message == error.message
        assert caught.value.fields.get("leader") == error.fields.get("leader")

    run(test)


def test_a_node_that_is_not_there_has_done_nothing() -> None:
    async def test(bench: Bench) -> None:
        await bench.server.stop()
        for ask in (bench.there.propose(4, b"", soon()), bench.there.read_index(4, soon())):
            with pytest.raises(Unavailable, match="node n2 cannot be reached"):
                await ask
        with pytest.raises(Unavailable, match=r"of node n2 \(called by n1\) (cannot be reached|closed)"):
            await bench.peers.node("n2").count("docs", None, soon())

    run(test)


def test_a_node_that_goes_while_it_is_asked_leaves_the_end_of_a_command_open() -> None:
    async def test(bench: Bench) -> None:
        bench.own.hangs = True
        command = asyncio.create_task(bench.there.propose(4, b"", soon()))
        question = asyncio.create_task(bench.there.read_index(4, soon()))
        while len(bench.own.seen) < 2:
            await asyncio.sleep(0.01)
        await bench.server.stop()
        with pytest.raises(OutcomeUnknown):
            await command
        with pytest.raises(Unavailable):
            await question

    run(test)


def test_a_deadline_that_passes_leaves_the_end_of_a_command_open() -> None:
    async def test(bench: Bench) -> None:
        bench.own.hangs = True
        with pytest.raises(OutcomeUnknown):
            await bench.there.propose(4, b"", soon(0.2))
        with pytest.raises(DeadlineExceeded):
            await bench.there.read_index(4, soon(0.2))
        bench.own.hangs = False
        with pytest.raises(DeadlineExceeded, match="before the call was handed on"):
            await bench.there.propose(4, b"", soon(-1.0))

    run(test)


def test_a_cancelled_call_ends_there_too() -> None:
    async def test(bench: Bench) -> None:
        bench.own.hangs = True
        mine = soon()
        call = asyncio.create_task(bench.there.propose(4, b"", mine))
        while not bench.own.calls:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while not bench.own.calls[0].stop[0]:
            await asyncio.sleep(0.01)
        assert int(bench.own.calls[0].stop[0]) == Stopped.CANCELLED == int(mine.stop[0])

    run(test)


def test_a_channel_that_is_closed_under_a_call_is_no_cancellation() -> None:
    """As one is that was replaced, be it for a new certificate: nobody gave the call up."""
    async def test(bench: Bench) -> None:
        bench.own.hangs = True
        command = asyncio.create_task(bench.there.propose(4, b"", soon()))
        question = asyncio.create_task(bench.there.read_index(4, soon()))
        while len(bench.own.seen) < 2:
            await asyncio.sleep(0.01)
        await bench.channels.channel("n2").close()
        with pytest.raises(OutcomeUnknown):
            await command
        with pytest.raises(Unavailable):
            await question

    run(test)


def test_a_channel_that_is_closed_under_a_read_is_no_cancellation() -> None:
    async def test(bench: Bench) -> None:
        bench.node.backend.create_collection(SCHEMA)
        bench.node.gate["count"] = bench.node.gate["optimize"] = asyncio.Event()
        call = soon()
        reads = [asyncio.create_task(bench.peers.node("n2").count("docs", None, call)),
                 asyncio.create_task(bench.peers.node("n2").optimize("docs", soon()))]
        while len(bench.node.calls) < 2:
            await asyncio.sleep(0.01)
        await bench.channels.channel("n2").close()
        for read in reads:
            with pytest.raises(Unavailable):
                await read
        call.check()

    run(test)


def test_nodes_are_refused_whose_listener_does_not_know_them() -> None:
    async def test(bench: Bench) -> None:
        stranger = PeerChannels("n9", "tests", bench.channels.addresses, None)
        peers = RemotePeers(stranger, lambda channel, label: RemoteNode(channel), SystemClock())
        with pytest.raises(Unavailable, match="n9"):
            await peers.replicas("n2").propose(4, b"", soon())
        await stranger.close()
        with pytest.raises(Unavailable):
            await peers.replicas("n2").propose(4, b"", soon())
        with pytest.raises(Unavailable):
            await bench.peers.replicas("n7").read_index(4, soon())
        assert not bench.own.seen

    run(test)


def test_changes_need_a_key_and_bytes_must_be_messages() -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(InvalidArgument, match="idempotency_key"):
            await bench.there.change(SCHEMA, soon())
        method = bench.channels.channel("n2").unary_unary(f"{PEER_PREFIX}Shards/Propose")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(b"\xff\xff", timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not bench.faults

    run(test)
