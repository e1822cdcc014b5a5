"""Damage to a replica: found when it is opened or read, never passed on, set aside, and made good by the others."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.faults import flip_byte, truncate
from tests.replicas import DIM, FOLDER, SCHEMA, carry, open_replicas, play, random_log, records_of, replica_at
from vecdb.core.errors import DataCorrupted, StorageError, VecdbError
from vecdb.core.query import QueryRequest, ScanRequest
from vecdb.core.records import DeleteIds, UpdateMetadata, WriteResult
from vecdb.ports.replicator import Position
from vecdb.services.local import LocalDatabase
from vecdb.shard import codec
from vecdb.storage.rocksdict import RocksStore

LOG = random_log(11, 160)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with every kind of file: tables of several flushes, sealed segments, growing records."""
    path = tmp_path_factory.mktemp("whole") / "db"
    database = open_replicas(path, seal_records=60, max_segment_records=400)
    database.host(SCHEMA, FOLDER)
    replica = database.replica("c")
    play(replica, LOG, 100)
    database.optimize("c")
    play(replica, LOG, 130)
    replica.checkpoint()
    play(replica, LOG)
    database.close()
    return path


def _kind(path: Path) -> str:
    return path.suffix if path.suffix in (".sst", ".log") else path.name.split("-")[0].split(".old")[0]


def _files(path: Path) -> dict[str, list[Path]]:
    kinds: dict[str, list[Path]] = {}
    for file in sorted((path / "collections").rglob("*")):
        if file.is_file():
            kinds.setdefault(_kind(file), []).append(file)
    return kinds


def _sound(path: Path, expected: str) -> str:
    """What becomes of a database whose files were hurt: ``refused``, ``told`` by verify, or ``whole``."""
    database = open_replicas(path)
    try:
        replica = database.replica("c")
        found = replica.verify()
        if not found["equal"]:
            return "told"
        assert replica.digest().digest == expected
        return "whole"
    except DataCorrupted:
        database.set_aside("c")
        assert database.replica("c").position() == Position(0, 0)
        return "refused"
    finally:
        database.close()


def _digest(path: Path) -> str:
    database = open_replicas(path)
    try:
        return database.replica("c").digest().digest
    finally:
        database.close()


HARMLESS = {"LOCK", "LOG", "IDENTITY", "OPTIONS", "EXPECT", "rocksdict", ".log", "index.vdb", "SYNCED"}
"""Kinds that hold nothing of their own."""


def test_a_flipped_bit_in_any_file_is_found_or_did_no_harm(tmp_path: Path, whole: Path) -> None:
    expected = _digest(whole)
    rng = Random(4)
    kinds = _files(whole)
    assert {"STATE", "MANIFEST", "CURRENT", ".sst", "vectors.vdb", "records.vdb", "index.vdb"} <= set(kinds)
    outcomes: dict[str, set[str]] = {}
    for kind, files in kinds.items():
        for _ in range(5 if kind in (".sst", "MANIFEST") else 2):
            file = rng.choice(files)
            if not file.stat().st_size:
                continue
            shutil.rmtree(tmp_path / "db", ignore_errors=True)
            shutil.copytree(whole, tmp_path / "db")
            at = rng.randrange(file.stat().st_size)
            flip_byte(tmp_path / "db" / file.relative_to(whole), at, 1 << rng.randrange(8))
            outcome = _sound(tmp_path / "db", expected)
            outcomes.setdefault(kind, set()).add(outcome)
            if outcome == "whole":
                assert kind in HARMLESS | {".sst", "vectors.vdb", "records.vdb"}, (kind, at)
    print(outcomes)
    assert outcomes["STATE"] == outcomes["CURRENT"] == {"refused"}
    assert outcomes[".sst"] & {"refused", "told"}
    assert outcomes["index.vdb"] == {"whole"}, "it is made from the rest"


