"""How a body may come: on a loop whose clock goes to the next timer at once, so that minutes pass in no time."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.rpc.http.conftest import Door, Log, Watch
from vecdb.core.errors import DeadlineExceeded, Overloaded, VecdbError
from vecdb.ports.observer import Refusal
from vecdb.rpc.door import Guards
from vecdb.rpc.http.incoming import LONGEST_S, SLOWEST_BYTES_S, WINDOW_S, Incoming
from vecdb.rpc.http.replies import Refused

WINDOW = int(SLOWEST_BYTES_S * WINDOW_S)
MOST = 64 << 20


class Loop(asyncio.SelectorEventLoop):
    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        timers = [one.when() for one in self._scheduled if not one.cancelled()]  # type: ignore[attr-defined]
        if timers and not self._ready:  # type: ignore[attr-defined]
            self.now = max(self.now, min(timers))
        super()._run_once()  # type: ignore[misc]


class Sender:
    """Sends parts of (seconds of waiting before it, bytes)."""

    def __init__(self, parts: Iterator[tuple[float, int]]) -> None:
        self.parts = parts
        self.next: tuple[float, int] | None = next(parts)

    async def __call__(self) -> dict[str, Any]:
        assert self.next is not None
        wait_s, size = self.next
        await asyncio.sleep(wait_s)
        self.next = next(self.parts, None)
        return {"type": "http.request", "body": b"x" * size, "more_body": self.next is not None}


def read(parts: list[tuple[float, int]], door: Door | None = None, *, declared: int | None = None, most: int = MOST,
         deadline_s: float = 3_600.0) -> tuple[int | VecdbError, float, Watch, int]:
    """The length or the error, when it was known, who was told, and how much was held then."""
    door, watch, loop = door or Door(), Watch(), Loop()
    guards = Guards(door, door, door, Log(), watch, lambda error, request_id, method: None)
    before = door.held
    incoming = Incoming(guards)
    size = sum(size for _, size in parts) if declared is None else declared
    found: int | VecdbError
    try:
        body = loop.run_until_complete(incoming.read(Sender(iter(parts)), size, most, time.monotonic() + deadline_s))
        found = len(body)
        assert incoming.size == len(body) == door.held - before
    except VecdbError as error:
        found = error
    finally:
        loop.close()
    held = door.held - before
    incoming.release()
    incoming.release()
    assert door.held == before
    return found, loop.now, watch, held


@pytest.mark.parametrize("parts", [
    [(0.0, 10)], [(WINDOW_S * 0.99, 10)], [(0.0, WINDOW), (WINDOW_S * 0.99, 10)],
    [(WINDOW_S * 0.9, WINDOW)] * 5 + [(9.0, 1)], [(0.5, SLOWEST_BYTES_S)] * 200, [(0.0, 0), (0.0, 0)]])
def test_bodies_that_come_fast_enough(parts: list[tuple[float, int]]) -> None:
    assert read(parts)[0] == sum(size for _, size in parts)


@pytest.mark.parametrize(("parts", "at_s"), [
    ([(WINDOW_S * 1.01, 10)], WINDOW_S), ([(1.0, 40_000)] * 60, WINDOW_S), ([(0.0, WINDOW), (1e9, 1)], WINDOW_S),
    ([(0.1, WINDOW)] * 10 + [(1e9, 1)], WINDOW_S + 1.0)])
def test_bodies_that_come_slowly(parts: list[tuple[float, int]], at_s: float) -> None:
    found, now, _, held = read(parts)
    assert isinstance(found, Refused)
    assert (found.http, found.fields["limit"]) == (408, SLOWEST_BYTES_S)
    assert now == pytest.approx(at_s)
    assert held < sum(size for _, size in parts), "what has not come is not held"


def test_no_body_takes_longer_than_the_longest() -> None:
    found, now, _, _ = read([(1.0, 2 * SLOWEST_BYTES_S)] * 200)
    assert isinstance(found, Refused)
    assert (found.http, found.fields["limit"], now) == (408, LONGEST_S, LONGEST_S)


def test_a_deadline_ends_the_body_too() -> None:
    found, now, _, _ = read([(1.0, 2 * SLOWEST_BYTES_S)] * 200, deadline_s=30.0)
    assert isinstance(found, DeadlineExceeded)
    assert now == pytest.approx(30.0, abs=1.0)


def test_a_body_that_finds_no_room_is_refused_before_it_comes() -> None:
    door = Door()
    door.most, door.held = 1_000, 500
    found, now, watch, held = read([(1.0, 501)], door)
    assert isinstance(found, Overloaded)
    assert (now, held, watch.turned_away) == (0.0, 0, [Refusal.INFLIGHT_BYTES])


def test_a_body_without_a_length_is_refused_where_the_room_ends() -> None:
    door = Door()
    door.most = 1_000
    found, _, watch, held = read([(1.0, 400)] * 5, door, declared=0)
    assert isinstance(found, Overloaded)
    assert (held, watch.turned_away) == (800, [Refusal.INFLIGHT_BYTES])
    found, _, watch, held = read([(1.0, 400)] * 5, declared=0, most=700)
    assert isinstance(found, Refused)
    assert (found.http, held, watch.turned_away) == (413, 400, [Refusal.MESSAGE_BYTES])
