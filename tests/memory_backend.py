"""A database in a few hundred lines of plain Python and NumPy: the meaning of the Backend protocol.

It serves the SDK's tests as their double and the engine's tests as their oracle: brute force in float64,
no index, no segments, no storage.  It is pedantic: what a facade must never send (an unchecked id, vectors of
another dtype or read-only, a duplicate in a batch) is an AssertionError, not an answer.

A record gets a new ``rid`` with each version, as in a shard; scans go by rid.  ``log_index`` counts writes.
"""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from vecdb.core.calls import Call
from vecdb.core.errors import CollectionExists, CollectionNotFound, DatabaseClosed, InvalidArgument, InvalidMetadata
from vecdb.core.filters import evaluate
from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId, check_id
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS, MAX_EF, MAX_K, MAX_METADATA_BYTES
from vecdb.core.query import Description, Matches, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema, Metric
from vecdb.core.vectors import stored_dtype


@dataclass(slots=True)
class Row:
    """One live record."""

    rid: int
    vector: np.ndarray
    metadata: dict[str, Any]


@dataclass(slots=True)
class Table:
    """One collection; ``rows`` in the order of rid."""

    schema: CollectionSchema
    rows: dict[RecordId, Row] = field(default_factory=dict)
    next_rid: int = 1
    log_index: int = 0
    tokens: dict[bytes, tuple[int, WriteResult]] = field(default_factory=dict)

    def known(self, call: Call | None) -> WriteResult | None:
        """What the write did whose token this is, if it was applied before."""
        token = None if call is None else call.token
        if token is None or token.key not in self.tokens:
            return None
        fingerprint, result = self.tokens[token.key]
        if fingerprint != token.fingerprint:
            raise InvalidArgument("idempotency_key", "was used for another write", got=token.key.hex(),
                                  limit="a key of its own for every write")
        return result

    def done(self, call: Call | None, result: WriteResult) -> WriteResult:
        if call is not None and call.token is not None:
            self.tokens[call.token.key] = (call.token.fingerprint, result)
        return result

    def put(self, identity: RecordId, vector: np.ndarray, metadata: dict[str, Any]) -> bool:
        """Write a new version; returns whether there was an older one."""
        old = self.rows.pop(identity, None)
        self.rows[identity] = Row(self.next_rid, vector, metadata)
        self.next_rid += 1
        return old is not None

    def matching(self, where: Node | None) -> list[tuple[RecordId, Row]]:
        return [(identity, row) for identity, row in self.rows.items()
                if where is None or evaluate(where, row.metadata)]


