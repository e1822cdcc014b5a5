"""Queries that arrive together run together.

**Why.**  A kernel call costs some tens of microseconds of Python around it however many rows it has, and a hand-off
to a thread 100 to 250.  So a query that is alone runs on the event loop at once, and when they crowd, one batch of
each *lane* is in a worker thread while the next gathers.  A lane is a collection with one set of options: only such
queries can share a kernel call.

**When it crowds.**  A query gives the loop one turn: what had come with it (the loop was busy meanwhile, or several
answers arrived at their clients at once) comes forth too.  Alone after that, it runs on the loop; otherwise all of them
go to a worker, and the loop is free to read, answer and gather what comes next.

**Bounds.**  At most ``queued_rows`` rows wait; a query whose turn would come after its deadline, by what rows took
lately, is refused at once, with the time after which to try again.  Lanes take turns, no batch is gathered to more
than :data:`BATCH_S` of work, and heavy ones leave a worker free, so that who asks for little waits for little.  A
waiter that gave up is dropped from its batch, and a batch that nobody waits for any more is stopped in the kernel.

An instance belongs to one event loop; only ``run`` is called elsewhere.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from vecdb.core.calls import Call, Stopped, stopped_error
from vecdb.core.errors import Overloaded
from vecdb.core.query import Cost, QueryRequest, QueryResult
from vecdb.ports.clock import Clock
from vecdb.ports.observer import Observer, Refusal
from vecdb.ports.tracing import Span
from vecdb.services import spans

INLINE_S: Final = 1.5e-3
"""The longest the loop may be held by a query, as far as can be foreseen."""
INLINE_ROWS: Final = 16
BATCH_ROWS: Final = 512
"""Rows of a batch that was gathered; a single request may have more."""
BATCH_S: Final = 0.05
"""No more is gathered than should take so long: who waits for a worker waits for a whole batch."""
HEAVY_S: Final = 0.1
"""Batches that should take longer leave one worker to others."""
SECOND_AFTER_S: Final = 5e-3
"""A lane's batch that has run this long no longer keeps the next one waiting."""
FORGET: Final = 0.2
"""Weight of the newest batch in what a row takes."""
COLD: Final = 10.0
"""Times what rows take otherwise: so long a first batch is believed when the second one is like it."""
MOST_HINT_S: Final = 30.0
MAX_LANES: Final = 4_096

_NO_WAIT: Final = (0.0,)
_FREE: Final = Cost()

Run = Callable[[str, QueryRequest, Call], QueryResult]


@dataclass(slots=True, eq=False)
class _Waiter:
    request: QueryRequest
    call: Call
    rows: int
    work_s: float
    arrived: float
    done: "asyncio.Future[QueryResult]"
    lane: "_Lane"
    span: Span | None
    batch: "_Batch | None" = None
    ended: bool = False


@dataclass(slots=True, eq=False)
class _Lane:
    """Queries that may share a kernel call.  ``filter`` keeps the object alive whose identity is part of ``key``.

    ``gone`` of the waiting gave up.  A lane with a filter lives while it has work: filters may be large and of endless
    variety; what its rows take is remembered by its ``kind``, which is the key without the filter.
    """

    name: str
    key: Hashable
    kind: Hashable
    filter: object
    row_s: float = 0.0
    work_s: float = 0.0
    """What the waiting should take, as far as is known."""
    waiting: deque[_Waiter] = field(default_factory=deque)
    gone: int = 0
    in_turn: bool = False
    running: int = 0
    started: float = 0.0


@dataclass(slots=True, eq=False)
class _Batch:
    lane: _Lane
    waiters: list[_Waiter]
    request: QueryRequest
    call: Call
    began: float
    alive: int
    heavy: bool


