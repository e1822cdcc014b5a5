"""Exact scans: ranges, bitsets, lists, radius, stop; and rerank."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import distances as oracle
from vecdb.ann import flat
from vecdb.ann.codes import RowCodes
from vecdb.ann.found import Found
from vecdb.ann.rerank import rerank
from vecdb.ann.space import Space
from vecdb.core.schema import Metric, VectorType

SPACE = Space(Metric.L2, VectorType.FLOAT32, 12)
ROWS = SPACE.pad(oracle.clustered(3_000, 12, 7))
CODES = RowCodes(SPACE, ROWS, SPACE.aux(ROWS))
QUERIES = oracle.clustered(6, 12, 8)
TRUTH = oracle.raw(SPACE, QUERIES, ROWS[:, :12])


def expect(found, members, k):
    order, _ = oracle.nearest(TRUTH[:, members], k)
    want = np.full((len(QUERIES), k), -1)
    want[:, :order.shape[1]] = np.asarray(members)[order]
    assert found.ordinals.tolist() == want.tolist()
    assert np.isinf(found.distances[found.ordinals < 0]).all()


@settings(max_examples=30, deadline=None)
@given(lo=st.integers(0, 3_100), hi=st.none() | st.integers(0, 3_100), k=st.integers(1, 40),
       share=st.sampled_from([None, 0.0, 0.01, 0.5]), seed=st.integers(0, 1000))
def test_ranges_and_bitsets(lo, hi, k, share, seed):
    members = np.arange(3_000)[lo:3_000 if hi is None else hi]
    allowed = None
    if share is not None:
        flags = np.random.default_rng(seed).random(3_000) < share
        allowed = oracle.bitset(flags)
        members = members[flags[members]]
    found = flat.scan(CODES, QUERIES, k=k, lo=lo, hi=hi, allowed=allowed)
    expect(found, members, k)
    assert found.comparisons == len(members) * len(QUERIES)


def test_lists_of_ordinals_in_any_order_narrowed_by_a_bitset():
    members = np.random.default_rng(1).permutation(3_000)[:700]
    expect(flat.scan(CODES, QUERIES, k=12, ordinals=members), np.sort(members), 12)
    flags = np.arange(3_000) % 3 == 0
    found = flat.scan(CODES, QUERIES, k=12, ordinals=members, allowed=oracle.bitset(flags))
    expect(found, np.sort(members[flags[members]]), 12)
    expect(flat.scan(CODES, QUERIES, k=3, ordinals=members[:0]), members[:0], 3)


def test_more_asked_for_than_there_is_and_many_queries_at_once():
    everything = flat.scan(CODES, QUERIES, k=3_500)
    assert np.sort(everything.ordinals[:, :3_000], axis=1).tolist() == [list(range(3_000))] * len(QUERIES)
    assert (everything.ordinals[:, 3_000:] == -1).all()
    assert (np.diff(everything.distances[:, :3_000], axis=1) >= 0).all()
    many = np.repeat(QUERIES, 200, axis=0)
    found = flat.scan(CODES, many, k=5)
    once = flat.scan(CODES, QUERIES, k=5)
    assert (found.ordinals == np.repeat(once.ordinals, 200, axis=0)).all()


def test_within_a_radius_only():
    radius = float(np.sort(TRUTH, axis=1)[:, 20].mean())
    found = flat.scan_within(CODES, QUERIES, radius=radius, k=500)
    for q in range(len(QUERIES)):
        inside = found.ordinals[q][found.ordinals[q] >= 0]
        assert set(inside.tolist()) == set(np.flatnonzero(TRUTH[q] <= np.float32(radius)).tolist())
    assert (flat.scan_within(CODES, QUERIES, radius=-1.0, k=5).ordinals == -1).all()


def test_a_stop_flag_ends_a_scan():
    found = flat.scan(CODES, QUERIES, k=5, stop=np.ones(1, np.int32))
    assert found.stopped
    assert found.comparisons == 0


def test_a_bitset_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="words"):
        flat.scan(CODES, QUERIES, k=1, allowed=np.zeros(3, np.uint64))


def test_rerank_orders_candidates_by_exact_distance_from_mapped_rows(tmp_path):
    ROWS.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=ROWS.shape)
    candidates = np.random.default_rng(2).integers(-1, 3_000, (len(QUERIES), 40)).astype(np.int32)
    found = Found(candidates, np.zeros(candidates.shape, np.float32), 3, 4)
    for k in (1, 10, 60):
        got = rerank(SPACE, mapped, SPACE.aux(mapped), QUERIES, found, k)
        for q in range(len(QUERIES)):
            members = candidates[q][candidates[q] >= 0]
            want = members[np.lexsort((members, TRUTH[q, members]))][:k].tolist()
            assert got.ordinals[q].tolist() == want + [-1] * (k - len(want))
        assert (got.hops, got.comparisons) == (3, 4 + int((candidates >= 0).sum()))
