"""What the methods of a collection do, as steps that the sync and the async one both run."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final

from vecdb.client import ingest, reading, writing
from vecdb.client.asking import Apply, Ask, AskSchema, AskWith, threaded
from vecdb.client.backend import Progress
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
from vecdb.client.parts import abatches, batches
from vecdb.client.steps import Op, Steps
from vecdb.client.tokens import check_key, token
from vecdb.core.errors import CollectionNotFound, InvalidArgument, InvalidMetadata
from vecdb.core.ids import RecordId, check_id
from vecdb.core.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS
from vecdb.core.metadata import check_metadata
from vecdb.core.query import Description, ScanRequest
from vecdb.core.records import DeleteIds, DeleteWhere, Record, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema
from vecdb.core.vectors import row_bytes

MAX_PARALLEL: Final = 64
_THREADED_ROWS: Final = 2_000
"""Rows from which an event loop has them checked and encoded in threads."""


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """The arguments of ``upsert``, as given."""

    ids: Any
    vectors: Any
    metadata: Any
    records: Any
    columns: ingest.Columns
    batch_size: int | None
    parallel: int | None
    key: bytes | None

    @property
    def rows(self) -> Any:
        """Records one by one or in tables, or None for columns."""
        return self.records if self.records is not None else self.ids if self.vectors is None else None


def check_input(ids: Any, vectors: Any, metadata: Any, records: Any, id_column: object, vector_column: object,
                metadata_columns: object, batch_size: object, parallel: object, key: object) -> Input:
    """Check what needs no schema."""
    columns = ingest.Columns(check_text("id_column", id_column), check_text("vector_column", vector_column),
                             _column_names(metadata_columns))
    return Input(ids, vectors, metadata, records, columns,
                 None if batch_size is None else check_int("batch_size", batch_size, 1, MAX_BATCH_RECORDS),
                 None if parallel is None else check_int("parallel", parallel, 1, MAX_PARALLEL), check_key(key))


def upsert(name: str, given: Input, report: Progress | None, most: int | None, *,
           asynchronous: bool = False) -> Steps[WriteResult]:
    """One pass over what can be read once; what can be read again is tried again if the schema was an old one.

    ``most``: bytes of a batch, or None.
    The schema of a remote collection is asked for anew before a generator is touched, for its rows are gone when read.
    """
    rows = given.rows
    flowing = asynchronous and hasattr(rows, "__aiter__")
    once = flowing or (rows is not None and not ingest.rereadable(rows))
    schema: CollectionSchema = yield AskSchema(name, now=once)
    columns: ingest.Source | None = None
    while True:
        tally = writing.Tally("upsert", 0, report)
        try:
            if flowing:
                parts = ingest.arow_parts(schema, rows, given.columns, given.batch_size)
                pairs: Any = abatches(parts, schema, given.batch_size, most)
                yield Apply(name, _anumbered(pairs, given.key), tally.applied, given.parallel)
                return tally.result
            source = columns or _source(schema, given)
            columns = source if rows is None else None  # what ids and metadata held is in lists by now
            tally = writing.Tally("upsert", source.total, report)
            numbered: Any = _numbered(batches(source.parts, schema, given.batch_size, source.whole, most),
                                      given.key)
            if asynchronous and source.whole and source.total >= _THREADED_ROWS:
                numbered = threaded(numbered)
            yield Apply(name, numbered, tally.applied, given.parallel)
            return tally.result
        except (InvalidArgument, CollectionNotFound) as error:
            tally.note(error)
            if once or tally.done:
                raise
            again: CollectionSchema | None = yield AskSchema(name, now=True, others=False)
            if again is None or again == schema:
                raise
            schema = again
        except Exception as error:
            tally.note(error)
            raise


def _numbered(pairs: Iterator[tuple[int, UpsertBatch]], key: bytes | None) -> Iterator[writing.Batch]:
    for number, (rows, batch) in enumerate(pairs):
        yield writing.Batch(rows, batch, token(key, number, batch))


async def _anumbered(pairs: AsyncIterator[tuple[int, UpsertBatch]], key: bytes | None) -> AsyncIterator[writing.Batch]:
    number = 0
    async for rows, batch in pairs:
        yield writing.Batch(rows, batch, token(key, number, batch))
        number += 1


def _source(schema: CollectionSchema, given: Input) -> ingest.Source:
    """Columns if there are vectors, else records, which may have come as the first argument."""
    ids, vectors, metadata = given.ids, given.vectors, given.metadata
    if given.records is not None:
        for argument, value in (("ids", ids), ("vectors", vectors), ("metadata", metadata)):
            if value is not None:
                raise InvalidArgument(argument, "cannot be given beside records", got=kind_of(value), limit="one form")
        return ingest.from_records(schema, given.records, given.columns, given.batch_size)
    if vectors is not None:
        if ids is None:
            raise InvalidArgument("ids", "are missing", got="None", limit="a sequence of int or str")
        return ingest.from_columns(ids, vectors, metadata)
    if metadata is not None:
        raise InvalidArgument("vectors", "are missing; to change metadata alone use update_metadata", got="None",
                              limit="(n, dim)")
    if ids is None:
        raise InvalidArgument("records", "nothing is given", got="None", limit="ids= and vectors=, or records")
    return ingest.from_records(schema, ids, given.columns, given.batch_size)


def _column_names(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise InvalidArgument("metadata_columns", f"must be a list of names, not {kind_of(value)}", got=kind_of(value),
                              limit="a list of str")
    return tuple(check_text("metadata_columns", name) for name in value)


def fetch(name: str, ids: Any, include: object) -> Steps[list[Record]]:
    wanted = check_include(include)
    listed = ingest.list_ids(ids)
    out: list[Record] = []
    if not listed:
        yield AskSchema(name)
    for _, part in writing.runs(listed):
        out += yield Ask("fetch", name, part, include_metadata="metadata" in wanted,
                         include_vectors="vector" in wanted)
    return out


def get(name: str, id: object, include: object) -> Steps[Record | None]:
    wanted = check_include(include)
    found: list[Record] = yield Ask("fetch", name, (check_id(id),), include_metadata="metadata" in wanted,
                                    include_vectors="vector" in wanted)
    return found[0] if found else None


def delete(name: str, ids: Any, filter: Any, key: object, report: Progress | None) -> Steps[WriteResult]:
    _one_of(ids, filter)
    once = check_key(key)
    if filter is not None:
        where = DeleteWhere(check_some(filter))
        result: WriteResult = yield _keyed("delete", name, where, once, 0)
        return result
    listed = list(dict.fromkeys(ingest.list_ids(ids)))
    yield AskSchema(name)
    writes = ((rows, _keyed("delete", name, DeleteIds(part), once, number))
              for number, (rows, part) in enumerate(writing.runs(listed)))
    return (yield from writing.apply_all(writes, "delete", len(listed), report))


def _keyed(method: str, name: str, command: Any, key: bytes | None, number: int) -> Op:
    if key is None:
        return Ask(method, name, command)
    own = writing.Batch(0, command, token(key, number, command))
    return AskWith(own.call, method, name, command)


def update_metadata(name: str, ids: Any, metadata: object, filter: Any, merge: object, key: object,
                    report: Progress | None) -> Steps[WriteResult]:
    _one_of(ids, filter)
    merging = check_flag("merge", merge)
    once = check_key(key)
    if once is not None and filter is not None:
        raise InvalidArgument("idempotency_key", "cannot be given with a filter, which may find other records the "
                              "second time; give ids", got="a key and a filter", limit="ids")
    where = None if filter is None else check_some(filter)
    listed = [] if filter is not None else ingest.list_ids(ids)
    patches = _patches(metadata, listed if filter is None else None)
    schema: CollectionSchema = yield AskSchema(name)
    most = max(1, MAX_BATCH_BYTES // row_bytes(schema))
    if where is not None:
        # All ids first: an updated record is written anew, and a scan would come upon it again.
        listed = yield from reading.ids_of(name, ScanRequest(where, limit=10_000, include_metadata=False))
        patches *= len(listed)
    writes = ((rows, _keyed("update_metadata", name, update, once, number))
              for number, (rows, update) in enumerate(writing.updates(listed, patches, merging, most)))
    return (yield from writing.apply_all(writes, "update", len(listed), report))


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


@dataclass(frozen=True, slots=True)
class Scan:
    """Checked arguments of a scan, all that need no schema."""

    request: ScanRequest
    skip: bool


def check_scan(filter: Any, include: object, batch_size: object, on_damage: object) -> Scan:
    wanted = check_include(include)
    limit = check_int("batch_size", batch_size, 1, MAX_BATCH_RECORDS)
    where = check_filter(filter)
    skip = check_choice("on_damage", on_damage, ("raise", "skip")) == "skip"
    return Scan(ScanRequest(where, limit, 0, "metadata" in wanted, "vector" in wanted), skip)


def first_page(name: str, scan: Scan) -> Steps[ScanRequest]:
    """The request of the first page, as small as large vectors need."""
    schema: CollectionSchema = yield AskSchema(name)
    request = scan.request
    limit = request.limit
    if request.include_vectors:
        limit = max(1, min(limit, MAX_BATCH_BYTES // row_bytes(schema)))
    return ScanRequest(request.filter, limit, 0, request.include_metadata, request.include_vectors)


def count(name: str, filter: Any) -> Steps[int]:
    found: int = yield Ask("count", name, check_filter(filter))
    return found


def schema(name: str) -> Steps[CollectionSchema]:
    found: CollectionSchema = yield AskSchema(name)
    return found


def describe(name: str) -> Steps[Description]:
    found: Description = yield Ask("describe", name)
    return found


def optimize(name: str, report: Progress | None) -> Steps[Description]:
    found: Description = yield Ask("optimize", name, on_progress=report)
    return found


def verify(name: str) -> Steps[dict[str, Any]]:
    found: dict[str, Any] = yield Ask("verify", name)
    return found

