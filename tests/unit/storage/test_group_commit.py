"""Many who wait for durability share one flush, and a failed flush fails them all."""

import threading
from pathlib import Path

import pytest

from vecdb.core.errors import StorageError, StorageFull
from vecdb.shard.mutations import Mutations
from vecdb.storage.group_commit import GroupCommit
from vecdb.storage.rocksdict import RocksStore


class Disk:
    """A flush that waits to be let through, and may be told to fail."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.let_through = threading.Semaphore(0)
        self.failure: StorageError | None = None
        self.fails = False

    def flush(self) -> None:
        self.entered.release()
        assert self.let_through.acquire(timeout=20)
        if self.fails:
            self.failure = StorageFull("no space", path="p")
            raise self.failure

    def check(self) -> None:
        if self.failure is not None:
            raise StorageFull("no space", path="p")


def start(commit: GroupCommit, count: int, ends: list[BaseException | None]) -> list[threading.Thread]:
    def write_and_sync() -> None:
        try:
            commit.wrote()
            written.release()
            commit.sync()
            ends.append(None)
        except BaseException as error:
            ends.append(error)

    written = threading.Semaphore(0)
    threads = [threading.Thread(target=write_and_sync) for _ in range(count)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert written.acquire(timeout=20)
    return threads


def test_all_who_come_during_a_flush_share_the_next() -> None:
    disk, ends = Disk(), []
    commit = GroupCommit(disk.flush, disk.check)
    first = start(commit, 1, ends)
    assert disk.entered.acquire(timeout=20)
    rest = start(commit, 7, ends)
    assert ends == []
    disk.let_through.release()
    first[0].join(20)
    assert disk.entered.acquire(timeout=20)
    assert ends == [None], "those who came during the first flush are not covered by it"
    disk.let_through.release()
    for thread in rest:
        thread.join(20)
    assert ends == [None] * 8
    assert commit.flushes == 2


def test_nothing_new_needs_no_flush() -> None:
    disk = Disk()
    commit = GroupCommit(disk.flush, disk.check)
    commit.sync()
    commit.wrote()
    disk.let_through.release()
    commit.sync()
    commit.sync()
    assert commit.flushes == 1


def test_a_failed_flush_fails_all_who_wait_and_covers_nothing() -> None:
    disk, ends = Disk(), []
    commit = GroupCommit(disk.flush, disk.check)
    threads = start(commit, 1, ends)
    assert disk.entered.acquire(timeout=20)
    threads += start(commit, 7, ends)
    disk.fails = True
    disk.let_through.release()
    for thread in threads:
        thread.join(20)
    assert [type(end) for end in ends] == [StorageFull] * 8
    with pytest.raises(StorageFull):
        commit.sync()
    assert commit.flushes == 1


def test_eight_writers_share_fsyncs_and_lose_nothing(tmp_path: Path) -> None:
    each = 100
    ready = threading.Barrier(8)

    def write(writer: int) -> None:
        ready.wait()
        for i in range(each):
            store.write(Mutations(puts=[(b"%d-%04d" % (writer, i), b"v" * 200)]))
            store.sync()

    with RocksStore(tmp_path / "s") as store:
        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert each <= store.stats().syncs <= 8 * each
    with RocksStore(tmp_path / "s") as store:
        assert sum(1 for _ in store.scan(b"0", b"9")) == 8 * each
