"""A process killed at any instant loses nothing it promised, and halves no batch."""

from pathlib import Path

import pytest

from tests.faults import kill_during, truncate
from vecdb.core.errors import DataCorrupted
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore

ROWS = 20
WRITER = """
import sys
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore
store, number = RocksStore(sys.argv[1]), int(sys.argv[2])
while True:
    store.write(Mutations(
        ranges=[(b"row%08d" % (number - 50), b"row%08d" % (number - 49))],
        puts=[(b"row%08d-%02d" % (number, part), b"%08d" % number * 50) for part in range(20)]
             + [(b"last", b"%d" % number)]))
    if number % 500 == 499:
        store.flush()
    store.sync()
    print(number, flush=True)
    number += 1
"""


@pytest.mark.parametrize("rounds", [4])
def test_killed_while_writing(tmp_path: Path, rounds: int) -> None:
    number = 0
    for kill in range(rounds):
        first = number
        lines = kill_during(WRITER, tmp_path / "s", first,
                            until=lambda lines, want=137 + 211 * kill: len(lines) >= want)
        promised = int(lines[-1])
        with RocksStore(tmp_path / "s") as store:
            last = int(store.multi_get([b"last"])[0] or b"-1")
            assert last >= promised, "an acknowledged batch is gone"
            rows = dict(store.scan(b"row", b"rox"))
        numbers = sorted({int(key[3:11]) for key in rows})
        assert numbers == list(range(max(0, last - 49), last + 1)), "a batch, or its range deletion, is missing"
        for batch in numbers:
            parts = [rows.get(b"row%08d-%02d" % (batch, part)) for part in range(ROWS)]
            assert parts == [b"%08d" % batch * 50] * ROWS, f"batch {batch} is there in part"
        number = last + 1


MANY_WRITERS = """
import sys, threading
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore
store, say = RocksStore(sys.argv[1]), threading.Lock()
def work(writer):
    number = 0
    while True:
        store.write(Mutations(puts=[(b"%d-%08d-%d" % (writer, number, part), b"x" * 300) for part in range(5)]))
        store.sync()
        with say:
            print(writer, number, flush=True)
        number += 1
for writer in range(8):
    threading.Thread(target=work, args=(writer,)).start()
"""


def test_killed_with_eight_writers_sharing_syncs(tmp_path: Path) -> None:
    lines = kill_during(MANY_WRITERS, tmp_path / "s", until=lambda lines: len(lines) >= 800)
    with RocksStore(tmp_path / "s") as store:
        keys = {key for key, _ in store.scan(b"0", b"9")}
    assert len(keys) % 5 == 0
    for line in lines:
        writer, number = map(int, line.split())
        assert all(b"%d-%08d-%d" % (writer, number, part) in keys for part in range(5)), f"{line} was acknowledged"


def test_a_torn_tail_costs_only_what_was_not_synced(tmp_path: Path) -> None:
    store = RocksStore(tmp_path / "s")
    for number in range(100):
        store.write(Mutations(puts=[(b"k%03d" % number, b"v" * 1500), (b"l%03d" % number, b"w")]))
    log = next((tmp_path / "s").glob("*.log"))
    whole = log.read_bytes()
    record = len(whole) // 100
    for cut in (1, 5, record - 3, record + 1, 7 * record + 100, 40 * record + 11, len(whole) - 3):
        folder = tmp_path / f"cut{cut}"
        _copy(tmp_path / "s", folder)
        truncate(folder / log.name, len(whole) - cut)
        with RocksStore(folder) as torn:
            rows = dict(torn.scan(b"", b"z"))
        kept = len(rows) // 2
        assert sorted(rows) == sorted([b"k%03d" % i for i in range(kept)] + [b"l%03d" % i for i in range(kept)])
        assert kept >= 100 - cut // record - 2
        assert kept < 100
    store.close()


def two_logs(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A store killed while its first log was being flushed: the same files before and after the manifest knew of it.

    Returns the folder before, the folder after with the old log brought back, and the old log's name.
    """
    folder, before, after = tmp_path / "s", tmp_path / "before", tmp_path / "after"
    with RocksStore(folder) as store:
        for number in range(20):
            store.write(Mutations(puts=[(b"old%03d" % number, b"v" * 500)]))
        old = next(folder.glob("*.log"))
        _copy(folder, before)
        store.flush()
        for number in range(5):
            store.write(Mutations(puts=[(b"new%03d" % number, b"v" * 500)]))
        _copy(folder, after)
        new = next(folder.glob("*.log"))
        assert new != old
        (before / new.name).write_bytes(new.read_bytes())
        (after / old.name).write_bytes((before / old.name).read_bytes())
    return before, after, Path(old.name)


def test_a_log_cut_short_before_a_newer_log_is_damage(tmp_path: Path) -> None:
    before, _, old = two_logs(tmp_path)
    whole = (before / old).read_bytes()
    (before / old).write_bytes(whole[:-700])
    with pytest.raises(DataCorrupted, match="goes on") as caught:
        RocksStore(before)
    assert caught.value.fields["path"] == str(before / old)
    with pytest.raises(DataCorrupted, match="goes on"):
        RocksStore(before, read_only=True)
    (before / old).write_bytes(whole)
    with RocksStore(before) as store:
        assert sum(1 for _ in store.scan(b"", b"z")) == 25


def test_a_damaged_log_that_is_no_longer_needed_hurts_nobody(tmp_path: Path) -> None:
    _, after, old = two_logs(tmp_path)
    truncate(after / old, -700)
    with RocksStore(after, read_only=True) as store:
        assert sum(1 for _ in store.scan(b"", b"z")) == 25
    with RocksStore(after) as store:
        assert sum(1 for _ in store.scan(b"", b"z")) == 25


def _copy(source: Path, target: Path) -> None:
    """What a killed process leaves: the files as they are, without a farewell."""
    target.mkdir()
    for path in source.iterdir():
        if path.name != "LOCK":
            (target / path.name).write_bytes(path.read_bytes())
