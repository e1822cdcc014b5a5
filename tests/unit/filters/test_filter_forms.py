"""Three forms, one tree; text that parses back; errors that say where."""

import datetime as dt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import filter_strategies as random_filters
from vecdb.core.errors import InvalidFilter
from vecdb.core.filters import F, from_mapping, parse, to_node, to_text
from vecdb.core.filters.paths import join_path, split_path
from vecdb.core.filters.tree import And, Compare, Everything, Exists, In, IsNull, Not, Op, Or, Prefix, Time
from vecdb.core.limits import MAX_FILTER_BYTES, MAX_FILTER_DEPTH, MAX_FILTER_NODES, MAX_IN_VALUES


@settings(max_examples=300, deadline=None)
@given(random_filters.nodes)
def test_text_parses_back_to_the_same_tree(node):
    canonical = to_node(node)
    text = to_text(canonical)
    again = parse(text, max_bytes=1 << 30)
    assert again == canonical
    assert repr(again) == repr(canonical)  # 1 == 1.0 == True: the kinds as well


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_key_can_be_written(keys):
    path = join_path(keys)
    assert split_path(path) == tuple(keys)
    assert parse(to_text(Exists(path))) == Exists(path)


@pytest.mark.parametrize(("text", "built", "mapping"), [
    ("year >= 2020", F.year >= 2020, {"year": {"$gte": 2020}}),
    ("year == 2020", F.year == np.int64(2020), {"year": 2020}),
    ("year != 2020", F.year != 2020, {"year": {"$ne": 2020}}),
    ("a.b < 1.5 and c > 'x'", (F.a.b < 1.5) & (F["c"] > "x"), {"a.b": {"$lt": 1.5}, "c": {"$gt": "x"}}),
    ("x in ['a', 1, null, true]", F.x.in_(["a", 1, None, True]), {"x": {"$in": ["a", 1, None, True]}}),
    ("x not in (1, 2)", F.x.not_in(np.array([1, 2])), {"x": {"$nin": (1, 2)}}),
    ("a == 1 or not b == 2", (F.a == 1) | ~(F.b == 2), {"$or": [{"a": 1}, {"$not": {"b": 2}}]}),
    ("not (a == 1 or b == 2)", ~((F.a == 1) | (F.b == 2)), {"$nor": [{"a": 1}, {"b": 2}]}),
    ("exists a.b", F["a.b"].exists(), {"a.b": {"$exists": True}}),
    ("a not exists", ~F.a.exists(), {"a": {"$exists": False}}),
    ("a is null", F.a.is_null(), {"a": {"$null": True}}),
    ("a == null", F.a == None, {"a": None}),  # noqa: E711
    ("t startswith 'x'", F.t.startswith("x"), {"t": {"$prefix": "x"}}),
    ("prefix(t, 'x')", F.t.startswith("x"), {"t": {"$prefix": "x"}}),
    ("contains(t, \"x\")", F.t.contains("x"), {"t": {"$contains": "x"}}),
    ("geo_radius(p, 52.5, 13, 1e3)", F.p.geo_radius(52.5, 13, 1000), {"p": {"$geo_radius": [52.5, 13, 1000]}}),
    ("geo_box(p, -1, 170, 1, -170)", F.p.geo_box(-1, 170, 1, -170),
     {"p": {"$geo_box": {"south": -1, "west": 170, "north": 1, "east": -170}}}),
    ("t > time('2024-01-01T00:00:00Z')", F.t > dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
     {"t": {"$gt": {"$time": "2024-01-01T00:00:00Z"}}}),
    ("`x.y`.z == 1", F["x\\.y"].z == 1, {"x\\.y.z": 1}),
    ("true", Everything(), {}),
])
def test_three_forms_one_tree(text, built, mapping):
    assert to_node(text) == to_node(built) == to_node(mapping)


