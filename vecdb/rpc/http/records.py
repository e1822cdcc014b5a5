"""Operations on records."""

import base64
import binascii
import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeVar

from pydantic import Field

from vecdb.core.access import Role
from vecdb.core.errors import InvalidArgument, InvalidId, LimitExceeded
from vecdb.core.filters.tree import Node
from vecdb.core.fingerprint import token_of
from vecdb.core.ids import RecordId, check_id
from vecdb.core.limits import MAX_BATCH_BYTES, MAX_BATCH_RECORDS
from vecdb.core.query import Count, Cursor, ScanRequest
from vecdb.core.records import Command, DeleteIds, DeleteWhere, Record, UpdateMetadata, UpsertBatch, WriteResult
from vecdb.core.schema import CollectionSchema, check_name
from vecdb.core.vectors import row_bytes
from vecdb.rpc.http import arrays, models
from vecdb.rpc.http.bodies import read
from vecdb.rpc.http.checks import check, one_of
from vecdb.rpc.http.models import MAX_PAGE, Encoding
from vecdb.rpc.http.operations import NoParams, Operation, Request
from vecdb.rpc.http.replies import Refused, Reply, dumps, ok, runs
from vecdb.rpc.http.seeing import ReadParams, see, see_by_parameters

TAG: Final = "records"
F = TypeVar("F", models.Scan, models.Count)
_DECIMAL: Final = re.compile(r"0|[1-9]\d{0,18}", re.ASCII)
_KEY: Final = re.compile(r"[\x21-\x7e]{1,64}")


class IdParams(NoParams):
    """``7`` in a path is the integer unless ``id_type=string`` says otherwise."""

    id_type: Literal["auto", "integer", "string"] = Field(
        default="auto", description="auto: decimal digits are an integer, all else is a string")


class GetParams(IdParams, ReadParams):
    include: str = Field(default="metadata,vector", pattern=r"^((metadata|vector)(,(metadata|vector))?)?$",
                         description="what to return, separated by a comma")
    encoding: Encoding = "list"


def path_id(request: Request) -> RecordId:
    """The record id in the path."""
    text, kind = request.path["id"], request.params.id_type
    digits = _DECIMAL.fullmatch(text) is not None
    if kind == "integer" and not digits:
        raise InvalidId("id", "is no decimal integer", got=text[:64], limit="0..2**63-1")
    return check_id(int(text) if digits and kind != "string" else text)


