"""Replicas in a database: hosted and let go as the cluster says, written by their log alone."""

import threading
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.replicas import DIM, FOLDER, SCHEMA, open_replicas, play, random_log, replica_at, upsert
from vecdb.app import open_embedded
from vecdb.core.calls import WriteToken
from vecdb.core.errors import (
    CollectionExists,
    CollectionNotFound,
    DataCorrupted,
    FormatMismatch,
    InvalidArgument,
    Overloaded,
    StorageError,
    StorageReadOnly,
)
from vecdb.core.records import DeleteIds, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.ports.replicator import Position, StateMachine
from vecdb.services.homes import Home
from vecdb.services.maintenance import MAX_FROZEN, Maintainer
from vecdb.services.replica import Digest, Mark, MarkResult
from vecdb.shard import codec
from vecdb.storage.rocksdict import RocksStore

LOG = random_log(21, 80)


def _batch(*ids: int) -> UpsertBatch:
    return UpsertBatch(ids, np.ones((len(ids), DIM), np.float32), (b"{}",) * len(ids))


def test_a_replica_is_a_state_machine(tmp_path: Path) -> None:
    with replica_at(tmp_path / "db") as replica:
        machine: StateMachine = replica
        assert machine.position() == Position(0, 0)
        assert machine.apply(4, 2, codec.encode(_batch(1, 2))) == WriteResult(inserted=2, log_index=4)
        assert machine.position() == Position(4, 2)
        mark = machine.apply(5, 2, codec.encode(Mark()))
        assert isinstance(mark, MarkResult)
        assert replica.digest() == Digest(5, 2, 2, mark.digest)
        assert replica.marks() == {5: mark}
        assert machine.apply(5, 2, codec.encode(_batch(3))) == WriteResult(log_index=5), "a replay does nothing"
        assert machine.checkpoint() == Position(5, 2)
        found = replica.verify()
        assert (found["equal"], found["log_index"], found["digest"]) == (True, 5, mark.digest)


def test_what_a_command_is_refused_for_is_its_outcome_and_the_place_moves_on(tmp_path: Path) -> None:
    with replica_at(tmp_path / "db") as replica:
        before = replica.digest().digest
        for index, command in enumerate((b"", b"\xff\x01\x00", codec.encode(_batch(1))[:-3],
                                         codec.encode(UpsertBatch((1,), np.ones((1, 3), np.float32), (b"{}",)))), 1):
            assert isinstance(replica.apply(index, 1, command), InvalidArgument)
            assert replica.position() == Position(index, 1)
        assert replica.digest().digest == before


def test_bytes_that_are_no_command_do_nothing_either_when_they_come_again(tmp_path: Path) -> None:
    with replica_at(tmp_path / "db") as replica:
        assert isinstance(replica.apply(1, 1, b"\xff"), InvalidArgument)
        replica.apply(2, 1, codec.encode(_batch(1)))
        assert isinstance(replica.apply(1, 1, b"\xff"), InvalidArgument)
        assert replica.position() == Position(2, 1)


def test_a_repetition_is_answered_from_before_also_after_a_restart(tmp_path: Path) -> None:
    token = WriteToken(b"once", 7)
    for opening in range(3):
        with replica_at(tmp_path / "db") as replica:
            index = replica.position().log_index + 1
            done = replica.apply(index, 1, codec.encode(_batch(1, 2), token))
            assert done == WriteResult(inserted=2, log_index=1)
            assert replica.digest().records == 2
            other = replica.apply(index + 1, 1, codec.encode(_batch(9), WriteToken(b"once", 8)))
            assert isinstance(other, InvalidArgument)
            assert replica.position().log_index == 2 * (opening + 1)


def test_nothing_goes_to_a_log_of_the_stores_own(tmp_path: Path) -> None:
    with replica_at(tmp_path / "db") as replica:
        play(replica, LOG)
        logs = list(replica.home.state().glob("rows/*.log"))
        assert sum(log.stat().st_size for log in logs) == 0


