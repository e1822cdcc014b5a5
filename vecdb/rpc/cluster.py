"""The Cluster service: the map of shards, for clients that ask their nodes themselves."""

from typing import Protocol

from vecdb.core.access import Role
from vecdb.core.calls import Call
from vecdb.core.errors import Unsupported
from vecdb.core.schema import check_name
from vecdb.core.shard_map import ShardMap
from vecdb.rpc.methods import Context, Method
from vecdb.v1 import cluster_pb2 as pb
from vecdb.wire.shard_map import map_to_wire


class Mapped(Protocol):
    """A node that knows where shards are: :class:`vecdb.services.coordinator.ReplicatedNode`."""

    async def shard_map(self, name: str, call: Call) -> ShardMap: ...


class ClusterServicer:
    """``node``: None where there is no cluster."""

    def __init__(self, node: Mapped | None) -> None:
        self._node = node

    def methods(self) -> list[Method]:
        return [Method("Cluster/ShardMap", pb.ShardMapRequest, Role.READ, lambda message: str(message.collection),
                       unary=self.shard_map)]

    async def shard_map(self, message: pb.ShardMapRequest, context: Context) -> pb.ShardMapReply:
        if self._node is None:
            raise Unsupported("ShardMap: this server is alone, and holds collections in one piece")
        return map_to_wire(await self._node.shard_map(check_name(message.collection), context.call))
