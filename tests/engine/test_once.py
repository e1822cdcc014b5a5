"""Idempotency keys on the engine: a retry after a kill, a reopening or a lost answer is answered once."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults import kill_during
from vecdb.app import open_embedded
from vecdb.client.database import Database
from vecdb.core.calls import Call, WriteToken
from vecdb.core.errors import InvalidArgument
from vecdb.core.records import DeleteIds, UpsertBatch, WriteResult
from vecdb.services.local import LocalDatabase
from vecdb.shard import rows

WRITER = """
import sys, numpy as np
from vecdb.app import open_embedded
from vecdb.client.database import Database
from vecdb.core.calls import Call, WriteToken
from vecdb.core.records import UpsertBatch
path, _, first = sys.argv[1:4]
backend = open_embedded(path, background=False)
Database(backend, label="w").get_or_create_collection("c", 4, metric="l2", index="flat")
number = int(first)
while True:
    print("begin", number, flush=True)
    ids = tuple(range(3 * number, 3 * number + 3))
    done = backend.upsert("c", UpsertBatch(ids, np.full((3, 4), number, np.float32), (b"{}",) * 3),
                          call=Call(token=WriteToken(b"write-%d" % number, number)))
    print("done", number, done.inserted, done.updated, done.log_index, flush=True)
    number += 1
"""


def _open(path: Path) -> LocalDatabase:
    backend = open_embedded(path, background=False)
    assert isinstance(backend, LocalDatabase)
    return backend


def _write(backend: LocalDatabase, number: int, fingerprint: int | None = None) -> WriteResult:
    ids = tuple(range(3 * number, 3 * number + 3))
    token = WriteToken(b"write-%d" % number, number if fingerprint is None else fingerprint)
    return backend.upsert("c", UpsertBatch(ids, np.full((3, 4), number, np.float32), (b"{}",) * 3),
                          call=Call(token=token))


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[LocalDatabase]:
    backend = _open(tmp_path / "db")
    Database(backend, label="test").create_collection("c", 4, metric="l2", index="flat")
    yield backend
    backend.close()


@pytest.mark.parametrize("stop_after", [1, 30, 61])
def test_a_retry_after_a_kill_is_answered_once(tmp_path: Path, stop_after: int) -> None:
    """Whatever was begun is retried: all are there once, and none counts as an update."""
    lines = kill_during(WRITER, tmp_path / "db", 7, 1, until=lambda seen: len(seen) >= stop_after)
    acknowledged = {int(number): tuple(map(int, rest)) for what, number, *rest in map(str.split, lines)
                    if what == "done"}
    begun = max(int(line.split()[1]) for line in lines if line.startswith(("begin", "done")))
    backend = _open(tmp_path / "db")
    try:
        Database(backend, label="test").get_or_create_collection("c", 4, metric="l2", index="flat")
        for number in range(1, begun + 1):
            found = _write(backend, number)
            assert (found.inserted, found.updated) == (3, 0), f"write {number} happened twice"
            if number in acknowledged:
                assert (found.inserted, found.updated, found.log_index) == acknowledged[number]
        assert backend.count("c") == 3 * begun
        assert backend.verify("c")["equal"]
    finally:
        backend.close()


def test_reopening_keeps_the_keys(tmp_path: Path, backend: LocalDatabase) -> None:
    first = _write(backend, 1)
    backend.delete("c", DeleteIds((3,)))
    backend.close()
    again = _open(tmp_path / "db")
    try:
        digest = again.verify("c")["digest"]
        assert _write(again, 1) == first
        assert again.count("c") == 2, "the record deleted since is not written again"
        assert again.verify("c")["digest"] == digest
        with pytest.raises(InvalidArgument, match="idempotency_key"):
            _write(again, 1, fingerprint=99)
    finally:
        again.close()


def test_two_at_once_write_once(backend: LocalDatabase) -> None:
    found: list[WriteResult] = []
    gate = threading.Barrier(4)

    def write() -> None:
        gate.wait(30)
        found.append(_write(backend, 5))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert set(found) == {WriteResult(inserted=3, log_index=1)}


def test_a_batch_the_disk_refused_is_not_remembered(backend: LocalDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    from vecdb.core.errors import StorageFull
    from vecdb.storage.rocksdict import RocksStore

    def refuse(self: RocksStore, batch: Any) -> None:
        raise StorageFull("no room", path="here")

    _write(backend, 1)
    with monkeypatch.context() as patch:
        patch.setattr(RocksStore, "write", refuse)
        with pytest.raises(StorageFull):
            _write(backend, 2)
    assert _write(backend, 2) == WriteResult(inserted=3, log_index=2)
    assert _write(backend, 1) == WriteResult(inserted=3, log_index=1)


def test_writes_without_a_key_leave_no_row(backend: LocalDatabase) -> None:
    docs = Database(backend, label="test").collection("c")
    docs.upsert(ids=[1], vectors=[[1, 2, 3, 4]])
    opened = backend._slots["c"].opened
    assert opened is not None
    assert list(opened.shard._store.scan(*rows.TOKENS)) == []