def test_precedence_and_spelling():
    both = And((Compare("b", Op.EQ, 2), Not(Compare("c", Op.EQ, 3))))
    wanted = Or((Compare("a", Op.EQ, 1), both))
    assert parse("a == 1 or b == 2 and not c == 3") == wanted
    assert parse("a==1||b==2&&!c==3") == wanted
    assert parse("A == 1 OR b == 2 AND NOT c == 3") == Or((Compare("A", Op.EQ, 1), both))
    assert parse("2000 <= y < 2010") == And((Compare("y", Op.GE, 2000), Compare("y", Op.LT, 2010)))
    assert parse("5 == a") == Compare("a", Op.EQ, 5)
    assert parse("time > 3 and exists exists") == And((Compare("time", Op.GT, 3), Exists("exists")))
    assert parse("x == -0.5e-3") == Compare("x", Op.EQ, -0.0005)
    assert parse(r"x == '\u00e9\ud83d\ude00\n\''") == Compare("x", Op.EQ, "é\U0001f600\n'")
    assert parse("x == 123456789012345678901234567890").value == 123456789012345678901234567890


def test_a_mapping_of_many_conditions_is_their_and():
    assert from_mapping({"y": {"$gte": 1, "$not": {"$gt": 5}}, "$and": [{"a": "x"}]}) == And((
        And((Compare("y", Op.GE, 1), Not(Compare("y", Op.GT, 5)))), Compare("a", Op.EQ, "x")))
    assert from_mapping({"$or": []}) == Not(Everything())


@pytest.mark.parametrize(("text", "position"), [
    ("", 0), ("   ", 0), ("year", 4), ("year >=", 7), ("year = 5", 5), ("year >= 'x", 8), ("a == b", 5), ("1 == 2", 5),
    ("a < null", 4), ("a < true", 4), ("(a == 1", 7), ("a == 1)", 6), ("a in 5", 5), ("a in [1", 7), ("a in [1 2]", 8),
    ("a in [b]", 6), ("a is 5", 5), ("a like 'x'", 2), ("a == 1e999", 5), ("a == 1x", 6), ("a.", 2), ("a..b == 1", 2),
    ("a == 1 and", 10), ("a == 1 b == 2", 7), ("geo_radius(p, 95, 0, 1)", 0), ("geo_radius(p, 'x', 0, 1)", 14),
    ("geo_box(p, 5, 0, 1, 0)", 0), ("geo_radius(p, 1, 2)", 18), ("t > time('yesterday')", 9), ("in == 1", 0),
    (r"a == '\q'", 6), (r"a == '\ud800'", 5), (r"a == '\u12'", 6), ("a == 1 # b", 7), ("prefix(a, 5)", 10),
    ("5 not 'in' x", 2), ("a not 'in'", 2), ("``.a == 1", 0), ("(" * 65 + "a == 1" + ")" * 65, 64),
    ("not " * 65 + "a == 1", 256), ("a == " + "9" * 1001, 5), ("exists", 6), ("exists(a", 8),
])
def test_an_error_says_where(text, position):
    with pytest.raises(InvalidFilter) as caught:
        parse(text)
    assert caught.value.position == position


@pytest.mark.parametrize("value", [
    5, ["year"], F.year, object(), b"a == 1", {"year": {"$foo": 1}}, {"year": {}}, {"year": [1]}, {"$foo": []},
    {"$and": {"a": 1}}, {"a": {"b": 1}}, {1: 2}, {"a": {"$in": 5}}, {"a": {"$in": "abc"}}, {"a": {"$exists": 1}},
    {"a": {"$gt": None}}, {"a": {"$geo_radius": [1, 2]}}, {"a": {"$geo_box": {"south": 1}}}, {"a": float("nan")},
    {"a": {"$lt": float("inf")}}, {"a": {"$time": "x"}}, {"a": "\ud800"}, {"": 1}, {"a..b": 1}, {"a": {"$prefix": 5}},
    Compare("a", "~", 1), Compare("a", Op.EQ, [1]), Compare(5, Op.EQ, 1), And((1,)), In("a", "abc"), Prefix("a", None),
    IsNull(""), Time(5), {"a": "x" * (MAX_FILTER_BYTES + 1)}, "x" * (MAX_FILTER_BYTES + 1), {"a": 1 << 4000},
    {"a": {"$geo_radius": [float("nan"), 0, 1]}}, {"a": {"$geo_radius": [10**400, 0, 1]}},
])
def test_what_is_no_filter_is_refused(value):
    with pytest.raises(InvalidFilter):
        to_node(value)


