"""Bitmaps, bitsets and ordinals say the same set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from vecdb.metadata import bits

runs = st.tuples(st.integers(0, 300_000), st.integers(1, 70_000), st.sampled_from((1, 2, 3, 7, 100))).map(
    lambda run: range(run[0], run[0] + run[1], run[2]))


def by_hand(members, count):
    flags = np.zeros(bits.word_count(count) * 64, dtype=bool)
    flags[[member for member in members if member < count]] = True
    return np.packbits(flags, bitorder="little").view(np.uint64)


@settings(max_examples=120, deadline=None)
@given(st.lists(runs, max_size=4), st.integers(0, 400_000), st.booleans())
def test_every_shape_holds_the_same_rows(pieces, count, optimized):
    members = sorted(set().union(*pieces))
    bitmap = BitMap(members)
    if optimized:
        bitmap.run_optimize()
    words = bits.to_words(bitmap, count)
    assert words.dtype == np.uint64
    assert np.array_equal(words, by_hand(members, count))
    within = BitMap([member for member in members if member < count])
    assert bits.from_words(words) == within
    assert bits.count_words(words) == len(within)
    assert bits.to_ordinals(within).tolist() == list(within)
    shuffled = np.random.default_rng(len(members)).permutation(np.array(list(within) * 2, dtype=np.uint32))
    assert bits.from_ordinals(shuffled, count) == within


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 65_535, 65_536, 65_537, 131_072])
def test_the_ends(count):
    whole = BitMap(range(count))
    words = bits.to_words(BitMap(range(count + 100)), count)
    assert len(words) == (count + 63) // 64
    assert bits.count_words(words) == count
    assert bits.from_words(words) == whole
    assert bits.from_mask(np.ones(count, dtype=bool)) == whole
    assert bits.from_mask(np.zeros(count, dtype=bool)) == BitMap()
    assert bits.count_words(bits.to_words(BitMap(), count)) == 0
