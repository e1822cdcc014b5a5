"""Queries and answers as they travel inside: checked, columnar."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId

Cursor: TypeAlias = int | bytes
"""Where a scan's next page begins: in one shard a place in it, across several an opaque position of at most
:data:`MAX_POSITION_BYTES`.
"""
MAX_POSITION_BYTES: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class QueryRequest:
    """Nearest-neighbour queries.

    ``vectors``: (nq, row_items), stored dtype, normalised for cosine.  ``k``: most results a query.
    ``within``: None, or the largest distance (as users see it) of a result: a range search, still bounded
    by ``k``.  ``ef_search``/``nprobe``: 0 lets the engine choose.  ``exact``: scan, whatever index there is.
    ``shape``: of the schema it was checked against; 0: not said.
    """

    vectors: npt.NDArray[Any]
    k: int
    filter: Node | None = None
    within: float | None = None
    ef_search: int = 0
    nprobe: int = 0
    exact: bool = False
    include_metadata: bool = False
    include_vectors: bool = False
    explain: bool = False
    profile: bool = False
    shape: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a query took where it ran; ``compute_ms`` and ``batched`` are of the batch it ran in.

    ``queue_ms`` is the wait for its turn (0 embedded), ``batched`` the queries that ran together, itself included.
    """

    queue_ms: float = 0.0
    compute_ms: float = 0.0
    batched: int = 1
    hops: int = 0
    comparisons: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Matches:
    """The answer to one query, nearest first.

    ``distances``: float32 (n,), ascending, as users see them.  ``metadata``/``vectors`` are None unless asked for.
    """

    ids: list[RecordId]
    distances: npt.NDArray[np.float32]
    metadata: list[dict[str, Any]] | None = None
    vectors: npt.NDArray[Any] | None = None


class Columns(Sequence[Matches]):
    """Answers of ``ids`` int64 (nq, k) and ``distances`` float32 (nq, k): as a list of Matches, made when looked at.

    Batches pass several rooms on their way out, most of which ask for whole columns.  A slice is another of these.
    """

    __slots__ = ("distances", "ids")

    def __init__(self, ids: npt.NDArray[np.int64], distances: npt.NDArray[np.float32]) -> None:
        self.ids, self.distances = ids, distances

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> Matches: ...

    @overload
    def __getitem__(self, place: slice) -> "Columns": ...

    def __getitem__(self, place: int | slice) -> "Matches | Columns":
        if isinstance(place, slice):
            return Columns(self.ids[place], self.distances[place])
        return Matches(self.ids[place].tolist(), self.distances[place])

    def __iter__(self) -> Iterator[Matches]:
        return (Matches(ids, distances) for ids, distances in zip(self.ids.tolist(), self.distances, strict=True))


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Answers in the order of the queries; ``plan`` is there when ``explain`` was asked, ``cost`` with ``profile``.

    ``missing`` names segments that could not be searched (damaged), and shards that did not answer where the call
    allows that: a partial answer says so.
    """

    matches: Sequence[Matches]
    plan: dict[str, Any] | None = None
    missing: tuple[str, ...] = ()
    cost: Cost | None = None


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """A page of records in a stable order; ``after`` is the cursor the last page returned, or 0 at the start."""

    filter: Node | None = None
    limit: int = 1_000
    after: Cursor = 0
    include_metadata: bool = True
    include_vectors: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class ScanPage:
    """``vectors`` is (n, row_items) or None; ``cursor`` is None on the last page.

    ``missing`` names shards that were passed over, where the call allows that.
    """

    ids: list[RecordId]
    metadata: list[dict[str, Any]] | None
    vectors: npt.NDArray[Any] | None
    cursor: Cursor | None
    missing: tuple[str, ...] = ()


class Count(int):
    """A number of records; ``missing`` names shards that are not in it, where the call allows that."""

    missing: tuple[str, ...] = ()

    @property
    def partial(self) -> bool:
        return bool(self.missing)

    @classmethod
    def of(cls, records: int, missing: tuple[str, ...] = ()) -> "Count":
        made = cls(records)
        made.missing = missing
        return made


@dataclass(frozen=True, slots=True)
class Description:
    """Counts, segments, bytes and index state of a collection (``details`` is JSON-like)."""

    name: str
    records: int
    details: dict[str, Any] = field(default_factory=dict)