def distances(metric: Metric, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float64 (n,): what users see, from stored components."""
    if metric is Metric.HAMMING:
        return np.bitwise_count(rows ^ query).sum(axis=1).astype(np.float64)
    q, x = query.astype(np.float64), rows.astype(np.float64)
    if metric is Metric.L2:
        return np.sqrt(((x - q) ** 2).sum(axis=1))
    dot = x @ q
    if metric is Metric.DOT:
        return -dot
    return 1.0 - dot / (np.sqrt((x * x).sum(axis=1)) * np.sqrt(q @ q))


class MemoryBackend:
    """A :class:`vecdb.client.backend.Backend`; one lock makes every call atomic."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tables: dict[str, Table] = {}
        self._closed = False

    def _table(self, name: str) -> Table:
        if self._closed:
            raise DatabaseClosed("the database is closed")
        if name not in self._tables:
            raise CollectionNotFound(name)
        return self._tables[name]

    def create_collection(self, schema: CollectionSchema, call: Call | None = None, layout: Layout = ANYHOW) -> None:
        _check(call)
        with self._lock:
            assert not self._closed
            assert CollectionSchema.from_json(orjson.loads(orjson.dumps(schema.to_json()))) == schema
            if schema.name in self._tables:
                raise CollectionExists(schema.name)
            self._tables[schema.name] = Table(schema)

    def drop_collection(self, name: str, call: Call | None = None) -> None:
        _check(call)
        with self._lock:
            self._table(name)
            del self._tables[name]

    def list_collections(self, call: Call | None = None) -> list[str]:
        _check(call)
        with self._lock:
            return sorted(self._tables)

    def schema(self, name: str, call: Call | None = None) -> CollectionSchema:
        _check(call)
        with self._lock:
            return self._table(name).schema

    def describe(self, name: str, call: Call | None = None) -> Description:
        _check(call)
        with self._lock:
            table = self._table(name)
            return Description(name, len(table.rows), {"log_index": table.log_index})

    def optimize(self, name: str, on_progress: Callable[[str, int, int], None] | None = None,
                 call: Call | None = None) -> Description:
        _check(call)
        if on_progress is not None:
            on_progress("optimize", 1, 1)
        return self.describe(name)

    def upsert(self, name: str, batch: UpsertBatch, call: Call | None = None) -> WriteResult:
        _check(call)
        with self._lock:
            table = self._table(name)
            if (known := table.known(call)) is not None:
                return known
            _check_batch(table.schema, batch)
            updated = 0
            for identity, vector, metadata in zip(batch.ids, batch.vectors, batch.metadata, strict=True):
                updated += table.put(identity, vector.copy(), orjson.loads(metadata))
            table.log_index += 1
            return table.done(call, WriteResult(inserted=len(batch.ids) - updated, updated=updated,
                                                log_index=table.log_index))

    def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call | None = None) -> WriteResult:
        _check(call)
        with self._lock:
            table = self._table(name)
            if (known := table.known(call)) is not None:
                return known
            if isinstance(command, DeleteIds):
                _check_ids(command.ids)
                ids: Sequence[RecordId] = command.ids
            else:
                ids = [identity for identity, _ in table.matching(command.filter)]
            deleted = sum(table.rows.pop(identity, None) is not None for identity in ids)
            table.log_index += 1
            return table.done(call, WriteResult(deleted=deleted, missing=len(ids) - deleted,
                                                log_index=table.log_index))

    def update_metadata(self, name: str, command: UpdateMetadata, call: Call | None = None) -> WriteResult:
        """All or nothing: an object that would grow over the limit refuses the whole command."""
        _check(call)
        with self._lock:
            table = self._table(name)
            if (known := table.known(call)) is not None:
                return known
            _check_ids(command.ids)
            changed: dict[RecordId, dict[str, Any]] = {}
            for position, (identity, raw) in enumerate(zip(command.ids, command.patch, strict=True)):
                if identity in table.rows:
                    changed[identity] = _patched(table.rows[identity].metadata, raw, command.merge, position)
            for identity, metadata in changed.items():
                table.put(identity, table.rows[identity].vector, metadata)
            table.log_index += 1
            return table.done(call, WriteResult(updated=len(changed), missing=len(command.ids) - len(changed),
                                                log_index=table.log_index))

    def query(self, name: str, request: QueryRequest, call: Call | None = None) -> QueryResult:
        _check(call)
        with self._lock:
            table = self._table(name)
            _check_vectors(table.schema, request.vectors)
            assert type(request.k) is int
            assert 1 <= request.k <= MAX_K
            assert type(request.ef_search) is int
            assert 0 <= request.ef_search <= MAX_EF
            found = table.matching(request.filter)
            matches = [_nearest(table.schema, query, found, request) for query in request.vectors]
            plan = {"strategy": "exact", "matches": len(found)} if request.explain else None
            return QueryResult(matches, plan)

    def fetch(self, name: str, ids: Sequence[RecordId], *, include_metadata: bool = True,
              include_vectors: bool = True, call: Call | None = None) -> list[Record]:
        _check(call)
        with self._lock:
            table = self._table(name)
            return [Record(identity, _copy(row.metadata) if include_metadata else {},
                           row.vector.copy() if include_vectors else None)
                    for identity in ids if (row := table.rows.get(identity)) is not None]

    def scan(self, name: str, request: ScanRequest, call: Call | None = None) -> ScanPage:
        _check(call)
        with self._lock:
            table = self._table(name)
            assert 1 <= request.limit <= MAX_BATCH_RECORDS
            found = [(identity, row) for identity, row in table.matching(request.filter) if row.rid > request.after]
            page = found[:request.limit]
            return ScanPage([identity for identity, _ in page],
                            [_copy(row.metadata) for _, row in page] if request.include_metadata else None,
                            _stack(table.schema, page) if request.include_vectors else None,
                            page[-1][1].rid if len(found) > len(page) else None)

    def count(self, name: str, where: Node | None = None, call: Call | None = None) -> int:
        _check(call)
        with self._lock:
            return len(self._table(name).matching(where))

    def close(self) -> None:
        with self._lock:
            assert not self._closed, "closed twice"
            self._closed = True

    def state(self) -> dict[str, Any]:
        """Everything, comparable with ``==``: for tests that a refusal changed nothing."""
        with self._lock:
            return {name: (dataclasses.asdict(table.schema), table.log_index,
                           [(identity, row.rid, row.vector.tobytes(), orjson.dumps(row.metadata))
                            for identity, row in table.rows.items()])
                    for name, table in self._tables.items()}


