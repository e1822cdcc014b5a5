"""The shards of a node that is alone: each collection is one, with one replica, which leads."""

from vecdb.core.calls import Call
from vecdb.core.errors import DataCorrupted, InvalidArgument, Unsupported
from vecdb.core.shards import ReplicaDigest, ReplicaInfo, ShardInfo, ShardVerification
from vecdb.ports.node import Node

GROUP = 0
"""What WriteResult says of a shard outside a cluster."""


class LoneShards:
    """A :class:`vecdb.ports.shards.Shards` over a node without a cluster."""

    def __init__(self, node: Node, node_id: str) -> None:
        self._node = node
        self._node_id = node_id
        self._replica = f"{node_id}/{GROUP}"

    async def list(self, name: str | None, call: Call) -> "list[ShardInfo]":
        names = sorted(await self._node.list_collections(call)) if name is None else [name]
        return [await self._shard(one, call) for one in names]

    async def _shard(self, name: str, call: Call) -> ShardInfo:
        described = await self._node.describe(name, call)
        at = int(described.details.get("log_index", 0))
        return ShardInfo(name, GROUP, self._replica, (
            ReplicaInfo(self._replica, self._node_id, "ok", "leader", commit=at, applied=at, last=at, lag=0,
                        behind=0),))

    async def verify(self, name: str, call: Call, *, deep: bool = False) -> ShardVerification:
        """Always deep: a single replica can only be held against what it remembers, and files against checksums."""
        try:
            found = await self._node.verify(name, call)
        except DataCorrupted as error:
            replica = ReplicaDigest(self._replica, "damaged", error=error.message)
            return ShardVerification(name, GROUP, 0, (replica,), agree=False, complete=True)
        equal = bool(found["equal"])
        why = "" if equal else f"{found.get('differing', 'some')} records are not what was written"
        replica = ReplicaDigest(self._replica, "ok" if equal else "damaged", str(found["digest"]),
                                int(found["records"]), str(found["computed"]), why)
        return ShardVerification(name, GROUP, int(found["log_index"]), (replica,), agree=equal, complete=True)

    async def transfer(self, name: str, to: str | None, call: Call) -> None:
        if name:
            await self._node.schema(name, call)
        if to is None or to in (self._node_id, self._replica):
            raise Unsupported(f"the node {self._node_id} is alone: there is nobody to hand the leadership to")
        raise InvalidArgument("to", f"{to[:100]!r} holds no replica; the node {self._node_id} is alone",
                              got=to[:100], limit=self._node_id)
