"""When a failed call is tried again."""

import time

import pytest

from vecdb.client.remote.retry import HINT_MOST_S, MOST_S, Attempts, Budget
from vecdb.core.errors import Overloaded


@pytest.mark.parametrize("hint", [3_600.0, 10 ** 9, float("inf")])
def test_a_servers_hint_is_obeyed_up_to_a_bound(hint: float) -> None:
    wait = Attempts(3, Budget(), None).delay(Overloaded("full", retry_after_s=hint))
    assert wait is not None
    assert HINT_MOST_S <= wait <= HINT_MOST_S + MOST_S


def test_a_short_hint_is_a_lower_bound_and_nonsense_is_none() -> None:
    attempts = Attempts(9, Budget(), None)
    wait = attempts.delay(Overloaded("full", retry_after_s=5))
    assert wait is not None
    assert 5.0 <= wait <= 5.0 + MOST_S
    for hint in (-5.0, float("nan"), "5", None):
        wait = attempts.delay(Overloaded("full", retry_after_s=hint))
        assert wait is not None
        assert wait <= MOST_S


def test_a_hint_beyond_the_deadline_is_final() -> None:
    attempts = Attempts(3, Budget(), time.monotonic() + 600.0)
    assert attempts.delay(Overloaded("full", retry_after_s=601.0)) is None
    assert attempts.delay(Overloaded("full", retry_after_s=60.0)) is not None
