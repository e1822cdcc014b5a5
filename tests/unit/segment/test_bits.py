"""Bitsets against sets of integers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vecdb.segment.bits import cleared, full, has, head, members, size


@given(st.integers(0, 300), st.data())
def test_bits_are_a_set(count: int, data: st.DataObject) -> None:
    bits = full(count)
    assert size(bits) == count
    gone = data.draw(st.lists(st.integers(0, count - 1), unique=True)) if count else []
    before = bits.copy()
    after = cleared(bits, np.array(gone, np.int64))
    assert (bits == before).all(), "a pinned bitset is never written"
    want = sorted(set(range(count)) - set(gone))
    assert members(after, count).tolist() == want
    assert size(after) == len(want)
    cut = data.draw(st.integers(0, count))
    assert members(head(after, cut), cut).tolist() == [one for one in want if one < cut]
    if count:
        every = np.arange(count)
        assert has(after, every).tolist() == [one in set(want) for one in range(count)]