def _check(call: Call | None) -> None:
    if call is not None:
        call.check()


def _copy(metadata: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = orjson.loads(orjson.dumps(metadata))
    return copied


def _stack(schema: CollectionSchema, rows: Sequence[tuple[RecordId, Row]]) -> np.ndarray:
    out = np.empty((len(rows), schema.row_items), dtype=stored_dtype(schema))
    for place, (_, row) in enumerate(rows):
        out[place] = row.vector
    return out


def _nearest(schema: CollectionSchema, query: np.ndarray, found: Sequence[tuple[RecordId, Row]],
             request: QueryRequest) -> Matches:
    rows = _stack(schema, found)
    d = distances(schema.metric, query, rows)
    if schema.metric in (Metric.COSINE, Metric.L2, Metric.HAMMING):
        d = np.maximum(d, 0.0)  # cosine of a vector with itself may come out at 1 + 1e-16
    order = np.lexsort((np.arange(len(d)), d))
    if request.within is not None:
        order = order[d[order] <= request.within]
    order = order[:request.k]
    return Matches([found[i][0] for i in order], d[order].astype(np.float32),
                   [_copy(found[i][1].metadata) for i in order] if request.include_metadata else None,
                   rows[order] if request.include_vectors else None)


def _patched(old: dict[str, Any], raw: bytes, merge: bool, position: int) -> dict[str, Any]:
    patch = orjson.loads(raw)
    if merge:
        patch = {key: value for key, value in {**old, **patch}.items()
                 if not (key in patch and patch[key] is None)}
    size = len(orjson.dumps(patch))
    if size > MAX_METADATA_BYTES:
        raise InvalidMetadata(f"metadata[{position}]", f"would become {size} bytes, more than {MAX_METADATA_BYTES}",
                              got=size, limit=MAX_METADATA_BYTES)
    return patch


def _check_ids(ids: Sequence[RecordId]) -> None:
    assert isinstance(ids, tuple)
    assert 1 <= len(ids) <= MAX_BATCH_RECORDS
    assert len(set(ids)) == len(ids), "duplicate ids in one command"
    assert all(type(identity) in (int, str) and check_id(identity) == identity for identity in ids)


def _check_vectors(schema: CollectionSchema, vectors: np.ndarray) -> None:
    assert vectors.ndim == 2
    assert vectors.shape[1] == schema.row_items
    assert len(vectors) > 0
    assert vectors.dtype == stored_dtype(schema)
    assert vectors.dtype.isnative
    assert vectors.flags.c_contiguous
    assert vectors.flags.aligned
    assert vectors.flags.writeable
    if vectors.dtype.kind == "f":
        wide = vectors.astype(np.float64)
        assert np.isfinite(wide).all()
        if schema.metric is Metric.COSINE:
            tolerance = 1e-6 if vectors.dtype == np.float32 else 2e-3
            np.testing.assert_allclose(np.sqrt((wide * wide).sum(axis=1)), 1.0, atol=tolerance)


def _check_batch(schema: CollectionSchema, batch: UpsertBatch) -> None:
    _check_ids(batch.ids)
    _check_vectors(schema, batch.vectors)
    assert len(batch.ids) == len(batch.vectors) == len(batch.metadata)
    assert batch.vectors.nbytes + sum(map(len, batch.metadata)) <= MAX_BATCH_BYTES
    for raw in batch.metadata:
        assert isinstance(raw, bytes)
        assert isinstance(orjson.loads(raw), dict)
