"""The loops of long writes: batch after batch, summed, reported, and honest about where they stopped."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from vecdb.client.backend import Progress
from vecdb.client.parts import DEFAULT_BATCH_BYTES, DEFAULT_BATCH_RECORDS
from vecdb.core.calls import Call, WriteToken
from vecdb.core.errors import VecdbError
from vecdb.core.ids import RecordId
from vecdb.core.records import UpdateMetadata, UpsertBatch, WriteResult

_T = TypeVar("_T")


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
    """The sum of what two writes did; the log index is the later one's."""
    return WriteResult(a.inserted + b.inserted, a.updated + b.updated, a.deleted + b.deleted, a.missing + b.missing,
                       max(a.log_index, b.log_index))


def apply_all(batches: Iterable[tuple[int, _T]], apply: Callable[[_T], WriteResult], stage: str, total: int,
              report: Progress | None) -> WriteResult:
    """Apply (rows, batch) pairs in order.

    If one fails, those before it stay: a VecdbError then carries ``fields["rows_applied"]``, and every error a
    note, unless nothing had been applied.
    """
    result, done = WriteResult(), 0
    try:
        for rows, batch in batches:
            result = add(result, apply(batch))
            done += rows
            if report is not None:
                report(stage, done, total)
    except Exception as error:
        if done:
            if isinstance(error, VecdbError):
                error.fields["rows_applied"] = done
            error.add_note(f"the first {done} rows of this call had been applied, and stay")
        raise
    return result


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
