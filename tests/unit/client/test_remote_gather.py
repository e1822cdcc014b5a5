"""Queries that wait at the same time travel together, and each gets its own answer."""

import asyncio
import signal
import threading
import time

import numpy as np
import pytest

import vecdb
from tests.fake_server import FakeServer, refuse
from tests.memory_backend import MemoryBackend
from vecdb.client.remote.gather import FLYING, MOST_ROWS, AsyncGather, ThreadGather
from vecdb.core.calls import Call
from vecdb.core.errors import DeadlineExceeded, InvalidArgument, StorageError
from vecdb.core.query import Matches, QueryRequest, QueryResult

POINTS = np.arange(40, dtype=np.float32)


@pytest.fixture(scope="module")
def far():
    with FakeServer(MemoryBackend()) as server:
        with vecdb.connect(server.url) as db:
            docs = db.create_collection("docs", dim=1, metric="l2")
            docs.upsert(ids=range(40), vectors=POINTS[:, None], metadata=[{"n": n} for n in range(40)])
        yield server


@pytest.fixture(autouse=True)
def _quiet(far: FakeServer):
    far.faults.clear()
    far.seen.clear()
    yield
    far.node.gate.clear()


async def _gate() -> asyncio.Event:
    return asyncio.Event()


def test_tasks_share_calls(far: FakeServer) -> None:
    async def test() -> None:
        async with vecdb.connect_async(far.url) as db:
            docs = await db.collection("docs")
            await docs.query([0.0])
            far.seen.clear()
            answers = await asyncio.gather(*(docs.query([float(n)], k=1 + n % 2) for n in range(40)))
            assert [hits.ids[0] for hits in answers] == list(range(40))
            assert [len(hits) for hits in answers] == [1, 2] * 20
            assert far.count("Queries/Query") <= 6, "two of each kind at once, and the rest together"
            far.seen.clear()
            plans = await asyncio.gather(*(docs.query([float(n)], k=1, explain=True) for n in range(5)))
            assert far.count("Queries/Query") == 5
            assert all(hits.plan for hits in plans)
        async with vecdb.connect_async(far.url, auto_batch=False) as db:
            docs = await db.collection("docs")
            far.seen.clear()
            await asyncio.gather(*(docs.query([float(n)], k=1) for n in range(10)))
            assert far.count("Queries/Query") == 10

    asyncio.run(test())


def test_each_has_its_own_deadline_and_its_own_end(far: FakeServer) -> None:
    async def test() -> None:
        async with vecdb.connect_async(far.url) as db:
            docs = await db.collection("docs")
            await docs.query([0.0])
            gate = far.node.gate["query"] = far.run(_gate())
            first = [asyncio.create_task(docs.query([1.0], k=1)) for _ in range(2)]
            await asyncio.sleep(0.05)
            late = asyncio.create_task(docs.query([2.0], k=1, timeout=0.05))
            gone = asyncio.create_task(docs.query([3.0], k=1))
            patient = asyncio.create_task(docs.query([4.0], k=1))
            await asyncio.sleep(0.01)
            gone.cancel()
            with pytest.raises(DeadlineExceeded):
                await late
            with pytest.raises(asyncio.CancelledError):
                await gone
            far._loop.call_soon_threadsafe(gate.set)
            assert (await patient).ids == [4]
            assert [(await one).ids for one in first] == [[1], [1]]
            far.node.gate.clear()
            assert (await docs.query([7.0], k=1)).ids == [7]

    asyncio.run(test())


def test_errors_reach_all_who_wait(far: FakeServer) -> None:
    async def test() -> None:
        async with vecdb.connect_async(far.url) as db:
            docs = await db.collection("docs")
            await docs.query([0.0])
            far.faults["Queries/Query"] = [refuse(StorageError("torn")) for _ in range(3)]
            answers = await asyncio.gather(*(docs.query([1.0]) for _ in range(6)), return_exceptions=True)
            assert all(isinstance(one, StorageError) for one in answers)
            assert len({id(one) for one in answers}) == 6, "each its own"
            refused = InvalidArgument("vector", "one of them", got=1, limit=2)
            far.faults["Queries/Query"] = [refuse(refused) for _ in range(3)]
            answers = await asyncio.gather(*(docs.query([float(n)], k=1) for n in range(6)), return_exceptions=True)
            assert isinstance(answers[0], InvalidArgument)
            assert isinstance(answers[1], InvalidArgument)
            assert [hits.ids for hits in answers[2:]] == [[2], [3], [4], [5]], "asked for one by one"

    asyncio.run(test())


