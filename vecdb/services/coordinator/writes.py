"""Writes: checked, split and encoded where they come in, committed by the leaders of their shards.

All parts go at the same time, under the call's deadline and its idempotency key, which is the same on every shard:
there it stands for the whole write, so that a shard which takes another's place knows which writes that one had
(:mod:`vecdb.shard.imports`).

**Not atomic across shards.**  A part that is committed stays, whatever becomes of the others.  Where some are done and
others are not, or nobody knows, the error is ``OutcomeUnknown``, with the shards of each kind in its fields; the same
write with the same key does what is missing and nothing twice.  Where no part was done the error is that of a part.

**Shards that take no writes** because their records are about to go to others refuse without doing anything.  The part
waits until calls go to those others, is split over them and goes on.  What a part without a key may have done already
is done again neither there nor here: ``OutcomeUnknown``, as ever.

**A write without a key** that has several parts is given one of its own, which nobody else has: parts that two shards
refused come to the one that both became, and what of a filter or an update is whole in each is done there once.
It is for that alone; whoever sends the write again has another one.
"""

import asyncio
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from vecdb.cluster.control import ShardEntry
from vecdb.cluster.merge import counting, merge_writes
from vecdb.cluster.routing import Part, split
from vecdb.core.calls import Call, WriteToken
from vecdb.core.errors import (
    CollectionNotFound,
    InvalidArgument,
    OutcomeUnknown,
    SchemaChanged,
    ShardSealed,
    StaleShardMap,
    Unavailable,
    VecdbError,
)
from vecdb.core.records import Command, DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.ports.observer import Observer, Refusal
from vecdb.services.admission import Gate
from vecdb.services.coordinator.knowledge import LEARN_S, Knowledge, Shards
from vecdb.services.coordinator.unled import refuse_unled
from vecdb.services.node import BYTES_PER_RECORD
from vecdb.services.passing import copy_of
from vecdb.services.replicas import Engine
from vecdb.shard.codec import encode

APART_BYTES: Final = 256 << 10
"""A command from this size on is split and encoded in a thread."""
MOST_WRITES: Final = 1_024
"""Writes under way at once; their bytes are bounded by memory and by what a group may have uncommitted."""
REMADE: Final = 3
"""How often a write follows a collection that is dropped and made anew under it."""
LOOK_S: Final = 0.02
SEALED_S: Final = 0.5
"""How long a part waits for the map to change before it asks the control group, and the shard again."""


class _Sealed(Exception):
    """The leader was found, and its shard takes no writes: ends the search for one."""

    def __init__(self, error: ShardSealed) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True, slots=True)
class _Done:
    shard: int
    result: WriteResult
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class _Failed:
    shard: int
    error: VecdbError


