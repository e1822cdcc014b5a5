"""A database over the in-memory double, and a check that a refusal changed nothing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from tests.memory_backend import MemoryBackend
from vecdb.client.collection import Collection
from vecdb.client.database import Database
from vecdb.core.errors import VecdbError


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def db(backend: MemoryBackend) -> Database:
    return Database(backend)


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