async def set_token(request: Request, command: Command) -> None:
    """The write's token from ``Idempotency-Key``."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return
    if not _KEY.fullmatch(key):
        raise InvalidArgument("idempotency-key", "must be 1 to 64 printable ASCII characters without blanks",
                              got=len(key), limit="1..64 characters")
    request.call.token = await request.apart(len(request.body), token_of, key.encode(), command)


async def _schema(request: Request) -> CollectionSchema:
    return await request.node.schema(check_name(request.path["name"]), request.call)


def _written(result: WriteResult) -> Reply:
    out = dataclasses.asdict(result)
    del out["outcomes"], out["positions"]
    if result.positions:
        out["positions"] = [{"shard": shard, "log_index": log_index} for shard, log_index in result.positions]
    return ok(out)


async def upsert(request: Request) -> Reply:
    schema = await _schema(request)
    batch = await request.apart(len(request.body), _batch, schema, request.body)
    await set_token(request, batch)
    return _written(await request.node.upsert(schema.name, batch, request.call))


def _batch(schema: CollectionSchema, body: bytes) -> UpsertBatch:
    members = read(body)
    if "records" in members and not ("ids" in members or "vectors" in members):
        return arrays.upsert_records(schema, check(models.UpsertRecords, members).records)
    given = check(models.UpsertColumns, members)
    return arrays.upsert_columns(schema, given.ids, given.vectors, given.metadata)


async def put(request: Request) -> Reply:
    schema = await _schema(request)
    identity = path_id(request)
    given = await request.apart(len(request.body), lambda: check(models.PutRecord, read(request.body)))
    batch = arrays.upsert_records(schema, [{"id": identity, "vector": given.vector, "metadata": given.metadata}])
    await set_token(request, batch)
    return _written(await request.node.upsert(schema.name, batch, request.call))


async def delete_one(request: Request) -> Reply:
    name, command = check_name(request.path["name"]), DeleteIds((path_id(request),))
    await set_token(request, command)
    return _written(await request.node.delete(name, command, request.call))


async def delete(request: Request) -> Reply:
    name = check_name(request.path["name"])
    command = await request.apart(len(request.body), _delete, request.body)
    await set_token(request, command)
    return _written(await request.node.delete(name, command, request.call))


def _delete(body: bytes) -> DeleteIds | DeleteWhere:
    given = check(models.DeleteRecords, read(body))
    if one_of(given, "ids", "filter") == "filter":
        return DeleteWhere(arrays.some(given.filter))
    return DeleteIds(tuple(dict.fromkeys(arrays.ids(given.ids, MAX_BATCH_RECORDS))))


async def update(request: Request) -> Reply:
    schema = await _schema(request)
    command = await request.apart(len(request.body), _update, schema, request.body)
    await set_token(request, command)
    return _written(await request.node.update_metadata(schema.name, command, request.call))


def _update(schema: CollectionSchema, body: bytes) -> UpdateMetadata:
    given = check(models.UpdateMetadata, read(body))
    # An updated record is written anew, with its vector.
    most = min(MAX_BATCH_RECORDS, max(1, MAX_BATCH_BYTES // row_bytes(schema)))
    listed, patches = arrays.patches(given.metadata, arrays.ids(given.ids, most))
    size = len(listed) * row_bytes(schema) + sum(map(len, patches))
    if size > MAX_BATCH_BYTES:
        raise LimitExceeded("metadata", f"{size} bytes in one batch, vectors included, more than {MAX_BATCH_BYTES}",
                            got=size, limit=MAX_BATCH_BYTES)
    return UpdateMetadata(listed, patches, given.merge)


async def get(request: Request) -> Reply:
    schema = await _schema(request)
    include = request.params.include.split(",")
    identity = path_id(request)
    see_by_parameters(request)
    found = await request.node.fetch(schema.name, (identity,), request.call, include_metadata="metadata" in include,
                                     include_vectors="vector" in include)
    if not found:
        raise Refused(404, "NOT_FOUND", "RecordNotFound", f"no record of the id {identity!r:.150}", id=identity,
                      collection=schema.name)
    return ok(_record(found[0], include, request.params.encoding))


def _record(record: Record, include: Sequence[str], encoding: Encoding) -> dict[str, Any]:
    out: dict[str, Any] = {"id": record.id}
    if "metadata" in include:
        out["metadata"] = record.metadata
    if record.vector is not None:
        out["vector"] = arrays.to_json(record.vector, encoding)
    return out


def refuse_bytes(schema: CollectionSchema, count: int, argument: str) -> None:
    """Refuse more vectors than fit one answer."""
    size = count * row_bytes(schema)
    if size > MAX_BATCH_BYTES:
        raise LimitExceeded(argument, f"the vectors of {count} records take {size} bytes, more than {MAX_BATCH_BYTES} "
                            "in one call", got=size, limit=MAX_BATCH_BYTES)


async def fetch(request: Request) -> Reply:
    schema = await _schema(request)
    given = await request.apart(len(request.body), lambda: check(models.Fetch, read(request.body)))
    listed = arrays.ids(given.ids, MAX_PAGE)
    see(request, given)
    if "vector" in given.include:
        refuse_bytes(schema, len(listed), "ids")
    found = await request.node.fetch(schema.name, listed, request.call, include_metadata="metadata" in given.include,
                                     include_vectors="vector" in given.include)
    each = item_bytes(schema, given.include)
    return await request.apart(len(found) * each, lambda: Reply(200, dumps(
        {"records": runs([_record(one, given.include, given.encoding) for one in found], each)})))


def item_bytes(schema: CollectionSchema, include: Sequence[str]) -> int:
    """What one record takes as JSON, roughly."""
    return 64 + (512 if "metadata" in include else 0) + (12 * schema.row_items if "vector" in include else 0)


async def scan(request: Request) -> Reply:
    schema = await _schema(request)
    given, where = await request.apart(len(request.body), _filtered, models.Scan, request.body)
    see(request, given)
    metadata, with_vectors = "metadata" in given.include, "vector" in given.include
    limit = given.limit
    if with_vectors:
        limit = max(1, min(limit, MAX_BATCH_BYTES // row_bytes(schema)))
    page = await request.node.scan(schema.name, ScanRequest(where, limit, _after(given.after), metadata, with_vectors),
                                   request.call)
    each = item_bytes(schema, given.include)

    def write() -> Reply:
        records: list[dict[str, Any]] = [{"id": one} for one in page.ids]
        if page.metadata is not None:
            records = [{**one, "metadata": extra} for one, extra in zip(records, page.metadata, strict=True)]
        if page.vectors is not None:
            records = [{**one, "vector": arrays.to_json(row, given.encoding)}
                       for one, row in zip(records, page.vectors, strict=True)]
        out = {"records": runs(records, each), "cursor": _cursor(page.cursor)}
        return Reply(200, dumps({**out, "missing": page.missing} if page.missing else out))

    return await request.apart(len(page.ids) * each, write)


def _after(given: int | str) -> Cursor:
    """The cursor of a page, as :func:`_cursor` wrote it."""
    if isinstance(given, int):
        return given
    try:
        return base64.b64decode(given + "=" * (-len(given) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise InvalidArgument("after", "is no cursor of a page", got="string", limit="the cursor of the page before"
                              ) from None


def _cursor(cursor: Cursor | None) -> int | str | None:
    return base64.urlsafe_b64encode(cursor).decode().rstrip("=") if isinstance(cursor, bytes) else cursor


async def count(request: Request) -> Reply:
    name = check_name(request.path["name"])
    given, where = await request.apart(len(request.body), _filtered, models.Count, request.body or b"{}")
    see(request, given)
    found = await request.node.count(name, where, request.call)
    missing = found.missing if isinstance(found, Count) else ()
    return ok({"count": int(found), "missing": missing} if missing else {"count": found})


def _filtered(model: type[F], body: bytes) -> tuple[F, Node | None]:
    """A body with a filter, which may be as long as the body."""
    given = check(model, read(body))
    return given, arrays.where(given.filter)


def operations() -> list[Operation]:
    many = "/v1/collections/{name}/records"
    one = many + "/{id}"
    upserts = (models.UpsertColumns, models.UpsertRecords)
    return [
        Operation("POST", many, "upsertRecords", "Records/Upsert", "Insert records, or replace those that exist", TAG,
                  upsert, {200: models.WriteResult}, role=Role.WRITE, bodies=upserts, errors=(404,), write=True),
        Operation("PUT", many, "putRecords", "Records/Upsert", "The same as POST", TAG, upsert,
                  {200: models.WriteResult}, role=Role.WRITE, bodies=upserts, errors=(404,), write=True),
        Operation("PATCH", many, "updateMetadata", "Records/UpdateMetadata",
                  "Change metadata of records; ids that do not exist are counted as missing", TAG, update,
                  {200: models.WriteResult}, role=Role.WRITE, bodies=(models.UpdateMetadata,), errors=(404,),
                  write=True),
        Operation("POST", many + ":fetch", "fetchRecords", "Records/Fetch",
                  "The records that exist, in the order asked", TAG, fetch, {200: models.Records},
                  bodies=(models.Fetch,), errors=(404,)),
        Operation("POST", many + ":delete", "deleteRecords", "Records/Delete", "Delete records by ids or by filter",
                  TAG, delete, {200: models.WriteResult}, role=Role.WRITE, bodies=(models.DeleteRecords,),
                  errors=(404,), write=True),
        Operation("POST", many + ":scan", "scanRecords", "Records/Scan", "A page of records, in a stable order", TAG,
                  scan, {200: models.Page}, bodies=(models.Scan,), errors=(404,), long=True),
        Operation("POST", many + ":count", "countRecords", "Records/Count", "How many records, or how many match", TAG,
                  count, {200: models.CountReply}, bodies=(models.Count,), optional_body=True, errors=(404,)),
        Operation("GET", one, "getRecord", "Records/Fetch", "One record", TAG, get, {200: models.Record},
                  params=GetParams, errors=(404,)),
        Operation("PUT", one, "putRecord", "Records/Upsert", "Insert or replace one record", TAG, put,
                  {200: models.WriteResult}, role=Role.WRITE, bodies=(models.PutRecord,), params=IdParams,
                  errors=(404,), write=True),
        Operation("DELETE", one, "deleteRecord", "Records/Delete", "Delete one record; missing is 1 if there was none",
                  TAG, delete_one, {200: models.WriteResult}, role=Role.WRITE, params=IdParams, errors=(404,),
                  write=True),
    ]
