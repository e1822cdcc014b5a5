"""An interrupted write's remains at the end of the newest log do not keep a store from opening, and are kept."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import flip_byte, zero_bytes
from vecdb.core.errors import DataCorrupted
from vecdb.shard.mutations import Mutations
from vecdb.storage import wal
from vecdb.storage.rocksdict import RocksStore

SEED = 7


def live(tmp_path: Path, sizes: list[int]) -> tuple[Path, Path]:
    """A store as a killed process leaves it that never synced, one log record of one row per size; and its log."""
    noise = random.Random(SEED)
    with RocksStore(tmp_path / "live") as store:
        for number, size in enumerate(sizes):
            store.write(Mutations(puts=[(b"k%05d" % number, noise.randbytes(size))]))
        shutil.copytree(tmp_path / "live", tmp_path / "s")
    (tmp_path / "s" / "LOCK").unlink()
    return tmp_path / "s", next((tmp_path / "s").glob("*.log"))


def keys(path: Path, *, read_only: bool = False) -> tuple[list[int], RocksStore]:
    with RocksStore(path, read_only=read_only) as store:
        return [int(key[1:]) for key, _ in store.scan(b"", b"z")], store


def starts(log: Path) -> list[int]:
    return [fragment.offset for fragment in wal._fragments(log) if fragment.kind in (wal.FULL, wal.FIRST)]


def last_page_zeroed(log: Path) -> int:
    size = log.stat().st_size
    zero_bytes(log, (size - 1) // 4096 * 4096, size - (size - 1) // 4096 * 4096)
    return (size - 1) // 4096 * 4096


def last_payload_zeroed(log: Path) -> int:
    start = starts(log)[-1]
    zero_bytes(log, start + wal.HEADER.size, log.stat().st_size - start - wal.HEADER.size)
    return start + wal.HEADER.size


def garbage_appended(log: Path) -> int:
    size = log.stat().st_size
    with log.open("ab") as file:
        file.write(random.Random(SEED).randbytes(100))
    return size


def zeros_appended(log: Path) -> int:
    size = log.stat().st_size
    with log.open("ab") as file:
        file.write(bytes(100_000))
    return size


def second_sector_garbled(log: Path) -> int:
    start = starts(log)[-1]
    with log.open("r+b") as file:
        file.seek(start + 600)
        file.write(random.Random(SEED).randbytes(512))
    return start + 600


@pytest.mark.parametrize("harm", [last_page_zeroed, last_payload_zeroed, garbage_appended, zeros_appended,
                                  second_sector_garbled])
@pytest.mark.parametrize("sizes", [[1500] * 60, [100] * 900, [*[1500] * 40, 90_000], [1500] * 40 + [32_400], [2000]],
                         ids=["rows", "small rows", "many blocks", "to the block's end", "one"])
def test_a_torn_end_is_dropped_kept_and_told(tmp_path: Path, harm: Callable[[Path], int], sizes: list[int]) -> None:
    path, log = live(tmp_path, sizes)
    whole = log.read_bytes()
    offsets = [*starts(log), len(whole)]
    first_harmed = harm(log)
    harmed = log.read_bytes()
    survivors = sum(end <= first_harmed for end in offsets[1:])
    print(f"seed {SEED}: {survivors} of {len(sizes)}")
    names = sorted(one.name for one in path.iterdir())
    found, store = keys(path, read_only=True)
    assert found == list(range(survivors))
    assert store.recovered_tail is not None
    assert store.recovered_tail.kept is None
    assert sorted(one.name for one in path.iterdir()) == names
    assert log.read_bytes() == harmed
    found, store = keys(path)
    assert found == list(range(survivors))
    tail = store.recovered_tail
    assert tail is not None
    assert (tail.log, tail.offset) == (log, offsets[survivors])
    assert tail.dropped_bytes == len(harmed) - tail.offset
    assert tail.kept is not None
    assert tail.kept.read_bytes() == harmed[tail.offset:]
    found, store = keys(path)
    assert found == list(range(survivors))
    assert store.recovered_tail is None


def test_undamaged_nothing_is_dropped(tmp_path: Path) -> None:
    path, _ = live(tmp_path, [1500] * 60)
    found, store = keys(path)
    assert (len(found), store.recovered_tail) == (60, None)


def test_a_row_that_ends_in_zeros_is_no_torn_end(tmp_path: Path) -> None:
    with RocksStore(tmp_path / "live") as store:
        store.write(Mutations(puts=[(b"k1", bytes(9000))]))
        shutil.copytree(tmp_path / "live", tmp_path / "s")
    found, store = keys(tmp_path / "s")
    assert (found, store.recovered_tail) == ([1], None)


@pytest.mark.parametrize("sizes", [[1500] * 60, [1500] * 40 + [90_000] + [10]])
@pytest.mark.parametrize("back", [2, 3, 15])
def test_damage_before_a_valid_record_stays_damage(tmp_path: Path, sizes: list[int], back: int) -> None:
    path, log = live(tmp_path, sizes)
    zero_bytes(log, starts(log)[-back] + 20, 400)
    before = log.read_bytes()
    for read_only in (True, False):
        with pytest.raises(DataCorrupted):
            keys(path, read_only=read_only)
    assert log.read_bytes() == before


@pytest.mark.parametrize("place", [0, 3, 4, 5, 6, 7, 20, 500, -1])
def test_one_flipped_bit_in_the_last_record_is_no_torn_write(tmp_path: Path, place: int) -> None:
    path, log = live(tmp_path, [1500] * 60)
    flip_byte(log, place if place < 0 else starts(log)[-1] + place, 0x04)
    with pytest.raises(DataCorrupted):
        keys(path)


def test_damage_in_the_middle_of_a_long_record_and_at_its_end(tmp_path: Path) -> None:
    path, log = live(tmp_path, [1500] * 40 + [200_000])
    begins, size = starts(log)[-1], log.stat().st_size
    zero_bytes(log, begins + 70_000, 4096)
    garbage_appended(log)
    found, store = keys(path)
    assert found == list(range(40))
    assert store.recovered_tail is not None
    assert (store.recovered_tail.offset, store.recovered_tail.dropped_bytes) == (begins, size + 100 - begins)


def test_what_cannot_be_read_even_without_its_end_is_left_as_it_is(tmp_path: Path) -> None:
    path, log = live(tmp_path, [1500] * 60)
    zero_bytes(log, 3000, 400)  # two blocks away from the end
    garbage_appended(log)
    names, before = sorted(one.name for one in path.iterdir()), log.read_bytes()
    with pytest.raises(DataCorrupted):
        keys(path)
    assert log.read_bytes() == before
    assert not list(path.glob("*.torn")), names


def test_a_newer_log_with_records_makes_it_damage(tmp_path: Path) -> None:
    path, log = live(tmp_path, [1500] * 60)
    other, newer = live(tmp_path / "other", [100])
    assert other.is_dir()
    last_payload_zeroed(log)
    shutil.copy(newer, path / f"{int(log.stem) + 1:06}.log")
    with pytest.raises(DataCorrupted):
        keys(path)


def test_a_torn_end_cut_off_anywhere_can_be_cut_off_again(tmp_path: Path) -> None:
    """A kill between copying the end and shortening the log."""
    path, log = live(tmp_path, [1500] * 20)
    (path / f"{log.name}.{garbage_appended(log)}.torn").write_bytes(b"half")
    assert keys(path)[0] == list(range(20))
    assert next(path.glob("*.torn")).stat().st_size == 100
