"""Rows go in, come out in order, and survive closing; handles end cleanly."""

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb.core.errors import DatabaseClosed, DatabaseLocked, InvalidArgument, StorageError, StorageReadOnly
from vecdb.ports.store import Store
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore
from vecdb.storage.scan import CHUNK_ROWS

END = b"\xff"


def rows_of(store: RocksStore) -> dict[bytes, bytes]:
    return dict(store.scan(b"", END))


def test_it_is_a_store(tmp_path: Path) -> None:
    with RocksStore(tmp_path / "s") as opened:
        store: Store = opened
        store.write(Mutations(puts=[(b"a", b"1"), (b"empty", b"")]))
        store.sync()
        assert store.multi_get([b"a", b"missing", b"empty", b"a"]) == [b"1", None, b"", b"1"]
        assert store.multi_get([]) == []


def test_a_batch_deletes_ranges_then_keys_then_puts(tmp_path: Path) -> None:
    with RocksStore(tmp_path / "s") as store:
        store.write(Mutations(puts=[(b"k%02d" % i, b"old") for i in range(20)]))
        store.write(Mutations(ranges=[(b"k05", b"k10"), (b"k15", b"k15"), (b"k19", b"k18")], deletes=[b"k01", b"k02"],
                              puts=[(b"k07", b"new"), (b"k02", b"back")]))
        expected = {b"k%02d" % i: b"old" for i in (0, 3, 4, *range(10, 20))} | {b"k07": b"new", b"k02": b"back"}
        assert rows_of(store) == expected
    with RocksStore(tmp_path / "s") as store:
        assert rows_of(store) == expected


def test_an_empty_batch_writes_nothing(tmp_path: Path) -> None:
    with RocksStore(tmp_path / "s") as store:
        store.write(Mutations())
        store.sync()
        assert store.stats().syncs == 0
        assert rows_of(store) == {}


KEYS = st.binary(min_size=1, max_size=3).map(lambda key: bytes(byte & 0x03 for byte in key))
BATCHES = st.builds(Mutations, ranges=st.lists(st.tuples(KEYS, KEYS), max_size=2), deletes=st.lists(KEYS, max_size=3),
                    puts=st.lists(st.tuples(KEYS, st.binary(max_size=5)), max_size=5))


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.one_of(BATCHES, st.sampled_from(["sync", "reopen", "flush", "compact"])), max_size=12))
def test_it_answers_like_a_dict(tmp_path_factory: pytest.TempPathFactory, steps: list[Mutations | str]) -> None:
    model: dict[bytes, bytes] = {}
    with RocksStore(tmp_path_factory.mktemp("model") / "s") as store:
        for step in steps:
            if isinstance(step, str):
                getattr(store, step)()
                continue
            store.write(step)
            for start, stop in step.ranges:
                model = {key: value for key, value in model.items() if not start <= key < stop}
            for key in step.deletes:
                model.pop(key, None)
            model.update(step.puts)
            keys = sorted({*model, b"\x00", b"\x03\x03"})
            assert store.multi_get(keys) == [model.get(key) for key in keys]
        assert list(store.scan(b"", END)) == sorted(model.items())
        assert list(store.scan(b"\x01", b"\x02")) == sorted((k, v) for k, v in model.items() if b"\x01" <= k < b"\x02")


def test_a_scan_sees_the_moment_of_its_first_step(tmp_path: Path) -> None:
    count = 3 * CHUNK_ROWS + 1
    with RocksStore(tmp_path / "s") as store:
        store.write(Mutations(puts=[(b"k%06d" % i, b"before") for i in range(count)]))
        scan = store.scan(b"k", b"l")
        store.write(Mutations(puts=[(b"k000001x", b"before the first step")]))
        seen = [next(scan)]
        store.write(Mutations(ranges=[(b"k", b"l")], puts=[(b"k9", b"after")]))
        seen += list(scan)
        assert len(seen) == count + 1
        assert {value for _, value in seen} == {b"before", b"before the first step"}
        assert seen == sorted(seen)
        assert rows_of(store) == {b"k9": b"after"}


