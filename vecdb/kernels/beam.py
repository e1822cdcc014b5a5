# mypy: disable-error-code="no-untyped-def, assignment"
"""The beam: best-first search of a graph, one sorted array for candidates, results and what is left to expand.

An entry of the beam is one uint64 *key*: the distance's order-preserving bits, then the vertex (30 bits), then two
flags.  Comparing keys compares (distance, vertex), so ties are settled the same way everywhere; inserting is a count
of smaller keys and a shift, both over whole vectors.  ``EXPANDED``: its links were followed.  ``BARRED``: it may be
walked through but is no result.  The beam holds at most ``ef`` unbarred entries and ``cap`` in all.  As soon as there
are ``ef`` unbarred ones, whatever lies beyond the last of them is cut off, which is hnswlib's stopping rule (a
candidate farther than the worst of ``ef`` results is not expanded) without a second queue.

Visited marks are one byte per vertex holding the number of the search that saw it: nothing is cleared but once in 255
searches, and the marks of a million vertices stay in the second-level cache.

Per hop: unvisited neighbours are gathered and their rows prefetched, then all are scored, then all are inserted: the
loads overlap, and the unpredictable branches stand after them.

Sources: Malkov and Yashunin 2018 (HNSW), algorithms 2 and 5; Patel et al. 2024 (ACORN) for the two-hop expansion of
filtered search.
"""

from typing import Any

import numpy as np
from numba import carray

from vecdb.kernels import simd
from vecdb.kernels._jit import inline, kernel
from vecdb.kernels.bitmaps import has_bit
from vecdb.kernels.registry import Family, family, made

EXPANDED = np.uint64(1)
BARRED = np.uint64(2)
MAX_VERTICES = 1 << 30

PLAIN, POST, FILTERED = 0, 1, 2
"""Modes: every vertex may be a result; results are filtered; the walk keeps to allowed vertices (two hops)."""

# where things stand in a graph's context (addresses and sizes, int64) ...
G_LINKS0, G_LEVELS, G_SLOTS, G_UPPER, G_HEADER, G_CAPACITY, G_M0, G_M, G_UPPER_ROWS, G_ITEMS = range(10)
# ... in its header ...
H_COUNT, H_ENTRY, H_MAX_LEVEL, H_UPPER_USED = range(4)
# ... in a scratch's context ...
S_BEAM, S_BEAM_SIZE, S_TAGS, S_TAGS_SIZE, S_NEAR, S_NEAR_SIZE, S_SCORES, S_TAG, S_ITEMS = range(9)
# ... in the counts a search adds to ...
T_HOPS, T_COMPARISONS, T_STOPPED, T_ITEMS = range(4)
# ... and in a search's plan.  Codes, and rows to rerank on, are nine items each: address, rows and width of the codes,
# address and width of their aux, the same of the queries' codes and aux.
P_GRAPH, P_SCRATCH, P_K, P_EF, P_CAP, P_KEEP, P_MODE, P_COUNT, P_QUERIES = range(9)
P_ALLOWED, P_SEEDS, P_SEED_COUNT, P_STOP, P_ORDINALS, P_DISTANCES = range(9, 15)
P_CODES = 15
P_ROWS = P_CODES + 9
P_TALLY = P_ROWS + 9
P_ITEMS = P_TALLY + T_ITEMS

_CHECK_STOP_EVERY = 16
_COUNTED = 96
"""A stretch of the beam this short is counted through with vectors instead of halved."""
_ENOUGH = 4
"""A filtered hop that found a row's width divided by this many allowed vertices looks no further ..."""
_LOOK_THROUGH = 4
"""... and none looks through more than this many times a row's width."""
_PREFETCH_LINES = 16
_MIDDLE = np.uint64(MAX_VERTICES - 1)


@inline
def key_of(distance, vertex):
    """The key of an unexpanded, unbarred vertex at ``distance`` (float32)."""
    return (simd.float_order(distance) << np.uint64(32)) | (np.uint64(vertex) << np.uint64(2))


@inline
def vertex_of(key):
    return np.int64((key >> np.uint64(2)) & _MIDDLE)


@inline
def distance_of(key):
    return simd.order_float(key >> np.uint64(32))


@inline
def graph_arrays(graph):
    """Arrays over a graph's memory: links0, levels, slots, upper, header."""
    capacity = graph[G_CAPACITY]
    return (carray(simd.pointer(graph[G_LINKS0]), (capacity, graph[G_M0]), np.int32),
            carray(simd.pointer(graph[G_LEVELS]), (capacity,), np.uint8),
            carray(simd.pointer(graph[G_SLOTS]), (capacity,), np.int32),
            carray(simd.pointer(graph[G_UPPER]), (graph[G_UPPER_ROWS], graph[G_M]), np.int32),
            carray(simd.pointer(graph[G_HEADER]), (8,), np.int64))


