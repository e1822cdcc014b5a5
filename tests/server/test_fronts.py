"""Front processes before one engine: what clients see is what one process would show them."""

import asyncio
import gzip
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

import vecdb
from tests.server.fronts import COUNT, WITH, ask, connections, each, pids, refused
from tests.server.nodes import OPTIONS, Node, node, query, until, upsert, vectors
from tests.server.test_hostile_messages import storm
from vecdb.core.errors import CollectionNotFound, DeadlineExceeded, InvalidArgument
from vecdb.rpc.server import STREAMS_PER_CONNECTION
from vecdb.v1 import queries_pb2, records_pb2

QUERY = "/vecdb.v1.Queries/Query"
ROWS = 3_000
DEEP = 99
"""Groups within groups: as deep as a message may be, and deeper than a message within two others may be."""


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    with node(tmp_path_factory.mktemp("fronts"), **WITH, limits__message_bytes=4 << 20) as one:
        one.create("docs")
        one.upsert("docs", np.arange(ROWS), vectors(ROWS, 1), [b'{"n": %d}' % i for i in range(ROWS)])
        yield one
        assert one.running
        assert "Traceback" not in one.words()
        assert "front_ended" not in one.words(), "a front died on the way"


def test_the_sdk_through_fronts_gets_what_the_engine_gives(standing: Node, tmp_path) -> None:
    data, asked = vectors(2_500, 4, 16), vectors(20, 5, 16)
    with vecdb.connect(f"grpc://{standing.target}") as served, vecdb.connect(str(tmp_path / "own")) as own:
        for database in (served, own):
            docs = database.create_collection("same", dim=16, metric="cosine", index="flat")
            docs.upsert(np.arange(len(data)), data, [{"n": i % 10} for i in range(len(data))], batch_size=300)
            docs.delete(list(range(100)))
            docs.update_metadata([200, 201], [{"n": 77}, {"n": 78}])
        one, other = served["same"], own["same"]
        assert one.count() == other.count() == 2_400
        for options in ({}, {"filter": "n < 3"}, {"exact": True}, {"within": 0.5}, {"include": ["metadata", "vector"]}):
            for mine, theirs in zip(one.query(asked, k=7, **options), other.query(asked, k=7, **options), strict=True):
                assert mine.ids == theirs.ids, options
                np.testing.assert_array_equal(mine.distances, theirs.distances)
        assert [found.metadata for found in one.fetch([200, 201, 300])] == [{"n": 77}, {"n": 78}, {"n": 0}]
        assert {found.id for found in one.scan()} == {found.id for found in other.scan()}
        seen: list[str] = []
        one.optimize(progress=lambda stage, done, total: seen.append(stage))
        assert one.describe().records == 2_400
        with pytest.raises(CollectionNotFound):
            served.collection("none").query(asked[0])
        served.drop_collection("same")
        assert "same" not in served.list_collections()


def test_clients_are_spread_and_each_gets_its_own_answers(standing: Node) -> None:
    asked = vectors(40, 6)
    expected = [list(np.frombuffer(standing.query("docs", row, k=5).ids.integers, "<i8")) for row in asked]

    def client(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(asked))
        with vecdb.connect(f"grpc://{standing.target}") as database:
            docs = database["docs"]
            for place in order:
                assert list(docs.query(asked[place], k=5).ids) == expected[place]

    with each(standing) as channels, ThreadPoolExecutor(8) as threads:
        list(threads.map(client, range(8)))
        assert all(connections(pid, standing.port) for pid in channels)


