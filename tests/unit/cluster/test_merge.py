"""One answer of several shards: held against one shard that has all the records."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb.cluster.merge import (
    counted_once,
    counting,
    in_order,
    merge_positions,
    merge_results,
    merge_writes,
    nothing,
    top_k,
)
from vecdb.core.query import Cost, Matches, QueryRequest, QueryResult
from vecdb.core.records import DeleteIds, Outcome, Record, UpdateMetadata, UpsertBatch, WriteResult

IDS = st.one_of(st.integers(0, 50), st.text("ab\u00e9", min_size=1, max_size=3))
FOUND = st.dictionaries(IDS, st.sampled_from([0.0, 0.25, 0.5, 1.0, float("inf")]), max_size=24)


def matches(found: list[tuple[int | str, float]], extras: bool) -> Matches:
    ids = [one for one, _ in found]
    return Matches(ids, np.array([distance for _, distance in found], np.float32),
                   [{"of": one} for one in ids] if extras else None,
                   np.array([[float(hash(one) % 97), distance] for one, distance in found], np.float32).reshape(-1, 2)
                   if extras else None)


def order(one: tuple[int | str, float]) -> tuple[float, bool, int | str]:
    return one[1], isinstance(one[0], str), one[0]


@given(st.lists(FOUND, min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 8), st.booleans(), st.randoms())
def test_the_nearest_of_all_shards_are_those_of_one_that_has_all(queries: list[dict[int | str, float]], shards: int,
                                                                 k: int, extras: bool, random: object) -> None:
    parts: list[list[Matches]] = [[] for _ in range(shards)]
    for found in queries:
        ranked = sorted(found.items(), key=order)
        for at, part in enumerate(parts):
            part.append(matches([one for one in ranked if hash(one[0]) % shards == at][:k], extras))
    merged = top_k(parts, k)
    assert len(merged) == len(queries)
    for found, one in zip(queries, merged, strict=True):
        wanted = sorted(found.items(), key=order)[:k]
        assert one.ids == [identity for identity, _ in wanted]
        assert one.distances.dtype == np.float32
        assert one.distances.tolist() == [distance for _, distance in wanted]
        if extras:
            assert one.metadata == [{"of": identity} for identity, _ in wanted]
            assert one.vectors is not None
            assert one.vectors.tolist() == [[float(hash(identity) % 97), distance] for identity, distance in wanted]


def test_many_queries_are_merged_as_few_are() -> None:
    rng = np.random.default_rng(5)
    parts: list[list[Matches]] = []
    for shard in range(3):
        distances = np.sort(rng.random((200, 10)).astype(np.float32), axis=1)
        parts.append([Matches(list(range(shard, 30, 3)), row) for row in distances])
    together = top_k(parts, 10)
    for at in range(200):
        (alone,) = top_k([[part[at]] for part in parts], 10)
        assert together[at].ids == alone.ids
        assert together[at].distances.tolist() == alone.distances.tolist()


def request(**more: object) -> QueryRequest:
    return QueryRequest(np.zeros((1, 2), np.float32), 2, **more)  # type: ignore[arg-type]


def test_plans_and_costs_are_of_all_shards() -> None:
    one = QueryResult([matches([(1, 0.5)], False)], {"k": 2, "hops": 3, "comparisons": 9}, ("a",), Cost(1, 5, 2, 3, 9))
    two = QueryResult([matches([(2, 0.25)], False)], {"k": 2, "hops": 1, "comparisons": 1}, ("b",), Cost(2, 4, 8, 1, 1))
    merged = merge_results([one, two], request(explain=True), ["7", "8"])
    assert merged.matches[0].ids == [2, 1]
    assert merged.missing == ("a", "b")
    assert merged.plan == {"k": 2, "queries": 1, "hops": 4, "comparisons": 10, "shards": [
        {"shard": "7", "k": 2, "hops": 3, "comparisons": 9}, {"shard": "8", "k": 2, "hops": 1, "comparisons": 1}]}
    assert merged.cost == Cost(2, 5, 8, 4, 10)
    assert merge_results([one, two], request()).plan is None
    assert merge_results([one], request()) is one


def test_no_shard_finds_nothing() -> None:
    empty = nothing(request(include_metadata=True, include_vectors=True)).matches[0]
    assert (empty.ids, empty.metadata) == ([], [])
    assert empty.vectors is not None
    assert empty.vectors.shape == (0, 2)


@given(st.lists(IDS, max_size=12), st.sets(IDS), st.integers(1, 4))
def test_records_come_in_the_order_asked(ids: list[int | str], there: set[int | str], shards: int) -> None:
    parts = [[Record(one, {"n": str(one)}) for one in ids if one in there and hash(one) % shards == at]
             for at in range(shards)]
    assert [one.id for one in in_order(ids, parts)] == [one for one in ids if one in there]


def test_what_writes_did_is_summed_and_says_where() -> None:
    one = WriteResult(inserted=2, updated=1, log_index=4, shard=9)
    two = WriteResult(inserted=1, log_index=7, shard=3)
    batch = UpsertBatch((), np.empty((0, 2)), ())
    merged = merge_writes([one, two], batch)
    assert merged == WriteResult(3, 1, positions=((3, 7), (9, 4)))
    assert (merged.shard, merged.log_index) == (0, 0)
    assert merge_writes([one], batch) is one


def test_what_was_done_before_a_split_counts_once() -> None:
    batch = UpsertBatch((), np.empty((0, 2)), ())
    whole, part, other = Outcome(2, None, (5, 1, 0, 0)), Outcome(3, 7, (1, 0, 0, 0)), Outcome(3, 9, (0, 1, 0, 0))
    parts = [WriteResult(5, 1, log_index=3, shard=8, outcomes=(whole,)),
             WriteResult(6, 1, log_index=9, shard=9, outcomes=(whole, part)),
             WriteResult(2, log_index=1, shard=10), WriteResult(1, 1, log_index=1, shard=11, outcomes=(part, other))]
    merged = merge_writes(parts, batch)
    assert merged == WriteResult(8, 2, positions=((8, 3), (9, 9), (10, 1), (11, 1)))
    alone = merge_writes(parts[:1], batch)
    assert (alone, alone.outcomes, merged.outcomes) == (WriteResult(5, 1, log_index=3, shard=8), (), ())


def test_what_the_answering_shard_did_is_its_own() -> None:
    batch = UpsertBatch((), np.empty((0, 2)), ())
    own = Outcome(0, 7, (2, 0, 0, 0))
    parts = [WriteResult(2, log_index=3, shard=8, outcomes=(own,)),
             WriteResult(2, log_index=3, shard=9, outcomes=(own,)),
             WriteResult(2, log_index=4, shard=9, outcomes=(Outcome(8, 7, own.counts),))]
    assert merge_writes(parts, batch).counts == (4, 0, 0, 0)


def test_a_shard_and_those_that_took_its_place_tell_of_one_doing() -> None:
    command, own = DeleteIds((1, 2, 3)), Outcome(3, None, (0, 0, 2, 1))
    parts = [WriteResult(deleted=2, missing=1, log_index=9, shard=3),
             *(WriteResult(deleted=2, missing=1, log_index=1, shard=shard, outcomes=(own,)) for shard in (9, 10)),
             WriteResult(deleted=1, missing=2, log_index=9, shard=4)]
    assert merge_writes(parts, command, everywhere=True).counts == (0, 0, 3, 0)


@pytest.mark.parametrize("command", [DeleteIds((1, 2, 3)), UpdateMetadata((1, 2, 3), (b"{}",) * 3)])
def test_of_what_every_shard_was_asked_for_one_is_missing_that_none_had(command: DeleteIds | UpdateMetadata) -> None:
    one = WriteResult(deleted=1, missing=2) if isinstance(command, DeleteIds) else WriteResult(updated=1, missing=2)
    parts = [replace(one, shard=1, log_index=1), replace(one, shard=2, log_index=1),
             WriteResult(missing=3, shard=3, log_index=1)]
    assert merge_writes(parts, command, everywhere=True).missing == 1
    assert merge_writes(parts, command).missing == 7


def test_the_furthest_place_of_each_shard_counts() -> None:
    assert merge_positions([[(2, 5)], [(1, 9), (2, 4)], []]) == ((1, 9), (2, 5))


def test_shards_that_became_one_count_once() -> None:
    def deleted(count: int) -> WriteResult:
        return WriteResult(deleted=count)

    # Both parts came to the shard that both became; one was done before, and the other's answer has it in it.
    for parts, total in (
            ([(3, 0, 8, deleted(7)), (3, 0, 8, deleted(7))], 7),
            ([(1, 0, 4, deleted(3)), (3, 0, 8, deleted(7))], 7),
            ([(3, 0, 8, deleted(2)), (3, 0, 8, deleted(7)), (5, 8, 16, deleted(4))], 11),
            ([(1, 0, 4, deleted(3)), (2, 4, 8, deleted(4))], 7),
            ([(4, 0, 2, deleted(1)), (5, 2, 4, deleted(2)), (2, 4, 8, deleted(4))], 7)):
        assert sum(one.deleted for one in counted_once(parts)) == total


def test_what_counts_of_parts_that_came_to_one_shard_is_what_was_done_once() -> None:
    def parts(first: WriteResult, second: WriteResult) -> list[tuple[int, int, int, WriteResult]]:
        return [(3, 0, 8, first), (3, 0, 8, second)]

    ids, both = (1, 2, 3), WriteResult(updated=2, missing=1)
    merge, delete = UpdateMetadata(ids, (b"{}",) * 3), DeleteIds(ids)
    cut = UpdateMetadata(ids, (b"{}",) * 3, merge=False)
    assert counting(parts(both, both), merge, "t") == [both]
    assert counting(parts(both, both), cut, "t") == [both, both]
    gone = WriteResult(deleted=2, missing=1)
    assert counting(parts(gone, gone), delete, "t") == [gone]
    assert len(counting(parts(gone, gone), delete, None)) == 2
