"""The engine of this node for asyncio: :class:`LocalNode` is a :class:`~vecdb.ports.node.Node`.

What takes microseconds runs on the event loop (a schema, a list of names); queries go through the
:class:`~vecdb.services.batching.QueryBatcher`; all else runs in threads: writes in their own, for they wait for the
disk and share its fsyncs, scans and changes of collections apart from short reads, and what takes minutes (optimize,
verify) in two threads of its own.  Each pool refuses when :data:`WAITING_PER_THREAD` calls a thread wait.

A call's deadline is a timer that sets its ``stop``; a cancelled task sets it too, and goes at once: the thread ends
soon after, on its own.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from vecdb.core.calls import Call, Stopped
from vecdb.core.errors import DatabaseClosed, InvalidArgument
from vecdb.core.filters.tree import Node as FilterNode
from vecdb.core.ids import RecordId
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.query import Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.ports.clock import Clock
from vecdb.ports.node import Progress
from vecdb.ports.observer import Observer, Refusal, Watched
from vecdb.services.admission import Gate, MemoryGuard
from vecdb.services.batching import QueryBatcher
from vecdb.services.express import Express, Pinned

T = TypeVar("T")

WAITING_PER_THREAD: Final = 64
CARE_THREADS: Final = 2
CARE_WAITING: Final = 4
"""Calls of ``optimize`` and ``verify`` that may wait for each of their threads: they take minutes."""
BYTES_PER_RECORD: Final = 256
"""What a record takes beside its vector and its metadata: postings, ids, links."""


class Database(Protocol):
    """What the node needs of the engine: the SDK's backend, and maintenance."""

    def create_collection(self, schema: CollectionSchema, *, call: Call | None = None, layout: Layout = ANYHOW
                          ) -> None: ...

    def drop_collection(self, name: str, *, call: Call | None = None) -> None: ...

    def list_collections(self, *, call: Call | None = None) -> list[str]: ...

    def schema(self, name: str, *, call: Call | None = None) -> CollectionSchema: ...

    def describe(self, name: str, *, call: Call | None = None) -> Description: ...

    def optimize(self, name: str, on_progress: Progress | None = None, *, call: Call | None = None) -> Description: ...

    def upsert(self, name: str, batch: UpsertBatch, *, call: Call | None = None) -> WriteResult: ...

    def delete(self, name: str, command: DeleteIds | DeleteWhere, *, call: Call | None = None) -> WriteResult: ...

    def update_metadata(self, name: str, command: UpdateMetadata, *, call: Call | None = None) -> WriteResult: ...

    def query(self, name: str, request: QueryRequest, *, call: Call | None = None) -> QueryResult: ...

    def fetch(self, name: str, ids: Sequence[RecordId], *, include_metadata: bool = True,
              include_vectors: bool = True, call: Call | None = None) -> list[Record]: ...

    def scan(self, name: str, request: ScanRequest, *, call: Call | None = None) -> ScanPage: ...

    def count(self, name: str, where: FilterNode | None = None, *, call: Call | None = None) -> int: ...

    def at_hand(self, name: str) -> bool: ...

    def pin(self, name: str) -> Pinned | None: ...

    def jobs(self, name: str | None = None) -> list[dict[str, Any]]: ...

    def verify(self, name: str, *, call: Call | None = None) -> dict[str, Any]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """``threads``: cores for queries; ``memory_bytes`` 0: no limit of the node's own."""

    threads: int
    write_threads: int = 16
    queued_queries: int = 4_096
    memory_bytes: int = 0


