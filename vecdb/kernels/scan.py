# mypy: disable-error-code="no-untyped-def"
"""Exact scans: every candidate scored, the best kept in a heap per query.

Candidates come in blocks that stay in the cache while all queries of the call pass over them.  A heap entry is a
beam's key (distance, then ordinal), so ties fall the same way as in a graph search.
"""

from typing import Any

import numpy as np

from vecdb.kernels import simd
from vecdb.kernels._jit import inline, kernel
from vecdb.kernels.beam import distance_of, key_of, row_lines, vertex_of
from vecdb.kernels.registry import Family, made

_BLOCK_BYTES = 256 << 10
_MAX_BLOCK = 1_024


@inline
def sift_down(heap, size, key):
    """Replace the root of a max-heap by ``key``."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= key:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = key


@inline
def sift_up(heap, at, key):
    """Put ``key`` at the free place ``at`` of a max-heap and let it rise."""
    while at > 0:
        parent = (at - 1) >> 1
        if heap[parent] >= key:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = key


@inline
def drain(heap, size, ordinals, distances):
    """Empty a max-heap into one result row, ascending."""
    for at in range(size - 1, -1, -1):
        key = heap[0]
        ordinals[at] = vertex_of(key)
        distances[at] = distance_of(key)
        sift_down(heap, at, heap[at])


@inline
def next_block(block, limit, cursor, hi, allowed, filtered, listed, ordinals):
    """Fill ``block`` with the next candidates from ``cursor`` on; return (their number, the new cursor)."""
    n = 0
    if listed:
        while n < limit and cursor < hi:
            v = np.int64(ordinals[cursor])
            cursor += 1
            if not filtered or (allowed[v >> 6] >> np.uint64(v & 63)) & np.uint64(1) != np.uint64(0):
                block[n] = v
                n += 1
        return n, cursor
    if not filtered:
        n = min(limit, hi - cursor)
        for j in range(n):
            block[j] = cursor + j
        return n, cursor + n
    while n < limit and cursor < hi:
        word = allowed[cursor >> 6] >> np.uint64(cursor & 63)
        if word == np.uint64(0):
            cursor = ((cursor >> 6) + 1) << 6
            continue
        cursor += simd.trailing_zeros(word)
        if cursor < hi:
            block[n] = cursor
            n += 1
            cursor += 1
    return n, cursor


def make_scan(family: Family) -> Any:
    """The scan entry of a family."""
    score = family.score

    @kernel(f"scan.scan.{family.name}")
    def scan(codes, aux, qcodes, qaux, k, lo, hi, radius, allowed, filtered, ordinals, listed, stop, heaps, sizes,
             block, found, distances, tally):
        """Scan [lo, hi) of the ordinals, or of the list ``ordinals``; keep up to k per query within ``radius``."""
        nq = len(qcodes)
        limit = max(16, min(len(block), _BLOCK_BYTES // (codes.shape[1] * codes.itemsize)))
        lines = row_lines(codes)
        bound = key_of(radius, np.int64((1 << 30) - 1))
        found[:] = np.int32(-1)
        distances[:] = np.float32(np.inf)
        cursor = lo
        while cursor < hi and tally[2] == 0:
            n, cursor = next_block(block, limit, cursor, hi, allowed, filtered, listed, ordinals)
            for q in range(nq):
                if stop[0] != 0:
                    tally[2] = 1
                    break
                tally[1] += n
                heap = heaps[q]
                size = sizes[q]
                top = bound if size < k else min(bound, heap[0])
                for j in range(n):
                    if q == 0 and j + 8 < n:
                        simd.prefetch(codes, np.int64(block[j + 8]), lines)
                    v = np.int64(block[j])
                    key = key_of(score(codes, aux, qcodes, qaux, q, v), v)
                    if key <= top:
                        if size < k:
                            sift_up(heap, size, key)
                            size += 1
                        else:
                            sift_down(heap, k, key)
                        if size == k:
                            top = min(bound, heap[0])
                sizes[q] = size
        for q in range(nq):
            drain(heaps[q], sizes[q], found[q], distances[q])

    return scan


def make_rerank(family: Family) -> Any:
    """The rerank entry of a family: each query has candidates of its own."""
    score = family.score

    @kernel(f"scan.rerank.{family.name}")
    def rerank(codes, aux, qcodes, qaux, k, candidates, keys, found, distances):
        """Score ``candidates`` (nq, c) int32, negative ones skipped, and put the best ``k`` in order."""
        lines = row_lines(codes)
        width = candidates.shape[1]
        compared = 0
        for q in range(len(qcodes)):
            for j in range(width):
                if candidates[q, j] >= 0:
                    simd.prefetch(codes, np.int64(candidates[q, j]), lines)
            n = 0
            for j in range(width):
                v = np.int64(candidates[q, j])
                if v >= 0:
                    key = key_of(score(codes, aux, qcodes, qaux, q, v), v)
                    compared += 1
                    if n < k:
                        sift_up(keys, n, key)
                        n += 1
                    elif key < keys[0]:
                        sift_down(keys, k, key)
            for j in range(n, k):
                found[q, j] = -1
                distances[q, j] = np.inf
            drain(keys, n, found[q], distances[q])
        return compared

    return rerank


def scan_for(name: str) -> Any:
    """The scan entry of family ``name``."""
    return made("scan.scan", name, make_scan)


def rerank_for(name: str) -> Any:
    """The rerank entry of family ``name``."""
    return made("scan.rerank", name, make_rerank)
