"""The records of a shard out of its files, without opening it for queries: no graph, no codes, no index in memory.

Records come in the order of their rids, in batches whose borders depend on nothing but the files and where one begins,
which is what makes a piece of an import the same whoever makes it.  Each record is hashed again and held against the
digest in its row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vecdb.ann.space import Space
from vecdb.core.errors import DataCorrupted
from vecdb.core.ids import id_from_key
from vecdb.core.records import UpsertBatch
from vecdb.core.schema import CollectionSchema
from vecdb.ports.store import Store
from vecdb.ports.stores import OpenStore
from vecdb.segment.files import ArrayFile
from vecdb.segment.sealed import VECTORS
from vecdb.services.backup.manifest import ShardRef
from vecdb.services.recovery import ROWS, segment_directory
from vecdb.shard import digest, rows
from vecdb.shard.manifest import Entry, Manifest

BATCH_BYTES: Final = 1 << 20
BATCH_ROWS: Final = 4_096
Row = tuple[bytes, bytes]


def is_read(name: str) -> bool:
    """Whether a file of a shard is needed to read its records."""
    return name.startswith(f"{ROWS}/") or name.endswith(f"/{VECTORS}")


def check_state(schema: CollectionSchema, ref: ShardRef, folder: Path, open_store: OpenStore) -> None:
    """Raise ``DataCorrupted`` where the state in a shard's files is not what the snapshot says of it."""
    with ShardReader(schema, folder, open_store) as reader:
        found = reader.state.records, f"{reader.state.digest:032x}"
    if found != (ref.records, ref.digest):
        raise DataCorrupted(f"the files of a shard hold {found[0]} records and were said to hold {ref.records}, or "
                            "their digest differs", path=str(folder), region="backup")


@dataclass(frozen=True, slots=True)
class Batch:
    """``last``: the rid to go on after; ``digest``: the sum of the records' digests."""

    records: UpsertBatch
    last: int
    digest: int


class ShardReader:
    """A shard's files in ``folder``, which nobody changes.  One thread at a time; close it."""

    def __init__(self, schema: CollectionSchema, folder: Path, open_store: OpenStore) -> None:
        self._space = Space(schema.metric, schema.vector_type, schema.dim)
        self._shape = schema.shape
        self._folder = folder
        self._store: Store = open_store(folder / ROWS, read_only=True)
        try:
            state, manifest = self._store.multi_get([rows.STATE_KEY, rows.MANIFEST_KEY])
            if state is None or manifest is None:
                raise DataCorrupted(f"{folder} has no state", path=str(folder))
            self.state = rows.State.from_bytes(state)
            self._entries = Manifest.from_bytes(manifest).entries
        except BaseException:
            self._store.close()
            raise

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batches(self, after: int = -1) -> Iterator[Batch]:
        """The records with rids above ``after``; raises ``DataCorrupted`` for one that is not what its row says."""
        width = self._space.row_items * self._space.row_dtype.itemsize
        vectors = _Vectors(self._space, self._folder, self._store, self._entries, after + 1)
        found: list[Row] = []
        size = 0
        for row in self._store.scan(rows.record_row(after + 1), rows.RECORDS[1]):
            found.append(row)
            size += width + len(row[1])
            if size >= BATCH_BYTES or len(found) == BATCH_ROWS:
                yield self._batch(found, vectors)
                found, size = [], 0
        if found:
            yield self._batch(found, vectors)

    def _batch(self, found: list[Row], vectors: "_Vectors") -> Batch:
        rids = np.array([rows.number_of(key) for key, _ in found], np.int64)
        stored = vectors.take(rids)
        raw = stored.reshape(-1).view(np.uint8).data
        width = stored.itemsize * stored.shape[1]
        marks = []
        for place, (_, value) in enumerate(found):
            mark = digest.digest_of(rows.record_id_key(value), raw[place * width : (place + 1) * width],
                                    rows.record_metadata(value))
            if mark != rows.record_digest(value):
                identity = id_from_key(rows.record_id_key(value))
                raise DataCorrupted(f"the record {identity!r} is not what its digest says", path=str(self._folder),
                                    ids=(identity,))
            marks.append(mark)
        ids = tuple(id_from_key(rows.record_id_key(value)) for _, value in found)
        batch = UpsertBatch(ids, stored, tuple(rows.record_metadata(value) for _, value in found), self._shape)
        return Batch(batch, int(rids[-1]), digest.total(marks))


class _Vectors:
    """Vectors by ascending rid: each segment, and each block of a growing one, is looked at once."""

    def __init__(self, space: Space, folder: Path, store: Store, entries: tuple[Entry, ...], first: int) -> None:
        self._space = space
        self._folder = folder
        self._store = store
        self._entries = entries
        self._at = -1
        self._rids: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._order: npt.NDArray[np.int64] | None = None
        self._stored: npt.NDArray[Any] = space.empty(0)
        self._blocks: Iterator[Row] | None = None
        self._first = first

    def take(self, wanted: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Rows (n, row_items), as they are stored, one's own."""
        out = np.empty((len(wanted), self._space.row_items), self._space.row_dtype)
        done = 0
        while done < len(wanted):
            self._reach(int(wanted[done]))
            stop = int(np.searchsorted(wanted, int(self._rids[-1]), side="right"))
            some = wanted[done:stop]
            at = np.searchsorted(self._rids, some)
            if len(some) == 0 or not np.array_equal(self._rids[at], some):
                raise self._lost(int(wanted[done]))
            places = at if self._order is None else self._order[at]
            out[done:stop] = self._stored[places, : self._space.row_items]
            done = stop
        return out

    def _reach(self, rid: int) -> None:
        """Have the rows be at hand that ``rid`` is among."""
        while not len(self._rids) or rid > int(self._rids[-1]):
            if self._blocks is not None:
                block = next(self._blocks, None)
                if block is not None:
                    self._hold_block(*block)
                    continue
                self._blocks = None
            self._at += 1
            if self._at == len(self._entries):
                raise self._lost(rid)
            entry = self._entries[self._at]
            last = self._at == len(self._entries) - 1
            if entry.sealed and entry.stop_rid > rid:
                self._hold_sealed(entry)
            elif not entry.sealed and (last or entry.stop_rid > rid):
                stop = self._entries[self._at + 1].first_rid if not last else (1 << 63) - 1
                self._blocks = self._store.scan(rows.vector_row(entry.first_rid), rows.vector_row(stop))

    def _hold_block(self, key: bytes, value: bytes) -> None:
        width = self._space.row_items * self._space.row_dtype.itemsize
        if len(value) % width:
            raise self._lost(rows.number_of(key))
        first = rows.number_of(key)
        self._stored = np.frombuffer(value, self._space.row_dtype).reshape(-1, self._space.row_items)
        self._rids = np.arange(first, first + len(self._stored), dtype=np.int64)
        self._order = None

    def _hold_sealed(self, entry: Entry) -> None:
        path = segment_directory(self._folder, entry.segment_id) / VECTORS
        with ArrayFile.open(path, kind="vectors", verify=False) as file:  # every byte was held against its checksum
            rids, self._stored = np.array(file.map("rids")), file.map("rows")
        ascending = bool((rids[1:] > rids[:-1]).all())
        self._order = None if ascending else np.argsort(rids, kind="stable")
        self._rids = rids if self._order is None else rids[self._order]

    def _lost(self, rid: int) -> DataCorrupted:
        return DataCorrupted(f"the vector of rid {rid} is missing", path=str(self._folder), region="backup")