class Writer:
    """Belongs to one event loop."""

    def __init__(self, know: Knowledge, engine: Engine, observer: Observer) -> None:
        self._know = know
        self._engine = engine
        self.gate = Gate("write calls", MOST_WRITES, Refusal.QUEUE, observer)

    async def upsert(self, name: str, batch: UpsertBatch, call: Call) -> WriteResult:
        size = batch.vectors.nbytes + sum(map(len, batch.metadata)) + BYTES_PER_RECORD * len(batch.ids)
        with self._engine.guard.reserve(2 * size):  # once on its way, once in the growing segment
            return await self._write(name, batch, size, call)

    async def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call) -> WriteResult:
        size = 32 * len(command.ids) if isinstance(command, DeleteIds) else 0
        return await self._write(name, command, size, call)

    async def update_metadata(self, name: str, command: UpdateMetadata, call: Call) -> WriteResult:
        size = sum(map(len, command.patch)) + BYTES_PER_RECORD * len(command.ids)
        with self._engine.guard.reserve(2 * size):
            return await self._write(name, command, size, call)

    async def _write(self, name: str, command: Command, size: int, call: Call) -> WriteResult:
        self.gate.take()
        try:
            shards = await self._know.shards(name, call)
            for _ in range(REMADE):
                if isinstance(command, UpsertBatch) and command.shape not in (0, shards.entry.schema.shape):
                    raise SchemaChanged(name)
                try:
                    return await self._applied(shards, command, size, call)
                except CollectionNotFound:
                    before, shards = shards, await self._know.shards(name, call)
                    if shards.entry.created == before.entry.created:
                        raise
            raise CollectionNotFound(name)
        finally:
            self.gate.leave()

    async def _applied(self, shards: Shards, command: Command, size: int, call: Call) -> WriteResult:
        """On all shards of one collection, be it that they are split meanwhile."""
        shard_key = shards.entry.shard_key
        if len(shards.all) == 1 and shard_key is None:
            try:
                data = await self._encoded(command, call.token, size)
                return merge_writes([await self._committed(shards.all[0], data, call)], command)
            except StaleShardMap:
                shards = await self._newer(shards, call)
        outcomes = await self._everywhere(shards, command, size, call, call.token)
        failures = [one for one in outcomes if isinstance(one, _Failed)]
        done = [one for one in outcomes if isinstance(one, _Done)]
        if failures:
            raise _error(shards.name, done, failures)
        results = counting([(one.shard, one.lo, one.hi, one.result) for one in done], command, shard_key)
        return merge_writes(results, command, shard_key is not None) if results else WriteResult()

    # --- parts ------------------------------------------------------------------------------------

    async def _everywhere(self, shards: Shards, command: Command, size: int, call: Call, token: WriteToken | None
                          ) -> "list[_Done | _Failed]":
        """Every part to its shard, all at the same time; raises what concerns the whole."""
        parts = await self._split(shards, command, size)
        if len(parts) == 1:
            return await self._part(shards, parts[0], size, call, token)
        share = size // max(1, len(parts))
        token = token or WriteToken(os.urandom(16))
        running = [asyncio.ensure_future(self._part(shards, part, share, call, token)) for part in parts]
        try:
            found = await asyncio.gather(*running, return_exceptions=True)
        except asyncio.CancelledError:
            await _end(running)
            raise
        outcomes = [one for part in found if isinstance(part, list) for one in part]
        for one in found:
            if isinstance(one, BaseException):
                raise _with_done(one, outcomes)
        return outcomes

    async def _split(self, shards: Shards, command: Command, size: int) -> "list[Part[ShardEntry]]":
        shard_key = shards.entry.shard_key
        if size < APART_BYTES:
            return split(shards.ring, command, shard_key)
        return await asyncio.get_running_loop().run_in_executor(None, split, shards.ring, command, shard_key)

    async def _part(self, shards: Shards, part: "Part[ShardEntry]", size: int, call: Call, token: WriteToken | None
                    ) -> "list[_Done | _Failed]":
        """One shard's part; split anew where others have taken its place."""
        group = part.shard.group
        try:
            data = await self._encoded(part.command, token, size)
            return [_Done(group, await self._committed(part.shard, data, call), part.shard.lo, part.shard.hi)]
        except StaleShardMap:
            self._know.counts.add("rerouted")
            return await self._everywhere(await self._newer(shards, call), part.command, size, call, token)
        except (CollectionNotFound, InvalidArgument):
            raise
        except VecdbError as error:
            return [_Failed(group, error)]

    async def _newer(self, shards: Shards, call: Call) -> Shards:
        """The collection as it is known by now; ``CollectionNotFound`` if that is another one."""
        found = await self._know.shards(shards.name, call)
        if found.entry.created != shards.entry.created:
            raise CollectionNotFound(shards.name)
        return found

    async def _encoded(self, command: Command, token: WriteToken | None, size: int) -> bytes:
        if size < APART_BYTES:
            return encode(command, token)
        return await asyncio.get_running_loop().run_in_executor(None, encode, command, token)

    async def _committed(self, shard: ShardEntry, data: bytes, call: Call) -> WriteResult:
        know = self._know

        async def ask(node: str) -> WriteResult:
            try:
                if node == know.cluster.me:
                    done = await know.own.commit(shard.group, data, call)
                else:
                    know.counts.add("propose")
                    done = await know.peers.replicas(node).propose(shard.group, data, copy_of(call))
            except ShardSealed as error:
                raise _Sealed(error) from None
            assert isinstance(done.result, WriteResult), "what a write's apply returns"
            call.handed_on = call.handed_on or node != know.cluster.me
            return replace(done.result, shard=shard.group, log_index=done.result.log_index or done.log_index)

        while True:
            await refuse_unled(know, shard)
            try:
                return await know.leaders.ask(know.task(shard, call, once=call.token is None), ask)
            except _Sealed as refused:
                await self._unsealed(shard, refused.error, call)

    async def _unsealed(self, shard: ShardEntry, error: ShardSealed, call: Call) -> None:
        """Return when the shard may be asked again; ``StaleShardMap`` once others have taken its place."""
        know = self._know
        know.counts.add("sealed")
        until = know.clock.monotonic() + SEALED_S
        while know.clock.monotonic() < until:
            know.still(shard)
            know.check_hears(call)
            call.check()
            if know.deadline_near(call, LOOK_S):
                raise error
            await asyncio.sleep(LOOK_S)
        with suppress(Unavailable, TimeoutError):  # who knows no more than before may ask the shard again
            await know.learn(know.brief(call, LEARN_S))
        know.still(shard)


def _with_done(error: BaseException, outcomes: "Sequence[_Done | _Failed]") -> BaseException:
    """An error that concerns the whole write, which says what was done of it nevertheless."""
    done = [one.shard for one in outcomes if isinstance(one, _Done)]
    if done and isinstance(error, VecdbError):
        error.fields["shards_done"] = _numbers(done)
    return error


async def _end(running: "Sequence[asyncio.Future[list[_Done | _Failed]]]") -> None:
    """Cancel what still runs and wait for it: nothing of a call goes on when it has ended."""
    for one in running:
        one.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _error(name: str, done: Sequence[_Done], failed: Sequence[_Failed]) -> VecdbError:
    """What a write ends with of which parts failed."""
    unknown = [one for one in failed if isinstance(one.error, OutcomeUnknown)]
    first = (unknown or failed)[0].error
    if not done and not unknown:
        return first
    lost = [one.shard for one in failed if one not in unknown]
    told = [f"{len(done)} of its shards have done their part" if done else "",
            f"of {len(unknown)} nobody knows" if unknown else "", f"{len(lost)} have not" if lost else ""]
    hint = max((_hint(one.error) for one in failed), default=0.0)
    fields = {"collection": name, "shards_done": _numbers(one.shard for one in done),
              "shards_unknown": _numbers(one.shard for one in unknown), "shards_failed": _numbers(lost),
              "cause": type(first).__name__}
    return OutcomeUnknown(f"the write to {name!r} is not done on every shard: {', '.join(filter(None, told))} "
                          f"({first.message}); the same write with the same idempotency key does what is missing",
                          **(fields | ({"retry_after_s": hint} if hint else {})))


def _hint(error: VecdbError) -> float:
    value = error.fields.get("retry_after_s")
    return float(value) if isinstance(value, int | float) else 0.0


def _numbers(groups: Iterable[int]) -> list[int]:
    return sorted(groups)
