"""Calls that are ended: the work stops where it is, nothing of it is shown, nothing is left behind."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecdb.app import open_embedded
from vecdb.client.database import Database
from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import Cancelled, DeadlineExceeded
from vecdb.core.filters import parse
from vecdb.core.query import QueryRequest, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch
from vecdb.services.local import LocalDatabase
from vecdb.services.shard import ShardService
from vecdb.shard.machine import ShardMachine

DIM = 16
N = 6_000
RNG = np.random.default_rng(20)
VECTORS = RNG.standard_normal((N, DIM)).astype(np.float32)
INDEXES = {"flat": {"index": "flat"}, "hnsw": {"index": "hnsw", "m": 8, "ef_construction": 40},
           "ivf": {"index": "ivf_flat"}, "pq": {"index": "ivf_pq"}}


def _open(path: Path) -> LocalDatabase:
    backend = open_embedded(path, background=False)
    assert isinstance(backend, LocalDatabase)
    return backend


def _fill(backend: LocalDatabase, name: str, **options: Any) -> None:
    docs = Database(backend, label="test").create_collection(name, DIM, metric="l2", indexed_fields=["n"], **options)
    docs.upsert(ids=np.arange(N), vectors=VECTORS, metadata=[{"n": i, "hidden": i % 7} for i in range(N)])


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDatabase]:
    """One sealed segment of each index, with a growing tail."""
    backend = _open(tmp_path_factory.mktemp("stopping") / "db")
    for name, options in INDEXES.items():
        _fill(backend, name, **options)
        backend.optimize(name)
        backend.upsert(name, UpsertBatch((N,), VECTORS[:1] + 1, (b"{}",)))
    yield backend
    backend.close()


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LocalDatabase]:
    backend = _open(tmp_path / "db")
    _fill(backend, "c", **INDEXES["hnsw"])
    yield backend
    backend.close()


def _shard(backend: LocalDatabase, name: str) -> ShardService:
    opened = backend._slots[name].opened
    assert opened is not None
    return opened.shard


def _ended(why: Stopped = Stopped.DEADLINE) -> Call:
    call = Call()
    call.end(why)
    return call


def _state(backend: LocalDatabase, name: str) -> tuple[Any, ...]:
    found = backend.verify(name)
    assert found["equal"], found
    return backend.count(name), found["digest"], found["log_index"]


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize("where", [None, "n < 5000", "hidden == 3"])
def test_an_ended_query_has_no_answer(indexes: LocalDatabase, name: str, where: str | None) -> None:
    request = QueryRequest(VECTORS[:20], 5, None if where is None else parse(where))
    with pytest.raises(DeadlineExceeded):
        indexes.query(name, request, call=_ended())
    with pytest.raises(Cancelled):
        indexes.query(name, request, call=_ended(Stopped.CANCELLED))
    whole = indexes.query(name, request, call=Call())
    assert [one.ids for one in whole.matches] == [one.ids for one in indexes.query(name, request).matches]


@pytest.mark.parametrize("name", INDEXES)
def test_kernels_under_way_see_the_flag(indexes: LocalDatabase, name: str) -> None:
    """The flag is set while a kernel walks: it ends with a part of the comparisons that the whole takes."""
    segment = _shard(indexes, name).view.segments[0].segment
    queries = np.tile(VECTORS, (40, 1))  # seconds of work
    stop = np.zeros(1, np.int32)
    timer = threading.Timer(0.03, stop.fill, [1])
    timer.start()
    if name == "flat":
        from vecdb.ann.flat import scan

        found = scan(segment.codes, queries, k=10, stop=stop)
        whole = len(queries) * N
    else:
        found = segment.ann.search(segment.codes, queries, k=10, ef=200, nprobe=40, allowed=None,  # type: ignore[union-attr]
                                   mode="post", stop=stop)
        some = segment.ann.search(segment.codes, VECTORS, k=10, ef=200, nprobe=40, allowed=None,  # type: ignore[union-attr]
                                  mode="post")
        whole = some.comparisons * 40
        assert not some.stopped
    timer.join()
    assert found.stopped
    assert found.comparisons < whole


def test_a_long_exact_query_ends_when_asked(indexes: LocalDatabase) -> None:
    """100,000 rows of queries against 6,000 records, cut short from another thread; and nothing is held after it."""
    request = QueryRequest(np.tile(VECTORS, (17, 1))[:100_000], 10, exact=True)
    call = Call()
    timer = threading.Timer(0.05, call.end, [Stopped.CANCELLED])
    timer.start()
    with pytest.raises(Cancelled):
        indexes.query("hnsw", request, call=call)
    timer.join()
    assert indexes._slots["hnsw"].calls == 0
    assert indexes.query("hnsw", QueryRequest(VECTORS[:1], 1)).matches[0].ids == [0]


@pytest.mark.parametrize("read", ["query", "count", "scan", "delete"])
def test_a_filter_that_reads_records_ends_between_chunks(backend: LocalDatabase, read: str,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    before, call, reads = _state(backend, "c"), Call(), []
    real = ShardMachine.read_metadata

    def read_metadata(self: ShardMachine, rids: Any) -> Any:
        reads.append(len(rids))
        call.end(Stopped.DEADLINE)
        return real(self, rids)

    monkeypatch.setattr(ShardMachine, "read_metadata", read_metadata)
    where = parse("hidden == 3")
    with pytest.raises(DeadlineExceeded):
        {"query": lambda: backend.query("c", QueryRequest(VECTORS[:1], 5, where), call=call),
         "count": lambda: backend.count("c", where, call=call),
         "scan": lambda: backend.scan("c", ScanRequest(where, 5_000), call=call),
         "delete": lambda: backend.delete("c", DeleteWhere(where), call=call)}[read]()
    assert len(reads) == 1
    assert reads[0] < N / 2
    monkeypatch.undo()
    assert _state(backend, "c") == before


WRITES = {"upsert": lambda b, call: b.upsert("c", UpsertBatch((1, N + 1), VECTORS[:2], (b"{}", b"{}")), call=call),
          "delete": lambda b, call: b.delete("c", DeleteIds((1, 2)), call=call),
          "where": lambda b, call: b.delete("c", DeleteWhere(parse("n < 9")), call=call),
          "update": lambda b, call: b.update_metadata("c", UpdateMetadata((1,), (b'{"a":1}',)), call=call)}


@pytest.mark.parametrize("write", WRITES)
def test_a_late_write_changes_nothing(tmp_path: Path, backend: LocalDatabase, write: str) -> None:
    before = _state(backend, "c")
    with pytest.raises(DeadlineExceeded):
        WRITES[write](backend, _ended())
    assert _state(backend, "c") == before
    backend.close()
    again = _open(tmp_path / "db")
    try:
        assert _state(again, "c") == before
        WRITES[write](again, Call())
        after = _state(again, "c")
        assert after[1:] != before[1:]
        assert after[2] == before[2] + 1
    finally:
        again.close()


def test_a_write_that_waits_for_its_turn_can_be_given_up(backend: LocalDatabase) -> None:
    before, call = _state(backend, "c"), Call()
    raised: list[BaseException] = []

    def write() -> None:
        try:
            WRITES["upsert"](backend, call)
        except BaseException as error:
            raised.append(error)

    with _shard(backend, "c").writing():
        waiting = threading.Thread(target=write)
        waiting.start()
        call.end(Stopped.CANCELLED)
        waiting.join(30)
        assert not waiting.is_alive(), "it waits for the lock still"
    assert [type(error) for error in raised] == [Cancelled]
    assert _state(backend, "c") == before


def test_a_write_that_was_applied_is_answered(backend: LocalDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time ends between application and acknowledgement: what happened is told."""
    call, real = Call(), ShardMachine.commit

    def commit(self: ShardMachine, applied: Any) -> None:
        real(self, applied)
        call.end(Stopped.DEADLINE)

    monkeypatch.setattr(ShardMachine, "commit", commit)
    assert WRITES["upsert"](backend, call).inserted == 1


