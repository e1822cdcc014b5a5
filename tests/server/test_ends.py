"""Ends: asked for under load, or sudden.  What was accepted is answered, what was acknowledged is there."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from tests.server.nodes import OPTIONS, Node, node, query, until, upsert, vectors
from vecdb.v1 import queries_pb2, records_pb2

GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class Writers:
    """Threads that upsert without end, and the ids that were acknowledged to them."""

    def __init__(self, target: str, name: str, threads: int = 4, first: int = 0) -> None:
        self.acknowledged: list[int] = []
        self.refused: list[grpc.StatusCode] = []
        self.wrong: list[str] = []
        self._first = first
        self._target, self._name = target, name
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(place, threads)) for place in range(threads)]
        for thread in self._threads:
            thread.start()

    def _write(self, place: int, threads: int) -> None:
        number, rows = self._first + place, vectors(10, place)
        with grpc.insecure_channel(self._target, OPTIONS) as channel:
            ask = channel.unary_unary("/vecdb.v1.Records/Upsert")
            while not self._over.is_set():
                ids = np.arange(number * 10, number * 10 + 10)
                try:
                    raw = ask(upsert(self._name, ids, rows).SerializeToString(), timeout=30)
                except grpc.RpcError as error:
                    self.refused.append(error.code())
                    return
                reply = records_pb2.UpsertReply.FromString(raw)
                if reply.result.inserted != 10:
                    self.wrong.append(str(reply))
                    return
                self.acknowledged.extend(ids.tolist())
                number += threads

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not self.wrong

    def stop(self) -> None:
        self._over.set()
        self.join()


def present(standing: Node, name: str, ids: list[int]) -> bool:
    return sorted(standing.fetch(name, np.array(ids))) == sorted(ids)


def test_sigterm_under_load_answers_what_was_accepted_and_keeps_what_was_acknowledged(tmp_path) -> None:
    with node(tmp_path / "first", data=tmp_path / "data") as standing:
        standing.create("docs")
        standing.create("written")
        for low in range(0, 60_000, 20_000):
            standing.upsert("docs", np.arange(low, low + 20_000), vectors(20_000, low))
        writers = Writers(standing.target, "written")
        # Each takes the better part of a second: they are under way when the signal comes.
        message = query("docs", vectors(1_000, 3), k=10, exact=True).SerializeToString()
        with ThreadPoolExecutor(4) as threads:
            ask = standing.channel.unary_unary("/vecdb.v1.Queries/Query")
            asked = [threads.submit(ask, message, timeout=60) for _ in range(4)]
            assert until(lambda: standing.about()["running_batches"] + standing.about()["queued_queries"] > 0)
            assert until(lambda: len(writers.acknowledged) > 200)
            standing.terminate()
            for one in asked:
                assert list(queries_pb2.QueryReply.FromString(one.result(60)).counts) == [10] * 1_000
        writers.join()
        assert set(writers.refused) <= set(GONE), writers.refused
        assert standing.child.process.wait(60) == 0, standing.words()
    with node(tmp_path / "second", data=tmp_path / "data") as again:
        assert present(again, "written", writers.acknowledged)
        assert again.about()["queued_queries"] == 0


def test_a_kill_during_upserts_loses_nothing_that_was_acknowledged(tmp_path) -> None:
    data = tmp_path / "data"
    with node(tmp_path / "first", data=data) as standing:
        standing.create("written")
        writers = Writers(standing.target, "written")
        assert until(lambda: len(writers.acknowledged) > 500)
        time.sleep(0.1)
        standing.kill()
        writers.join()
        assert set(writers.refused) <= set(GONE), writers.refused
    with node(tmp_path / "second", data=data) as again:
        assert present(again, "written", writers.acknowledged)
        more = Writers(again.target, "written", first=1_000_000)
        assert until(lambda: len(more.acknowledged) > 50)
        more.stop()
        assert not more.refused


def test_a_second_signal_ends_the_wait(tmp_path) -> None:
    with node(tmp_path / "impatient", server__drain_s=300) as standing:
        standing.create("docs")
        held = standing.channel.stream_stream("/vecdb.v1.Queries/QueryStream")
        over = threading.Event()

        def questions():
            yield query("docs", vectors(1, 1), k=1).SerializeToString()
            over.wait(120)

        replies = held(questions(), timeout=200)
        assert queries_pb2.QueryReply.FromString(next(replies)).counts == [0]
        standing.terminate()
        time.sleep(0.5)
        assert standing.running, "a stream that is open is waited for"
        standing.child.signal(signal.SIGTERM)
        try:
            assert standing.child.process.wait(60) == 0
        finally:
            over.set()
            replies.cancel()


def test_short_memory_refuses_writes_and_goes_on_reading(tmp_path) -> None:
    data = tmp_path / "data"
    with node(tmp_path / "measured", data=data) as standing:
        standing.create("docs", 512)
        standing.upsert("docs", np.arange(500), vectors(500, 1, 512))
        standing.query("docs", vectors(1, 2, 512), k=5)
        held = standing.about()["memory"]["held_bytes"]
    with node(tmp_path / "short", data=data, limits__memory_bytes=held + (96 << 20)) as standing:
        rows, low = vectors(2_000, 3, 512), 1_000
        refusal = None
        for _ in range(200):
            try:
                standing.upsert("docs", np.arange(low, low + len(rows)), rows)
            except grpc.RpcError as error:
                refusal = error
                break
            low += len(rows)
        assert refusal is not None, standing.about()
        assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "memory" in refusal.details()
        trailing = dict(refusal.trailing_metadata())
        assert int(trailing["grpc-retry-pushback-ms"]) > 0
        assert list(standing.query("docs", vectors(1, 2, 512), k=5).counts) == [5]
        assert standing.fetch("docs", np.arange(10)) == list(range(10))
        deleted = records_pb2.DeleteReply.FromString(standing.ask("Records/Delete", records_pb2.DeleteRequest(
            collection="docs", ids=upsert("docs", np.arange(10), rows[:10]).ids)))
        assert deleted.result.deleted == 10
        assert standing.running
