"""Who left a group: what its leader says counts when it is committed."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from vecdb.ports.replicator import ReplicaStatus
from vecdb.serving.governing import LOOKS, is_member

ENTRY: Any = SimpleNamespace(group=7, desired=("n2", "n3"))
WITH = ReplicaStatus(me="n2/2", state="ok", role="leader", term=3, leader="n2/2", commit=9, applied=9, first=1, last=9,
                     log_bytes=0, voters=("n1/1", "n2/2", "n3/3"))
LEFT = replace(WITH, voters=("n2/2", "n3/3"), last=10)


def told(*answers: ReplicaStatus | None) -> tuple[bool, int]:
    """What is concluded from a leader's answers, one after the other and then the last; how often it was asked."""
    asked = 0

    async def leader(group: int, nodes: tuple[str, ...]) -> ReplicaStatus | None:
        nonlocal asked
        assert (group, nodes) == (7, ("n2", "n3"))
        asked += 1
        return answers[min(asked, len(answers)) - 1]

    return asyncio.run(is_member("n1", SimpleNamespace(leader=leader), ENTRY, pause_s=0.0)), asked


def test_who_is_counted_stays_and_who_is_not_told_does_too() -> None:
    assert told(WITH) == (True, 1)
    assert told(replace(LEFT, learners=("n1/8",))) == (True, 1)
    assert told(replace(LEFT, joining=("n1/8",))) == (True, 1)
    assert told(None) == (True, 1)


def test_who_left_for_good_goes() -> None:
    assert told(replace(LEFT, commit=10)) == (False, 1)


def test_a_change_that_is_not_committed_yet_is_waited_for() -> None:
    later = replace(LEFT, last=30, commit=10)  # more was written meanwhile
    assert told(LEFT, LEFT, later) == (False, 3)


@pytest.mark.parametrize("then", [None, replace(LEFT, term=4, commit=10), replace(WITH, commit=10)])
def test_a_change_that_may_be_lost_takes_nobody_out(then: ReplicaStatus | None) -> None:
    assert told(LEFT, then) == (True, 2)


def test_it_is_not_waited_for_ever() -> None:
    assert told(LEFT) == (True, LOOKS + 1)
