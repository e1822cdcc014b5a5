# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""Searching inverted lists: one call walks the lists of all queries of a batch and keeps the best in a heap each."""

from typing import Any

import numpy as np

from vecdb.kernels._jit import kernel
from vecdb.kernels.beam import key_of
from vecdb.kernels.bitmaps import has_bit
from vecdb.kernels.registry import Family, made
from vecdb.kernels.scan import drain, sift_down, sift_up


def make_search(family: Family) -> Any:
    """The list-search entry of a family."""
    score = family.score

    @kernel(f"ivf.search.{family.name}")
    def search(codes, aux, qcodes, qaux, offsets, ordinals, probes, bases, least, enough, k, allowed, filtered,
               stop, heap, found, distances, tally):
        """Walk each query's lists in the order of ``probes`` (nq, lists) and keep the ``k`` nearest.

        ``codes`` and ``aux`` are in list order: row ``s`` is ordinal ``ordinals[s]``.  ``bases`` float32 (nq, lists) is
        added to the scores of a list.  At least ``least`` lists are walked, and further ones until ``enough`` rows were
        scored.  ``heap`` uint64 (k) is scratch; ``tally`` gets lists, rows, and 1 if
        ``stop`` cut the search short: it is looked at before each list.
        """
        found[:] = np.int32(-1)
        distances[:] = np.float32(np.inf)
        for q in range(len(qcodes)):
            size, scored = 0, 0
            for p in range(probes.shape[1]):
                if p >= least and scored >= enough:
                    break
                if stop[0] != 0:
                    tally[2] = 1
                    break
                tally[0] += 1
                base = bases[q, p]
                lo, hi = offsets[probes[q, p]], offsets[probes[q, p] + 1]
                for s in range(lo, hi):
                    v = np.int64(ordinals[s])
                    if filtered and not has_bit(allowed, v):
                        continue
                    key = key_of(base + score(codes, aux, qcodes, qaux, q, s), v)
                    scored += 1
                    if size < k:
                        sift_up(heap, size, key)
                        size += 1
                    elif key < heap[0]:
                        sift_down(heap, k, key)
            tally[1] += scored
            drain(heap, size, found[q], distances[q])

    return search


def search_for(name: str) -> Any:
    """The list-search entry of family ``name``."""
    return made("ivf.search", name, make_search)
