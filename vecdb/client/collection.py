"""``Collection``: the records of one collection, by name.

A handle holds a name, not a schema: each call asks the backend for the schema it checks against, so a
collection that another thread dropped and made anew is seen as it is now, and one that is gone is
CollectionNotFound.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy.typing as npt

from vecdb.client import ingest, queries, reading, writing
from vecdb.client.deadlines import check_timeout, limited
from vecdb.client.options import (
    check_choice,
    check_filter,
    check_flag,
    check_include,
    check_int,
    check_some,
    check_text,
    kind_of,
)
from vecdb.client.parts import batches
from vecdb.client.progress import ProgressOption, reporting
from vecdb.client.results import Hits, Records
from vecdb.client.session import Session
from vecdb.core.calls import Call
from vecdb.core.errors import InvalidArgument, InvalidMetadata
from vecdb.core.filters import FilterLike
from vecdb.core.ids import RecordId, check_id
from vecdb.core.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS
from vecdb.core.metadata import check_metadata
from vecdb.core.query import Description, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, WriteResult
from vecdb.core.schema import CollectionSchema, Metric
from vecdb.core.vectors import row_bytes


class Collection:
    """A handle of one collection; any number of threads may use it at once.

    >>> docs = db.create_collection("docs", dim=2, metric="l2")
    >>> docs.upsert(ids=[1, 2], vectors=[[0, 0], [3, 4]], metadata=[{"year": 2020}, {"year": 2024}])
    WriteResult(inserted=2, updated=0, deleted=0, missing=0, log_index=1)
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
        with self._session.call() as backend:
            return backend.schema(self._name)

    @property
    def dim(self) -> int:
        return self.schema.dim

    @property
    def metric(self) -> Metric:
        return self.schema.metric

    def upsert(self, ids: Any = None, vectors: Any = None, metadata: Any = None, *, records: Any = None,
               id_column: str = "id", vector_column: str = "vector",
               metadata_columns: Sequence[str] | None = None, batch_size: int | None = None,
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
        Cosine collections store unit vectors (int8 and uint8 as given).  Binary vectors are packed bits (n, dim/8),
        the first bit the highest, or 0/1 values (n, dim).
        Raises DimensionMismatch, NonFiniteVector, InvalidId, InvalidMetadata, LimitExceeded, InvalidArgument.

        >>> docs = db.create_collection("docs", dim=2)
        >>> docs.upsert(("doc-%d" % i, [i, 1.0], {"even": i % 2 == 0}) for i in range(5)).inserted
        5
        """
        if batch_size is not None:
            batch_size = check_int("batch_size", batch_size, 1, MAX_BATCH_RECORDS)
        columns = ingest.Columns(check_text("id_column", id_column), check_text("vector_column", vector_column),
                                 _column_names(metadata_columns))
        with limited(timeout) as call, self._session.call() as backend, reporting(progress) as report:
            schema = backend.schema(self._name)
            source = _source(schema, ids, vectors, metadata, records, columns, batch_size)
            return writing.apply_all(batches(source.parts, schema, batch_size, source.whole),
                                     lambda batch: backend.upsert(self._name, batch, call=call), "upsert",
                                     source.total, report)

    @overload
    def query(self, vector: Sequence[float], k: int = ..., filter: FilterLike | None = ..., *,
              include: Iterable[str] | None = ..., within: float | None = ..., ef_search: int | None = ...,
              nprobe: int | None = ..., exact: bool = ..., explain: bool = ..., profile: bool = ...,
              timeout: float | None = ..., progress: ProgressOption = ..., **aliases: Any) -> Hits: ...

    @overload
    def query(self, vector: Sequence[Sequence[float]] | Sequence[npt.NDArray[Any]], k: int = ...,
              filter: FilterLike | None = ..., *, include: Iterable[str] | None = ..., within: float | None = ...,
              ef_search: int | None = ..., nprobe: int | None = ..., exact: bool = ..., explain: bool = ...,
              profile: bool = ..., timeout: float | None = ..., progress: ProgressOption = ...,
              **aliases: Any) -> list[Hits]: ...

    @overload
    def query(self, vector: Any, k: int = ..., filter: FilterLike | None = ..., *, include: Iterable[str] | None = ...,
              within: float | None = ..., ef_search: int | None = ..., nprobe: int | None = ..., exact: bool = ...,
              explain: bool = ..., profile: bool = ..., timeout: float | None = ...,
              progress: ProgressOption = ..., **aliases: Any) -> Any: ...

    def query(self, vector: Any, k: int = 10, filter: FilterLike | None = None, *, include: Iterable[str] | None = (),
              within: float | None = None, ef_search: int | None = None, nprobe: int | None = None,
              exact: bool = False, explain: bool = False, profile: bool = False, timeout: float | None = None,
              progress: ProgressOption = None, **aliases: Any) -> Any:
        """Find the ``k`` nearest records: Hits for one vector (dim,), a list of Hits for many (n, dim).

        ``filter``: only records it matches.  ``include``: ``"metadata"``, ``"vector"``.  ``within``: only records
        at most this distance away (still no more than ``k``).  ``ef_search`` and ``nprobe``: search width; None lets
        the engine choose.  ``exact``: compare with every record.  ``explain``: ``Hits.plan`` says how it was done;
        ``profile``: ``Hits.cost`` says what it took.  ``timeout``: seconds, after which DeadlineExceeded is raised.
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
        with limited(timeout) as call, self._session.call() as backend, reporting(progress) as report:
            return queries.run(backend, self._name, vector, options, report, call)

    def fetch(self, ids: Any, include: Iterable[str] | None = ("metadata", "vector"), *,
              timeout: float | None = None) -> list[Record]:
        """Return the records that exist, in the order asked.

        >>> docs = db.create_collection("docs", dim=2, metric="dot")
        >>> _ = docs.upsert(ids=[7, 8], vectors=[[1, 2], [3, 4]], metadata=[{"a": 1}, {}])
        >>> [(record.id, record.metadata, record.vector.tolist()) for record in docs.fetch([8, 99, 7])]
        [(8, {}, [3.0, 4.0]), (7, {'a': 1}, [1.0, 2.0])]
        """
        wanted = check_include(include)
        listed = ingest.list_ids(ids)
        out: list[Record] = []
        with limited(timeout) as call, self._session.call() as backend:
            if not listed:
                backend.schema(self._name)
            for _, part in writing.runs(listed):
                out += backend.fetch(self._name, part, include_metadata="metadata" in wanted,
                                     include_vectors="vector" in wanted, call=call)
        return out

    def get(self, id: RecordId, include: Iterable[str] | None = ("metadata", "vector")) -> Record | None:
        """Return one record, or None if there is none of that id."""
        wanted = check_include(include)
        checked = check_id(id)
        with self._session.call() as backend:
            found = backend.fetch(self._name, (checked,), include_metadata="metadata" in wanted,
                                  include_vectors="vector" in wanted)
        return found[0] if found else None

    def delete(self, ids: Any = None, *, filter: FilterLike | None = None, progress: ProgressOption = None,
               timeout: float | None = None) -> WriteResult:
        """Delete records by ``ids`` or by ``filter`` (exactly one); ids that do not exist are counted as missing.

        A filter that matches everything by saying nothing (``""``, ``{}``) is refused; ``filter="true"`` says it.

        >>> docs = db.create_collection("docs", dim=1, metric="l2")
        >>> _ = docs.upsert(ids=[1, 2, 3], vectors=[[1], [2], [3]], metadata=[{"n": 1}, {"n": 2}, {"n": 3}])
        >>> docs.delete(filter="n >= 2").deleted, docs.count()
        (2, 1)
        """
        _one_of(ids, filter)
        with limited(timeout) as call, reporting(progress) as report:
            if filter is not None:
                where = check_some(filter)
                with self._session.call() as backend:
                    return backend.delete(self._name, DeleteWhere(where), call=call)
            listed = list(dict.fromkeys(ingest.list_ids(ids)))
            with self._session.call() as backend:
                backend.schema(self._name)
                return writing.apply_all(writing.runs(listed),
                                         lambda part: backend.delete(self._name, DeleteIds(part), call=call),
                                         "delete", len(listed), report)

    def update_metadata(self, ids: Any = None, metadata: Any = None, *, filter: FilterLike | None = None,
                        merge: bool = True, progress: ProgressOption = None,
                        timeout: float | None = None) -> WriteResult:
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
        _one_of(ids, filter)
        merge = check_flag("merge", merge)
        where = None if filter is None else check_some(filter)
        listed = [] if filter is not None else ingest.list_ids(ids)
        patches = _patches(metadata, listed if filter is None else None)
        with limited(timeout) as call, self._session.call() as backend, reporting(progress) as report:
            most = max(1, MAX_BATCH_BYTES // row_bytes(backend.schema(self._name)))
            if where is not None:
                # All ids first: an updated record is written anew, and a scan would come upon it again.
                request = ScanRequest(where, limit=10_000, include_metadata=False)
                listed = [identity for page in self._pages(request, None, call=call) for identity in page.ids]
                patches *= len(listed)
            return writing.apply_all(writing.updates(listed, patches, merge, most),
                                     lambda update: backend.update_metadata(self._name, update, call=call),
                                     "update", len(listed), report)

    def scan(self, filter: FilterLike | None = None, include: Iterable[str] | None = ("metadata",),
             batch_size: int = 1_000, on_damage: str = "raise", *, timeout: float | None = None) -> Iterator[Record]:
        """Iterate over all records, or those that match, fetching them page by page.

        Each record that stays unchanged meanwhile is seen once; one that is rewritten may be seen again, as it is then.
        ``on_damage``: where vectors on disk are damaged, ``"raise"`` DataCorrupted, or ``"skip"`` those records;
        :meth:`scan_batches` says which they were.  ``timeout``: seconds for each page.

        >>> docs = db.create_collection("docs", dim=1, metric="l2")
        >>> _ = docs.upsert((i, [i], {"n": i}) for i in range(10))
        >>> [record.id for record in docs.scan(filter="n > 7")]
        [8, 9]
        """
        return (record for page in self.scan_batches(filter, include, batch_size, on_damage, timeout=timeout)
                for record in page)

    def scan_batches(self, filter: FilterLike | None = None, include: Iterable[str] | None = ("metadata",),
                     batch_size: int = 1_000, on_damage: str = "raise", *,
                     timeout: float | None = None) -> Iterator[Records]:
        """Like :meth:`scan`, as columns of at most ``batch_size`` records (fewer where vectors are large).

        With ``on_damage="skip"`` a batch's ``damaged`` are the ids left out of it; a batch may be those alone.
        """
        wanted = check_include(include)
        limit = check_int("batch_size", batch_size, 1, MAX_BATCH_RECORDS)
        where = check_filter(filter)
        skip = check_choice("on_damage", on_damage, ("raise", "skip")) == "skip"
        schema = self.schema
        if "vector" in wanted:
            limit = max(1, min(limit, MAX_BATCH_BYTES // row_bytes(schema)))
        request = ScanRequest(where, limit, 0, "metadata" in wanted, "vector" in wanted)
        return self._pages(request, check_timeout(timeout), skip)

    def _pages(self, request: ScanRequest, timeout: float | None, skip: bool = False,
               call: Call | None = None) -> Iterator[Records]:
        """Non-empty pages; nothing is held between them.  Each has ``timeout`` seconds, or belongs to ``call``."""
        after: int | None = request.after
        while after is not None:
            with limited(timeout) as own, self._session.call() as backend:
                page, after = reading.page(backend, self._name, replace(request, after=after), skip, call or own)
            if page.ids or page.damaged:
                yield page

    def count(self, filter: FilterLike | None = None, *, timeout: float | None = None) -> int:
        """The number of records, or of those that match."""
        where = check_filter(filter)
        with limited(timeout) as call, self._session.call() as backend:
            return backend.count(self._name, where, call=call)

    def describe(self) -> Description:
        """Counts, segments, bytes in memory and on disk, and the state of the index."""
        with self._session.call() as backend:
            return backend.describe(self._name)

    def optimize(self, progress: ProgressOption = None, *, timeout: float | None = None) -> Description:
        """Seal, merge and build until nothing is left to do, and describe the result.

        ``timeout``: seconds, after which DeadlineExceeded is raised; what was done by then stays, the rest is left.
        """
        with limited(timeout) as call, self._session.call() as backend, reporting(progress) as report:
            return backend.optimize(self._name, report, call=call)

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


def _source(schema: CollectionSchema, ids: Any, vectors: Any, metadata: Any, records: Any,
            columns: ingest.Columns, batch_size: int | None) -> ingest.Source:
    """Columns if there are vectors, else records, which may have come as the first argument."""
    if records is not None:
        for argument, value in (("ids", ids), ("vectors", vectors), ("metadata", metadata)):
            if value is not None:
                raise InvalidArgument(argument, "cannot be given beside records", got=kind_of(value), limit="one form")
        return ingest.from_records(schema, records, columns, batch_size)
    if vectors is not None:
        if ids is None:
            raise InvalidArgument("ids", "are missing", got="None", limit="a sequence of int or str")
        return ingest.from_columns(ids, vectors, metadata)
    if metadata is not None:
        raise InvalidArgument("vectors", "are missing; to change metadata alone use update_metadata", got="None",
                              limit="(n, dim)")
    if ids is None:
        raise InvalidArgument("records", "nothing is given", got="None", limit="ids= and vectors=, or records")
    return ingest.from_records(schema, ids, columns, batch_size)


def _column_names(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise InvalidArgument("metadata_columns", f"must be a list of names, not {kind_of(value)}", got=kind_of(value),
                              limit="a list of str")
    return tuple(check_text("metadata_columns", name) for name in value)


def _one_of(ids: object, filter: object) -> None:
    if (ids is None) == (filter is None):
        raise InvalidArgument("ids", "give either ids or filter" + ("" if ids is None else ", not both"),
                              got="neither" if ids is None else "both", limit="one of ids, filter")


def _patches(metadata: object, ids: list[RecordId] | None) -> list[bytes]:
    """One patch per id; a single one if the ids are not known yet."""
    if isinstance(metadata, dict):
        return [check_metadata(metadata)] * (1 if ids is None else len(ids))
    if ids is None or isinstance(metadata, str | bytes | set | frozenset):
        wanted = "a dict" if ids is None else "a dict, or a sequence of one per id"
        raise InvalidMetadata("metadata", f"must be {wanted}, not {kind_of(metadata)}", got=kind_of(metadata),
                              limit="dict")
    values = ingest.take_metadata(metadata, len(ids) + 1)
    if len(values) != len(ids):
        raise InvalidArgument("metadata", f"{len(values)} given for {len(ids)} ids", got=len(values), limit=len(ids))
    return [check_metadata(value, position) for position, value in enumerate(values)]


