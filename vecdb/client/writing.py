"""The loops of long writes: batch after batch, summed, reported, and honest about where they stopped."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vecdb.client.backend import Progress
from vecdb.client.parts import DEFAULT_BATCH_BYTES, DEFAULT_BATCH_RECORDS
from vecdb.client.steps import Op, Steps
from vecdb.core.calls import Call, WriteToken
from vecdb.core.errors import VecdbError
from vecdb.core.ids import RecordId
from vecdb.core.records import UpdateMetadata, UpsertBatch, WriteResult


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch of a long upsert; ``rows`` of the caller's input went into it, ``token`` makes it happen once."""

    rows: int
    batch: UpsertBatch
    token: WriteToken | None = None

    def call(self, outer: Call | None) -> Call | None:
        """The call that applies it: ``outer``, whose end is shared, with this batch's own token."""
        if self.token is None:
            return outer
        return Call(token=self.token) if outer is None else replace(outer, token=self.token)


def add(a: WriteResult, b: WriteResult) -> WriteResult:
    """The sum of what two writes did, and the furthest places of both."""
    places: tuple[tuple[int, int], ...] = ()
    log_index = b.log_index if a.positions or b.positions else max(a.log_index, b.log_index)
    if a.positions or b.positions:
        furthest = dict(a.positions)
        for shard, at in b.positions:
            furthest[shard] = max(furthest.get(shard, 0), at)
        places = tuple(sorted(furthest.items()))
    return WriteResult(a.inserted + b.inserted, a.updated + b.updated, a.deleted + b.deleted, a.missing + b.missing,
                       0 if len(places) > 1 else log_index, 0, places)


class Tally:
    """What the writes of one call did so far, told to whoever watches."""

    __slots__ = ("_report", "_stage", "_total", "done", "result")

    def __init__(self, stage: str, total: int, report: Progress | None) -> None:
        self._stage = stage
        self._total = total
        self._report = report
        self.done = 0
        self.result = WriteResult()

    def applied(self, rows: int, result: WriteResult) -> None:
        self.result = add(self.result, result)
        self.done += rows
        if self._report is not None and rows:
            self._report(self._stage, self.done, self._total)

    def note(self, error: Exception) -> None:
        """What was applied stays: a VecdbError says so in ``fields["rows_applied"]``, and every error in a note."""
        if self.done:
            if isinstance(error, VecdbError):
                error.fields["rows_applied"] = self.done
            error.add_note(f"the first {self.done} rows of this call had been applied, and stay")


def apply_all(writes: Iterable[tuple[int, Op]], stage: str, total: int, report: Progress | None) -> Steps[WriteResult]:
    """Do (rows, write) pairs in order; if one fails, those before it stay."""
    tally = Tally(stage, total, report)
    try:
        for rows, write in writes:
            tally.applied(rows, (yield write))
    except Exception as error:
        tally.note(error)
        raise
    return tally.result


def runs(ids: Sequence[RecordId], size: int = DEFAULT_BATCH_RECORDS) -> Iterator[tuple[int, tuple[RecordId, ...]]]:
    """Ids in runs of ``size``."""
    for low in range(0, len(ids), size):
        part = tuple(ids[low:low + size])
        yield len(part), part


def updates(ids: Sequence[RecordId], patches: Sequence[bytes], merge: bool,
            most: int = DEFAULT_BATCH_RECORDS) -> Iterator[tuple[int, UpdateMetadata]]:
    """Updates with no id twice in one: patches to one record are applied in their order, in several.

    ``most``: records whose vectors fit one batch, for an updated record is written anew with its vector.
    """
    room = min(DEFAULT_BATCH_RECORDS, most)
    seen: dict[RecordId, Any] = {}
    size = 0
    for identity, patch in zip(ids, patches, strict=True):
        if identity in seen or len(seen) >= room or size + len(patch) > DEFAULT_BATCH_BYTES:
            yield len(seen), UpdateMetadata(tuple(seen), tuple(seen.values()), merge)
            seen, size = {}, 0
        seen[identity] = patch
        size += len(patch)
    if seen:
        yield len(seen), UpdateMetadata(tuple(seen), tuple(seen.values()), merge)
