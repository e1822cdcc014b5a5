"""Reads that see what the session wrote, from every face of the SDK."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.awaiting import Awaiting, awaited
from tests.fake_server import FakeServer
from tests.sharded import ShardedBackend, asked
from tests.unit.client.conftest import WAYS, in_process, in_threads
from vecdb.client.async_database import AsyncDatabase
from vecdb.client.database import Database
from vecdb.client.positions import GONE
from vecdb.core.calls import Consistency
from vecdb.core.errors import DatabaseClosed, InvalidArgument, StorageFull

EVENTUAL, SESSION, LINEARIZABLE = Consistency.EVENTUAL, Consistency.SESSION, Consistency.LINEARIZABLE


@pytest.fixture
def backend() -> ShardedBackend:
    return ShardedBackend()


@pytest.fixture
def seen(request: pytest.FixtureRequest, backend: ShardedBackend) -> Callable[[str], Any]:
    """What the last read by a method had to have seen, where it arrived."""
    if request.getfixturevalue("db") and request.node.callspec.params["db"] == WAYS[0]:
        return lambda method: asked(backend.reads, method)
    server: FakeServer = request.getfixturevalue("server")
    return lambda method: asked(server.node.calls, method)


READS: dict[str, tuple[str, Callable[..., Any]]] = {
    "query": ("query", lambda docs, **more: docs.query([0, 0], **more)),
    "queries": ("query", lambda docs, **more: docs.query([[0, 0], [1, 1]], **more)),
    "reported": ("query", lambda docs, **more: docs.query([[0, 0]], progress=lambda *step: None, **more)),
    "fetch": ("fetch", lambda docs, **more: docs.fetch([1], **more)),
    "get": ("fetch", lambda docs, **more: docs.get(1, **more)),
    "scan": ("scan", lambda docs, **more: list(docs.scan(**more))),
    "scan_batches": ("scan", lambda docs, **more: list(docs.scan_batches(**more))),
    "count": ("count", lambda docs, **more: docs.count(**more)),
    "describe": ("describe", lambda docs, **more: docs.describe(**more)),
    "optimize": ("optimize", lambda docs, **more: docs.optimize(**more)),
}


@pytest.mark.parametrize("read", READS)
def test_reads_see_what_was_written_here(db: Any, seen: Callable[[str], Any], read: str) -> None:
    method, ask = READS[read]
    docs, other = (db.create_collection(name, dim=2, metric="l2") for name in ("docs", "other"))
    ask(docs)
    assert seen(method) == (EVENTUAL, ()), "nothing written, nothing to wait for"
    docs.upsert(ids=[1], vectors=[[1, 1]])
    ask(docs)
    assert seen(method) == (SESSION, ((1, 1),))
    ask(docs, timeout=30)
    assert seen(method) == (SESSION, ((1, 1),))
    ask(other)
    assert seen(method) == (EVENTUAL, ())
    other.upsert(ids=[1, 2], vectors=[[1, 1], [2, 2]])
    docs.update_metadata(ids=[1], metadata={"a": 1})
    docs.delete(ids=[7])
    ask(docs)
    assert seen(method) == (SESSION, ((1, 3),))
    ask(other)
    assert seen(method) == (SESSION, ((2, 1),))
    ask(docs, consistency="eventual")
    assert seen(method) == (EVENTUAL, ())
    ask(docs, consistency="linearizable")
    assert seen(method) == (LINEARIZABLE, ((1, 0),))
    ask(docs, consistency=SESSION)
    assert seen(method) == (SESSION, ((1, 3),))


@pytest.mark.parametrize("read", READS)
def test_other_words_for_it_are_refused_with_the_right_one(db: Any, read: str) -> None:
    docs = db.create_collection("docs", dim=2)
    for wrong, hint in (("strong", "'linearizable'"), ("QUORUM", "'linearizable'"), ("ONE", "'eventual'"),
                        ("x", "none"), (7, "int"), (True, "bool")):
        with pytest.raises(InvalidArgument, match=hint) as info:
            READS[read][1](docs, consistency=wrong)
        assert info.value.argument == "consistency"


def test_long_upserts_are_remembered_too(db: Any, seen: Callable[[str], Any]) -> None:
    docs = db.create_collection("docs", dim=2, metric="l2")
    result = docs.upsert(((n, [n, n]) for n in range(100)), batch_size=10)
    assert (result.shard, result.log_index) == (1, 10)
    docs.count()
    assert seen("count") == (SESSION, ((1, 10),))

    def failing() -> Any:
        yield from ((n, [n, n]) for n in range(35))
        raise OSError("the source broke")

    with pytest.raises(OSError, match="broke"):
        docs.upsert(failing(), batch_size=10)
    docs.count()
    assert seen("count") == (SESSION, ((1, 13),)), "what was applied of a call that failed must be found, too"


def test_what_was_applied_beyond_the_batch_that_failed_must_be_found_too(db: Any, backend: ShardedBackend,
                                                                         seen: Callable[[str], Any]) -> None:
    docs = db.create_collection("docs", dim=2, metric="l2")
    real = backend.upsert

    def refusing(name: str, batch: Any, call: Any = None) -> Any:
        if 25 in batch.ids:
            raise StorageFull("no room", path="/x")
        return real(name, batch, call)

    backend.upsert = refusing  # type: ignore[method-assign]
    with pytest.raises(StorageFull) as info:
        docs.upsert(((n, [n, n]) for n in range(80)), batch_size=10)
    applied = sum(info.value.fields.get(name, 0) for name in ("rows_applied", "rows_applied_beyond"))
    assert docs.count() == applied
    assert seen("count") == (SESSION, ((1, applied // 10),))


def test_an_update_by_filter_finds_what_anybody_wrote(db: Any, seen: Callable[[str], Any]) -> None:
    docs = db.create_collection("docs", dim=2, metric="l2")
    assert docs.update_metadata(filter="true", metadata={"a": 1}).updated == 0
    assert seen("scan") == (LINEARIZABLE, ())


def test_a_collection_made_anew_is_another_shard(db: Any, seen: Callable[[str], Any]) -> None:
    docs = db.create_collection("docs", dim=2)
    docs.upsert(ids=[1], vectors=[[1, 1]])
    db.drop_collection("docs")
    docs = db.create_collection("docs", dim=2)
    docs.count()
    assert seen("count") == (SESSION, ((1, GONE),)), "who has not heard of the drop is not to answer"
    docs.upsert(ids=[1], vectors=[[1, 1]])
    docs.count()
    assert seen("count") == (SESSION, ((1, GONE), (2, 1)))


@in_threads
def test_tokens_go_from_one_handle_to_another(db: Database, backend: ShardedBackend) -> None:
    docs, logs = (db.create_collection(name, dim=2) for name in ("docs", "logs"))
    empty = db.session_token()
    docs.upsert(ids=[1], vectors=[[1, 1]])
    logs.upsert(ids=[1], vectors=[[1, 1]])
    token, some = db.session_token(), db.session_token("logs")
    db.close()
    assert db.session_token() == token, "what was written stays written when the handle is closed"
    with pytest.raises(DatabaseClosed):
        db.use_session_token(token)
    backend._closed = False
    other = Database(backend)
    other.use_session_token(empty)
    other.collection("docs").count()
    assert asked(backend.reads, "count") == (EVENTUAL, ())
    other.use_session_token(some)
    other.collection("docs").count()
    assert asked(backend.reads, "count") == (EVENTUAL, ())
    other.use_session_token(token)
    other.collection("docs").count()
    assert asked(backend.reads, "count") == (SESSION, ((1, 1),))
    with pytest.raises(InvalidArgument, match="session_token"):
        other.use_session_token("docs")


def test_tokens_from_asyncio(server: FakeServer, backend: ShardedBackend) -> None:
    server.node.backend = server.backend = backend
    with Awaiting() as loop:
        db: AsyncDatabase = loop.run(awaited(vecdb.connect_async(server.url, consistency="eventual")))
        docs = loop.run(db.create_collection("docs", dim=2))
        loop.run(docs.upsert(ids=[1], vectors=[[1, 1]]))
        loop.run(docs.count())
        assert asked(server.node.calls, "count") == (EVENTUAL, ()), "as it was opened"
        loop.run(docs.count(consistency="session"))
        assert asked(server.node.calls, "count") == (SESSION, ((1, 1),))
        token = db.session_token()

        async def use() -> None:
            other.use_session_token(token)

        other: AsyncDatabase = loop.run(awaited(vecdb.connect_async(server.url)))
        loop.run(use())
        loop.run(loop.run(other.collection("docs")).query([0, 1]))
        assert asked(server.node.calls, "query") == (SESSION, ((1, 1),))
        for one in (db, other):
            loop.run(one.close())


def test_threads_share_what_they_wrote(server: FakeServer, backend: ShardedBackend) -> None:
    server.node.backend = server.backend = backend
    with vecdb.connect(server.url) as db, ThreadPoolExecutor(8) as threads:
        docs = db.create_collection("docs", dim=2)

        def write(number: int) -> None:
            index = docs.upsert(ids=[number], vectors=[[1, number]]).log_index
            docs.get(number)
            docs.query([1, 1], k=1)
            (_, at), = db._session.positions.of("docs")
            assert at >= index

        server.node.calls.clear()
        list(threads.map(write, range(64)))
        docs.count()
        assert asked(server.node.calls, "count") == (SESSION, ((1, 64),))


def test_queries_that_travel_together_see_what_each_must_have_seen(server: FakeServer, backend: ShardedBackend) -> None:
    """A query may wait while others fly; what is written meanwhile is for it to see, as it is for those it joins."""
    server.node.backend = server.backend = backend
    rng = np.random.default_rng(5)
    with vecdb.connect(server.url) as db, ThreadPoolExecutor(16) as threads:
        docs = db.create_collection("docs", dim=2)
        docs.upsert(ids=[0], vectors=[[1, 1]])
        server.node.calls.clear()
        stop = threading.Event()

        def writing() -> None:
            number = 1
            while not stop.is_set():
                docs.upsert(ids=[number], vectors=[[1, number]])
                number += 1

        writer = threading.Thread(target=writing)
        writer.start()
        try:
            for level in (None, "linearizable", "eventual"):
                before = len(server.node.calls)
                list(threads.map(lambda vector, level=level: docs.query(vector, k=1, consistency=level),
                                 rng.uniform(0.1, 1, (100, 2))))
                calls = [call for method, _, call in server.node.calls[before:] if method == "query"]
                wanted = Consistency(level or "session")
                assert {call.consistency for call in calls} == {wanted}
                assert all(bool(call.session) == (wanted is not EVENTUAL) for call in calls)
                indexes = [call.session[0][1] for call in calls if call.session]
                assert all(index >= 1 if wanted is SESSION else index == 0 for index in indexes)
        finally:
            stop.set()
            writer.join()


@in_process
def test_the_default_is_of_the_database(db: Database, backend: ShardedBackend) -> None:
    for level in Consistency:
        mine = Database(backend, consistency=level)
        docs = mine.get_or_create_collection("docs", dim=2)
        docs.upsert(ids=[1], vectors=[[1, 1]])
        docs.count()
        assert asked(backend.reads, "count")[0] is level
    for made in (lambda: Database(backend, consistency="strong"), lambda: vecdb.connect("/nowhere", consistency="all"),
                 lambda: vecdb.connect_async("/nowhere", consistency=3)):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="consistency"):
            made()


def test_a_directory_takes_every_level(tmp_path: Path) -> None:
    for level in Consistency:
        with vecdb.connect(tmp_path / "data", consistency=level) as db:
            docs = db.get_or_create_collection("docs", dim=2, metric="l2")
            result = docs.upsert(ids=[1], vectors=[[1, 1]])
            assert result.shard == 0
            for one in (None, *Consistency):
                assert docs.query([1, 1], k=1, consistency=one).ids == [1]
                assert docs.count(consistency=one) == len(docs.fetch([1], consistency=one)) == 1
                assert [record.id for record in docs.scan(consistency=one)] == [1]
            assert db.session_token() == Database(ShardedBackend()).session_token(), "there is nothing to wait for"
