"""Fronts and engine die, are told to end, are refused their port: what is left, and who notices."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import vecdb
from tests.server.fronts import COUNT, WITH, ask, each, gone, left_in, pids
from tests.server.nodes import OPTIONS, Node, node, query, until, upsert, vectors
from tests.server.test_ends import GONE, Writers, present
from vecdb.v1 import queries_pb2


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the node puts the folder of its socket."""
    with tempfile.TemporaryDirectory(prefix="vt-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def filled(standing: Node, rows: int = 20_000) -> None:
    standing.create("docs")
    standing.upsert("docs", np.arange(rows), vectors(rows, 1))


@contextmanager
def asking_without_end(ask_once: Callable[[], Any], threads: int = 4) -> Iterator[list[Any]]:
    """What several threads are answered meanwhile; what one of them is refused is raised at the end."""
    over, answers = threading.Event(), list[Any]()

    def work() -> None:
        while not over.is_set():
            answers.append(ask_once())

    with ThreadPoolExecutor(threads) as pool:
        working = [pool.submit(work) for _ in range(threads)]
        try:
            yield answers
        finally:
            over.set()
        for one in working:
            one.result(60)


def test_a_front_that_dies_is_started_anew_and_its_clients_go_to_another(tmp_path) -> None:
    with node(tmp_path / "one", **WITH) as standing, \
            vecdb.connect(f"grpc://{standing.target}") as database:
        filled(standing)
        docs, row = database["docs"], vectors(1, 2)[0]
        expected = docs.query(row, k=3).ids
        old = pids(standing)
        with each(standing) as channels:
            hurt, well = old
            slow = query("docs", vectors(200, 3), k=10, exact=True).SerializeToString()
            call = channels[hurt].unary_unary("/vecdb.v1.Queries/Query")
            # so long that a first query that had to compile its kernel lets nobody be refused for the queue's length
            held = [call.future(slow, timeout=600) for _ in range(15)]
            assert until(lambda: standing.about()["running_batches"] > 0)
            os.kill(hurt, signal.SIGKILL)
            assert gone([hurt])
            outcomes = {future.code() for future in held if future.exception(timeout=60) is not None}
            assert outcomes == {grpc.StatusCode.UNAVAILABLE}, "what was under way is told so, and no other way"
            assert queries_pb2.QueryReply.FromString(ask(channels[well], "Queries/Query", query("docs", row, k=3)))
            for _ in range(20):
                assert docs.query(row, k=3).ids == expected
        assert until(lambda: len(pids(standing)) == COUNT)
        assert hurt not in pids(standing)
        assert well in pids(standing), "only the one that died is replaced"
        for pid in pids(standing):
            with asking_without_end(lambda: docs.query(row, k=3).ids) as answers:
                assert until(lambda: len(answers) > 20)
                os.kill(pid, signal.SIGKILL)
                assert until(lambda: pid not in pids(standing) and len(pids(standing)) == COUNT)  # noqa: B023
            assert all(ids == expected for ids in answers)
        with each(standing):  # both are back
            pass
        assert standing.words().count('"front_ended"') >= 1
        assert "Traceback" not in standing.words()


def test_an_engine_that_dies_takes_its_fronts_and_their_folder_with_it(tmp_path, temporary: Path) -> None:
    data = tmp_path / "data"
    with node(tmp_path / "first", data=data, **WITH, server__drain_s=300) as standing:
        standing.create("written")
        writers = Writers(standing.target, "written")
        over = threading.Event()

        def questions():
            yield query("written", vectors(1, 1), k=1).SerializeToString()
            over.wait(60)

        # A stream that would be waited for by a front that was merely asked to end.
        replies = standing.channel.stream_stream("/vecdb.v1.Queries/QueryStream")(questions())
        next(replies)
        assert until(lambda: len(writers.acknowledged) > 200)
        assert len(left_in(temporary)) == 1
        fronts = pids(standing)
        standing.kill()
        assert gone(fronts), "orphans"
        over.set()
        writers.join()
        assert set(writers.refused) <= set(GONE), writers.refused
        assert left_in(temporary) == []
        assert standing.child.process.returncode == -signal.SIGKILL
    with node(tmp_path / "second", data=data, **WITH, server__grpc_port=standing.port) as again:
        assert present(again, "written", writers.acknowledged)


def test_sigterm_under_load_loses_nothing_that_was_accepted(tmp_path, temporary: Path) -> None:
    data = tmp_path / "data"
    with node(tmp_path / "first", data=data, **WITH) as standing:
        filled(standing, 60_000)
        standing.create("written")
        writers = Writers(standing.target, "written")
        short = query("docs", vectors(1, 4), k=10).SerializeToString()
        slow = query("docs", vectors(200, 3), k=10, exact=True).SerializeToString()
        refusals: list[grpc.StatusCode] = []

        def asks(_: int) -> int:
            """Short ones until it is refused; none may end in another way."""
            done = 0
            with grpc.insecure_channel(standing.target, OPTIONS) as channel:
                call = channel.unary_unary("/vecdb.v1.Queries/Query")
                while True:
                    try:
                        assert queries_pb2.QueryReply.FromString(call(short, timeout=30)).counts == [10]
                    except grpc.RpcError as error:
                        refusals.append(error.code())
                        return done
                    done += 1

        with ThreadPoolExecutor(4) as threads, each(standing) as channels:
            answered = [threads.submit(asks, place) for place in range(4)]
            held = [channel.unary_unary("/vecdb.v1.Queries/Query").future(slow, timeout=60)
                    for channel in channels.values() for _ in range(8)]
            assert until(lambda: standing.about()["queued_queries"] >= 200)
            assert until(lambda: len(writers.acknowledged) > 100)
            fronts = pids(standing)
            standing.terminate()
            for future in held:
                assert list(queries_pb2.QueryReply.FromString(future.result(60)).counts) == [10] * 200
            assert all(one.result(60) > 0 for one in answered)
        writers.join()
        assert set(refusals) | set(writers.refused) <= set(GONE), (refusals, writers.refused)
        assert standing.child.process.wait(60) == 0, standing.words()
        assert gone(fronts)
        assert left_in(temporary) == []
        assert "Traceback" not in standing.words()
        assert "front_ended" not in standing.words(), "an end that was asked for is none to tell of"
    with node(tmp_path / "second", data=data) as again:
        assert present(again, "written", writers.acknowledged)


def serve(place: Path, port: int, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vecdb.cli", "serve", "--data", str(place), "--port", str(port),
               "--http-port", "-1", "--processes", str(COUNT)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, **settings})


def test_a_port_in_use_is_told_and_nobody_shares_it(tmp_path, temporary: Path) -> None:
    with node(tmp_path / "first", **WITH) as standing:
        mine = left_in(temporary)
        told = serve(tmp_path / "other", standing.port)
        assert told.returncode == 4, told.stderr
        assert f"port {standing.port}" in told.stderr
        assert "in use" in told.stderr
        assert "Traceback" not in told.stderr
        assert left_in(temporary) == mine
        told = serve(tmp_path / "other", standing.port, VECDB_SERVER__HOST="127.0.0.9.9")
        assert told.returncode == 2, told.stderr
        standing.create("docs")
        assert upsert("docs", np.arange(1), vectors(1, 1)).IsInitialized()
        with each(standing):
            pass
