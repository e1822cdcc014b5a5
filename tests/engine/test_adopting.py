"""A replica that becomes what files say: done twice, interrupted, without the files, with wrong ones."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bulk import ROWS, built
from vecdb.app import open_embedded, repositories
from vecdb.config import BackupSettings
from vecdb.core.errors import DataCorrupted, InvalidArgument, StorageError, Unavailable, VecdbError
from vecdb.core.query import QueryRequest
from vecdb.core.records import UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.ports.replicator import Based, Position
from vecdb.runtime.clock import SystemClock
from vecdb.services.backup.fetching import Fetcher
from vecdb.services.backup.manifest import CollectionManifest
from vecdb.services.homes import Home
from vecdb.services.local import LocalDatabase
from vecdb.services.replica import ShardReplica
from vecdb.shard import codec
from vecdb.shard.adoption import Adopt
from vecdb.shard.seal import Seal

OPEN = repositories(BackupSettings())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[CollectionManifest, Adopt]:
    folder = tmp_path_factory.mktemp("saved")
    built(folder, shards=1)
    url = f"file://{folder}/place"
    (collection,) = OPEN(url).load("docs").collections
    (ref,) = collection.shards
    return collection, Adopt(url, ref.sha256, ref.lo, ref.hi - 1, ref.records, ref.digest)


class Node:
    """A directory with one replica, opened anew as often as one likes."""

    def __init__(self, folder: Path, schema: CollectionSchema) -> None:
        self.folder, self.schema = folder, schema
        self.database: LocalDatabase = self._open()
        self.database.host(schema, "g00000001")

    def _open(self) -> LocalDatabase:
        database = open_embedded(self.folder, threads=1, background=False, replicated=True)
        database.bring = Fetcher(OPEN, SystemClock())
        return database

    @property
    def replica(self) -> ShardReplica:
        return self.database.replica("docs")

    @property
    def home(self) -> Home:
        return self.replica.home

    def anew(self) -> None:
        self.database.close()
        self.database = self._open()

    def nearest(self, row: int) -> Any:
        return self.database.query("docs", QueryRequest(ROWS[row : row + 1], k=1)).matches[0].ids[0]


@pytest.fixture
def node(tmp_path: Path, saved: tuple[CollectionManifest, Adopt]) -> Iterator[Node]:
    made = Node(tmp_path / "node", saved[0].schema)
    yield made
    made.database.close()


def inserted(outcome: object) -> int:
    assert isinstance(outcome, WriteResult), outcome
    return outcome.inserted


def test_it_is_the_state_at_its_place_of_the_log_and_stays_it(node: Node, saved: Any) -> None:
    command = saved[1]
    assert inserted(node.replica.apply(3, 2, codec.encode(command))) == len(ROWS)
    for _ in range(2):
        replica = node.replica
        assert isinstance(replica, Based)
        assert (replica.position(), replica.floor) == (Position(3, 2), 3)
        assert (replica.digest().records, replica.digest().digest) == (command.records, command.digest)
        assert replica.verify()["records"] == len(ROWS)
        assert not node.home.adopting.exists()
        node.anew()
    assert node.nearest(77) == 77
    schema = saved[0].schema
    batch = UpsertBatch((9_999,), np.ones((1, schema.dim), np.float32), (b"{}",))
    assert inserted(node.replica.apply(4, 2, codec.encode(batch))) == 1
    assert node.replica.digest().records == len(ROWS) + 1


def test_done_again_it_does_nothing_and_what_holds_others_refuses(node: Node, saved: Any) -> None:
    command = saved[1]
    node.replica.apply(3, 2, codec.encode(command))
    assert inserted(node.replica.apply(3, 2, codec.encode(command))) == 0  # the log brings it back
    again = node.replica.apply(5, 2, codec.encode(command))
    assert isinstance(again, WriteResult)
    assert node.replica.position() == Position(5, 2)
    other = node.replica.apply(6, 2, codec.encode(replace(command, records=7)))
    assert isinstance(other, InvalidArgument)
    assert node.replica.digest().records == len(ROWS)
    assert node.replica.position() == Position(6, 2)


def test_what_the_log_before_has_left_in_the_files_is_no_part_of_it(tmp_path: Path, node: Node, saved: Any) -> None:
    node.replica.apply(1, 1, codec.encode(Seal(1, 1)))
    node.replica.apply(2, 1, codec.encode(saved[1]))
    assert not node.replica.service.machine.seal.sealed
    assert node.replica.marks() == {}


def test_without_the_files_it_stops_there_and_goes_on_when_they_come(node: Node, saved: Any) -> None:
    def nobody(*_: object) -> None:
        raise Unavailable("the place does not answer")

    fetch, node.database.bring = node.database.bring, nobody
    for _ in range(2):
        with pytest.raises(StorageError, match="does not answer"):
            node.replica.apply(3, 2, codec.encode(saved[1]))
        assert node.replica.position() == Position(0, 0)
    node.database.bring = fetch
    assert inserted(node.replica.apply(3, 2, codec.encode(saved[1]))) == len(ROWS)


def test_files_that_came_ahead_are_not_fetched_again(node: Node, saved: Any) -> None:
    command, calls = saved[1], []

    def fetch(folder: Path) -> None:
        calls.append(folder)
        node.database.bring(saved[0].schema, command, folder)

    node.replica.gather(command.sha256, fetch)
    node.anew()
    node.replica.gather(command.sha256, fetch)
    assert len(calls) == 1

    def nobody(*_: object) -> None:
        raise AssertionError("it is here")

    node.database.bring = nobody
    assert inserted(node.replica.apply(3, 2, codec.encode(command))) == len(ROWS)


def test_killed_before_the_switch_it_is_as_if_nothing_was_and_after_it_is_done(
        node: Node, saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(home: Home, state: Path) -> None:
        shutil.copytree(state, state.with_name("00000077"))  # what a kill would leave
        raise StorageError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Home, "switch", killed)
        with pytest.raises(StorageError, match="killed"):
            node.replica.apply(3, 2, codec.encode(saved[1]))
    node.anew()
    assert node.replica.position() == Position(0, 0)
    assert not (node.home.folder / "00000077").exists()
    assert node.home.adopting.exists()
    assert inserted(node.replica.apply(3, 2, codec.encode(saved[1]))) == len(ROWS)
    assert node.nearest(5) == 5


def test_files_that_are_not_what_the_command_names_are_not_taken(node: Node, saved: Any) -> None:
    command = saved[1]
    wrong = replace(command, digest="0" * 32)
    with pytest.raises((DataCorrupted, StorageError)):
        node.replica.apply(3, 2, codec.encode(wrong))
    assert node.replica.position() == Position(0, 0)
    schema = CollectionSchema("docs", 8)
    with pytest.raises(DataCorrupted, match="other vectors"):
        node.database.bring(schema, command, node.folder / "x")
    gone = replace(command, sha256="0" * 64)
    with pytest.raises(VecdbError):
        node.replica.apply(3, 2, codec.encode(gone))
    assert node.replica.position() == Position(0, 0)


def test_the_command_is_read_back_as_it_was_written(saved: Any) -> None:
    data = codec.encode(saved[1])
    assert codec.decode(data) == (saved[1], None)
    assert codec.is_adopt(data)
    for end in range(len(data) - len(saved[1].url)):
        with pytest.raises(InvalidArgument):
            codec.decode(data[:end])