def test_hosting_is_idempotent_and_refuses_what_is_another(tmp_path: Path) -> None:
    database = open_replicas(tmp_path / "db")
    database.host(SCHEMA, FOLDER)
    play(database.replica("c"), LOG, 10)
    database.host(SCHEMA, FOLDER)
    assert database.replica("c").position().log_index == 10
    with pytest.raises(CollectionExists):
        database.host(SCHEMA, "g00000002")
    with pytest.raises(CollectionExists):
        database.host(CollectionSchema("c", 5, "l2"), FOLDER)
    for folder in (FOLDER, "", "../x", "a/b", "a.damaged-1"):
        with pytest.raises(InvalidArgument):
            database.host(CollectionSchema("other", 5, "l2"), folder)
    assert {name: entry.folder for name, entry in database.hosted().items()} == {"c": FOLDER}
    assert database.replica("c") is database.replica("c")
    database.close()
    database = open_replicas(tmp_path / "db")
    assert list(database.hosted()) == ["c"]
    assert database.replica("c").position().log_index == 10
    database.close()


def test_a_folder_that_a_killed_host_left_is_made_anew(tmp_path: Path) -> None:
    database = open_replicas(tmp_path / "db")
    left = tmp_path / "db" / "collections" / FOLDER / "00000001" / "rows"
    left.mkdir(parents=True)
    (left / "CURRENT").write_text("nonsense")
    database.host(SCHEMA, FOLDER)
    assert database.replica("c").position() == Position(0, 0)
    database.close()


def test_unhosting_deletes_and_ends(tmp_path: Path) -> None:
    database = open_replicas(tmp_path / "db")
    database.host(SCHEMA, FOLDER)
    replica = database.replica("c")
    play(replica, LOG, 30)
    database.unhost("c")
    assert list((tmp_path / "db" / "collections").iterdir()) == []
    with pytest.raises(StorageError):
        replica.apply(31, 1, LOG[30])
    with pytest.raises(StorageError):
        replica.checkpoint()
    for gone in (lambda: database.replica("c"), lambda: database.unhost("c"), lambda: database.set_aside("c"),
                 lambda: database.count("c")):
        with pytest.raises(CollectionNotFound):
            gone()
    database.host(SCHEMA, FOLDER)
    assert database.replica("c").position() == Position(0, 0)
    assert play(database.replica("c"), LOG, 30)
    database.close()


def test_calls_that_would_write_are_refused(tmp_path: Path) -> None:
    database = open_replicas(tmp_path / "db")
    database.host(SCHEMA, FOLDER)
    play(database.replica("c"), LOG, 20)
    for call in (lambda: database.upsert("c", _batch(1)), lambda: database.delete("c", DeleteIds((1,))),
                 lambda: database.update_metadata("c", UpdateMetadata((1,), (b"{}",))),
                 lambda: database.create_collection(CollectionSchema("d", 3, "l2")),
                 lambda: database.drop_collection("c")):
        with pytest.raises(StorageReadOnly, match="replicated"):
            call()
    assert database.replica("c").position().log_index == 20
    database.optimize("c")
    assert database.replica("c").verify()["equal"]
    database.close()


def test_replicas_are_not_closed_for_being_idle(tmp_path: Path) -> None:
    database = open_replicas(tmp_path / "db", max_open_collections=2)
    replicas = []
    for number in range(5):
        database.host(CollectionSchema(f"c{number}", DIM, "l2"), f"g{number:08d}")
        replicas.append(database.replica(f"c{number}"))
    for number, replica in enumerate(replicas):
        assert replica.apply(1, 1, codec.encode(_batch(number))) == WriteResult(inserted=1, log_index=1)
        assert database.replica(f"c{number}") is replica
    database.close()


