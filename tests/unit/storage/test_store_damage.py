"""Flipped, zeroed and missing bytes give a typed error or change nothing; they are never served."""

import random
import shutil
from pathlib import Path

import pytest

from tests.faults import flip_byte, truncate, zero_bytes
from vecdb.core.errors import DataCorrupted, VecdbError
from vecdb.shard.mutations import Mutations
from vecdb.storage import wal
from vecdb.storage.rocksdict import RocksStore

SEED = 20240607


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, bytes]]:
    """A store as a killed process leaves it: two table files, a manifest, and a log of three blocks."""
    source, target = tmp_path_factory.mktemp("live") / "s", tmp_path_factory.mktemp("whole") / "s"
    noise = random.Random(SEED)
    with RocksStore(source) as store:
        for part in range(2):
            ends = [(key, b"%d" % part) for key in (b"t", b"tz")]  # the tables overlap, so compaction reads them
            store.write(Mutations(puts=[(b"t%d-%04d" % (part, i), noise.randbytes(200)) for i in range(300)] + ends))
            store.flush()
        for number in range(60):
            store.write(Mutations(puts=[(b"w%04d" % number, noise.randbytes(1500))]))
        store.sync()
        shutil.copytree(source, target)
        rows = dict(store.scan(b"", b"z"))
    (target / "LOCK").unlink()
    return target, rows


@pytest.fixture
def copy(whole: tuple[Path, dict[bytes, bytes]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole[0], tmp_path / "s"))


def outcome(path: Path, rows: dict[bytes, bytes]) -> VecdbError | None:
    """None if everything is there, by scan and by key; the error if there was one; anything else fails the test."""
    try:
        with RocksStore(path) as store:
            assert dict(store.scan(b"", b"z")) == rows, "damage was served as data"
            keys = sorted(rows)
            assert store.multi_get(keys) == [rows[key] for key in keys], "damage was served as data"
    except VecdbError as error:
        return error
    return None


def only(path: Path, pattern: str) -> Path:
    return sorted(path.glob(pattern))[0]


def test_undamaged_it_opens(copy: Path, whole: tuple[Path, dict[bytes, bytes]]) -> None:
    assert outcome(copy, whole[1]) is None


@pytest.mark.parametrize("pattern", ["*.log", "*.sst", "MANIFEST-*", "CURRENT"])
def test_no_flipped_bit_is_served(copy: Path, whole: tuple[Path, dict[bytes, bytes]], tmp_path: Path,
                                  pattern: str) -> None:
    name = only(copy, pattern).name
    size = (copy / name).stat().st_size
    places = sorted([*random.Random(SEED).sample(range(size), min(16, size)), 0, size - 1])
    errors = 0
    for number, place in enumerate(places):
        folder = tmp_path / f"c{number}"
        shutil.copytree(whole[0], folder)
        flip_byte(folder / name, place, 1 << (place % 8))
        error = outcome(folder, whole[1])
        shutil.rmtree(folder)
        print(f"seed {SEED}: {name} byte {place}: {error}")
        assert error is None or isinstance(error, DataCorrupted), f"byte {place} gave {type(error)}: {error}"
        errors += error is not None
    assert errors >= len(places) // 2


def test_a_damaged_table_is_named_and_the_rest_is_read(copy: Path, whole: tuple[Path, dict[bytes, bytes]]) -> None:
    table = only(copy, "*.sst")
    flip_byte(table, 20_000)
    with RocksStore(copy) as store:
        with pytest.raises(DataCorrupted) as caught:
            list(store.scan(b"", b"z"))
        assert caught.value.fields["path"] == str(table)
        with pytest.raises(DataCorrupted):
            store.multi_get(sorted(whole[1]))
        for prefix, after in ((b"w", b"x"), (b"t1", b"t2")):
            assert dict(store.scan(prefix, after)) == {key: whole[1][key] for key in whole[1] if key.startswith(prefix)}


def test_damage_found_in_the_background_ends_writing_and_is_named(copy: Path) -> None:
    table = only(copy, "*.sst")
    flip_byte(table, 20_000)
    with RocksStore(copy) as store:
        for use in (store.compact, lambda: store.write(Mutations(puts=[(b"x", b"x")])), store.sync):
            with pytest.raises(DataCorrupted) as caught:
                use()
            assert caught.value.fields["path"] == str(table)
        assert sum(1 for _ in store.scan(b"t1", b"t2")) == 300


@pytest.mark.parametrize("damage", ["length past the end", "length in the middle", "payload", "zeroed page", "kind",
                                    "zeroed last page"])
def test_damage_in_the_log_is_found(copy: Path, whole: tuple[Path, dict[bytes, bytes]], damage: str) -> None:
    log = only(copy, "*.log")
    places = [fragment.offset for fragment in wal._fragments(log)]
    if damage == "length past the end":
        flip_byte(log, places[-5] + 5, 0x80)
    elif damage == "length in the middle":
        flip_byte(log, places[4] + 5, 0x01)
    elif damage == "payload":
        flip_byte(log, places[10] + 100)
    elif damage == "kind":
        flip_byte(log, places[10] + 6, 0x02)
    else:
        zero_bytes(log, 8192 if damage == "zeroed page" else places[-6] // 4096 * 4096, 4096)
    error = outcome(copy, whole[1])
    assert isinstance(error, DataCorrupted)
    assert error.fields["region"] in ("log", "store")


def test_whole_records_missing_from_the_log_are_missed(copy: Path) -> None:
    log = only(copy, "*.log")
    fragments = list(wal._fragments(log))
    data = log.read_bytes()
    low, high = fragments[2].offset, fragments[4].offset
    assert fragments[2].kind == fragments[3].kind == 1
    log.write_bytes(data[:low] + data[high:wal.BLOCK_BYTES // 2])
    with pytest.raises(DataCorrupted, match="writes between are gone"):
        wal.check_logs(copy)


def test_zeros_allocated_ahead_are_no_damage(copy: Path, whole: tuple[Path, dict[bytes, bytes]]) -> None:
    with only(copy, "*.log").open("ab") as log:
        log.write(bytes(100_000))
    assert outcome(copy, whole[1]) is None


@pytest.mark.parametrize("pattern", ["*.sst", "MANIFEST-*"])
def test_a_missing_file_is_damage(copy: Path, whole: tuple[Path, dict[bytes, bytes]], pattern: str) -> None:
    only(copy, pattern).unlink()
    assert isinstance(outcome(copy, whole[1]), DataCorrupted)


@pytest.mark.parametrize("size", [0, 10, -1, -1000])
def test_a_table_cut_short_is_damage(copy: Path, whole: tuple[Path, dict[bytes, bytes]], size: int) -> None:
    truncate(only(copy, "*.sst"), size)
    assert isinstance(outcome(copy, whole[1]), DataCorrupted)
