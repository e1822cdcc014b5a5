"""Queries for the same shard on the same node that come together travel together.

One call of each *lane* (a shard or several, a node, a set of options) is on its way at a time; what comes meanwhile
waits, and leaves as one call of many queries when it is back.  A query that meets no other leaves at once, without a
turn of the loop.  The measurements behind it: DESIGN, section 5.

An error that names an argument may be another query's: then each is asked for by itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

import numpy as np

from vecdb.core.calls import Call
from vecdb.core.errors import InvalidArgument, own_copy
from vecdb.core.query import QueryRequest, QueryResult
from vecdb.ports.peers import Several
from vecdb.services.passing import copy_of

MOST_ROWS: Final = 512
"""Queries of one gathered call."""
FEW_ROWS: Final = 64
"""A request with more goes by itself."""

T = TypeVar("T")
Ask = Callable[[QueryRequest, Call], Awaitable[T]]
Cut = Callable[[T, int, int], T]
"""The answers of some of the queries, from a place to another."""


def cut_result(result: QueryResult, low: int, high: int) -> QueryResult:
    return replace(result, matches=result.matches[low:high])


def cut_several(several: Several[QueryResult], low: int, high: int) -> Several[QueryResult]:
    return Several([cut_result(one, low, high) for one in several.found], several.failed)


@dataclass(slots=True, eq=False)
class _Waiter:
    request: QueryRequest
    call: Call
    done: "asyncio.Future[Any]"


@dataclass(slots=True, eq=False)
class _Lane:
    ask: Ask[Any]
    cut: Cut[Any]
    flying: bool = True
    waiting: list[_Waiter] = field(default_factory=list)


class Gathering:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._lanes: dict[Any, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.gathered = 0
        """Queries that travelled with others."""

    async def query(self, place: tuple[Hashable, str], request: QueryRequest, call: Call, ask: Ask[T],
                    cut: Cut[Any] = cut_result) -> T:
        """``ask`` of the shard, or the shards, on the node of ``place``, alone or with others."""
        if request.explain or request.profile or len(request.vectors) > FEW_ROWS:
            return await ask(request, call)
        # The filter by identity: hashing a large one costs more than the query, and the wire gives equal ones as one.
        key = (place, call.consistency, call.allow_partial, request.k, id(request.filter), request.within,
               request.ef_search, request.nprobe, request.exact, request.include_metadata, request.include_vectors,
               request.shape, request.vectors.shape[1], request.vectors.dtype.char)
        lane = self._lanes.get(key)
        if lane is None:
            self._lanes[key] = _Lane(ask, cut)
            try:
                return await ask(request, call)
            finally:
                self._landed(key)
        one = _Waiter(request, call, asyncio.get_running_loop().create_future())
        lane.waiting.append(one)
        lane.ask = ask
        found: T = await one.done
        return found

    def _landed(self, key: Any) -> None:
        """A call is back: those that waited leave."""
        lane = self._lanes[key]
        batch: list[_Waiter] = []
        rows = 0
        while lane.waiting and rows < MOST_ROWS:
            one = lane.waiting.pop(0)
            if not one.done.done():
                batch.append(one)
                rows += len(one.request.vectors)
        if not batch:
            del self._lanes[key]
            return
        task = asyncio.get_running_loop().create_task(self._together(key, lane, batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        for one in batch:
            one.done.add_done_callback(lambda _: _unwanted(task, batch))

    async def _together(self, key: Any, lane: _Lane, batch: list[_Waiter]) -> None:
        ask, cut = lane.ask, lane.cut
        try:
            if len(batch) == 1:
                await _alone(ask, batch[0])
                return
            self.gathered += len(batch)
            request = replace(batch[0].request, vectors=np.concatenate([one.request.vectors for one in batch]))
            try:
                result = await ask(request, _for_all([one.call for one in batch]))
            except InvalidArgument:
                await asyncio.gather(*(_alone(ask, one) for one in batch))
                return
            low = 0
            for one in batch:
                high = low + len(one.request.vectors)
                if not one.done.done():
                    one.done.set_result(cut(result, low, high))
                low = high
        except asyncio.CancelledError:
            for one in batch:
                one.done.cancel()
            raise
        except Exception as error:
            for one in batch:
                if not one.done.done():
                    one.done.set_exception(own_copy(error))
        finally:
            self._landed(key)


async def _alone(ask: Ask[Any], one: _Waiter) -> None:
    if one.done.done():
        return
    try:
        result = await ask(one.request, one.call)
    except Exception as error:
        if not one.done.done():
            one.done.set_exception(error)
    else:
        if not one.done.done():
            one.done.set_result(result)


def _for_all(calls: list[Call]) -> Call:
    """As long as the most patient of them may take, seeing what each must have seen; they agree in their consistency.
    """
    ends = [call.deadline for call in calls]
    call = copy_of(calls[0])
    call.shards, call.allow_partial = calls[0].shards, calls[0].allow_partial
    call.deadline = None if None in ends else max(end for end in ends if end is not None)
    furthest: dict[int, int] = {}
    for one in calls:
        for shard, log_index in one.session:
            furthest[shard] = max(furthest.get(shard, 0), log_index)
    call.session = tuple(furthest.items())
    return call


def _unwanted(task: "asyncio.Task[None]", batch: list[_Waiter]) -> None:
    """When nobody waits any more, the call is given up."""
    if not task.done() and all(one.done.cancelled() for one in batch):
        task.cancel()
