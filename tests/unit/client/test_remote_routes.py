"""Writes go to the node that carries them out, once it is known; reads go round as ever."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import vecdb
from tests.fake_server import FakeServer
from tests.sharded import ShardedBackend
from vecdb.client.remote import io
from vecdb.client.remote.calling import HOMES_MOST, Caller
from vecdb.client.remote.io import Link, Route, Wire
from vecdb.client.remote.options import Options
from vecdb.core.errors import OutcomeUnknown, Unavailable
from vecdb.wire import status

UPSERT, STREAM = "Records/Upsert", "Records/UpsertStream"


class Led:
    """Three servers before one state, one of which leads."""

    def __init__(self, stack: ExitStack) -> None:
        self.backend = ShardedBackend()
        self.servers = [stack.enter_context(FakeServer(self.backend)) for _ in range(3)]
        for one in self.servers:
            one.node._done = self.servers[0].node._done
        self.lead(0)

    def lead(self, leader: int) -> None:
        for place, one in enumerate(self.servers):
            one.node.hands_on = place != leader

    @property
    def url(self) -> str:
        return "grpc://" + ",".join(f"127.0.0.1:{one.port}" for one in self.servers)

    def count(self, *methods: str) -> list[int]:
        return [sum(map(one.count, methods)) for one in self.servers]

    def applied(self) -> list[int]:
        return [sum(method == "upsert" for method, _, _ in one.node.calls) for one in self.servers]


@pytest.fixture
def led() -> Iterator[Led]:
    with ExitStack() as stack:
        yield Led(stack)


@pytest.mark.parametrize("leader", range(3))
def test_writes_stay_with_the_node_that_leads_and_reads_go_round(led: Led, leader: int) -> None:
    led.lead(leader)
    with vecdb.connect(led.url) as db:
        docs = db.create_collection("docs", dim=2)
        for number in range(20):
            docs.upsert(ids=[number], vectors=[[number, 1]])
            docs.update_metadata([number], {"a": 1})
            docs.delete(ids=[number])
        for _ in range(9):
            docs.count()
    found = led.count(UPSERT, "Records/UpdateMetadata", "Records/Delete")
    assert found[leader] >= 58, found
    assert sum(found) == 60
    assert led.count("Records/Count") == [3, 3, 3]


def test_a_leader_that_moved_is_found_again(led: Led) -> None:
    with vecdb.connect(led.url) as db:
        docs = db.create_collection("docs", dim=2)
        for leader in (2, 1, 0):
            led.lead(leader)
            before = led.count(UPSERT)
            for number in range(20):
                docs.upsert(ids=[number], vectors=[[number, 1]])
            found = [now - then for now, then in zip(led.count(UPSERT), before, strict=True)]
            assert found[leader] >= 17, found


def test_each_collection_has_a_leader_of_its_own(led: Led) -> None:
    caller = Caller(Options(), "", 3)
    caller.learn("a", "one", False)
    caller.learn("b", "two", False)
    assert [caller.route(name).label for name in "abc"] == ["one", "two", ""]  # type: ignore[union-attr]
    caller.learn("a", "two", True)  # by another one than it is known of: that one may lead still
    assert caller.route("a").label == "one"  # type: ignore[union-attr]
    caller.learn("a", "one", True)
    assert caller.route("a").label == ""  # type: ignore[union-attr]
    for number in range(2 * HOMES_MOST):
        caller.learn(str(number), "one", False)
    assert len(caller._homes) <= HOMES_MOST
    assert Caller(Options(), "", 1).route("a") is None


def test_a_leader_that_dies_is_left_at_once(led: Led, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "DOWN_S", 0.05)
    with vecdb.connect(led.url) as db:
        docs = db.create_collection("docs", dim=2)
        for number in range(6):
            docs.upsert(ids=[number], vectors=[[number, 1]])
        led.servers[0].stop()
        led.lead(1)
        before = led.count(UPSERT)
        for number in range(6, 26):
            assert docs.upsert(ids=[number], vectors=[[number, 1]]).inserted == 1
        found = [now - then for now, then in zip(led.count(UPSERT), before, strict=True)]
        assert found[1] >= 17, found
        assert docs.count() == 26


def test_a_route_is_taken_only_where_it_is_open() -> None:
    wire = Wire([Link(None, name) for name in "abca"])
    assert {wire.link(Route("c")).label for _ in range(9)} == {"c"}
    assert {id(wire.link(Route("a"))) for _ in range(9)} == {id(wire.links[0]), id(wire.links[3])}
    wire.links[2].down_until = float("inf")
    route = Route("c")
    assert wire.link(route).label == route.label != "c"
    for link in wire.links:
        link.down_until = 1e300
    wire.links[1].down_until = 1e200
    assert wire.link(Route("c")).label == "b"
    assert {wire.link(Route("nobody")).label for _ in range(9)} == {"b"}


def batches(count: int) -> Iterator[dict[str, object]]:
    for number in range(count):
        yield {"id": number, "vector": [number, 1.0]}


def test_a_bulk_upsert_moves_to_the_leader(led: Led) -> None:
    led.lead(2)
    with vecdb.connect(led.url) as db:
        docs = db.create_collection("docs", dim=2)
        docs.upsert(batches(4_000), batch_size=20, parallel=3)
        assert docs.count() == 4_000
    found = led.applied()
    assert sum(found) == 200
    assert found[2] >= 150, found


def test_an_asyncio_bulk_upsert_moves_to_the_leader(led: Led) -> None:
    led.lead(1)

    async def work() -> int:
        async with vecdb.connect_async(led.url) as db:
            docs = await db.create_collection("docs", dim=2)
            await docs.upsert(batches(4_000), batch_size=20, parallel=3)
            return int(await docs.count())

    assert asyncio.run(work()) == 4_000
    found = led.applied()
    assert sum(found) == 200
    assert found[1] >= 150, found


def test_a_bulk_upsert_follows_a_leader_that_moves(led: Led) -> None:
    def moving() -> Iterator[dict[str, object]]:
        for number in range(6_000):
            if number == 3_000:
                led.lead(1)
            yield {"id": number, "vector": [number, 1.0]}

    with vecdb.connect(led.url) as db:
        docs = db.create_collection("docs", dim=2)
        docs.upsert(moving(), batch_size=20, parallel=2)
        assert docs.count() == 6_000
    found = led.applied()
    assert sum(found) == 300
    assert min(found[:2]) >= 120, found


def test_a_node_that_is_cut_off_is_left_and_forgotten(led: Led, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "DOWN_S", 0.05)
    with vecdb.connect(led.url) as db:
        docs = db.create_collection("docs", dim=2)
        for number in range(6):
            docs.upsert(ids=[number], vectors=[[number, 1]])
        led.servers[0].node.fail["upsert"] = OutcomeUnknown("this node reaches no other member", elsewhere=True)
        led.lead(2)
        before = led.count(UPSERT)
        for number in range(6, 26):
            assert docs.upsert(ids=[number], vectors=[[number, 1]]).inserted == 1
            time.sleep(0.01)  # longer in sum than an address is left alone for
        found = [now - then for now, then in zip(led.count(UPSERT), before, strict=True)]
        assert found[2] >= 17, found
        assert found[0] <= 2, found
    assert all(one.node.elsewhere for one in led.servers)


def test_a_node_that_is_alone_is_told_of_no_other(led: Led) -> None:
    with vecdb.connect(f"grpc://127.0.0.1:{led.servers[0].port}") as db:
        db.create_collection("docs", dim=2).upsert(ids=[1], vectors=[[1, 1]])
    assert not led.servers[0].node.elsewhere


def test_a_bulk_upsert_leaves_a_node_that_is_cut_off(led: Led) -> None:
    def cut() -> Iterator[dict[str, object]]:
        for number in range(4_000):
            if number == 1_000:
                led.servers[0].node.fail["upsert"] = OutcomeUnknown("this node reaches no other member", elsewhere=True)
                led.lead(1)
            yield {"id": number, "vector": [number, 1.0]}

    with vecdb.connect(led.url) as db:
        docs = db.create_collection("docs", dim=2)
        docs.upsert(cut(), batch_size=20, parallel=3)
        assert docs.count() == 4_000


def test_reads_say_that_there_are_others_too(led: Led) -> None:
    with vecdb.connect(led.url) as db:
        docs = db.create_collection("docs", dim=2)
        for _ in range(3):
            docs.count()
    assert all(("x-vecdb-elsewhere", "1") in [(key, value) for key, value in said]
               for one in led.servers for said in one.metadata[-1:])


@pytest.mark.parametrize("aio", [False, True], ids=["threads", "asyncio"])
def test_a_read_that_hangs_is_made_again_elsewhere_before_its_deadline(led: Led, monkeypatch: pytest.MonkeyPatch,
                                                                       aio: bool) -> None:
    monkeypatch.setattr(io, "SPARE", 0.9)
    monkeypatch.setattr(io, "SPARE_MOST_S", 60.0)
    monkeypatch.setattr(io, "DOWN_S", 60.0)

    async def shut() -> asyncio.Event:
        return asyncio.Event()

    async def work() -> None:
        async with vecdb.connect_async(led.url) as db:
            for _ in range(4):
                assert await (await db.collection("docs")).count(timeout=10) == 0

    with vecdb.connect(led.url) as db:
        docs = db.create_collection("docs", dim=2)
        led.servers[1].node.gate["count"] = led.servers[1].run(shut())
        if aio:
            asyncio.run(work())
        else:
            for _ in range(4):
                assert docs.count(timeout=10) == 0
    assert led.count("Records/Count")[1] == 1, "it is left alone then"


def test_a_node_that_reaches_no_other_is_asked_less_and_less_and_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    a, b = Link(None, "a"), Link(None, "b")
    wire = Wire([a, b])
    said = Said(Unavailable("this node reaches no other member", elsewhere=True))
    waits: list[float] = []
    for _ in range(6):
        assert {wire.link() for _ in range(4)} == {a, b}
        assert {wire.link() for _ in range(4)} == ({b} if waits else {a, b}), "others wait for what becomes of the one"
        assert a.failed(said).elsewhere
        waits.append(a.down_until - now[0])
        a.failed(said)
        assert a.down_until - now[0] == waits[-1], "calls that were under way together are refused together"
        a.answered()
        assert {wire.link() for _ in range(4)} == {b}, "an answer to what was asked before changes nothing"
        now[0] = a.down_until
    assert waits == [2, 4, 8, 16, 30, 30]
    while wire.link() is not a:
        pass
    a.answered()
    assert {wire.link() for _ in range(4)} == {a, b}
    a.failed(said)
    assert a.down_until - now[0] == 30, "what it answers may not have needed the others"
    now[0] = a.down_until + io.DOWN_MOST_S
    a.failed(said)
    assert a.down_until - now[0] == 2, "that was long ago"


class Said:
    """A failure as gRPC tells it, with what a server says."""

    def __init__(self, error: Unavailable) -> None:
        self._details = status.to_status(error)[2]

    def code(self) -> object:
        return type("Code", (), {"value": (14, "")})

    def details(self) -> str:
        return "refused"

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return (("grpc-status-details-bin", self._details),)
