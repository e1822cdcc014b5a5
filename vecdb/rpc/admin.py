"""The Admin service: the node itself, API keys, jobs, digests.  Every change is audited by the edge."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from vecdb.core.access import Grant, Key, Role
from vecdb.ports.node import Node
from vecdb.rpc.methods import Context, Method
from vecdb.services.key_calls import KeyCalls
from vecdb.v1 import admin_pb2 as pb

API: str = "v1"


class Keys(Protocol):
    """The key ring; calls wait for the disk."""

    def create(self, name: str, grants: Sequence[Grant], ttl_s: float = 0.0) -> tuple[Key, str]: ...

    def rotate(self, id: str, overlap_s: float = 0.0) -> tuple[Key, str]: ...

    def revoke(self, id: str) -> Key: ...

    def list(self) -> "list[Key]": ...


class About(Protocol):
    """What the node says of itself."""

    def __call__(self) -> dict[str, Any]: ...


class AdminServicer:
    """``about()``: ``version node_id`` and details, asked in a thread, as it looks into folders; ``keys`` None
    where this process has no key ring.
    """

    def __init__(self, node: Node, keys: Keys | None, about: About) -> None:
        self._node = node
        self._ring = KeyCalls(keys)
        self._about = about
        self._began = time.monotonic()

    def methods(self) -> list[Method]:
        return [
            Method("Admin/GetServer", pb.GetServerRequest, Role.READ, unary=self.get_server),
            Method("Admin/CreateKey", pb.CreateKeyRequest, Role.ADMIN, audited=True, unary=self.create_key),
            Method("Admin/ListKeys", pb.ListKeysRequest, Role.ADMIN, audited=True, unary=self.list_keys),
            Method("Admin/RotateKey", pb.RotateKeyRequest, Role.ADMIN, audited=True, unary=self.rotate_key),
            Method("Admin/RevokeKey", pb.RevokeKeyRequest, Role.ADMIN, audited=True, unary=self.revoke_key),
            Method("Admin/ListJobs", pb.ListJobsRequest, Role.READ, unary=self.list_jobs),
            Method("Admin/Verify", pb.VerifyRequest, Role.READ, lambda message: message.collection,
                   unary=self.verify),
        ]

    async def get_server(self, message: pb.GetServerRequest, context: Context) -> pb.GetServerReply:
        told = dict(await asyncio.get_running_loop().run_in_executor(None, self._about))
        return pb.GetServerReply(version=told.pop("version"), api=API, node_id=told.pop("node_id"),
                                 uptime_s=time.monotonic() - self._began,
                                 details_json=orjson.dumps(told) if context.principal.everywhere else b"{}")

    async def create_key(self, message: pb.CreateKeyRequest, context: Context) -> pb.CreateKeyReply:
        grants = [Grant(Role.of(grant.role), tuple(grant.collections)) for grant in message.grants]
        key, secret = await self._ring(lambda keys: keys.create(message.name, grants, message.ttl_s))
        return pb.CreateKeyReply(key=_key(key), secret=secret)

    async def list_keys(self, message: pb.ListKeysRequest, context: Context) -> pb.ListKeysReply:
        return pb.ListKeysReply(keys=[_key(key) for key in await self._ring(lambda keys: keys.list())])

    async def rotate_key(self, message: pb.RotateKeyRequest, context: Context) -> pb.CreateKeyReply:
        key, secret = await self._ring(lambda keys: keys.rotate(message.id, message.overlap_s))
        return pb.CreateKeyReply(key=_key(key), secret=secret)

    async def revoke_key(self, message: pb.RevokeKeyRequest, context: Context) -> pb.RevokeKeyReply:
        await self._ring(lambda keys: keys.revoke(message.id))
        return pb.RevokeKeyReply()

    async def list_jobs(self, message: pb.ListJobsRequest, context: Context) -> pb.ListJobsReply:
        """Jobs of one collection, or of all that the caller may read."""
        if message.collection:
            context.principal.require(Role.READ, message.collection)
        jobs = await self._node.jobs(message.collection or None, context.call)
        seen = [job for job in jobs if context.principal.allows(Role.READ, str(job["collection"]))]
        return pb.ListJobsReply(jobs=[_job(job) for job in seen])

    async def verify(self, message: pb.VerifyRequest, context: Context) -> pb.VerifyReply:
        found = await self._node.verify(message.collection, context.call)
        return pb.VerifyReply(records=found["records"], log_index=found["log_index"], digest=found["digest"],
                              computed=found["computed"], equal=found["equal"])


def _key(key: Key) -> pb.Key:
    grants = [pb.Grant(role=pb.Role.ValueType(int(grant.role)), collections=grant.collections) for grant in key.grants]
    return pb.Key(id=key.id, name=key.name, grants=grants, created_s=key.created_s, expires_s=key.expires_s,
                  last_used_s=key.last_used_s, revoked=key.revoked)


def _job(job: dict[str, Any]) -> pb.Job:
    return pb.Job(collection=str(job.get("collection", "")), kind=str(job.get("kind", "")),
                  state=str(job.get("state", "")), stage=str(job.get("stage", "")), done=int(job.get("done") or 0),
                  total=int(job.get("total") or 0), error=str(job.get("error") or ""))
