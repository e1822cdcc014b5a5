"""A database over the in-memory double, near and far, and a check that a refusal changed nothing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

import vecdb
from tests.awaiting import Awaiting, awaited
from tests.fake_server import FakeServer
from tests.memory_backend import MemoryBackend
from vecdb.client.collection import Collection
from vecdb.client.database import Database
from vecdb.core.errors import VecdbError


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


WAYS = ["in process", "over gRPC", "over grpc.aio"]
in_process = pytest.mark.parametrize("db", WAYS[:1], indirect=True)
"""For tests that look at what the backend is called with, or what becomes of it."""
in_threads = pytest.mark.parametrize("db", WAYS[:2], indirect=True)
"""For tests of the sync objects themselves."""


@pytest.fixture(params=WAYS)
def db(request: pytest.FixtureRequest, backend: MemoryBackend) -> Iterator[Any]:
    """A database over the double: called here, behind a server, and behind one from asyncio."""
    if request.param == "in process":
        yield Database(backend)
        return
    serving: FakeServer = request.getfixturevalue("server")
    serving.node.backend = serving.backend = backend
    if request.param == "over gRPC":
        database = vecdb.connect(serving.url)
        yield database
        database.close()
        return
    with Awaiting() as loop:
        opened = loop.run(awaited(vecdb.connect_async(serving.url)))
        yield loop.wrap(opened)
        loop.run(opened.close())


@pytest.fixture
def docs(db: Database) -> Collection:
    """Four dimensions, l2, three records."""
    made = db.create_collection("docs", dim=4, metric="l2")
    made.upsert(ids=[1, 2, "c"], vectors=[[0, 0, 0, 0], [3, 4, 0, 0], [1, 1, 1, 1]],
                metadata=[{"n": 1, "lang": "en"}, {"n": 2, "lang": "de"}, None])
    return made


Refused = Callable[..., AbstractContextManager[Any]]


@pytest.fixture
def refused(backend: MemoryBackend) -> Refused:
    """``with refused(ErrorClass, argument)``: that error, naming that argument, and the state as before."""

    @contextmanager
    def check(kind: type[VecdbError], argument: str | None = None) -> Iterator[Any]:
        before = backend.state()
        with pytest.raises(VecdbError) as info:
            yield info
        assert type(info.value) is kind, repr(info.value)
        if argument is not None:
            assert info.value.fields["argument"] == argument
            assert info.value.fields["got"] is not None
            assert info.value.fields["limit"] is not None
        assert backend.state() == before

    return check
