"""Upkeep gives way: its threads, and no others."""

import os
import sys
import threading

import pytest

from vecdb.runtime.clock import SystemClock
from vecdb.runtime.pool import KernelPool
from vecdb.services.jobs import JobRunner
from vecdb.services.priority import UPKEEP, give_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="setpriority takes a thread's id on Linux alone; "
                                "elsewhere give_way does nothing and has nothing to show")


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_only_the_calling_thread_gives_way():
    found, here = [], priority()

    def look():
        give_way(3)
        found.append(priority())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [3]
    assert priority() == here


def test_the_threads_of_upkeep_give_way_and_the_others_do_not():
    with KernelPool(3) as pool, KernelPool(3, begin=lambda: give_way(UPKEEP)) as upkeep:
        assert pool.submit(priority).result() == priority()
        assert upkeep.submit(priority).result() == UPKEEP


def test_background_jobs_give_way():
    found, done = [], threading.Event()

    def work(job):
        found.append(priority())
        done.set()

    runner = JobRunner(SystemClock(), lambda job, error: None)
    try:
        runner.submit("seal", "a", ("seal", 1), work)
        assert done.wait(20)
    finally:
        runner.close()
    assert found == [UPKEEP]
