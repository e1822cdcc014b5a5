"""Thunks run to completion, on threads, from threads, from within thunks; the first error comes out."""

import threading
from collections.abc import Callable

import pytest

from vecdb.core.errors import DatabaseClosed, InvalidArgument
from vecdb.runtime.pool import KernelPool, available_cores


def marker(done: list[int], number: int) -> Callable[[], None]:
    return lambda: done.append(number)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_everything_runs_once(threads: int, count: int) -> None:
    done: list[int] = []
    with KernelPool(threads) as pool:
        pool.run([marker(done, number) for number in range(count)])
    assert sorted(done) == list(range(count))


def test_thunks_run_side_by_side_and_the_caller_takes_part() -> None:
    meet = threading.Barrier(3, timeout=20)
    names: list[str] = []

    def thunk() -> None:
        meet.wait()
        names.append(threading.current_thread().name)

    with KernelPool(3) as pool:
        pool.run([thunk] * 3)
    assert len(set(names)) == 3
    assert threading.current_thread().name in names


def test_no_more_threads_than_asked() -> None:
    seen: set[str] = set()
    with KernelPool(2) as pool:
        pool.run([lambda: seen.add(threading.current_thread().name)] * 200)
    assert len(seen) <= 2


def test_runs_nest_and_come_from_many_threads_without_deadlock() -> None:
    done: list[int] = []

    def outer() -> None:
        pool.run([lambda: pool.run([marker(done, 1)] * 3)] * 3)

    with KernelPool(2) as pool:
        callers = [threading.Thread(target=lambda: pool.run([outer] * 3), daemon=True) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(60)
        assert not any(caller.is_alive() for caller in callers)
    assert len(done) == 4 * 3 * 3 * 3


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_comes_out_after_running_ones_end(threads: int) -> None:
    begun: list[int] = []
    ended: list[int] = []
    failing = threading.Event()

    def fail() -> None:
        begun.append(0)
        failing.set()
        raise ZeroDivisionError("first")

    def slow() -> None:
        begun.append(1)
        failing.wait(20)
        ended.append(1)

    with KernelPool(threads) as pool:
        with pytest.raises(ZeroDivisionError, match="first"):
            pool.run([fail, slow, *[slow] * 100])
        assert len(ended) == begun.count(1)
        assert len(begun) < 102
        pool.run([marker(ended, 9)])


def test_submit_and_close() -> None:
    pool = KernelPool(2)
    assert pool.submit(divmod, 7, 2).result(20) == (3, 1)
    pool.close()
    pool.close()
    with pytest.raises(DatabaseClosed):
        pool.submit(divmod, 7, 2)
    with pytest.raises(DatabaseClosed):
        pool.run([lambda: None] * 2)


def test_threads_are_the_cores_unless_said() -> None:
    with KernelPool() as pool:
        assert pool.threads == available_cores() >= 1
    with pytest.raises(InvalidArgument):
        KernelPool(-1)


@pytest.mark.parametrize(("threads", "parts"), [(1, [1, 1, 1]), (2, [2, 1, 1]), (8, [8, 4, 2])])
def test_who_comes_while_others_are_at_work_takes_a_share(threads, parts):
    with KernelPool(threads) as pool:
        for _ in range(2):
            with pool.sharing as first, pool.sharing as second, pool.sharing as third:
                assert [first, second, third] == parts


def test_a_share_is_given_back_by_work_that_failed():
    with KernelPool(2) as pool:
        with pytest.raises(ZeroDivisionError), pool.sharing:
            raise ZeroDivisionError
        with pool.sharing as parts:
            assert parts == 2