class _Job(Generic[T]):
    """``work`` for a thread, and the future its caller waits for.

    Not the executor's own future: cancelling that frees nothing of what its queue holds, which is megabytes for a
    batch.
    """

    def __init__(self, call: Call, work: Callable[[], T], loop: asyncio.AbstractEventLoop) -> None:
        self._call = call
        self._work: Callable[[], T] | None = work
        self._loop = loop
        self._done: asyncio.Future[T] | None = loop.create_future()

    @property
    def done(self) -> "asyncio.Future[T]":
        assert self._done is not None
        return self._done

    def forget(self) -> None:
        """Nobody waits any more: let go of what the work holds, if it has not begun, and of the caller's frames."""
        self._work = self._done = None

    def run(self) -> None:
        work, self._work = self._work, None
        if work is None:
            return
        result: Any = None
        failure: BaseException | None = None
        try:
            self._call.check()  # its time may have passed in the queue
            result = work()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._tell, result, failure)

    def _tell(self, result: T, failure: BaseException | None) -> None:
        done = self._done
        if done is None or done.done():
            return
        if failure is None:
            done.set_result(result)
        else:
            done.set_exception(failure)


MakeThreads = Callable[[int, str], Executor]
"""A pool of so many threads of that name."""


class _Pool:
    """Threads, and a bound on what waits for them."""

    def __init__(self, name: str, threads: int, observer: Observer, make: MakeThreads,
                 waiting: int = WAITING_PER_THREAD) -> None:
        self.executor = make(threads, f"vecdb-{name}")
        self.gate = Gate(f"{name} calls", threads * (1 + waiting), Refusal.QUEUE, observer)
        self._threads = threads
        observer.watch(Watched.QUEUED_CALLS, self.waiting, name)

    def submit(self, job: "_Job[Any]") -> None:
        """Run it in turn, or raise Overloaded.  Its place is free again when a thread has had it, not when its caller
        has gone: the executor's queue holds it until then."""
        self.gate.take()

        def run() -> None:
            try:
                job.run()
            finally:
                self.gate.leave()

        try:
            self.executor.submit(run)
        except RuntimeError as error:
            self.gate.leave()
            raise DatabaseClosed("the node is closed") from error

    def waiting(self) -> float:
        return float(max(0, self.gate.inside - self._threads))


