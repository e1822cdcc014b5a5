"""A query that comes alone, from its bytes to the bytes of its answer, with three compiled calls and no arrays made.

For float32 rows, walked as they are or on codes that prepare a query where it stands.  What else a search can do (a
filter, a stop flag, fewer results than were asked for) is left to :meth:`~vecdb.ann.hnsw.search.Searcher.search`.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import InPlaceCodes, RowCodes, address
from vecdb.ann.hnsw.search import Quick, Searcher
from vecdb.core.schema import Metric
from vecdb.kernels import lone as kernels
from vecdb.kernels.beam import P_TALLY, T_COMPARISONS, T_HOPS

MOST_K: Final = 256
"""Most results of a lone query."""
_HOPS, _COMPARISONS = P_TALLY + T_HOPS, P_TALLY + T_COMPARISONS


class _Desk:
    """The memory of one searcher's lone queries, and the plans that point to it."""

    __slots__ = ("after", "before", "distances", "distances_found", "form", "ids", "ids_found", "of", "query", "row")

    def __init__(self, quick: Quick) -> None:
        exact, rows, _ = quick.forms[-1]
        self.row: npt.NDArray[np.float32] = rows[0, :exact.space.row_items]  # padded: what exact scores read
        self.query = self.row.data.cast("B")
        self.form = np.zeros(kernels.B_ITEMS, np.int64)
        self.form[kernels.B_DIM], self.form[kernels.B_QUERY] = len(self.row), address(self.row)
        self.before: Callable[[], bool] = self._rows_alone
        if len(quick.forms) > 1:
            codes, prepared, aux = quick.forms[0]
            self.before = codes.former(self.form, self.row, prepared, aux)
        ids, distances = np.empty(MOST_K, np.int64), np.empty(MOST_K, np.float32)
        self.ids = self.ids_found = ids.data
        self.distances = self.distances_found = distances.data
        self.after = np.zeros(kernels.A_ITEMS, np.int64)
        self.after[kernels.A_ORDINALS:kernels.A_IDS] = address(quick.ordinals), address(quick.distances)
        self.after[kernels.A_OUT_IDS:] = address(ids), address(distances)
        self.of: Lone | None = None

    def _rows_alone(self) -> bool:
        return kernels.form(self.form)  # type: ignore[no-any-return]


class Lone:
    """Lone queries of one graph that differ in the vector alone; ``ids`` int64 by ordinal, kept alive.

    ``unit``: vectors come with unit length where the metric needs it.  ``hops`` and ``comparisons`` are of the last
    query.  One thread's.
    """

    __slots__ = ("_ends", "_form", "_ids", "_ids_at", "_k", "_metric", "_numbers", "comparisons", "hops")

    def __init__(self, metric: Metric, unit: bool, ids: npt.NDArray[np.int64], count: int, *, k: int, ef: int, keep: int
                 ) -> None:
        self._metric, self._k = metric, k
        self._ids, self._ids_at = ids, address(ids)
        cosine = kernels.UNIT if unit else kernels.NORMALIZED
        self._form = cosine if metric is Metric.COSINE else kernels.SHORT
        self._numbers = Searcher.numbers_of(k, ef, keep, count)
        self.hops = self.comparisons = 0

    @staticmethod
    def fits(searcher: Searcher) -> bool:
        """Whether lone queries can be searched with it."""
        quick = searcher.lone()
        if quick is None:
            return False
        exact, rows, _ = quick.forms[-1]
        return isinstance(exact, RowCodes) and rows.dtype == np.float32 \
            and all(isinstance(codes, InPlaceCodes) for codes, _, _ in quick.forms[:-1])

    def search(self, searcher: Searcher, data: bytes) -> tuple[bytes, bytes] | None:
        """Ids int64 and users' distances float32, k each; None if the vector or the answer is not what is usual.

        ``data``: float32 components, as many as the rows have.
        """
        quick: Any = searcher.quick or searcher.lone()
        desk: _Desk = quick.spare or self._sit_down(quick)
        if desk.of is not self:
            self._lay_out(desk)
        desk.query[:] = data
        if not desk.before():
            return None
        searcher.run_lone(quick, self._numbers)
        items = quick.items
        self.hops, self.comparisons = items[_HOPS], items[_COMPARISONS]
        if not kernels.answer(desk.after):
            return None
        return desk.ids_found.tobytes(), desk.distances_found.tobytes()

    @staticmethod
    def _sit_down(quick: Quick) -> _Desk:
        desk = quick.spare = _Desk(quick)
        return desk

    def _lay_out(self, desk: _Desk) -> None:
        desk.form[kernels.B_FORM] = self._form
        desk.after[:kernels.A_ORDINALS] = self._k, self._metric is Metric.L2, self._metric is not Metric.DOT
        desk.after[kernels.A_IDS] = self._ids_at
        desk.ids_found, desk.distances_found = desk.ids[:self._k], desk.distances[:self._k]
        desk.of = self
