"""What calls give back: sequences over columns, made into objects only when an item is looked at.

A query of 1,000 rows and k=100 has 100,000 results; ``ids``, ``distances`` and ``scores`` are columns
as the engine made them, and a :class:`Hit` comes to be when it is indexed or iterated over.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from vecdb.core.ids import RecordId
from vecdb.core.query import Cost, Matches, ScanPage
from vecdb.core.records import Metadata, Record
from vecdb.core.schema import Metric


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a query.

    ``distance`` ascends from the nearest: cosine ``1 - cos``, dot ``-dot``, l2 the Euclidean distance, hamming
    the differing bits.  ``score`` descends: the similarity for cosine and dot, ``-distance`` otherwise.
    ``metadata`` and ``vector`` are None unless ``include`` named them.
    """

    id: RecordId
    score: float
    distance: float
    metadata: Metadata | None = None
    vector: npt.NDArray[Any] | None = field(default=None, compare=False)


class Hits(Sequence[Hit]):
    """The answer to one query, nearest first.

    ``ids``: list; ``distances``: float32 (n,); ``metadata``: list of dicts or None; ``vectors``: (n, row_items)
    or None; ``plan``: how the query was done, if ``explain`` was asked; ``cost``: what it took, if
    ``profile`` was; ``missing``: what could not be searched.
    """

    __slots__ = ("_matches", "_metric", "cost", "missing", "plan")

    def __init__(self, matches: Matches, metric: Metric, plan: dict[str, Any] | None = None,
                 missing: tuple[str, ...] = (), cost: Cost | None = None) -> None:
        self._matches = matches
        self._metric = metric
        self.plan = plan
        self.missing = missing
        self.cost = cost

    @property
    def ids(self) -> list[RecordId]:
        return self._matches.ids

    @property
    def distances(self) -> npt.NDArray[np.float32]:
        return self._matches.distances

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """float32 (n,), descending."""
        return np.subtract(self._top, self._matches.distances, dtype=np.float32)

    @property
    def _top(self) -> np.float32:
        # 0 - d, not -d: an exact match under l2 scores 0.0 and not -0.0.
        return np.float32(1.0 if self._metric is Metric.COSINE else 0.0)

    @property
    def metadata(self) -> list[Metadata] | None:
        return self._matches.metadata

    @property
    def vectors(self) -> npt.NDArray[Any] | None:
        return self._matches.vectors

    @property
    def partial(self) -> bool:
        """Whether some segments or shards could not be searched; ``missing`` names them."""
        return bool(self.missing)

    def _hit(self, i: int) -> Hit:
        matches = self._matches
        distance = matches.distances[i]
        return Hit(matches.ids[i], float(self._top - distance), float(distance),
                   None if matches.metadata is None else matches.metadata[i],
                   None if matches.vectors is None else matches.vectors[i])

    def __len__(self) -> int:
        return len(self._matches.ids)

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> "Hits": ...

    def __getitem__(self, index: int | slice) -> "Hit | Hits":
        if not isinstance(index, slice):
            return self._hit(range(len(self))[index])
        m = self._matches
        part = Matches(m.ids[index], m.distances[index], None if m.metadata is None else m.metadata[index],
                       None if m.vectors is None else m.vectors[index])
        return Hits(part, self._metric, self.plan, self.missing, self.cost)

    def __iter__(self) -> Iterator[Hit]:
        return map(self._hit, range(len(self)))

    def __repr__(self) -> str:
        shown = ", ".join(f"{hit.id!r}: {hit.distance:.4g}" for hit in self[:5])
        more = ", …" if len(self) > 5 else ""
        return f"<Hits {len(self)} ({'partial; ' if self.partial else ''}id: distance) {shown}{more}>"


class Records(Sequence[Record]):
    """Records as columns: ``ids`` list, ``metadata`` list of dicts or None, ``vectors`` (n, row_items) or None.

    ``damaged``: ids of records left out because their vectors are damaged on disk (a scan that skips them).
    ``missing``: shards that were passed over (a scan that allows it).
    """

    __slots__ = ("damaged", "ids", "metadata", "missing", "vectors")

    def __init__(self, page: ScanPage, damaged: tuple[RecordId, ...] = ()) -> None:
        self.damaged = damaged
        self.missing = page.missing
        self.ids = page.ids
        self.metadata = page.metadata
        self.vectors = page.vectors

    def __len__(self) -> int:
        return len(self.ids)

    def _record(self, i: int) -> Record:
        return Record(self.ids[i], {} if self.metadata is None else self.metadata[i],
                      None if self.vectors is None else self.vectors[i])

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> "Records": ...

    def __getitem__(self, index: int | slice) -> "Record | Records":
        if not isinstance(index, slice):
            return self._record(range(len(self))[index])
        return Records(ScanPage(self.ids[index], None if self.metadata is None else self.metadata[index],
                                None if self.vectors is None else self.vectors[index], None, self.missing),
                           self.damaged)

    def __repr__(self) -> str:
        return f"<Records {len(self)}{f', {len(self.damaged)} damaged left out' if self.damaged else ''}>"