def test_long_queries_and_streams_of_both_kinds(standing: Node) -> None:
    many = vectors(1_000, 7)
    standing.create("streamed")
    with each(standing) as channels:
        for channel in channels.values():
            whole = queries_pb2.QueryReply.FromString(ask(channel, "Queries/Query", query("docs", many, k=3)))
            assert list(whole.counts) == [3] * len(many)
            expected = np.frombuffer(whole.ids.integers, "<i8").reshape(-1, 3)
            sent = [query("docs", many[place], k=3, tag=place + 1).SerializeToString() for place in range(200)]
            for data in channel.stream_stream("/vecdb.v1.Queries/QueryStream")(iter(sent), timeout=30):
                reply = queries_pb2.QueryReply.FromString(data)
                assert list(np.frombuffer(reply.ids.integers, "<i8")) == list(expected[reply.tag - 1])
            batches = [upsert("streamed", np.arange(low, low + 50), many[low:low + 50]) for low in range(0, 400, 50)]
            batches[3].vectors.rows = 3
            replies = [records_pb2.UpsertReply.FromString(data) for data in channel.stream_stream(
                "/vecdb.v1.Records/UpsertStream")((one.SerializeToString() for one in batches), timeout=30)]
            assert [reply.HasField("error") for reply in replies] == [place == 3 for place in range(8)]
    assert standing.fetch("streamed", np.arange(400)) == [one for one in range(400) if not 150 <= one < 200]


def test_a_write_sent_again_by_another_front_happens_once(standing: Node) -> None:
    message = upsert("docs", np.arange(90_000, 90_010), vectors(10, 8))
    message.idempotency_key = b"once"
    with each(standing) as channels:
        first, second = (records_pb2.UpsertReply.FromString(ask(channel, "Records/Upsert", message))
                         for channel in channels.values())
        assert first.result.inserted == second.result.inserted == 10
        assert first.result.log_index == second.result.log_index
        other = upsert("docs", np.arange(90_000, 90_010), vectors(10, 9))
        other.idempotency_key = b"once"
        _, error = refused(lambda: ask(next(iter(channels.values())), "Records/Upsert", other))
        assert isinstance(error, InvalidArgument), error


def test_deadlines_and_cancellations_reach_the_engine(standing: Node) -> None:
    standing.create("large")
    standing.upsert("large", np.arange(20_000), vectors(20_000, 10))
    slow = query("large", vectors(200, 11), k=10, exact=True)
    assert len(slow.SerializeToString()) < 32 << 10, "this one is not gathered"
    long = query("large", vectors(1_000, 12), k=10, exact=True)
    with each(standing) as channels:
        for channel in channels.values():
            call = channel.unary_unary(QUERY)
            for message in (slow, long):
                error, typed = refused(lambda call=call, message=message: call(message.SerializeToString(),
                                                                               timeout=0.002))
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                assert isinstance(typed, DeadlineExceeded)
                futures = [call.future(message.SerializeToString(), timeout=60) for _ in range(100)]
                assert until(lambda: standing.about()["running_batches"] > 0)
                for future in futures:
                    future.cancel()
                assert until(lambda: standing.about()["running_batches"] + standing.about()["queued_queries"] == 0)


def test_bad_messages_are_refused_and_hurt_nobody_else(standing: Node) -> None:
    seen = storm(standing, 500, 3)
    assert seen["INVALID_ARGUMENT"] > 50
    good = query("docs", vectors(1, 2), k=5).SerializeToString()
    nested = good + b"\xfb\x07" * DEEP + b"\xfc\x07" * DEEP
    with each(standing) as channels:
        for pid, channel in channels.items():
            call = channel.unary_unary(QUERY)
            with ThreadPoolExecutor(8) as threads:
                outcomes = list(threads.map(lambda place, call=call: queries_pb2.QueryReply.FromString(
                    call(nested if place % 4 == 0 else good, timeout=30)).counts[0], range(200)))
            assert outcomes == [5] * 200, "a query that nobody can read took others with it"
            error, _ = refused(lambda call=call: call(bytes(5 << 20), timeout=30))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert pid in pids(standing)
    assert "exchange_broken" not in standing.words()