@inline
def scratch_arrays(scratch):
    """Arrays over a scratch's memory: beam, tags, near, scores."""
    return (carray(simd.pointer(scratch[S_BEAM]), (scratch[S_BEAM_SIZE],), np.uint64),
            carray(simd.pointer(scratch[S_TAGS]), (scratch[S_TAGS_SIZE],), np.uint8),
            carray(simd.pointer(scratch[S_NEAR]), (scratch[S_NEAR_SIZE],), np.int32),
            carray(simd.pointer(scratch[S_SCORES]), (scratch[S_NEAR_SIZE],), np.float32))


@inline
def next_tag(scratch, tags):
    """A mark that no vertex carries."""
    tag = scratch[S_TAG] + 1
    if tag > 255:
        tags[:] = np.uint8(0)
        tag = 1
    scratch[S_TAG] = tag
    return np.uint8(tag)


@inline
def lower_bound(keys, size, key):
    """The first place of ``keys[:size]``, ascending, that is not below ``key``."""
    lo = 0
    left = size
    while left > _COUNTED:
        half = left >> 1
        if keys[lo + half] < key:
            lo += half + 1
            left -= half + 1
        else:
            left = half
    return lo + simd.count_below(keys, lo, lo + left, key)


@inline
def admit(beam, size, admitted, ef, cap, key):
    """Insert ``key``, which belongs before the end of a full beam; return (size, admitted, its place)."""
    at = lower_bound(beam, size, key)
    simd.make_room(beam, at, size)
    beam[at] = key
    size += 1
    if key & BARRED == np.uint64(0):
        admitted += 1
    if admitted > ef:
        size -= 1
        admitted -= 1
        while beam[size - 1] & BARRED != np.uint64(0):
            size -= 1
    elif size > cap:
        size -= 1
        if beam[size] & BARRED == np.uint64(0):
            admitted -= 1
    return size, admitted, at


@inline
def row_lines(codes):
    """Cache lines of a code row worth prefetching: beyond some the hardware's own prefetcher has caught on."""
    return min((codes.shape[1] * codes.itemsize + 63) >> 6, _PREFETCH_LINES)


@inline
def gather(links, row, count, tags, tag, near, codes, lines):
    """List the unvisited neighbours below ``count`` of a links row in ``near`` and mark and prefetch them."""
    n = 0
    for j in range(links.shape[1]):
        v = np.int64(links[row, j])
        if v < 0:
            break
        if v < count:
            # whether it was visited cannot be predicted: written in any case, counted if new
            near[n] = v
            n += np.int64(tags[v] != tag)
            tags[v] = tag
            simd.prefetch(codes, v, lines)
    return n


