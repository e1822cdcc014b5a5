"""A full disk and a read-only one: refused with a name, nothing lost, and on again when there is room.  Modes too."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest

import vecdb
from tests.faults import fill, needs_mount, remount, small_filesystem
from vecdb import errors


@needs_mount
def test_full_disk_refuses_writes_and_goes_on_when_freed(tmp_path: Path) -> None:
    with small_filesystem(tmp_path / "disk", 64 << 20) as disk:
        rng = np.random.default_rng(1)
        with vecdb.connect(disk / "db") as db:
            docs = db.create_collection("c", 64, metric="l2")
            docs.upsert(ids=np.arange(500), vectors=rng.standard_normal((500, 64)))
            filler = fill(disk)
            acknowledged = 500
            refused = False
            while not refused and acknowledged < 200_000:
                ids = np.arange(acknowledged, acknowledged + 500)
                try:
                    docs.upsert(ids=ids, vectors=rng.standard_normal((500, 64)))
                    acknowledged += 500
                except errors.StorageFull:
                    refused = True
            assert refused
            assert len(docs.query(rng.standard_normal(64), k=10)) == 10
            assert len(docs.fetch(list(range(acknowledged)))) == acknowledged
            with pytest.raises(errors.StorageFull):
                docs.upsert(ids=["x"], vectors=rng.standard_normal((1, 64)))
            filler.unlink()
            docs.upsert(ids=["y"], vectors=rng.standard_normal((1, 64)))
            assert docs.get("y") is not None
        with vecdb.connect(disk / "db") as db:
            docs = db.collection("c")
            assert len(docs.fetch(list(range(acknowledged)))) == acknowledged
            assert docs.get("y") is not None


@needs_mount
def test_optimize_on_a_full_disk_leaves_everything_as_it_was(tmp_path: Path) -> None:
    with small_filesystem(tmp_path / "disk", 96 << 20) as disk, vecdb.connect(disk / "db", background=False) as db:
        rng = np.random.default_rng(1)
        docs = db.create_collection("c", 64, metric="l2", index="hnsw", m=8, ef_construction=40)
        docs.upsert(ids=np.arange(4000), vectors=rng.standard_normal((4000, 64)))
        filler = fill(disk)
        with pytest.raises(errors.StorageFull):
            docs.optimize()
        assert len(docs.query(rng.standard_normal(64), k=10)) == 10
        filler.unlink()
        docs.optimize()
        assert docs.describe().details["segments"][0]["state"] == "sealed"
        assert docs.count() == 4000


@needs_mount
def test_read_only_disk(tmp_path: Path) -> None:
    with small_filesystem(tmp_path / "disk", 64 << 20) as disk:
        with vecdb.connect(disk / "db") as db:
            db.create_collection("c", 4).upsert(ids=[1], vectors=[[1, 0, 0, 0]], metadata=[{"a": 1}])
        remount(disk, read_only=True)
        try:
            with pytest.raises(errors.StorageReadOnly):
                vecdb.connect(disk / "db")
            with vecdb.connect(disk / "db", read_only=True) as db:
                docs = db.collection("c")
                assert docs.query([1, 0, 0, 0], k=1, filter="a == 1").ids == [1]
                with pytest.raises(errors.StorageReadOnly):
                    docs.upsert(ids=[2], vectors=[[1, 0, 0, 0]])
                with pytest.raises(errors.StorageReadOnly):
                    db.create_collection("d", 4)
        finally:
            remount(disk, read_only=False)


def test_second_opener_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    with vecdb.connect(tmp_path / "db"), pytest.raises(errors.DatabaseLocked, match="this process"):
        vecdb.connect(tmp_path / "db")
    vecdb.connect(tmp_path / "db").close()


def test_a_directory_of_something_else_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(errors.FormatMismatch):
        vecdb.connect(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["precious.txt"]


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    vecdb.connect(tmp_path / "db").close()
    (tmp_path / "db" / "vecdb.format").write_text("vecdb 99\n")
    with pytest.raises(errors.FormatMismatch, match="99"):
        vecdb.connect(tmp_path / "db")


def test_a_new_database_is_its_owners_and_an_old_one_is_left_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        old = tmp_path / "old"
        old.mkdir(0o755)
        for folder in (tmp_path / "parent" / "new", old):
            vecdb.connect(folder, background=False).close()
        new = tmp_path / "parent" / "new"
        modes = [stat.S_IMODE(folder.stat().st_mode) for folder in (new, new.parent, old)]
        assert modes == [0o700, 0o755, 0o755]
        inside = {stat.S_IMODE(one.stat().st_mode) for one in new.rglob("*") if one.is_dir()}
        assert inside == {0o755}, "files and folders inside follow the umask"
    finally:
        os.umask(before)
