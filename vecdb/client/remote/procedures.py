"""Every method of the Backend as a procedure over a wire; the sync and the async client run these.

A write has an idempotency key of its own, the caller's or 16 random bytes, over all its attempts; without one
(``retry_writes=False``) it is made again only where it was certainly not done.
"""

import os
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import numpy as np

from vecdb.client.backend import Progress
from vecdb.client.remote import methods as m
from vecdb.client.remote.calling import LONG_S, Caller, left, read
from vecdb.client.remote.io import Rpc, Sleep
from vecdb.client.remote.options import Options
from vecdb.client.remote.retry import Failed
from vecdb.client.remote.schemas import SchemaCache
from vecdb.client.remote.streams import Open, Read, Stream
from vecdb.client.steps import Steps
from vecdb.core.calls import Call, check
from vecdb.core.errors import CollectionExists, CollectionNotFound, DeadlineExceeded, OutcomeUnknown, VecdbError
from vecdb.core.filters.tree import Node
from vecdb.core.ids import RecordId
from vecdb.core.layout import ANYHOW, Layout
from vecdb.core.query import Description, QueryRequest, QueryResult, ScanPage, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import row_bytes, stored_dtype
from vecdb.v1 import collections_pb2 as c
from vecdb.v1 import queries_pb2 as q
from vecdb.v1 import records_pb2 as r
from vecdb.wire import convert

T = TypeVar("T")

PART_BYTES: Final = 4 << 20
"""Vectors of one message of a long query or fetch."""
REPLY_BYTES: Final = 16 << 20
"""What a part's reply may come to, where that can be known."""
PART_ROWS: Final = 512
"""Queries of one message: enough for every core, few enough that four of them fit a server's queue."""
FETCH_ROWS: Final = 64
"""Records that fit a message whatever their dimension."""
_METADATA_BYTES: Final = 512
"""What a record's metadata is taken to be; a part that comes out too large is asked for in halves."""


def random_key() -> bytes:
    """An idempotency key that nobody else has."""
    return os.urandom(16)


