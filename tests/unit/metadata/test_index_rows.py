"""Every index, in every phase of its life, gives the rows that ``evaluate`` (and the oracle) gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import filter_strategies as random_filters
from tests.oracles import filters as oracle
from vecdb.core.filters import evaluate, parse, to_node
from vecdb.core.filters.tree import Compare, Contains, GeoBox, Op, Prefix, Time
from vecdb.core.metadata import check_metadata, parse_metadata
from vecdb.metadata import GrowingIndex, SealedIndex, merge

records_lists = st.lists(random_filters.records, max_size=14)
filters = st.lists(random_filters.nodes, min_size=1, max_size=4)
indexed = st.none() | st.lists(st.sampled_from(random_filters.PATHS), max_size=4)


def stored(records):
    """As the shard hands them over: parsed from their bytes."""
    return [parse_metadata(check_metadata(record)) for record in records]


def grown(records, fields=None, *, max_fields=256, batch=5):
    index = GrowingIndex(fields, max_fields=max_fields)
    for start in range(0, len(records), batch):
        index.append(start, records[start : start + batch])
    return index


def settled(found, records):
    """The rows of an answer after its residual was asked; checks what an answer promises."""
    assert found.sure <= found.bitmap
    assert (found.residual is not None) or found.sure == found.bitmap
    rest = found.bitmap - found.sure
    return set(found.sure) | {row for row in rest if evaluate(found.residual, records[row])}


def truth(node, records):
    return {row for row, record in enumerate(records) if oracle.matches(node, record)}


def check_all(index, nodes, records, count):
    for node in nodes:
        assert settled(index.rows(node, count), records) == truth(node, records[:count]), node


@settings(max_examples=250, deadline=None)
@given(records_lists, filters, st.integers(0, 14), indexed, st.sampled_from((1, 3, 256)))
def test_growing_and_sealed_give_the_rows_of_the_oracle(records, nodes, count, fields, max_fields):
    records, count = stored(records), min(count, len(records))
    growing = grown(records, fields, max_fields=max_fields)
    check_all(growing, nodes, records, count)
    check_all(growing, nodes, records, len(records))
    sealed = merge([(growing, np.arange(count, dtype=np.int32))], count, max_fields=max_fields)
    check_all(sealed, nodes, records[:count], count)
    again = SealedIndex.from_buffer(memoryview(bytes(sealed.to_bytes())), mapped=True)
    check_all(again, nodes, records[:count], count)


def test_a_named_field_without_room_is_asked_of_the_records():
    records = stored([{"a": {"a": None}, "b": 1}])
    sealed = merge([(grown(records, ("a", "a.a", "b"), max_fields=1), np.arange(1, dtype=np.int32))], 1, max_fields=1)
    nodes = [parse(text) for text in ("exists a.a", "exists a", "exists b", "b == 1", "a.a is null", "not exists a.a")]
    check_all(sealed, nodes, records, 1)
    check_all(SealedIndex.from_buffer(memoryview(bytes(sealed.to_bytes())), mapped=True), nodes, records, 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(records_lists, st.booleans()), max_size=4), filters, indexed, st.sampled_from((2, 256)),
       st.randoms(use_true_random=False))
def test_merging_keeps_the_rows_that_stay(parts, nodes, fields, max_fields, rng):
    total = sum(len(records) for records, _ in parts)
    kept = [rng.random() < 0.7 for _ in range(total)]
    places = list(range(sum(kept)))
    rng.shuffle(places)  # a sealed segment is reordered for locality
    merged_records = [{}] * len(places)
    mapped, at = [], 0
    for records, seal in parts:
        records = stored(records)
        index = grown(records, fields, max_fields=max_fields)
        if seal:
            index = merge([(index, np.arange(len(records), dtype=np.int32))], len(records), max_fields=max_fields)
        new_ordinal = np.full(len(records), -1, dtype=np.int32)
        for row in range(len(records)):
            if kept[at + row]:
                new_ordinal[row] = places.pop()
                merged_records[new_ordinal[row]] = records[row]
        at += len(records)
        mapped.append((index, new_ordinal))
    merged = merge(mapped, len(merged_records), max_fields=max_fields)
    check_all(merged, nodes, merged_records, len(merged_records))


@pytest.mark.parametrize("text", [
    "n == 7", "n < 100", "n >= 250", "big == 9007199254740993", "big > 9223372036854775900", "b == true", "w == 'w17'",
    "w in ['w1', 'w2', 'nope', 'w499']", "w > 'w3'", "w contains '33'", "w startswith 'w4'",
    "t < time('2024-01-01T05:00:00Z')", "odd == 1", "odd != 1", "exists odd", "not (n < 100 or w contains '1')",
    "n in [1, 2, 3.0, 4.5]", "big in [5, 9007199254740993]", "tags == 'x' and n > 10",
    "geo_radius(p, 10, 20, 300000)", "geo_box(p, -1, 170, 90, -170)", "f < 0.25 and b == false",
])
def test_larger_segments_with_dense_and_sparse_postings(text):
    """Enough rows that keys are dense, containers are bitmaps, and small and large sets take their own ways."""
    count, rng = 9_000, np.random.default_rng(17)
    records = [{"n": int(rng.integers(500)), "b": bool(row % 3), "w": f"w{rng.integers(500)}", "f": float(rng.random()),
                "big": int(2**53 + row - 4_500 if row % 2 else 2**63 + row), "t": f"2024-01-01T{row % 24:02d}:00:00Z",
                "tags": ["x", "y", "x"][: row % 4], "p": {"lat": float(rng.uniform(-90, 90)), "lon": row / 25 - 180},
                **({"odd": row % 5} if row % 7 == 0 else {})} for row in range(count)]
    records = stored(records)
    node = to_node(text)
    growing = grown(records, batch=1_000)
    wanted = truth(node, records)
    assert set(growing.rows(node, count).bitmap) == wanted
    assert wanted
    sealed = merge([(growing, np.arange(count, dtype=np.int32))], count)
    found = sealed.rows(node)
    assert found.residual is None
    assert set(found.bitmap) == wanted
    half = np.where(np.arange(count) % 2 == 0, np.arange(count) // 2, -1).astype(np.int32)
    rest = np.where(np.arange(count) % 2 == 1, count - 1 - np.arange(count) // 2, -1).astype(np.int32)
    again = merge([(sealed, half), (growing, rest)], count)
    moved = {int(half[row]) if half[row] >= 0 else int(rest[row]) for row in wanted}
    assert set(again.rows(node).bitmap) == moved


POOL = (*random_filters.NUMBERS, *random_filters.STRINGS, *random_filters.TIMES, True, False, None)
CONSTANTS = (*POOL, *random_filters.FOREIGN_NUMBERS, *map(Time, random_filters.INSTANTS))


def both(records):
    growing = grown(records)
    return growing, merge([(growing, np.arange(len(records), dtype=np.int32))], len(records))


@pytest.mark.parametrize("op", list(Op))
def test_every_pair_of_values(op):
    """Chance seldom compares a value with its own neighbour; this does."""
    records = stored([{"a": value} for value in POOL] + [{"a": [value, "other"]} for value in POOL] + [{"b": 1}])
    indexes = both(records)
    for constant in CONSTANTS:
        node = Compare("a", op, constant)
        for index in indexes:
            assert settled(index.rows(node, len(records)), records) == truth(node, records), node


@pytest.mark.parametrize("make", [Prefix, Contains])
def test_every_pair_of_strings(make):
    texts = (*random_filters.STRINGS, *random_filters.TIMES, "x\u00ff", "\U0010ffff")
    records = stored([{"a": text} for text in texts])
    for index in both(records):
        for text in (*texts, "g l", "z" * 3):
            node = make("a", text)
            assert settled(index.rows(node, len(records)), records) == truth(node, records), node


def test_boxes_at_the_poles_and_the_antimeridian():
    records = stored([{"a": {"lat": lat, "lon": lon}} for lat in random_filters.LATS for lon in random_filters.LONS])
    indexes = both(records)
    for south, north in ((-90, 90), (0, 90), (-90, -89.95), (90, 90), (-1, 1)):
        for west in random_filters.LONS[:-1]:
            for east in random_filters.LONS[:-1]:
                node = GeoBox("a", float(south), float(west), float(north), float(east))
                for index in indexes:
                    assert set(index.rows(node, len(records)).bitmap) == truth(node, records), node


def test_a_path_one_part_had_no_room_for_stays_unsure_for_its_rows_only():
    crowded = grown(stored([{"x": 1, "a": 5}, {"x": 2}]), max_fields=1)
    roomy = grown(stored([{"a": 5}, {"a": 6}]))
    merged = merge([(crowded, np.array([2, 3], np.int32)), (roomy, np.array([0, 1], np.int32))], 4)
    found = merged.rows(parse("a == 5"))
    assert (set(found.bitmap), set(found.sure)) == ({0, 2}, {0})
    twice = merge([(merged, np.array([3, -1, 1, 0], np.int32))], 4)
    found = twice.rows(parse("not a == 5"))
    assert (set(found.bitmap), set(found.sure)) == ({0, 1, 2}, {0, 2})


def test_only_what_is_not_indexed_must_be_asked():
    records = stored([{"a": 1}, {"a": 2, "b": 1}, {"a": "x" * 2_000}, {"c": 5}])
    some = grown(records, ("a",))
    assert some.rows(parse("a == 1"), 4).residual is None
    found = some.rows(parse("b == 1 and a >= 1"), 4)
    assert found.residual == parse("b == 1 and a >= 1")
    assert set(found.bitmap) == {0, 1}  # what the indexed half leaves
    full = grown(records)
    assert not full.rows(parse("a startswith 'y'"), 4).sure
    assert set(full.rows(parse("a startswith 'y'"), 4).bitmap) == {2}  # only the string too long to index
    assert full.rows(parse("a == 'y'"), 4).residual is None  # equality with a short string needs no long one
    crowded = grown(records, max_fields=2)
    assert set(crowded.rows(parse("c == 5"), 4).bitmap) == {3}  # only the row whose path found no room
    assert crowded.rows(parse("b == 1"), 4).residual is None


def test_answers_are_the_callers_own():
    records = stored([{"a": 1}, {"a": None}])
    sealed = merge([(grown(records), np.arange(2, dtype=np.int32))], 2)
    for text in ("exists a", "a is null", "true", "a == 1"):
        found = sealed.rows(parse(text)).bitmap
        before = set(found)
        found.clear()
        assert set(sealed.rows(parse(text)).bitmap) == before


def test_memory_is_accounted():
    growing = grown(stored([{"w": f"word {row}", "n": row} for row in range(1_000)]))
    assert growing.memory_bytes() > 1_000 * (8 + 8 + 4)
    sealed = merge([(growing, np.arange(1_000, dtype=np.int32))], 1_000)
    assert len(sealed.to_bytes()) <= sealed.memory_bytes() < growing.memory_bytes()
    sealed = SealedIndex.from_buffer(sealed.to_bytes(), mapped=True)
    sealed.rows(parse("exists w"))
    assert sealed.memory_bytes() < 1_000
    assert sealed.paths() == ["n", "w"]
