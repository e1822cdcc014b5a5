"""``Collection``: the records of one collection, by name.

A handle holds a name, not a schema: each call asks the backend for the schema it checks against, so a
collection that another thread dropped and made anew is seen as it is now, and one that is gone is
CollectionNotFound.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy.typing as npt

from vecdb.client import doing, queries, reading
from vecdb.client.deadlines import check_timeout
from vecdb.client.options import check_consistency, check_flag
from vecdb.client.progress import ProgressOption, reporting
from vecdb.client.results import Hits, Records
from vecdb.client.session import Session
from vecdb.core.calls import Consistency
from vecdb.core.filters import FilterLike
from vecdb.core.ids import RecordId
from vecdb.core.query import Cursor, Description, ScanRequest
from vecdb.core.records import Record, WriteResult
from vecdb.core.schema import CollectionSchema, Metric


class Collection:
    """A handle of one collection; any number of threads may use it at once.

    >>> docs = db.create_collection("docs", dim=2, metric="l2")
    >>> docs.upsert(ids=[1, 2], vectors=[[0, 0], [3, 4]], metadata=[{"year": 2020}, {"year": 2024}])
    WriteResult(inserted=2, updated=0, deleted=0, missing=0, log_index=1, shard=0)
    >>> [(hit.id, hit.distance) for hit in docs.query([0, 0], k=2)]
    [(1, 0.0), (2, 5.0)]
    """

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def schema(self) -> CollectionSchema:
        """The collection's schema; raises CollectionNotFound once it is dropped."""
        return self._session.run(doing.schema(self._name))

    @property
    def dim(self) -> int:
        return self.schema.dim

    @property
    def metric(self) -> Metric:
        return self.schema.metric

    def upsert(self, ids: Any = None, vectors: Any = None, metadata: Any = None, *, records: Any = None,
               id_column: str = "id", vector_column: str = "vector",
               metadata_columns: Sequence[str] | None = None, batch_size: int | None = None,
               parallel: int | None = None, idempotency_key: str | bytes | None = None,
               progress: ProgressOption = None, timeout: float | None = None) -> WriteResult:
        """Insert records, or replace those whose ids exist.

        Columns: ``ids`` (int or str), ``vectors`` (n, dim) of any real dtype or nested sequences, ``metadata`` a
        sequence of n dicts or None.  Or ``records`` (which may be the only positional argument): an iterable of
        ``(id, vector)``, ``(id, vector, metadata)`` or ``{"id": …, "vector": …, "metadata": …}``, or a pyarrow Table,
        RecordBatch or RecordBatchReader or a pandas DataFrame with the columns ``id_column``, ``vector_column``
        and ``metadata_columns`` (None: all others; null cells are left out).

        Input is applied in batches of at most ``batch_size`` records (None: chosen by size).  Columns, lists and
        tables in memory are checked whole before anything is applied; generators and readers batch by batch, and an
        error says in ``fields["rows_applied"]`` how many rows had been applied.  Of equal ids the last wins.  An
        empty iterable or table does nothing; empty columns are refused.  ``timeout``: seconds for the whole call, after
        which DeadlineExceeded is raised; a batch under way is carried out.
        ``parallel``: streams of batches to a server (None: 4); a directory takes one batch at a time.
        ``idempotency_key``: the same input given again with the same key and ``batch_size`` is answered with what it
        did then, and not done again.  The same key for anything else, or by way of REST, is refused.
        Cosine collections store unit vectors (int8 and uint8 as given).  Binary vectors are packed bits (n, dim/8),
        the first bit the highest, or 0/1 values (n, dim).
        Raises DimensionMismatch, NonFiniteVector, InvalidId, InvalidMetadata, LimitExceeded, InvalidArgument.

        >>> docs = db.create_collection("docs", dim=2)
        >>> docs.upsert(("doc-%d" % i, [i, 1.0], {"even": i % 2 == 0}) for i in range(5)).inserted
        5
        """
        given = doing.check_input(ids, vectors, metadata, records, id_column, vector_column, metadata_columns,
                                  batch_size, parallel, idempotency_key)
        limit = check_timeout(timeout)
        with reporting(progress) as report:
            return self._session.run(doing.upsert(self._name, given, report, self._session.batch_bytes), limit)

    @overload
    def query(self, vector: Sequence[float], k: int = ..., filter: FilterLike | None = ..., *,
              include: Iterable[str] | None = ..., within: float | None = ..., ef_search: int | None = ...,
              nprobe: int | None = ..., exact: bool = ..., explain: bool = ..., profile: bool = ...,
              allow_partial: bool = ...,
              consistency: str | Consistency | None = ..., timeout: float | None = ...,
              progress: ProgressOption = ..., **aliases: Any) -> Hits: ...

    @overload
    def query(self, vector: Sequence[Sequence[float]] | Sequence[npt.NDArray[Any]], k: int = ...,
              filter: FilterLike | None = ..., *, include: Iterable[str] | None = ..., within: float | None = ...,
              ef_search: int | None = ..., nprobe: int | None = ..., exact: bool = ..., explain: bool = ...,
              profile: bool = ...,
              allow_partial: bool = ..., consistency: str | Consistency | None = ..., timeout: float | None = ...,
              progress: ProgressOption = ..., **aliases: Any) -> list[Hits]: ...

    @overload
    def query(self, vector: Any, k: int = ..., filter: FilterLike | None = ..., *, include: Iterable[str] | None = ...,
              within: float | None = ..., ef_search: int | None = ..., nprobe: int | None = ..., exact: bool = ...,
              explain: bool = ..., profile: bool = ...,
              allow_partial: bool = ..., consistency: str | Consistency | None = ...,
              timeout: float | None = ..., progress: ProgressOption = ..., **aliases: Any) -> Any: ...

    def query(self, vector: Any, k: int = 10, filter: FilterLike | None = None, *, include: Iterable[str] | None = (),
              within: float | None = None, ef_search: int | None = None, nprobe: int | None = None,
              exact: bool = False, explain: bool = False, profile: bool = False, allow_partial: bool = False,
              consistency: str | Consistency | None = None, timeout: float | None = None,
              progress: ProgressOption = None, **aliases: Any) -> Any:
        """Find the ``k`` nearest records: Hits for one vector (dim,), a list of Hits for many (n, dim).

        ``filter``: only records it matches.  ``include``: ``"metadata"``, ``"vector"``.  ``within``: only records
        at most this distance away (still no more than ``k``).  ``ef_search`` and ``nprobe``: search width; None lets
        the engine choose.  ``exact``: compare with every record.  ``explain``: ``Hits.plan`` says how it was done;
        ``profile``: ``Hits.cost`` says what it took.  ``timeout``: seconds, after which DeadlineExceeded is raised.
        ``consistency``: eventual, session or linearizable (:func:`vecdb.connect`); None: as the database was opened.
        ``allow_partial``: of a collection with several shards the answer of those that answer within the timeout;
        ``Hits.partial`` says that others are missing, and ``Hits.missing`` which.
        ``top_k`` and ``ef`` are taken for ``k`` and ``ef_search``.
        Raises DimensionMismatch, NonFiniteVector, InvalidFilter (with the position), LimitExceeded, InvalidArgument.

        >>> docs = db.create_collection("docs", dim=2)
        >>> _ = docs.upsert(ids=["x", "y"], vectors=[[1, 0], [0, 1]], metadata=[{"n": 1}, {"n": 2}])
        >>> docs.query([2, 0], k=1, include=["metadata"])[0]
        Hit(id='x', score=1.0, distance=0.0, metadata={'n': 1}, vector=None)
        >>> [hits.ids for hits in docs.query([[1, 0], [0, 1]], k=1)]
        [['x'], ['y']]
        """
        options = queries.check(k, filter, include, within, ef_search, nprobe, exact, explain, aliases, profile)
        partial = check_flag("allow_partial", allow_partial)
        limit, wanted = check_timeout(timeout), check_consistency(consistency)
        if progress is None:
            return self._session.run(queries.steps(self._name, vector, options, None), limit, wanted, partial)
        with reporting(progress) as report:
            return self._session.run(queries.steps(self._name, vector, options, report), limit, wanted,
                                           partial)

    def fetch(self, ids: Any, include: Iterable[str] | None = ("metadata", "vector"), *,
              consistency: str | Consistency | None = None, timeout: float | None = None) -> list[Record]:
        """Return the records that exist, in the order asked.

        >>> docs = db.create_collection("docs", dim=2, metric="dot")
        >>> _ = docs.upsert(ids=[7, 8], vectors=[[1, 2], [3, 4]], metadata=[{"a": 1}, {}])
        >>> [(record.id, record.metadata, record.vector.tolist()) for record in docs.fetch([8, 99, 7])]
        [(8, {}, [3.0, 4.0]), (7, {'a': 1}, [1.0, 2.0])]
        """
        return self._session.run(doing.fetch(self._name, ids, include), check_timeout(timeout),
                                 check_consistency(consistency))

    def get(self, id: RecordId, include: Iterable[str] | None = ("metadata", "vector"), *,
            consistency: str | Consistency | None = None, timeout: float | None = None) -> Record | None:
        """Return one record, or None if there is none of that id."""
        return self._session.run(doing.get(self._name, id, include), check_timeout(timeout),
                                 check_consistency(consistency))

    def delete(self, ids: Any = None, *, filter: FilterLike | None = None,
               idempotency_key: str | bytes | None = None, progress: ProgressOption = None,
               timeout: float | None = None) -> WriteResult:
        """Delete records by ``ids`` or by ``filter`` (exactly one); ids that do not exist are counted as missing.

        A filter that matches everything by saying nothing (``""``, ``{}``) is refused; ``filter="true"`` says it.

        >>> docs = db.create_collection("docs", dim=1, metric="l2")
        >>> _ = docs.upsert(ids=[1, 2, 3], vectors=[[1], [2], [3]], metadata=[{"n": 1}, {"n": 2}, {"n": 3}])
        >>> docs.delete(filter="n >= 2").deleted, docs.count()
        (2, 1)
        """
        limit = check_timeout(timeout)
        with reporting(progress) as report:
            return self._session.run(doing.delete(self._name, ids, filter, idempotency_key, report), limit)

    def update_metadata(self, ids: Any = None, metadata: Any = None, *, filter: FilterLike | None = None,
                        merge: bool = True, idempotency_key: str | bytes | None = None,
                        progress: ProgressOption = None, timeout: float | None = None) -> WriteResult:
        """Change the metadata of existing records, by ``ids`` or by ``filter`` (exactly one).

        ``metadata``: one dict for all of them or, with ``ids``, a sequence of one dict each.  ``merge`` sets the given
        top-level keys (None removes one); otherwise the whole object is replaced.  With ``filter`` the records are
        those that match when the call begins.  Ids that do not exist are counted as missing.

        >>> docs = db.create_collection("docs", dim=1, metric="l2")
        >>> _ = docs.upsert(ids=[1], vectors=[[1]], metadata=[{"a": 1, "b": 2}])
        >>> docs.update_metadata(ids=[1], metadata={"b": None, "c": 3}).updated
        1
        >>> docs.get(1).metadata
        {'a': 1, 'c': 3}
        """
        limit = check_timeout(timeout)
        with reporting(progress) as report:
            return self._session.run(
                doing.update_metadata(self._name, ids, metadata, filter, merge, idempotency_key, report), limit)

    def scan(self, filter: FilterLike | None = None, include: Iterable[str] | None = ("metadata",),
             batch_size: int = 1_000, on_damage: str = "raise", *, consistency: str | Consistency | None = None,
             timeout: float | None = None) -> Iterator[Record]:
        """Iterate over all records, or those that match, fetching them page by page.

        Each record that stays unchanged meanwhile is seen once; one that is rewritten may be seen again, as it is then.
        With replicas each page is a read of its own, by ``consistency``: only ``"linearizable"`` says this of records
        that others wrote just before.
        ``on_damage``: where vectors on disk are damaged, ``"raise"`` DataCorrupted, or ``"skip"`` those records;
        :meth:`scan_batches` says which they were.  ``timeout``: seconds for each page.

        >>> docs = db.create_collection("docs", dim=1, metric="l2")
        >>> _ = docs.upsert((i, [i], {"n": i}) for i in range(10))
        >>> [record.id for record in docs.scan(filter="n > 7")]
        [8, 9]
        """
        pages = self.scan_batches(filter, include, batch_size, on_damage, consistency=consistency, timeout=timeout)
        return (record for page in pages for record in page)

    def scan_batches(self, filter: FilterLike | None = None, include: Iterable[str] | None = ("metadata",),
                     batch_size: int = 1_000, on_damage: str = "raise", *, allow_partial: bool = False,
                     consistency: str | Consistency | None = None, timeout: float | None = None) -> Iterator[Records]:
        """Like :meth:`scan`, as columns of at most ``batch_size`` records (fewer where vectors are large).

        With ``on_damage="skip"`` a batch's ``damaged`` are the ids left out of it; a batch may be those alone.  With
        ``allow_partial`` shards that do not answer are passed over, and a batch's ``missing`` names them.
        """
        scan = doing.check_scan(filter, include, batch_size, on_damage)
        limit, wanted = check_timeout(timeout), check_consistency(consistency)
        partial = check_flag("allow_partial", allow_partial)
        first = self._session.run(doing.first_page(self._name, scan), limit)
        return self._pages(first, scan.skip, limit, wanted, partial)

    def _pages(self, request: ScanRequest, skip: bool, timeout: float | None, consistency: Consistency | None,
               partial: bool) -> Iterator[Records]:
        """Non-empty pages; nothing is held between them.  Each has ``timeout`` seconds."""
        after: Cursor | None = request.after
        while after is not None:
            steps = reading.page(self._name, replace(request, after=after), skip)
            page, after = self._session.run(steps, timeout, consistency, partial)
            if page.ids or page.damaged or page.missing:
                yield page

    def count(self, filter: FilterLike | None = None, *, allow_partial: bool = False,
              consistency: str | Consistency | None = None, timeout: float | None = None) -> int:
        """The number of records, or of those that match.

        ``allow_partial``: of the shards that answer within the timeout; the number is then a
        :class:`~vecdb.core.query.Count`, whose ``missing`` names the others.
        """
        return self._session.run(doing.count(self._name, filter), check_timeout(timeout),
                                 check_consistency(consistency), check_flag("allow_partial", allow_partial))

    def describe(self, *, consistency: str | Consistency | None = None, timeout: float | None = None) -> Description:
        """Counts, segments, bytes in memory and on disk, and the state of the index.

        Of a collection with replicas it tells what the one that answers has (``details["replica"]``): by
        ``consistency`` all that this handle wrote, as with :meth:`count`.  How that is divided into segments is each
        replica's own; after :meth:`optimize` it is alike on those that optimized.
        """
        return self._session.run(doing.describe(self._name), check_timeout(timeout),
                                 check_consistency(consistency))

    def verify(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Read every record and hold all against the digest that writes keep up.

        ``records log_index digest computed equal``; ``equal`` False means damage.
        """
        return self._session.run(doing.verify(self._name), check_timeout(timeout))

    def optimize(self, progress: ProgressOption = None, *, consistency: str | Consistency | None = None,
                 timeout: float | None = None) -> Description:
        """Seal, merge and build until nothing is left to do, and describe the result.

        Of a collection with replicas each that serves does so, once it has what ``consistency`` asks for, by default
        what this handle wrote: ``details["optimized"]`` names their nodes (of several shards in ``details["shards"]``).
        One that is away, or stays behind for some seconds, is not waited for: it has its own work in the background,
        and a description by that one may still tell of segments that are not sealed.

        ``timeout``: seconds, after which DeadlineExceeded is raised; what was done by then stays, the rest is left.
        """
        limit = check_timeout(timeout)
        level = check_consistency(consistency)
        with reporting(progress) as report:
            return self._session.run(doing.optimize(self._name, report), limit, level)

    def __len__(self) -> int:
        return self.count()

    def __bool__(self) -> bool:
        """True: a handle is something, however many records there are."""
        return True

    def __repr__(self) -> str:
        try:
            schema = self.schema
        except Exception as error:
            return f"<Collection {self._name!r} ({type(error).__name__})>"
        return f"<Collection {self._name!r} dim={schema.dim} {schema.metric} {schema.vector_type}>"