@pytest.mark.parametrize("use", [
    lambda: bool(F.a == 1), lambda: (F.a == 1) and (F.b == 2), lambda: 1 < F.a < 5, lambda: F.a in [1],
    lambda: (F.a == 1) & True, lambda: F.a == F.b, lambda: F.a < None, lambda: bool(F.a), lambda: F[""],
    lambda: F.a.in_("abc"), lambda: F.a == {1}, lambda: F.a.geo_radius("x", 0, 1),
])
def test_misuse_of_the_builder_is_refused(use):
    with pytest.raises(InvalidFilter):
        use()


def test_the_limits_hold_in_every_form():
    condition = Compare("a", Op.EQ, 1)
    deep = condition
    for _ in range(MAX_FILTER_DEPTH):
        deep = Not(deep)
    nested: dict = {"a": 1}
    for _ in range(10_000):
        nested = {"$not": nested}
    cyclic: dict = {}
    cyclic["$and"] = [cyclic]
    for value in (deep, nested, cyclic, Or((condition,) * (MAX_FILTER_NODES + 1)),
                  " or ".join(["a==1"] * (MAX_FILTER_NODES + 1)), {"$or": [{"a": 1}] * (MAX_FILTER_NODES + 1)},
                  {"a": {"$in": range(MAX_IN_VALUES + 1)}}, In("a", (1,) * (MAX_IN_VALUES + 1))):
        with pytest.raises(InvalidFilter) as caught:
            to_node(value)
        assert caught.value.fields["limit"] is not None
    assert to_node(" or ".join(["a==1"] * MAX_FILTER_NODES)) is not None
    assert to_node(deep.node) == deep.node


@pytest.mark.parametrize("value", [
    {"." * 10**6: 1}, {"$" + "x" * 10**6: 1}, {"a": {"x" * 10**6: 1}}, {"y" * 60_000: {"x" * 10**6: 1}},
    {"x" * 10**6: 1}, {"y" * 60_000: []}, {"y" * 60_000: {"$in": 5, "$exists": 1}}, {"a": {"$time": "x" * 10**6}},
    {"a": {"$in": ["x"] * 10**6}}, {"a": {"$in": [["x"] * 10**6]}}, "a." * 30_000, "`" + "x" * 60_000,
    "=" * 60_000, {"a": {"$geo_box": {"x" * 10**6: 1}}}])
def test_an_error_repeats_only_the_beginning_of_what_is_far_too_long(value):
    with pytest.raises(InvalidFilter) as caught:
        to_node(value)
    assert len(str(caught.value)) < 600
    assert len(repr(caught.value.fields)) < 600


def test_a_long_chain_of_the_builder_is_wide_not_deep():
    chain = F.a == 0
    for number in range(200):
        chain = chain | (F.a == number)
    node = to_node(chain)
    assert isinstance(node, Or)
    assert len(node.nodes) == 201


def test_a_time_without_zone_is_utc_in_every_form():
    at = dt.datetime(2024, 1, 31, 12)
    utc = F.t > at.replace(tzinfo=dt.UTC)
    for form in (F.t > at, {"t": {"$gt": at}}, {"t": {"$gt": {"$time": "2024-01-31T12:00:00"}}},
                 "t > time('2024-01-31T12:00:00')", "t > time('2024-01-31 12:00:00.0')"):
        assert to_node(form) == to_node(utc)


def test_a_long_list_has_room_in_the_forms_that_are_no_text():
    values = list(range(10**9, 10**9 + 20_000))
    with pytest.raises(InvalidFilter, match="the mapping form and F take"):
        to_node(f"a in {values}")
    assert to_node({"a": {"$in": values}}) == to_node(F.a.in_(values))


def test_none_is_no_filter_and_a_tree_is_itself():
    assert to_node(None) is None
    assert to_node(And((Compare("a", Op.EQ, None),))) == IsNull("a")
    assert to_node(Or(())) == Not(Everything())
