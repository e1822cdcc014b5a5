"""Reads of a collection: every shard that may have to say something is asked, and their answers are made one.

All shards are asked at the same time, under one deadline; several that one node has in one call (:mod:`.bundles`).  A
collection with one shard, or a filter that is about one,
costs nothing of that: its shard is asked as if there were no others.

**What calls go to may change while they run.**  A shard that others have taken the place of says so, or this node hears
of it first; then the map is looked at anew and the shards of the moment are asked, all of them: an answer made of
shards of two maps could have a record twice, or not at all.

**Partial answers** (``allow_partial``): what has answered shortly before the deadline is the answer, and names the
shards that are missing.  Where no shard has answered the call fails as others do.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from vecdb.cluster.control import ShardEntry
from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import CollectionNotFound, DeadlineExceeded, StaleShardMap, Unavailable
from vecdb.services.coordinator.bundles import Asked, Bundles, Piece
from vecdb.services.coordinator.knowledge import LEARN_S, Knowledge, Shards
from vecdb.services.coordinator.shard_reads import MISSING, Reading, ShardReader, named
from vecdb.services.coordinator.unled import refuse_unled
from vecdb.services.leaders import PAUSE_S
from vecdb.services.passing import copy_of
from vecdb.services.several import partial_until

T = TypeVar("T")

Chosen = Sequence[tuple[ShardEntry, Reading[T]]]


@dataclass(frozen=True, slots=True)
class Answers(Generic[T]):
    """Of the shards that answered, in the order of their ranges; ``missing``: names of the others.

    ``found``: one answer for each of the shards, but that those which were asked together may have one for all.
    """

    shards: list[ShardEntry]
    found: list[T]
    missing: tuple[str, ...] = ()


def shard_name(shard: ShardEntry) -> str:
    """For those who read what is missing."""
    return f"shard {shard.group}"


@dataclass(frozen=True, slots=True)
class _Unit(Generic[T]):
    """What is waited for: one shard's answer, or the pieces of a bundle, which come one by one."""

    shards: tuple[ShardEntry, ...]
    task: "asyncio.Task[Any]"
    pieces: list[Piece[T]] | None = None

    def answered(self) -> Sequence[Piece[T]]:
        if self.pieces is not None:
            return self.pieces
        done = self.task.done() and not self.task.cancelled() and self.task.exception() is None
        return [(self.shards, [self.task.result()])] if done else []