def test_a_nodes_directory_is_not_written_by_hand_nor_another_made_a_nodes(tmp_path: Path) -> None:
    alone = open_embedded(tmp_path / "alone")
    alone.create_collection(SCHEMA)
    alone.close()
    with pytest.raises(FormatMismatch):
        open_embedded(tmp_path / "alone", replicated=True)
    hosting = open_embedded(tmp_path / "hosting", replicated=True)
    hosting.host(SCHEMA, FOLDER)
    play(hosting.replica("c"), LOG, 40)
    digest = hosting.replica("c").digest().digest
    hosting.close()
    with pytest.raises(FormatMismatch, match="cluster"):
        open_embedded(tmp_path / "hosting")
    looking = open_embedded(tmp_path / "hosting", read_only=True)
    assert looking.verify("c")["digest"] == digest
    with pytest.raises(StorageReadOnly):
        looking.delete("c", DeleteIds((1,)))
    looking.close()


def test_closing_makes_all_durable_and_ends(tmp_path: Path) -> None:
    database = open_replicas(tmp_path / "db")
    database.host(SCHEMA, FOLDER)
    replica = database.replica("c")
    play(replica, LOG, 50)
    database.close()
    for ended in (lambda: replica.apply(51, 1, LOG[50]), replica.checkpoint, replica.snapshot):
        with pytest.raises(StorageError):
            ended()
    with replica_at(tmp_path / "db") as again:
        assert again.position().log_index == 50


def test_while_too_much_waits_to_be_sealed_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sealing = threading.Event()
    real = Maintainer._write_segment

    def held_up(*args: object) -> object:
        sealing.wait(60)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Maintainer, "_write_segment", held_up)
    rng = Random(2)
    with replica_at(tmp_path / "db", seal_records=20, background=True) as replica:
        replica.check_room()
        index = 0
        while replica.held().waiting <= MAX_FROZEN:
            index += 1
            replica.apply(index, 1, codec.encode(upsert(rng, 10, 10_000)))
        held = replica.held()
        assert 0 < held.unsealed_bytes == held.memory_bytes
        with pytest.raises(Overloaded):
            replica.check_room()
        for _ in range(5):  # what the log brings is applied all the same, only slower
            index += 1
            assert isinstance(replica.apply(index, 1, codec.encode(upsert(rng, 10, 10_000))), WriteResult)
        sealing.set()
        for _ in range(600):
            if replica.held().waiting <= MAX_FROZEN:
                break
            threading.Event().wait(0.05)
        replica.check_room()
        assert replica.verify()["equal"]


def test_a_home_names_its_state_or_says_that_it_cannot(tmp_path: Path) -> None:
    home = Home(tmp_path / "collections" / "g1")
    with pytest.raises(DataCorrupted):
        home.state()
    home.found(lambda state: state.mkdir())
    assert home.state().name == "00000001"
    second = home.fresh()
    second.mkdir()
    (home.folder / "STATE.partial").write_text("00000002")
    home.snapshots.mkdir()
    home.incoming.mkdir()
    assert home.state().name == "00000001", "until it is named it is nothing"
    home.clean()
    assert sorted(path.name for path in home.folder.iterdir()) == ["00000001", "STATE", "incoming"]
    second.mkdir()
    home.switch(second)
    assert home.state() == second
    assert home.fresh().name == "00000003"
    pointer = home.folder / "STATE"
    text = pointer.read_text()
    for bad in ("", text[:-1], text.replace("2", "3"), "00000001" + text[8:], text + "\n", "../../etc\n"):
        pointer.write_text(bad)
        with pytest.raises(DataCorrupted):
            home.state()


def test_a_store_that_lost_its_rows_is_no_empty_one(tmp_path: Path) -> None:
    database = open_replicas(tmp_path / "db")
    database.host(SCHEMA, FOLDER)
    play(database.replica("c"), LOG, 20)
    rows = database.replica("c").home.state() / "rows"
    database.close()
    for file in rows.iterdir():
        file.unlink()
    RocksStore(rows).close()  # a store, and empty
    database = open_replicas(tmp_path / "db")
    with pytest.raises(DataCorrupted):
        database.replica("c")
    database.close()
