"""Reads of a collection: every shard that may have to say something is asked, and their answers are made one.

All shards are asked at the same time, under one deadline.  A collection with one shard, or a filter that is about one,
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
from typing import Any, Final, Generic, TypeVar

from vecdb.cluster.control import ShardEntry
from vecdb.core.calls import Call
from vecdb.core.errors import (
    Cancelled,
    CollectionNotFound,
    DataCorrupted,
    DeadlineExceeded,
    Overloaded,
    StaleShardMap,
    StorageError,
    Unavailable,
    VecdbError,
)
from vecdb.services.coordinator.knowledge import LEARN_S, Knowledge, Shards
from vecdb.services.coordinator.shard_reads import Reading, ShardReader
from vecdb.services.leaders import PAUSE_S
from vecdb.services.passing import copy_of

T = TypeVar("T")

PARTIAL_S: Final = 5.0
"""How long a partial answer is waited for in a call without a deadline."""
RESERVE: Final = 0.1
"""Of the time that is left, kept for the way back of a partial answer; at most :data:`RESERVE_S`."""
RESERVE_S: Final = 0.25
_MISSING: Final = (Unavailable, Overloaded, DeadlineExceeded, Cancelled, StorageError, DataCorrupted)
"""What a shard may fail with that a partial answer goes without."""

Chosen = Sequence[tuple[ShardEntry, Reading[T]]]


@dataclass(frozen=True, slots=True)
class Answers(Generic[T]):
    """Of the shards that answered, in the order of their ranges; ``missing``: names of the others."""

    shards: list[ShardEntry]
    found: list[T]
    missing: tuple[str, ...] = ()


def shard_name(shard: ShardEntry) -> str:
    """For those who read what is missing."""
    return f"shard {shard.group}"


class Fan:
    """Belongs to one event loop."""

    def __init__(self, know: Knowledge, reader: ShardReader) -> None:
        self._know = know
        self._reader = reader

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
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._reader.read(shard, copy_of(call), reading)) for shard, reading in chosen]
        try:
            if call.allow_partial:
                return await self._some(chosen, tasks, call)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                    raise _named(error, chosen[tasks.index(task)][0])
            return Answers([shard for shard, _ in chosen], [task.result() for task in tasks])
        finally:
            _end(tasks)

    async def _some(self, chosen: Chosen[T], tasks: "list[asyncio.Task[T]]", call: Call) -> Answers[T]:
        now = self._know.clock.monotonic()
        left = PARTIAL_S if call.deadline is None else max(0.0, call.deadline - now)
        until = now + left - min(RESERVE_S, RESERVE * left)
        waiting: set[asyncio.Task[T]] = set(tasks)
        while waiting and (rest := until - self._know.clock.monotonic()) > 0:
            done, waiting = await asyncio.wait(waiting, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = None if task.cancelled() else task.exception()
                if error is not None and (isinstance(error, StaleShardMap) or not isinstance(error, _MISSING)):
                    raise error
        answered = [(shard, task.result()) for (shard, _), task in zip(chosen, tasks, strict=True)
                    if task.done() and not task.cancelled() and task.exception() is None]
        if not answered:
            # There is nothing to bring back in time: each shard may say itself what became of it.
            await asyncio.wait(tasks, timeout=max(0.0, left + now - self._know.clock.monotonic()))
            failed = next((task.exception() for task in tasks if task.done() and not task.cancelled()), None)
            raise failed or DeadlineExceeded("no shard answered before the deadline")
        there = {shard.group for shard, _ in answered}
        missing = tuple(shard_name(shard) for shard, _ in chosen if shard.group not in there)
        if missing:
            self._know.counts.add("partial")
        return Answers([shard for shard, _ in answered], [found for _, found in answered], missing)


def _named(error: BaseException, shard: ShardEntry) -> BaseException:
    """An error that says of which shard it is."""
    if isinstance(error, VecdbError):
        error.fields.setdefault("shard", shard.group)
    return error


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