def test_threads_share_calls(far: FakeServer) -> None:
    with vecdb.connect(far.url) as db:
        docs = db.collection("docs")
        docs.query([0.0])
        gate = far.node.gate["query"] = far.run(_gate())
        far.seen.clear()
        answers: dict[int, list] = {}

        def ask(n: int) -> None:
            answers[n] = docs.query([float(n)], k=1).ids

        def hurry() -> None:
            try:
                docs.query([1.0], k=1, timeout=0.2)
            except DeadlineExceeded:
                late.append(time.monotonic())

        late: list[float] = []
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
        for thread in threads:
            thread.start()
        waiting = docs._session._backend._gather._groups
        while sum(len(group.waiting) for group in list(waiting.values())) < 18:
            threads[-1].join(0.005)
        with pytest.raises(DeadlineExceeded):
            docs.query([1.0], k=1, timeout=0.05)
        hurried = threading.Thread(target=hurry)
        hurried.start()
        hurried.join(30)
        assert len(late) == 1
        far._loop.call_soon_threadsafe(gate.set)
        for thread in threads:
            thread.join(30)
        assert answers == {n: [n] for n in range(20)}
        assert far.count("Queries/Query") == 3
        assert waiting == {}


def _nothing(request: QueryRequest) -> QueryResult:
    return QueryResult([Matches([], np.empty(0, np.float32), None, None) for _ in request.vectors], None, (), None)


def _one() -> QueryRequest:
    return QueryRequest(np.zeros((1, 2), np.float32), 1)


def test_those_who_wait_behind_many_that_have_gone_are_not_forgotten() -> None:
    async def test() -> None:
        gate = asyncio.Event()

        async def ask(name: str, request: QueryRequest, call: Call | None) -> QueryResult:
            await gate.wait()
            return _nothing(request)

        gather = AsyncGather(ask)
        tasks = [asyncio.create_task(gather.query("docs", _one(), None)) for _ in range(FLYING * (MOST_ROWS + 1) + 3)]
        await asyncio.sleep(0)
        for gone in tasks[FLYING:-3]:
            gone.cancel()
        await asyncio.sleep(0)
        gate.set()
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks[-3:])
        assert not gather._groups

    asyncio.run(test())


def test_a_thread_that_is_interrupted_while_it_waits_its_turn_leaves_nobody_waiting() -> None:
    """As Ctrl-C does in a notebook, beside threads that go on."""
    gate = threading.Event()

    def ask(name: str, request: QueryRequest, call: Call | None) -> QueryResult:
        gate.wait(60)
        return _nothing(request)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    gather, done = ThreadGather(ask), []

    def work() -> None:
        gather.query("docs", _one(), None)
        done.append(1)

    def waiting() -> int:
        return sum(len(group.waiting) for group in gather._groups.values())

    def behind() -> None:
        """Who waits first is to call for those behind; it is interrupted once it was told so, or before."""
        while waiting() < 1:
            time.sleep(0.001)
        for thread in threads[FLYING:]:
            thread.start()
        while waiting() < 4:
            time.sleep(0.001)
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(FLYING + 3)]
    for thread in threads[:FLYING]:
        thread.start()
    while not gather._groups or next(iter(gather._groups.values())).flying < FLYING:
        time.sleep(0.001)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        starter = threading.Thread(target=behind, daemon=True)
        starter.start()
        with pytest.raises(KeyboardInterrupt):
            gather.query("docs", _one(), None)
        starter.join(60)
    finally:
        signal.signal(signal.SIGALRM, before)
    gate.set()
    for thread in threads:
        thread.join(60)
    assert len(done) == len(threads)
    assert not gather._groups
