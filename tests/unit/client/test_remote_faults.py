"""What breaks between client and server, and what the client makes of it: once, in order, or said to be unknown."""

import asyncio
import threading
import time

import numpy as np
import pytest

import vecdb
from tests.fake_server import FakeServer, fine, garbage, lost, refuse, slow
from tests.memory_backend import MemoryBackend
from tests.waiting import until
from vecdb.client.collection import Collection
from vecdb.client.database import Database
from vecdb.client.remote import retry
from vecdb.core.errors import (
    CollectionExists,
    CollectionNotFound,
    DeadlineExceeded,
    DimensionMismatch,
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    StorageFull,
    Unavailable,
    VecdbError,
)


@pytest.fixture(scope="module")
def running():
    with FakeServer() as server:
        yield server


@pytest.fixture
def far(running: FakeServer):
    """The server over an empty backend, without faults."""
    running.backend = running.node.backend = MemoryBackend()
    running.node._done.clear()
    running.faults.clear()
    running.seen.clear()
    return running


@pytest.fixture
def db(far: FakeServer):
    with vecdb.connect(far.url) as database:
        yield database


@pytest.fixture
def docs(db: Database) -> Collection:
    made = db.create_collection("docs", dim=2, metric="l2")
    made.upsert(ids=[1, 2, 3], vectors=[[0, 0], [3, 4], [6, 8]], metadata=[{"n": 1}, {"n": 2}, {"n": 3}])
    return made


def test_reads_are_repeated_until_they_succeed(docs: Collection, far: FakeServer) -> None:
    for method, call in (("Queries/Query", lambda: docs.query([0, 0], k=1).ids), ("Records/Count", docs.count),
                         ("Records/Fetch", lambda: docs.get(1).id), ("Records/Scan", lambda: len(list(docs.scan()))),
                         ("Collections/Describe", lambda: docs.describe().records)):
        good = call()
        far.seen.clear()
        far.faults[method] = [refuse(Unavailable("starting")), lost(), refuse(Overloaded("full", retry_after_s=0.01))]
        assert call() == good
        assert far.count(method) == 4


def test_writes_whose_reply_is_lost_happen_once(docs: Collection, far: FakeServer) -> None:
    before = far.backend._tables["docs"].log_index
    far.faults["Records/Upsert"] = [lost(), lost()]
    assert docs.upsert(ids=[1, 9], vectors=[[1, 1], [2, 2]]).inserted == 1
    far.faults["Records/Delete"] = [lost()]
    assert docs.delete(ids=[9]).deleted == 1
    far.faults["Records/UpdateMetadata"] = [lost()]
    assert docs.update_metadata(ids=[1], metadata={"x": 1}).updated == 1
    assert far.backend._tables["docs"].log_index == before + 3


def test_errors_of_the_server_are_not_repeated(docs: Collection, far: FakeServer) -> None:
    for error in (StorageFull("no room", path="/x"), InvalidArgument("k", "no", got=1, limit=2), VecdbError("inside")):
        far.seen.clear()
        far.faults["Records/Upsert"] = [refuse(error)]
        with pytest.raises(type(error)) as info:
            docs.upsert(ids=[1], vectors=[[1, 1]])
        assert type(info.value) is type(error)
        assert info.value.message == error.message
        assert {name: info.value.fields[name] for name in error.fields} == error.fields
        assert far.count("Records/Upsert") == 1


def test_a_write_nobody_knows_the_end_of_says_so(far: FakeServer) -> None:
    with vecdb.connect(far.url, retries=1) as db:
        docs = db.create_collection("docs", dim=2)
        far.faults["Records/Upsert"] = [lost(), lost()]
        with pytest.raises(OutcomeUnknown, match="may or may not") as info:
            docs.upsert(ids=[1], vectors=[[1, 1]])
        assert info.value.fields["cause"] == "Unavailable"
        far.faults["Records/Upsert"] = [refuse(Unavailable("stopping")), refuse(Unavailable("stopping"))]
        with pytest.raises(Unavailable, match="stopping") as refused:
            docs.upsert(ids=[1], vectors=[[1, 1]])
        assert type(refused.value) is Unavailable, "the server said that nothing was done"
        far.faults["Records/Upsert"] = [lost(), refuse(Unavailable("stopping"))]
        with pytest.raises(OutcomeUnknown):
            docs.upsert(ids=[1], vectors=[[1, 1]])


