"""What a cluster tells of its shards, over the wire."""

from vecdb.core.shards import ReplicaDigest, ReplicaInfo, ShardInfo, ShardVerification
from vecdb.v1 import shards_pb2 as pb
from vecdb.wire.records import reply


def shard_to_wire(shard: ShardInfo) -> pb.Shard:
    """Write a shard and its replicas."""
    return pb.Shard(collection=shard.collection, shard=shard.group, leader=shard.leader or "",
                    replicas=[_replica_to_wire(one) for one in shard.replicas], healthy=shard.healthy,
                    state=shard.state, wanted=shard.wanted)


def _replica_to_wire(one: ReplicaInfo) -> pb.Replica:
    return pb.Replica(name=one.name, node=one.node, state=one.state, role=one.role, term=one.term, commit=one.commit,
                      applied=one.applied, first=one.first, last=one.last, log_bytes=one.log_bytes,
                      lag=None if one.lag < 0 else one.lag, behind=None if one.behind < 0 else one.behind,
                      member=one.member, error=one.error)


@reply
def shard_from_wire(msg: pb.Shard) -> ShardInfo:
    """Return a shard; ``healthy`` follows from its replicas."""
    return ShardInfo(msg.collection, msg.shard, msg.leader or None, tuple(map(_replica_from_wire, msg.replicas)),
                     msg.state, msg.wanted)


def _replica_from_wire(msg: pb.Replica) -> ReplicaInfo:
    return ReplicaInfo(msg.name, msg.node, msg.state, msg.role, msg.term, msg.commit, msg.applied, msg.first, msg.last,
                       msg.log_bytes, msg.lag if msg.HasField("lag") else -1,
                       msg.behind if msg.HasField("behind") else -1, msg.member, msg.error)


def verification_to_wire(found: ShardVerification) -> pb.VerifyShardReply:
    """Write what a comparison of replicas found."""
    return pb.VerifyShardReply(
        collection=found.collection, shard=found.group, log_index=found.log_index, agree=found.agree,
        complete=found.complete, replicas=[
            pb.ReplicaDigest(name=one.name, state=one.state, digest=one.digest, records=one.records, deep=one.deep,
                             error=one.error) for one in found.replicas])


@reply
def verification_from_wire(msg: pb.VerifyShardReply) -> ShardVerification:
    """Return what a comparison of replicas found."""
    return ShardVerification(
        msg.collection, msg.shard, msg.log_index,
        tuple(ReplicaDigest(one.name, one.state, one.digest, one.records, one.deep, one.error)
              for one in msg.replicas), msg.agree, msg.complete)
