"""The disk refuses in the middle of things: nothing acknowledged is lost, nothing unacknowledged is half there."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vecdb
from vecdb import errors
from vecdb.client.collection import Collection
from vecdb.client.database import Database
from vecdb.runtime.clock import SystemClock
from vecdb.runtime.pool import KernelPool
from vecdb.services.local import LocalDatabase
from vecdb.services.settings import EngineSettings
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore

DIM = 8


class Faults:
    """What is to fail next: ``write`` (before or after it landed), ``sync``, or opening for writing."""

    def __init__(self) -> None:
        self.next: str | None = None
        self.opening = False
        self.hold_sync: threading.Event | None = None

    def take(self, *names: str) -> str | None:
        if self.next in names:
            taken, self.next = self.next, None
            return taken
        return None


class FaultyStore:
    """A real store that refuses on demand, and then takes nothing more, as the real one does."""

    def __init__(self, path: Path, faults: Faults, *, read_only: bool) -> None:
        if faults.opening and not read_only:
            raise errors.StorageFull(f"opening {path}: no space", path=str(path))
        self._inner = RocksStore(path, read_only=read_only)
        self._faults = faults
        self._failed = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def write(self, batch: Mutations) -> None:
        if self._failed:
            raise errors.StorageFull("no space")
        fault = self._faults.take("write", "landed write")
        if fault != "write":
            self._inner.write(batch)
        if fault is not None:
            self._failed = True
            raise errors.StorageFull("no space")

    def sync(self) -> None:
        held = self._faults.hold_sync
        if held is not None:
            held.wait(60)
        if self._failed or self._faults.take("sync"):
            self._failed = True
            raise errors.StorageFull("no space")
        self._inner.sync()


class Rig:
    def __init__(self, path: Path) -> None:
        self.path, self.faults = path, Faults()
        self.db = self.open()

    def open(self) -> Database:
        pool = KernelPool(2)

        def open_store(path: Path, *, read_only: bool = False, wal: bool = True) -> FaultyStore:
            faults = self.faults if path.name == "rows" else Faults()
            return FaultyStore(path, faults, read_only=read_only)

        return Database(LocalDatabase(self.path, open_store, pool, SystemClock(), EngineSettings(background=False),
                                      on_job_error=lambda job, error: None, on_close=pool.close))

    def reopen(self) -> Collection:
        self.db.close()
        self.db = self.open()
        return self.db.collection("c")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "db")
    yield made
    made.faults.next, made.faults.opening = None, False
    made.db.close()


def _fill(rig: Rig, count: int = 300) -> Collection:
    docs = rig.db.create_collection("c", DIM, metric="l2", index="hnsw", m=8, ef_construction=40)
    docs.upsert(ids=np.arange(count), vectors=np.random.default_rng(0).standard_normal((count, DIM)),
                metadata=[{"n": i} for i in range(count)])
    return docs


def _one(docs: Collection, identity: int | str, value: float) -> None:
    docs.upsert(ids=[identity], vectors=np.full((1, DIM), value), metadata=[{"value": value}])


@pytest.mark.parametrize("fault", ["write", "landed write", "sync"])
def test_a_refused_write_leaves_one_history(rig: Rig, fault: str) -> None:
    docs = _fill(rig)
    rig.faults.next = fault
    with pytest.raises(errors.StorageFull):
        _one(docs, "refused", 1.0)
    assert docs.count() >= 300
    _one(docs, "after", 2.0)
    there = docs.get("refused")
    assert there is None or there.vector.tolist() == [1.0] * DIM
    digest = docs.describe().details["digest"]
    docs = rig.reopen()
    assert docs.describe().details["digest"] == digest
    assert docs.get("after").vector.tolist() == [2.0] * DIM
    assert (docs.get("refused") is None) == (there is None)
    assert docs.count() == 301 + (there is not None)


@pytest.mark.parametrize("fault", ["write", "landed write", "sync"])
@pytest.mark.parametrize("write_before_reopening", [False, True])
def test_a_maintenance_batch_of_unknown_outcome_loses_nothing(rig: Rig, fault: str,
                                                              write_before_reopening: bool) -> None:
    docs = _fill(rig)
    digest = docs.describe().details["digest"]
    rig.faults.next = fault
    with pytest.raises(errors.StorageFull):
        docs.optimize()
    assert docs.count() == 300
    if write_before_reopening:
        _one(docs, "after", 2.0)
        docs.delete(ids=["after"])
    docs = rig.reopen()
    assert docs.describe().details["digest"] == digest
    assert "damage" not in docs.describe().details
    assert len(docs.fetch(list(range(300)))) == 300
    docs.optimize()
    assert docs.query(np.zeros(DIM), k=300).ids
    assert len(docs.query(np.zeros(DIM), k=300)) == 300


def test_a_job_that_meets_a_broken_store_starts_from_what_is_there(rig: Rig) -> None:
    docs = _fill(rig)
    rig.faults.next = "landed write"
    with pytest.raises(errors.StorageFull):
        _one(docs, "landed", 1.0)
    docs.optimize()
    docs = rig.reopen()
    assert docs.count() == 301
    assert docs.get("landed").vector.tolist() == [1.0] * DIM
    assert "damage" not in docs.describe().details


def test_reads_go_on_while_the_store_cannot_be_opened_for_writing(rig: Rig) -> None:
    docs = _fill(rig)
    rig.faults.next, rig.faults.opening = "write", True
    for _ in range(3):
        with pytest.raises(errors.StorageFull):
            _one(docs, "x", 1.0)
        assert len(docs.fetch([1, 2, 3])) == 3
        assert docs.query(np.zeros(DIM), k=3, include=["metadata"]).metadata
        assert len(list(docs.scan(filter="n < 10"))) == 10
    rig.faults.opening = False
    _one(docs, "x", 2.0)
    assert docs.get("x").vector.tolist() == [2.0] * DIM


def test_a_writer_overtaken_by_a_reopening_learns_its_outcome(rig: Rig) -> None:
    docs = _fill(rig)
    held = rig.faults.hold_sync = threading.Event()
    outcome: list[object] = []

    def waiting() -> None:
        try:
            _one(docs, "waiting", 1.0)
            outcome.append("acknowledged")
        except errors.VecdbError as error:
            outcome.append(error)

    thread = threading.Thread(target=waiting)
    thread.start()
    while docs.count() < 301:
        thread.join(0.001)
    rig.faults.next = "write"
    with pytest.raises(errors.StorageFull):
        _one(docs, "refused", 1.0)
    rig.faults.hold_sync = None
    _one(docs, "mends", 1.0)
    held.set()
    thread.join(60)
    assert outcome == ["acknowledged"]
    docs = rig.reopen()
    assert docs.get("waiting") is not None
    assert docs.get("mends") is not None


@pytest.mark.parametrize("where", [None, "n >= 0", "missing == 1"])
def test_an_empty_collection_answers_with_nothing(rig: Rig, where: str | None) -> None:
    docs = rig.db.create_collection("c", DIM, metric="l2")
    for include in ((), ("metadata", "vector")):
        assert docs.query(np.zeros(DIM), filter=where, include=include).ids == []
        assert [hits.ids for hits in docs.query(np.zeros((3, DIM)), filter=where, include=include)] == [[], [], []]
    docs.upsert(ids=[1], vectors=np.ones((1, DIM)))
    docs.optimize()
    docs.delete(ids=[1])
    assert docs.query(np.zeros(DIM), exact=True).ids == []
    assert docs.query(np.zeros(DIM), within=1.0).ids == []
    docs.optimize()
    assert docs.query(np.zeros(DIM)).ids == []
    assert docs.count() == 0


def test_filters_on_unindexed_paths_see_records_that_are_being_rewritten(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "db")
    docs = rig.db.create_collection("c", DIM, metric="l2", indexed_fields=["other"])
    ids = np.arange(60)
    docs.upsert(ids=ids, vectors=np.zeros((60, DIM)), metadata=[{"keep": True}] * 60)
    stop, wrong = threading.Event(), []

    def rewrite() -> None:
        while not stop.is_set():
            docs.upsert(ids=ids[:30], vectors=np.zeros((30, DIM)), metadata=[{"keep": True}] * 30)

    thread = threading.Thread(target=rewrite)
    thread.start()
    for _ in range(30):
        for found in (docs.count(filter="keep == true"), len(docs.query(np.zeros(DIM), k=100, filter="keep == true")),
                      len(list(docs.scan(filter="keep == true")))):
            if found != 60:
                wrong.append(found)
    stop.set()
    thread.join()
    rig.db.close()
    assert not wrong


def test_optimize_of_a_read_only_database_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "db")
    _fill(rig)
    rig.db.close()
    pool = KernelPool(1)
    db = Database(LocalDatabase(tmp_path / "db", RocksStore, pool, SystemClock(),
                                EngineSettings(background=False, read_only=True),
                                on_job_error=lambda job, error: None, on_close=pool.close))
    before = sorted(path.name for path in (tmp_path / "db").rglob("*"))
    with pytest.raises(errors.StorageReadOnly):
        db.collection("c").optimize()
    db.close()
    assert sorted(path.name for path in (tmp_path / "db").rglob("*")) == before


def test_writers_held_back_go_on_when_optimize_clears_what_they_wait_for(tmp_path: Path) -> None:
    with vecdb.connect(tmp_path / "db", seal_records=40) as db:
        docs = db.create_collection("c", DIM, metric="l2", index="flat")
        done = threading.Event()

        def write() -> None:
            for start in range(0, 4_000, 20):
                docs.upsert(ids=np.arange(start, start + 20), vectors=np.ones((20, DIM)))
            done.set()

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        while not done.wait(0.05):
            docs.optimize()
            assert thread.is_alive() or done.is_set()
        thread.join()
        assert docs.count() == 4_000


def test_optimize_under_a_drop_says_that_the_collection_is_gone(tmp_path: Path) -> None:
    ends = []
    with vecdb.connect(tmp_path / "db", background=False) as db:
        for turn in range(6):
            docs = db.create_collection("c", 32, metric="l2", index="hnsw", m=8, ef_construction=60)
            docs.upsert(ids=np.arange(3_000), vectors=np.random.default_rng(turn).standard_normal((3_000, 32)))

            def optimize(docs: Collection = docs) -> None:
                try:
                    docs.optimize()
                    ends.append("done")
                except errors.CollectionNotFound:
                    ends.append("gone")
                except errors.VecdbError as error:
                    ends.append(repr(error))

            thread = threading.Thread(target=optimize)
            thread.start()
            thread.join(0.03 * turn)
            db.drop_collection("c")
            thread.join(30)
    assert len(ends) == 6
    assert set(ends) <= {"done", "gone"}
