"""Large values in files of their own: what is written is read, after any crash, and no file outlives its values."""

import os
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from tests.faults import fill, flip_byte, kill_during, needs_mount, small_filesystem, truncate
from vecdb.core.errors import DatabaseClosed, DataCorrupted, InvalidArgument, StorageError, StorageFull
from vecdb.raft.log import LogStore
from vecdb.raft.membership import Configuration
from vecdb.shard.mutations import Mutations
from vecdb.storage import split
from vecdb.storage.rocksdict import RocksStore
from vecdb.storage.split import LARGE_BYTES, SplitStore
from vecdb.testing.disk import MemoryStore

LARGE = bytes(range(256)) * 64
LEAST_BYTES = len(LARGE)
EVERYTHING = b"", b"\xff"


@pytest.fixture(autouse=True)
def least(monkeypatch):
    monkeypatch.setattr(split, "LEAST_BYTES", LEAST_BYTES)


def key(family: int, place: int) -> bytes:
    return b"%02d" % family + place.to_bytes(8, "big")


def put(store, *rows):
    store.write(Mutations(puts=list(rows)))


def value_files(folder):
    return sorted(path.name for path in folder.glob("*.values"))


def test_large_values_stand_in_files_and_small_ones_do_not(tmp_path):
    inner = MemoryStore()
    with SplitStore(inner, tmp_path) as store:
        put(store, (key(1, 1), LARGE), (key(1, 2), b"small"), (key(1, 3), LARGE + b"!"))
        store.sync()
        assert (tmp_path / "000001.values").read_bytes() == LARGE + LARGE + b"!"
        assert len(inner.multi_get([key(1, 1)])[0]) < 64
        assert inner.multi_get([key(1, 2)]) == [b"small"]
        assert store.multi_get([key(1, 3), key(1, 4), key(1, 2)]) == [LARGE + b"!", None, b"small"]
        assert list(store.scan(*EVERYTHING)) == [(key(1, 1), LARGE), (key(1, 2), b"small"), (key(1, 3), LARGE + b"!")]
        assert list(store.scan(key(1, 2), key(1, 3))) == [(key(1, 2), b"small")]