def test_a_scan_holds_about_a_mebibyte(tmp_path: Path) -> None:
    with RocksStore(tmp_path / "s") as store:
        store.write(Mutations(puts=[(b"k%06d" % i, bytes(256 << 10)) for i in range(40)]))
        scan = store._begin_scan(b"k", b"l")
        assert [len(scan.read()) for _ in range(12)] == [4] * 10 + [0, 0]
        store.write(Mutations(ranges=[(b"k", b"l")], puts=[(b"k%06d" % i, b"small") for i in range(2000)]))
        scan = store._begin_scan(b"k", b"l")
        chunks = [len(scan.read()) for _ in range(12)]
        assert sum(chunks) == 2000
        assert max(chunks) == CHUNK_ROWS


def test_closing_ends_open_scans_and_frees_the_directory(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "s")
    store.write(Mutations(puts=[(b"k%06d" % i, b"v") for i in range(3 * CHUNK_ROWS)]))
    scan = store.scan(b"k", b"l")
    next(scan)
    store.close()
    store.close()
    with pytest.raises(DatabaseClosed):
        list(scan)
    for use in (lambda: store.multi_get([b"a"]), lambda: store.write(Mutations()), store.sync, store.stats,
                lambda: list(store.scan(b"a", b"b")), lambda: store.checkpoint(tmp_path / "c"), store.flush):
        with pytest.raises(DatabaseClosed):
            use()
    with RocksStore(tmp_path / "s") as again:
        assert len(rows_of(again)) == 3 * CHUNK_ROWS


def test_closing_waits_for_readers_in_flight(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "s")
    keys = [b"k%06d" % i for i in range(2000)]
    store.write(Mutations(puts=[(key, b"v" * 100) for key in keys]))
    ends: list[BaseException] = []
    started = threading.Barrier(5)

    def read() -> None:
        started.wait()
        try:
            while True:
                assert len(store.multi_get(keys)) == len(keys)
                store.write(Mutations(puts=[(b"w", b"w")]))
                store.sync()
        except BaseException as error:
            ends.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    store.close()
    for thread in threads:
        thread.join()
    assert [type(error) for error in ends] == [DatabaseClosed] * 4


def test_a_second_handle_is_refused(tmp_path: Path) -> None:
    with RocksStore(tmp_path / "s"), pytest.raises(DatabaseLocked, match="lock hold by"):
        RocksStore(tmp_path / "s")


def test_read_only_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with RocksStore(folder) as store:
        store.write(Mutations(puts=[(b"a", b"1")]))
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        with RocksStore(folder, read_only=True) as reader:
            assert rows_of(reader) == {b"a": b"1"}
            for change in (lambda: reader.write(Mutations(puts=[(b"b", b"2")])), reader.sync, reader.flush,
                           reader.compact, lambda: reader.checkpoint(tmp_path / "c")):
                with pytest.raises(StorageReadOnly):
                    change()
            assert reader.stats().disk_bytes > 0
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_reading_where_no_store_is_makes_none(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        RocksStore(tmp_path / "none", read_only=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="no store"):
        RocksStore(tmp_path / "empty", read_only=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_checkpoint_is_a_store_of_its_own(tmp_path: Path) -> None:
    with RocksStore(tmp_path / "s") as store:
        store.write(Mutations(puts=[(b"a", b"1")]))
        store.checkpoint(tmp_path / "deep" / "copy")
        store.write(Mutations(puts=[(b"a", b"2")]))
        with RocksStore(tmp_path / "deep" / "copy") as copy:
            assert rows_of(copy) == {b"a": b"1"}
            copy.write(Mutations(deletes=[b"a"]))
        assert rows_of(store) == {b"a": b"2"}
        with pytest.raises(InvalidArgument, match="exists already"):
            store.checkpoint(tmp_path / "deep" / "copy")


def test_stats_count_bytes(tmp_path: Path) -> None:
    with RocksStore(tmp_path / "s") as store:
        store.write(Mutations(puts=[(b"k%d" % i, bytes(1000)) for i in range(1000)]))
        stats = store.stats()
        assert stats.memtable_bytes > 1_000_000
        assert stats.estimated_rows == 1000
        assert stats.disk_bytes > 1_000_000


@pytest.mark.parametrize("path", ["bad\0name", "\udcff"], ids=["nul", "surrogate"])
def test_paths_no_file_system_holds_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidArgument):
        RocksStore(tmp_path / path)


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidArgument):
        RocksStore(tmp_path / "file")
    with pytest.raises(InvalidArgument):
        RocksStore(tmp_path / "file" / "s")
    with pytest.raises(InvalidArgument):
        RocksStore(tmp_path / ("n" * 300))
