# mypy: disable-error-code="no-untyped-def"
"""Linking: how a batch of vertices enters a graph, and how rows of links are pruned.

A batch is inserted in two phases (as ParlayANN does; Manohar et al. 2024).  *Insert*: every vertex searches the graph
as it stood before the batch, also looks at the vertices next to it in its batch, chooses its neighbours by the
heuristic and writes its own links, which nobody reads yet.  *Merge*: the new links are grouped by target, and each
target takes its new neighbours in, pruned by the same heuristic when they are too many.  Both phases run over disjoint
vertices on any number of threads without locks and give the same graph whatever the threads.

A search running meanwhile reads whole int32 elements: it sees a row before, after or in the midst of a change, each of
which is a list of vertices whose rows exist.

Source: Malkov and Yashunin 2018 (HNSW), algorithms 1 and 4.
"""

from typing import Any

import numpy as np

from vecdb.kernels import simd
from vecdb.kernels._jit import inline, kernel
from vecdb.kernels.beam import (
    H_ENTRY,
    PLAIN,
    admit,
    distance_of,
    graph_arrays,
    key_of,
    make_descend,
    make_walk,
    next_tag,
    row_lines,
    scratch_arrays,
    vertex_of,
)
from vecdb.kernels.registry import Family, family, made

PEERS = 64
"""Vertices of a batch that see each other exactly: a batch's vertices cannot meet in the graph they all search."""


def make_select(pair: Any) -> Any:
    """The neighbour selection heuristic (HNSW algorithm 4, without its optional steps) over an inlined ``pair``."""

    @inline
    def select(own, keys, n, limit, rows, raux, links, row):
        """Write the chosen of ``keys[:n]``, ascending distances from ``own``, to ``links[row]``, -1 after them."""
        chosen = 0
        for c in range(n):
            if chosen == limit:
                break
            v = vertex_of(keys[c])
            d = distance_of(keys[c])
            near = v != own
            for s in range(chosen):
                if pair(rows, raux, v, np.int64(links[row, s])) < d:
                    near = False
                    break
            if near:
                links[row, chosen] = v
                chosen += 1
        for s in range(chosen, links.shape[1]):
            links[row, s] = -1
        return chosen

    return select


def make_insert(walked: Family, stored: Family) -> Any:
    """The first phase: walks on ``walked`` codes, chooses by exact ``stored`` rows; they may be the same."""
    score = walked.score
    descend = make_descend(score)
    walk = make_walk(score)
    pair: Any = stored.pair
    select = make_select(pair)
    coded = walked is not stored

    @inline
    def rescore(rows, raux, v, beam, size):
        """Exact distances for the beam of codes, sorted again by insertion: it is nearly sorted already."""
        for b in range(size):
            w = vertex_of(beam[b])
            key = key_of(pair(rows, raux, v, w), w)
            at = b
            while at > 0 and beam[at - 1] > key:
                beam[at] = beam[at - 1]
                at -= 1
            beam[at] = key

    @kernel(f"link.insert.{walked.name}.{stored.name}")
    def insert(graph, codes, aux, qcodes, qaux, rows, raux, base, members, lo, hi, ef, keep, allowed, stop, scratch,
               tally):
        links0, levels, slots, upper, header = graph_arrays(graph)
        beam, tags, near, scores = scratch_arrays(scratch)
        entry = header[H_ENTRY]
        for b in range(lo, hi):
            v = np.int64(members[b])
            q = b - base
            level = np.int64(levels[v])
            vertex = entry
            top = np.int64(levels[entry])
            for above in range(top + 1, level + 1):
                for j in range(upper.shape[1]):
                    upper[np.int64(slots[v]) + above - 1, j] = -1
            start = score(codes, aux, qcodes, qaux, q, vertex)
            vertex, start = descend(levels, slots, upper, codes, aux, qcodes, qaux, q, vertex, start, top, level,
                                    len(rows), tally)
            for at in range(min(level, top), -1, -1):
                tag = next_tag(scratch, tags)
                tags[vertex] = tag
                # a vertex that is being linked anew must not find itself
                tags[v] = tag
                beam[0] = key_of(start, vertex)
                if at > 0:
                    size = walk(upper, slots, at, codes, aux, qcodes, qaux, q, ef, ef, PLAIN, len(rows), allowed,
                                stop, beam, 1, 1, tags, tag, near, scores, tally)
                else:
                    size = walk(links0, slots, 0, codes, aux, qcodes, qaux, q, ef, ef, PLAIN, len(rows), allowed,
                                stop, beam, 1, 1, tags, tag, near, scores, tally)
                vertex = vertex_of(beam[0])
                start = distance_of(beam[0])
                if coded:
                    size = min(size, keep)
                    rescore(rows, raux, v, beam, size)
                if at == 0:
                    first = lo + (b - lo) // PEERS * PEERS
                    for p in range(first, min(first + PEERS, hi)):
                        if p != b:
                            w = np.int64(members[p])
                            key = key_of(pair(rows, raux, v, w), w)
                            if size < ef or key < beam[size - 1]:
                                size, _, _ = admit(beam, size, size, ef, ef, key)
                    select(v, beam, size, upper.shape[1], rows, raux, links0, v)
                else:
                    select(v, beam, size, upper.shape[1], rows, raux, upper, np.int64(slots[v]) + at - 1)

    return insert


def make_merge(stored: Family) -> Any:
    """The second phase, and pruning in general: rows of links take in further candidates."""
    pair: Any = stored.pair
    select = make_select(pair)

    @kernel(f"link.merge.{stored.name}")
    def merge(links, slots, level, rows, raux, targets, starts, sources, lo, hi, keys):
        """For each group ``g`` of [lo, hi): add ``sources[starts[g]:starts[g + 1]]`` to the links of ``targets[g]``."""
        lines = row_lines(rows)
        width = links.shape[1]
        for g in range(lo, hi):
            target = np.int64(targets[g])
            row = target
            if level > 0:
                row = np.int64(slots[target]) + level - 1
            degree = 0
            while degree < width and links[row, degree] >= 0:
                degree += 1
            n = 0
            for s in range(starts[g], starts[g + 1]):
                known = False
                for j in range(degree):
                    known = known or links[row, j] == sources[s]
                if not known:
                    keys[n] = np.uint64(sources[s])
                    n += 1
            if degree + n <= width:
                for s in range(n):
                    links[row, degree + s] = np.int32(keys[s])
                continue
            for j in range(degree):
                keys[n + j] = np.uint64(links[row, j])
            n += degree
            for s in range(n):
                simd.prefetch(rows, np.int64(keys[s]), lines)
            for s in range(n):
                v = np.int64(keys[s])
                keys[s] = key_of(pair(rows, raux, target, v), v)
            keys[:n].sort()
            select(target, keys, n, width, rows, raux, links, row)

    return merge


def insert_for(walked: str, stored: str) -> Any:
    """The insert entry that walks on family ``walked`` and chooses on family ``stored``."""
    return made(f"link.insert.{stored}", walked, lambda first: make_insert(first, family(stored)))


def merge_for(stored: str) -> Any:
    """The merge entry of the exact family ``stored``."""
    return made("link.merge", stored, make_merge)
