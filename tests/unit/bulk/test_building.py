"""Builds: what they make, what is left of them when they are interrupted, and what they refuse."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from tests.bulk import ROWS, Here, built, job
from tests.dying import die, die_once, refuse
from vecdb.app import repositories
from vecdb.bulk import LocalEngine, RayEngine, build
from vecdb.bulk.pieces import ShardPiece
from vecdb.bulk.spool import SpoolWriter, read_spool, spool_of
from vecdb.cluster.placement import ranges
from vecdb.cluster.routing import hash_of_id
from vecdb.config import BackupSettings
from vecdb.core.errors import (
    DatabaseLocked,
    DataCorrupted,
    InvalidArgument,
    InvalidMetadata,
    SnapshotExists,
    StorageFull,
    Unavailable,
    Unsupported,
)
from vecdb.core.records import UpsertBatch
from vecdb.core.schema import CollectionSchema, IndexKind, IndexSpec, Metric
from vecdb.storage.lock import DirectoryLock

SETTINGS = BackupSettings()
SMALL = ROWS[:300]


def lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"\n".join(orjson.dumps(one) for one in records))
    return path


def records_of(folder: Path, name: str = "docs") -> int:
    return repositories(SETTINGS)(f"file://{folder}/place").load(name).collections[0].records


def test_shards_hold_the_records_of_their_ranges_and_the_scratch_is_gone(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    made = build(job(tmp_path, SMALL), Here(), SETTINGS, report=lambda *one: told.append(one))
    assert (made.rows, made.replaced, made.snapshot.records) == (300, 0, 300)
    (collection,) = repositories(SETTINGS)(f"file://{tmp_path}/place").load("docs").collections
    hashes = [hash_of_id(number) for number in range(300)]
    assert [one.records for one in collection.shards] == [
        sum(lo <= one < hi for one in hashes) for lo, hi in ranges(3)]
    assert (collection.replication_factor, collection.shard_key) == (2, None)
    assert not (tmp_path / "scratch").exists()
    assert told[-1] == ("building shards", 300, 300)
    with pytest.raises(SnapshotExists):
        built(tmp_path, rows=SMALL)


def test_of_equal_ids_the_last_is_kept_over_files_too(tmp_path: Path) -> None:
    one = lines(tmp_path / "a.jsonl", [{"id": "x", "vector": [0, 1], "metadata": {"n": n}} for n in range(5)])
    two = lines(tmp_path / "b.jsonl", [{"id": "x", "vector": [1, 0], "metadata": {"n": 9}},
                                       {"id": "y", "vector": [1, 1]}])
    schema = CollectionSchema("docs", 2, Metric.L2)
    made = build(job(tmp_path, schema=schema, files=(one, two), shards=1), Here(), SETTINGS)
    assert (made.rows, made.replaced) == (7, 5)
    from vecdb.app import open_embedded, open_store
    from vecdb.runtime.clock import SystemClock
    from vecdb.services.backup.local import LocalBackups

    database = open_embedded(tmp_path / "data", background=False, threads=1)
    try:
        LocalBackups(database, open_store, SystemClock()).restore(repositories(SETTINGS)(f"file://{tmp_path}/place"),
                                                                  "docs")
        (found,) = database.fetch("docs", ["x"])
        assert found.metadata == {"n": 9}
        assert found.vector is not None
        assert found.vector.tolist() == [1.0, 0.0]
    finally:
        database.close()


def test_a_shard_that_no_record_is_of_is_an_empty_one(tmp_path: Path) -> None:
    from vecdb.app import open_embedded, open_store
    from vecdb.runtime.clock import SystemClock
    from vecdb.services.backup.local import LocalBackups

    assert built(tmp_path, rows=ROWS[:1]).snapshot.records == 1
    repository = repositories(SETTINGS)(f"file://{tmp_path}/place")
    (collection,) = repository.load("docs").collections
    assert sorted(one.records for one in collection.shards) == [0, 0, 1]
    database = open_embedded(tmp_path / "data", background=False, threads=1)
    try:
        backups = LocalBackups(database, open_store, SystemClock())
        found = backups.verify(repository, "docs")
        assert (found.problems, found.shards, found.records) == ((), 3, 1)
        backups.restore(repository, "docs")
        assert database.count("docs", None) == 1
        # and of a database alone, where nothing was ever written
        database.create_collection(CollectionSchema("empty", 4))
        backups.create(repository, "empty", ["empty"])
        assert backups.verify(repository, "empty").problems == ()
        backups.restore(repository, "empty", {"empty": "again"})
        assert database.count("again", None) == 0
        database.upsert("empty", UpsertBatch((1,), np.ones((1, 4), np.float32), (b"{}",)))
        assert database.count("empty", None) == 1
    finally:
        database.close()
    database = open_embedded(tmp_path / "data", background=False, threads=1)
    try:
        assert [database.count(name, None) for name in ("docs", "empty", "again")] == [1, 1, 0]
    finally:
        database.close()


class KilledError(BaseException):
    pass


def test_killed_after_each_piece_the_same_call_goes_on(tmp_path: Path) -> None:
    engine = Here()

    def after_one(piece: Any) -> None:
        if engine.ran:
            raise KilledError

    (tmp_path / "whole").mkdir()
    whole = built(tmp_path / "whole")
    for _ in range(3):
        engine = Here(after_one)
        with pytest.raises(KilledError):
            built(tmp_path, engine)
        assert len(engine.ran) == 1
        assert list((tmp_path / "place").glob("snapshots/*")) == []
    engine = Here()
    made = built(tmp_path, engine)
    assert len(engine.ran) == 1
    assert made.snapshot.collections[0].digest == whole.snapshot.collections[0].digest


def test_a_shard_whose_objects_are_gone_is_built_again(tmp_path: Path) -> None:
    def last(piece: Any) -> None:
        if isinstance(piece, ShardPiece) and piece.place == ordered[-1]:
            raise Unavailable("it ends here")

    counts = [sum(lo <= hash_of_id(number) < hi for number in range(len(ROWS))) for lo, hi in ranges(3)]
    ordered = sorted(range(3), key=lambda place: -counts[place])
    with pytest.raises(Unavailable):
        built(tmp_path, Here(last))
    for path in (tmp_path / "place" / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
    engine = Here()
    assert built(tmp_path, engine).snapshot.records == len(ROWS)
    assert len(engine.ran) == 3


def test_a_folder_of_another_build_and_one_that_is_in_use_are_refused(tmp_path: Path) -> None:
    def never(piece: Any) -> None:
        raise Unavailable("not now")

    with pytest.raises(Unavailable):
        built(tmp_path, Here(never))
    with pytest.raises(InvalidArgument, match="other shards"):
        built(tmp_path, shards=4)
    lock = DirectoryLock(tmp_path / "scratch")
    try:
        with pytest.raises(DatabaseLocked):
            built(tmp_path)
    finally:
        lock.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(InvalidArgument, match="something else"):
        built(tmp_path, scratch=tmp_path / "other")
    assert (tmp_path / "other" / "mine.txt").exists()


def test_rows_that_are_no_records_are_named(tmp_path: Path) -> None:
    bad = SMALL.copy()
    bad[200, 3] = np.nan
    with pytest.raises(InvalidArgument, match="row 200"):
        built(tmp_path, rows=bad)
    path = lines(tmp_path / "t.jsonl", [{"id": 1, "vector": [0, 1], "metadata": {"tenant": "a"}},
                                        {"id": 2, "vector": [0, 1]}])
    keyed = job(tmp_path, schema=CollectionSchema("docs", 2), files=(path,), shard_key="tenant",
                scratch=tmp_path / "keyed")
    with pytest.raises((InvalidMetadata, InvalidArgument), match="tenant"):
        build(keyed, Here(), SETTINGS)
    with pytest.raises(InvalidArgument, match="cannot be read"):
        built(tmp_path, files=(tmp_path / "nowhere.npy",))


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process grows beyond: as a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_is_told_and_what_was_done_stays(tmp_path: Path) -> None:
    asked = job(tmp_path)
    with files_up_to(20_000), pytest.raises(StorageFull):
        build(asked, Here(), SETTINGS)
    assert build(asked, Here(), SETTINGS).snapshot.records == len(ROWS)


def test_a_damaged_spool_is_found(tmp_path: Path) -> None:
    out = SpoolWriter(tmp_path / "spools", 2)
    out.add(1, UpsertBatch((1, 2), SMALL[:2], (b"{}", b"{}")))
    out.finish()
    path = spool_of(tmp_path / "spools", 1)
    (batch,) = read_spool(path)
    assert (batch.ids, batch.vectors.tolist()) == ((1, 2), SMALL[:2].tolist())
    content = bytearray(path.read_bytes())
    for damaged in (content[:-1], content[:5], content[:40] + bytes([content[40] ^ 1]) + content[41:]):
        path.write_bytes(bytes(damaged))
        with pytest.raises(DataCorrupted):
            list(read_spool(path))


# --- engines --------------------------------------------------------------------------------------


def test_a_process_that_is_killed_takes_only_its_piece_which_is_done_again(tmp_path: Path) -> None:
    engine = LocalEngine(2)
    done: list[int] = []
    try:
        engine.run(die_once, [tmp_path / str(number) for number in range(2)], done.append, lambda: None)
        assert len(done) == 2
        assert os.getpid() not in done
        with pytest.raises(InvalidArgument) as caught:
            engine.run(refuse, [tmp_path / "a"], done.append, lambda: None)
        assert caught.value.fields["row"] == 7
    finally:
        engine.close()
    engine = LocalEngine(1)
    try:
        with pytest.raises(Unavailable, match="1 of 1 pieces are left"):
            engine.run(die, [tmp_path / "b"], done.append, lambda: None)
    finally:
        engine.close()


def test_without_ray_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(Unsupported, match=r"vecdb\[bulk\]"):
        RayEngine("auto", 1)


def test_a_schema_that_says_ivf_is_built_as_such(tmp_path: Path) -> None:
    schema = CollectionSchema("docs", ROWS.shape[1], Metric.L2, index=IndexSpec(IndexKind.IVF_FLAT))
    assert built(tmp_path, schema=schema).snapshot.records == len(ROWS)
    assert records_of(tmp_path) == len(ROWS)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_builds_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    from vecdb.cli import bulk, main

    engine = Here()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bulk, "_engine", lambda *asked: engine)
    np.save(tmp_path / "a.npy", SMALL)
    np.save(tmp_path / "b.npy", SMALL[:, :4])
    asked = ["bulk", "build", "-c", "docs", "--shards", "2", "--at", f"file://{tmp_path}/place", "--metric", "l2",
             "--json", "--from", "a.npy"]
    assert main([*asked, "--from", "b.npy"]) == 2
    assert "dimensions" in capsys.readouterr().err
    assert main(asked) == 0
    told = orjson.loads(capsys.readouterr().out)
    assert (told["rows"], told["snapshot"]["collections"][0]["records"]) == (300, 300)
    assert [type(one).__name__ for one in engine.ran] == ["PartitionPiece", "ShardPiece", "ShardPiece"]
    assert main(asked) != 0
    assert "docs" in capsys.readouterr().err
    assert main(["bulk", "attach", "docs", "--at", f"file://{tmp_path}/place", "--data", str(tmp_path)]) == 2
    assert "cluster" in capsys.readouterr().err
