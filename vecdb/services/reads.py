"""Reads of records on one moment of a shard: by id, page by page, counted.

Each function looks at one view.  What it needs of a record that died since the view was taken is gone from the
rows: it then raises :class:`StaleView`, and the caller asks again on a newer view.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from vecdb.core.calls import Call, check
from vecdb.core.errors import DataCorrupted, InvalidArgument
from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId, id_from_key, id_key
from vecdb.core.limits import MAX_BATCH_BYTES
from vecdb.core.query import ScanPage, ScanRequest
from vecdb.core.records import Record
from vecdb.segment.bits import size
from vecdb.segment.matching import StaleView, allowed_bits, matching_rids
from vecdb.shard import rows
from vecdb.shard.machine import ShardMachine
from vecdb.shard.view import ShardView, rid_array

PAGE_BYTES: Final = MAX_BATCH_BYTES // 2
"""Of rows and vectors in one page of a scan: JSON grows when it is written again for the wire."""
ROWS_AT_ONCE: Final = 256


def fetch(machine: ShardMachine, directory: Path, ids: Sequence[RecordId], *, include_metadata: bool,
          include_vectors: bool, call: Call | None = None) -> list[Record]:
    """The records that exist, in the order asked."""
    view = machine.view
    found = machine.read([rows.id_row(id_key(one)) for one in ids])
    present = [(one, rows.unpack_rid(value)) for one, value in zip(ids, found, strict=True) if value is not None]
    check(call)
    vectors = None
    if include_vectors:
        vectors = _vectors(machine, view, directory, [rid for _, rid in present], [one for one, _ in present])
    if not include_metadata:
        return [Record(one, {}, None if vectors is None else vectors[place]) for place, (one, _) in enumerate(present)]
    check(call)
    out = []
    for place, ((one, _), value) in enumerate(zip(present, machine.read_records([rid for _, rid in present]),
                                                  strict=True)):
        if value is None:
            raise StaleView
        out.append(Record(one, orjson.loads(rows.record_metadata(value)), None if vectors is None else vectors[place]))
    return out


def scan(machine: ShardMachine, directory: Path, request: ScanRequest, call: Call | None = None) -> ScanPage:
    """One page in rid order; ``after`` is one more than the last rid of the page before.

    A page ends before ``limit`` where its records take :data:`PAGE_BYTES`: it travels as one message.
    """
    after = request.after
    if isinstance(after, bytes):
        raise InvalidArgument("after", "is of a collection with several shards, and this one is in one piece",
                              got="bytes", limit="the cursor of the page before")
    view = machine.view
    rids: list[int] = []
    for segment in view.segments:
        if segment.rid_range[1] > after and len(rids) <= request.limit:
            rids += matching_rids(segment, request.filter, machine.read_metadata, after,
                                  request.limit + 1 - len(rids), call)
    living = _rows(machine, rids[: request.limit], request.include_vectors, call)
    more = len(rids) > len(living)
    rids = rids[: len(living)]
    ids = [id_from_key(rows.record_id_key(value)) for value in living]
    check(call)
    vectors = _vectors(machine, view, directory, rids, ids) if request.include_vectors else None
    metadata = [orjson.loads(rows.record_metadata(value)) for value in living] if request.include_metadata else None
    return ScanPage(ids, metadata, vectors, rids[-1] + 1 if more else None)


def _rows(machine: ShardMachine, rids: Sequence[int], with_vectors: bool, call: Call | None) -> list[bytes]:
    """Rows of the first of ``rids``: as many as a page may hold, and one at least."""
    living: list[bytes] = []
    vector_bytes = machine.growing.space.row_bytes if with_vectors else 0
    size = 0
    for low in range(0, len(rids), ROWS_AT_ONCE):
        check(call)
        for value in machine.read_records(rids[low:low + ROWS_AT_ONCE]):
            if value is None:
                raise StaleView
            size += len(value) + vector_bytes
            if size > PAGE_BYTES and living:
                return living
            living.append(value)
    return living


def count(machine: ShardMachine, where: Node | None, call: Call | None = None) -> int:
    """Live records, or those that match."""
    view = machine.view
    if where is None:
        return view.state.records
    return sum(size(allowed_bits(segment, where, machine.read_metadata, call)) for segment in view.segments)


def _vectors(machine: ShardMachine, view: ShardView, directory: Path, rids: Sequence[int],
             ids: Sequence[RecordId]) -> npt.NDArray[Any]:
    """Stored vectors of rids; :class:`DataCorrupted` names those that are damaged."""
    space = machine.growing.space
    wanted = rid_array(rids)
    vectors, readable = view.vectors(wanted, space.row_items, space.row_dtype)
    if readable.all():
        return vectors
    wrong = np.flatnonzero(~readable)
    lost = [ids[int(wrong[int(place)])] for _, segment, places, ordinals in view.locate(wanted[wrong])
            for place in places[segment.damaged(ordinals)]]
    if not lost:  # the view was merely older than the rows
        raise StaleView
    raise DataCorrupted(f"the vectors of {len(lost)} records are damaged on disk", path=str(directory), ids=tuple(lost))
