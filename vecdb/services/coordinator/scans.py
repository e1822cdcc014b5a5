"""Scans over shards: one after the other, in the order of their ranges, each page by page.

In one shard a cursor is a place, as ever: records get their numbers from the log, and so have the same order on every
replica, whichever answers.  Across shards it is a *position*: the shard, the place in it, and where its range begins.

**What becomes of a position when shards change.**  Moves, lost nodes and elections mean nothing to it.  When a shard is
split or merged in the midst of a scan, the scan goes on in the shard as it was: that stays readable for a while, sealed
and unchanged, so each record that stays as it is is still seen once, and what follows begins where its range ends.
Where that would not be the answer, the next page is refused (:class:`~vecdb.core.errors.StaleCursor`): what the shard
had is deleted, the read must see what was written since, or a merge has joined what was scanned with what was not.
Nothing is ever passed over or given twice without a word.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import orjson

from vecdb.cluster.control import ShardEntry
from vecdb.cluster.routing import asked
from vecdb.core.calls import Call, Consistency
from vecdb.core.cluster import HASH_SPACE, ShardState
from vecdb.core.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    InvalidArgument,
    Overloaded,
    StaleCursor,
    StaleShardMap,
    Unavailable,
)
from vecdb.core.limits import MAX_BATCH_BYTES
from vecdb.core.query import Cursor, ScanPage, ScanRequest
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import stored_dtype
from vecdb.services.coordinator.fan import Fan, shard_name
from vecdb.services.coordinator.knowledge import Knowledge, Shards
from vecdb.services.coordinator.shard_reads import Reading, ShardReader
from vecdb.services.passing import copy_of
from vecdb.services.replicas import Engine
from vecdb.services.unreachable import GONE

VERSION: Final = 1
_POSITION: Final = struct.Struct(">BQQQ")
PAGE_BYTES: Final = MAX_BATCH_BYTES // 4
"""A page that has so much is not filled up from the next shard."""
PASSED_OVER: Final = (Unavailable, Overloaded, DeadlineExceeded)


@dataclass(frozen=True, slots=True)
class Position:
    """``after`` 0: at the beginning of what has hashes from ``lo`` on, whatever shard that is in; else in ``group``."""

    group: int
    after: int
    lo: int

    def to_bytes(self) -> bytes:
        return _POSITION.pack(VERSION, self.group, self.after, self.lo)

    @classmethod
    def of(cls, cursor: Cursor) -> "Position":
        """Raises ``InvalidArgument`` for what is none."""
        if isinstance(cursor, int):
            return cls(0, cursor, 0)
        if len(cursor) != _POSITION.size or cursor[0] != VERSION:
            raise InvalidArgument("after", "is no cursor of a page, or one of another version", got=len(cursor),
                                  limit="the cursor of the page before")
        return cls(*_POSITION.unpack(cursor)[1:])


class Scanner:
    """Belongs to one event loop."""

    def __init__(self, know: Knowledge, reader: ShardReader, fan: Fan, engine: Engine) -> None:
        self._know = know
        self._reader = reader
        self._fan = fan
        self._engine = engine

    async def scan(self, name: str, request: ScanRequest, call: Call) -> ScanPage:
        shards = self._know.known(name)
        if shards is None or call.session:
            shards = await self._know.shards(name, call)
        while True:
            try:
                if len(shards.all) == 1 and isinstance(request.after, int):
                    return await self._in_one(shards, request, call)
                return await self._over(shards, request, call)
            except StaleShardMap as error:
                shards = await self._fan.newer(shards, call, error)
            except CollectionNotFound:
                before, shards = shards, await self._know.shards(name, call)
                if shards.entry.created == before.entry.created:
                    raise

    async def _in_one(self, shards: Shards, request: ScanRequest, call: Call) -> ScanPage:
        """The only shard there ever was; of one that took others' place cursors say which it is."""
        shard = shards.all[0]
        if shards.entry.created != shard.created:
            return await self._over(shards, request, call)
        return await self._page(shard, request, call)

    async def _page(self, shard: ShardEntry, request: ScanRequest, call: Call) -> ScanPage:
        return await self._reader.read(shard, call, Reading(
            "scan", lambda shard, mine: self._engine.scan(shard.label, request, mine),
            lambda shard, node, _, mine: node.scan(shard.label, request, mine),
            retired=shard.state is ShardState.RETIRED))

    # --- over several shards ----------------------------------------------------------------------

    async def _over(self, shards: Shards, request: ScanRequest, call: Call) -> ScanPage:
        at: Position | None = Position.of(request.after)
        may = {one.group for one in asked(shards.ring, request.filter, shards.entry.shard_key)}
        pages: list[ScanPage] = []
        missing: list[str] = []
        have = 0
        while at is not None and have < request.limit and not _is_large(pages):
            shard = self._shard(shards, at, call)
            after = at.after
            following = None if shard.hi == HASH_SPACE else Position(0, 0, shard.hi)
            at = following
            if shard.state is ShardState.ACTIVE and shard.group not in may:
                continue
            try:
                page = await self._page(shard, replace(request, limit=request.limit - have, after=after),
                                        copy_of(call))
            except StaleShardMap:
                if not pages:
                    raise
                at = Position(shard.group if after else 0, after, shard.lo)
                break  # what there is is good: the next page looks at the map anew
            except PASSED_OVER as error:
                self._reader.check_time(call)
                if not call.allow_partial:
                    error.fields.setdefault("shard", shard.group)
                    raise
                missing.append(shard_name(shard))
                continue
            pages.append(page)
            have += len(page.ids)
            if page.cursor is not None:
                at = Position(shard.group, int(page.cursor), shard.lo)
        return _joined(pages, request, shards.entry.schema, None if at is None else at.to_bytes(), tuple(missing))

    def _shard(self, shards: Shards, at: Position, call: Call) -> ShardEntry:
        """Where a position is; ``StaleCursor``."""
        state = self._know.control.state
        apart = [state.shards[group] for group in shards.entry.apart if group in state.shards]
        retired = [one for one in apart if one.state is ShardState.RETIRED]
        if at.after:
            active = next((one for one in shards.all if one.group == at.group), None)
            if active is None and not at.group and len(shards.all) == 1 \
                    and shards.all[0].created == shards.entry.created:
                active = shards.all[0]  # a place in the only shard there ever was
            if active is not None:
                return active
            # Of a place without a shard: it was the only one.
            found = [one for one in retired if one.group == at.group or (
                not at.group and one.hi - one.lo == HASH_SPACE and one.created == shards.entry.created)]
        else:
            active = next((one for one in shards.all if one.lo == at.lo), None)
            if active is not None:
                return active
            found = [one for one in retired if one.lo == at.lo]
        if not found or not self._may_be_as_it_was(shards, found[-1], call):
            raise StaleCursor(shards.name)
        return found[-1]

    @staticmethod
    def _may_be_as_it_was(shards: Shards, shard: ShardEntry, call: Call) -> bool:
        """Whether a read may see a shard as it was when others took its place: nothing that it must see is newer."""
        if call.consistency is Consistency.LINEARIZABLE:
            return False
        heirs = {one.group for one in shards.ring.within(shard.lo, shard.hi)}
        return not any(group in heirs and 0 < place < GONE for group, place in call.session)


def _is_large(pages: Sequence[ScanPage]) -> bool:
    """Whether a page has enough to be one, though it might have more records: it travels as one message."""
    size = 0
    for page in pages:
        size += 0 if page.vectors is None else page.vectors.nbytes
        size += 0 if page.metadata is None else sum(len(orjson.dumps(one)) for one in page.metadata)
    return size > PAGE_BYTES


def _joined(pages: Sequence[ScanPage], request: ScanRequest, schema: CollectionSchema, cursor: bytes | None,
            missing: tuple[str, ...]) -> ScanPage:
    if len(pages) == 1:
        return replace(pages[0], cursor=cursor, missing=missing)
    ids = [one for page in pages for one in page.ids]
    metadata = [one for page in pages for one in page.metadata or ()] if request.include_metadata else None
    vectors = [page.vectors for page in pages if page.vectors is not None]
    if not request.include_vectors:
        return ScanPage(ids, metadata, None, cursor, missing)
    empty = np.empty((0, schema.row_items), stored_dtype(schema))
    return ScanPage(ids, metadata, np.concatenate(vectors) if vectors else empty, cursor, missing)