class LocalNode:
    """Belongs to one event loop; ``used_memory`` measures bytes the process cannot give back."""

    def __init__(self, database: Database, clock: Clock, observer: Observer, limits: NodeLimits,
                 used_memory: Callable[[], int], wants_plan: Callable[[float], bool] = lambda seconds: False,
                 threads: MakeThreads = ThreadPoolExecutor) -> None:
        self._database = database
        self._clock = clock
        self._observer = observer
        self.guard = MemoryGuard(used_memory, limits.memory_bytes, clock, observer)
        self._queries = threads(limits.threads, "vecdb-query")
        self._reads = _Pool("read", max(2, limits.threads), observer, threads)
        self._writes = _Pool("write", limits.write_threads, observer, threads)
        self._long = _Pool("long", 4, observer, threads)
        self._care = _Pool("care", CARE_THREADS, observer, threads, CARE_WAITING)
        self._closed = False
        self.batcher = QueryBatcher(self._run_queries, self._queries, clock, observer, workers=limits.threads,
                                    queued_rows=limits.queued_queries, wants_plan=wants_plan,
                                    may_run_here=database.at_hand)
        observer.watch(Watched.QUEUED_ROWS, lambda: float(self.batcher.queued_rows))

    def _run_queries(self, name: str, request: QueryRequest, call: Call) -> QueryResult:
        return self._database.query(name, request, call=call)

    async def _in(self, pool: _Pool, call: Call, work: Callable[[], T]) -> T:
        """Run ``work`` on a thread of ``pool``; its deadline and its cancellation reach it through ``call.stop``."""
        if self._closed:
            raise DatabaseClosed("the node is closed")
        loop = asyncio.get_running_loop()
        job = _Job(call, work, loop)
        pool.submit(job)
        timer = None
        if call.deadline is not None:
            left = call.deadline - self._clock.monotonic()
            timer = loop.call_later(max(0.0, left), call.end, Stopped.DEADLINE)
        try:
            return await job.done
        except asyncio.CancelledError:
            call.end(Stopped.CANCELLED)
            job.forget()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    # --- collections ------------------------------------------------------------------------------

    async def create_collection(self, schema: CollectionSchema, call: Call, layout: Layout = ANYHOW) -> None:
        layout.alone("a node that is alone")
        await self._in(self._long, call, lambda: self._database.create_collection(schema, call=call))

    async def drop_collection(self, name: str, call: Call) -> None:
        await self._in(self._long, call, lambda: self._database.drop_collection(name, call=call))

    async def list_collections(self, call: Call) -> list[str]:
        return self._database.list_collections()

    async def schema(self, name: str, call: Call) -> CollectionSchema:
        return self._database.schema(name)

    async def describe(self, name: str, call: Call) -> Description:
        return await self._in(self._long, call, lambda: self._database.describe(name, call=call))

    async def optimize(self, name: str, call: Call, on_progress: Progress | None = None) -> Description:
        loop = asyncio.get_running_loop()

        def report(stage: str, done: int, total: int) -> None:
            if on_progress is not None:
                with suppress(RuntimeError):  # the loop has ended, and nobody is told any more
                    loop.call_soon_threadsafe(on_progress, stage, done, total)

        return await self._in(self._care, call, lambda: self._database.optimize(name, report, call=call))

    # --- records ----------------------------------------------------------------------------------

    async def upsert(self, name: str, batch: UpsertBatch, call: Call) -> WriteResult:
        size = batch.vectors.nbytes + sum(map(len, batch.metadata)) + BYTES_PER_RECORD * len(batch.ids)
        with self.guard.reserve(2 * size):  # once in the store's tables, once in the growing segment
            return await self._in(self._writes, call, lambda: self._database.upsert(name, batch, call=call))

    async def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call) -> WriteResult:
        return await self._in(self._writes, call, lambda: self._database.delete(name, command, call=call))

    async def update_metadata(self, name: str, command: UpdateMetadata, call: Call) -> WriteResult:
        with self.guard.reserve(2 * (sum(map(len, command.patch)) + BYTES_PER_RECORD * len(command.ids))):
            return await self._in(self._writes, call,
                                  lambda: self._database.update_metadata(name, command, call=call))

    async def query(self, name: str, request: QueryRequest, call: Call) -> QueryResult:
        if not len(request.vectors):
            raise InvalidArgument("vectors", "are empty", got=0, limit="1 or more queries")
        return await self.batcher.query(name, request, call)

    def express(self, name: str, request: QueryRequest, normalized: bool) -> Express | None:
        """The short way of queries like this one, with ``normalized`` vectors or not; None: there is none now."""
        pinned = self._database.pin(name)
        if pinned is None:
            return None
        return Express.of(name, request, normalized, self._database.schema(name), pinned, self.batcher, self._clock,
                          self._observer)

    async def fetch(self, name: str, ids: Sequence[RecordId], call: Call, *, include_metadata: bool = True,
                    include_vectors: bool = True) -> list[Record]:
        return await self._in(self._reads, call, lambda: self._database.fetch(
            name, ids, include_metadata=include_metadata, include_vectors=include_vectors, call=call))

    async def scan(self, name: str, request: ScanRequest, call: Call) -> ScanPage:
        return await self._in(self._long, call, lambda: self._database.scan(name, request, call=call))

    async def count(self, name: str, where: FilterNode | None, call: Call) -> int:
        return await self._in(self._reads, call, lambda: self._database.count(name, where, call=call))

    # --- maintenance ------------------------------------------------------------------------------

    async def jobs(self, name: str | None, call: Call) -> list[dict[str, Any]]:
        return await self._in(self._reads, call, lambda: self._database.jobs(name))

    async def verify(self, name: str, call: Call) -> dict[str, Any]:
        return await self._in(self._care, call, lambda: self._database.verify(name, call=call))

    async def close(self) -> None:
        """Wait for what runs, then close the database.  A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._end)

    def _end(self) -> None:
        for executor in (self._queries, self._reads.executor, self._writes.executor, self._long.executor,
                         self._care.executor):
            executor.shutdown(wait=True)
        self._database.close()

