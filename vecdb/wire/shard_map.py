"""The map of a collection's shards, over the wire."""

from vecdb.core.shard_map import NodeRoute, ShardMap, ShardRoute
from vecdb.v1 import cluster_pb2 as pb
from vecdb.wire.records import reply


def map_to_wire(found: ShardMap) -> pb.ShardMapReply:
    """Write a map; the last hash of a range stands for its end, which has a bit too many."""
    return pb.ShardMapReply(
        collection=found.collection, epoch=found.epoch, shard_key=found.shard_key or "",
        shards=[pb.ShardRoute(shard=one.group, first=one.lo, last=one.hi - 1, nodes=one.nodes, leader=one.leader)
                for one in found.shards],
        nodes=[pb.NodeRoute(name=one.name, address=one.address, zone=one.zone) for one in found.nodes])


@reply
def map_from_wire(msg: pb.ShardMapReply) -> ShardMap:
    """Return a map."""
    return ShardMap(
        msg.collection, msg.epoch, msg.shard_key or None,
        tuple(ShardRoute(one.shard, one.first, one.last + 1, tuple(one.nodes), one.leader) for one in msg.shards),
        tuple(NodeRoute(one.name, one.address, one.zone) for one in msg.nodes))
