"""The server itself: what it is, its API keys, its jobs, its digests; and the shards of its cluster."""

from collections.abc import Sequence
from typing import Any

import orjson

from vecdb.client.remote import methods as m
from vecdb.client.remote.calling import LONG_S, Caller, read
from vecdb.client.remote.io import Rpc
from vecdb.client.steps import Steps
from vecdb.core.access import Grant, Key, NewKey, Role
from vecdb.core.calls import Call
from vecdb.core.shard_map import ShardMap
from vecdb.core.shards import ShardInfo, ShardVerification
from vecdb.v1 import admin_pb2 as pb
from vecdb.v1 import cluster_pb2, shards_pb2
from vecdb.wire.shard_map import map_from_wire
from vecdb.wire.shards import shard_from_wire, verification_from_wire


class AdminProcedures:
    """Keys are :class:`~vecdb.core.access.Key`; a secret is told once, when it is made."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def server(self, call: Call | None = None) -> Steps[dict[str, Any]]:
        """``version api node_id uptime_s`` and what else the server says of itself."""
        reply = read(pb.GetServerReply, (yield from self._caller.call(m.SERVER, b"", call)))
        details = orjson.loads(reply.details_json) if reply.details_json else {}
        return {"version": reply.version, "api": reply.api, "node_id": reply.node_id, "uptime_s": reply.uptime_s,
                **details}

    def create_key(self, name: str, grants: Sequence[Grant], ttl_s: float = 0.0,
                   call: Call | None = None) -> Steps[NewKey]:
        """Not repeated when its end is not known: a key that nobody holds would stay behind."""
        message = pb.CreateKeyRequest(name=name, ttl_s=ttl_s, grants=[
            pb.Grant(role=pb.Role.ValueType(int(grant.role)), collections=grant.collections) for grant in grants])
        return (yield from self._secret(m.CREATE_KEY, message.SerializeToString(), call))

    def rotate_key(self, id: str, overlap_s: float = 0.0, call: Call | None = None) -> Steps[NewKey]:
        message = pb.RotateKeyRequest(id=id, overlap_s=overlap_s)
        return (yield from self._secret(m.ROTATE_KEY, message.SerializeToString(), call))

    def _secret(self, rpc: Rpc, payload: bytes, call: Call | None) -> Steps[NewKey]:
        raw = yield from self._caller.call(rpc, payload, call, write=True, repeat=False)
        reply = read(pb.CreateKeyReply, raw)
        return NewKey(_key(reply.key), reply.secret)

    def list_keys(self, call: Call | None = None) -> Steps[list[Key]]:
        reply = yield from self._caller.call(m.LIST_KEYS, b"", call)
        return [_key(one) for one in read(pb.ListKeysReply, reply).keys]

    def revoke_key(self, id: str, call: Call | None = None) -> Steps[None]:
        yield from self._caller.call(m.REVOKE_KEY, pb.RevokeKeyRequest(id=id).SerializeToString(), call, write=True)

    def jobs(self, name: str | None = None, call: Call | None = None) -> Steps[list[dict[str, Any]]]:
        payload = pb.ListJobsRequest(collection=name or "").SerializeToString()
        reply = read(pb.ListJobsReply, (yield from self._caller.call(m.JOBS, payload, call)))
        return [{"collection": job.collection, "kind": job.kind, "state": job.state, "stage": job.stage,
                 "done": job.done, "total": job.total, "error": job.error} for job in reply.jobs]

    def verify(self, name: str, call: Call | None = None) -> Steps[dict[str, Any]]:
        """Reads every record: without a deadline of the caller's it has an hour."""
        payload = pb.VerifyRequest(collection=name).SerializeToString()
        reply = read(pb.VerifyReply, (yield from self._caller.call(m.VERIFY, payload, call, default_s=LONG_S)))
        return {"records": reply.records, "log_index": reply.log_index, "digest": reply.digest,
                "computed": reply.computed, "equal": reply.equal}


class ShardsProcedures:
    """Shards and their replicas are those of :mod:`vecdb.core.shards`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def shards(self, name: str | None = None, call: Call | None = None) -> Steps[list[ShardInfo]]:
        payload = shards_pb2.ListShardsRequest(collection=name or "").SerializeToString()
        reply = read(shards_pb2.ListShardsReply, (yield from self._caller.call(m.SHARDS, payload, call)))
        return [shard_from_wire(one) for one in reply.shards]

    def shard_map(self, name: str, call: Call | None = None) -> Steps[ShardMap]:
        payload = cluster_pb2.ShardMapRequest(collection=name).SerializeToString()
        reply = yield from self._caller.call(m.SHARD_MAP, payload, call)
        return map_from_wire(read(cluster_pb2.ShardMapReply, reply))

    def verify_shard(self, name: str, deep: bool = False, call: Call | None = None) -> Steps[ShardVerification]:
        """It may read every record of every replica: without a deadline of the caller's it has an hour."""
        payload = shards_pb2.VerifyShardRequest(collection=name, deep=deep).SerializeToString()
        reply = yield from self._caller.call(m.VERIFY_SHARD, payload, call, default_s=LONG_S)
        return verification_from_wire(read(shards_pb2.VerifyShardReply, reply))

    def transfer_leader(self, name: str, to: str | None = None, call: Call | None = None) -> Steps[None]:
        """Made again when its end is not known: to hand over to who leads already is done at once."""
        payload = shards_pb2.TransferLeaderRequest(collection=name, to=to or "").SerializeToString()
        yield from self._caller.call(m.TRANSFER_LEADER, payload, call, write=True, repeat=to is not None)


def _key(key: pb.Key) -> Key:
    grants = tuple(Grant(Role(int(grant.role)), tuple(grant.collections)) for grant in key.grants)
    return Key(key.id, key.name, grants, key.created_s, key.expires_s, key.last_used_s, key.revoked)
