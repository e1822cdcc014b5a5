"""When a failed call is tried again."""

import time
from types import SimpleNamespace

import pytest

from vecdb.client.remote import retry
from vecdb.client.remote.calling import last_of
from vecdb.client.remote.retry import HINT_MOST_S, MOST_S, UNFOUNDED_S, Attempts, Budget, Failed
from vecdb.core.errors import DeadlineExceeded, NoNodeForReplica, Overloaded, Unavailable


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


def test_what_is_refused_for_the_lack_of_nodes_is_not_asked_again() -> None:
    attempts = Attempts(9, Budget(), None, addresses=3)
    assert attempts.after(Failed(NoNodeForReplica("2 shards have no other node"), decided=True, answered=True)) is None
    assert attempts.after(Failed(Unavailable("it starts"), decided=True, answered=True)) is not None


@pytest.mark.parametrize("unfounded", [True, False])
def test_a_cluster_that_is_not_founded_is_waited_for_for_a_moment_and_one_without_a_leader_for_longer(
        unfounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: now))
    said = Failed(Unavailable("waits", retry_after_s=0.2, **({"unfounded": True} if unfounded else {})), decided=True,
                  answered=True)
    silent = Failed(Unavailable("n3:7700 refuses"), decided=True, transport=True)
    attempts, tried = Attempts(20, Budget(most=100.0), now + 600.0, addresses=2), 0
    while (wait := attempts.after(silent if tried % 2 else said)) is not None:
        now += wait
        tried += 1
    if unfounded:
        assert 0 < tried < 40
        assert now <= 100.0 + UNFOUNDED_S
    else:
        assert tried == 40


def test_what_a_server_said_is_told_with_why_another_address_is_silent() -> None:
    silent = Failed(Unavailable("n3:7700 refuses", target="n3:7700"), decided=True, transport=True)
    waits = Unavailable("n1 waits for n3")
    told = last_of(silent, waits)
    assert (type(told), told.message) == (Unavailable, "n1 waits for n3 (n3:7700 refuses)")
    assert told.fields["target"] == "n3:7700"
    late = last_of(Failed(DeadlineExceeded("too late"), decided=True), waits)
    assert (type(late), late.message) == (DeadlineExceeded, "n1 waits for n3 (too late)")
    assert last_of(silent, None) is silent.error
    answered = Failed(Unavailable("n2 stops"), decided=True, answered=True)
    assert last_of(answered, waits) is answered.error
