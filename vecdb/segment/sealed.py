"""The sealed segment: immutable arrays from checksummed files, and the bitset of who still lives.

Three files, by what losing one means:

- ``vectors.vdb``: stored rows and rids: the home of the vectors.  Damage is reported with the ids it held;
  those records are left out of queries, the rest goes on serving.
- ``records.vdb``: ids, rids again, and the metadata index: rebuilt from the shard's record rows.
- ``index.vdb``: graph, inverted lists, codes: rebuilt from the vectors; until then the segment is scanned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.ann.codes import RowCodes
from vecdb.ann.hnsw import Run, serial
from vecdb.ann.memory import allocate
from vecdb.ann.space import Space
from vecdb.core.errors import DataCorrupted, FormatMismatch, StorageError, VecdbError
from vecdb.core.ids import RecordId
from vecdb.core.schema import CollectionSchema
from vecdb.metadata import GrowingIndex, SealedIndex, merge
from vecdb.segment.bits import Bits, cleared, full, has, members
from vecdb.segment.files import ArrayFile
from vecdb.segment.ids import IdColumn, pack_ids
from vecdb.segment.index import SealedAnn

VECTORS, RECORDS, INDEX = "vectors.vdb", "records.vdb", "index.vdb"
RebuiltRecord = tuple[RecordId, dict[str, Any]]
ReadRecords = Callable[[npt.NDArray[np.int64]], Sequence[RebuiltRecord | None]]
"""Id and metadata by rid from the shard's rows, None where a version is dead."""


@dataclass(slots=True)
class Damage:
    """What was found broken at open: ``lost`` ordinals whose vectors cannot be read, and words for people."""

    lost: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    messages: list[str] = field(default_factory=list)
    rebuild_index: bool = False
    of_index: int = 0
    """How many of the messages are of the index alone, which is made from the rest."""
    since: dict[str, str] = field(default_factory=dict)
    """What a later reading found of files that were whole when they were opened, by the file's name; what was loaded
    of them then is served as before.
    """

    @property
    def unsound(self) -> bool:
        """Whether more than the index, which is made from the rest, was found broken when the files were opened."""
        return len(self.messages) > self.of_index

    def tell_of_index(self, message: str) -> None:
        self.messages.append(message)
        self.of_index += 1


