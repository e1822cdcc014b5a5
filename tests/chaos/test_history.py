"""The judges see what is wrong: small histories that no honest shard could give."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.history import (
    UNKNOWN,
    Event,
    Violated,
    appended,
    check_own,
    check_shared,
    gap_after,
    load,
)


def upsert(value: int, start: float, end: float = UNKNOWN, was: bool = False, key: int = 1, client: str = "a") -> Event:
    return Event(1, client, "upsert", key, value, start, end, was, error="" if end != UNKNOWN else "Unavailable")


def read(result: list[int] | None, start: float, end: float, key: int = 1) -> Event:
    return Event(1, "r", "read", key, 0, start, end, result)


def update(value: int, start: float, end: float, was: bool) -> Event:
    return Event(1, "a", "update", 1, value, start, end, was)


def delete(start: float, end: float, was: bool) -> Event:
    return Event(1, "a", "delete", 1, 0, start, end, was)


def test_a_plain_history_is_explained() -> None:
    events = [upsert(1, 0, 1), read([1, 1], 2, 3), update(2, 4, 5, True), read([1, 2], 6, 7), delete(8, 9, True),
              read(None, 10, 11), update(3, 12, 13, False), upsert(4, 14, 15, False), read([4, 4], 16, 17)]
    assert check_shared(events) == {"keys": 1, "operations": 9}


def test_overlapping_writes_may_stand_in_either_order() -> None:
    check_shared([upsert(1, 0, 5), upsert(2, 0, 5, True, client="b"), read([2, 2], 6, 7)])
    check_shared([upsert(1, 0, 5, True), upsert(2, 0, 5, client="b"), read([1, 1], 6, 7)])


@pytest.mark.parametrize("events", [
    [upsert(1, 0, 1), read(None, 2, 3)],
    [upsert(1, 0, 1), upsert(2, 2, 3, True), read([1, 1], 4, 5)],
    [upsert(1, 0, 1), upsert(2, 0, 9, True, client="b"), read([2, 2], 2, 3), read([1, 1], 4, 5)],
    [upsert(1, 0, 1), delete(2, 3, True), read([1, 1], 4, 5)],
    [upsert(1, 0, 1), update(2, 2, 3, True), read([1, 1], 4, 5)],
    [upsert(1, 0, 1), delete(2, 3, False)],
    [upsert(1, 0, 1, True)],
    [upsert(1, 0, 1), upsert(1, 2, 3, False)],
    [upsert(1, 0, 1), update(2, 2, 3, False)],
    [upsert(1, 0), read([1, 1], 1, 2), read(None, 3, 4)],
    [upsert(1, 2, 3), read([1, 1], 0, 1)],
], ids=["lost", "stale", "back and forth", "undeleted", "update lost", "deleted nothing", "was there", "twice new",
        "updated nothing", "unsure and gone", "from the future"])
def test_what_cannot_be_is_seen(events: list[Event]) -> None:
    with pytest.raises(Violated, match="key 1 is not linearizable"):
        check_shared(events)


def test_a_write_without_an_answer_may_happen_never_or_late() -> None:
    check_shared([upsert(1, 0), read(None, 1, 2), read([1, 1], 3, 4)])
    check_shared([upsert(1, 0), read(None, 1, 2), read(None, 3, 4)])


def test_session_reads_see_what_was_acknowledged_to_them() -> None:
    own = [Event(1, "a", "own", 5, 10, 0, 1, False), Event(1, "a", "own", 5, 11, 2, 3, True)]
    seen = Event(1, "a", "session", 5, 0, 4, 5, [11, 11], floor=11)
    assert check_own([*own, seen]) == {"session_reads": 1}
    for result in ([10, 10], None):
        with pytest.raises(Violated, match="older than what the session knew"):
            check_own([*own, replace(seen, result=result)])
    check_own([*own, replace(seen, result=[10, 10], floor=10)])
    with pytest.raises(Violated, match="nobody wrote"):
        check_own([*own, replace(seen, result=[12, 12])])


def test_appended_records_are_there_once_and_stay() -> None:
    events = [Event(1, "a", "append", 1, 7, 0, 1, False), Event(1, "a", "append", 2, 8, 0, 1, False),
              Event(1, "a", "append", 3, 9, 0, 1, error="Unavailable"), Event(1, "a", "remove", 2, 0, 2, 3, True)]
    told = appended(events)
    told.check({1: 7}, "n1")
    told.check({1: 7, 3: 9}, "n1")
    for found, why in (({}, "lost"), ({1: 8}, "not what was written"), ({1: 7, 2: 8}, "deleted records are there"),
                       ({1: 7, 4: 1}, "nobody wrote")):
        with pytest.raises(Violated, match=why):
            told.check(found, "n1")


def test_a_gap_counts_from_a_write_begun_after_the_fault() -> None:
    events = [upsert(1, 0, 10), upsert(2, 6, UNKNOWN), upsert(3, 7, 8.5), read(None, 5.5, 5.6)]
    assert gap_after(events, 5.0) == 3.5
    assert gap_after(events, 9.0) is None


def test_events_come_back_from_their_lines(tmp_path: Path) -> None:
    events = [upsert(1, 0, 1), replace(upsert(2, 3), end=4), read([1, 2], 5, 6)]
    file = tmp_path / "events"
    file.write_text("".join(event.line() + "\n" for event in events) + '{"round": 1, "cli', encoding="utf-8")
    upto, found = load(file)
    assert found == events
    assert not found[1].ok
    assert load(file, upto) == (upto, [])