class QueryBatcher:
    """``run(name, request, call)`` answers a batch, in any thread; ``workers`` batches may run at once.

    ``wants_plan(seconds)``: whether the observer would like the plan of queries that should take so long.
    ``may_run_here(name)``: whether a query of the collection would wait for nothing but the kernel.
    """

    def __init__(self, run: Run, executor: Executor, clock: Clock, observer: Observer, *, workers: int,
                 queued_rows: int, wants_plan: Callable[[float], bool] = lambda seconds: False,
                 may_run_here: Callable[[str], bool] = lambda name: True) -> None:
        self._run = run
        self._executor = executor
        self._clock = clock
        self._observer = observer
        self._workers = workers
        self._most_queued = queued_rows
        self.wants_plan = wants_plan
        self._may_run_here = may_run_here
        self._heavy = 0
        self._lanes: dict[Hashable, _Lane] = {}
        self._took: dict[Hashable, float] = {}
        self._first: dict[Hashable, float] = {}
        """What rows took of kinds that ran once, and long: a kernel may have been compiled or loaded meanwhile, and
        nobody is refused for that."""
        self._turn: deque[_Lane] = deque()
        self._running = 0
        self._queued = 0
        self._row_s = 1e-3
        self._arriving = 0
        self.alone: Callable[[], bool] = lambda: False
        """Whether it is known that nobody else's call is under way; False costs a turn of the loop to find out."""
        self._dispatching = False

    @property
    def queued_rows(self) -> int:
        return self._queued

    @property
    def running(self) -> int:
        """Batches in worker threads."""
        return self._running

    # --- queries that others run (vecdb.services.express) -----------------------------------------

    def runs_here(self, lane: "_Lane") -> bool:
        """Whether a query of the lane that comes now is alone and short: who asks may run it on the loop at once."""
        return not self._running and not self._queued and 0.0 < lane.row_s <= INLINE_S \
            and self.alone()

    def ran_here(self, lane: "_Lane", seconds: float) -> None:
        """It did, and took so long."""
        lane.row_s += FORGET * (seconds - lane.row_s)
        self._row_s += FORGET * (seconds - self._row_s)

    # --- queries ----------------------------------------------------------------------------------

    async def query(self, name: str, request: QueryRequest, call: Call) -> QueryResult:
        """Answer in turn; raises what ``run`` raises, Overloaded, DeadlineExceeded."""
        lane = self.lane(name, request)
        rows = len(request.vectors)
        now = self._clock.monotonic()
        if not self._running and not self._queued and rows <= INLINE_ROWS and 0.0 < lane.row_s * rows <= INLINE_S \
                and self._may_run_here(name) and (self.alone() or await self._nobody_else()):
            try:
                return self._run_here(lane, request, call, rows)
            finally:
                self._leave(lane)
        try:
            self._admit(lane, rows, call, now)
        except Overloaded:
            self._leave(lane)
            raise
        loop = asyncio.get_running_loop()
        waiter = _Waiter(request, call, rows, rows * (lane.row_s or self._row_s), now, loop.create_future(), lane,
                         spans.waiting())
        lane.waiting.append(waiter)
        lane.work_s += waiter.work_s
        self._queued += rows
        self._take_turn(lane)
        if not self._dispatching and self._running < self._workers:
            self._dispatching = True
            loop.call_soon(self._dispatch_soon)  # after those that are about to wait as well
        return await self._wait(waiter, now, loop)

    async def _nobody_else(self) -> bool:
        """Give the loop one turn, and see whether anybody came."""
        self._arriving += 1
        try:
            await asyncio.sleep(0)
            return self._arriving == 1 and not self._running and not self._queued
        finally:
            self._arriving -= 1

    def _dispatch_soon(self) -> None:
        self._dispatching = False
        self._dispatch(self._clock.monotonic())

    def lane(self, name: str, request: QueryRequest) -> _Lane:
        # The filter by identity: hashing a tree of 65,536 values here could cost more than the query, and the wire
        # gives equal filters as one object.
        where = request.filter
        kind = (name, request.k, where is None, request.within, request.ef_search, request.nprobe, request.exact,
                request.include_metadata, request.include_vectors, request.shape)
        key = kind if where is None else (kind, id(where))
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(name, key, kind, where, self._took.get(kind, 0.0))
        return lane

    def _leave(self, lane: _Lane) -> None:
        """Let go of a lane without work, if it holds a filter or there are too many."""
        if lane.waiting or lane.running or (lane.filter is None and len(self._lanes) <= MAX_LANES):
            return
        if self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]

    def _run_here(self, lane: _Lane, request: QueryRequest, call: Call, rows: int) -> QueryResult:
        call.check()
        began = self._clock.monotonic()
        result = self._run(lane.name, request, call)
        seconds = self._clock.monotonic() - began
        self._learn(lane, seconds, rows)
        self._observer.batch_ran(lane.name, rows, _NO_WAIT, seconds, True)
        found = result.cost or _FREE
        cost = Cost(0.0, seconds * 1e3, rows, found.hops, found.comparisons)
        self._observer.queried(lane.name, request, result, cost, call)
        return QueryResult(result.matches, result.plan, result.missing, cost if request.profile else None)

    def _learn(self, lane: _Lane, seconds: float, rows: int) -> None:
        row_s = seconds / rows
        if not lane.row_s:
            if (before := self._first.pop(lane.kind, None)) is not None:
                row_s = min(row_s, before)
            elif row_s > COLD * self._row_s:
                if len(self._first) >= MAX_LANES:
                    del self._first[next(iter(self._first))]
                self._first[lane.kind] = row_s
                return
        lane.row_s = row_s if not lane.row_s else lane.row_s + FORGET * (row_s - lane.row_s)
        if lane.kind not in self._took and len(self._took) >= MAX_LANES:
            del self._took[next(iter(self._took))]
        self._took[lane.kind] = lane.row_s
        self._row_s += FORGET * (row_s - self._row_s)

    # --- waiting ----------------------------------------------------------------------------------

    def _admit(self, lane: _Lane, rows: int, call: Call, now: float) -> None:
        if not self._queued:
            return
        if self._queued + rows > self._most_queued:
            self._observer.refused(Refusal.QUEUE)
            raise Overloaded(f"{self._queued} queries wait already; the limit is {self._most_queued}",
                             retry_after_s=self._hint(sum(one.work_s for one in self._turn) / self._workers),
                             got=self._queued, limit=self._most_queued)
        if call.deadline is not None and now + (wait_s := self._ahead(lane)) > call.deadline:
            self._observer.refused(Refusal.DEADLINE)
            raise Overloaded(f"the queue takes some {wait_s:.3f} s, and this call's deadline is sooner",
                             retry_after_s=self._hint(wait_s), got=self._queued, limit=self._most_queued)

    def _ahead(self, lane: _Lane) -> float:
        """Seconds of work that comes before the next query of ``lane``: its own, and the others' turns meanwhile."""
        turns = 1.0 + lane.work_s / BATCH_S
        others = sum(min(one.work_s, turns * max(BATCH_S, one.row_s)) for one in self._turn if one is not lane)
        return (lane.work_s + others) / self._workers

    @staticmethod
    def _hint(wait_s: float) -> float:
        return round(min(MOST_HINT_S, max(0.01, wait_s)), 3)

    async def _wait(self, waiter: _Waiter, now: float, loop: asyncio.AbstractEventLoop) -> QueryResult:
        deadline = waiter.call.deadline
        timer = None
        if deadline is not None:
            timer = loop.call_later(max(0.0, deadline - now), self._give_up, waiter, Stopped.DEADLINE)
        try:
            return await waiter.done
        except asyncio.CancelledError:
            self._give_up(waiter, Stopped.CANCELLED)
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _give_up(self, waiter: _Waiter, why: Stopped) -> None:
        """End one waiter, once; its batch is stopped if it was the last."""
        if waiter.ended:
            return
        waiter.ended = True
        waiter.call.end(why)
        batch = waiter.batch
        if batch is not None:
            batch.alive -= 1
            if not batch.alive:
                batch.call.end(why)
        else:
            self._leave_queue(waiter)
        if not waiter.done.done():
            waiter.done.set_exception(stopped_error(why))

    def _leave_queue(self, waiter: _Waiter) -> None:
        """It stays where it stands, to be skipped, until half of its lane is such."""
        lane = waiter.lane
        self._queued -= waiter.rows
        lane.work_s -= waiter.work_s
        lane.gone += 1
        if lane.gone > 64 and 2 * lane.gone > len(lane.waiting):
            lane.waiting = deque(one for one in lane.waiting if not one.ended)
            lane.gone = 0

    # --- batches ----------------------------------------------------------------------------------

    def _take_turn(self, lane: _Lane) -> None:
        if lane.waiting and not lane.in_turn:
            lane.in_turn = True
            self._turn.append(lane)

    def _dispatch(self, now: float) -> None:
        """Start batches while there are workers, and lanes whose turn it is."""
        for _ in range(len(self._turn)):
            if self._running >= self._workers:
                return
            lane = self._turn.popleft()
            lane.in_turn = False
            if (not lane.running or now - lane.started >= SECOND_AFTER_S) and not self._too_heavy(lane):
                self._start(lane, now)
            self._take_turn(lane)
            self._leave(lane)

    def _too_heavy(self, lane: _Lane) -> bool:
        """Whether it must wait so that one worker stays for those who ask for little."""
        return self._heavy >= max(1, self._workers - 1) and lane.waiting[0].rows * lane.row_s > HEAVY_S \
            if lane.waiting else False

    def _start(self, lane: _Lane, now: float) -> None:
        waiters: list[_Waiter] = []
        rows = 0
        most = BATCH_ROWS if not lane.row_s else min(BATCH_ROWS, int(BATCH_S / lane.row_s))
        while lane.waiting and (not waiters or rows + lane.waiting[0].rows <= most):
            waiter = lane.waiting.popleft()
            if waiter.ended:
                lane.gone -= 1
                continue
            waiters.append(waiter)
            lane.work_s -= waiter.work_s
            rows += waiter.rows
        if not lane.waiting:
            lane.work_s = 0.0  # not what rounding left
        if not waiters:
            return
        self._queued -= rows
        wanted = self.wants_plan(rows * (lane.row_s or self._row_s))
        batch = _Batch(lane, waiters, _together(waiters, wanted), Call(request_id=waiters[0].call.request_id), now,
                       len(waiters), rows * (lane.row_s or self._row_s) > HEAVY_S)
        self._heavy += batch.heavy
        for waiter in waiters:
            waiter.batch = batch
        lane.running += 1
        lane.started = now
        self._running += 1
        loop = asyncio.get_running_loop()
        waited = [(waiter.span, waiter.arrived) for waiter in waiters if waiter.span is not None]

        def work() -> None:
            result: QueryResult | BaseException
            try:
                result = spans.run_batch(self._run, lane.name, batch.request, batch.call, waited, now)
            except BaseException as error:
                result = error
            loop.call_soon_threadsafe(self._finish, batch, result, self._clock.monotonic())

        try:
            self._executor.submit(work)
        except RuntimeError as error:  # the executor was shut down under us
            self._finish(batch, error, now)

    def _finish(self, batch: _Batch, result: QueryResult | BaseException, end: float) -> None:
        lane = batch.lane
        lane.running -= 1
        self._running -= 1
        self._heavy -= batch.heavy
        rows = len(batch.request.vectors)
        self._observer.batch_ran(lane.name, rows, [batch.began - waiter.arrived for waiter in batch.waiters],
                                 end - batch.began, False)
        if isinstance(result, BaseException):
            for waiter in batch.waiters:
                if not waiter.done.done():
                    waiter.done.set_exception(copy(result))  # each raises its own: fields and tracebacks grow
        else:
            self._learn(lane, end - batch.began, rows)
            self._share(batch, result, end)
        self._leave(lane)
        self._dispatch(self._clock.monotonic())

    def _share(self, batch: _Batch, result: QueryResult, end: float) -> None:
        """Give each waiter its rows of the answer."""
        rows = len(batch.request.vectors)
        compute_ms = (end - batch.began) * 1e3
        found = result.cost or _FREE
        start = 0
        for waiter in batch.waiters:
            stop = start + waiter.rows
            if not waiter.done.done():
                request = waiter.request
                cost = Cost((batch.began - waiter.arrived) * 1e3, compute_ms, rows, found.hops, found.comparisons)
                mine = QueryResult(result.matches[start:stop], result.plan, result.missing,
                                   cost if request.profile else None)
                waiter.done.set_result(mine if request.explain or mine.plan is None else replace(mine, plan=None))
                self._observer.queried(batch.lane.name, request, mine, cost, waiter.call)
            start = stop


def _together(waiters: list[_Waiter], with_plan: bool) -> QueryRequest:
    """One request of them all: the plan and the cost are found if one of them wants them."""
    first = waiters[0].request
    if len(waiters) == 1:
        return first if first.explain or not with_plan else replace(first, explain=True)
    return replace(first, vectors=np.concatenate([waiter.request.vectors for waiter in waiters]),
                   explain=with_plan or any(waiter.request.explain for waiter in waiters),
                   profile=any(waiter.request.profile for waiter in waiters))
