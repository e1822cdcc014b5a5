"""Single queries that wait at the same time travel together.

A call costs a server ten times what a query in a batch costs it.  So of queries with equal options a few calls are on
their way at a time; what arrives meanwhile waits and leaves as one call when the first of them is back.  A query that
meets no other leaves at once, and none waits longer than one call takes.  There is no timer.

An error that names an argument may be another query's: then each is asked for by itself.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

import numpy as np

from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import DeadlineExceeded, InvalidArgument, own_copy
from vecdb.core.query import QueryRequest, QueryResult

FLYING: Final = 2
"""Calls of one kind on their way: one is computed while another one travels."""
MOST_ROWS: Final = 256
"""Queries of one gathered call."""

Key = tuple[Any, ...]


def key_of(name: str, request: QueryRequest, call: Call | None) -> Key | None:
    """What queries of one call must agree in; None for a query that goes by itself."""
    if len(request.vectors) != 1 or request.explain or request.profile or (call is not None and call.part is not None):
        return None
    consistency = Consistency.EVENTUAL if call is None else call.consistency
    partial = call is not None and call.allow_partial
    return (name, consistency, partial, request.k, request.filter, request.within, request.ef_search,
            request.nprobe, request.exact, request.include_metadata, request.include_vectors, request.vectors.shape[1],
            request.vectors.dtype.char, request.shape)


def joined(requests: list[QueryRequest]) -> QueryRequest:
    """One request of several."""
    first = requests[0]
    return QueryRequest(np.concatenate([one.vectors for one in requests]), first.k, first.filter, first.within,
                        first.ef_search, first.nprobe, first.exact, first.include_metadata, first.include_vectors,
                        shape=first.shape)


def part_of(result: QueryResult, place: int) -> QueryResult:
    return QueryResult([result.matches[place]], result.plan, result.missing, result.cost)


def together(calls: list[Call | None]) -> Call | None:
    """A call for all: as long as the most patient of them may take, and seeing what each of them must have seen.

    They agree in their consistency, and in whether the answer may be partial.
    """
    ends = [None if call is None else call.deadline for call in calls]
    known = [end for end in ends if end is not None]
    deadline = max(known) if len(known) == len(ends) else None
    furthest: dict[int, int] = {}
    consistency, partial = Consistency.EVENTUAL, False
    for call in calls:
        if call is not None:
            consistency, partial = call.consistency, call.allow_partial
            for shard, log_index in call.session:
                furthest[shard] = max(furthest.get(shard, 0), log_index)
    if deadline is None and consistency is Consistency.EVENTUAL and not partial:
        return None
    return Call(deadline, consistency=consistency, session=tuple(furthest.items()), allow_partial=partial)


@dataclass(slots=True, eq=False)
class _Group:
    flying: int = 0
    waiting: list[Any] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Task:
    request: QueryRequest
    call: Call | None
    future: "asyncio.Future[QueryResult]"


class AsyncGather:
    """For one event loop."""

    def __init__(self, ask: Callable[[str, QueryRequest, Call | None], Awaitable[QueryResult]]) -> None:
        self._ask = ask
        self._groups: dict[Key, _Group] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def query(self, name: str, request: QueryRequest, call: Call | None) -> QueryResult:
        key = key_of(name, request, call)
        if key is None:
            return await self._ask(name, request, call)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group()
        if group.flying < FLYING:
            group.flying += 1
            try:
                return await self._ask(name, request, call)
            finally:
                self._landed(name, key, group)
        loop = asyncio.get_running_loop()
        one = _Task(request, call, loop.create_future())
        group.waiting.append(one)
        timer = None
        if call is not None and call.deadline is not None:
            timer = loop.call_at(loop.time() + _left(call), _late, one.future)
        try:
            return await one.future
        finally:
            if timer is not None:
                timer.cancel()

    def _landed(self, name: str, key: Key, group: _Group) -> None:
        """A call is back: those that waited leave."""
        waiting: list[_Task] = []
        while group.waiting and not waiting:  # of those that came first, all may have gone
            waiting = [one for one in group.waiting[:MOST_ROWS] if not one.future.done()]
            del group.waiting[:MOST_ROWS]
        if not waiting:
            group.flying -= 1
            if not group.flying:
                self._groups.pop(key, None)
            return
        task = asyncio.get_running_loop().create_task(self._together(name, key, group, waiting))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        for one in waiting:
            one.future.add_done_callback(lambda _: _unwanted(task, waiting))

    async def _together(self, name: str, key: Key, group: _Group, waiting: list[_Task]) -> None:
        try:
            if len(waiting) == 1:
                await self._alone(name, waiting[0])
                return
            try:
                result = await self._ask(name, joined([one.request for one in waiting]),
                                         together([one.call for one in waiting]))
            except InvalidArgument:
                await asyncio.gather(*(self._alone(name, one) for one in waiting))
                return
            for place, one in enumerate(waiting):
                if not one.future.done():
                    one.future.set_result(part_of(result, place))
        except BaseException as error:
            for one in waiting:
                if not one.future.done():
                    if isinstance(error, Exception):
                        one.future.set_exception(own_copy(error))
                    else:
                        one.future.cancel()
            if not isinstance(error, Exception):
                raise
        finally:
            self._landed(name, key, group)

    async def _alone(self, name: str, one: _Task) -> None:
        if one.future.done():
            return
        try:
            result = await self._ask(name, one.request, one.call)
        except Exception as error:
            if not one.future.done():
                one.future.set_exception(error)
        else:
            if not one.future.done():
                one.future.set_result(result)


def _unwanted(task: "asyncio.Task[None]", waiting: list[_Task]) -> None:
    """When nobody waits any more, the call is given up."""
    if not task.done() and all(one.future.cancelled() for one in waiting):
        task.cancel()


def _left(call: Call) -> float:
    assert call.deadline is not None
    return max(0.0, call.deadline - time.monotonic())


def _late(future: "asyncio.Future[QueryResult]") -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("the deadline passed before the server answered"))


@dataclass(slots=True, eq=False)
class _Waiter:
    """``batch`` is set when this thread is to call for all in it."""

    request: QueryRequest
    call: Call | None
    woken: threading.Event = field(default_factory=threading.Event)
    batch: "list[_Waiter] | None" = None
    result: QueryResult | None = None
    error: Exception | None = None


class ThreadGather:
    """For threads: the first of those who waited calls for all of them."""

    def __init__(self, ask: Callable[[str, QueryRequest, Call | None], QueryResult]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._groups: dict[Key, _Group] = {}

    def query(self, name: str, request: QueryRequest, call: Call | None) -> QueryResult:
        key = key_of(name, request, call)
        if key is None:
            return self._ask(name, request, call)
        with self._lock:
            group = self._groups.setdefault(key, _Group())
            mine: _Waiter | None = None
            if group.flying < FLYING:
                group.flying += 1
            else:
                mine = _Waiter(request, call)
                group.waiting.append(mine)
        if mine is None:
            try:
                return self._ask(name, request, call)
            finally:
                self._landed(key, group)
        return self._follow(name, key, group, mine)

    def _follow(self, name: str, key: Key, group: _Group, mine: _Waiter) -> QueryResult:
        try:
            self._await(group, mine)
        except BaseException:  # Ctrl-C, for one: nobody may wait for a call that is not made any more
            self._abandon(key, group, mine)
            raise
        if mine.batch is not None:
            self._lead(name, key, group, mine, mine.batch)
        if mine.error is not None:
            raise mine.error
        if mine.result is None:  # whose call was to answer this one ended otherwise
            return self._ask(name, mine.request, mine.call)
        return mine.result

    def _await(self, group: _Group, mine: _Waiter) -> None:
        timeout = None if mine.call is None or mine.call.deadline is None else _left(mine.call)
        if not mine.woken.wait(timeout):
            with self._lock:
                if mine in group.waiting:
                    group.waiting.remove(mine)
                    raise DeadlineExceeded("the deadline passed before the server answered")
            if not mine.woken.is_set() and mine.batch is None:
                raise DeadlineExceeded("the deadline passed before the server answered")

    def _abandon(self, key: Key, group: _Group, mine: _Waiter) -> None:
        """This thread waits no more; those it was to call for ask for themselves."""
        with self._lock:
            if mine in group.waiting:
                group.waiting.remove(mine)
            batch, mine.batch = mine.batch, None
        if batch is not None:
            for one in batch:
                one.woken.set()
            self._landed(key, group)

    def _lead(self, name: str, key: Key, group: _Group, mine: _Waiter, batch: list[_Waiter]) -> None:
        """Call for all; this thread's own deadline is the latest."""
        try:
            if len(batch) == 1:
                mine.result = self._ask(name, mine.request, mine.call)
                return
            try:
                result = self._ask(name, joined([one.request for one in batch]), together([one.call for one in batch]))
            except InvalidArgument:
                return  # each asks for itself
            for place, one in enumerate(batch):
                one.result = part_of(result, place)
        except Exception as error:
            for one in batch:
                one.error = own_copy(error)
        finally:
            for one in batch:
                one.woken.set()
            self._landed(key, group)

    def _landed(self, key: Key, group: _Group) -> None:
        with self._lock:
            batch = group.waiting[:MOST_ROWS]
            del group.waiting[:MOST_ROWS]
            if not batch:
                group.flying -= 1
                if not group.flying:
                    self._groups.pop(key, None)
                return
            leader = max(batch, key=_patience)
            leader.batch = batch
            leader.woken.set()


def _patience(waiter: _Waiter) -> float:
    call = waiter.call
    return inf if call is None or call.deadline is None else call.deadline