@pytest.mark.parametrize("harm", [
    lambda state: (state.parent / "STATE").unlink(),
    lambda state: shutil.rmtree(state),
    lambda state: shutil.rmtree(state.parent),
    lambda state: shutil.rmtree(state / "rows"),
    lambda state: shutil.rmtree(state / "segments"),
    lambda state: (state / "rows" / "CURRENT").unlink(),
    lambda state: max((state / "rows").glob("*.sst")).unlink(),
    lambda state: truncate(max((state / "rows").glob("MANIFEST-*")), -60),
    lambda state: truncate(next(state.glob("segments/*/vectors.vdb")), -4_096),
    lambda state: flip_byte(next(state.glob("segments/*/vectors.vdb")), 4_096 * 3 + 7),
    lambda state: next(state.glob("segments/*/records.vdb")).unlink(),
], ids=["pointer", "state", "folder", "rows", "segments", "current", "table", "manifest", "cut", "flipped", "records"])
def test_what_is_lost_is_refused_and_a_snapshot_makes_it_good(tmp_path: Path, whole: Path,
                                                              harm: Callable[[Path], None]) -> None:
    shutil.copytree(whole, tmp_path / "db")
    shutil.copytree(whole, tmp_path / "source")
    harm(next((tmp_path / "db" / "collections" / FOLDER).glob("0*")))
    giving, database = open_replicas(tmp_path / "source"), open_replicas(tmp_path / "db")
    try:
        for _ in range(2):
            with pytest.raises(DataCorrupted):
                database.replica("c")
        with pytest.raises(DataCorrupted):
            database.count("c")
        assert list(database.hosted()) == ["c"]
        database.set_aside("c")
        replica = database.replica("c")
        assert replica.position() == Position(0, 0)
        assert replica.verify()["equal"]
        snapshot = giving.replica("c").snapshot()
        incoming = replica.receive(snapshot.position, snapshot.files)
        carry(snapshot, incoming)
        incoming.install()
        assert records_of(database) == records_of(giving)
    finally:
        giving.close()
        database.close()
    with replica_at(tmp_path / "db") as again:
        assert again.position().log_index == len(LOG)


