# mypy: disable-error-code="no-untyped-def, assignment"
"""Renumbering a graph, and mending it around vertices that are to go."""

from typing import Any

import numpy as np

from vecdb.kernels import simd
from vecdb.kernels._jit import kernel
from vecdb.kernels.beam import key_of, row_lines, vertex_of
from vecdb.kernels.bitmaps import has_bit
from vecdb.kernels.link import make_select
from vecdb.kernels.registry import Family, made

MAX_DETOURS = 4_096
"""Vertices looked at to replace one vertex's links to deleted ones."""


@kernel("order.breadth_first")
def breadth_first(links0, entry, count, order, place):
    """Number the vertices as a breadth-first walk from ``entry`` meets them.

    ``order`` int32 (count): vertices in their new order; ``place`` int32 (count), -1 throughout on entry: the inverse.
    Returns how many were reached; the rest follow in their old order.
    """
    reached = 0
    if count > 0:
        order[0] = entry
        place[entry] = 0
        reached += 1
    at = 0
    while at < reached:
        v = np.int64(order[at])
        at += 1
        for j in range(links0.shape[1]):
            w = np.int64(links0[v, j])
            if w < 0:
                break
            if w < count and place[w] < 0:
                place[w] = reached
                order[reached] = w
                reached += 1
    rest = reached
    for v in range(count):
        if place[v] < 0:
            place[v] = rest
            order[rest] = v
            rest += 1
    return reached


@kernel("order.relabel")
def relabel(source, rows, place, target):
    """Write ``source[rows]`` with links mapped through ``place`` (-1: dropped) into ``target``, -1 after the last."""
    for r in range(len(rows)):
        n = 0
        for j in range(source.shape[1]):
            v = np.int64(source[rows[r], j])
            if v < 0:
                break
            if v < len(place) and place[v] >= 0:
                target[r, n] = place[v]
                n += 1
        for j in range(n, target.shape[1]):
            target[r, j] = -1


def make_mend(stored: Family) -> Any:
    """The entry that relinks live vertices around dead ones, over an exact family."""
    pair: Any = stored.pair
    select = make_select(pair)

    @kernel(f"order.mend.{stored.name}")
    def mend(links, slots, level, rows, raux, members, lo, hi, live, marks, near, keys):
        """Relink ``members[lo:hi]`` (live, of that level or higher) where they link to dead vertices.

        Candidates are the live neighbours, and what is reached from the dead ones through dead ones only.  Only the
        members' own rows are written and only dead vertices' rows are read besides, so any number of threads may run.
        ``marks`` int32 (vertices), without the value v + 1 on entry; ``near`` int32 and ``keys`` uint64 (MAX_DETOURS).
        """
        lines = row_lines(rows)
        for at in range(lo, hi):
            v = np.int64(members[at])
            row = v
            if level > 0:
                row = np.int64(slots[v]) + level - 1
            broken = False
            degree = 0
            for j in range(links.shape[1]):
                w = np.int64(links[row, j])
                if w < 0:
                    break
                degree += 1
                broken = broken or not has_bit(live, w)
            if not broken:
                continue
            marks[v] = v + 1
            dead = MAX_DETOURS
            found = 0
            source = np.int64(row)
            while True:
                for j in range(links.shape[1]):
                    w = np.int64(links[source, j])
                    if w < 0 or found >= dead:
                        break
                    if marks[w] != v + 1:
                        marks[w] = v + 1
                        if has_bit(live, w):
                            simd.prefetch(rows, w, lines)
                            near[found] = w
                            found += 1
                        elif dead > found:
                            dead -= 1
                            near[dead] = w
                if found >= 4 * links.shape[1] or dead >= MAX_DETOURS:
                    break
                # the dead wait in a stack at the buffer's end; its top is the one met last
                source = np.int64(near[dead])
                dead += 1
                if level > 0:
                    source = np.int64(slots[source]) + level - 1
            for c in range(found):
                w = np.int64(near[c])
                keys[c] = key_of(pair(rows, raux, v, w), w)
            keys[:found].sort()
            chosen = select(v, keys, found, links.shape[1], rows, raux, links, row)
            # the heuristic alone would thin the graph with every round of deletions: keep the degree it had
            for c in range(found):
                if chosen >= degree:
                    break
                w = vertex_of(keys[c])
                known = False
                for j in range(chosen):
                    known = known or links[row, j] == w
                if not known:
                    links[row, chosen] = w
                    chosen += 1

    return mend


def mend_for(stored: str) -> Any:
    """The mend entry of the exact family ``stored``."""
    return made("order.mend", stored, make_mend)
