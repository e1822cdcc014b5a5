"""More than the node can do: what it takes it answers, the rest it refuses with a hint, and it is as before after."""

import asyncio
import threading
from collections import Counter

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests.server.nodes import OPTIONS, Node, node, query, until, upsert, vectors
from vecdb.v1 import queries_pb2

QUEUED_ROWS = 64
CALLS = 100


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with node(tmp_path_factory.mktemp("flood"), limits__queued_queries=QUEUED_ROWS,
              limits__concurrent_calls=CALLS) as standing:
        standing.create("docs")
        for low in range(0, 60_000, 20_000):
            standing.upsert("docs", np.arange(low, low + 20_000), vectors(20_000, low))
        yield standing
        assert standing.running
        assert "Traceback" not in standing.words()


def hint_of(error: grpc.aio.AioRpcError) -> float:
    """Seconds after which to try again, as told twice: in the details, and to gRPC itself."""
    trailing = dict(error.trailing_metadata() or ())
    pushback = int(trailing["grpc-retry-pushback-ms"]) / 1e3
    told = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    for detail in told.details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            delay = retry.retry_delay.ToTimedelta().total_seconds()
            assert delay == pytest.approx(pushback, abs=0.002)
            return delay
    raise AssertionError(f"no hint in {told}")


async def flood(standing: Node, inflight: int, calls: int, rows: int) -> tuple[Counter, list[float]]:
    """``calls`` calls of ``rows`` exact queries, ``inflight`` at once, never held back by a refusal."""
    outcomes: Counter = Counter()
    hints: list[float] = []
    message = query("docs", vectors(rows, 9), k=10, exact=True, profile=True).SerializeToString()
    left = iter(range(calls))
    # Several connections: a single one would hold back what is beyond its streams.
    channels = [grpc.aio.insecure_channel(standing.target, OPTIONS) for _ in range(8)]

    async def lane(place: int) -> None:
        ask = channels[place % 8].unary_unary("/vecdb.v1.Queries/Query")
        for _ in left:
            try:
                reply = queries_pb2.QueryReply.FromString(await ask(message, timeout=60))
                assert list(reply.counts) == [10] * rows
                outcomes["OK"] += 1
            except grpc.aio.AioRpcError as error:
                outcomes[error.code().name] += 1
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and error.trailing_metadata():
                    hints.append(hint_of(error))

    await asyncio.gather(*(lane(place) for place in range(inflight)))
    for channel in channels:
        await channel.close()
    return outcomes, hints


def watched(standing: Node, work) -> tuple[list[int], tuple[Counter, list[float]]]:
    """Rows waiting, as the node itself tells meanwhile (its own calls may be refused too), and what came out."""
    seen: list[int] = []
    refused: list[grpc.StatusCode] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            try:
                seen.append(standing.about()["queued_queries"])
            except grpc.RpcError as error:
                refused.append(error.code())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return seen, asyncio.run(work)
    finally:
        over.set()
        watcher.join()
        assert set(refused) <= {grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_a_flood_of_calls_is_answered_or_refused_with_a_hint(small: Node) -> None:
    _, (outcomes, hints) = watched(small, flood(small, 400, 1_500, 4))
    assert set(outcomes) == {"OK", "RESOURCE_EXHAUSTED"}, outcomes
    assert outcomes["OK"] >= 50
    assert sum(outcomes.values()) == 1_500
    assert hints
    assert all(0 < hint < 60 for hint in hints)
    assert list(small.query("docs", vectors(1, 1), k=3).counts) == [3]


def test_more_calls_than_grpc_itself_would_hold_are_refused_by_the_node(small: Node) -> None:
    outcomes, hints = asyncio.run(flood(small, 2_000, 4_000, 4))
    assert set(outcomes) == {"OK", "RESOURCE_EXHAUSTED"}, outcomes
    assert sum(outcomes.values()) == 4_000
    assert hints


def test_the_queue_never_grows_beyond_its_rows(small: Node) -> None:
    seen, (outcomes, hints) = watched(small, flood(small, 60, 300, 16))
    assert set(outcomes) == {"OK", "RESOURCE_EXHAUSTED"}, outcomes
    assert outcomes["OK"] >= 20
    assert hints
    assert max(seen, default=0) <= QUEUED_ROWS
    assert until(lambda: small.about()["queued_queries"] == 0)
    assert list(small.query("docs", vectors(1, 1), k=3).counts) == [3]


def test_a_flood_of_writes_keeps_what_it_acknowledges(small: Node) -> None:
    small.create("written")
    acknowledged: list[int] = []

    async def write() -> Counter:
        outcomes: Counter = Counter()
        rows = vectors(20, 5)
        left = iter(range(600))
        async with grpc.aio.insecure_channel(small.target, OPTIONS) as channel:
            ask = channel.unary_unary("/vecdb.v1.Records/Upsert")

            async def lane() -> None:
                for number in left:
                    ids = np.arange(number * 20, number * 20 + 20)
                    message = upsert("written", ids, rows)
                    try:
                        await ask(message.SerializeToString(), timeout=60)
                        outcomes["OK"] += 1
                        acknowledged.extend(ids.tolist())
                    except grpc.aio.AioRpcError as error:
                        outcomes[error.code().name] += 1

            await asyncio.gather(*(lane() for _ in range(300)))
        return outcomes

    outcomes = asyncio.run(write())
    assert set(outcomes) <= {"OK", "RESOURCE_EXHAUSTED"}, outcomes
    assert outcomes["OK"] >= 50
    assert sorted(small.fetch("written", np.array(acknowledged))) == sorted(acknowledged)

