"""Exact distances for what a search on codes has found."""

from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import Prepared, RowCodes, frozen
from vecdb.ann.found import Found
from vecdb.ann.space import Space
from vecdb.kernels.scan import rerank_for


def rerank(space: Space, rows: npt.NDArray[Any], aux: npt.NDArray[np.float32], queries: npt.NDArray[Any], found: Found,
           k: int) -> Found:
    """Order ``found`` by exact raw distances over ``rows`` and keep the best ``k``.

    ``rows`` (n, row_width) may be a read-only mapping: only the candidates' rows are read.  ``queries``: stored dtype,
    (nq, row_items).  Counts of ``found`` are added to.
    """
    exact = RowCodes(space, rows, aux)
    return rerank_on(exact, exact.prepare(queries), found, k)


def rerank_on(exact: RowCodes, prepared: Prepared, found: Found, k: int) -> Found:
    """As :func:`rerank`, with the exact codes and the queries prepared by them at hand."""
    nq = len(prepared)
    ordinals, distances = np.empty((nq, k), np.int32), np.empty((nq, k), np.float32)
    room = max(1, min(k, found.ordinals.shape[1]))
    compared = rerank_for(exact.family)(exact.codes, exact.aux, prepared.codes, prepared.aux, room,
                                        frozen(found.ordinals), np.empty(room, np.uint64), ordinals, distances)
    if room < k:
        ordinals[:, room:] = -1
        distances[:, room:] = np.inf
    return Found(ordinals, distances, found.hops, found.comparisons + compared, found.stopped)
