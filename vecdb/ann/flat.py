"""Exact search: a scan over all rows, a range of them, those a filter allows, or a list."""

from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import Codes, Prepared, frozen
from vecdb.ann.found import Found
from vecdb.kernels.scan import _MAX_BLOCK, scan_for

_NO_WORDS = frozen(np.zeros(0, np.uint64))
_NO_ORDINALS = frozen(np.zeros(0, np.int32))
NO_STOP = frozen(np.zeros(1, np.int32))
_HEAP_BYTES = 32 << 20


def scan(codes: Codes, queries: npt.NDArray[Any] | Prepared, *, k: int, lo: int = 0, hi: int | None = None,
         allowed: npt.NDArray[np.uint64] | None = None, ordinals: npt.NDArray[np.integer[Any]] | None = None,
         stop: npt.NDArray[np.int32] | None = None) -> Found:
    """The ``k`` nearest of all rows in [lo, hi), those in the bitset ``allowed``, or those listed in ``ordinals``.

    ``queries``: (nq, row_items) stored dtype, or prepared by the same codes.  With ``ordinals`` the range counts places
    in the list; ``allowed`` may narrow it further.  ``stop`` as in :func:`vecdb.ann.hnsw.search`.
    """
    return scan_within(codes, queries, radius=float("inf"), k=k, lo=lo, hi=hi, allowed=allowed, ordinals=ordinals,
                       stop=stop)


def scan_within(codes: Codes, queries: npt.NDArray[Any] | Prepared, *, radius: float, k: int, lo: int = 0,
                hi: int | None = None, allowed: npt.NDArray[np.uint64] | None = None,
                ordinals: npt.NDArray[np.integer[Any]] | None = None,
                stop: npt.NDArray[np.int32] | None = None) -> Found:
    """As :func:`scan`, but only what lies within the raw distance ``radius``, the nearest ``k`` of it."""
    prepared = queries if isinstance(queries, Prepared) else codes.prepare(queries)
    listed = ordinals is not None
    names = _NO_ORDINALS if ordinals is None else frozen(ordinals.astype(np.int32, copy=False))
    end = len(names) if listed else len(codes.codes)
    hi = end if hi is None else min(hi, end)
    lo = max(0, lo)
    words = _NO_WORDS if allowed is None else frozen(allowed)
    if allowed is not None and not listed and len(words) * 64 < hi:
        raise ValueError(f"allowed has {len(words)} words, too few for {hi} rows")
    room = max(1, min(k, hi - lo))
    nq = len(prepared)
    found, distances = np.empty((nq, k), np.int32), np.empty((nq, k), np.float32)
    tally = np.zeros(3, np.int64)
    block = np.empty(_MAX_BLOCK, np.int32)
    step = max(1, _HEAP_BYTES // (8 * room))
    for first in range(0, nq, step):
        part = slice(first, min(nq, first + step))
        size = part.stop - part.start
        scan_for(codes.family)(codes.codes, codes.aux, prepared.codes[part], prepared.aux[part], room, lo, hi,
                               np.float32(radius), words, allowed is not None, names, listed,
                               NO_STOP if stop is None else frozen(stop), np.empty((size, room), np.uint64),
                               np.zeros(size, np.int64), block, found[part], distances[part], tally)
    return Found(found, distances, 0, int(tally[1]), bool(tally[2]))
