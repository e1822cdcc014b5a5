"""The Shards service: who holds what, who leads, whether all replicas hold the same."""

from vecdb.core.access import Role
from vecdb.core.schema import check_shard, collection_of
from vecdb.ports.shards import Shards
from vecdb.rpc.methods import Context, Method
from vecdb.v1 import shards_pb2 as pb
from vecdb.wire.shards import shard_to_wire, verification_to_wire


def _collection(message: pb.VerifyShardRequest | pb.TransferLeaderRequest) -> str:
    """What rights are asked for: a shard of several is named ``docs@7``."""
    return collection_of(message.collection)


class ShardsServicer:
    """Reading is for whoever reads the collection; handing leadership over is an admin's, and audited."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def methods(self) -> list[Method]:
        return [
            Method("Shards/ListShards", pb.ListShardsRequest, Role.READ, unary=self.list_shards),
            Method("Shards/VerifyShard", pb.VerifyShardRequest, Role.READ, _collection,
                   unary=self.verify_shard),
            Method("Shards/TransferLeader", pb.TransferLeaderRequest, Role.ADMIN, _collection,
                   audited=True, unary=self.transfer_leader),
        ]

    async def list_shards(self, message: pb.ListShardsRequest, context: Context) -> pb.ListShardsReply:
        """Of one collection, or of all that the caller may read; the control group is told whom all is told."""
        name = message.collection
        if name:
            context.principal.require(Role.READ, name)
        shards = await self._shards.list(name or None, context.call)
        seen = [one for one in shards
                if (context.principal.allows(Role.READ, one.collection) if one.collection
                    else context.principal.everywhere)]
        return pb.ListShardsReply(shards=[shard_to_wire(one) for one in seen])

    async def verify_shard(self, message: pb.VerifyShardRequest, context: Context) -> pb.VerifyShardReply:
        return verification_to_wire(await self._shards.verify(check_shard(message.collection), context.call,
                                                              deep=message.deep))

    async def transfer_leader(self, message: pb.TransferLeaderRequest, context: Context) -> pb.TransferLeaderReply:
        await self._shards.transfer(message.collection, message.to or None, context.call)
        return pb.TransferLeaderReply()
