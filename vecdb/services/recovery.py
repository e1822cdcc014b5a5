"""Opening a shard: from its rows and files to a machine that goes on where the last one stopped.

The store's rows are the truth.  Sealed segments come from their files, growing ones from their vector and
record rows; tombstones hide what died since a segment was sealed.  Folders that the manifest does not name
are what a killed job left behind, and go.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.ann.space import Space
from vecdb.cluster.routing import hash_of, metadata_hash
from vecdb.core.errors import DataCorrupted
from vecdb.core.ids import RecordId, id_from_key
from vecdb.core.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS
from vecdb.core.schema import CollectionSchema
from vecdb.ports.compute import Compute
from vecdb.ports.store import Store
from vecdb.segment.files import sync_directory
from vecdb.segment.growing import GrowingSegment
from vecdb.segment.sealed import INDEX, RECORDS, VECTORS, RebuiltRecord, SealedView, open_sealed
from vecdb.services.settings import EngineSettings
from vecdb.shard import rows
from vecdb.shard.imports import Imports
from vecdb.shard.machine import READ_CHUNK, ShardMachine
from vecdb.shard.manifest import Entry, Manifest
from vecdb.shard.marks import Marks
from vecdb.shard.mutations import Mutations
from vecdb.shard.seal import SealState
from vecdb.shard.tokens import Tokens
from vecdb.shard.view import SegmentView, ShardView

ROWS = "rows"
SEGMENTS = "segments"
MAX_LOST_NAMED = 1_000


def link_segments(view: ShardView, target: Path) -> None:
    """Hard links below ``target`` to the sealed segments' files, durable; an index that is to be rebuilt is left out.

    Raises ``OSError``.
    """
    (target / SEGMENTS).mkdir(parents=True)
    for one in view.segments:
        if isinstance(one, SealedView):
            folder = segment_directory(target, one.segment.segment_id)
            folder.mkdir()
            for name in (VECTORS, RECORDS, *(() if one.segment.damage.rebuild_index else (INDEX,))):
                os.link(one.segment.directory / name, folder / name)
            sync_directory(folder)
    sync_directory(target / SEGMENTS)
    sync_directory(target)


def is_damaged(view: ShardView) -> bool:
    """Whether a file that is not made from others was found damaged when it was opened."""
    return any(isinstance(one, SealedView) and one.segment.damage.unsound for one in view.segments)


def check_whole(view: ShardView, directory: Path) -> None:
    """Raise ``DataCorrupted`` if it is."""
    for one in view.segments:
        if isinstance(one, SealedView) and one.segment.damage.unsound:
            raise DataCorrupted(one.segment.damage.messages[0], path=str(one.segment.directory),
                                ids=tuple(one.ids(one.lost()[:MAX_LOST_NAMED])), region="segment")


def first_rows() -> Mutations:
    """Of a shard that nothing was written to."""
    manifest = Manifest((Entry(0, False, 0, 0),), 1)
    return Mutations(puts=[(rows.STATE_KEY, rows.State().to_bytes()), (rows.MANIFEST_KEY, manifest.to_bytes())])


def found(store: Store) -> None:
    """Write the first rows of a new shard, durably: a store that has none was lost."""
    store.write(first_rows())
    store.sync()


def segment_directory(shard: Path, segment_id: int) -> Path:
    return shard / SEGMENTS / f"{segment_id:08d}"


def growing_capacity(schema: CollectionSchema, settings: EngineSettings, row_bytes: int) -> tuple[int, int]:
    """``(seal_records, capacity)``: when a growing segment is sealed, and the rows it reserves address space for."""
    seal = max(1, min(settings.seal_records, settings.seal_bytes // row_bytes))
    batch = min(MAX_BATCH_RECORDS, max(1, MAX_BATCH_BYTES // max(1, schema.row_items)))
    return seal, seal + batch


def recover(schema: CollectionSchema, directory: Path, store: Store, settings: EngineSettings,
            compute: Compute) -> ShardMachine:
    """Build the machine from ``store`` and the segment files below ``directory``."""
    state_row, manifest_row, seal_row = store.multi_get([rows.STATE_KEY, rows.MANIFEST_KEY, rows.SEAL_KEY])
    state = rows.State() if state_row is None else rows.State.from_bytes(state_row)
    if manifest_row is None and (state.next_rid or settings.replicated):
        raise DataCorrupted("the shard's store has no manifest", path=str(directory))
    manifest = Manifest((Entry(0, False, 0, 0),), 1) if manifest_row is None else Manifest.from_bytes(manifest_row)
    if manifest_row is None:
        _check_new(directory)
    elif not settings.read_only:
        _remove_orphans(directory, manifest)
    seal, capacity = growing_capacity(schema, settings, _row_bytes(schema))
    views: list[SegmentView] = []
    growing: GrowingSegment | None = None
    for place, entry in enumerate(manifest.entries):
        if entry.sealed:
            views.append(_open_sealed(schema, directory, store, entry, settings, compute))
            continue
        last = place == len(manifest.entries) - 1
        stop = state.next_rid if last else manifest.entries[place + 1].first_rid
        growing = _reload_growing(schema, store, entry, stop, max(capacity, stop - entry.first_rid + capacity - seal))
        growing.frozen = not last
        if not last:
            views.append(growing.view)
    if growing is None or growing.frozen:
        raise DataCorrupted("the manifest names no growing segment", path=str(directory))
    imports = Imports(store.scan(*rows.IMPORTS))
    return ShardMachine(schema, store, state, views, growing, manifest.next_segment, seal, manifest_row,
                        Tokens(store.scan(*rows.TOKENS), wide=bool(imports.origins)), Marks(store.scan(*rows.MARKS)),
                        SealState.from_bytes(seal_row), imports, place_of)


def place_of(id_key: bytes, metadata: bytes, shard_key: str) -> int | None:
    """The :data:`~vecdb.shard.machine.Place` of clusters."""
    return metadata_hash(metadata, shard_key) if shard_key else hash_of(id_key)


def _row_bytes(schema: CollectionSchema) -> int:
    return Space(schema.metric, schema.vector_type, schema.dim).row_bytes


def _check_new(directory: Path) -> None:
    """A store without a manifest is new or lost its rows: then its segments are all that is left, and stay."""
    folder = directory / SEGMENTS
    if folder.is_dir() and any(folder.iterdir()):
        raise DataCorrupted(f"{folder} holds segments, and the shard's store has no manifest", path=str(directory))


def _remove_orphans(directory: Path, manifest: Manifest) -> None:
    wanted = {segment_directory(directory, entry.segment_id).name for entry in manifest.entries if entry.sealed}
    folder = directory / SEGMENTS
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name not in wanted:
                shutil.rmtree(path, ignore_errors=True)


def _open_sealed(schema: CollectionSchema, directory: Path, store: Store, entry: Entry,
                 settings: EngineSettings, compute: Compute) -> SealedView:
    def read_records(rids: npt.NDArray[np.int64]) -> Sequence[RebuiltRecord | None]:
        return _read_records(store, rids)

    def rids_between() -> npt.NDArray[np.int64]:
        found = store.scan(rows.record_row(entry.first_rid), rows.record_row(entry.stop_rid))
        return np.array([rows.number_of(key) for key, _ in found], np.int64)

    segment = open_sealed(entry.segment_id, segment_directory(directory, entry.segment_id), schema, read_records,
                          rids_between, verify=settings.verify, run=compute.run)
    dead = np.array([rows.number_of(key) for key, _ in store.scan(rows.dead_row(entry.first_rid),
                                                               rows.dead_row(entry.stop_rid))], np.int64)
    ordinals = segment.ordinals(dead) if len(dead) else dead
    return segment.view.without(ordinals[ordinals >= 0])


def _read_records(store: Store, rids: npt.NDArray[np.int64]) -> list[RebuiltRecord | None]:
    out: list[RebuiltRecord | None] = []
    for start in range(0, len(rids), READ_CHUNK):
        for value in store.multi_get([rows.record_row(rid) for rid in rids[start : start + READ_CHUNK].tolist()]):
            out.append(None if value is None else (id_from_key(rows.record_id_key(value)),
                                                   orjson.loads(rows.record_metadata(value))))
    return out


def _reload_growing(schema: CollectionSchema, store: Store, entry: Entry, stop_rid: int,
                    capacity: int) -> GrowingSegment:
    """A growing segment from its rows: vectors in blocks, then records; what has no record row is dead."""
    segment = GrowingSegment(entry.segment_id, entry.first_rid, schema, capacity)
    count = stop_rid - entry.first_rid
    _reload_vectors(segment, store, entry.first_rid, stop_rid)
    ids: list[RecordId] = [0] * count
    metadata: list[dict[str, Any]] = [{}] * count
    alive = np.zeros(count, np.bool_)
    for key, value in store.scan(rows.record_row(entry.first_rid), rows.record_row(stop_rid)):
        ordinal = rows.number_of(key) - entry.first_rid
        ids[ordinal] = id_from_key(rows.record_id_key(value))
        body = rows.record_metadata(value)
        if body != b"{}":
            metadata[ordinal] = orjson.loads(body)
        alive[ordinal] = True
    segment.publish(ids, metadata, np.flatnonzero(~alive))
    return segment


def _reload_vectors(segment: GrowingSegment, store: Store, first_rid: int, stop_rid: int) -> None:
    space = segment.space
    width = space.row_items * space.row_dtype.itemsize
    expected = first_rid
    for key, value in store.scan(rows.vector_row(first_rid), rows.vector_row(stop_rid)):
        rid = rows.number_of(key)
        if rid != expected or len(value) % width:
            raise DataCorrupted(f"vectors of rids {expected}..{rid} are missing from the store", path="row v")
        block = np.frombuffer(value, space.row_dtype).reshape(-1, space.row_items)
        segment.stage(rid - first_rid, block)
        expected = rid + len(block)
    if expected != stop_rid:
        raise DataCorrupted(f"vectors of rids {expected}..{stop_rid} are missing from the store", path="row v")