class Fan:
    """Belongs to one event loop."""

    def __init__(self, know: Knowledge, reader: ShardReader) -> None:
        self._know = know
        self._reader = reader
        self._bundles = Bundles(know, reader)

    async def read(self, name: str, call: Call, choose: Callable[[Shards], Chosen[T]],
                   merge: Callable[[Answers[T]], T]) -> T:
        """``merge`` of what the shards answer that ``choose`` chooses; of one shard its answer, as it is."""
        shards = self._know.known(name)
        if shards is None or call.session:
            shards = await self._know.shards(name, call)
        if call.shards:
            return await self._of_these(shards, call, choose, merge)
        while True:
            chosen = choose(shards)
            try:
                if call.consistency is Consistency.LINEARIZABLE and not call.allow_partial:
                    for shard, _ in chosen:
                        await refuse_unled(self._know, shard)
                if len(chosen) == 1 and not (call.allow_partial and len(shards.all) > 1):
                    return await self._reader.read(chosen[0][0], call, chosen[0][1])
                return merge(await self._several(chosen, call))
            except StaleShardMap as error:
                shards = await self.newer(shards, call, error)
            except CollectionNotFound:
                shards = await self._remade(shards, call)

    async def _of_these(self, shards: Shards, call: Call, choose: Callable[[Shards], Chosen[T]],
                        merge: Callable[[Answers[T]], T]) -> T:
        """For a client that has the map, and is told where it is an old one: the shards it names, and no others."""
        self._know.counts.add("direct")
        for group in call.shards:
            self._know.shard(shards.name, group)
        chosen = [one for one in choose(shards) if one[0].group in call.shards]
        if len(chosen) == 1:
            return await self._reader.read(chosen[0][0], call, chosen[0][1])
        return merge(await self._several(chosen, call)) if chosen else merge(Answers([], []))

    async def newer(self, before: Shards, call: Call, error: StaleShardMap) -> Shards:
        """The shards of now, once they are others than before."""
        know = self._know
        know.counts.add("stale_map")
        while True:
            self._reader.check_time(call)
            found = await know.shards(before.name, call)
            if found.entry.groups != before.entry.groups:
                return found
            if know.deadline_near(call, PAUSE_S[1]):
                raise error
            with suppress(Unavailable, TimeoutError):
                await know.learn(know.brief(call, LEARN_S))
            if (now := know.known(before.name)) is not None and now.entry.groups == before.entry.groups:
                await asyncio.sleep(know.random.uniform(*PAUSE_S))  # who refused knows more than the control group

    async def _remade(self, before: Shards, call: Call) -> Shards:
        """The collection that was made under the name since; ``CollectionNotFound``."""
        found = await self._know.shards(before.name, call)
        if found.entry.created == before.entry.created:
            raise CollectionNotFound(before.name)
        return found

    # --- several shards ---------------------------------------------------------------------------

    async def _several(self, chosen: Chosen[T], call: Call) -> Answers[T]:
        until, ends = partial_until(call, self._know.clock.monotonic())
        bundles = self._bundles.plan(chosen, call)
        if not bundles:
            return await self._separately(chosen, [], call, until, ends)
        readings = {shard.group: reading for shard, reading in chosen}
        asked = [self._bundles.ask(one, readings, call, until if call.allow_partial else None) for one in bundles]
        if len(asked) == 1 and len(asked[0].shards) == len(chosen) and not call.allow_partial:
            await asked[0].whole()
            return _answers(chosen, asked[0].pieces)
        return await self._separately(chosen, asked, call, until, ends)

    async def _separately(self, chosen: Chosen[T], asked: list[Asked[T]], call: Call, until: float, ends: float
                          ) -> Answers[T]:
        """Some together, all others each by itself."""
        loop = asyncio.get_running_loop()
        together = {shard.group for one in asked for shard in one.shards}
        units: list[_Unit[T]] = [_Unit(one.shards, loop.create_task(one.whole()), one.pieces) for one in asked]
        units += [_Unit((shard,), loop.create_task(self._reader.read(shard, copy_of(call), reading)))
                  for shard, reading in chosen if shard.group not in together]
        tasks = [one.task for one in units]
        try:
            if call.allow_partial:
                await self._some(units, until, ends)
            else:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                for unit in units:
                    task = unit.task
                    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                        raise named(error, unit.shards[0].group) if unit.pieces is None else error
            answers = _answers(chosen, [piece for unit in units for piece in unit.answered()])
            if answers.missing and not answers.shards:
                raise next((error for task in tasks if task.done() and not task.cancelled()
                            and (error := task.exception()) is not None), None) \
                    or DeadlineExceeded("no shard answered before the deadline")
            if answers.missing:
                self._know.counts.add("partial")
            return answers
        finally:
            _end(tasks)

    async def _some(self, units: "Sequence[_Unit[T]]", until: float, ends: float) -> None:
        """Until the answer is what there is; where there is nothing, until the end."""
        clock, tasks = self._know.clock, [one.task for one in units]
        waiting: set[asyncio.Task[Any]] = set(tasks)
        while waiting and (rest := until - clock.monotonic()) > 0:
            done, waiting = await asyncio.wait(waiting, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = None if task.cancelled() else task.exception()
                if error is not None and (isinstance(error, StaleShardMap) or not isinstance(error, MISSING)):
                    raise error
        if not any(unit.answered() for unit in units):
            # There is nothing to bring back in time: each shard may say itself what became of it.
            await asyncio.wait(tasks, timeout=max(0.0, ends - clock.monotonic()))


def _answers(chosen: Chosen[T], pieces: Sequence[Piece[T]]) -> Answers[T]:
    """In the order of the shards' ranges, as they were chosen."""
    place = {shard.group: at for at, (shard, _) in enumerate(chosen)}
    ordered = sorted(pieces, key=lambda piece: place[piece[0][0].group])
    shards = [shard for some, _ in ordered for shard in some]
    there = {shard.group for shard in shards}
    return Answers(shards, [one for _, found in ordered for one in found],
                   tuple(shard_name(shard) for shard, _ in chosen if shard.group not in there))


def _end(tasks: "Sequence[asyncio.Task[Any]]") -> None:
    """Those whose answers nobody wants any more."""
    for task in tasks:
        if not task.done():
            task.add_done_callback(_looked_at)
            task.cancel()
        elif not task.cancelled():
            task.exception()


def _looked_at(task: "asyncio.Task[Any]") -> None:
    if not task.cancelled():
        task.exception()

