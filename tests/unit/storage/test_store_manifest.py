"""A MANIFEST that lost its end is damage, not an older state; and no kill makes a whole store look damaged."""

import shutil
from pathlib import Path

import pytest

from tests.faults import flip_byte, kill_during, truncate
from vecdb.core.errors import DataCorrupted
from vecdb.shard.mutations import Mutations
from vecdb.storage import wal
from vecdb.storage.expect import EXPECT_NAME
from vecdb.storage.rocksdict import RocksStore


@pytest.fixture
def closed(tmp_path: Path) -> tuple[Path, Path]:
    """A closed store of 25,100 rows, the last 100 flushed by closing; and its manifest."""
    with RocksStore(tmp_path / "s") as store:
        store.write(Mutations(puts=[(b"a%06d" % i, b"v" * 20) for i in range(25_000)]))
        store.flush()
        store.write(Mutations(puts=[(b"b%06d" % i, b"v" * 20) for i in range(100)]))
    return tmp_path / "s", next((tmp_path / "s").glob("MANIFEST-*"))


def count(path: Path, **options: bool) -> int:
    with RocksStore(path, **options) as store:
        return sum(1 for _ in store.scan(b"", b"z"))


def refused(path: Path) -> DataCorrupted:
    for read_only in (True, False):
        with pytest.raises(DataCorrupted) as caught:
            count(path, read_only=read_only)
    return caught.value


def test_whole_it_opens(closed: tuple[Path, Path]) -> None:
    assert count(closed[0], read_only=True) == 25_100
    assert count(closed[0]) == 25_100
    assert count(closed[0]) == 25_100


def test_cut_to_half(closed: tuple[Path, Path]) -> None:
    path, manifest = closed
    truncate(manifest, manifest.stat().st_size // 2)
    tables = sorted(path.glob("*.sst"))
    error = refused(path)
    assert error.fields["path"] == str(manifest)
    assert error.fields["region"] == "manifest"
    assert sorted(path.glob("*.sst")) == tables, "a table was deleted"


def test_cut_between_any_two_records(closed: tuple[Path, Path], tmp_path: Path) -> None:
    path, manifest = closed
    starts = [fragment.offset for fragment in wal._fragments(manifest)]
    assert len(starts) >= 4
    for number, start in enumerate(starts[1:]):
        folder = Path(shutil.copytree(path, tmp_path / f"c{number}"))
        truncate(folder / manifest.name, start)
        refused(folder)


def test_zeros_in_its_last_record(closed: tuple[Path, Path]) -> None:
    path, manifest = closed
    size = manifest.stat().st_size
    truncate(manifest, size - 60)
    truncate(manifest, size)
    refused(path)


def test_current_gone_back_to_an_older_one(closed: tuple[Path, Path]) -> None:
    path, old = closed
    kept = old.read_bytes()
    assert count(path) == 25_100
    assert not old.exists()
    old.write_bytes(kept)
    (path / "CURRENT").write_text(f"{old.name}\n")
    assert "older" in str(refused(path))


def test_current_missing_is_not_a_new_store(closed: tuple[Path, Path]) -> None:
    (closed[0] / "CURRENT").unlink()
    with pytest.raises(DataCorrupted):
        count(closed[0])


@pytest.mark.parametrize("harm", ["missing", "empty", "flipped"])
def test_a_note_that_says_nothing_hurts_nobody(closed: tuple[Path, Path], harm: str) -> None:
    note = closed[0] / EXPECT_NAME
    if harm == "missing":
        note.unlink()
    elif harm == "empty":
        note.write_bytes(b"")
    else:
        flip_byte(note, 17, 0x01)
    assert count(closed[0]) == 25_100


def test_an_older_note_is_enough_and_the_sync_renews_it(tmp_path: Path) -> None:
    with RocksStore(tmp_path / "s") as store:
        store.write(Mutations(puts=[(b"a", b"1")]))
        store._db.flush(True)  # as in the background: nobody of ours is told
        before = (tmp_path / "s" / EXPECT_NAME).read_bytes()
        shutil.copytree(tmp_path / "s", tmp_path / "before")
        store.write(Mutations(puts=[(b"b", b"1")]))
        store.sync()
        assert (tmp_path / "s" / EXPECT_NAME).read_bytes() != before
        shutil.copytree(tmp_path / "s", tmp_path / "after")
    assert count(tmp_path / "before") == 1
    manifest = next((tmp_path / "after").glob("MANIFEST-*"))
    truncate(manifest, manifest.stat().st_size - 3)
    refused(tmp_path / "after")


BUSY = """
import sys, threading
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore
store, number = RocksStore(sys.argv[1]), int(sys.argv[2])
def upkeep():
    while True:
        store.flush()
        store.compact()
threading.Thread(target=upkeep, daemon=True).start()
while True:
    store.write(Mutations(puts=[(b"%08d-%d" % (number, part), b"v" * 500) for part in range(10)]))
    store.sync()
    print(number, flush=True)
    number += 1
"""


@pytest.mark.parametrize("rounds", [8])
def test_killed_while_flushing_and_compacting_it_opens_whole(tmp_path: Path, rounds: int) -> None:
    first = 0
    for kill in range(rounds):
        lines = kill_during(BUSY, tmp_path / "s", first, until=lambda seen, want=3 + 17 * kill: len(seen) >= want)
        with RocksStore(tmp_path / "s", read_only=kill % 2 == 0) as store:
            keys = [key for key, _ in store.scan(b"", b"z")]
        assert len(keys) % 10 == 0
        assert len(keys) // 10 > int(lines[-1])
        first = len(keys) // 10
