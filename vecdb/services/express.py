"""The short way of a query that is alone: everything that is the same for the next one is found once.

A query that comes while nothing else does is answered on the event loop (:mod:`vecdb.services.batching`), and then the
engine needs some tens of microseconds, the way to it several times as many.  An :class:`Express` stands for one
collection as it is at the moment and one set of options, and holds what the way would find: the open collection, its
view, the plan, the queue's lane.  It answers only where the long way would answer the same, at once and on the loop,
and says None everywhere else: what others do meanwhile (a write, a drop, a queue that fills) is looked at each time.

Observers are told in the loop's next turn, when the reply is on its way: at one call in flight nobody waits for that,
and before the reply it cost 50 µs, with the caches as a search leaves them.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np

from vecdb.core.calls import Call
from vecdb.core.query import Cost, Matches, QueryRequest, QueryResult
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import check_queries
from vecdb.ports.clock import Clock
from vecdb.ports.observer import Observer
from vecdb.segment.direct import Direct
from vecdb.services.batching import INLINE_S, QueryBatcher
from vecdb.services.slots import Opened, Slot
from vecdb.shard.view import ShardView

Answer = tuple[bytes, bytes]
"""Ids int64 and distances float32 of one query, in this machine's byte order."""


class Pinned(Protocol):
    """A collection that was open when it was pinned."""

    def view(self) -> ShardView | None:
        """What reads see now, if they wait for nothing; counts as a use of the collection."""
        ...


class Pin:
    """Of a slot; holds nothing open."""

    __slots__ = ("_opened", "_shard", "_slot", "_ticks")

    def __init__(self, slot: Slot, opened: Opened, ticks: Iterator[int]) -> None:
        self._slot, self._opened, self._shard, self._ticks = slot, opened, opened.shard, ticks

    def view(self) -> ShardView | None:
        """As :class:`Pinned`: None once it was closed, dropped or replaced, or its store is not well."""
        slot, opened, shard = self._slot, self._opened, self._shard
        if slot.opened is not opened or opened.shard is not shard or not shard.steady:
            return None
        slot.used = next(self._ticks)
        return shard.machine.view


class Express:
    """Of one collection's view and one set of options; belongs to the event loop of ``batcher``.

    It is also what observers are told of the last query (:class:`~vecdb.ports.observer.LoneQuery`).
    """

    __slots__ = ("_batcher", "_began", "_data", "_direct", "_due", "_lane", "_monotonic", "_observer", "_pinned",
                 "_request", "_schema", "_view", "bytes_in", "bytes_out", "collection", "compute_s", "method",
                 "seconds")

    def __init__(self, name: str, request: QueryRequest, schema: CollectionSchema, pinned: Pinned, view: ShardView,
                 direct: Direct, batcher: QueryBatcher, clock: Clock, observer: Observer) -> None:
        self.collection, self._request, self._schema = name, request, schema
        self._pinned, self._view, self._direct = pinned, view, direct
        self._batcher, self._monotonic, self._observer = batcher, clock.monotonic, observer
        self._lane = batcher.lane(name, request)
        self._data, self.method = b"", ""
        self._began = self.seconds = self.compute_s = 0.0
        self._due: tuple[Answer, Callable[[], Call]] | None = None
        self.bytes_in = self.bytes_out = 0

    @classmethod
    def of(cls, name: str, request: QueryRequest, normalized: bool, schema: CollectionSchema, pinned: Pinned,
           batcher: QueryBatcher, clock: Clock, observer: Observer) -> "Express | None":
        """For requests like ``request``, whose vector does not matter; None: there is no short way for them."""
        view = pinned.view()
        if view is None or len(request.vectors) != 1 or batcher.wants_plan(INLINE_S):
            return None
        segments = [segment for segment in view.segments if segment.live_count]
        direct = Direct.of(segments[0], request, normalized) if len(segments) == 1 else None
        return None if direct is None else cls(name, request, schema, pinned, view, direct, batcher, clock, observer)

    @property
    def stale(self) -> bool:
        """Whether the collection is no longer what it was."""
        return self._pinned.view() is not self._view

    def answer(self, data: bytes) -> Answer | None:
        """The nearest to ``data``, float32 components; None: go the long way.  What is answered must be told of."""
        if self._due is not None:
            self._tell()
        if not self._batcher.runs_here(self._lane) or self._pinned.view() is not self._view:
            return None
        clock = self._monotonic
        began = clock()
        found = self._direct.answer(data)
        if found is not None:
            self.compute_s = clock() - began
            self._data = data
        return found

    def tell(self, method: str, began: float, sizes: tuple[int, int], answer: Answer, call: Callable[[], Call]) -> None:
        """Tell observers soon of the call that was answered: its method, its beginning, bytes in and out, its Call."""
        self.method, self._began, self.seconds = method, began, self._monotonic() - began
        self.bytes_in, self.bytes_out = sizes
        self._due = answer, call
        asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        if self._due is None:  # the next query came first
            return
        (ids, distances), call = self._due
        self._due = None
        self._batcher.ran_here(self._lane, self.compute_s)
        if self.compute_s <= INLINE_S:
            self._observer.lone_query(self)
            return
        # It took longer than could be foreseen: whoever looks for slow ones hears all of it.
        observer, seconds = self._observer, self.compute_s
        matches = Matches(np.frombuffer(ids, np.int64).tolist(), np.frombuffer(distances, np.float32))
        cost = Cost(0.0, seconds * 1e3, 1, self.hops, self.comparisons)
        observer.call_began(self.method)
        observer.batch_ran(self.collection, 1, (0.0,), seconds, True)
        observer.queried(self.collection, self.request(), QueryResult([matches]), cost, call())
        observer.call_ended(self.method, self._began, self.collection, "OK", self.bytes_in, self.bytes_out)

    @property
    def hops(self) -> int:
        return self._direct.hops

    @property
    def comparisons(self) -> int:
        return self._direct.comparisons

    def request(self) -> QueryRequest:
        """The last one."""
        vectors, _ = check_queries(self._schema, np.frombuffer(self._data, np.float32).copy())
        return replace(self._request, vectors=vectors)
