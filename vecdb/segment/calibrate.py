"""How wide a beam has to be: measured on the segment's own records, once, when it is built.

A sample of records is asked for its neighbours, exactly and through the index at growing widths; the first
width whose recall reaches the target becomes the segment's default.  A record finds itself at distance 0, which
says nothing, so it is left out of both answers.  Queries from elsewhere are a little harder than records,
hence a target above the 0.95 that is promised.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import RowCodes
from vecdb.ann.flat import scan
from vecdb.ann.found import Found

SAMPLE = 200
TARGET = 0.99
K = 10
WIDTHS = (16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)

Search = Callable[[npt.NDArray[Any], int, int], Found]
"""``search(queries, k, width)``."""


def calibrate(rows: RowCodes, search: Search, widths: tuple[int, ...] = WIDTHS) -> tuple[int, float]:
    """Return ``(width, recall)``: the narrowest that reaches :data:`TARGET`, or the widest with what it reaches."""
    count = len(rows.codes)
    picked = np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64))
    space = rows.space
    queries = np.ascontiguousarray(rows.codes.view(space.row_dtype)[picked, : space.row_items])
    wanted = min(K + 1, count)
    exact = scan(rows, queries, k=wanted)
    recall = 0.0
    for width in widths:
        found = search(queries, wanted, max(width, wanted))
        recall = _recall(exact, found, picked)
        if recall >= TARGET:
            return width, recall
    return widths[-1], recall


def _recall(exact: Found, found: Found, own: npt.NDArray[np.int64]) -> float:
    """Share of true neighbours found, a neighbour at a tied distance counting too, the record itself not."""
    hits = total = 0
    for query, self_ordinal in enumerate(own.tolist()):
        truth = exact.distances[query][exact.ordinals[query] != self_ordinal][:K]
        if not len(truth) or not np.isfinite(truth[0]):
            continue
        truth = truth[np.isfinite(truth)]
        others = (found.ordinals[query] != self_ordinal) & (found.ordinals[query] >= 0)
        mine = found.distances[query][others][: len(truth)]
        bound = truth[-1] + 1e-5 * max(1.0, abs(float(truth[-1])))
        hits += int((mine <= bound).sum())
        total += len(truth)
    return hits / total if total else 1.0