class Procedures:
    """The API over one connection."""

    def __init__(self, options: Options, label: str, addresses: int = 1) -> None:
        self.caller = Caller(options, label, addresses)
        self.schemas = SchemaCache(options.schema_ttl)

    def key_of(self, call: Call | None) -> bytes:
        """The caller's key, or a new one; empty where writes are not to be made twice."""
        if call is not None and call.token is not None:
            return call.token.key
        return random_key() if self.caller.options.retry_writes else b""

    def _on(self, name: str, steps: Steps[T]) -> Steps[T]:
        """Forget the schema when the server refuses: it may be another one by now."""
        try:
            return (yield from steps)
        except VecdbError as error:
            self._refused(name, error)
            raise

    def _refused(self, name: str, error: VecdbError) -> None:
        if error.code in ("INVALID_ARGUMENT", "NOT_FOUND"):
            self.schemas.drop(name)

    # --- collections ------------------------------------------------------------------------------

    def create_collection(self, schema: CollectionSchema, call: Call | None = None, layout: Layout = ANYHOW
                          ) -> Steps[None]:
        """A lost reply is settled by a look: the same schema is there, and so it was made."""
        payload = c.CreateCollectionRequest(schema=convert.schema_to_wire(schema),
                                            layout=convert.layout_to_wire(layout)).SerializeToString()
        unknown: OutcomeUnknown | None = None
        for _ in range(2):
            try:
                yield from self.caller.call(m.CREATE, payload, call, write=True, repeat=False)
                self.schemas.put(schema)
                return
            except OutcomeUnknown as error:
                unknown = error
            except CollectionExists:
                if unknown is None:
                    raise
            if (yield from self._is_there(schema, call, unknown)):
                return
        assert unknown is not None
        raise unknown

    def _is_there(self, schema: CollectionSchema, call: Call | None, unknown: OutcomeUnknown) -> Steps[bool]:
        """Whether this collection exists; one of the same name and another schema is CollectionExists."""
        try:
            found = yield from self.refresh_schema(schema.name, call)
        except CollectionNotFound:
            return False
        except VecdbError:
            raise unknown from None
        if found != schema:
            raise CollectionExists(schema.name)
        return True

    def drop_collection(self, name: str, call: Call | None = None) -> Steps[None]:
        """A lost reply is settled by a look; a collection that is still there may be a new one, and stays."""
        self.schemas.drop(name)
        payload = c.DropCollectionRequest(name=name).SerializeToString()
        try:
            yield from self.caller.call(m.DROP, payload, call, write=True, repeat=False)
        except OutcomeUnknown as unknown:
            try:
                yield from self.refresh_schema(name, call)
            except CollectionNotFound:
                return
            except VecdbError:
                raise unknown from None
            raise
        finally:
            self.schemas.drop(name)

    def list_collections(self, call: Call | None = None) -> Steps[list[str]]:
        reply = yield from self.caller.call(m.LIST, b"", call)
        return list(read(c.ListCollectionsReply, reply).names)

    def schema(self, name: str, call: Call | None = None) -> Steps[CollectionSchema]:
        """As seen last, if that is not long ago."""
        known = self.schemas.get(name)
        return known if known is not None else (yield from self.refresh_schema(name, call))

    def refresh_schema(self, name: str, call: Call | None = None) -> Steps[CollectionSchema]:
        """As it is now."""
        payload = c.GetCollectionRequest(name=name).SerializeToString()
        reply = yield from self._on(name, self.caller.call(m.GET, payload, call))
        return self.schemas.put(convert.schema_from_wire(read(c.GetCollectionReply, reply).schema))

    def describe(self, name: str, call: Call | None = None) -> Steps[Description]:
        payload = reading(c.DescribeCollectionRequest(name=name), call)
        reply = yield from self._on(name, self.caller.call(m.DESCRIBE, payload, call))
        return convert.description_from_wire(read(c.DescribeCollectionReply, reply))

    def optimize(self, name: str, on_progress: Progress | None = None, call: Call | None = None) -> Steps[Description]:
        """Asked again after a broken connection: what was done is done, and the rest goes on."""
        deadline = None if call is None else call.deadline
        attempts = self.caller.attempts(deadline)
        payload = reading(c.OptimizeCollectionRequest(name=name), call)
        while True:
            stream: Stream | None = None
            try:
                stream = yield Open(m.OPTIMIZE, payload, left(deadline, LONG_S), self.caller.metadata(call))
                while True:
                    raw = yield Read(stream)
                    if raw is None:
                        raise VecdbError("the server ended optimize without saying how it went")
                    attempts.progress()
                    event = read(c.OptimizeCollectionReply, raw)
                    if event.WhichOneof("event") == "done":
                        return convert.description_from_wire(event.done)
                    if on_progress is not None:
                        on_progress(event.progress.stage, event.progress.done, event.progress.total)
            except Failed as failed:
                check(call)
                error = failed.error
                if isinstance(error, DeadlineExceeded):
                    left(deadline)  # the caller's own has passed, or else the server's for one call
                    continue
                wait = attempts.after(failed)
                if wait is None:
                    raise error from None
            finally:
                if stream is not None:
                    stream.cancel()
            yield Sleep(wait)

    # --- writes -----------------------------------------------------------------------------------

    def _write(self, rpc: Rpc, name: str, message: Any, reply: Any, call: Call | None) -> Steps[WriteResult]:
        return (yield from self._send(rpc, name, message.SerializeToString(), bool(message.idempotency_key), reply,
                                      call))

    def _send(self, rpc: Rpc, name: str, payload: bytes, repeat: bool, reply: Any, call: Call | None
              ) -> Steps[WriteResult]:
        route = self.caller.route(name)
        raw = yield from self._on(name, self.caller.call(rpc, payload, call, write=True, repeat=repeat, route=route))
        result = read(reply, raw).result
        if route is not None:
            self.caller.learn(name, route.label, result.handed_on)
        return convert.write_result_from_wire(result)

    def upsert(self, name: str, batch: UpsertBatch, call: Call | None = None) -> Steps[WriteResult]:
        key = self.key_of(call)
        payload = convert.upsert_to_bytes(name, batch, key)
        return (yield from self._send(m.UPSERT, name, payload, bool(key), r.UpsertReply, call))

    def delete(self, name: str, command: DeleteIds | DeleteWhere, call: Call | None = None) -> Steps[WriteResult]:
        message = convert.delete_to_wire(name, command, self.key_of(call))
        return (yield from self._write(m.DELETE, name, message, r.DeleteReply, call))

    def update_metadata(self, name: str, command: UpdateMetadata, call: Call | None = None) -> Steps[WriteResult]:
        message = convert.update_to_wire(name, command, self.key_of(call))
        return (yield from self._write(m.UPDATE, name, message, r.UpdateMetadataReply, call))

    # --- reads ------------------------------------------------------------------------------------

    def query(self, name: str, request: QueryRequest, call: Call | None = None) -> Steps[QueryResult]:
        if len(request.vectors) == 1:
            payload = reading(convert.query_to_wire(name, request), call)
            try:
                reply = yield from self.caller.quick(m.QUERY, payload, call)
            except VecdbError as error:
                self._refused(name, error)
                raise
            return answer(reply, request)
        parts = query_parts(request)
        answers = yield from self._on(name, self.caller.several(
            m.QUERY, parts, call, lambda part: reading(convert.query_to_wire(name, part), call), answer, _halves))
        return answers[0] if len(answers) == 1 else _joined(answers)

    def fetch(self, name: str, ids: Sequence[RecordId], call: Call | None = None, *, include_metadata: bool = True,
              include_vectors: bool = True) -> Steps[list[Record]]:
        if not ids:
            return []
        size = _METADATA_BYTES if include_metadata else 0
        if include_vectors and len(ids) > FETCH_ROWS:
            size += row_bytes((yield from self.schema(name, call)))
        step = FETCH_ROWS if len(ids) <= FETCH_ROWS else max(1, PART_BYTES // (size + 16))

        def encode(part: Sequence[RecordId]) -> bytes:
            return reading(convert.fetch_to_wire(name, part, include_metadata, include_vectors), call)

        def decode(reply: bytes, part: Sequence[RecordId]) -> list[Record]:
            return convert.records_from_wire(read(r.FetchReply, reply))

        pages = yield from self._on(name, self.caller.several(
            m.FETCH, [ids[low:low + step] for low in range(0, len(ids), step)], call, encode, decode,
            lambda part: (part[:len(part) // 2], part[len(part) // 2:]) if len(part) > 1 else (part,)))
        return pages[0] if len(pages) == 1 else [record for page in pages for record in page]

    def scan(self, name: str, request: ScanRequest, call: Call | None = None) -> Steps[ScanPage]:
        payload = reading(convert.scan_to_wire(name, request), call)
        reply = yield from self._on(name, self.caller.call(m.SCAN, payload, call))
        page = convert.page_from_wire(read(r.ScanReply, reply))
        if page.ids:
            return page
        schema = (yield from self.schema(name, call)) if request.include_vectors else None
        empty = None if schema is None else np.empty((0, schema.row_items), stored_dtype(schema))
        return ScanPage([], [] if request.include_metadata else None, empty, page.cursor, page.missing)

    def count(self, name: str, where: Node | None = None, call: Call | None = None) -> Steps[int]:
        payload = reading(convert.count_to_wire(name, where), call)
        reply = yield from self._on(name, self.caller.call(m.COUNT, payload, call))
        return convert.counted_from_wire(read(r.CountReply, reply))


def reading(message: Any, call: Call | None) -> bytes:
    """A read's message with what it must have seen."""
    if call is not None:
        convert.put_read(message, call)
    payload: bytes = message.SerializeToString()
    return payload


def query_parts(request: QueryRequest) -> list[QueryRequest]:
    rows = len(request.vectors)
    width = request.vectors.nbytes // rows
    reply = request.k * (12 + (_METADATA_BYTES if request.include_metadata else 0)
                         + (width if request.include_vectors else 0))
    step = max(1, min(PART_ROWS, PART_BYTES // max(1, width), REPLY_BYTES // reply))
    return [request] if rows <= step else [_rows(request, low, low + step) for low in range(0, rows, step)]


def _rows(request: QueryRequest, low: int, high: int) -> QueryRequest:
    return QueryRequest(request.vectors[low:high], request.k, request.filter, request.within, request.ef_search,
                        request.nprobe, request.exact, request.include_metadata, request.include_vectors,
                        request.explain, request.profile, request.shape)


def _halves(request: QueryRequest) -> Sequence[QueryRequest]:
    rows = len(request.vectors)
    return (request,) if rows == 1 else (_rows(request, 0, rows // 2), _rows(request, rows // 2, rows))


def answer(reply: bytes, request: QueryRequest) -> QueryResult:
    return convert.answer_from_wire(read(q.QueryReply, reply), request)


def _joined(answers: list[QueryResult]) -> QueryResult:
    """Parts of one call as one answer: the first one's plan and cost."""
    missing = dict.fromkeys(name for answer in answers for name in answer.missing)
    return QueryResult([one for answer in answers for one in answer.matches], answers[0].plan, tuple(missing),
                       answers[0].cost)