def test_a_key_of_the_callers_settles_it(far: FakeServer) -> None:
    with vecdb.connect(far.url, retries=0) as db:
        docs = db.create_collection("docs", dim=2, metric="l2")
        far.faults["Records/Upsert"] = [lost()]
        with pytest.raises(OutcomeUnknown):
            docs.upsert(ids=[1], vectors=[[1, 1]], idempotency_key="order-1")
        again = docs.upsert(ids=[1], vectors=[[1, 1]], idempotency_key="order-1")
        assert (again.inserted, again.updated) == (1, 0), "answered with what it did then"
        with pytest.raises(InvalidArgument, match="idempotency_key"):
            docs.upsert(ids=[1], vectors=[[2, 2]], idempotency_key="order-1")
        for wrong in ("", b"", 7):
            with pytest.raises(InvalidArgument, match="idempotency_key"):
                docs.delete(ids=[1], idempotency_key=wrong)
        with pytest.raises(InvalidArgument, match="idempotency_key"):
            docs.update_metadata(filter="n == 1", metadata={}, idempotency_key="k")


def test_create_and_drop_after_a_lost_reply(db: Database, far: FakeServer) -> None:
    far.faults["Collections/Create"] = [lost()]
    assert db.create_collection("a", dim=2).dim == 2
    far.faults["Collections/Create"] = [refuse(message="Socket closed")]  # and it was not done
    assert db.create_collection("b", dim=2).dim == 2
    with pytest.raises(CollectionExists):
        db.create_collection("a", dim=2)
    far.faults["Collections/Create"] = [refuse(message="Socket closed")]
    with pytest.raises(CollectionExists):
        db.create_collection("a", dim=3)
    far.faults["Collections/Drop"] = [lost()]
    db.drop_collection("a")
    far.faults["Collections/Drop"] = [refuse(message="Socket closed")]
    with pytest.raises(OutcomeUnknown):
        db.drop_collection("b")
    assert db.list_collections() == ["b"], "what is there may be a new one: it is not dropped blindly"
    with pytest.raises(CollectionNotFound):
        db.drop_collection("a")


