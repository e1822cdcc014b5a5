"""Where records are, and what each shard gets: every row on one shard, and on the one that its hash says."""

import bisect
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import orjson
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from vecdb.cluster.routing import (
    Part,
    Ring,
    asked,
    check_distinct,
    hash_of_id,
    is_whole,
    metadata_hash,
    pinned,
    split,
    split_ids,
    value_key,
)
from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import InvalidArgument, InvalidMetadata
from vecdb.core.filters import evaluate, to_node
from vecdb.core.records import DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch


@dataclass(frozen=True)
class Shard:
    group: int
    lo: int
    hi: int


def ring_of(edges: list[int]) -> Ring[Shard]:
    bounds = [0, *sorted(set(edges)), HASH_SPACE]
    return Ring([Shard(number, lo, hi) for number, (lo, hi) in enumerate(pairwise(bounds), 1)])


def even(count: int) -> Ring[Shard]:
    return ring_of([HASH_SPACE * at // count for at in range(1, count)])


IDS = st.one_of(st.integers(0, (1 << 63) - 1), st.text(min_size=1, max_size=12))
EDGES = st.lists(st.integers(1, HASH_SPACE - 1), max_size=12)
VALUES = st.one_of(st.text(max_size=4), st.integers(-3, 3), st.booleans(), st.floats(allow_nan=False,
                                                                                     allow_infinity=False))


def batch_of(ids: list[int | str], metadata: list[bytes] | None = None) -> UpsertBatch:
    rows = np.arange(2 * len(ids), dtype=np.float32).reshape(-1, 2)
    return UpsertBatch(tuple(ids), rows, tuple(metadata or [b'{"n":%d}' % at for at in range(len(ids))]), 77)


@given(EDGES, st.lists(IDS, unique=True, max_size=60))
def test_every_row_of_an_upsert_is_on_the_one_shard_of_its_id(edges: list[int], ids: list[int | str]) -> None:
    ring, batch = ring_of(edges), batch_of(ids)
    parts = split(ring, batch)
    seen: list[int] = []
    for part in parts:
        assert isinstance(part.command, UpsertBatch)
        assert part.command.ids, "nobody gets nothing"
        places = range(len(ids)) if part.places is None else part.places.tolist()
        assert list(places) == sorted(places), "rows keep their order"
        for at, row in enumerate(places):
            assert part.command.ids[at] == ids[row]
            assert part.command.metadata[at] == batch.metadata[row]
            assert part.command.vectors[at].tolist() == batch.vectors[row].tolist()
            # The oracle: one hash, one bisection.
            hashed = xxhash.xxh3_64_intdigest(b"\x01" + ids[row].to_bytes(8, "big") if isinstance(ids[row], int)
                                              else b"\x02" + ids[row].encode())
            assert part.shard is ring.shards[bisect.bisect_right([one.hi for one in ring.shards], hashed)]
        assert part.command.shape == 77
        seen += places
    assert sorted(seen) == list(range(len(ids)))
    assert [part.shard.lo for part in parts] == sorted(part.shard.lo for part in parts)


@given(EDGES, st.lists(IDS, max_size=40))
def test_ids_are_asked_of_their_shards_alone(edges: list[int], ids: list[int | str]) -> None:
    ring = ring_of(edges)
    found = split_ids(ring, ids)
    for shard, places in found:
        assert all(shard.lo <= hash_of_id(ids[at]) < shard.hi
                   for at in (range(len(ids)) if places is None else places.tolist()))
    assert sum(len(ids) if places is None else len(places) for _, places in found) == len(ids)
    assert [shard for shard, _ in split_ids(ring, ids, "tenant")] == (list(ring.shards) if ids else [])


def test_what_is_of_one_shard_is_passed_on_as_it_is() -> None:
    batch = batch_of([1, 2, 3])
    assert split(even(1), batch)[0].command is batch
    alone = batch_of([5])
    assert [part.command for part in split(even(8), alone)] == [alone]
    delete = DeleteIds((5,))
    assert split(even(8), delete)[0].command is delete
    where = DeleteWhere(to_node("n > 1"))  # type: ignore[arg-type]
    assert [part.command for part in split(even(3), where)] == [where] * 3


@given(EDGES, st.lists(IDS, unique=True, min_size=1, max_size=40), st.booleans())
def test_deletes_and_updates_by_id_are_split_alike(edges: list[int], ids: list[int | str], merge: bool) -> None:
    ring = ring_of(edges)
    patches = tuple(b'{"n":%d}' % at for at in range(len(ids)))
    deletes = split(ring, DeleteIds(tuple(ids)))
    updates = split(ring, UpdateMetadata(tuple(ids), patches, merge))
    assert [part.command.ids for part in deletes] == [part.command.ids for part in updates]  # type: ignore[union-attr]
    for part in updates:
        assert isinstance(part.command, UpdateMetadata)
        assert part.command.merge == merge
        for identity, patch in zip(part.command.ids, part.command.patch, strict=True):
            assert patch == patches[ids.index(identity)]


@given(EDGES)
def test_ranges_are_asked_for_by_what_they_overlap(edges: list[int]) -> None:
    ring = ring_of(edges)
    for lo, hi in ((0, 1), (0, HASH_SPACE), (HASH_SPACE // 3, HASH_SPACE // 2)):
        assert ring.within(lo, hi) == [one for one in ring.shards if max(one.lo, lo) < min(one.hi, hi)]
    for hashed in (0, HASH_SPACE - 1, *(edge for edge in edges), *(edge - 1 for edge in edges)):
        assert ring.at(hashed).lo <= hashed < ring.at(hashed).hi


@pytest.mark.parametrize("bounds", [[], [(0, 5)], [(1, HASH_SPACE)], [(0, 9), (10, HASH_SPACE)],
                                    [(0, 9), (8, HASH_SPACE)], [(0, HASH_SPACE), (0, HASH_SPACE)]])
def test_ranges_that_are_not_the_whole_once_are_refused(bounds: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="not the whole once"):
        Ring([Shard(1, lo, hi) for lo, hi in bounds])


def test_hashes_are_what_they_were() -> None:
    """Records are where these say: another function would lose all that is stored."""
    assert hash_of_id(7) == 0x6DF12EE6DFE72906
    assert hash_of_id("7") == 0x7E683183893F8385
    assert metadata_hash(b'{"a":{"b":"x"}}', "a.b") == 0xDC72536811416596


# --- shard keys -----------------------------------------------------------------------------------


@given(VALUES, VALUES)
def test_values_share_a_key_exactly_where_filters_take_them_for_equal(a: object, b: object) -> None:
    node = to_node({"t": {"$eq": a}})
    assert node is not None
    assert (value_key(a) == value_key(b)) == evaluate(node, {"t": b})


@pytest.mark.parametrize("value", [None, [1], {}, float("nan"), float("inf")])
def test_what_is_no_value_of_a_shard_key(value: object) -> None:
    assert value_key(value) is None


@given(EDGES, st.lists(VALUES, min_size=1, max_size=30))
def test_records_of_one_value_are_on_one_shard(edges: list[int], values: list[object]) -> None:
    ring = ring_of(edges)
    batch = batch_of(list(range(len(values))), [orjson.dumps({"t": {"id": value}, "n": 1}) for value in values])
    where: dict[bytes | None, set[int]] = {}
    for part in split(ring, batch, "t.id"):
        assert isinstance(part.command, UpsertBatch)
        for identity in part.command.ids:
            assert isinstance(identity, int)
            where.setdefault(value_key(values[identity]), set()).add(part.shard.group)
            (alone,) = asked(ring, to_node({"t.id": {"$eq": values[identity]}}), "t.id")
            assert alone is part.shard
    assert all(len(groups) == 1 for groups in where.values())


@pytest.mark.parametrize("raw", [b"{}", b'{"t":null}', b'{"t":[1]}', b'{"t":{"x":1}}', b'{"other":1}'])
def test_a_record_without_a_value_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidMetadata, match=r"metadata\[1\]\.t: is the collection's shard key: every record must"):
        split(even(3), batch_of([1, 2], [b'{"t":1}', raw]), "t")


@pytest.mark.parametrize(("text", "values"), [
    ("t == 'a'", {"a"}), ("t in ['a', 2]", {"a", 2}), ("t == 'a' and n > 3", {"a"}), ("n > 3", None),
    ("t == 'a' or t == 'b'", {"a", "b"}), ("t == 'a' or n > 3", None), ("not (t == 'a')", None), ("t != 'a'", None),
    ("t in ['a', 'b'] and t in ['b', 'c']", {"b"}), ("t == 'a' and t == 'b'", set()), ("t > 'a'", None),
    ("(t == 'a' or t == 'b') and (n == 1 or n == 2)", {"a", "b"}), ("t is null", None)])
def test_what_filters_say_of_the_shard_key(text: str, values: set[object] | None) -> None:
    node = to_node(text)
    assert node is not None
    assert pinned(node, "t") == (None if values is None else {value_key(one) for one in values})


@given(EDGES, st.lists(st.sampled_from(["a", "b", "c", 1, 2.5, True]), min_size=1, max_size=12),
       st.sampled_from(["t == 'a'", "t in ['a', 1]", "t == 'b' or t == 2.5", "n > 3", "not t == 'a'", "t == true",
                        "t == 'a' and (t == 'a' or n > 1)", "t == 'a' and t == 1"]))
def test_no_record_that_matches_is_on_a_shard_that_is_not_asked(edges: list[int], values: list[object],
                                                                text: str) -> None:
    ring, node = ring_of(edges), to_node(text)
    assert node is not None
    reached = list(asked(ring, node, "t"))
    assert reached, "somebody must say that there is nothing"
    for n, value in enumerate(values):
        if evaluate(node, {"t": value, "n": n}):
            hashed = metadata_hash(orjson.dumps({"t": value}), "t")
            assert hashed is not None
            assert ring.at(hashed) in reached


def test_updates_of_metadata_do_not_take_a_record_to_another_shard() -> None:
    ring = even(4)
    plain = UpdateMetadata((1, 2), (b'{"n":1}', b'{"n":2}'), True)
    assert [part.command for part in split(ring, plain, "t.id")] == [plain] * 4, "nobody knows where they are"
    for patch in (b'{"t":null}', b'{"t":{"id":1}}'):
        with pytest.raises(InvalidArgument, match=r"metadata\[1\]\.t: holds the shard key"):
            split(ring, UpdateMetadata((1, 2), (b"{}", patch), True), "t.id")
    whole = UpdateMetadata((1, 2), (b'{"t":{"id":1}}', b'{"t":{"id":2}}'), False)
    for part in split(ring, whole, "t.id"):
        assert isinstance(part, Part)
        assert isinstance(part.command, UpdateMetadata)
        for patch in part.command.patch:
            hashed = metadata_hash(patch, "t.id")
            assert hashed is not None
            assert part.shard is ring.at(hashed)
    with pytest.raises(InvalidMetadata, match="shard key"):
        split(ring, UpdateMetadata((1,), (b'{"n":1}',), False), "t.id")


def test_what_is_whole_is_what_no_shard_gets_a_part_of() -> None:
    ring, bodies = even(4), tuple(b'{"t":%d}' % one for one in range(64))
    ids = tuple(range(64))
    commands = [UpsertBatch(ids, np.zeros((64, 2), np.float32), bodies), DeleteIds(ids),
                DeleteWhere(to_node("n > 1")), UpdateMetadata(ids, bodies, False),
                UpdateMetadata(ids, (b"{}",) * 64)]
    for shard_key in (None, "t"):
        for command in commands:
            parts = split(ring, command, shard_key)
            assert len(parts) == 4
            assert {part.command is command for part in parts} == {is_whole(command, shard_key)}


def test_ids_that_several_values_share_are_told_where_their_records_come_together() -> None:
    with pytest.raises(InvalidArgument, match=r"10 records came together as 8: .* 'tenant' share ids"):
        check_distinct("tenant", 8, 10)
    check_distinct("tenant", 10, 10)
    check_distinct("tenant", 11, 10)
    check_distinct(None, 8, 10)
