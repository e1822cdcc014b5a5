"""What the facade's steps ask of a Backend (called) or of a Node (awaited): both take the same names and arguments."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from vecdb.client.positions import Positions
from vecdb.client.steps import END, Next, Steps
from vecdb.client.writing import Batch
from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import CollectionNotFound, InvalidArgument, Unsupported
from vecdb.core.records import WriteResult
from vecdb.core.schema import CollectionSchema

T = TypeVar("T")

READS: Final = frozenset(("query", "fetch", "scan", "count", "describe", "optimize"))
"""Methods whose answer depends on how far the replica is that gives it."""


@dataclass(slots=True, eq=False)
class Bound:
    """A backend or node, and the call that everything asked of it belongs to.

    ``positions``: what was written so far, which reads by ``consistency`` (None: the database's own) may have to see.
    ``partial``: its reads may be answered by some of the shards.
    """

    backend: Any
    call: Call | None
    positions: Positions
    consistency: Consistency | None = None
    partial: bool = False


class Ask:
    """One method of the backend."""

    __slots__ = ("_args", "_kwargs", "_method")

    def __init__(self, method: str, *args: Any, **kwargs: Any) -> None:
        self._method = method
        self._args = args
        self._kwargs = kwargs

    def _bound(self, target: Bound) -> Any:
        found = getattr(target.backend, self._method, None)
        if found is None:
            raise Unsupported(f"{self._method} is of servers, and this database is a directory", method=self._method)
        return found

    def _call_by(self, target: Bound) -> Call | None:
        if self._method not in READS:
            return target.call
        call = target.positions.call(self._args[0], target.call, target.consistency)
        if target.partial:
            return Call(allow_partial=True) if call is None else replace(call, allow_partial=True)
        return call

    def _told(self, target: Bound, answer: Any) -> Any:
        """Remember where a write is."""
        if type(answer) is WriteResult:
            target.positions.saw(self._args[0], answer)
        return answer

    def run(self, target: Bound) -> Any:
        return self._told(target, self._bound(target)(*self._args, call=self._call_by(target), **self._kwargs))

    async def arun(self, target: Bound) -> Any:
        return self._told(target, await self._bound(target)(*self._args, call=self._call_by(target), **self._kwargs))


class AskLatest(Ask):
    """A read that sees every write acknowledged before it, whatever the caller's reads see: a write hangs on it."""

    __slots__ = ()

    def _call_by(self, target: Bound) -> Call | None:
        return target.positions.call(self._args[0], target.call, Consistency.LINEARIZABLE)


class AskPart(Ask):
    """A method called for a part of what its caller wants, of that name and with so many calls to come; None: all."""

    __slots__ = ("_part",)

    def __init__(self, part: tuple[str, int] | None, method: str, *args: Any) -> None:
        super().__init__(method, *args)
        self._part = part

    def _call_by(self, target: Bound) -> Call | None:
        call = super()._call_by(target)
        return call if self._part is None else replace(call or Call(), part=self._part)


class AskWith(Ask):
    """A method called by a token of its own."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[Call | None], Call | None], method: str, *args: Any) -> None:
        super().__init__(method, *args)
        self._call = call

    def _call_by(self, target: Bound) -> Call | None:
        return self._call(target.call)


class AskSchema:
    """The schema as the backend remembers it or, with ``now``, as it is; ``others``: None from one that never forgets.

    A remote backend remembers schemas so that a call is one round trip; an embedded one has only the true ones.
    """

    __slots__ = ("_name", "_now", "_others")

    def __init__(self, name: str, *, now: bool = False, others: bool = True) -> None:
        self._name = name
        self._now = now
        self._others = others

    def run(self, target: Bound) -> Any:
        backend = target.backend
        if getattr(backend, "remembers_schemas", False):
            return (backend.refresh_schema if self._now else backend.schema)(self._name, call=target.call)
        return backend.schema(self._name, call=target.call) if self._others else None

    async def arun(self, target: Bound) -> Any:
        node = target.backend
        if getattr(node, "remembers_schemas", False):
            return await (node.refresh_schema if self._now else node.schema)(self._name, call=target.call)
        return await node.schema(self._name, call=target.call) if self._others else None


def with_schema(name: str, work: Callable[[CollectionSchema], Steps[T]]) -> Steps[T]:
    """Do ``work`` by the schema as remembered; if that is refused and the schema is another one now, by that."""
    schema: CollectionSchema = yield AskSchema(name)
    try:
        return (yield from work(schema))
    except (InvalidArgument, CollectionNotFound):
        again: CollectionSchema | None = yield AskSchema(name, now=True, others=False)
        if again is None or again == schema:
            raise
    return (yield from work(again))


class Apply:
    """Batches, one after the other or as the backend does it best; ``on_applied`` hears of each in their order."""

    __slots__ = ("_batches", "_name", "_on_applied", "_parallel")

    def __init__(self, name: str, batches: Iterator[Batch] | AsyncIterator[Batch],
                 on_applied: Callable[[int, WriteResult], None], parallel: int | None) -> None:
        self._name = name
        self._batches = batches
        self._on_applied = on_applied
        self._parallel = parallel

    def _applied(self, target: Bound) -> Callable[[int, WriteResult], None]:
        def applied(rows: int, result: WriteResult) -> None:
            target.positions.saw(self._name, result)
            self._on_applied(rows, result)

        return applied

    def run(self, target: Bound) -> None:
        batches, applied = self._batches, self._applied(target)
        assert isinstance(batches, Iterator)
        every = getattr(target.backend, "upsert_all", None)
        if every is not None:
            every(self._name, batches, applied, self._parallel, call=target.call)
            return
        for one in batches:
            applied(one.rows, target.backend.upsert(self._name, one.batch, call=one.call(target.call)))

    async def arun(self, target: Bound) -> None:
        batches, applied = self._batches, self._applied(target)
        every = getattr(target.backend, "upsert_all", None)
        if every is not None:
            await every(self._name, batches, applied, self._parallel, call=target.call)
            return
        while True:
            one = await Next(batches).arun(None)
            if one is END:
                return
            applied(one.rows, await target.backend.upsert(self._name, one.batch, call=one.call(target.call)))


async def threaded(items: Iterator[T]) -> AsyncIterator[T]:
    """Items made in threads, one after the other: checking and copying megabytes would hold the event loop."""
    while (item := await asyncio.to_thread(next, items, END)) is not END:
        yield item  # type: ignore[misc]
