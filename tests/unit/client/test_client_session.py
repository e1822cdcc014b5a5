"""Closing, threads, and calls that close their own database."""

import threading

import numpy as np
import pytest

from tests.memory_backend import MemoryBackend
from tests.unit.client.conftest import in_process, in_threads
from vecdb.client.collection import Collection
from vecdb.client.database import Database
from vecdb.core.errors import DatabaseClosed


@in_threads
def test_everything_refuses_after_close(docs: Collection, db: Database) -> None:
    pages = docs.scan(batch_size=1)
    next(pages)
    db.close()
    db.close()
    assert db.closed
    assert "(closed)" in repr(db)
    assert "DatabaseClosed" in repr(docs)
    calls = [
        lambda: db.create_collection("x", 3), lambda: db.get_or_create_collection("x", 3),
        lambda: db.collection("docs"), lambda: db.list_collections(), lambda: db.drop_collection("docs"),
        lambda: docs.upsert(ids=[1], vectors=[[1, 2, 3, 4]]), lambda: docs.query([1, 2, 3, 4]),
        lambda: docs.fetch([1]), lambda: docs.get(1), lambda: docs.delete(ids=[1]),
        lambda: docs.delete(filter="n == 1"), lambda: docs.update_metadata(ids=[1], metadata={}),
        lambda: docs.scan(), lambda: docs.count(), lambda: len(docs), lambda: docs.describe(),
        lambda: docs.optimize(), lambda: docs.dim, lambda: next(pages), db.__enter__,
    ]
    for call in calls:
        with pytest.raises(DatabaseClosed):
            call()


def test_context_manager_closes_also_on_errors(backend: MemoryBackend) -> None:
    db = Database(backend)

    def fail_inside() -> None:
        with db as entered:
            assert entered is db
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert db.closed
    assert backend._closed


@in_process
def test_close_waits_for_running_calls(docs: Collection, db: Database, backend: MemoryBackend,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go = threading.Event(), threading.Event()
    count = backend.count

    def slow(name: str, where: object = None, call: object = None) -> int:
        inside.set()
        assert go.wait(30)
        return count(name, where)

    monkeypatch.setattr(backend, "count", slow)
    answers: list = []
    caller = threading.Thread(target=lambda: answers.append(docs.count()))
    caller.start()
    assert inside.wait(30)
    closer = threading.Thread(target=db.close)
    closer.start()
    while not db.closed:
        closer.join(0.001)
    with pytest.raises(DatabaseClosed):
        docs.count()
    assert not backend._closed
    go.set()
    caller.join(30)
    closer.join(30)
    assert answers == [3]
    assert backend._closed


@in_process
def test_close_with_a_timeout_leaves_it_to_the_last_call(docs: Collection, db: Database,
                                                         backend: MemoryBackend) -> None:
    generator_runs, go = threading.Event(), threading.Event()

    def rows():
        generator_runs.set()
        assert go.wait(30)
        yield (50, [1, 2, 3, 4])

    caller = threading.Thread(target=lambda: docs.upsert(rows()))
    caller.start()
    assert generator_runs.wait(30)
    db._session.close(timeout_s=0.01)
    assert db.closed
    assert not backend._closed
    go.set()
    caller.join(30)
    assert backend._closed
    assert 50 in backend._tables["docs"].rows


@in_process
def test_a_call_may_close_its_own_database(docs: Collection, db: Database, backend: MemoryBackend) -> None:
    closed_inside: list = []

    def report(*_: object) -> None:
        db.close()
        closed_inside.append(backend._closed)

    docs.upsert(ids=range(10), vectors=np.ones((10, 4)), batch_size=5, progress=report)
    assert closed_inside == [False, False]
    assert backend._closed
    assert len(backend._tables["docs"].rows) == 1 + 10  # "c", and 0..9, of which 1 and 2 were there


def test_many_threads(db: Database) -> None:
    docs = db.create_collection("shared", dim=4, metric="l2")
    failures: list = []

    def work(worker: int) -> None:
        try:
            for turn in range(10):
                ids = [worker * 1000 + turn * 10 + i for i in range(10)]
                docs.upsert(ids=ids, vectors=np.full((10, 4), ids[0], dtype=float), metadata=[{"w": worker}] * 10)
                assert set(docs.query(np.full(4, ids[0]), k=10).ids) == set(ids)
                assert docs.delete(ids=ids[:5]).deleted == 5
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(docs) == 8 * 10 * 5
    assert [docs.count(f"w == {n}") for n in range(8)] == [50] * 8
