"""Operations on the node itself: what it is, its API keys, its jobs."""

import asyncio
import time
from typing import Any, Final

from pydantic import Field

from vecdb.core.access import Grant, Key, Role
from vecdb.core.schema import check_name
from vecdb.rpc.admin import API, About, Keys
from vecdb.rpc.http import models
from vecdb.rpc.http.bodies import read
from vecdb.rpc.http.checks import check
from vecdb.rpc.http.operations import NoParams, Operation, Request
from vecdb.rpc.http.replies import Reply, ok
from vecdb.services.key_calls import KeyCalls

TAG: Final = "admin"


class JobsParams(NoParams):
    collection: str | None = Field(default=None, min_length=1, max_length=128, description="of this one alone")


class AdminOperations:
    """``keys``: None where this process has no key ring."""

    def __init__(self, keys: Keys | None, about: About) -> None:
        self._ring = KeyCalls(keys)
        self._about = about
        self._began = time.monotonic()

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._began

    async def server(self, request: Request) -> Reply:
        told = dict(await asyncio.get_running_loop().run_in_executor(None, self._about))
        out = {"version": str(told.pop("version")), "api": API, "node_id": str(told.pop("node_id")),
               "uptime_s": self.uptime_s, "details": told if request.principal.everywhere else {}}
        return ok(out)

    async def create_key(self, request: Request) -> Reply:
        given = check(models.CreateKey, read(request.body))
        grants = [Grant(Role.of(one.role), tuple(one.collections)) for one in given.grants]
        key, secret = await self._ring(lambda keys: keys.create(given.name, grants, given.ttl_s))
        request.noted["id"] = key.id
        return ok({"key": _key(key), "secret": secret}, 201, (("location", f"/v1/keys/{key.id}"),))

    async def list_keys(self, request: Request) -> Reply:
        return ok({"keys": [_key(one) for one in await self._ring(lambda keys: keys.list())]})

    async def rotate_key(self, request: Request) -> Reply:
        given = check(models.RotateKey, read(request.body or b"{}"))
        key, secret = await self._ring(lambda keys: keys.rotate(request.path["key"], given.overlap_s))
        return ok({"key": _key(key), "secret": secret})

    async def revoke_key(self, request: Request) -> Reply:
        await self._ring(lambda keys: keys.revoke(request.path["key"]))
        return Reply(204)

    async def jobs(self, request: Request) -> Reply:
        name = request.params.collection
        if name is not None:
            request.principal.require(Role.READ, check_name(name))
        found = await request.node.jobs(name, request.call)
        return ok({"jobs": [_job(one) for one in found
                            if request.principal.allows(Role.READ, str(one["collection"]))]})

    def operations(self) -> list[Operation]:
        return [
            Operation("GET", "/v1/server", "getServer", "Admin/GetServer", "What this node is", TAG, self.server,
                      {200: models.Server}, role=None),
            Operation("GET", "/v1/jobs", "listJobs", "Admin/ListJobs", "Background jobs", TAG, self.jobs,
                      {200: models.Jobs}, role=None, params=JobsParams, errors=(404,)),
            Operation("GET", "/v1/keys", "listKeys", "Admin/ListKeys", "All API keys, without their secrets", TAG,
                      self.list_keys, {200: models.Keys}, role=Role.ADMIN, errors=(501,), audited=True),
            Operation("POST", "/v1/keys", "createKey", "Admin/CreateKey", "Make an API key; its secret is shown once",
                      TAG, self.create_key, {201: models.KeyWithSecret}, role=Role.ADMIN, bodies=(models.CreateKey,),
                      errors=(501,), audited=True),
            Operation("POST", "/v1/keys/{key}:rotate", "rotateKey", "Admin/RotateKey", "A new secret for the same key",
                      TAG, self.rotate_key, {200: models.KeyWithSecret}, role=Role.ADMIN, bodies=(models.RotateKey,),
                      optional_body=True, errors=(404, 501), audited=True),
            Operation("DELETE", "/v1/keys/{key}", "revokeKey", "Admin/RevokeKey", "End a key at once and for good", TAG,
                      self.revoke_key, {204: None}, role=Role.ADMIN, errors=(404, 501), audited=True),
        ]


def _key(key: Key) -> dict[str, Any]:
    return {"id": key.id, "name": key.name, "created_s": key.created_s, "expires_s": key.expires_s,
            "last_used_s": key.last_used_s, "revoked": key.revoked,
            "grants": [{"role": one.role.word, "collections": list(one.collections)} for one in key.grants]}


def _job(job: dict[str, Any]) -> dict[str, Any]:
    words = {name: str(job.get(name) or "") for name in ("collection", "kind", "state", "stage", "error")}
    return {**words, "done": int(job.get("done") or 0), "total": int(job.get("total") or 0)}
