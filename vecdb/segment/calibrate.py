"""How wide a beam has to be: measured on the segment's own records, when its graph is built.

Some records are held back from the graph while the rest is linked; they are queries the graph has never seen, and
their true neighbours are known by scanning.  The first width whose recall reaches :data:`TARGET` becomes the
segment's default; then they are linked too.  Where nothing is left to hold back (a rewrite that only drops the dead),
records of the graph itself are asked for their neighbours, which is easier, so more is demanded of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import RowCodes
from vecdb.ann.flat import scan
from vecdb.ann.found import Found

SAMPLE = 256
SCANNED = 32
"""Queries of one exact scan: enough to read each row once for many, few enough to be ended soon."""
TARGET = 0.97
"""Above the 0.95 that is promised by default, for a sample errs and tomorrow's queries differ."""
TARGET_OWN = 0.99
K = 10
WIDTHS = (16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)

Search = Callable[[npt.NDArray[Any], int, int], Found]
"""``search(queries, k, width)`` over the linked vertices."""


def ef_for(measured: int, k: int, asked: int) -> int:
    """The beam's width for a query: as asked, or as measured at k = 10 and widened for a larger ``k``."""
    if asked:
        return max(asked, k)
    base = max(measured, WIDTHS[0])
    return base if k <= K else max(base, base // 2 + 2 * k)


@dataclass(frozen=True, slots=True)
class Calibration:
    """``width`` reaches ``recall`` at k = 10 on ``queries`` records, ``held_out`` of the graph or not."""

    width: int
    recall: float
    queries: int
    held_out: bool

    def describe(self) -> dict[str, Any]:
        return {"ef_search": self.width, "recall_at_10": round(self.recall, 4), "queries": self.queries,
                "held_out": self.held_out}


def calibrate(rows: RowCodes, asked: npt.NDArray[np.int64], linked: int, search: Search,
              look: Callable[[], None] = lambda: None) -> Calibration:
    """Measure with the records ``asked`` (ordinals) on a graph that holds the ordinals below ``linked``.

    ``look`` is called every some queries, and may raise to end it.
    """
    space = rows.space
    queries = np.ascontiguousarray(rows.codes.view(space.row_dtype)[asked, : space.row_items])
    held_out = bool((asked >= linked).all())
    wanted = min(K + 1, linked)
    exact = _truth(rows, queries, wanted, linked, look)
    target = TARGET if held_out else TARGET_OWN
    recall = 0.0
    for width in WIDTHS:
        look()
        found = search(queries, wanted, max(width, wanted))
        recall = _recall(exact, found, asked)
        if recall >= target:
            return Calibration(width, recall, len(asked), held_out)
    return Calibration(WIDTHS[-1], recall, len(asked), held_out)


def _truth(rows: RowCodes, queries: npt.NDArray[Any], wanted: int, linked: int, look: Callable[[], None]) -> Found:
    """The true neighbours, by scans of :data:`SCANNED` queries each."""
    parts = []
    for low in range(0, len(queries), SCANNED):
        look()
        parts.append(scan(rows, queries[low : low + SCANNED], k=wanted, hi=linked))
    return Found(np.concatenate([part.ordinals for part in parts]), np.concatenate([part.distances for part in parts]))


def _recall(exact: Found, found: Found, asked: npt.NDArray[np.int64]) -> float:
    """Share of true neighbours found, one at a tied distance counting too; a record is no neighbour of itself."""
    hits = total = 0
    for query, own in enumerate(asked.tolist()):
        truth = exact.distances[query][(exact.ordinals[query] != own) & (exact.ordinals[query] >= 0)][:K]
        if not len(truth):
            continue
        others = (found.ordinals[query] != own) & (found.ordinals[query] >= 0)
        mine = found.distances[query][others][: len(truth)]
        bound = truth[-1] + 1e-5 * max(1.0, abs(float(truth[-1])))
        hits += int((mine <= bound).sum())
        total += len(truth)
    return hits / total if total else 1.0
