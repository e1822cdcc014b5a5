"""Several addresses: nodes of one cluster that die, come back, freeze, lose their leader; calls and streams go on."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.fake_server import FakeServer, lost, refuse
from tests.sharded import ShardedBackend, asked
from vecdb.client.remote import channels, io, retry
from vecdb.client.remote.io import Link, Wire
from vecdb.client.remote.options import Options
from vecdb.client.remote.retry import Attempts, Budget, Failed
from vecdb.core.calls import Consistency
from vecdb.core.errors import DeadlineExceeded, InvalidArgument, NotLeader, OutcomeUnknown, Overloaded, Unavailable
from vecdb.wire import status


class Nodes:
    """Three servers before one state, as nodes of a cluster are; what was done once is known to all."""

    def __init__(self, stack: ExitStack) -> None:
        self.backend = ShardedBackend()
        self.servers = [stack.enter_context(FakeServer(self.backend)) for _ in range(3)]
        for one in self.servers:
            one.node._done = self.servers[0].node._done

    @property
    def url(self) -> str:
        return "grpc://" + ",".join(f"127.0.0.1:{one.port}" for one in self.servers)

    def count(self, method: str) -> list[int]:
        return [one.count(method) for one in self.servers]

    @property
    def writes(self) -> int:
        return self.backend._tables["docs"].log_index


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with ExitStack() as stack:
        yield Nodes(stack)


def test_calls_take_turns_on_all_nodes(nodes: Nodes) -> None:
    with vecdb.connect(nodes.url) as db:
        docs = db.create_collection("docs", dim=2)
        for _ in range(30):
            docs.count()
    assert nodes.count("Records/Count") == [10, 10, 10]


def test_a_node_that_dies_is_left_and_found_again(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "DOWN_S", 0.05)
    with vecdb.connect(nodes.url) as db:
        docs = db.create_collection("docs", dim=2, metric="l2")
        for number in range(3):
            docs.upsert(ids=[number], vectors=[[number, 0]])
        nodes.servers[1].stop()
        for number in range(3, 30):
            assert docs.upsert(ids=[number], vectors=[[number, 0]]).inserted == 1
            assert docs.count() == number + 1
        nodes.servers[0].stop()
        for _ in range(10):
            assert docs.query([0, 0], k=1).ids == [0]
        before = nodes.count("Records/Count")[1]
        nodes.servers[1].again()
        for _ in range(2_000):
            docs.count()
            if nodes.count("Records/Count")[1] > before:
                break
            time.sleep(0.005)
        else:
            pytest.fail("the node that came back is never asked")
    assert nodes.writes == 30


def test_calls_under_way_on_a_node_that_dies_are_made_again_elsewhere(nodes: Nodes) -> None:
    """More of them than the budget of retries has tokens."""
    async def shut() -> asyncio.Event:
        return asyncio.Event()

    with vecdb.connect(nodes.url, auto_batch=False) as db, ThreadPoolExecutor(90) as threads:
        docs = db.create_collection("docs", dim=2, metric="l2")
        docs.upsert(ids=[0], vectors=[[0, 0]])
        dying = nodes.servers[nodes.count("Records/Upsert").index(1)]  # where writes go
        for method in ("count", "upsert"):
            dying.node.gate[method] = dying.run(shut())
        reads = [threads.submit(docs.count, timeout=60) for _ in range(45)]
        writes = [threads.submit(docs.upsert, ids=[n], vectors=[[n, n]], timeout=60) for n in range(1, 46)]
        while sum(method in ("count", "upsert") for method, _, _ in dying.node.calls) < 25:
            time.sleep(0.005)
        dying.stop()
        assert all(one.result() >= 1 for one in reads)
        assert sum(one.result().inserted for one in writes) == 45
        assert docs.count() == 46
    assert nodes.writes == 46, "no write was done twice"


def test_a_write_whose_reply_is_lost_with_its_node_happens_once(nodes: Nodes) -> None:
    with vecdb.connect(nodes.url) as db:
        docs = db.create_collection("docs", dim=2, metric="l2")
        for one in nodes.servers:
            one.faults["Records/Upsert"] = [lost()]
            one.faults["Records/Delete"] = [lost(), refuse(OutcomeUnknown("the leader fell"))]
        assert docs.upsert(ids=[1, 2], vectors=[[1, 1], [2, 2]]).inserted == 2
        assert docs.delete(ids=[1]).deleted == 1
    assert nodes.writes == 2


@pytest.mark.parametrize("error", [NotLeader("n1 does not lead", leader="n2/4"), Unavailable("no leader is known"),
                                   OutcomeUnknown("the leadership ended")])
def test_what_a_leaderless_shard_says_is_not_the_end(nodes: Nodes, error: Exception) -> None:
    with vecdb.connect(nodes.url) as db:
        docs = db.create_collection("docs", dim=2, metric="l2")
        for one in nodes.servers:
            one.faults["Records/Upsert"] = [refuse(error)]
            one.faults["Records/Count"] = [refuse(error)]
        assert docs.upsert(ids=[1], vectors=[[1, 1]]).inserted == 1
        assert docs.count() == 1
        assert asked(nodes.servers[0].node.calls + nodes.servers[1].node.calls + nodes.servers[2].node.calls,
                     "count") == (Consistency.SESSION, ((1, 1),)), "also at the other address"


def test_it_ends_with_the_deadline_and_says_what_is_known(nodes: Nodes) -> None:
    with vecdb.connect(nodes.url) as db:
        docs = db.create_collection("docs", dim=2, metric="l2")
        for one in nodes.servers:
            one.faults["Records/Upsert"] = [refuse(NotLeader("nobody leads")) for _ in range(500)]
        with pytest.raises(NotLeader) as info:
            docs.upsert(ids=[1], vectors=[[1, 1]], timeout=0.5)
        assert info.value.leader is None
        assert sum(nodes.count("Records/Upsert")) > 3
        for one in nodes.servers:
            one.faults["Records/Upsert"] = [lost(), *(refuse(NotLeader("nobody leads")) for _ in range(500))]
        with pytest.raises(OutcomeUnknown) as unknown:
            docs.upsert(ids=[1], vectors=[[1, 1]], timeout=0.5)
        assert unknown.value.fields["cause"] == "NotLeader"


def test_without_a_key_a_write_is_made_once_or_said_to_be_unknown(nodes: Nodes) -> None:
    with vecdb.connect(nodes.url, retry_writes=False) as db:
        docs = db.create_collection("docs", dim=2, metric="l2")
        docs.upsert(ids=[0], vectors=[[0, 0]])
        assert nodes.servers[0].node._done == {}, "no key was sent"
        for one in nodes.servers:
            one.faults["Records/Upsert"] = [lost()]
            one.faults["Records/Delete"] = [refuse(NotLeader("n1 does not lead"))]
        before = sum(nodes.count("Records/Upsert"))
        with pytest.raises(OutcomeUnknown):
            docs.upsert(ids=[1], vectors=[[1, 1]])
        assert sum(nodes.count("Records/Upsert")) == before + 1
        assert docs.delete(ids=[0]).deleted == 1, "what was certainly not done is done again"
        assert docs.upsert(ids=[2], vectors=[[2, 2]], idempotency_key="mine").inserted == 1
    with pytest.raises(InvalidArgument, match="retry_writes"):
        vecdb.connect(nodes.url, retry_writes="no")


@pytest.mark.parametrize("way", ["sync", "async"])
def test_bulk_upserts_survive_the_loss_of_their_nodes(nodes: Nodes, way: str) -> None:
    """Two nodes die one after the other while batches are under way; each batch is applied once, in order."""
    def rows() -> Iterator[Any]:
        for number in range(400):
            if number == 100:
                nodes.servers[0].stop()
            if number == 250:
                nodes.servers[2].stop()
            yield number % 130, [number, number]

    told: list[int] = []
    if way == "sync":
        with vecdb.connect(nodes.url) as db:
            docs = db.create_collection("docs", dim=2, metric="l2")
            result = docs.upsert(rows(), batch_size=10, progress=lambda *step: told.append(step[1]))
            assert docs.count() == 130
    else:
        async def flow() -> Any:
            for row in rows():
                yield row
                await asyncio.sleep(0)

        async def test() -> Any:
            async with vecdb.connect_async(nodes.url) as db:
                docs = await db.create_collection("docs", dim=2, metric="l2")
                done = await docs.upsert(flow(), batch_size=10, progress=lambda *step: told.append(step[1]))
                assert await docs.count() == 130
                return done

        result = asyncio.run(test())
    assert (result.inserted, result.updated, result.shard) == (130, 270, 1)
    assert told == list(range(10, 401, 10))
    assert nodes.writes == 40, "each batch once"
    kept = {one: row.vector[0] for one, row in nodes.backend._tables["docs"].rows.items()}
    assert kept == {one: max(n for n in range(400) if n % 130 == one) for one in range(130)}


def test_a_bulk_upsert_leaves_a_node_that_serves_nobody(nodes: Nodes) -> None:
    """It takes batches and says that the shard has no leader, as a node does that is cut off from the others."""
    with vecdb.connect(nodes.url) as db:
        docs = db.create_collection("docs", dim=2, metric="l2")
        cut = nodes.servers[1]

        async def cut_off(name: str, batch: Any, call: Any) -> Any:
            raise Unavailable("this node hears no majority")

        cut.node.upsert = cut_off  # type: ignore[method-assign]
        assert docs.upsert(((n, [n, n]) for n in range(300)), batch_size=10).inserted == 300
        assert nodes.writes == 30


def test_a_bulk_upsert_without_keys_says_that_nobody_knows(nodes: Nodes) -> None:
    with vecdb.connect(nodes.url, retry_writes=False) as db:
        docs = db.create_collection("docs", dim=2, metric="l2")
        assert docs.upsert(((n, [n, n]) for n in range(100)), batch_size=10).inserted == 100
        for one in nodes.servers:
            one.faults["Records/UpsertStream"] = [lost()]
        with pytest.raises(OutcomeUnknown) as info:
            docs.upsert(((n, [n, n]) for n in range(100, 200)), batch_size=10)
        assert info.value.fields["rows_applied"] >= 10
    assert nodes.writes <= 20


def test_asyncio_goes_on_at_other_nodes_too(nodes: Nodes) -> None:
    async def test() -> None:
        async with vecdb.connect_async(nodes.url) as db:
            docs = await db.create_collection("docs", dim=2, metric="l2")
            for number in range(12):
                if number == 3:
                    await asyncio.to_thread(nodes.servers[1].stop)
                if number == 6:
                    await asyncio.to_thread(nodes.servers[2].stop)
                results = await asyncio.gather(*(docs.upsert(ids=[10 * number + n], vectors=[[n, n]])
                                                 for n in range(8)))
                assert sum(one.inserted for one in results) == 8
                assert await docs.count() == 8 * (number + 1)
            assert len(await docs.query(np.zeros((20, 2)), k=3)) == 20

    asyncio.run(test())
    assert nodes.writes == 96


def test_connecting_passes_over_who_does_not_answer(nodes: Nodes) -> None:
    """One address refuses, one takes connections and says nothing, one never takes them."""
    with socket.socket() as silent, socket.socket() as full, ExitStack() as stack:
        for one, room in ((silent, 16), (full, 0)):
            one.bind(("127.0.0.1", 0))
            one.listen(room)
        for _ in range(3):  # until the kernel takes no more
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(full.getsockname())
        others = ",".join(f"127.0.0.1:{port}" for port in (1, silent.getsockname()[1], full.getsockname()[1]))
        with vecdb.connect(f"grpc://{others},{nodes.url.removeprefix('grpc://')}") as db:
            docs = db.create_collection("docs", dim=2)
            for _ in range(30):
                docs.count()
    assert sum(nodes.count("Records/Count")) == 30
    for one in nodes.servers:
        one.stop()
    with pytest.raises(Unavailable):
        vecdb.connect(nodes.url, connect_timeout=3)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(io.time, "monotonic", lambda: self.now)


class Broken(Exception):
    """What gRPC raises, as far as it is looked at."""

    def __init__(self, code: int, details: str = "Socket closed") -> None:
        super().__init__(details)
        self._code, self._details = code, details
        self.typed: tuple = ()

    def code(self) -> Any:
        return type("Code", (), {"value": (self._code, "")})

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple:
        return self.typed


def test_an_address_that_stays_down_is_asked_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    a, b = Link(None, "a"), Link(None, "b")
    wire = Wire([a, b])
    waits = []
    for _ in range(7):
        failed = a.failed(Broken(14))
        assert (failed.transport, failed.elsewhere) == (True, True)
        waits.append(a.down_until - clock.now)
        assert {wire.link() for _ in range(4)} == {b}
        a.failed(Broken(14))
        assert a.down_until - clock.now == waits[-1], "calls that were under way together fail together"
        clock.now = a.down_until
        assert {wire.link() for _ in range(4)} == {a, b}
    assert waits == [2, 4, 8, 16, 30, 30, 30]
    a.answered()
    says = Broken(14)
    says.typed = (("grpc-status-details-bin", status.to_status(NotLeader("n1 does not lead"))[2]),)
    for _ in range(5):
        failed = a.failed(says)
        assert isinstance(failed.error, NotLeader)
        assert a.down_until - clock.now == 2, "it is there, and another shard of it may be well"
        clock.now = a.down_until
    assert a.failed(Broken(14)).elsewhere
    assert a.down_until - clock.now == 2
    assert not b.failed(Broken(14)).elsewhere, "there is none that is up"
    assert wire.link() is a, "then the one that failed longest ago"


def test_an_address_where_time_runs_out_is_left_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    a, b, alone = Link(None, "a"), Link(None, "b"), Link(None, "c")
    wire = Wire([a, b])
    Wire([alone])
    for link in (a, alone):
        failed = link.failed(Broken(4))
        assert isinstance(failed.error, DeadlineExceeded)
        assert not failed.elsewhere, "the caller's time is over"
    assert {wire.link() for _ in range(4)} == {b}
    assert alone.down_until == 0.0
    clock.now += 2.0
    assert {wire.link() for _ in range(4)} == {a, b}


def test_several_connections_to_one_address_are_no_other_address() -> None:
    first, second = Link(None, "a"), Link(None, "a")
    Wire([first, second])
    assert not first.failed(Broken(14)).elsewhere


def test_moving_on_costs_no_token_and_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BASE_S", 0.0)
    spent = Budget(most=0.0, per_second=0.0)
    down = Unavailable("gone")
    attempts = Attempts(8, spent, None, addresses=3)
    moves = [attempts.after(Failed(down, decided=False, transport=True, elsewhere=True)) for _ in range(8)]
    assert moves == [0.0] * 6 + [None] * 2, "twice for each address"
    attempts.progress()
    assert attempts.after(Failed(down, decided=True, elsewhere=True)) == 0.0
    assert attempts.after(Failed(down, decided=True)) is None
    assert Attempts(8, spent, None, addresses=3).after(Failed(Overloaded("full"), decided=True, elsewhere=True)) is None
    unknown = Attempts(8, spent, None)
    assert [unknown.delay(OutcomeUnknown("?")) for _ in range(2)] == [0.0, None], "asked once more for nothing"
    many = Attempts(2, Budget(most=100.0), None, addresses=3)
    assert [many.delay(down) is None for _ in range(8)] == [False] * 6 + [True] * 2
    none = Attempts(0, Budget(), None, addresses=3)
    assert none.after(Failed(down, decided=True, elsewhere=True)) is None, "retries=0 is none"


def test_a_frozen_node_is_known_sooner_where_there_are_others() -> None:
    alone, several = (dict(channels.arguments(Options(), one)) for one in (False, True))
    assert alone["grpc.keepalive_time_ms"] == 30_000
    for one, most in ((alone, 40_000), (several, 3_000)):
        for answer in ("grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"):
            assert one["grpc.keepalive_time_ms"] + one[answer] <= most
    assert "grpc.min_reconnect_backoff_ms" in several


def test_threads_that_share_a_connection_all_find_the_way(nodes: Nodes) -> None:
    stop = threading.Event()
    errors: list[Exception] = []

    def reading() -> None:
        while not stop.is_set():
            try:
                docs.query([0, 0], k=1)
            except Exception as error:
                errors.append(error)

    with vecdb.connect(nodes.url) as db:
        docs = db.create_collection("docs", dim=2, metric="l2")
        docs.upsert(ids=[0], vectors=[[0, 0]])
        threads = [threading.Thread(target=reading) for _ in range(8)]
        for one in threads:
            one.start()
        for server in nodes.servers:
            server.stop()
            for number in range(5):
                docs.upsert(ids=[number], vectors=[[number, 0]])
            server.again()
        stop.set()
        for one in threads:
            one.join()
    assert errors == []


FROZEN = """
import sys
from tests.fake_server import FakeServer
with FakeServer() as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""


def test_a_frozen_node_is_left(nodes: Nodes) -> None:
    """Its kernel takes what is sent, and nothing comes back; only pings tell."""
    with subprocess.Popen([sys.executable, "-c", FROZEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          cwd=Path(__file__).parents[3]) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        for url in (nodes.servers[0].url, f"grpc://127.0.0.1:{port}"):
            with vecdb.connect(url) as db:
                db.create_collection("docs", dim=2)
        try:
            with vecdb.connect(f"{nodes.servers[0].url},127.0.0.1:{port}", timeout=60) as db:
                docs = db.collection("docs")
                docs.count()
                other.send_signal(signal.SIGSTOP)
                for number in range(6):
                    assert docs.count() == number
                    docs.upsert(ids=[number], vectors=[[number, 1]])
        finally:
            other.kill()
    assert nodes.writes == 6