STAGES = ("copying vectors", "building graph", "measuring recall", "reordering", "writing files")


@pytest.mark.parametrize("stage", STAGES)
def test_optimize_ends_at_any_stage(tmp_path: Path, backend: LocalDatabase, stage: str) -> None:
    before, call, seen = _state(backend, "c"), Call(), []

    def report(now: str, done: int, total: int) -> None:
        seen.append(now)
        if now == stage:
            call.end(Stopped.CANCELLED)

    with pytest.raises(Cancelled):
        backend.optimize("c", report, call=call)
    assert seen[-1] == stage, "nothing was done after it"
    assert not list(tmp_path.glob("db/collections/*/segments/*")), "what was half built is gone"
    assert _state(backend, "c") == before
    backend.optimize("c", None, call=Call())
    assert [one["state"] for one in backend.describe("c").details["segments"]] == ["sealed", "growing"]
    assert _state(backend, "c") == before


def test_optimize_does_not_wait_for_a_running_job_past_its_end(backend: LocalDatabase) -> None:
    opened = backend._slots["c"].opened
    assert opened is not None
    with opened.maintainer._turn:
        call = Call()
        timer = threading.Timer(0.05, call.end, [Stopped.DEADLINE])
        timer.start()
        with pytest.raises(DeadlineExceeded):
            backend.optimize("c", None, call=call)
        timer.join()
    assert backend.optimize("c", None).records == N


def test_every_other_method_ends(backend: LocalDatabase) -> None:
    for method in (lambda call: backend.fetch("c", [1], call=call), lambda call: backend.describe("c", call=call),
                   lambda call: backend.list_collections(call=call), lambda call: backend.schema("c", call=call),
                   lambda call: backend.scan("c", ScanRequest(), call=call), lambda call: backend.jobs(call=call),
                   lambda call: backend.drop_collection("c", call=call), lambda call: backend.count("c", call=call),
                   lambda call: backend.create_collection(backend.schema("c"), call=call)):
        with pytest.raises(DeadlineExceeded):
            method(_ended())
    assert backend.list_collections() == ["c"]
