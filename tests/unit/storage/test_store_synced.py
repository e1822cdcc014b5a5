"""A log that lost its end is damage where that end was synced, and a torn write where it was not."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import run_python, truncate
from vecdb.core.errors import DataCorrupted
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore
from vecdb.storage.synced import SYNCED_NAME

WRITER = """
import os, sys
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore
store = RocksStore(sys.argv[1])
for batch in range(20):
    store.write(Mutations(puts=[(b"k%04d" % (batch * 10 + i), b"v" * 50) for i in range(10)]))
    store.sync()
if "flush" in sys.argv:
    store.flush()
if "more" in sys.argv:
    store.write(Mutations(puts=[(b"unsynced", b"v" * 500)]))
os._exit(0)
"""


def _log(path: Path) -> Path:
    return max(path.glob("*.log"), key=lambda log: int(log.stem))


def _keys(path: Path) -> list[bytes]:
    with RocksStore(path) as store:
        return [key for key, _ in store.scan(b"", b"z")]


@pytest.mark.parametrize("harm", [lambda log: truncate(log, -7), lambda log: truncate(log, log.stat().st_size // 2),
                                  lambda log: truncate(log, 0), lambda log: log.unlink()])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_synced_end_that_is_gone_is_named(tmp_path: Path, harm: Callable[[Path], None], read_only: bool) -> None:
    path = tmp_path / "s"
    run_python(WRITER, path)
    log = _log(path)
    harm(log)
    with pytest.raises(DataCorrupted, match="had been synced") as caught:
        RocksStore(path, read_only=read_only)
    assert caught.value.fields["path"] == str(log)


@pytest.mark.parametrize("count", [3, 100, 1000])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_synced_end_of_zeros_or_noise_is_no_torn_write(tmp_path: Path, count: int, noise: bool,
                                                        read_only: bool) -> None:
    """What a power cut does to a write nobody was promised looks just so."""
    path = tmp_path / "s"
    run_python(WRITER, path)
    log = _log(path)
    harmed = log.read_bytes()[:-count] + (random.Random(count).randbytes(count) if noise else bytes(count))
    log.write_bytes(harmed)
    for _ in range(2):
        with pytest.raises(DataCorrupted) as caught:
            RocksStore(path, read_only=read_only)
        assert caught.value.fields["path"] == str(log)
    assert log.read_bytes() == harmed


def test_the_unsynced_end_alone_may_be_torn(tmp_path: Path) -> None:
    path = tmp_path / "s"
    run_python(WRITER, path, "more")
    log = _log(path)
    log.write_bytes(log.read_bytes()[:-400] + bytes(400))
    assert len(_keys(path)) == 200


def test_an_unsynced_end_that_is_gone_is_none_of_ours(tmp_path: Path) -> None:
    run_python(WRITER, tmp_path / "s", "more")
    truncate(_log(tmp_path / "s"), -100)
    assert len(_keys(tmp_path / "s")) == 200


@pytest.mark.parametrize("what", [(), ("flush",), ("more",), ("flush", "more")])
def test_a_whole_store_opens_however_it_was_left(tmp_path: Path, what: tuple[str, ...]) -> None:
    run_python(WRITER, tmp_path / "s", *what)
    for _ in range(2):
        assert len(_keys(tmp_path / "s")) == 200 + ("more" in what)


def test_after_a_clean_close_no_log_is_needed(tmp_path: Path) -> None:
    with RocksStore(tmp_path / "s") as store:
        store.write(Mutations(puts=[(b"a", b"1")]))
        store.sync()
    for log in (tmp_path / "s").glob("*.log"):
        log.unlink()
    assert _keys(tmp_path / "s") == [b"a"]


def test_a_broken_note_demands_nothing(tmp_path: Path) -> None:
    run_python(WRITER, tmp_path / "s")
    (tmp_path / "s" / SYNCED_NAME).write_text("000004.log 99999999 0123456789abcdef\n")
    assert len(_keys(tmp_path / "s")) == 200
