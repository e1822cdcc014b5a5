"""Records as they travel: checked columns, never one object per vector.

``UpsertBatch`` and the other writes are the commands of the shard machine; ``vectors`` hold *stored*
components (the schema's dtype, normalised for cosine), so that every replica appends the same bytes.
"""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId

Metadata: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class UpsertBatch:
    """Insert or replace records.

    ``ids``: checked, without duplicates.  ``vectors``: (n, row_items) in the stored dtype, C-contiguous,
    borrowed.  ``metadata``: n compact JSON objects as bytes; ``b"{}"`` where there is none.  ``shape``: of the schema
    it was checked against (:attr:`~vecdb.core.schema.CollectionSchema.shape`); 0: not said.
    """

    ids: tuple[RecordId, ...]
    vectors: npt.NDArray[Any]
    metadata: tuple[bytes, ...]
    shape: int = 0


@dataclass(frozen=True, slots=True)
class DeleteIds:
    ids: tuple[RecordId, ...]


@dataclass(frozen=True, slots=True)
class DeleteWhere:
    filter: Node


@dataclass(frozen=True, slots=True)
class UpdateMetadata:
    """Change metadata of existing records; ids that do not exist are skipped and counted.

    ``patch``: one JSON object as bytes per id.  ``merge`` sets the given top-level keys (null removes
    one); otherwise the object is replaced.
    """

    ids: tuple[RecordId, ...]
    patch: tuple[bytes, ...]
    merge: bool = True


Command: TypeAlias = UpsertBatch | DeleteIds | DeleteWhere | UpdateMetadata


Positions: TypeAlias = tuple[tuple[int, int], ...]
"""Places in the logs of shards: pairs of a shard's number and a log index there."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one shard did of a write, once: told by each that knows of it, and counted once by who adds up.

    ``origin`` and ``lo`` say which: the shard that did it (0: the one that answers), and the first hash of the records
    that it did it to (None: all it did of the write).  ``counts``: inserted, updated, deleted, missing.
    """

    origin: int
    lo: int | None
    counts: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, repr=False)
class WriteResult:
    """What a write did, and where.

    ``shard`` (0 outside a cluster) and ``log_index`` there are the place of a write that concerned one shard;
    ``positions`` are the places of all that it concerned, each of which a later read of the same session must have
    seen.  Of a write to several shards ``shard`` and ``log_index`` are 0, and ``positions`` alone say where it is.
    """

    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    missing: int = 0
    log_index: int = 0
    shard: int = 0
    positions: Positions = ()
    outcomes: tuple[Outcome, ...] = field(default=(), compare=False)
    """Between nodes, of a shard whose records came from others: what it adds up, some of which others may tell as well
    (:mod:`vecdb.shard.imports`)."""

    def __post_init__(self) -> None:
        if self.shard:
            object.__setattr__(self, "positions", ((self.shard, self.log_index),))
        elif len(self.positions) == 1:
            object.__setattr__(self, "shard", self.positions[0][0])
            object.__setattr__(self, "log_index", self.positions[0][1])

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.inserted, self.updated, self.deleted, self.missing

    def __repr__(self) -> str:
        where = f"log_index={self.log_index}, shard={self.shard}" if self.shard or not self.positions \
            else f"positions={self.positions}"
        return (f"WriteResult(inserted={self.inserted}, updated={self.updated}, deleted={self.deleted}, "
                f"missing={self.missing}, {where})")


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A stored record; ``vector`` is None unless asked for (cosine collections return unit vectors)."""

    id: RecordId
    metadata: Metadata = field(default_factory=dict)
    vector: npt.NDArray[np.generic] | None = None
