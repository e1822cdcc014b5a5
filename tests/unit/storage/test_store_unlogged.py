"""A store without a log of its own: what a crash leaves is all batches up to some point, and all that were synced."""

from pathlib import Path

import pytest

from tests.faults import kill_during, truncate
from vecdb.core.errors import DataCorrupted
from vecdb.shard.mutations import Mutations
from vecdb.storage.options import StoreResources
from vecdb.storage.rocksdict import RocksStore

WRITER = """
import sys
from pathlib import Path
from vecdb.shard.mutations import Mutations
from vecdb.storage.options import StoreResources
from vecdb.storage.rocksdict import RocksStore
# a small budget for memtables: they are written out between syncs as well, by RocksDB's own threads
store = RocksStore(sys.argv[1], wal=False, resources=StoreResources(write_buffer_bytes=1 << 20))
number = int(sys.argv[2])
while True:
    store.write(Mutations(
        ranges=[(b"row%08d" % (number - 50), b"row%08d" % (number - 49))],
        puts=[(b"row%08d-%02d" % (number, part), b"%08d" % number * 100) for part in range(20)]
             + [(b"last", b"%d" % number)]))
    if number % 97 == 0:
        store.sync()
        print(number, flush=True)
    number += 1
"""


def test_killed_while_writing_leaves_a_prefix(tmp_path: Path) -> None:
    number = 0
    for kill in range(3):
        lines = kill_during(WRITER, tmp_path / "s", number, until=lambda lines, want=4 + 5 * kill: len(lines) >= want)
        synced = int(lines[-1])
        with RocksStore(tmp_path / "s", wal=False) as store:
            last = int(store.multi_get([b"last"])[0] or b"-1")
            assert last >= synced, "a synced batch is gone"
            rows = dict(store.scan(b"row", b"rox"))
        numbers = sorted({int(key[3:11]) for key in rows})
        assert numbers == list(range(max(0, last - 49), last + 1)), "a batch, or its range deletion, is missing"
        for batch in numbers:
            assert [rows.get(b"row%08d-%02d" % (batch, part)) for part in range(20)] == [b"%08d" % batch * 100] * 20
        number = last + 1


def _write(store: RocksStore, number: int) -> None:
    store.write(Mutations(puts=[(b"%04d" % number, b"x" * 1_000)]))


def test_nothing_goes_to_a_log(tmp_path: Path) -> None:
    with RocksStore(tmp_path / "s", wal=False) as store:
        for number in range(100):
            _write(store, number)
        assert sum(log.stat().st_size for log in (tmp_path / "s").glob("*.log")) == 0
        assert store.multi_get([b"0099"]) != [None], "visible at once"
    with RocksStore(tmp_path / "s", wal=False) as store:
        assert len(list(store.scan(b"0", b":"))) == 100, "closing makes all durable"


def test_a_checkpoint_holds_everything_written(tmp_path: Path) -> None:
    with RocksStore(tmp_path / "s", wal=False) as store:
        for number in range(50):
            _write(store, number)
        store.checkpoint(tmp_path / "copy")
        _write(store, 50)
        with RocksStore(tmp_path / "copy", wal=False) as copy:
            assert len(list(copy.scan(b"0", b":"))) == 50
            _write(copy, 60)
        assert len(list(store.scan(b"0", b":"))) == 51, "the copy is another store"


def test_it_can_be_opened_with_a_log_and_without_in_turn(tmp_path: Path) -> None:
    for number, wal in enumerate((False, True, False, True)):
        with RocksStore(tmp_path / "s", wal=wal) as store:
            assert len(list(store.scan(b"0", b":"))) == number
            _write(store, number)
            store.sync()


@pytest.mark.parametrize("kept", [0.5, 0.95])
def test_a_shortened_manifest_is_damage(tmp_path: Path, kept: float) -> None:
    with RocksStore(tmp_path / "s", wal=False) as store:
        for number in range(10):
            _write(store, number)
            store.sync()
    manifest = max((tmp_path / "s").glob("MANIFEST-*"))
    truncate(manifest, int(manifest.stat().st_size * kept))
    with pytest.raises(DataCorrupted):
        RocksStore(tmp_path / "s", wal=False)


def test_a_disk_that_refuses_ends_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RocksStore(tmp_path / "s", wal=False, resources=StoreResources())
    _write(store, 1)

    class Refusing:
        def __init__(self, real: object) -> None:
            self.real = real

        def flush(self, wait: bool) -> None:
            raise Exception("IO error: No space left on device: while writing")

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

    real = store._db
    monkeypatch.setattr(store, "_db", Refusing(real))
    with pytest.raises(Exception, match="full"):
        store.sync()
    with pytest.raises(Exception, match="full"):
        _write(store, 2)
    assert store.multi_get([b"0001"]) != [None], "reads go on"
    monkeypatch.setattr(store, "_db", real)
    store.close()
