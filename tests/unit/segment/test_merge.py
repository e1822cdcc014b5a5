"""Joining answers against sorting them in Python."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb.ann.found import Found
from vecdb.segment.merge import join, top_k


def _found(rows: list[list[float]], width: int, first: int) -> Found:
    ordinals = np.full((len(rows), width), -1, np.int32)
    distances = np.full((len(rows), width), np.inf, np.float32)
    for place, row in enumerate(rows):
        row = sorted(row)[:width]
        ordinals[place, : len(row)] = np.arange(first, first + len(row))
        distances[place, : len(row)] = row
    return Found(ordinals, distances)


_ROWS = st.lists(st.lists(st.integers(0, 20).map(float), max_size=5), min_size=3, max_size=3)


@settings(max_examples=60)
@given(_ROWS, _ROWS, st.integers(1, 12))
def test_top_k_and_join(left: list[list[float]], right: list[list[float]], k: int) -> None:
    parts = [_found(left, 5, 0), _found(right, 4, 100)]
    source, ordinals, distances = top_k(parts, k)
    joined = join(*parts, k)
    assert joined.ordinals.shape == (3, k)
    for query in range(3):
        want = sorted([(d, 0, i) for i, d in enumerate(sorted(left[query])[:5])]
                      + [(d, 1, 100 + i) for i, d in enumerate(sorted(right[query])[:4])])[:k]
        keep = ordinals[query] >= 0
        got = list(zip(distances[query][keep].tolist(), source[query][keep].tolist(), ordinals[query][keep].tolist(),
                       strict=True))
        assert got == want
        assert joined.ordinals[query][: len(want)].tolist() == [ordinal for _, _, ordinal in want]
        assert (joined.ordinals[query][len(want) :] == -1).all()
