"""Does a shard still hold what was written?  Every live record is read, hashed anew, and the sum compared.

A shard that is written meanwhile has no moment at which all records could be read.  So marks are gathered: a
record's row and vector never change while it lives, so what was read of it once counts for every later view that
still has it, and a pass over a newer view reads only what is new.  The answer is of the first view whose live
records have all been read.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from vecdb.core.calls import Call, check
from vecdb.core.ids import RecordId, id_from_key
from vecdb.segment.matching import StaleView
from vecdb.shard import digest, rows
from vecdb.shard.machine import READ_CHUNK, ShardMachine
from vecdb.shard.view import ShardView

MAX_NAMED = 1_000
"""Most records that differ whose ids are told."""


class Verification:
    """What the passes have read so far: a record's rid and its digest as computed, 24 bytes each."""

    def __init__(self) -> None:
        self._chunks: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]] = []
        self.wrong: dict[int, RecordId] = {}

    def _all(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Everything, by ascending rid."""
        if not self._chunks:
            return np.empty(0, np.int64), np.empty((0, 2), np.uint64)
        if len(self._chunks) > 1:
            rids = np.concatenate([part for part, _ in self._chunks])
            order = np.argsort(rids, kind="stable")
            self._chunks = [(rids[order], np.concatenate([part for _, part in self._chunks])[order])]
        return self._chunks[0]

    def missing(self, living: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those of ``living`` (ascending) that were not read yet."""
        missing: npt.NDArray[np.int64] = np.setdiff1d(living, self._all()[0], assume_unique=True)
        return missing

    def add(self, rids: list[int], marks: list[bytes]) -> None:
        halves = np.frombuffer(b"".join(marks), ">u8").astype(np.uint64).reshape(-1, 2)
        self._chunks.append((np.array(rids, np.int64), halves))

    def total(self, living: npt.NDArray[np.int64]) -> int:
        """The digest of ``living``, all of which were read."""
        rids, marks = self._all()
        return digest.total_of(marks[np.searchsorted(rids, living)])


def verify(machine: ShardMachine, so_far: Verification, call: Call | None, *, settled: bool) -> dict[str, Any]:
    """One pass; raises StaleView if records died while they were read, so that a newer view has to be looked at.

    ``settled``: no writer is at work, so a row that is not there is lost.
    Keys: ``records``, ``log_index``, ``digest`` (the running one), ``computed`` (of what was read), ``equal``, and
    ``ids``: up to 1,000 of the ``differing`` records whose row or vector is not what its digest says, or is gone.
    """
    view = machine.view
    living = np.sort(np.concatenate([np.empty(0, np.int64), *(one.live_rids() for one in view.segments)]))
    todo = so_far.missing(living)
    for start in range(0, len(todo), READ_CHUNK):
        check(call)
        _read(machine, view, todo[start : start + READ_CHUNK], so_far)
    lost = so_far.missing(living)
    if len(lost) and not settled:
        raise StaleView
    computed = so_far.total(np.setdiff1d(living, lost, assume_unique=True))
    wrong = [so_far.wrong[rid] for rid in np.intersect1d(living, np.array([*so_far.wrong], np.int64)).tolist()]
    wrong += [one for _, segment, _, ordinals in view.locate(lost) for one in segment.ids(ordinals.astype(np.int32))]
    equal = computed == view.state.digest and not wrong and len(living) == view.state.records
    return {"records": len(living), "log_index": view.state.applied, "digest": f"{view.state.digest:032x}",
            "computed": f"{computed:032x}", "equal": equal, "differing": len(wrong), "ids": wrong[:MAX_NAMED]}


def _read(machine: ShardMachine, view: ShardView, wanted: npt.NDArray[np.int64], so_far: Verification) -> None:
    """Hash the records ``wanted``, as far as they are there."""
    space = machine.growing.space
    vectors, readable = view.vectors(wanted, space.row_items, space.row_dtype)
    raw = vectors.reshape(-1).view(np.uint8).data
    width = space.row_items * space.row_dtype.itemsize
    rids, marks = [], []
    for place, (rid, record) in enumerate(zip(wanted.tolist(), machine.read_records(wanted.tolist()), strict=True)):
        if record is None:
            continue
        key = rows.record_id_key(record)
        mark = digest.digest_of(key, raw[place * width : (place + 1) * width], rows.record_metadata(record))
        if mark != rows.record_digest(record) or not readable[place]:
            so_far.wrong[rid] = id_from_key(key)
        rids.append(rid)
        marks.append(mark)
    so_far.add(rids, marks)
