"""The policy of rewriting segments, on made-up views."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from vecdb.segment.growing import GrowingView
from vecdb.segment.sealed import SealedView
from vecdb.shard.upkeep import UpkeepPolicy, full_rewrite, next_rewrite

POLICY = UpkeepPolicy(base=100, merge_factor=4, max_segment_records=10_000, dead_fraction=0.25)


@dataclass
class Named:
    segment_id: int


class Sealed(SealedView):
    """A sealed view of so many records, some dead, some damaged."""

    def __new__(cls, *_: object, **__: object) -> "Sealed":
        return object.__new__(cls)

    def __init__(self, place: int, count: int, dead: int = 0, lost: int = 0) -> None:
        put = object.__setattr__
        put(self, "segment", Named(place))
        put(self, "live_count", count - dead)
        put(self, "_count", count)
        put(self, "_lost", lost)

    __slots__ = ("_count", "_lost")

    @property
    def count(self) -> int:
        return self._count

    def lost(self) -> np.ndarray:
        return np.arange(self._lost, dtype=np.int32)


def growing(place: int, count: int = 0) -> GrowingView:
    return GrowingView(Named(place), count, np.zeros(0, np.uint64), count)


def plan(*views: object) -> tuple[str, tuple[int, ...]] | None:
    found = next_rewrite(views, POLICY)
    return None if found is None else (found.kind, found.key)


def test_nothing_to_do() -> None:
    assert plan(growing(0)) is None
    assert plan(Sealed(0, 100), Sealed(1, 100), Sealed(2, 100), growing(3, 50)) is None


def test_a_frozen_segment_is_sealed_first() -> None:
    assert plan(Sealed(0, 100, dead=90), growing(1, 100), growing(2)) == ("seal", (1,))


def test_dead_records_make_a_segment_worth_rewriting() -> None:
    assert plan(Sealed(0, 100, dead=25), growing(1)) is None
    assert plan(Sealed(0, 100, dead=26), growing(1)) == ("compact", (0,))


def test_decayed_neighbours_are_rewritten_together() -> None:
    views = [Sealed(0, 100, dead=90), Sealed(1, 100), Sealed(2, 100, dead=90), Sealed(3, 100, dead=30), growing(9)]
    assert plan(*views) == ("compact", (2, 3))


def test_under_churn_the_dead_go_before_the_new_are_sealed() -> None:
    dead = [Sealed(place, 100, dead=100) for place in range(5)]
    assert plan(*dead, growing(7, 100), growing(8)) == ("compact", (0, 1, 2, 3, 4))
    assert plan(Sealed(0, 100, dead=90), growing(7, 100), growing(8)) == ("seal", (7,))


def test_neighbours_of_a_size_are_merged() -> None:
    four = [Sealed(place, 100) for place in range(4)]
    assert plan(*four, growing(9)) == ("merge", (0, 1, 2, 3))
    assert plan(Sealed(0, 5_000), *four, growing(9)) == ("merge", (0, 1, 2, 3))
    assert plan(*four[:2], Sealed(7, 5_000), *four[2:], growing(9)) is None


def test_damaged_segments_are_left_alone() -> None:
    views = [Sealed(0, 100), Sealed(1, 100), Sealed(2, 100, lost=1), Sealed(3, 100), Sealed(4, 100), growing(9)]
    assert plan(*views) is None
    assert plan(Sealed(0, 100, dead=90, lost=1), growing(1)) is None
    assert [found.key for found in full_rewrite(views, POLICY)] == [(0, 1), (3, 4)]


@pytest.mark.parametrize("sizes", [[100], [100, 100, 100], [6_000, 3_000, 2_000, 100], [10_000, 1]])
def test_optimize_ends_with_as_few_as_the_limit_allows(sizes: list[int]) -> None:
    views: list = [Sealed(place, size) for place, size in enumerate(sizes)]
    for todo in full_rewrite([*views, growing(99)], POLICY):
        first = next(place for place, view in enumerate(views) if view.segment.segment_id == todo.key[0])
        joined = sum(view.live_count for view in todo.views)
        assert joined <= POLICY.max_segment_records
        views[first : first + len(todo.views)] = [Sealed(1_000 + joined, joined)]
    assert full_rewrite([*views, growing(99)], POLICY) == []
    assert sum(view.live_count for view in views) == sum(sizes)
    for left, right in pairwise(views):
        assert left.live_count + right.live_count > POLICY.max_segment_records
