"""Disks that are full, read-only or failing: typed errors, reads go on, reopening heals."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import fill, needs_mount, remount, run_python, small_filesystem
from vecdb.core.errors import DataCorrupted, StorageError, StorageFull, StorageReadOnly
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore

VALUE = bytes(range(256)) * 64


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_filesystem(tmp_path / "small", 48 << 20) as folder:
        yield folder


def fill_up(store: RocksStore) -> tuple[int, StorageError]:
    """Write and sync until the disk refuses; return how many batches were acknowledged, and the refusal."""
    for number in range(10_000):
        try:
            store.write(Mutations(puts=[(b"k%06d-%d" % (number, part), VALUE) for part in range(4)]))
            store.sync()
        except StorageError as error:
            return number, error
    raise AssertionError("the disk never filled up")


def check_batches(store: RocksStore, acknowledged: int) -> None:
    rows = list(store.scan(b"k", b"l"))
    assert len(rows) % 4 == 0
    assert len(rows) // 4 >= acknowledged
    assert all(value == VALUE for _, value in rows)


@needs_mount
def test_a_full_disk_refuses_writes_and_reads_on(small: Path) -> None:
    ballast = fill(small, leave_bytes=8 << 20)
    store = RocksStore(small / "s")
    acknowledged, error = fill_up(store)
    assert acknowledged > 10
    assert type(error) is StorageFull
    assert error.retryable
    assert str(error).startswith("the disk is full")
    assert error.fields["free_bytes"] < 1 << 20
    assert store.multi_get([b"k000003-1"]) == [VALUE]
    assert sum(1 for _ in store.scan(b"k", b"l")) >= 4 * acknowledged
    for again in (lambda: store.write(Mutations(puts=[(b"z", b"z")])), store.sync, store.flush):
        with pytest.raises(StorageFull):
            again()
    ballast.unlink()
    with pytest.raises(StorageFull):
        store.write(Mutations(puts=[(b"z", b"z")]))  # still: what the failed batch left is not known yet
    store.reopen()
    assert store.failure is None
    check_batches(store, acknowledged)
    store.write(Mutations(puts=[(b"after", b"room")]))
    store.sync()
    store.close()
    with RocksStore(small / "s") as again_open:
        check_batches(again_open, acknowledged)
        assert again_open.multi_get([b"after"]) == [b"room"]


@needs_mount
def test_a_full_disk_can_be_opened_to_read(small: Path) -> None:
    ballast = fill(small, leave_bytes=8 << 20)
    store = RocksStore(small / "s")
    acknowledged, _ = fill_up(store)
    store.close()
    fill(small)
    with pytest.raises(StorageFull, match=r"the disk is full.*\(0 bytes free\).*read_only=True"):
        RocksStore(small / "s")
    with RocksStore(small / "s", read_only=True) as reader:
        check_batches(reader, acknowledged)
    ballast.unlink()
    with RocksStore(small / "s") as again:
        check_batches(again, acknowledged)


@needs_mount
def test_a_read_only_disk(small: Path) -> None:
    with RocksStore(small / "s") as store:
        store.write(Mutations(puts=[(b"k%d" % i, VALUE) for i in range(8)]))
    remount(small, read_only=True)
    try:
        with pytest.raises(StorageReadOnly):
            RocksStore(small / "s")
        with pytest.raises(StorageReadOnly):
            RocksStore(small / "new")
        with RocksStore(small / "s", read_only=True) as reader:
            check_batches(reader, 2)
            with pytest.raises(StorageReadOnly):
                reader.write(Mutations(puts=[(b"z", b"z")]))
    finally:
        remount(small, read_only=False)


FILE_LIMIT = """
import resource, sys
from vecdb.core.errors import StorageFull
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore
store = RocksStore(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, resource.RLIM_INFINITY))
done = 0
try:
    while done < 10_000:
        store.write(Mutations(puts=[(b"k%06d" % done, bytes(20_000))]))
        store.sync()
        done += 1
