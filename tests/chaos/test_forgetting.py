"""The layer that forgets forgets what was not synced, and nothing else; RocksDB lives on it."""

import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.forgetting import Cut, Layer, built, compiler
from tests.faults import ROOT, needs

pytestmark = needs(lambda: compiler() is not None and sys.platform.startswith("linux"),
                   "the layer is C and Linux's: needs cc, gcc, clang or the ziglang package")


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    return Layer(tmp_path / "data", tmp_path / "layer", built(ROOT / "build" / "chaos"))


def run(layer: Layer, code: str) -> str:
    """Run ``code`` below the layer, in its directory; it is killed at its end."""
    code = ("import os, sys\nos.chdir(sys.argv[1])\n"
            "def put(name, data, sync=True):\n"
            "    with open(name, 'ab') as file:\n"
            "        file.write(data)\n"
            "        file.flush()\n"
            "        if sync: os.fsync(file.fileno())\n"
            "def sync(name='.'):\n"
            "    handle = os.open(name, os.O_RDONLY)\n"
            "    os.fsync(handle)\n"
            "    os.close(handle)\n"
            f"{code}\nsys.stdout.flush()\nos.kill(os.getpid(), 9)\n")
    done = subprocess.run([sys.executable, "-c", code, str(layer.root)], env={**os.environ, **layer.environment()},
                          cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    return done.stdout


def outcomes(tmp_path: Path, code: str, before: str = "", times: int = 40) -> list[dict[str, bytes]]:
    """What is left of the directory after each of some cuts, each with other luck."""
    found = []
    for seed in range(times):
        layer = Layer(tmp_path / f"data{seed}", tmp_path / f"layer{seed}", built(ROOT / "build" / "chaos"))
        if before:
            run(layer, before)
            layer.begin()
        run(layer, code)
        layer.cut(random.Random(seed))
        found.append(contents(layer.root))
    return found


def contents(top: Path) -> dict[str, bytes]:
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


def test_a_slow_disk_takes_its_time_and_keeps_what_it_said(tmp_path: Path) -> None:
    layer = Layer(tmp_path / "data", tmp_path / "layer", built(ROOT / "build" / "chaos"))
    layer.slow(200)
    begun = time.monotonic()
    run(layer, "put('a', b'x' * 5000); sync()")
    assert time.monotonic() - begun >= 0.4, "two syncs cannot be faster than what was added"
    layer.slow(0)
    layer.cut(random.Random(1))
    assert contents(layer.root) == {"a": b"x" * 5000}


def test_what_is_synced_stays(tmp_path: Path) -> None:
    for left in outcomes(tmp_path, "put('a', b'x' * 5000); sync()", times=10):
        assert left == {"a": b"x" * 5000}


def test_what_is_not_synced_may_go_or_be_torn(tmp_path: Path) -> None:
    """Also through pwrite, writev, sendfile and truncation; the file's first part stays all the while."""
    left = outcomes(tmp_path, """
put('a', b'y' * 3000, sync=False)
handle = os.open('a', os.O_RDWR)
os.pwrite(handle, b'z' * 700, 100)
os.writev(handle, [b'w' * 10, b'v' * 10])
put('b', b'u' * 4000)
source = os.open('b', os.O_RDONLY)
os.lseek(handle, 6000, 0)
os.sendfile(handle, source, 0, 4000)
os.ftruncate(handle, 9000)
""", before="put('a', b'x' * 2000); sync()")
    states = {one["a"] for one in left}
    assert b"x" * 2000 in states, "all of it may be lost"
    assert b"v" * 10 + b"x" * 80 + b"z" * 700 not in states
    assert any(len(state) == 9000 and state.startswith(b"w" * 10 + b"v" * 10) for state in states), "or kept"
    assert len(states) > 4, "or torn"
    assert all(2000 <= len(state) <= 10000 for state in states)
    for state in states:
        assert set(state) <= set(b"xyzwvu\0")
    assert any("b" not in one for one in left), "a synced file in a directory that is not synced has no name for sure"
    assert any(one.get("b") == b"u" * 4000 for one in left)


def test_bytes_after_the_sync_are_at_risk_and_those_before_are_not(tmp_path: Path) -> None:
    left = outcomes(tmp_path, "put('a', b'1' * 1000); sync(); put('a', b'2' * 1000, sync=False)")
    sizes = {len(one["a"]) for one in left}
    assert all(one["a"][:1000] == b"1" * 1000 for one in left)
    assert min(sizes) == 1000
    assert max(sizes) == 2000
    assert len(sizes) > 2


def test_a_rename_without_a_sync_of_the_directory_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    left = outcomes(tmp_path, "put('fresh', b'new'); os.replace('fresh', 'file')", before="put('file', b'old'); sync()")
    assert {one["file"] for one in left} == {b"old", b"new"}
    assert all(set(one) <= {"file", "fresh"} for one in left)
    left = outcomes(tmp_path / "synced", "put('fresh', b'new'); os.replace('fresh', 'file'); sync()",
                    before="put('file', b'old'); sync()", times=10)
    assert left == [{"file": b"new"}] * 10


def test_a_rename_before_the_sync_of_the_file_may_leave_an_empty_one(tmp_path: Path) -> None:
    left = outcomes(tmp_path, "put('fresh', b'new', sync=False); os.replace('fresh', 'file'); sync()",
                    before="put('file', b'old'); sync()")
    assert {one["file"] for one in left} >= {b"", b"new"}
    assert all(one["file"] != b"old" for one in left)


def test_deleted_files_come_back_until_the_directory_is_synced(tmp_path: Path) -> None:
    before = "os.makedirs('d/e'); put('d/a', b'a'); put('d/e/b', b'b'); sync('d/e'); sync('d'); sync()"
    left = outcomes(tmp_path, "os.unlink('d/a'); os.unlink('d/e/b'); os.rmdir('d/e')", before=before)
    assert {"d/a": b"a", "d/e/b": b"b"} in left
    assert {} in left
    left = outcomes(tmp_path / "synced", "os.unlink('d/a'); sync('d')", before=before, times=5)
    assert left == [{"d/e/b": b"b"}] * 5


def test_folders_and_links_are_names_too(tmp_path: Path) -> None:
    left = outcomes(tmp_path, """
put('a', b'a'); sync()
os.makedirs('d/e'); os.link('a', 'd/e/a'); sync('d/e'); sync('d')
os.rename('d', 'f')
""")
    assert all(one.pop("a") == b"a" for one in left)
    assert {tuple(one) for one in left} == {(), ("d/e/a",), ("f/e/a",)}


def test_a_kill_and_a_start_do_not_make_stable_what_was_not(tmp_path: Path) -> None:
    sizes = set()
    for seed in range(20):
        layer = Layer(tmp_path / f"data{seed}", tmp_path / f"layer{seed}", built(ROOT / "build" / "chaos"))
        run(layer, "put('a', b'1'); sync(); put('a', b'2' * 2000, sync=False)")
        run(layer, "assert os.path.getsize('a') == 2001")
        layer.cut(random.Random(seed))
        sizes.add(len(contents(layer.root)["a"]))
    assert {1, 2001} <= sizes


def test_a_directory_moved_from_one_to_another_is_in_one_of_them(tmp_path: Path) -> None:
    left = outcomes(tmp_path, "os.rename('a/x', 'b/x')",
                    before="os.makedirs('a/x'); os.mkdir('b'); put('a/x/f', b'f'); [sync(one) for one in "
                           "('a/x', 'a', 'b', '.')]")
    assert {tuple(one) for one in left} == {("a/x/f",), ("b/x/f",)}


ROCKS = """
import rocksdict
options = rocksdict.Options(raw_mode=True)
options.create_if_missing(True)
options.set_write_buffer_size(64 << 10)
store = rocksdict.Rdict('db', options)
mode = rocksdict.WriteOptions()
for number in range({count}):
    batch = rocksdict.WriteBatch(raw_mode=True)
    for part in range(3):
        batch.put(number.to_bytes(4, 'big') + bytes([part]), number.to_bytes(4, 'big') * 500)
    store.write(batch, mode)
    if number % 7 == 6 and {sync}:
        store.flush_wal(True)
        print(number, flush=True)
"""
READ = """
import rocksdict
store = rocksdict.Rdict('db', rocksdict.Options(raw_mode=True))
for key, value in store.items():
    assert value == key[:4] * 500
    print(int.from_bytes(key[:4], 'big'), key[4])
"""


@pytest.mark.parametrize("seed", range(6))
def test_rocksdb_keeps_what_it_synced_and_whole_batches(layer: Layer, seed: int) -> None:
    """With memtables that are flushed and files that are compacted and deleted meanwhile; twice on one directory."""
    rng = random.Random(seed)
    run(layer, "os.mkdir('db'); sync()")
    layer.begin()
    for _ in range(2):
        promised = [int(line) for line in run(layer, ROCKS.format(count=150 + seed, sync=True)).split()]
        cut = layer.cut(rng)
        assert cut.records > 0
        rows = [tuple(map(int, line.split())) for line in run(layer, READ).splitlines()]
        numbers = sorted({number for number, _ in rows})
        assert numbers == list(range(len(numbers))), "a prefix of the batches"
        assert len(rows) == 3 * len(numbers), "whole ones"
        assert len(numbers) > promised[-1]
        layer.begin()


SPLIT = """
from vecdb.shard.mutations import Mutations
from vecdb.storage.rocksdict import RocksStore
from vecdb.storage.split import SplitStore
def place(number, part):
    return b"r%d" % part + number.to_bytes(8, "big")
def opened():
    return SplitStore(RocksStore("db"), "db/values", file_bytes=400_000)
"""
SPLIT_WRITE = SPLIT + """
store = opened()
for number in range({first}, {first} + 40):
    size = 40_000 if number % 3 else 100
    store.write(Mutations(ranges=[(place(0, part), place(max(number - 12, 0), part)) for part in range(3)],
                          puts=[(place(number, part), (b"%06d" % number) * (size // 6)) for part in range(3)]))
    if number % 4 == 3:
        store.sync()
        print(number, flush=True)
"""
SPLIT_READ = SPLIT + """
with opened() as store:
    for key, value in store.scan(b"r", b"s"):
        number = int.from_bytes(key[-8:], "big")
        assert value == b"%06d" % number * (len(value) // 6)
        print(number, key[1] - 48, len(value))
"""


@pytest.mark.parametrize("seed", range(4))
def test_values_in_files_are_there_as_far_as_rows_point_at_them(layer: Layer, seed: int) -> None:
    rng = random.Random(seed)
    run(layer, "os.mkdir('db'); sync()")
    first = 0
    for _ in range(3):
        layer.begin()
        promised = [int(line) for line in run(layer, SPLIT_WRITE.format(first=first)).split()]
        assert layer.cut(rng).records > 0
        rows = [tuple(map(int, line.split())) for line in run(layer, SPLIT_READ).splitlines()]
        numbers = sorted({number for number, _, _ in rows})
        assert numbers == list(range(max(numbers[-1] - 12, 0), numbers[-1] + 1)), "a batch or its deletion is missing"
        assert numbers[-1] >= promised[-1]
        assert len(rows) == 3 * len(numbers), "whole batches"
        assert all(size == (39_996 if number % 3 else 96) for number, _, size in rows)
        first = numbers[-1] + 1


SPLIT_DELETE = SPLIT + """
store = opened()
store.write(Mutations(puts=[(place(number, 0), (b"%06d" % number) * 20_000) for number in range(30)]))
store.sync()
store.close()
store = opened()
store.write(Mutations(puts=[(place(number, 0), (b"%06d" % number) * 20_000) for number in range(30, 33)]))
store.sync()
store.write(Mutations(ranges=[(place(0, 0), place(30, 0))]))
print(len(os.listdir("db/values")))
"""


@pytest.mark.parametrize("seed", range(3))
def test_files_that_a_killed_process_had_emptied_go_only_with_their_rows(layer: Layer, seed: int) -> None:
    """It had not synced that; whoever opens the store deletes them, and then the power goes.  RocksDB has written out
    by then what it found in its log.
    """
    run(layer, "os.mkdir('db'); sync()")
    layer.begin()
    assert run(layer, SPLIT_DELETE).split() == ["2"]
    assert run(layer, SPLIT + "store = opened()\nprint(len(os.listdir('db/values')))").split() == ["1"]
    layer.cut(random.Random(seed))
    assert [int(line.split()[0]) for line in run(layer, SPLIT_READ).splitlines()] == [30, 31, 32]


def test_rocksdb_without_syncs_loses(tmp_path: Path) -> None:
    lost, cuts = 0, Cut()
    for seed in range(8):
        layer = Layer(tmp_path / f"data{seed}", tmp_path / f"layer{seed}", built(ROOT / "build" / "chaos"))
        run(layer, "os.mkdir('db'); sync()\n" + ROCKS.format(count=1, sync=True) + "\nstore.flush_wal(True)")
        layer.begin()
        run(layer, ROCKS.format(count=25, sync=False))
        cuts = layer.cut(random.Random(seed))
        lost += len(set(run(layer, READ).splitlines())) < 75
    assert lost > 0
    assert cuts.records > 0


def test_records_are_laid_out_as_they_are_read() -> None:
    assert struct.calcsize("<IIQQqqq") == 48
