"""Filters over the wire: short ones as expressions, long ones as JSON; hostile JSON refused; parsed once."""

import json
import threading

import pytest
from hypothesis import given, settings

from tests.oracles import filter_strategies as fs
from vecdb.core.errors import InvalidFilter
from vecdb.core.filters import check_node, evaluate, parse, to_text
from vecdb.core.filters.tree import Compare, Everything, In, Not, Op, Or, Time
from vecdb.core.limits import MAX_FILTER_BYTES, MAX_FILTER_JSON_BYTES, MAX_IN_VALUES
from vecdb.v1 import types_pb2 as pb
from vecdb.wire import jsons
from vecdb.wire.convert import filter_from_wire, filter_to_wire, some_filter_from_wire
from vecdb.wire.filters import EXPRESSION_BYTES, FilterCache, filter_from_mapping


def through(node):
    return filter_from_wire(pb.Filter.FromString(filter_to_wire(node).SerializeToString()))


@settings(max_examples=200, deadline=None)
@given(fs.nodes, fs.records)
def test_the_tree_and_its_meaning_come_back(node, record):
    node = check_node(node)
    got = through(node)
    assert to_text(got) == to_text(node)
    assert evaluate(got, record) == evaluate(node, record)


def test_none_is_an_empty_message():
    assert filter_to_wire(None).ByteSize() == 0
    assert filter_from_wire(pb.Filter()) is None


@pytest.mark.parametrize("values", [
    tuple(range(MAX_IN_VALUES)), tuple(f"value-{i}" for i in range(2_000)), tuple(Time(i) for i in range(2_000)),
    (10**900, -(10**400), 2**64, *range(2_000)), ("é\n\"\\", "\U0001f600", *map(str, range(2_000)), None, True, 1.5),
])
def test_long_lists_travel_as_json_exactly(values):
    node = check_node(Or((In("a", values), Not(Compare("$b", Op.EQ, 1)))))
    msg = filter_to_wire(node)
    assert msg.WhichOneof("form") == "json"
    assert to_text(through(node)) == to_text(node)


def test_short_ones_travel_as_expressions():
    node = parse("year >= 2020 and lang in ['en', 'de']")
    assert filter_to_wire(node).expression == to_text(node)
    assert len(to_text(node)) < EXPRESSION_BYTES


@pytest.mark.parametrize("data", [
    b"", b"{", b"[]", b"null", b"1", b'"a"', b"\xff\xfe", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}',
    b'{"a": 1e999}', b'{"a": 1, "a": 2}', b'{"a": {"$gt": 1, "$gt": 5}}', b'{"a": "\\ud800"}', b'{"\\ud800": 1}',
    b"[" * 100_000, b'{"$not":' * 100_000, b'{"$and":[' * 200 + b"]}" * 200, b'{"a":' + b"9" * 5_000 + b"}",
    b'{"a":' + b"9" * 1_000 + b"}", b'{"a": {"$in": [' + b"1," * MAX_IN_VALUES + b"1]}}", b'{"": 1}', b'{"$x": 1}',
    b'{"a": {"b": 1}}', b'{"$and": {}}', b'{"a": [1]}', b'{"a": {"$in": "abc"}}', b'{"a": {}}', b'{"a": 1} x',
    b'{"a":{"$in":[' + b",".join([b"{}"] * 200_000) + b"]}}", b'{"a' + b'\\"' * 500_000,
    b'{"$or":[' + b",".join([b'{"a":1}'] * 5_000) + b"]}", b'{"a": "' + b"x" * (MAX_FILTER_BYTES + 1) + b'"}',
], ids=lambda data: repr(data[:24]))
def test_hostile_json_is_refused(data):
    with pytest.raises(InvalidFilter) as caught:
        filter_from_wire(pb.Filter(json=data))
    assert len(str(caught.value)) < 1_000


def test_size_limits_of_json():
    with pytest.raises(InvalidFilter, match="bytes of JSON"):
        filter_from_wire(pb.Filter(json=b'{"a":' + b" " * MAX_FILTER_JSON_BYTES + b"1}"))
    with pytest.raises(InvalidFilter, match="objects, lists and keys"):
        filter_from_wire(pb.Filter(json=b"[" + b"{}," * 200_000 + b"{}]"))


def test_brackets_in_strings_are_no_parts():
    values = [f'[{{"{i}":\\"}}]::' * 2 for i in range(40_000)]
    data = json.dumps({"a": {"$in": values}}).encode()
    assert jsons._parts(data) > jsons.MAX_FILTER_PARTS
    assert filter_from_wire(pb.Filter(json=data)) == In("a", tuple(values))


@pytest.mark.parametrize("text", ["", "   ", "a ==", "a" * (MAX_FILTER_BYTES + 1), "(" * 60_000, "not " * 10_000,
                                  "a = 1"])
def test_expressions_are_checked(text):
    with pytest.raises(InvalidFilter) as caught:
        filter_from_wire(pb.Filter(expression=text))
    assert caught.value.position is not None


def test_what_changes_records_must_be_said():
    for msg in (pb.Filter(), pb.Filter(json=b"{}"), pb.Filter(json=b'{"$and": []}')):
        with pytest.raises(InvalidFilter, match="every record"):
            some_filter_from_wire(msg)
    assert some_filter_from_wire(pb.Filter(expression="true")) == Everything()
    assert some_filter_from_wire(filter_to_wire(Everything())) == Everything()


def test_repeated_filters_are_parsed_once():
    msg = pb.Filter(expression="seen_once == 17")
    assert filter_from_wire(msg) is filter_from_wire(pb.Filter(expression="seen_once == 17"))
    msg = pb.Filter(json=b'{"seen_once": 18}')
    assert filter_from_wire(msg) is filter_from_wire(msg)


def test_the_cache_is_bounded_and_forgets_what_was_not_asked_for():
    cache = FilterCache(20_000)
    for i in range(200):
        cache.put(f"a == {i}", Compare("a", Op.EQ, i))
        assert cache.get("a == 0") is not None
        assert cache.bytes_held <= 20_000
    assert 5 < len(cache) < 60
    assert cache.get("a == 1") is None
    assert cache.get("a == 199") == Compare("a", Op.EQ, 199)
    cache.put("long", In("a", tuple(range(10))))
    cache.put("x" * 20_000, Everything())
    assert cache.get("x" * 20_000) is None
    assert cache.get("long") is not None


def test_of_two_that_parsed_at_once_both_use_the_first():
    cache = FilterCache()
    first, second = Compare("a", Op.EQ, 1), Compare("a", Op.EQ, 1)
    assert cache.put("a == 1", first) is first
    assert cache.put("a == 1", second) is first
    assert cache.get("a == 1") is first


def test_mappings_nested_too_deep_are_refused_not_a_fault():
    deep = {"a": 1}
    for _ in range(300):
        deep = {"$not": deep}
    with pytest.raises(InvalidFilter):
        filter_from_mapping(deep)


def test_threads_share_the_cache():
    cache, wrong = FilterCache(10_000), []

    def work(seed):
        for i in range(2_000):
            n = (i * seed) % 50
            cache.put(f"a == {n}", Compare("a", Op.EQ, n))
            got = cache.get(f"a == {n}")
            if got is not None and got != Compare("a", Op.EQ, n):
                wrong.append(got)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (3, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 0 < cache.bytes_held <= 10_000
    assert len(cache) <= 40
