"""Token buckets against a bucket that is filled by small steps, and the byte budget."""

import threading
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb.core.access import Principal
from vecdb.core.errors import Overloaded
from vecdb.rpc.rates import InflightBytes, RateLimiter


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def caller(id: str = "k", **named: str) -> Principal:
    return Principal(id, "name", (), **named)


def refusal(limiter: RateLimiter, cost: float) -> float:
    """The wait that was told; 0: it was let in."""
    try:
        limiter.take(caller(), cost)
    except Overloaded as error:
        return float(error.fields["retry_after_s"])
    return 0.0


@given(st.integers(1, 8), st.integers(0, 6),
       st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=60))
def test_it_is_a_token_bucket(rate: int, burst: int, calls: list[tuple[int, int]]) -> None:
    """Times and costs are multiples of 1/8 and 1/2, which floats hold exactly; divisions by ``rate`` they need not."""
    clock = Clock()
    limiter = RateLimiter(rate, burst, clock)
    size = Fraction(burst or max(1, rate))
    tokens = size
    for eighths, halves in calls:
        clock.now += eighths / 8
        tokens = min(size, tokens + Fraction(eighths, 8) * rate)
        cost = Fraction(halves, 2)
        missing = min(cost, size) - tokens
        wait = refusal(limiter, float(cost))
        if wait:
            assert missing > 0
            assert wait == pytest.approx(float(missing / rate), abs=2e-3)
        else:
            assert missing <= Fraction(1, 10**6)
            tokens -= cost


def test_waiting_as_long_as_told_is_enough() -> None:
    clock = Clock()
    limiter = RateLimiter(3.0, 1.0, clock)
    for _ in range(50):
        limiter.take(caller())
        with pytest.raises(Overloaded, match=r"name\[k\] calls more than 3 times a second") as caught:
            limiter.take(caller())
        clock.now += caught.value.fields["retry_after_s"] + 0.001


def test_each_caller_has_its_own_and_no_rate_is_no_limit() -> None:
    limiter = RateLimiter(1.0, 1.0, Clock())
    callers = [caller("a"), caller("b"), caller("", certificate="c"), caller("", address="10.0.0.1"),
               caller("", address="10.0.0.2")]
    for one in callers:
        limiter.take(one)
    for one in callers:
        with pytest.raises(Overloaded):
            limiter.take(one)
    free = RateLimiter(0.0, 5.0, Clock())
    for _ in range(1_000):
        free.take(caller())
    assert len(free) == 0


def test_those_seen_last_are_remembered() -> None:
    limiter = RateLimiter(1.0, 1.0, Clock(), most=10)
    limiter.take(caller("busy"), 50.0)
    for number in range(1_000):
        limiter.take(caller(f"passer-by {number}"))
        if number % 5 == 0:
            with pytest.raises(Overloaded):
                limiter.take(caller("busy"))
    assert len(limiter) == 10


def test_bytes_are_held_up_to_the_limit_and_one_alone_passes_it() -> None:
    budget = InflightBytes(100)
    with budget.held(60):
        with budget.held(40):
            with pytest.raises(Overloaded, match="inflight_bytes") as caught:
                budget.acquire(1)
            assert caught.value.fields["retry_after_s"] > 0
        budget.acquire(40)
        budget.release(40)
    with budget.held(1_000), pytest.raises(Overloaded):
        budget.acquire(1)
    assert budget.used == 0
    with pytest.raises(ZeroDivisionError), budget.held(50):
        raise ZeroDivisionError
    assert budget.used == 0


def test_threads_share_a_budget() -> None:
    budget, passed = InflightBytes(10), [0]

    def work() -> None:
        for _ in range(2_000):
            try:
                with budget.held(3):
                    passed[0] += 1
            except Overloaded:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.used == 0
    assert passed[0] > 0
