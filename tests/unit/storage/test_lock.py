"""One process, and one handle in it, per directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import ROOT, kill_during, needs_mount, remount, small_filesystem
from vecdb.core.errors import DatabaseLocked, StorageReadOnly
from vecdb.storage.lock import LOCK_NAME, DirectoryLock

HOLD = """
import sys, time
from vecdb.storage.lock import DirectoryLock
lock = DirectoryLock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_handle_in_this_process_is_refused(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "db") as lock:
        with pytest.raises(DatabaseLocked, match="another handle in this process since"):
            DirectoryLock(tmp_path / "db")
        with pytest.raises(DatabaseLocked):
            DirectoryLock(tmp_path / "db", read_only=True)
        lock.close()
        lock.close()
        DirectoryLock(tmp_path / "db").close()


def test_another_process_is_named_and_its_death_frees(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(DatabaseLocked, match=rf"process {child.pid} .* since \d{{4}}-") as caught:
            DirectoryLock(tmp_path)
        assert caught.value.fields["holder"]["pid"] == child.pid
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    DirectoryLock(tmp_path).close()


def test_killed_while_holding(tmp_path: Path) -> None:
    assert kill_during(HOLD, tmp_path, until=lambda lines: lines == ["held"]) == ["held"]
    with DirectoryLock(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK_NAME).read_text()


def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    stay, leave = os.pipe()
    hear, say = os.pipe()
    child = os.fork()
    if not child:
        os.close(leave)
        os.write(say, b"!")
        os.read(stay, 1)
        os._exit(0)
    os.read(hear, 1)
    lock.close()
    try:
        DirectoryLock(tmp_path).close()
    finally:
        os.close(leave)
        os.waitpid(child, 0)
        for end in (stay, hear, say):
            os.close(end)


def test_readers_share(tmp_path: Path) -> None:
    DirectoryLock(tmp_path).close()
    with (DirectoryLock(tmp_path, read_only=True), DirectoryLock(tmp_path, read_only=True),
          pytest.raises(DatabaseLocked)):
        DirectoryLock(tmp_path)
    DirectoryLock(tmp_path / "none", read_only=True).close()
    assert not (tmp_path / "none").exists()


def test_a_note_nobody_can_read_is_no_reason_to_fail(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path) as lock:
        lock.path.write_bytes(b"\xff\x00 not json")
        with pytest.raises(DatabaseLocked, match="another process"):
            DirectoryLock(tmp_path)


@needs_mount
def test_on_a_read_only_disk(tmp_path: Path) -> None:
    with small_filesystem(tmp_path / "small", 1 << 20) as folder:
        remount(folder, read_only=True)
        with pytest.raises(StorageReadOnly):
            DirectoryLock(folder)
        DirectoryLock(folder, read_only=True).close()
        remount(folder, read_only=False)