def test_a_batch_with_little_that_is_large_spares_the_second_sync(tmp_path):
    with SplitStore(MemoryStore(), tmp_path) as store:
        put(store, (key(1, 1), bytes(LARGE_BYTES)), (key(1, 2), bytes(LARGE_BYTES)))
        assert value_files(tmp_path) == []
        put(store, *((key(1, at), bytes(LARGE_BYTES)) for at in range(LEAST_BYTES // LARGE_BYTES)))
        assert value_files(tmp_path) == ["000001.values"]


def test_a_value_that_looks_like_a_pointer_is_not_taken_for_one(tmp_path):
    inner = MemoryStore()
    with SplitStore(inner, tmp_path) as store:
        put(store, (key(1, 1), LARGE))
        pointer = inner.multi_get([key(1, 1)])[0]
        put(store, (key(1, 2), pointer), (key(1, 3), pointer[:-1]))
        assert store.multi_get([key(1, 2), key(1, 3)]) == [pointer, pointer[:-1]]
        with pytest.raises(InvalidArgument, match="too short"):
            put(store, (b"short", pointer))
        put(store, (b"short", LARGE))
        assert store.multi_get([b"short"]) == inner.multi_get([b"short"]) == [LARGE]
        assert store.multi_get([key(1, 2)]) == [pointer]
        put(store, (key(1, 4), b"it goes on"))


def test_rows_from_before_there_were_files_are_read(tmp_path):
    inner = MemoryStore([(key(1, 1), LARGE)])
    with SplitStore(inner, tmp_path) as store:
        assert list(store.scan(*EVERYTHING)) == [(key(1, 1), LARGE)]


def test_a_pointer_of_a_later_version_is_refused(tmp_path):
    inner = MemoryStore()
    with SplitStore(inner, tmp_path) as store:
        put(store, (key(1, 1), LARGE))
        pointer = bytearray(inner.multi_get([key(1, 1)])[0])
        pointer[15] += 1
        put(inner, (key(1, 1), bytes(pointer)))
        with pytest.raises(DataCorrupted, match="version 2"):
            store.multi_get([key(1, 1)])


# --- crashes --------------------------------------------------------------------------------------


def random_batch(random, numbers):
    """A batch of a log: families grow at their ends, are cut at their fronts, and now and then at their ends."""
    batch = Mutations()
    for family in random.sample(range(5), random.randint(1, 3)):
        first, last = numbers.get(family, (0, 0))
        choice = random.random()
        if choice < 0.25:
            first = random.randint(first, last)
            batch.ranges.append((key(family, 0), key(family, first)))
        elif choice < 0.35 and last > first:
            batch.deletes += [key(family, place) for place in range(last - 1, last)]
            last -= 1
        elif choice < 0.4:
            batch.ranges.append((key(family, 0), key(family, (1 << 64) - 1)))
            first = last
        for _ in range(random.randint(0, 4)):
            batch.puts.append((key(family, last), random.randbytes(random.choice((10, 5_000, 17_000, 40_000)))))
            last += 1
        numbers[family] = first, last
    return batch


class Medium:
    """What of a folder's files the power leaves: as much as was synced, under names that were."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.sizes, self.names = folder, {}, set()
        real = split._flush
        monkeypatch.setattr(split, "sync_directory", lambda path: self.names.update(os.listdir(path)))

        def flush(handle):
            real(handle)
            self.sizes[os.fstat(handle).st_ino] = os.fstat(handle).st_size

        monkeypatch.setattr(split, "_flush", flush)

    def cut(self):
        for path in self.folder.iterdir():
            if path.name in self.names:
                os.truncate(path, self.sizes.get(path.stat().st_ino, 0))
            else:
                path.unlink()


@pytest.mark.parametrize("seed", range(12))
def test_after_a_power_cut_all_is_there_up_to_some_batch_that_is_not_before_the_last_sync(tmp_path, monkeypatch, seed):
    random, numbers = Random(seed), {}
    medium = Medium(tmp_path, monkeypatch)
    inner, model = MemoryStore(), MemoryStore()
    states = [[]]  # what may be found: at the last sync, and after each batch since
    store = SplitStore(inner, tmp_path, file_bytes=100_000)
    for step in range(150):
        kept = dict(numbers)
        batch = random_batch(random, numbers)
        if random.random() < 0.05:  # killed between the two: the end of the file is nobody's
            inner.failing = True
            with pytest.raises(StorageError):
                store.write(batch)
            with pytest.raises(StorageError):
                store.sync()
            inner.failing = False
            numbers = kept
            store.close()
            store = SplitStore(inner, tmp_path, file_bytes=100_000)
        else:
            store.write(batch)
            model.write(batch)
            states.append(list(model.scan(*EVERYTHING)))
        if random.random() < 0.4:
            store.sync()
            states = states[-1:]
        if random.random() < 0.1:
            inner.crash(random)
            store.close()
            medium.cut()
            store = SplitStore(inner, tmp_path, file_bytes=100_000)
            found = list(store.scan(*EVERYTHING))
            assert found in states, step
            states, model = [found], MemoryStore(found)
            for family in range(5):
                places = [int.from_bytes(at[-8:], "big") for at, _ in found if at.startswith(b"%02d" % family)]
                numbers[family] = (places[0], places[-1] + 1) if places else (0, 0)
        assert list(store.scan(*EVERYTHING)) == states[-1], step
    store.write(Mutations(ranges=[EVERYTHING]))
    store.sync()
    store.close()
    with SplitStore(inner, tmp_path) as store:
        assert store.files == []
        assert value_files(tmp_path) == []
    assert inner.rows() == []


WRITER = """
import sys
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore
from vecdb.storage.split import SplitStore
store, number = SplitStore(RocksStore(sys.argv[1]), sys.argv[1] + "/values", file_bytes=1 << 20), int(sys.argv[2])
def key(number, part):
    return b"r%d" % part + number.to_bytes(8, "big")
while True:
    store.write(Mutations(ranges=[(key(0, part), key(max(number - 20, 0), part)) for part in range(3)],
                          puts=[(key(number, part), b"%08d" % number * 5_000) for part in range(3)]))
    store.sync()
    print(number, flush=True)
    number += 1
"""


def test_killed_while_writing(tmp_path: Path):
    number = 0
    for kill in range(3):
        lines = kill_during(WRITER, tmp_path / "s", number, until=lambda lines, want=60 + 77 * kill: len(lines) >= want)
        promised = int(lines[-1])
        with SplitStore(RocksStore(tmp_path / "s"), tmp_path / "s" / "values") as store:
            rows = dict(store.scan(b"r", b"s"))
            numbers = sorted({int.from_bytes(at[-8:], "big") for at in rows})
            assert numbers[-1] >= promised, "an acknowledged batch is gone"
            assert numbers == list(range(max(0, numbers[-1] - 20), numbers[-1] + 1))
            for batch in numbers:
                parts = [rows[b"r%d" % part + batch.to_bytes(8, "big")] for part in range(3)]
                assert parts == [b"%08d" % batch * 5_000] * 3, f"batch {batch} is there in part"
            assert 1 <= len(store.files) <= 4
        number = numbers[-1] + 1


# --- space ----------------------------------------------------------------------------------------


def test_a_file_goes_once_the_deletion_that_emptied_it_is_on_stable_storage(tmp_path):
    inner = MemoryStore()
    store = SplitStore(inner, tmp_path, file_bytes=1)
    for place in range(4):
        put(store, (key(1, place), LARGE))
    store.sync()
    assert len(value_files(tmp_path)) == 4
    store.write(Mutations(ranges=[(key(1, 0), key(1, 2))]))
    assert len(value_files(tmp_path)) == 4
    store.sync()
    assert value_files(tmp_path) == ["000003.values", "000004.values"]
    store.close()


def test_a_power_cut_before_that_sync_finds_the_values(tmp_path):
    inner = MemoryStore()
    store = SplitStore(inner, tmp_path, file_bytes=1)
    for place in range(4):
        put(store, (key(1, place), LARGE))
    store.sync()
    store.write(Mutations(ranges=[(key(1, 0), key(1, 4))]))
    inner.lose()
    store.close()
    with SplitStore(inner, tmp_path) as store:
        assert [value for _, value in store.scan(*EVERYTHING)] == [LARGE] * 4


def test_values_that_rest_do_not_hold_a_file_each(tmp_path):
    """One family goes on, and with it stands, in each file, one value of a family that rests."""
    inner = MemoryStore()
    store = SplitStore(inner, tmp_path, file_bytes=10 * len(LARGE))
    for place in range(200):
        if place % 5 == 0:
            put(store, (key(2 + place // 5, 0), b"%04d" % place + LARGE))
        store.write(Mutations(ranges=[(key(1, 0), key(1, place))], puts=[(key(1, place), LARGE)]))
        store.sync()
    live = 41 * len(LARGE)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * live + 7 * 10 * len(LARGE)
    rows = dict(store.scan(*EVERYTHING))
    assert rows == {key(2 + at, 0): b"%04d" % (5 * at) + LARGE for at in range(40)} | {key(1, 199): LARGE}
    store.close()
    with SplitStore(inner, tmp_path) as store:
        assert dict(store.scan(*EVERYTHING)) == rows


def test_a_damaged_file_is_not_moved_and_stops_nobody(tmp_path):
    store = SplitStore(MemoryStore(), tmp_path, file_bytes=1)
    put(store, (key(2, 0), LARGE), (key(3, 0), LARGE))
    flip_byte(tmp_path / "000001.values", 100)
    for place in range(30):
        store.write(Mutations(ranges=[(key(1, 0), key(1, place))],
                              puts=[(key(1, place), LARGE), (key(4 + place, 0), LARGE)]))
        store.sync()
    with pytest.raises(DataCorrupted):
        store.multi_get([key(2, 0)])
    assert store.multi_get([key(3, 0), key(1, 29)]) == [LARGE, LARGE]
    store.close()


def test_files_that_nobody_points_to_go_when_the_store_is_opened(tmp_path):
    (tmp_path / "000007.values").write_bytes(b"left by a crash")
    (tmp_path / "3.values").write_bytes(b"somebody's")
    with SplitStore(MemoryStore(), tmp_path) as store:
        assert value_files(tmp_path) == ["3.values"]
        put(store, (key(1, 1), LARGE))
        assert value_files(tmp_path) == ["000008.values", "3.values"]


def test_files_that_are_fuller_than_was_thought_are_not_moved_all_at_once(tmp_path):
    """What a range leaves of a family is estimated by places, and here nearly all values stand at the last ones."""
    dense = 1 << 40
    with SplitStore(MemoryStore(), tmp_path, file_bytes=10 * len(LARGE)) as store:
        for family in range(20):
            put(store, (key(family, 1), LARGE), *((key(family, dense + place), LARGE) for place in range(9)))
        store.write(Mutations(ranges=[(key(family, 0), key(family, dense)) for family in range(20)]))
        put(store, (key(50, 1), LARGE))
        store.sync()
        assert max(path.stat().st_size for path in tmp_path.iterdir()) <= 20 * len(LARGE)
        assert len(list(store.scan(*EVERYTHING))) == 20 * 9 + 1


def test_a_range_of_one_family_asks_about_no_other(tmp_path, monkeypatch):
    asked = []
    real = split._index
    with SplitStore(MemoryStore(), tmp_path, file_bytes=50 * len(LARGE)) as store:
        for place in range(4):
            put(store, *((key(family, place), LARGE) for family in range(50)))
        monkeypatch.setattr(split, "_index", lambda place: asked.append(place) or real(place))
        store.write(Mutations(ranges=[(key(7, 0), key(7, 2))]))
        assert 0 < len(asked) < 50
        store.write(Mutations(ranges=[(key(8, 0), key(9, 2))]))
        found = {(int(at[:2]), int.from_bytes(at[2:], "big")) for at, _ in store.scan(*EVERYTHING)}
        assert found == {(family, place) for family in range(50) for place in range(4)
                         if not (family in (7, 9) and place < 2) and family != 8}
        store.write(Mutations(ranges=[EVERYTHING]))
        put(store, (key(1, 9), LARGE))
        store.sync()
        assert len(value_files(tmp_path)) == 1


def test_families_of_other_lengths_are_passed_over_by_no_range(tmp_path):
    """``long`` lies between two keys that are equal but for their last eight bytes, and is of another family."""
    long = key(1, 5) + b"!" * 8
    inner = MemoryStore()
    store = SplitStore(inner, tmp_path)
    put(store, (key(1, 5), LARGE), (long, LARGE[::-1]))
    for _ in range(2):
        assert store.multi_get([long]) == [LARGE[::-1]]
        store.close()
        store = SplitStore(inner, tmp_path)
    store.write(Mutations(ranges=[(key(1, 0), key(1, 6))]))
    store.sync()
    store.close()
    with SplitStore(inner, tmp_path) as store:
        assert store.files == []
        assert value_files(tmp_path) == []
    assert inner.rows() == []


# --- damage and refusals --------------------------------------------------------------------------


@pytest.mark.parametrize("harm", [lambda path: flip_byte(path, 5), lambda path: truncate(path, -1), Path.unlink])
def test_damage_is_an_error_for_who_reads_it(tmp_path, harm):
    store = SplitStore(MemoryStore(), tmp_path, file_bytes=1)
    put(store, (key(1, 1), LARGE))
    put(store, (key(1, 2), LARGE))
    harm(tmp_path / "000001.values")
    for read in (lambda: store.multi_get([key(1, 1)]), lambda: list(store.scan(*EVERYTHING))):
        with pytest.raises(DataCorrupted, match=r"000001\.values is"):
            read()
    assert store.multi_get([key(1, 2)]) == [LARGE]
    store.close()


def test_a_log_with_a_damaged_command_says_so(tmp_path):
    def opened():
        return SplitStore(RocksStore(tmp_path / "raft"), tmp_path / "raft" / "values")

    with opened() as store:
        for group in (7, 8):
            logs = LogStore(store)
            log = logs.create(group, 1, Configuration.of(("a/1",)))
            log.add(b"\x40" + LARGE, 2, 1)
            log.add(b"\x40small", 3, 1)
            batch = logs.take()
            batch.write()
            logs.done(batch)
    with opened() as store:
        logs = LogStore(store, cache_bytes=10)
        log = logs.open(7)
        assert [entry.command for entry in log.read(2, 3, 1 << 20, 9)] == [b"\x40" + LARGE, b"\x40small"]
    flip_byte(tmp_path / "raft" / "values" / "000001.values", 100)
    with opened() as store:
        with pytest.raises(DataCorrupted):
            LogStore(store).open(7)
        assert LogStore(store).open(8).last == 3


class Overtaken(MemoryStore):
    """Between a row's reading and the reading of its file, something else happens."""

    def __init__(self):
        super().__init__()
        self.meanwhile = None

    def multi_get(self, keys):
        rows = super().multi_get(keys)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return rows


@pytest.mark.parametrize(("after", "found"), [(None, None), (b"small", b"small"), (LARGE + b"new", LARGE + b"new")])
def test_who_reads_while_a_value_goes_sees_what_came_after_it(tmp_path, after, found):
    inner = Overtaken()
    store = SplitStore(inner, tmp_path, file_bytes=1)
    put(store, (key(1, 1), LARGE))
    put(store, (key(2, 2), LARGE))

    def meanwhile():
        store.write(Mutations(ranges=[(key(1, 0), key(1, 9))], puts=[] if after is None else [(key(1, 1), after)]))
        store.sync()
        assert "000001.values" not in value_files(tmp_path)

    inner.meanwhile = meanwhile
    assert store.multi_get([key(1, 1)]) == [found]
    store.close()


def test_a_write_that_is_cut_short_by_the_system_goes_on(tmp_path, monkeypatch):
    real = os.writev
    monkeypatch.setattr(split.os, "writev", lambda handle, parts: real(handle, [parts[0][:1_000]]))
    with SplitStore(MemoryStore(), tmp_path) as store:
        put(store, (key(1, 1), LARGE), (key(1, 2), LARGE[::-1]))
        assert store.multi_get([key(1, 1), key(1, 2)]) == [LARGE, LARGE[::-1]]


@needs_mount
def test_a_full_disk_refuses_writes_and_reads_on(tmp_path):
    inner = MemoryStore()
    with small_filesystem(tmp_path / "small", 16 << 20) as folder:
        ballast = fill(folder, leave_bytes=4 << 20)
        store = SplitStore(inner, folder / "values", file_bytes=1 << 20)
        written = 0
        with suppress(StorageFull):
            for written in range(1_000):
                put(store, (key(1, written), LARGE))
        assert 100 < written < 300
        for again in (lambda: put(store, (key(2, 1), b"small")), store.sync):
            with pytest.raises(StorageFull):
                again()
        assert store.multi_get([key(1, written - 1)]) == [LARGE]
        ballast.unlink()
        store.close()
        with SplitStore(inner, folder / "values") as store:
            assert [value for _, value in store.scan(*EVERYTHING)] == [LARGE] * written
            put(store, (key(1, written), LARGE))
            store.sync()


def test_a_checkpoint_has_the_files_and_is_opened_like_the_store(tmp_path):
    store = SplitStore(RocksStore(tmp_path / "raft"), tmp_path / "raft" / "values", file_bytes=1)
    for place in range(3):
        put(store, (key(1, place), LARGE))
    store.checkpoint(tmp_path / "copy")
    store.write(Mutations(ranges=[EVERYTHING]))
    store.sync()
    store.close()
    with SplitStore(RocksStore(tmp_path / "copy"), tmp_path / "copy" / "values") as copy:
        assert list(copy.scan(*EVERYTHING)) == [(key(1, place), LARGE) for place in range(3)]
        put(copy, (key(1, 3), LARGE))
        assert len(copy.files) == 4


def test_a_store_that_was_closed_and_a_forked_child_are_refused(tmp_path):
    store = SplitStore(MemoryStore(), tmp_path)
    put(store, (key(1, 1), LARGE))
    store._pid += 1
    with pytest.raises(DatabaseClosed, match="forked"):
        put(store, (key(1, 2), LARGE))
    store._pid -= 1
    store.close()
    for doing in (lambda: put(store, (key(1, 2), LARGE)), store.sync, lambda: store.checkpoint(tmp_path / "x")):
        with pytest.raises(DatabaseClosed):
            doing()
    assert (tmp_path / "000001.values").read_bytes() == LARGE


def test_a_forked_child_does_not_wait_for_a_thread_that_it_does_not_have(tmp_path):
    store = SplitStore(MemoryStore(), tmp_path)
    put(store, (key(1, 1), LARGE))
    with store._lock:  # as another thread holds it while it writes
        store._pid += 1
        for doing in (lambda: put(store, (key(1, 2), LARGE)), store.sync, lambda: store.checkpoint(tmp_path / "x")):
            with pytest.raises(DatabaseClosed, match="forked"):
                doing()
        store.close()
        store._pid -= 1
    put(store, (key(1, 2), LARGE))
    store.close()
