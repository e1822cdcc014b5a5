"""The planner picks by cost, and never needs matches that do not exist."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb.core.limits import MAX_EF
from vecdb.metadata.selectivity import EXACT_BUDGET_US, choose, exact_us


def plan(part, count=1_000_000, **options):
    figures = {"k": 10, "ef": 64, "row_bytes": 448, "live": count, "matches": int(count * part), "count": count}
    return choose(**figures | options)


def test_the_narrower_the_filter_the_more_exact():
    assert plan(1.0, filtered=False).kind == "beam"
    assert plan(1.0).kind == "beam"
    assert plan(0.98).kind == "beam_then_filter"
    assert plan(0.5).kind == "filtered_beam"
    assert plan(0.1).kind == "filtered_beam"
    assert plan(0.01).kind == "exact"
    assert plan(0.001).kind == "exact"
    assert plan(0.9, count=1_000_000, matches=300, live=300, filtered=False).kind == "exact"  # nearly all are dead


def test_small_segments_and_cheap_rows_are_scanned():
    assert [plan(part, count=50_000).kind for part in (0.5, 0.1, 0.01)] == ["exact"] * 3
    assert plan(0.1, row_bytes=64).kind == "exact"
    assert plan(0.1, queries=64).kind == "exact"
    assert plan(0.1, row_bytes=16_384).kind == "filtered_beam"


def test_the_narrower_the_filter_the_wider_its_beam():
    widths = [plan(part, count=50_000_000).ef for part in (0.5, 0.05, 0.02, 0.01, 0.003)]
    assert widths[0] == widths[1] == 128
    assert widths == sorted(widths)
    assert widths[-1] == 8 * 64


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 50_000_000), st.floats(0, 1), st.floats(0, 1), st.integers(1, 10_000), st.integers(1, MAX_EF),
       st.integers(1, 131_072), st.booleans())
def test_any_figures_give_a_plan_that_can_be_carried_out(count, alive, part, k, ef, row_bytes, filtered):
    live = int(count * alive)
    matches = int(live * part)
    strategy = choose(count=count, live=live, matches=matches, k=k, ef=ef, row_bytes=row_bytes, filtered=filtered)
    assert strategy.reason
    assert strategy.numbers["exact_us"] >= 0
    if strategy.kind == "exact":
        assert strategy.ef == 0
    else:
        assert matches > k
        assert k <= strategy.ef <= MAX_EF
        assert max(ef, k) <= strategy.ef
    if filtered and exact_us(matches, row_bytes) <= EXACT_BUDGET_US and matches < 0.9 * count:
        assert strategy.kind == "exact"


def test_equal_figures_give_equal_plans():
    assert plan(0.3) == plan(0.3)
    assert plan(0.3).numbers == plan(0.3).numbers