def test_a_reader_that_stops_holds_little_and_hinders_nobody(standing: Node) -> None:
    count = 10_000
    # Long, for windows hold megabytes of what is sent, on each way; by a field that nobody knows.
    padding = b"\xfa\x07\x80\x80\x01" + bytes(16 << 10)
    asked = query("docs", vectors(4, 3), k=100, with_vectors=True).SerializeToString() + padding
    taken: dict[int, int] = {}

    def questions(pid: int):
        for number in range(count):
            taken[pid] = number
            yield asked

    before = standing.rss()
    with each(standing) as channels:
        streams = {pid: channel.stream_stream("/vecdb.v1.Queries/QueryStream")(questions(pid), timeout=120)
                   for pid, channel in channels.items()}
        for stream in streams.values():
            assert queries_pb2.QueryReply.FromString(next(stream)).counts[0] == 100
        steady: list[tuple[int, ...]] = []

        def stopped() -> bool:
            steady.append(tuple(taken.values()))
            return len(steady) > 25 and steady[-1] == steady[-20]

        assert until(stopped), "the node goes on reading"
        assert all(number < count - 1 for number in taken.values()), "everything fits: this test tests nothing"
        assert standing.rss() - before < 192 << 20
        for channel in channels.values():  # the very connections whose streams stand still
            assert queries_pb2.QueryReply.FromString(ask(channel, "Queries/Query", query("docs", vectors(1, 2), k=5)))
            assert ask(channel, "Records/Count", records_pb2.CountRequest(collection="docs"))
        for stream in streams.values():
            assert sum(1 for _ in zip(range(300), stream, strict=False)) == 300
            stream.cancel()
    assert until(lambda: standing.about()["queued_queries"] == 0)


def test_more_streams_than_a_connection_carries_do_not_keep_calls_out(standing: Node) -> None:
    """A front hands all of them on over one connection of its own."""
    first = query("docs", vectors(1, 2), k=1).SerializeToString()

    async def hold(channel: grpc.aio.Channel):
        stream = channel.stream_stream("/vecdb.v1.Queries/QueryStream")()
        await stream.write(first)
        await stream.read()
        return stream

    async def on_one_front(opened: list[grpc.aio.Channel]) -> list[grpc.aio.Channel]:
        """Three channels that lead to the same front."""
        found: dict[int, list[grpc.aio.Channel]] = {pid: [] for pid in pids(standing)}
        while max(map(len, found.values())) < 3:
            before = {pid: connections(pid, standing.port) for pid in found}
            opened.append(channel := grpc.aio.insecure_channel(standing.target, OPTIONS))
            (await hold(channel)).cancel()
            for pid, channels in found.items():
                if connections(pid, standing.port) > before[pid]:
                    channels.append(channel)
        return max(found.values(), key=len)

    async def run() -> None:
        opened: list[grpc.aio.Channel] = []
        try:
            channels = await on_one_front(opened)
            held = []
            for _ in range(0, 1_050, 75):
                held += await asyncio.gather(*(hold(channels[place % 3]) for place in range(75)))
            assert len(held) > STREAMS_PER_CONNECTION
            with each(standing) as fronts:
                for channel in fronts.values():
                    assert ask(channel, "Records/Count", records_pb2.CountRequest(collection="docs"))
            for stream in held:
                stream.cancel()
        finally:
            for channel in opened:
                await channel.close()

    asyncio.run(asyncio.wait_for(run(), 180))


def test_one_page_of_metrics_tells_of_all_processes(standing: Node) -> None:
    def page() -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{standing.http_port}/metrics",
                                         headers={"Accept-Encoding": "identity"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            body = answer.read()
        return (gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body).decode()

    names = ["engine", *(f"front-{number}" for number in range(COUNT))]
    assert until(lambda: all(f'process="{name}"' in page() for name in names))
    text = page()
    for family in ("process_resident_memory_bytes", "vecdb_event_loop_lag_seconds", "vecdb_inflight_bytes",
                   "vecdb_streams"):
        assert text.count(f"# TYPE {family} ") == 1, family
        samples = [line for line in text.splitlines() if line.startswith(family + "{")]
        for name in names:
            assert any(f'process="{name}"' in line for line in samples), (family, name)