except StorageFull:
    assert store.multi_get([b"k000000"]) == [bytes(20_000)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.reopen()
    assert sum(1 for _ in store.scan(b"k", b"l")) >= done
    store.write(Mutations(puts=[(b"z", b"z")]))
    store.sync()
    store.close()
    print(done)
"""


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    done = int(run_python(FILE_LIMIT, tmp_path / "s"))
    assert 100 < done < 220


class Broken:
    """rocksdict's handle with some calls failing as RocksDB would have them fail."""

    def __init__(self, handle: Any, **failures: str) -> None:
        self._handle = handle
        self._failures = failures
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        if name not in self._failures:
            return getattr(self._handle, name)

        def fail(*_: object) -> None:
            raise Exception(self._failures[name])

        return fail


@pytest.mark.parametrize(("text", "kind"), [
    ("IO error: No space left on device: While appending to file: /d/000004.log: No space left on device", StorageFull),
    ("IO error: Disk quota exceeded: While appending to file: /d/000004.log: Disk quota exceeded", StorageFull),
    ("IO error: While fsync: /d/000004.log: Input/output error", DataCorrupted),
    ("IO error: While open a file for appending: /d/000009.log: Read-only file system", StorageReadOnly),
    ("IO error: While open a file for appending: /d/000009.log: Permission denied", StorageReadOnly),
    ("Corruption: block checksum mismatch: stored = 1, computed = 2 in /d/000009.sst offset 0 size 9", DataCorrupted),
    ("Busy: something nobody has seen", StorageError),
])
@pytest.mark.parametrize("call", ["write", "flush_wal"])
def test_a_failed_write_ends_writing_until_reopened(tmp_path: Path, text: str, kind: type[Exception],
                                                    call: str) -> None:
    with RocksStore(tmp_path / "s") as store:
        store.write(Mutations(puts=[(b"a", b"1")]))
        store.sync()
        broken = Broken(store._db, **{call: text})
        store._db = broken

        def write() -> None:
            store.write(Mutations(puts=[(b"b", b"2")]))
            store.sync()

        with pytest.raises(kind) as first:
            write()
        assert type(first.value) is kind
        assert text in str(first.value)
        tried = broken.calls.count(call)
        with pytest.raises(kind) as second:
            write()
        assert second.value is not first.value
        assert str(second.value) == str(first.value)
        assert second.value.fields == first.value.fields
        assert broken.calls.count(call) == tried, "RocksDB was asked again after a failure"
        assert store.multi_get([b"a"]) == [b"1"]
        assert dict(store.scan(b"a", b"b")) == {b"a": b"1"}
        store.reopen()
        write()
        assert store.multi_get([b"a", b"b"]) == [b"1", b"2"]


def test_closing_raises_only_what_was_not_made_durable(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "s")
    store.write(Mutations(puts=[(b"a", b"1")]))
    store._db = Broken(store._db, flush_wal="IO error: No space left on device: While appending to file: /d/4.log")
    with pytest.raises(StorageFull):
        store.close()
    store.close()
    with RocksStore(tmp_path / "s") as again:
        assert again.multi_get([b"a"]) == [b"1"]


class Stalled:
    """rocksdict's handle, refusing the first writes because compaction is behind."""

    def __init__(self, handle: Any, stalls: int) -> None:
        self._handle = handle
        self.stalls = stalls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def write(self, rows: Any, options: Any) -> None:
        assert options.no_slowdown
        if self.stalls:
            self.stalls -= 1
            rows.clear()  # as rocksdict does: a batch is consumed whatever comes of it
            raise Exception("Result incomplete: Write stall")
        self._handle.write(rows, options)


def test_a_stalled_write_waits_and_is_not_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RocksStore(tmp_path / "s") as store:
        store._db = Stalled(store._db, stalls=3)
        store.write(Mutations(puts=[(b"a", b"1"), (b"b", b"2")]))
        assert store.multi_get([b"a", b"b"]) == [b"1", b"2"]
        monkeypatch.setattr("vecdb.storage.rocksdict.STALL_LIMIT_S", 0.01)
        store._db.stalls = 10
        with pytest.raises(StorageError, match="cannot keep up"):
            store.write(Mutations(puts=[(b"c", b"3")]))
        assert store.failure is None
        store._db.stalls = 0
        store.write(Mutations(puts=[(b"d", b"4")]))
        assert store.multi_get([b"c", b"d"]) == [None, b"4"]