def test_damage_met_by_a_read_ends_the_replica_until_it_is_set_aside(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "db"
    shutil.copytree(whole, path)
    database = open_replicas(path)
    replica = database.replica("c")
    database.fetch("c", [1])
    database.scan("c", ScanRequest())
    assert replica.failure is None
    replica.service.read_rows = replica.service.fetch = replica.service.query = _damaged  # type: ignore[method-assign]
    with pytest.raises(DataCorrupted):
        database.fetch("c", [1])
    assert isinstance(replica.failure, DataCorrupted)
    with pytest.raises(DataCorrupted):
        database.replica("c")
    last = database.replica("c", allow_damage=True)
    last.service.fetch = last.service.query = _damaged  # type: ignore[method-assign]
    for read in (lambda: database.fetch("c", [1]),
                 lambda: database.query("c", QueryRequest(np.zeros((1, DIM), np.float32), 1))):
        with pytest.raises(DataCorrupted):
            read()
    assert last.failure is None, "there is no other"
    database.close()


def _damaged(*given: object, **more: object) -> None:
    raise DataCorrupted("a block does not match its checksum", path="rows")


@pytest.mark.parametrize("seed", range(12))
def test_damaged_rows_are_not_passed_on(tmp_path: Path, whole: Path, seed: int) -> None:
    """RocksDB opens with a damaged block and finds it when it is read: by then three replicas could have it."""
    giving = tmp_path / "giving"
    shutil.copytree(whole, giving)
    tables = [path for path in _files(giving)[".sst"] if path.parent.name == "rows"]
    table = tables[seed % len(tables)]
    flip_byte(table, Random(seed).randrange(table.stat().st_size - 1_000))  # its end has what is read at opening
    source, target = open_replicas(giving), open_replicas(tmp_path / "taking")
    target.host(SCHEMA, FOLDER)
    try:
        with pytest.raises(DataCorrupted):
            source.replica("c").snapshot()
        with pytest.raises(DataCorrupted):
            source.replica("c")
        if source.hosted() and _opens(source):
            snapshot = source.replica("c", allow_damage=True).snapshot()
            incoming = target.replica("c").receive(snapshot.position, snapshot.files)
            carry(snapshot, incoming)
            with pytest.raises(DataCorrupted):
                incoming.install()
            assert target.replica("c").position() == Position(0, 0)
    finally:
        source.close()
        target.close()


def _opens(database: LocalDatabase) -> bool:
    """Whether the last replica could go on with this damage."""
    try:
        database.replica("c", allow_damage=True)
    except DataCorrupted:
        return False
    return True


def test_the_newest_two_damaged_states_are_kept_until_the_replica_goes(tmp_path: Path) -> None:
    database = open_replicas(tmp_path / "db")
    database.host(SCHEMA, FOLDER)
    for number in range(1, 5):
        play(database.replica("c"), LOG, number)
        database.set_aside("c")
    folders = tmp_path / "db" / "collections"
    assert sorted(path.name for path in folders.iterdir()) == [FOLDER, f"{FOLDER}.damaged-3", f"{FOLDER}.damaged-4"]
    database.close()
    database = open_replicas(tmp_path / "db")
    assert len(list(folders.iterdir())) == 3, "they outlive a restart"
    assert database.replica("c").position() == Position(0, 0)
    database.unhost("c")
    assert list(folders.iterdir()) == []
    database.close()


def test_the_last_replica_may_be_opened_with_what_it_has(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "db")
    vectors = next((tmp_path / "db" / "collections" / FOLDER).glob("0*/segments/*/vectors.vdb"))
    flip_byte(vectors, vectors.stat().st_size // 2)
    database = open_replicas(tmp_path / "db")
    with pytest.raises(DataCorrupted) as caught:
        database.replica("c")
    lost = caught.value.fields["ids"]
    assert lost
    replica = database.replica("c", allow_damage=True)
    assert replica.position().log_index == len(LOG)
    with pytest.raises(DataCorrupted):
        database.fetch("c", list(lost[:1]))
    assert set(replica.verify()["ids"]) >= set(lost)
    snapshot = replica.snapshot()  # its group goes on, though nobody can join it
    with replica_at(tmp_path / "other") as other:
        incoming = other.receive(snapshot.position, snapshot.files)
        carry(snapshot, incoming)
        with pytest.raises(DataCorrupted):
            incoming.install()
        assert other.position() == Position(0, 0)
    assert replica.apply(len(LOG) + 1, 9, LOG[0]) is not None
    replica.end(DataCorrupted("found by a command", path="rows"))
    with pytest.raises(DataCorrupted):
        database.replica("c")
    assert database.replica("c", allow_damage=True).position().log_index == len(LOG) + 1
    database.close()


def test_the_last_replica_refuses_what_needs_lost_records_and_goes_on(tmp_path: Path, whole: Path) -> None:
    """The log would bring the command back for ever, and every write and read behind it would wait."""
    shutil.copytree(whole, tmp_path / "db")
    vectors = next((tmp_path / "db" / "collections" / FOLDER).glob("0*/segments/*/vectors.vdb"))
    flip_byte(vectors, vectors.stat().st_size // 2)
    database = open_replicas(tmp_path / "db")
    with pytest.raises(DataCorrupted) as caught:
        database.replica("c")
    lost = caught.value.fields["ids"]
    replica = database.replica("c", allow_damage=True)
    at = len(LOG)
    before = replica.digest()
    change = codec.encode(UpdateMetadata(lost[:1], (b'{"n":1}',)))
    assert isinstance(replica.apply(at + 1, 9, change), DataCorrupted)
    assert replica.position() == (at + 1, 9)
    assert replica.digest() == replace(before, log_index=at + 1, term=9)
    assert replica.apply(at + 2, 9, codec.encode(DeleteIds(lost[:1]))) == WriteResult(deleted=1, log_index=at + 2)
    assert replica.failure is None
    database.close()


class Faulty(RocksStore):
    """A store that fails at what it is told to."""

    failing = ""
    damaged = False

    def write(self, batch):  # type: ignore[no-untyped-def]
        if self.failing == "write":
            raise StorageError("the disk refuses")
        super().write(batch)

    def sync(self) -> None:
        if self.failing == "sync":
            raise StorageError("the disk refuses")
        super().sync()

    def multi_get(self, keys):  # type: ignore[no-untyped-def]
        if self.damaged:
            raise DataCorrupted("a block does not match its checksum", path="rows")
        return super().multi_get(keys)


def _store(database: LocalDatabase) -> Faulty:
    store = database.replica("c").service._store
    assert isinstance(store, Faulty)
    return store


@pytest.mark.parametrize("failing", ["write", "sync"])
def test_a_disk_that_refuses_ends_the_replica_and_another_goes_on_from_what_is_there(tmp_path: Path,
                                                                                       failing: str) -> None:
    with replica_at(tmp_path / "whole") as reference:
        want = play(reference, LOG)
        digest = reference.digest()
    database = open_replicas(tmp_path / "db", opener=Faulty)
    database.host(SCHEMA, FOLDER)
    replica = database.replica("c")
    play(replica, LOG, 60)
    replica.checkpoint()
    play(replica, LOG, 90)
    store = _store(database)
    store.failing = failing
    fails = (lambda: replica.apply(91, 2, LOG[90])) if failing == "write" else replica.checkpoint
    with pytest.raises(StorageError):
        fails()
    store.failing = ""
    for ended in (lambda: replica.apply(92, 2, LOG[91]), replica.checkpoint, replica.snapshot):
        with pytest.raises(StorageError):
            ended()
    assert database.count("c") >= 0, "reads go on"
    fresh = database.replica("c")
    assert fresh is not replica
    assert 60 <= fresh.position().log_index <= 91
    with pytest.raises(StorageError):
        replica.apply(92, 2, LOG[91])
    first = fresh.position().log_index
    assert play(fresh, LOG) == want[first:]
    assert fresh.digest() == digest
    assert database.replica("c") is fresh
    database.close()


def test_damage_met_by_a_command_ends_the_replica_until_it_is_set_aside(tmp_path: Path) -> None:
    database = open_replicas(tmp_path / "db", opener=Faulty)
    database.host(SCHEMA, FOLDER)
    replica = database.replica("c")
    play(replica, LOG, 50)
    _store(database).damaged = True
    with pytest.raises(DataCorrupted):
        play(replica, LOG)
    for _ in range(2):
        with pytest.raises(DataCorrupted):
            database.replica("c")
    database.set_aside("c")
    fresh = database.replica("c")
    assert fresh.position() == Position(0, 0)
    with pytest.raises(VecdbError):
        replica.apply(60, 2, LOG[59])
    play(fresh, LOG, 20)
    database.close()


def test_a_refusing_disk_while_upkeep_writes_ends_the_replica_at_its_next_command(tmp_path: Path) -> None:
    database = open_replicas(tmp_path / "db", opener=Faulty, seal_records=60)
    database.host(SCHEMA, FOLDER)
    replica = database.replica("c")
    play(replica, LOG, 100)
    replica.checkpoint()
    store = _store(database)
    store.failing = "sync"
    with pytest.raises(StorageError):
        database.optimize("c")
    store.failing = ""
    with pytest.raises(StorageError):
        replica.apply(101, 3, LOG[100])
    fresh = database.replica("c")
    assert fresh.position().log_index == 100
    assert fresh.verify()["equal"]
    play(fresh, LOG)
    database.optimize("c")
    assert fresh.verify()["equal"]
    database.close()
