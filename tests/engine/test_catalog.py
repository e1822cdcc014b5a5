"""Making, dropping, losing, and having many collections."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.faults import run_python
from vecdb import app, errors
from vecdb.services import local, maintenance
from vecdb.services.shard import ShardService
from vecdb.storage.rocksdict import RocksStore

VECTOR = np.ones((1, 8), np.float32)


def _two(path: Path) -> None:
    with vecdb.connect(path, background=False) as db:
        for name in "ab":
            docs = db.create_collection(name, 8, metric="l2", index="flat")
            docs.upsert(ids=list(range(50)), vectors=np.zeros((50, 8)))
            docs.optimize()


def _segments(path: Path) -> int:
    return len(list(path.glob("collections/*/segments/*/*")))


def _fail_once(monkeypatch: pytest.MonkeyPatch, method: str, folder: str, *, landed: bool) -> None:
    """Let the next ``method`` of a store in ``folder`` raise StorageFull and end its writing, as a full disk does."""
    real: Callable[..., Any] = getattr(RocksStore, method)
    left = [1]

    def failing(self: RocksStore, *given: Any) -> Any:
        if self.path.name != folder or not left[0]:
            return real(self, *given)
        left[0] = 0
        if landed:
            real(self, *given)
        raise self._fail(OSError(28, os.strerror(28)), "writing to")

    monkeypatch.setattr(RocksStore, method, failing)


# --- the marker ------------------------------------------------------------------------------------

def test_a_marker_left_empty_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "vecdb.format").touch()
    vecdb.connect(tmp_path).close()
    assert (tmp_path / "vecdb.format").read_text() == app.FORMAT
    other = tmp_path / "other"
    other.mkdir()
    (other / "vecdb.format").touch()
    (other / "mine").touch()
    with pytest.raises(errors.FormatMismatch):
        vecdb.connect(other)
    assert sorted(one.name for one in other.iterdir()) == ["mine", "vecdb.format"]


def test_the_marker_appears_whole(tmp_path: Path) -> None:
    code = """
