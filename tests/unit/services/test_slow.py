"""Which queries the slow-query log writes, what a line says, and how many lines there may be."""

import numpy as np
import pytest

from vecdb.core.calls import Call
from vecdb.core.filters import parse
from vecdb.core.query import Cost, Matches, QueryRequest, QueryResult
from vecdb.services.slow import FILTER_CHARS, SlowQueries


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    wall = monotonic

    def sleep(self, seconds: float) -> None:
        raise AssertionError(seconds)


class Log:
    def __init__(self, threshold_ms: float = 100.0, per_minute: int = 60) -> None:
        self.lines: list[dict] = []
        self.counted: list[str] = []
        self.clock = Clock()
        self.slow = SlowQueries(threshold_ms, self._write, self.clock, counted=self.counted.append,
                                per_minute=per_minute)

    def _write(self, event: str, fields: dict) -> None:
        assert event == "slow_query"
        self.lines.append(fields)

    def look(self, queue_ms: float, compute_ms: float, plan=None, **options) -> None:
        request = QueryRequest(np.zeros((2, 4), np.float32), 10, **options)
        found = Matches([1, 2, 3], np.zeros(3, np.float32))
        self.slow.look("docs", request, QueryResult([found, found], plan), Cost(queue_ms, compute_ms, 7, 11, 13),
                       Call(request_id="r1", principal="key-7"))


def test_waiting_counts_as_much_as_computing():
    log = Log()
    log.look(99.0, 1.0)
    log.look(99.0, 1.1)
    log.look(0.0, 100.1)
    assert [line["took_ms"] for line in log.lines] == [100.1, 100.1]
    assert log.counted == ["docs"] * 2


def test_a_line_says_what_was_asked_and_where_the_time_went():
    log = Log()
    plan = {"k": 10, "segments": [{"strategy": "beam"}]}
    log.look(150.0, 50.0, plan, ef_search=80, filter=parse("year >= 2020"), include_metadata=True)
    assert log.lines == [{
        "collection": "docs", "rows": 2, "k": 10, "ef_search": 80, "include_metadata": True, "queue_ms": 150.0,
        "compute_ms": 50.0, "batched": 7, "hops": 11, "comparisons": 13, "results": 6, "request_id": "r1",
        "principal": "key-7", "filter": "year >= 2020", "plan": plan, "took_ms": 200.0}]


def test_long_filters_and_plans_are_cut():
    log = Log()
    log.look(0, 200, {"segments": [{"segment": number} for number in range(50)]},
             filter=parse(" or ".join(f"f{number} == 'some words'" for number in range(200))))
    log.look(0, 200, filter=parse(f"not (a in {list(range(5_000))} and b == 1)"))
    first, second = log.lines
    assert len(first["filter"]) == FILTER_CHARS + 1
    assert len(first["plan"]["segments"]) == 8
    assert first["plan"]["segments_left_out"] == 42
    assert second["filter"] == "(5001 values of a, b)"


def test_a_flood_is_counted_and_not_written():
    log = Log(per_minute=3)
    for _ in range(10):
        log.look(0, 200)
    assert len(log.lines) == 3
    assert len(log.counted) == 10
    log.clock.now = 60.0
    log.look(0, 200)
    log.look(0, 200)
    assert log.lines[3]["left_out"] == 7
    assert "left_out" not in log.lines[4]


def test_no_threshold_no_lines():
    log = Log(threshold_ms=0.0)
    log.look(0, 1e9)
    assert log.lines == log.counted == []
    assert not log.slow.wants_plan(1e9)


@pytest.mark.parametrize(("expected_s", "wanted"), [(0.0, False), (0.005, False), (0.01, True), (1.0, True)])
def test_plans_are_wanted_of_what_may_be_slow(expected_s, wanted):
    assert Log().slow.wants_plan(expected_s) is wanted
