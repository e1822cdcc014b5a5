"""Which log is the newest, though the directory is not listed for every sync."""

import os

from vecdb.storage.synced import SETTLED_NS, SyncNote


def log(folder, number, size):
    (folder / f"{number:06d}.log").write_bytes(bytes(size))


def settle(folder):
    """As if the folder had changed long ago."""
    then = os.stat(folder).st_mtime_ns - 3 * SETTLED_NS
    os.utime(folder, ns=(then, then))


def test_sizes_are_of_now_and_another_log_is_found(tmp_path, monkeypatch):
    listed = []
    listing = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or listing(folder))
    note = SyncNote(tmp_path)
    assert note.newest() is None
    log(tmp_path, 7, 10)
    settle(tmp_path)
    assert note.newest() == (7, 10)
    log(tmp_path, 7, 30)
    before = len(listed)
    assert note.newest() == (7, 30)
    assert len(listed) == before, "nothing has come or gone"
    log(tmp_path, 12, 5)
    assert note.newest() == (12, 5)


def test_what_comes_in_the_same_instant_as_the_last_change_is_found(tmp_path):
    note = SyncNote(tmp_path)
    log(tmp_path, 7, 10)
    changed = os.stat(tmp_path).st_mtime_ns
    assert note.newest() == (7, 10)
    log(tmp_path, 8, 4)
    os.utime(tmp_path, ns=(changed, changed))
    assert note.newest() == (8, 4)


def test_a_log_that_has_gone_is_no_newest(tmp_path):
    note = SyncNote(tmp_path)
    log(tmp_path, 7, 10)
    log(tmp_path, 9, 10)
    settle(tmp_path)
    assert note.newest() == (9, 10)
    (tmp_path / "000009.log").unlink()
    settle(tmp_path)
    assert note.newest() in (None, (7, 10)), "the time the folder has is the one it had"
    assert note.newest() == (7, 10)
