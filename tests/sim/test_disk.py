"""The simulator's disk: it forgets what was not synced, and nothing else."""

import os
from random import Random

import pytest

from vecdb.core.errors import DatabaseClosed, DataCorrupted, StorageError
from vecdb.segment.files import sync_directory
from vecdb.shard.mutations import Mutations
from vecdb.testing.files import Disk
from vecdb.testing.synced import Synced


def put(key, value=b"x"):
    return Mutations(puts=[(key, value)])


@pytest.fixture
def disk(tmp_path):
    with Synced() as synced:
        yield Disk(tmp_path / "n1", synced)


def outcomes(tmp_path, prepare, look):
    """What ``look`` finds after power cuts by forty seeds."""
    found = []
    for seed in range(40):
        with Synced() as synced:
            disk = Disk(tmp_path / f"disk{seed}", synced)
            with disk.at_work():
                prepare(disk)
            disk.crash(Random(seed))
            found.append(look(disk))
    return found


def test_a_store_keeps_what_was_flushed_and_a_prefix_of_the_rest(tmp_path):
    def prepare(disk):
        store = disk.open_store(disk.root / "rows", wal=False)
        store.write(put(b"a"))
        store.sync()
        store.write(put(b"b"))
        store.write(put(b"c"))

    def look(disk):
        store = disk.open_store(disk.root / "rows", wal=False)
        return [key for key, _ in store.scan(b"", b"z")]

    found = outcomes(tmp_path, prepare, look)
    assert {tuple(one) for one in found} == {(b"a",), (b"a", b"b"), (b"a", b"b", b"c")}


def test_without_a_log_what_was_not_flushed_dies_with_the_handle(disk):
    for wal, left in ((True, [b"1"]), (False, [None])):
        store = disk.open_store(disk.root / f"{wal}", wal=wal)
        store.write(put(b"a", b"1"))
        disk.failing = True
        with pytest.raises(StorageError):
            store.close()
        disk.failing = False
        with pytest.raises(DatabaseClosed):
            store.multi_get([b"a"])
        assert disk.open_store(disk.root / f"{wal}", wal=wal).multi_get([b"a"]) == left


def test_after_a_refusal_a_store_takes_nothing_until_it_is_opened_anew(disk):
    store = disk.open_store(disk.root / "rows")
    disk.failing = True
    with pytest.raises(StorageError):
        store.write(put(b"a"))
    disk.failing = False
    with pytest.raises(StorageError):
        store.sync()
    store.close()
    disk.open_store(disk.root / "rows").write(put(b"a"))


def test_a_checkpoint_moves_and_opens_with_its_damage(disk):
    store = disk.open_store(disk.root / "rows")
    for at in range(9):
        store.write(put(b"%d" % at, b"v%d" % at))
    store.checkpoint(disk.root / "copy")
    store.write(put(b"9"))
    os.rename(disk.root / "copy", disk.root / "moved")
    moved = disk.open_store(disk.root / "moved")
    assert list(moved.scan(b"", b"z")) == [(b"%d" % at, b"v%d" % at) for at in range(9)]
    moved.close()
    os.rename(disk.root / "moved", disk.root / "again")
    assert disk.open_store(disk.root / "again").multi_get([b"3", b"9"]) == [b"v3", None]

    (inner,) = disk.stores_below(disk.root / "rows")
    assert inner.spoil(Random(1)) is not None
    store.checkpoint(disk.root / "bad")
    with pytest.raises(DataCorrupted):
        list(disk.open_store(disk.root / "bad").scan(b"", b"z"))


def test_files_are_torn_and_forgotten_unless_synced(tmp_path):
    def prepare(disk):
        for name, sync, name_it in (("safe", True, True), ("torn", False, True), ("nameless", True, False)):
            folder = disk.root / name
            folder.mkdir()
            sync_directory(disk.root)
            with open(folder / "file", "wb") as file:
                file.write(b"x" * 100)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            if name_it:
                sync_directory(folder)

    def look(disk):
        return [path.read_bytes() if (path := disk.root / name / "file").exists() else None
                for name in ("safe", "torn", "nameless")]

    found = outcomes(tmp_path, prepare, look)
    whole = b"x" * 100
    assert {safe for safe, _, _ in found} == {whole}
    assert {nameless for _, _, nameless in found} == {whole, None}
    torn = [one for _, one, _ in found]
    assert None not in torn
    assert whole in torn
    assert any(len(one) < 100 for one in torn)
    assert any(len(one) == 100 and one.endswith(b"\0") for one in torn)


def test_a_name_that_is_taken_over_stands_for_the_old_or_the_new(tmp_path):
    def prepare(disk):
        for name in ("old", "new"):
            (disk.root / name).write_text(name)
        disk.synced.trust(disk.root)
        os.replace(disk.root / "new", disk.root / "old")

    found = outcomes(tmp_path, prepare, lambda disk: tuple(
        (path.name, path.read_text()) for path in sorted(disk.root.iterdir())))
    assert set(found) == {(("old", "new"),), (("new", "new"), ("old", "old"))}


def test_folders_that_change_places_are_never_both_gone(tmp_path):
    def prepare(disk):
        for name in ("state", "fresh"):
            (disk.root / name).mkdir()
            (disk.root / name / "file").write_text(name)
        disk.synced.trust(disk.root)
        os.rename(disk.root / "state", disk.root / "old")
        os.rename(disk.root / "fresh", disk.root / "state")

    found = outcomes(tmp_path, prepare, lambda disk: tuple(
        (path.parent.name, path.read_text()) for path in sorted(disk.root.glob("*/file"))))
    assert set(found) == {(("fresh", "fresh"), ("state", "state")), (("fresh", "fresh"), ("old", "state")),
                          (("old", "state"), ("state", "fresh"))}


def test_what_was_renamed_is_durable_once_its_folder_is_synced(tmp_path):
    def prepare(disk):
        (disk.root / "a").mkdir()
        os.rename(disk.root / "a", disk.root / "b")
        sync_directory(disk.root)

    assert set(outcomes(tmp_path, prepare, lambda disk: tuple(os.listdir(disk.root)))) == {("b",)}


def test_the_power_may_go_at_every_step(tmp_path):
    found = []
    for at in range(1, 12):
        for seed in range(8):
            with Synced() as synced:
                disk = Disk(tmp_path / f"at{at}-{seed}", synced)
                store = disk.open_store(disk.root / "rows")
                folder = disk.root / "folder"

                def work(store=store, folder=folder):
                    store.write(put(b"a"))
                    store.sync()
                    folder.mkdir()
                    sync_directory(folder.parent)
                    try:
                        (folder / "file").write_text("x")
                        store.write(put(b"b"))
                        store.sync()
                        sync_directory(folder)
                    finally:
                        (folder / "file").unlink()

                was_cut = disk.cut_within(work, at)
                disk.crash(Random(seed))
                rows = tuple(key for key, _ in disk.open_store(disk.root / "rows").scan(b"", b"z"))
                found.append((was_cut, rows, folder.exists(), (folder / "file").exists()))
    assert {one[:3] for one in found if one[0]} == {
        (True, (), False), (True, (b"a",), False), (True, (b"a",), True), (True, (b"a", b"b"), True)}
    assert {one for one in found if not one[0]} == {(False, (b"a", b"b"), True, False)}
    assert any(file for _, _, _, file in found)
