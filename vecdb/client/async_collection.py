"""``AsyncCollection``: :class:`~vecdb.client.collection.Collection` for asyncio.

The same arguments, checks and answers, for both run the same steps; a call is awaited, and a task that is cancelled
ends its call on the server too.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy.typing as npt

from vecdb.client import doing, queries, reading
from vecdb.client.async_session import AsyncSession
from vecdb.client.deadlines import check_timeout
from vecdb.client.options import check_consistency, check_flag
from vecdb.client.progress import ProgressOption, reporting
from vecdb.client.results import Hits, Records
from vecdb.core.calls import Consistency
from vecdb.core.filters import FilterLike
from vecdb.core.ids import RecordId
from vecdb.core.query import Cursor, Description, ScanRequest
from vecdb.core.records import Record, WriteResult
from vecdb.core.schema import CollectionSchema


class AsyncCollection:
    """A handle of one collection, for any number of tasks of the event loop it was made in."""

    def __init__(self, session: AsyncSession, name: str) -> None:
        self._session = session
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    async def schema(self, *, timeout: float | None = None) -> CollectionSchema:
        """The collection's schema; raises CollectionNotFound once it is dropped."""
        return await self._session.run(doing.schema(self._name), check_timeout(timeout))

    async def upsert(self, ids: Any = None, vectors: Any = None, metadata: Any = None, *, records: Any = None,
                     id_column: str = "id", vector_column: str = "vector",
                     metadata_columns: Sequence[str] | None = None, batch_size: int | None = None,
                     parallel: int | None = None, idempotency_key: str | bytes | None = None,
                     progress: ProgressOption = None, timeout: float | None = None) -> WriteResult:
        """Insert or replace records, as :meth:`Collection.upsert`; ``records`` may be an asynchronous iterable too."""
        given = doing.check_input(ids, vectors, metadata, records, id_column, vector_column, metadata_columns,
                                  batch_size, parallel, idempotency_key)
        limit = check_timeout(timeout)
        with reporting(progress) as report:
            steps = doing.upsert(self._name, given, report, self._session.batch_bytes, asynchronous=True)
            return await self._session.run(steps, limit)

    @overload
    async def query(self, vector: Sequence[float], k: int = ..., filter: FilterLike | None = ..., *,
                    include: Iterable[str] | None = ..., within: float | None = ..., ef_search: int | None = ...,
                    nprobe: int | None = ..., exact: bool = ..., explain: bool = ..., profile: bool = ...,
                    allow_partial: bool = ...,
                    consistency: str | Consistency | None = ..., timeout: float | None = ...,
                    progress: ProgressOption = ..., **aliases: Any) -> Hits: ...

    @overload
    async def query(self, vector: Sequence[Sequence[float]] | Sequence[npt.NDArray[Any]], k: int = ...,
                    filter: FilterLike | None = ..., *, include: Iterable[str] | None = ..., within: float | None = ...,
                    ef_search: int | None = ..., nprobe: int | None = ..., exact: bool = ..., explain: bool = ...,
                    profile: bool = ...,
                    allow_partial: bool = ..., consistency: str | Consistency | None = ..., timeout: float | None = ...,
                    progress: ProgressOption = ..., **aliases: Any) -> list[Hits]: ...

    @overload
    async def query(self, vector: Any, k: int = ..., filter: FilterLike | None = ..., *,
                    include: Iterable[str] | None = ..., within: float | None = ..., ef_search: int | None = ...,
                    nprobe: int | None = ..., exact: bool = ..., explain: bool = ..., profile: bool = ...,
                    allow_partial: bool = ...,
                    consistency: str | Consistency | None = ..., timeout: float | None = ...,
                    progress: ProgressOption = ..., **aliases: Any) -> Any: ...

    async def query(self, vector: Any, k: int = 10, filter: FilterLike | None = None, *,
                    include: Iterable[str] | None = (), within: float | None = None, ef_search: int | None = None,
                    nprobe: int | None = None, exact: bool = False, explain: bool = False, profile: bool = False,
                    allow_partial: bool = False,
                    consistency: str | Consistency | None = None, timeout: float | None = None,
                    progress: ProgressOption = None, **aliases: Any) -> Any:
        """Find the ``k`` nearest records, as :meth:`Collection.query`.

        Single queries that run at the same time with the same options travel together (``auto_batch``).
        """
        options = queries.check(k, filter, include, within, ef_search, nprobe, exact, explain, aliases, profile)
        partial = check_flag("allow_partial", allow_partial)
        limit, wanted = check_timeout(timeout), check_consistency(consistency)
        with reporting(progress) as report:
            return await self._session.run(queries.steps(self._name, vector, options, report), limit, wanted,
                                           partial)

    async def fetch(self, ids: Any, include: Iterable[str] | None = ("metadata", "vector"), *,
                    consistency: str | Consistency | None = None, timeout: float | None = None) -> list[Record]:
        """Return the records that exist, in the order asked."""
        return await self._session.run(doing.fetch(self._name, ids, include), check_timeout(timeout),
                                       check_consistency(consistency))

    async def get(self, id: RecordId, include: Iterable[str] | None = ("metadata", "vector"), *,
                  consistency: str | Consistency | None = None, timeout: float | None = None) -> Record | None:
        """Return one record, or None if there is none of that id."""
        return await self._session.run(doing.get(self._name, id, include), check_timeout(timeout),
                                       check_consistency(consistency))

    async def delete(self, ids: Any = None, *, filter: FilterLike | None = None,
                     idempotency_key: str | bytes | None = None, progress: ProgressOption = None,
                     timeout: float | None = None) -> WriteResult:
        """Delete records by ``ids`` or by ``filter``, as :meth:`Collection.delete`."""
        limit = check_timeout(timeout)
        with reporting(progress) as report:
            return await self._session.run(doing.delete(self._name, ids, filter, idempotency_key, report), limit)

    async def update_metadata(self, ids: Any = None, metadata: Any = None, *, filter: FilterLike | None = None,
                              merge: bool = True, idempotency_key: str | bytes | None = None,
                              progress: ProgressOption = None, timeout: float | None = None) -> WriteResult:
        """Change the metadata of existing records, as :meth:`Collection.update_metadata`."""
        limit = check_timeout(timeout)
        with reporting(progress) as report:
            steps = doing.update_metadata(self._name, ids, metadata, filter, merge, idempotency_key, report)
            return await self._session.run(steps, limit)

    def scan(self, filter: FilterLike | None = None, include: Iterable[str] | None = ("metadata",),
             batch_size: int = 1_000, on_damage: str = "raise", *, consistency: str | Consistency | None = None,
             timeout: float | None = None) -> AsyncIterator[Record]:
        """``async for record in docs.scan(...)``, as :meth:`Collection.scan`."""
        return self._records(self.scan_batches(filter, include, batch_size, on_damage, consistency=consistency,
                                               timeout=timeout))

    async def _records(self, pages: AsyncIterator[Records]) -> AsyncIterator[Record]:
        async for page in pages:
            for record in page:
                yield record

    def scan_batches(self, filter: FilterLike | None = None, include: Iterable[str] | None = ("metadata",),
                     batch_size: int = 1_000, on_damage: str = "raise", *, allow_partial: bool = False,
                     consistency: str | Consistency | None = None,
                     timeout: float | None = None) -> AsyncIterator[Records]:
        """``async for page in docs.scan_batches(...)``; arguments are checked now, the collection at the first page."""
        self._session.check_open()
        scan = doing.check_scan(filter, include, batch_size, on_damage)
        partial = check_flag("allow_partial", allow_partial)
        return self._pages(scan, check_timeout(timeout), check_consistency(consistency), partial)

    async def _pages(self, scan: doing.Scan, timeout: float | None, consistency: Consistency | None,
                     partial: bool) -> AsyncIterator[Records]:
        request: ScanRequest = await self._session.run(doing.first_page(self._name, scan), timeout)
        after: Cursor | None = request.after
        while after is not None:
            steps = reading.page(self._name, replace(request, after=after), scan.skip)
            page, after = await self._session.run(steps, timeout, consistency, partial)
            if page.ids or page.damaged or page.missing:
                yield page

    async def count(self, filter: FilterLike | None = None, *, allow_partial: bool = False,
                    consistency: str | Consistency | None = None, timeout: float | None = None) -> int:
        """The number of records, or of those that match."""
        return await self._session.run(doing.count(self._name, filter), check_timeout(timeout),
                                       check_consistency(consistency), check_flag("allow_partial", allow_partial))

    async def describe(self, *, consistency: str | Consistency | None = None,
                       timeout: float | None = None) -> Description:
        """Counts, segments, bytes in memory and on disk, and the state of the index.

        Of a collection with replicas it tells what the one that answers has (``details["replica"]``): by
        ``consistency`` all that this handle wrote, as with :meth:`count`.  How that is divided into segments is each
        replica's own; after :meth:`optimize` it is alike on those that optimized.
        """
        return await self._session.run(doing.describe(self._name), check_timeout(timeout),
                                       check_consistency(consistency))

    async def verify(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Read every record and hold all against the digest that writes keep up."""
        return await self._session.run(doing.verify(self._name), check_timeout(timeout))

    async def optimize(self, progress: ProgressOption = None, *, consistency: str | Consistency | None = None,
                       timeout: float | None = None) -> Description:
        """Seal, merge and build until nothing is left to do, and describe the result.

        Of a collection with replicas each that serves does so, and ``details["optimized"]`` names their nodes.
        """
        limit = check_timeout(timeout)
        level = check_consistency(consistency)
        with reporting(progress) as report:
            return await self._session.run(doing.optimize(self._name, report), limit, level)

    def __repr__(self) -> str:
        return f"<AsyncCollection {self._name!r} of {self._session.label}>"
