"""The small primitives, and the byte dot product by instruction and by widening."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import types

from vecdb.kernels import simd
from vecdb.kernels._jit import kernel
from vecdb.kernels.bitmaps import count_bits, list_bits, sample_bits


@kernel("test.order")
def _order(values, orders, back):
    for i in range(len(values)):
        orders[i] = simd.float_order(values[i])
        back[i] = simd.order_float(orders[i])


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50))
def test_float_order_sorts_as_floats_and_comes_back(values):
    floats = np.array(values, np.float32)
    orders, back = np.zeros(len(floats), np.uint64), np.zeros(len(floats), np.float32)
    _order(floats, orders, back)
    assert back.view(np.uint32).tolist() == floats.view(np.uint32).tolist()
    ordered = floats[np.argsort(orders, kind="stable")]
    assert (ordered[1:] >= ordered[:-1]).all()
    assert orders.max() < 2**32


def test_infinities_and_nan_sort_last():
    floats = np.array([np.nan, np.inf, 1e30, -np.inf, 0], np.float32)
    orders, back = np.zeros(5, np.uint64), np.zeros(5, np.float32)
    _order(floats, orders, back)
    assert np.argsort(orders).tolist() == [3, 4, 2, 1, 0]


_widened = simd._pairwise("widened", None, simd.widen, 16, simd._V16I, types.int32)


@kernel("test.bytes")
def _bytes(codes, queries, chosen, widened):
    for i in range(len(codes)):
        chosen[i] = simd.dot_u8_i8(codes, i, queries, 0)
        widened[i] = _widened(codes, i, queries, 0)


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_byte_dot_product_is_exact_by_either_way(lines, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (6, 64 * lines), dtype=np.uint8)
    codes[0], codes[1] = 255, 0
    query = rng.integers(-127, 128, (1, 64 * lines)).astype(np.int8)
    if seed % 3 == 0:
        query[:] = -127
    chosen, widened = np.zeros(6, np.int32), np.zeros(6, np.int32)
    _bytes(codes, query, chosen, widened)
    truth = (codes.astype(np.int64) @ query[0].astype(np.int64)).tolist()
    assert chosen.tolist() == truth
    assert widened.tolist() == truth


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.3, 1.0]))
def test_bits_are_counted_listed_and_sampled(n, seed, share):
    flags = np.random.default_rng(seed).random(n) < share
    words = np.zeros(n // 64 + 1, np.uint64)
    packed = np.packbits(flags, bitorder="little")
    words.view(np.uint8)[:len(packed)] = packed
    words[n // 64] |= np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(n % 64)  # bits from n on are to be ignored
    where = np.flatnonzero(flags)
    assert count_bits(words, n) == len(where)
    out = np.zeros(n + 1, np.int32)
    assert out[:list_bits(words, n, out)].tolist() == where.tolist()
    sample = np.zeros(7, np.int32)
    taken = sample[:sample_bits(words, n, sample)].tolist()
    assert set(taken) <= set(where.tolist())
    assert sorted(set(taken)) == taken
    assert bool(taken) == bool(len(where))


@kernel("test.insert")
def _insert(keys, size, key):
    at = simd.count_below(keys, 0, size, key)
    simd.make_room(keys, at, size)
    keys[at] = key
    return at


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=70))
def test_keys_are_inserted_in_order_whatever_lies_behind_them(values):
    keys = np.zeros(len(values) + 16, np.uint64)  # smaller than any key: they must not be counted
    for size, value in enumerate(values):
        expected = sum(other < value for other in values[:size])
        assert _insert(keys, size, np.uint64(value)) == expected
        assert keys[:size + 1].tolist() == sorted(values[:size + 1])
