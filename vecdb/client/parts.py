"""From parts of a caller's input to batches a shard may apply.

A *part* is a run of records whose ids and metadata are checked and whose vectors are an array, not yet
held against the schema.  ``batches`` cuts parts by rows and by bytes, makes stored vectors, and keeps
the last of equal ids in a batch.  Everything of a batch is checked before the batch leaves here; input
that can be read again is checked whole before its first batch leaves.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from vecdb.core.ids import RecordId
from vecdb.core.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS
from vecdb.core.records import UpsertBatch
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import check_vectors, row_bytes

DEFAULT_BATCH_RECORDS: Final = 20_000
"""Enough that one synced write is a small part of a batch's cost, few enough that progress is seen."""

DEFAULT_BATCH_BYTES: Final = MAX_BATCH_BYTES // 4
"""A quarter of the limit: the encoded log entry and the store's copy stay well below it together."""

_ID_BYTES: Final = 16
"""What an id is taken to cost when batches are cut; the default's distance to the limit covers longer ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """``first`` is the place of the part's first record in the caller's input, for messages."""

    ids: list[RecordId]
    vectors: npt.NDArray[Any]
    metadata: list[bytes] | None
    first: int = 0


def cuts(part: Part, schema: CollectionSchema, batch_size: int, most: int) -> list[tuple[int, int]]:
    """Row ranges of at most ``batch_size`` rows and ``most`` bytes each (one row always fits)."""
    n = len(part.ids)
    fixed = row_bytes(schema) + _ID_BYTES
    if part.metadata is None:
        step = max(1, min(batch_size, most // fixed))
        return [(low, min(n, low + step)) for low in range(0, n, step)]
    ends = np.cumsum(np.fromiter(map(len, part.metadata), dtype=np.int64, count=n) + fixed)
    out, low, spent = [], 0, 0
    while low < n:
        high = int(np.searchsorted(ends, spent + most, side="right"))
        high = min(max(high, low + 1), low + batch_size, n)
        out.append((low, high))
        low, spent = high, int(ends[high - 1])
    return out


def _batch(part: Part, schema: CollectionSchema, low: int, high: int) -> UpsertBatch:
    ids = part.ids[low:high]
    vectors = check_vectors(schema, part.vectors[low:high], first=part.first + low)
    metadata = [b"{}"] * len(ids) if part.metadata is None else part.metadata[low:high]
    last = dict(zip(ids, range(len(ids)), strict=True))
    if len(last) != len(ids):
        keep = np.sort(np.fromiter(last.values(), dtype=np.int64, count=len(last)))
        vectors = vectors[keep]
        ids, metadata = [ids[i] for i in keep], [metadata[i] for i in keep]
    return UpsertBatch(tuple(ids), vectors, tuple(metadata), schema.shape)


def batches(parts: Iterable[Part], schema: CollectionSchema, batch_size: int | None, whole: bool,
            most: int | None = None) -> Iterator[tuple[int, UpsertBatch]]:
    """Yield (rows of input, batch).  ``whole``: check all the input before the first batch is given out.

    ``most``: bytes of a batch, if fewer than :data:`DEFAULT_BATCH_BYTES`.
    """
    size = min(batch_size or DEFAULT_BATCH_RECORDS, MAX_BATCH_RECORDS)
    room = min(most or DEFAULT_BATCH_BYTES, DEFAULT_BATCH_BYTES)
    if whole:
        parts = list(parts)
        pieces = [(part, low, high) for part in parts for low, high in cuts(part, schema, size, room)]
        if len(pieces) > 1:
            for part, low, high in pieces:
                check_vectors(schema, part.vectors[low:high], first=part.first + low)
        for part, low, high in pieces:
            yield high - low, _batch(part, schema, low, high)
        return
    for part in parts:
        for low, high in cuts(part, schema, size, room):
            yield high - low, _batch(part, schema, low, high)


async def abatches(parts: AsyncIterable[Part], schema: CollectionSchema, batch_size: int | None,
                   most: int | None = None) -> AsyncIterator[tuple[int, UpsertBatch]]:
    """:func:`batches` of parts that come one by one."""
    async for part in parts:
        for one in batches((part,), schema, batch_size, False, most):
            yield one
