"""Searching a graph: many queries in one call, or one with little around it."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import Codes, Prepared, frozen
from vecdb.ann.found import Found
from vecdb.ann.hnsw.build import EVERYTHING, NO_STOP
from vecdb.ann.hnsw.graph import Graph, Scratch
from vecdb.core.limits import MAX_EF
from vecdb.kernels.beam import FILTERED, PLAIN, POST, T_COMPARISONS, T_HOPS, T_STOPPED, search_for
from vecdb.kernels.bitmaps import count_bits, sample_bits

Mode = Literal["post", "filtered"]
SEEDS = 48
"""Allowed vertices a filtered search starts from besides the entry: the filter may exclude all that lies near it."""

_NO_SEEDS = frozen(np.zeros(0, np.int32))


def search(graph: Graph, codes: Codes, queries: npt.NDArray[Any] | Prepared, *, k: int, ef: int,
           allowed: npt.NDArray[np.uint64] | None = None, count: int | None = None, mode: Mode = "post",
           scratch: Scratch | None = None, stop: npt.NDArray[np.int32] | None = None) -> Found:
    """The ``k`` nearest vertices to each query, as far as a beam of ``ef`` (at least ``k``) finds them.

    ``queries``: (nq, row_items) stored dtype, or prepared by the same codes.  ``allowed``: a bitset of ordinals; others
    are no results.  ``mode="post"`` walks all vertices and suits filters that leave a good part; ``"filtered"`` walks
    allowed ones, reaching over others, and suits narrow ones.  Only vertices below ``count`` (default: the published
    count) are seen.  ``scratch`` is the caller's, one per thread.  ``stop`` int32 (1,): set non-zero by another
    thread, it ends the search within some hops, and what was found by then is the answer.
    """
    prepared = queries if isinstance(queries, Prepared) else codes.prepare(queries)
    scratch = scratch or Scratch()
    count = graph.count if count is None else min(count, graph.count)
    ef = max(ef, k)
    kind, cap, seeds = _plan(allowed, count, ef, mode)
    scratch.reserve(graph.capacity, cap, graph.m0)
    nq = len(prepared)
    ordinals = np.empty((nq, k), np.int32)
    distances = np.empty((nq, k), np.float32)
    tally = np.zeros(3, np.int64)
    search_for(codes.family)(graph.context, codes.codes, codes.aux, prepared.codes, prepared.aux, k, ef, cap, kind,
                             count, EVERYTHING if allowed is None else frozen(allowed), seeds,
                             NO_STOP if stop is None else frozen(stop), scratch.context, ordinals, distances, tally)
    return Found(ordinals, distances, int(tally[T_HOPS]), int(tally[T_COMPARISONS]), bool(tally[T_STOPPED]))


def _plan(allowed: npt.NDArray[np.uint64] | None, count: int, ef: int,
          mode: Mode) -> tuple[int, int, npt.NDArray[np.int32]]:
    """The kernel's mode, the beam's room and the seeds."""
    if allowed is None:
        return PLAIN, ef, _NO_SEEDS
    words = frozen(allowed)
    if len(words) * 64 < count:
        raise ValueError(f"allowed has {len(words)} words, too few for {count} vertices")
    if mode == "filtered":
        seeds = np.empty(SEEDS, np.int32)
        return FILTERED, ef + 1, frozen(seeds[:sample_bits(words, count, seeds)])
    matches = count_bits(words, count)
    if matches == count:
        return PLAIN, ef, _NO_SEEDS
    # room for the barred vertices that stand between ef allowed ones, were the filter independent of the query,
    # twice over
    return POST, int(min(count, 2 * ef * count // max(matches, 1) + 64, 4 * MAX_EF)), _NO_SEEDS
