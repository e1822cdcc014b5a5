"""Operations on whole collections."""

import dataclasses
from typing import Any, Final, Literal

from pydantic import Field

from vecdb.core.access import Role
from vecdb.core.layout import Layout
from vecdb.core.query import Description
from vecdb.core.schema import CollectionSchema, IndexSpec, Metric, VectorType, check_name
from vecdb.rpc.http import models
from vecdb.rpc.http.background import Background
from vecdb.rpc.http.bodies import read
from vecdb.rpc.http.checks import check
from vecdb.rpc.http.operations import NoParams, Operation, Request
from vecdb.rpc.http.replies import Reply, ok
from vecdb.rpc.http.seeing import ReadParams, see, see_by_parameters

TAG: Final = "collections"


class OptimizeParams(NoParams):
    """``wait=false`` answers at once; the work goes on and is seen among the jobs."""

    wait: Literal["true", "false"] = Field(default="true", description="false: answer 202 at once and go on")


async def create(request: Request) -> Reply:
    given = check(models.CreateCollection, read(request.body))
    schema = CollectionSchema(
        name=given.name, dim=given.dim, metric=Metric(given.metric), vector_type=VectorType(given.vector_type),
        index=IndexSpec(**given.index.model_dump()),
        indexed_fields=None if given.indexed_fields is None else tuple(given.indexed_fields))
    request.principal.require(Role.ADMIN, schema.name)
    request.path["name"] = schema.name
    layout = Layout(given.shards, given.replication_factor, given.shard_key, given.expected_records)
    await request.node.create_collection(schema, request.call, layout)
    return ok(schema.to_json(), 201, (("location", f"/v1/collections/{schema.name}"),))


async def list_all(request: Request) -> Reply:
    names = await request.node.list_collections(request.call)
    return ok({"collections": sorted(request.principal.visible(names))})


async def describe(request: Request) -> Reply:
    name = check_name(request.path["name"])
    see_by_parameters(request)
    schema = await request.node.schema(name, request.call)
    return ok(_description(await request.node.describe(name, request.call), schema))


def _description(described: Description, schema: CollectionSchema | None = None) -> dict[str, Any]:
    out = dataclasses.asdict(described)
    out["collection"] = None if schema is None else schema.to_json()
    return out


async def schema(request: Request) -> Reply:
    found = await request.node.schema(check_name(request.path["name"]), request.call)
    return ok(found.to_json())


async def drop(request: Request) -> Reply:
    await request.node.drop_collection(check_name(request.path["name"]), request.call)
    return Reply(204)


async def verify(request: Request) -> Reply:
    check(models.Nothing, read(request.body or b"{}"))
    found = await request.node.verify(check_name(request.path["name"]), request.call)
    return ok({name: found[name] for name in models.Verified.model_fields})


def operations(background: Background) -> list[Operation]:
    """``background`` runs what nobody waits for."""

    async def optimize(request: Request) -> Reply:
        see(request, check(models.Read, read(request.body or b"{}")))
        name = check_name(request.path["name"])
        if request.params.wait == "true":
            return ok(_description(await request.node.optimize(name, request.call)))
        await request.node.schema(name, request.call)
        background.start(name, request)
        return ok({"accepted": True, "jobs": f"/v1/jobs?collection={name}"}, 202)

    one = "/v1/collections/{name}"
    return [
        Operation("GET", "/v1/collections", "listCollections", "Collections/List",
                  "Names of the collections the caller may read", TAG, list_all, {200: models.CollectionList},
                  role=None),
        Operation("POST", "/v1/collections", "createCollection", "Collections/Create", "Make a collection", TAG,
                  create, {201: models.Collection}, role=None, bodies=(models.CreateCollection,), errors=(409,),
                  audited=True),
        Operation("GET", one, "describeCollection", "Collections/Describe",
                  "Records, segments, bytes and the state of the index", TAG, describe, {200: models.Description},
                  params=ReadParams, errors=(404,)),
        Operation("DELETE", one, "dropCollection", "Collections/Drop", "Delete a collection and its records for good",
                  TAG, drop, {204: None}, role=Role.ADMIN, errors=(404,), audited=True),
        Operation("GET", one + "/schema", "getCollection", "Collections/Get", "What the collection is", TAG, schema,
                  {200: models.Collection}, errors=(404,)),
        Operation("POST", one + ":optimize", "optimizeCollection", "Collections/Optimize",
                  "Seal, merge and build until nothing is left to do", TAG, optimize,
                  {200: models.Description, 202: models.Accepted}, role=Role.WRITE, params=OptimizeParams,
                  bodies=(models.Read,), optional_body=True, errors=(404,), long=True),
        Operation("POST", one + ":verify", "verifyCollection", "Admin/Verify",
                  "Read every record and hold it against the digest that writes keep up", TAG, verify,
                  {200: models.Verified}, bodies=(models.Nothing,), optional_body=True, errors=(404,), long=True),
    ]
