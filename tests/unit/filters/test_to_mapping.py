"""``to_mapping`` is the inverse of ``from_mapping``, for every tree and at every depth."""

import json

import pytest
from hypothesis import given, settings

from tests.oracles import filter_strategies as fs
from vecdb.core.errors import InvalidFilter
from vecdb.core.filters import F, check_node, evaluate, from_mapping, parse, to_mapping, to_node, to_text
from vecdb.core.filters.tree import And, Compare, Everything, Exists, Not, Op, Or, Time
from vecdb.core.limits import MAX_FILTER_DEPTH

LEAF = Compare("a", Op.EQ, 1)


@settings(max_examples=250, deadline=None)
@given(fs.nodes, fs.records)
def test_the_tree_and_its_meaning_come_back(node, record):
    node = check_node(node)
    mapping = to_mapping(node)
    assert from_mapping(mapping) == node
    assert to_text(from_mapping(mapping)) == to_text(node)  # tells 1 from 1.0 and from true, which == does not
    assert evaluate(from_mapping(mapping), record) == evaluate(node, record)
    assert from_mapping(json.loads(json.dumps(mapping))) == node


def deep(kind, levels):
    node = LEAF
    for level in range(levels - 1):
        node = Not(node) if kind == "not" else (And, Or)[level % 2]((node, LEAF))
    return node


@pytest.mark.parametrize("kind", ["not", "and-or"])
def test_the_deepest_tree_goes_both_ways_and_one_level_more_is_refused(kind):
    whole = check_node(deep(kind, MAX_FILTER_DEPTH))
    assert from_mapping(to_mapping(whole)) == whole == parse(to_text(whole))
    with pytest.raises(InvalidFilter, match="deeper"):
        from_mapping(to_mapping(deep(kind, MAX_FILTER_DEPTH + 1)))


def test_joins_that_a_mapping_implies_count_as_levels_of_the_tree():
    value = {"a": 1, "b": 2}
    for _ in range(MAX_FILTER_DEPTH // 2 - 1):
        value = {"$or": [value, {"c": 3}], "d": 4}
    check_node(from_mapping(value))
    with pytest.raises(InvalidFilter, match="deeper"):
        from_mapping({"$or": [value, {"c": 3}], "d": 4})


@pytest.mark.parametrize("node", [
    Compare("$price", Op.GT, 3), Exists("$a.b"), Not(Compare("$", Op.EQ, "x")), Compare("a", Op.EQ, Time(0)),
    Everything(), Not(Everything()), And((Everything(), LEAF)),
])
def test_what_the_plain_form_cannot_say(node):
    assert from_mapping(to_mapping(node)) == node


def test_a_path_that_begins_with_a_dollar_sign():
    assert from_mapping({"$field": ["$price", {"$gt": 3, "$lt": 5}]}) == parse("`$price` > 3 and `$price` < 5")
    assert to_node({"$field": ["$price", {"$gt": 3}]}) == (F["$price"] > 3).node
    assert to_node({"$field": ["$price", 3]}) == Compare("$price", Op.EQ, 3)
    for wrong in ("$price", ["$price"], ["$price", 1, 2], {"$price": 1}, None):
        with pytest.raises(InvalidFilter, match="field"):
            from_mapping({"$field": wrong})