import os, sys, vecdb
os.replace = lambda *_: os._exit(0)
vecdb.connect(sys.argv[1])
"""
    run_python(code, tmp_path / "db")
    assert not (tmp_path / "db" / "vecdb.format").exists()
    vecdb.connect(tmp_path / "db").close()
    assert not (tmp_path / "db" / "vecdb.format.partial").exists()


# --- lost stores -----------------------------------------------------------------------------------

@pytest.mark.parametrize("lost", ["catalog", "catalog/CURRENT"])
def test_a_lost_catalog_is_damage_and_deletes_nothing(tmp_path: Path, lost: str) -> None:
    _two(tmp_path)
    before = _segments(tmp_path)
    path = tmp_path / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for _ in range(2):
        with pytest.raises(errors.DataCorrupted, match="catalog"):
            vecdb.connect(tmp_path)
    assert _segments(tmp_path) == before


@pytest.mark.parametrize("lost", ["rows", "rows/CURRENT"])
def test_lost_rows_are_damage_and_delete_nothing(tmp_path: Path, lost: str) -> None:
    _two(tmp_path)
    before = _segments(tmp_path)
    path = tmp_path / "collections" / "000001" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for _ in range(2):
        with vecdb.connect(tmp_path) as db:
            with pytest.raises(errors.DataCorrupted, match="000001"):
                db.collection("a").count()
            assert db.collection("b").count() == 50
    assert _segments(tmp_path) == before


# --- refused creates and drops ---------------------------------------------------------------------

@pytest.mark.parametrize("landed", [False, True])
def test_a_drop_the_disk_refused_leaves_nothing_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        landed: bool) -> None:
    with vecdb.connect(tmp_path, background=False) as db:
        db.create_collection("c", 8).upsert(ids=[1], vectors=VECTOR)
        _fail_once(monkeypatch, "_written", "catalog", landed=landed)
        if landed:
            db.drop_collection("c")
            with pytest.raises(errors.CollectionNotFound):
                db.drop_collection("c")
        else:
            with pytest.raises(errors.StorageFull):
                db.drop_collection("c")
            assert db.collection("c").count() == 1
            db.drop_collection("c")
        assert db.list_collections() == []
        db.create_collection("c", 8).upsert(ids=[2, 3], vectors=np.ones((2, 8)))
    with vecdb.connect(tmp_path) as db:
        assert db.collection("c").count() == 2
    assert len(list((tmp_path / "collections").iterdir())) == 1


@pytest.mark.parametrize("landed", [False, True])
def test_a_create_the_disk_refused_did_not_happen_and_its_folder_is_not_used_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, landed: bool) -> None:
    with vecdb.connect(tmp_path, background=False) as db:
        db.create_collection("a", 8)
        _fail_once(monkeypatch, "_written", "catalog", landed=landed)
        with pytest.raises(errors.StorageFull):
            db.create_collection("x", 8)
        for name in ("x", "y", "z"):
            db.create_collection(name, 8).upsert(ids=[1], vectors=VECTOR)
    with vecdb.connect(tmp_path) as db:
        assert db.list_collections() == ["a", "x", "y", "z"]
        assert [db.collection(name).count() for name in "xyz"] == [1, 1, 1]


def test_a_dropped_collection_whose_store_cannot_close_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RocksStore.close

    def failing(self: RocksStore) -> None:
        real(self)
        if self.path.name == "rows":
            raise errors.StorageFull("closing", path=str(self.path))

    with vecdb.connect(tmp_path, background=False) as db:
        db.create_collection("c", 8).upsert(ids=[1], vectors=VECTOR)
        monkeypatch.setattr(RocksStore, "close", failing)
        db.drop_collection("c")
        assert list((tmp_path / "collections").iterdir()) == []


# --- nobody waits for another collection -----------------------------------------------------------

def test_others_answer_while_a_collection_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _two(tmp_path)
    entered, go = threading.Event(), threading.Event()
    real = local.ShardService.__init__

    def slow(self: ShardService, schema: Any, *rest: Any) -> None:
        if schema.name == "a":
            entered.set()
            assert go.wait(60)
        real(self, schema, *rest)

    monkeypatch.setattr(local.ShardService, "__init__", slow)
    with vecdb.connect(tmp_path, background=False) as db:
        opening = threading.Thread(target=db.collection("a").count)
        opening.start()
        assert entered.wait(60)
        try:
            assert len(db.collection("b").query(np.zeros(8), k=3)) == 3
            assert db.collection("a").schema.dim == 8
            assert db.list_collections() == ["a", "b"]
        finally:
            go.set()
            opening.join()


def test_others_answer_while_a_collection_is_dropped_during_its_job(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = threading.Event(), threading.Event()
    real = maintenance.build_sealed

    def slow(*given: Any, **named: Any) -> int:
        entered.set()
        assert go.wait(60)
        return real(*given, **named)

    monkeypatch.setattr(maintenance, "build_sealed", slow)
    with vecdb.connect(tmp_path, seal_records=100) as db:
        docs = db.create_collection("a", 8, index="flat")
        other = db.create_collection("b", 8, index="flat")
        other.upsert(ids=[1], vectors=VECTOR)
        docs.upsert(ids=list(range(200)), vectors=np.ones((200, 8)))
        assert entered.wait(60)
        dropping = threading.Thread(target=db.drop_collection, args=("a",))
        dropping.start()
        try:
            while "a" in db.list_collections():
                pass
            assert other.query(np.ones(8), k=1).ids == [1]
        finally:
            go.set()
            dropping.join()
    assert len(list((tmp_path / "collections").iterdir())) == 1


# --- many collections ------------------------------------------------------------------------------

def test_more_collections_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_open_collections", lambda: 4)
    live: set[int] = set()
    most = [0]
    begin, end = ShardService.__init__, ShardService.close

    def begun(self: ShardService, *given: Any) -> None:
        begin(self, *given)
        live.add(id(self))
        most[0] = max(most[0], len(live))

    def ended(self: ShardService, **named: Any) -> None:
        live.discard(id(self))
        end(self, **named)

    monkeypatch.setattr(ShardService, "__init__", begun)
    monkeypatch.setattr(ShardService, "close", ended)
    names = [f"c{number:02d}" for number in range(40)]
    wrong: list[BaseException] = []
    with vecdb.connect(tmp_path) as db:
        for number, name in enumerate(names):
            db.create_collection(name, 8, index="flat").upsert(ids=[number], vectors=VECTOR)
        assert most[0] <= 4
        assert [db.collection(name).query(np.ones(8), k=1).ids for name in names] == [[n] for n in range(40)]
        assert most[0] <= 4

        def hammer(seed: int) -> None:
            rng = np.random.default_rng(seed)
            try:
                for step in range(15):
                    number = int(rng.integers(0, 12))
                    docs = db.collection(names[number])
                    docs.upsert(ids=[1000 * seed + step], vectors=VECTOR)
                    assert docs.get(1000 * seed + step) is not None
                    assert docs.get(number) is not None
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert sum(db.collection(name).count() for name in names) == 40 + 4 * 15
