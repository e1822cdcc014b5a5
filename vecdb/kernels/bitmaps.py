# mypy: disable-error-code="no-untyped-def"
"""Bitsets: ``uint64[ceil(n / 64)]``, bit ``i`` is word ``i >> 6``, bit ``i & 63``."""

import numpy as np

from vecdb.kernels import simd
from vecdb.kernels._jit import inline, kernel


@inline
def has_bit(words, i):
    """Whether bit ``i`` (in range) is set."""
    return (words[i >> 6] >> np.uint64(i & 63)) & np.uint64(1) != np.uint64(0)


@kernel("bitmaps.count_bits")
def count_bits(words, n):
    """Set bits among the first ``n``."""
    total = 0
    whole = n >> 6
    for w in range(whole):
        total += simd.popcount(words[w])
    if n & 63:
        total += simd.popcount(words[whole] & ((np.uint64(1) << np.uint64(n & 63)) - np.uint64(1)))
    return total


@kernel("bitmaps.sample_bits")
def sample_bits(words, n, out):
    """Put set bits below ``n``, spread evenly over the words, into ``out`` (int32); return how many were put.

    The word range is cut into ``len(out)`` stretches and the first set bit of each is taken: the same bitset
    always gives the same sample, and every region of ordinals that has members is represented.
    """
    count = (n + 63) >> 6
    want = len(out)
    got = 0
    for s in range(want):
        for w in range(s * count // want, (s + 1) * count // want):
            word = words[w]
            if word != np.uint64(0):
                bit = (w << 6) + simd.trailing_zeros(word)
                if bit < n:
                    out[got] = bit
                    got += 1
                break
    return got


@kernel("bitmaps.list_bits")
def list_bits(words, n, out):
    """Put all set bits below ``n`` into ``out`` (int32, as long as they are many), ascending; return their number."""
    got = 0
    for w in range((n + 63) >> 6):
        word = words[w]
        while word != np.uint64(0):
            bit = (w << 6) + simd.trailing_zeros(word)
            if bit >= n or got >= len(out):
                return got
            out[got] = bit
            got += 1
            word &= word - np.uint64(1)
    return got