class SealedSegment:
    """Arrays of one sealed segment."""

    def __init__(self, segment_id: int, directory: Path, schema: CollectionSchema, rids: npt.NDArray[np.int64],
                 rows: npt.NDArray[Any], aux: npt.NDArray[np.float32], ids: IdColumn, metadata: SealedIndex,
                 ann: SealedAnn, damage: Damage) -> None:
        self.segment_id = segment_id
        self.directory = directory
        self.schema = schema
        self.space = Space(schema.metric, schema.vector_type, schema.dim)
        self.count = len(rids)
        self.rids = rids
        self.rows = rows
        self.aux = aux
        self.codes = RowCodes(self.space, rows, aux)
        self.ids = ids
        self.metadata = metadata
        self.ann = ann
        self.damage = damage
        ascending = bool((rids[1:] > rids[:-1]).all())
        self._by_rid = None if ascending else np.argsort(rids, kind="stable").astype(np.int32)
        self._sorted = rids if self._by_rid is None else rids[self._by_rid]
        self._served = cleared(full(self.count), damage.lost) if len(damage.lost) else None

    @property
    def view(self) -> "SealedView":
        """Every record alive.  Not kept: a segment that held its view would outlive its last reader."""
        return SealedView(self, full(self.count), self.count)

    @property
    def name(self) -> str:
        return f"segment {self.segment_id} (sealed)"

    @property
    def rid_range(self) -> tuple[int, int]:
        return (int(self._sorted[0]), int(self._sorted[-1]) + 1) if self.count else (0, 0)

    def ordinals(self, rids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Ordinals of rids, -1 where this segment does not hold one."""
        if not self.count:
            return np.full(len(rids), -1, np.int64)
        at = np.searchsorted(self._sorted, rids)
        at[at == self.count] = 0
        hit = self._sorted[at] == rids
        return np.where(hit, at if self._by_rid is None else self._by_rid[at], -1)

    def replace_index(self, ann: SealedAnn) -> None:
        """Take an index that was rebuilt; readers see the old or the new one whole."""
        self.ann = ann
        self.damage.rebuild_index = False
        self.damage.tell_of_index("the index was rebuilt from the vectors")

    def lose(self, ordinals: npt.NDArray[np.int64]) -> None:
        """Name vectors that turned out to be damaged while the segment is in use; readers see all of it or nothing."""
        lost = np.union1d(self.damage.lost, ordinals)
        self._served = cleared(full(self.count), lost)
        self.damage.lost = lost

    def served(self) -> Bits | None:
        """Ordinals with readable vectors; None if that is all of them."""
        return self._served

    def memory_bytes(self) -> dict[str, int]:
        """Resident bytes by component; mapped vectors count as disk, not memory."""
        mapped = isinstance(self.rows, np.memmap) or not self.rows.flags.writeable
        by_rid = 0 if self._by_rid is None else self._by_rid.nbytes + self._sorted.nbytes
        return {"vectors": 0 if mapped else self.rows.nbytes + self.aux.nbytes, **self.ann.memory_bytes(),
                "metadata": self.metadata.memory_bytes(), "ids": self.ids.nbytes + self.rids.nbytes + by_rid,
                "live": 8 * ((self.count + 63) >> 6)}

    def disk_bytes(self) -> int:
        """Bytes of the segment's files; 0 once a merge has deleted them under a reader."""
        try:
            return sum(path.stat().st_size for path in self.directory.iterdir())
        except FileNotFoundError:
            return 0


@dataclass(frozen=True, slots=True, eq=False)
class SealedView:
    """A moment of a sealed segment."""

    segment: SealedSegment
    live: Bits
    live_count: int

    @property
    def count(self) -> int:
        return self.segment.count

    @property
    def rid_range(self) -> tuple[int, int]:
        return self.segment.rid_range

    def without(self, ordinals: npt.NDArray[np.int64]) -> "SealedView":
        """The view after live ``ordinals`` died."""
        if not len(ordinals):
            return self
        return SealedView(self.segment, cleared(self.live, ordinals), self.live_count - len(ordinals))

    def serving(self) -> Bits:
        """Live ordinals whose vectors can be read."""
        served = self.segment.served()
        return self.live if served is None else self.live & served

    def rids(self, ordinals: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        return self.segment.rids[ordinals]

    def ordinals(self, rids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self.segment.ordinals(rids)

    def ids(self, ordinals: npt.NDArray[np.int32]) -> list[RecordId]:
        return self.segment.ids.take(ordinals)

    def integer_ids(self) -> npt.NDArray[np.int64] | None:
        """All ids by ordinal, if they are integers in an array."""
        return self.segment.ids.integers

    def vectors(self, ordinals: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
        stored: npt.NDArray[Any] = self.segment.rows[ordinals][:, : self.segment.space.row_items]
        return stored

    def live_rids(self) -> npt.NDArray[np.int64]:
        """Rids of live records."""
        return self.segment.rids[members(self.live, self.count)]

    def damaged(self, ordinals: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        served = self.segment.served()
        return np.zeros(len(ordinals), np.bool_) if served is None else ~has(served, ordinals)

    def lost(self) -> npt.NDArray[np.int32]:
        """Live ordinals whose vectors are damaged."""
        lost = self.segment.damage.lost
        return lost[has(self.live, lost)].astype(np.int32) if len(lost) else lost.astype(np.int32)


def open_sealed(segment_id: int, directory: Path, schema: CollectionSchema, read_records: ReadRecords,
                rids_between: Callable[[], npt.NDArray[np.int64]], *, verify: bool = True,
                run: Run = serial) -> SealedSegment:
    """Open a segment's files, rebuilding what can be rebuilt and naming what is lost.

    ``read_records``/``rids_between`` read the shard's rows, and are called only if a file is damaged.
    Raises nothing for damage: the segment says in ``damage`` what it lost.
    """
    damage = Damage()
    space = Space(schema.metric, schema.vector_type, schema.dim)
    records = _try_open(directory / RECORDS, verify, damage, run)
    vectors = _try_open(directory / VECTORS, False, damage, run)
    rids = _rids(vectors, records, rids_between, damage)
    rows, aux = _rows(vectors, space, rids, verify, damage, run)
    ids, metadata = _records(records, rids, read_records, schema, damage)
    try:
        ann = SealedAnn.open(directory / INDEX, space, rows, aux, run)
    except (DataCorrupted, FormatMismatch, StorageError) as error:
        damage.tell_of_index(f"{error.message}; the index is rebuilt from the vectors, until then scanned")
        damage.rebuild_index = True
        ann = SealedAnn.none(f"rebuilding after damage: {error.message}")
    if len(damage.lost):
        damage.messages.append(f"{len(damage.lost)} vectors of {directory / VECTORS} are damaged: all that lie in a "
                               "MiB, the unit of checksums, which is not what was written")
    return SealedSegment(segment_id, directory, schema, rids, rows, aux, ids, metadata, ann, damage)


def _try_open(path: Path, verify: bool, damage: Damage, run: Run) -> ArrayFile | None:
    """Open a file; None and a message if its frame, or with ``verify`` any of its bytes, is damaged."""
    try:
        file = ArrayFile.open(path, verify=verify, run=run)
    except VecdbError as error:
        damage.messages.append(error.message)
        return None
    return file


def _rids(vectors: ArrayFile | None, records: ArrayFile | None, rids_between: Callable[[], npt.NDArray[np.int64]],
          damage: Damage) -> npt.NDArray[np.int64]:
    """The rids by ordinal, from whichever file still has them whole."""
    for file in (records, vectors):
        if file is not None and not len(file.bad_rows("rids")):
            return np.array(file.map("rids"))
    damage.messages.append("no file tells which record is where: all vectors of the segment are lost")
    damage.lost = np.arange(len(rids := rids_between()), dtype=np.int64)
    return rids


def _rows(vectors: ArrayFile | None, space: Space, rids: npt.NDArray[np.int64], verify: bool, damage: Damage,
          run: Run) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """Rows and their aux, mapped or loaded; damaged rows are zero and go to ``damage.lost``."""
    count = len(rids)
    if vectors is None or len(damage.lost) or vectors.shape("rows")[0] != count:
        damage.lost = np.arange(count, dtype=np.int64)
        rows = space.empty(count)
    elif vectors.meta.get("on_disk"):
        if verify:
            damage.lost = vectors.blank("rows", run=run)
        rows = vectors.map("rows", random=True)
    else:
        try:
            rows = vectors.load("rows", allocate, run=run)
        except DataCorrupted:
            rows, damage.lost = vectors.salvage("rows", allocate, run=run)
    return rows, space.aux(rows)


def _records(records: ArrayFile | None, rids: npt.NDArray[np.int64], read_records: ReadRecords,
             schema: CollectionSchema, damage: Damage) -> tuple[IdColumn, SealedIndex]:
    """Ids and metadata index, from their file or rebuilt from the shard's rows."""
    if records is not None:
        try:
            arrays = {name: records.map(name) for name in records.names if name in ("ints", "offsets", "text")}
            return IdColumn(arrays), SealedIndex.from_buffer(records.map("metadata").data, mapped=True,
                                                                 path=str(records.path))
        except DataCorrupted as error:
            damage.messages.append(error.message)
    found = read_records(rids)
    growing = GrowingIndex(schema.indexed_fields)
    growing.append(0, [{} if one is None else one[1] for one in found])
    ids = IdColumn(pack_ids([0 if one is None else one[0] for one in found]))
    damage.messages.append("ids and metadata index were rebuilt from the records")
    return ids, merge([(growing, np.arange(len(rids), dtype=np.int32))], len(rids))
