"""Threads that a replica's work goes to."""

import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

from vecdb.raft.workers import Workers
from vecdb.serving.stopping import _at_work


def test_work_is_done_in_order_and_its_end_told_in_the_thread():
    workers, told, over = Workers(1, "test"), [], threading.Event()

    def fails():
        raise KeyError("no")

    for number in range(100):
        workers.post(lambda number=number: number, lambda result, error: told.append((result, error)))
    workers.post(fails, lambda result, error: told.append((result, type(error))))
    workers.post(threading.current_thread, lambda result, error: (told.append(result.name), over.set()))
    assert over.wait(60)
    assert told == [*((number, None) for number in range(100)), (None, KeyError), "test_0"]
    workers.shutdown()


def test_as_many_work_at_once_as_there_are_threads():
    workers, together = Workers(3, "test"), threading.Barrier(4)
    for _ in range(3):
        workers.post(lambda: together.wait(60), lambda result, error: None)
    together.wait(60)
    workers.shutdown()


def test_shut_down_it_has_done_what_it_was_asked_and_takes_no_more():
    workers, done = Workers(2, "test"), []
    for number in range(50):
        workers.post(lambda number=number: done.append(number), lambda result, error: None)
    workers.shutdown()
    assert sorted(done) == list(range(50))
    with pytest.raises(RuntimeError, match="shut down"):
        workers.post(print, lambda result, error: None)


def test_a_system_that_gives_no_thread_is_asked_again(monkeypatch):
    def refuses(thread):
        raise RuntimeError("can't start new thread")

    workers, over = Workers(1, "test"), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuses)
        with pytest.raises(RuntimeError, match="can't start"):
            workers.post(lambda: None, lambda result, error: None)
    workers.post(lambda: None, lambda result, error: over.set())
    assert over.wait(60)
    workers.shutdown()


def test_threads_that_wait_for_work_hold_no_stop_up():
    workers, over = Workers(2, "test"), threading.Event()
    workers.post(lambda: None, lambda result, error: over.set())
    assert over.wait(60)
    end = time.monotonic() + 60
    while any("workers" in one for one in _at_work()) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any("workers" in one for one in _at_work())
    workers.shutdown()


def test_what_was_worked_with_is_not_kept_until_the_next():
    class Something:
        pass

    workers, over = Workers(1, "test"), threading.Event()
    thing = Something()
    kept = weakref.ref(thing)
    workers.post(lambda thing=thing: thing, lambda result, error: None)
    workers.post(lambda: None, lambda result, error: over.set())
    assert over.wait(60)
    del thing
    gc.collect()
    assert kept() is None
    workers.shutdown()


def test_an_interpreter_that_ends_waits_for_what_is_under_way(tmp_path):
    code = f"""
import time
from vecdb.raft.workers import Workers
workers = Workers(1, "test")
workers.post(lambda: (time.sleep(0.5), open({str(tmp_path / 'done')!r}, "w").close()), lambda result, error: None)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (tmp_path / "done").exists()