@inline
def gather_allowed(links, row, count, allowed, tags, tag, near, codes, lines):
    """As :func:`gather`, but allowed vertices only, reached directly or through others that are not.

    Every direct neighbour that is not allowed is looked through.  Where the filter is so narrow that this yields
    little, further ones are, breadth first, up to a bound.  Those met and not looked through count as unvisited.
    ``near`` holds what is found from its front and what is to be looked through from its end.
    """
    width = links.shape[1]
    n = 0
    end = len(near)
    low = end
    at = end
    direct = 0
    looked = 0
    source = row
    while True:
        for j in range(width):
            v = np.int64(links[source, j])
            if v < 0:
                break
            if v >= count or tags[v] == tag or n >= low:
                continue
            if has_bit(allowed, v):
                tags[v] = tag
                simd.prefetch(codes, v, lines)
                near[n] = v
                n += 1
            elif looked == 0 or n < width // _ENOUGH:
                tags[v] = tag
                simd.prefetch(links, v, 2)
                low -= 1
                near[low] = v
        if looked == 0:
            direct = end - low
        looked += 1
        if at == low or n >= 2 * width:
            break
        if looked > direct and (n >= width // _ENOUGH or looked > _LOOK_THROUGH * width):
            break
        at -= 1
        source = np.int64(near[at])
    for middle in range(low, at):
        tags[near[middle]] = np.uint8(0)
    return n


def make_descend(score: Any) -> Any:
    """The greedy walk through upper levels (HNSW algorithm 2 with ef = 1), over an inlined scorer."""

    @inline
    def descend(levels, slots, upper, codes, aux, qcodes, qaux, q, vertex, distance, top, bottom, count, tally):
        for level in range(top, bottom, -1):
            moved = True
            while moved:
                moved = False
                row = np.int64(slots[vertex]) + level - 1
                for j in range(upper.shape[1]):
                    v = np.int64(upper[row, j])
                    if v < 0:
                        break
                    simd.prefetch(codes, v, 2)
                for j in range(upper.shape[1]):
                    v = np.int64(upper[row, j])
                    if v < 0:
                        break
                    if v >= count:
                        continue
                    tally[T_COMPARISONS] += 1
                    d = score(codes, aux, qcodes, qaux, q, v)
                    if d < distance:
                        distance = d
                        vertex = v
                        moved = True
        return vertex, distance

    return descend


def make_walk(score: Any) -> Any:
    """The beam search of one level (HNSW algorithm 2), over an inlined scorer."""

    @inline
    def walk(links, slots, level, codes, aux, qcodes, qaux, q, ef, cap, mode, count, allowed, stop,
             beam, size, admitted, tags, tag, near, scores, tally):
        lines = row_lines(codes)
        cursor = 0
        hops = 0
        compared = 0
        while cursor < size:
            key = beam[cursor]
            if key & EXPANDED != np.uint64(0):
                cursor += 1
                continue
            if hops & (_CHECK_STOP_EVERY - 1) == 0 and stop[0] != 0:
                tally[T_STOPPED] = 1
                break
            hops += 1
            beam[cursor] = key | EXPANDED
            row = vertex_of(key)
            if level > 0:
                row = np.int64(slots[row]) + level - 1
            if mode == FILTERED:
                n = gather_allowed(links, row, count, allowed, tags, tag, near, codes, lines)
            else:
                n = gather(links, row, count, tags, tag, near, codes, lines)
            if cursor + 1 < size and level == 0:
                simd.prefetch(links, vertex_of(beam[cursor + 1]), 2)
            for t in range(n):
                scores[t] = score(codes, aux, qcodes, qaux, q, np.int64(near[t]))
            compared += n
            if admitted >= ef or size >= cap:
                # most are too far, which ones cannot be predicted: the others are moved to the front first
                worst = distance_of(beam[size - 1])
                better = 0
                for t in range(n):
                    scores[better] = scores[t]
                    near[better] = near[t]
                    better += np.int64(scores[t] <= worst)
                n = better
            for t in range(n):
                key = key_of(scores[t], near[t])
                if (admitted >= ef or size >= cap) and key >= beam[size - 1]:
                    continue
                if mode == POST and not has_bit(allowed, np.int64(near[t])):
                    key |= BARRED
                size, admitted, at = admit(beam, size, admitted, ef, cap, key)
                if at <= cursor:
                    # it is expanded next, unless a nearer one comes
                    cursor = at
                    if level == 0:
                        simd.prefetch(links, np.int64(near[t]), 2)
        tally[T_HOPS] += hops
        tally[T_COMPARISONS] += compared
        return size

    return walk


def make_query(score: Any) -> Any:
    """One query from the entry to a filled beam, over an inlined scorer."""
    descend = make_descend(score)
    walk = make_walk(score)

    @inline
    def query(arrays, codes, aux, qcodes, qaux, q, ef, cap, mode, count, allowed, seeds, stop, scratch, work, tally):
        links0, levels, slots, upper, header = arrays
        beam, tags, near, scores = work
        entry = header[H_ENTRY]
        start = score(codes, aux, qcodes, qaux, q, entry)
        tally[T_COMPARISONS] += 1
        vertex, start = descend(levels, slots, upper, codes, aux, qcodes, qaux, q, entry, start,
                                np.int64(levels[entry]), 0, count, tally)
        tag = next_tag(scratch, tags)
        tags[vertex] = tag
        beam[0] = key_of(start, vertex)
        size = 1
        admitted = 1
        if vertex >= count or (mode != PLAIN and not has_bit(allowed, vertex)):
            beam[0] |= BARRED
            admitted = 0
        for s in range(len(seeds)):
            v = np.int64(seeds[s])
            if tags[v] != tag:
                tags[v] = tag
                key = key_of(score(codes, aux, qcodes, qaux, q, v), v)
                tally[T_COMPARISONS] += 1
                if (admitted < ef and size < cap) or key < beam[size - 1]:
                    size, admitted, _ = admit(beam, size, admitted, ef, cap, key)
        return walk(links0, slots, 0, codes, aux, qcodes, qaux, q, ef, cap, mode, count, allowed, stop,
                    beam, size, admitted, tags, tag, near, scores, tally)

    return query


@inline
def unbarred(beam, size, keep):
    """Move the first ``keep`` unbarred entries of the beam to its front; return how many there are."""
    n = 0
    for b in range(size):
        if n == keep:
            break
        if beam[b] & BARRED == np.uint64(0):
            beam[n] = beam[b]
            n += 1
    return n


def _array_of(family: Family) -> Any:
    """An inline ``f(plan, at)`` that makes the 2-D array of ``family``'s codes described at ``plan[at:at + 3]``."""
    code_dtype, query_dtype = family.code_dtype.type, family.query_dtype.type

    @inline
    def arrays(plan, at):
        return (carray(simd.pointer(plan[at]), (plan[at + 1], plan[at + 2]), code_dtype),
                carray(simd.pointer(plan[at + 3]), (plan[at + 1], plan[at + 4]), np.float32),
                carray(simd.pointer(plan[at + 5]), (plan[P_QUERIES], plan[at + 6]), query_dtype),
                carray(simd.pointer(plan[at + 7]), (plan[P_QUERIES], plan[at + 8]), np.float32))

    return arrays


def make_rescore(score: Any) -> Any:
    """Exact scores for the front of a beam, sorted again by insertion (codes leave it nearly in order)."""

    @inline
    def rescore(beam, n, rows, raux, qrows, qraux, q):
        lines = row_lines(rows)
        for b in range(n):
            simd.prefetch(rows, vertex_of(beam[b]), lines)
        for b in range(n):
            v = vertex_of(beam[b])
            key = key_of(score(rows, raux, qrows, qraux, q, v), v)
            at = b
            while at > 0 and beam[at - 1] > key:
                beam[at] = beam[at - 1]
                at -= 1
            beam[at] = key

    return rescore


def make_search(walked: Family, exact: Family | None) -> Any:
    """The serving entry: many queries on ``walked`` codes, the best of each reranked on ``exact`` rows if given.

    Everything comes in one int64 array, the *plan* (``P_*``): addresses, sizes and numbers.  A call converts one
    argument instead of twenty, and mapped, read-only and writable memory share one compiled signature.
    """
    query = make_query(walked.score)
    rescore = make_rescore(walked.score if exact is None else exact.score)
    code_arrays = _array_of(walked)
    row_arrays = _array_of(walked if exact is None else exact)
    reranks = exact is not None

    @kernel(f"beam.search.{walked.name}" + (f".{exact.name}" if exact is not None else ""))
    def search(plan):
        graph = carray(simd.pointer(plan[P_GRAPH]), (G_ITEMS,), np.int64)
        scratch = carray(simd.pointer(plan[P_SCRATCH]), (S_ITEMS,), np.int64)
        codes, aux, qcodes, qaux = code_arrays(plan, P_CODES)
        rows, raux, qrows, qraux = row_arrays(plan, P_ROWS)
        allowed = carray(simd.pointer(plan[P_ALLOWED]), (1,), np.uint64)
        seeds = carray(simd.pointer(plan[P_SEEDS]), (plan[P_SEED_COUNT],), np.int32)
        stop = carray(simd.pointer(plan[P_STOP]), (1,), np.int32)
        k = plan[P_K]
        ordinals = carray(simd.pointer(plan[P_ORDINALS]), (plan[P_QUERIES], k), np.int32)
        distances = carray(simd.pointer(plan[P_DISTANCES]), (plan[P_QUERIES], k), np.float32)
        tally = plan[P_TALLY:]
        tally[:] = 0
        count = plan[P_COUNT]
        arrays = graph_arrays(graph)
        work = scratch_arrays(scratch)
        beam = work[0]
        for q in range(plan[P_QUERIES]):
            n = 0
            if arrays[4][H_ENTRY] >= 0 and count > 0 and tally[T_STOPPED] == 0:
                size = query(arrays, codes, aux, qcodes, qaux, q, plan[P_EF], plan[P_CAP], plan[P_MODE], count,
                             allowed, seeds, stop, scratch, work, tally)
                n = unbarred(beam, size, plan[P_KEEP])
                if reranks:
                    rescore(beam, n, rows, raux, qrows, qraux, q)
                    tally[T_COMPARISONS] += n
            for j in range(min(n, k)):
                ordinals[q, j] = vertex_of(beam[j])
                distances[q, j] = distance_of(beam[j])
            for j in range(min(n, k), k):
                ordinals[q, j] = -1
                distances[q, j] = np.inf

    return search


def search_for(walked: str, exact: str | None) -> Any:
    """The search entry that walks on family ``walked`` and reranks on the rows of family ``exact``, if any."""
    stored = None if exact is None else family(exact)
    return made(f"beam.search.{exact}", walked, lambda first: make_search(first, stored))