def test_retries_end_with_their_budget(docs: Collection, far: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BASE_S", 0.0)
    far.faults["Records/Count"] = [refuse(Overloaded("full")) for _ in range(500)]
    failed, began = 0, time.monotonic()
    for _ in range(40):
        with pytest.raises(Overloaded):
            docs.count()
        failed += 1
    seconds = time.monotonic() - began
    assert failed + 20 <= far.count("Records/Count") <= failed + 22 + seconds, "twenty tokens, and one a second"


def test_deadlines(docs: Collection, far: FakeServer) -> None:
    far.faults["Queries/Query"] = [slow(300.0)]
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        docs.query([0, 0], timeout=0.1)
    assert far.count("Queries/Query") == 1, "no repetition after the caller's own deadline"
    far.faults["Records/Upsert"] = [slow(300.0)]
    with pytest.raises(OutcomeUnknown) as info:
        docs.upsert(ids=[1], vectors=[[1, 1]], timeout=0.1)
    assert info.value.fields["cause"] == "DeadlineExceeded"
    far.faults["Records/Count"] = [refuse(Overloaded("full", retry_after_s=300.0))]
    with pytest.raises(Overloaded):
        docs.count(timeout=200.0)  # its hint lies beyond the deadline
    assert time.monotonic() - began < 150.0, "nobody was waited for"
    far.faults.clear()
    docs.query([0, 0], timeout=30)
    calls = [call for method, _, call in far.node.calls if method == "query"]
    assert 0 < calls[-1].deadline - time.monotonic() < 31


def test_a_default_timeout(far: FakeServer) -> None:
    with vecdb.connect(far.url, timeout=0.2) as db:
        docs = db.create_collection("docs", dim=2)
        far.faults["Records/Count"] = [slow(5.0)]
        with pytest.raises(DeadlineExceeded):
            docs.count()
        docs.optimize()


def test_garbage_is_an_error_and_no_crash(docs: Collection, far: FakeServer) -> None:
    for raw in (b"\xff\xfe\x00", b"\x08\x05", b"\x1a\x02\x00\x00"):
        far.faults["Queries/Query"] = [garbage(raw)]
        with pytest.raises(VecdbError) as info:
            docs.query([0, 0])
        assert type(info.value) is VecdbError
    assert docs.query([0, 0], k=1).ids == [1]


def batches_of(count: int, size: int = 5):
    for number in range(count):
        for row in range(size):
            yield (number * size + row, [number, row])


def test_bulk_upsert_goes_on_over_broken_streams(docs: Collection, far: FakeServer) -> None:
    before = far.backend._tables["docs"].log_index
    far.faults["Records/UpsertStream"] = [fine(), lost(), fine(), lost(), lost(), fine(), lost()]
    seen: list = []
    result = docs.upsert(batches_of(40), batch_size=5, progress=lambda *step: seen.append(step[1]))
    assert result.inserted + result.updated == 200
    assert seen == list(range(5, 201, 5))
    assert docs.count() == 200
    assert far.backend._tables["docs"].log_index == before + 40, "each batch once"
    assert docs.get(199).vector.tolist() == [39, 4]


@pytest.mark.parametrize("parallel", [1, 2, 8])
def test_of_equal_ids_the_last_wins_over_all_streams(docs: Collection, far: FakeServer, parallel: int) -> None:
    rng = np.random.default_rng(7)
    ids = rng.integers(0, 30, 600)
    rows = [(int(one), [place, 0]) for place, one in enumerate(ids)]
    far.faults["Records/UpsertStream"] = [fine(), slow(0.05), lost(), fine(), slow(0.05), lost()]
    docs.upsert(iter(rows), batch_size=7, parallel=parallel)
    last = {int(one): place for place, one in enumerate(ids)}
    for record in docs.scan(include=["vector"]):
        if record.id in last:
            assert record.vector[0] == last[record.id]


def test_bulk_upsert_says_how_far_it_came(docs: Collection, far: FakeServer) -> None:
    real = far.backend.upsert

    def refusing(name, batch, call=None):
        if 52 in batch.ids:
            raise StorageFull("no room", path="/x")
        return real(name, batch)

    far.backend.upsert = refusing
    with pytest.raises(StorageFull) as info:
        docs.upsert(batches_of(40), batch_size=5, parallel=2)
    assert info.value.fields["rows_applied"] == 50
    assert "first 50 rows" in info.value.__notes__[-1]
    far.backend.upsert = real

    def failing():
        yield from ((1000 + n, [0, n]) for n in range(43))
        raise OSError("the source broke")

    with pytest.raises(OSError, match="broke") as broken:
        docs.upsert(failing(), batch_size=10)
    assert "first 40 rows" in broken.value.__notes__[-1]
    assert docs.get(1039) is not None
    assert docs.get(1040) is None


def test_bulk_upsert_survives_a_restart(docs: Collection, far: FakeServer) -> None:
    def rows():
        for place, row in enumerate(batches_of(30)):
            if place == 70:
                far.stop()
                threading.Timer(0.3, far.again).start()
            yield row

    assert docs.upsert(rows(), batch_size=5).inserted == 150 - 3
    assert docs.count() == 150


def test_a_refused_batch_is_sent_again(docs: Collection, far: FakeServer) -> None:
    real, left = far.backend.upsert, [3]

    def sometimes(name, batch, call=None):
        if left[0] and 20 in batch.ids:
            left[0] -= 1
            raise Overloaded("full", retry_after_s=0.01)
        return real(name, batch)

    far.backend.upsert = sometimes
    assert docs.upsert(batches_of(10), batch_size=5).inserted == 50 - 3
    assert left == [0]
    far.backend.upsert = real


def test_long_queries_travel_in_parts(docs: Collection, far: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from vecdb.client.remote import procedures

    monkeypatch.setattr(procedures, "PART_ROWS", 10)
    queries = np.random.default_rng(3).standard_normal((95, 2))
    far.seen.clear()
    far.faults["Queries/Query"] = [fine(), lost(), fine(), refuse(Unavailable("not now"))]
    answers = docs.query(queries, k=2, include=["metadata", "vector"])
    assert far.count("Queries/Query") == 10 + 2
    for query, hits in zip(queries, answers, strict=True):
        assert hits.distances[0] == pytest.approx(np.sqrt((query ** 2).sum()), rel=1e-5) or hits.ids[0] != 1
    assert [hits.ids for hits in answers] == [docs.query(query, k=2).ids for query in queries]
    monkeypatch.setattr(procedures, "FETCH_ROWS", 1)
    monkeypatch.setattr(procedures, "PART_BYTES", 1)
    assert [record.id for record in docs.fetch([3, 99, 1, 2])] == [3, 1, 2]


def test_parts_too_large_for_a_message_are_halved(far: FakeServer) -> None:
    with vecdb.connect(far.url, max_message_bytes=1 << 16) as db:
        docs = db.create_collection("docs", dim=2, metric="l2")
        docs.upsert(ids=range(20), vectors=np.ones((20, 2)), metadata=[{"text": "x" * 9_000}] * 20)
        answers = docs.query(np.zeros((12, 2)), k=3, include=["metadata"])
        assert [len(hits) for hits in answers] == [3] * 12
        assert len(docs.fetch(range(20))) == 20
        with pytest.raises(InvalidArgument, match="larger than"):
            docs.query([0, 0], k=20, include=["metadata"])


def test_a_collection_made_anew_elsewhere(docs: Collection, far: FakeServer) -> None:
    assert docs.dim == 2
    with vecdb.connect(far.url) as other:
        other.drop_collection("docs")
        with pytest.raises(CollectionNotFound):
            docs.query([0, 0])
        other.create_collection("docs", dim=3, metric="dot")
        with pytest.raises(DimensionMismatch, match="dimension 3"):
            docs.query([0, 0])
        assert docs.upsert(ids=[5], vectors=[[1, 2, 3]]).inserted == 1
        other.drop_collection("docs")
        other.create_collection("docs", dim=4)
        assert docs.query([1, 0, 0, 0]).ids == []
        other.drop_collection("docs")
        other.create_collection("docs", dim=2)
        assert docs.upsert([(1, [0, 1]), (2, [1, 0])]).inserted == 2
        other.drop_collection("docs")
        other.create_collection("docs", dim=3)
        assert docs.upsert((n, [n, 1, 1]) for n in range(4)).inserted == 4, "a generator asks first"
        other.drop_collection("docs")
        with pytest.raises(CollectionNotFound):
            docs.upsert(ids=[1], vectors=[[1, 2, 3]])


def test_a_call_is_one_round_trip(docs: Collection, far: FakeServer) -> None:
    docs.query([0, 0])
    far.seen.clear()
    docs.query([0, 0])
    docs.upsert(ids=[1], vectors=[[1, 1]])
    docs.delete(ids=[77])
    docs.update_metadata(ids=[1], metadata={"a": 1})
    docs.fetch([1, 2])
    docs.count()
    assert far.seen == ["Queries/Query", "Records/Upsert", "Records/Delete", "Records/UpdateMetadata",
                        "Records/Fetch", "Records/Count"]


def test_addresses_take_turns_and_stand_in_for_each_other(far: FakeServer) -> None:
    with FakeServer(far.backend) as second:
        url = f"{far.url},{second.url.removeprefix('grpc://')},127.0.0.1:1"
        with vecdb.connect(url) as db:
            docs = db.create_collection("docs", dim=2)
            for _ in range(12):
                docs.count()
            assert far.count("Records/Count") >= 3
            assert second.count("Records/Count") >= 3
            second.stop()
            for _ in range(12):
                docs.count()


def test_cancelled_tasks_cancel_their_calls(far: FakeServer) -> None:
    async def test() -> None:
        async with vecdb.connect_async(far.url) as db:
            docs = await db.create_collection("docs", dim=2)
            far.node.gate["count"] = far.run(_event())
            task = asyncio.create_task(docs.count())
            while not any(method == "count" for method, _, _ in far.node.calls):
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            call = next(call for method, _, call in far.node.calls if method == "count")
            await until(lambda: call.stop[0])
            assert call.stop[0] == 2

    async def _event() -> asyncio.Event:
        return asyncio.Event()

    far.node.calls.clear()
    try:
        asyncio.run(test())
    finally:
        far.node.gate.clear()


def test_async_iterables_are_written(far: FakeServer) -> None:
    async def rows():
        for row in batches_of(10):
            yield row

    async def failing():
        async for row in rows():
            if row[0] == 33:
                raise OSError("the source broke")
            yield row

    async def test() -> None:
        async with vecdb.connect_async(far.url) as db:
            docs = await db.create_collection("docs", dim=2, metric="l2")
            with pytest.raises(OSError, match="broke") as info:
                await docs.upsert(failing(), batch_size=10)
            assert "first 30 rows" in info.value.__notes__[-1]
            far.faults["Records/UpsertStream"] = [fine(), lost()]
            result = await docs.upsert(rows(), batch_size=5)
            assert (result.inserted, result.updated) == (20, 30)
            many = await docs.upsert(ids=range(3_000), vectors=np.ones((3_000, 2)), batch_size=500)
            assert many.inserted == 2_950
            assert [record.id async for record in docs.scan(filter="x == 1")] == []
            assert len([page async for page in docs.scan_batches(batch_size=700)]) == 5

    asyncio.run(test())
