"""The Shards service: what it tells, to whom, and of a node that is alone."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from tests.fake_node import FakeNode
from vecdb.core.access import ANONYMOUS, Grant, Principal, Role
from vecdb.core.calls import Call
from vecdb.core.errors import CollectionNotFound, InvalidArgument, PermissionDenied, Unsupported
from vecdb.core.records import UpsertBatch
from vecdb.core.schema import CollectionSchema
from vecdb.core.shards import ReplicaDigest, ReplicaInfo, ShardInfo, ShardVerification
from vecdb.rpc.edge import Context
from vecdb.rpc.shards import ShardsServicer
from vecdb.services.alone import LoneShards
from vecdb.v1 import shards_pb2 as pb
from vecdb.wire.shards import shard_from_wire, shard_to_wire, verification_from_wire, verification_to_wire

REPLICAS = tuple(ReplicaInfo(f"n{n}/{n}", f"n{n}", "ok", "leader" if n == 2 else "follower", 3, 17, 17 - n, 1, 18, 99,
                             n if n < 3 else -1, n if n < 3 else -1, n != 3, "slow" if n == 3 else "")
                 for n in (1, 2, 3))
SHARDS = [ShardInfo("", 0, None, REPLICAS[:1]), ShardInfo("docs", 4, "n2/2", REPLICAS, wanted=5),
          ShardInfo("logs-a", 5, "n1/1", (), "retired")]
FOUND = ShardVerification("docs", 4, 17, (ReplicaDigest("n1/1", "ok", "ab", 3, "ab"),
                                          ReplicaDigest("n2/2", "behind", error="late")), agree=True, complete=False)


class Cluster:
    """Shards as a test tells them; ``asked`` is what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    async def list(self, name, call):
        self.asked.append(("list", name))
        return [one for one in SHARDS if name is None or one.collection == name]

    async def verify(self, name, call, *, deep=False):
        self.asked.append(("verify", name, deep))
        return FOUND

    async def transfer(self, name, to, call):
        self.asked.append(("transfer", name, to))


def context(principal: Principal = ANONYMOUS) -> Context:
    return Context(Call(), principal, "", ThreadPoolExecutor(1))


def ask(shards, method: str, message, principal: Principal = ANONYMOUS):
    """As the edge does it: who may, on which collection, then the servicer."""
    found = next(one for one in ShardsServicer(shards).methods() if one.name == f"Shards/{method}")
    found.may(principal)
    found.allow(message, principal)
    return asyncio.run(found.unary(message, context(principal)))


def test_shards_come_back_over_the_wire() -> None:
    for shard in SHARDS:
        assert shard_from_wire(pb.Shard.FromString(shard_to_wire(shard).SerializeToString())) == shard
        assert shard_to_wire(shard).healthy == shard.healthy
    assert verification_from_wire(pb.VerifyShardReply.FromString(
        verification_to_wire(FOUND).SerializeToString())) == FOUND


def test_everybody_is_told_of_what_he_may_read() -> None:
    cluster = Cluster()
    reply = ask(cluster, "ListShards", pb.ListShardsRequest())
    assert [shard_from_wire(one) for one in reply.shards] == SHARDS
    assert [one.collection for one in ask(cluster, "ListShards", pb.ListShardsRequest(collection="docs")).shards] == [
        "docs"]
    reader = Principal("id", "reader", (Grant(Role.READ, ("logs-*",)),))
    assert [one.collection for one in ask(cluster, "ListShards", pb.ListShardsRequest(), reader).shards] == ["logs-a"]
    with pytest.raises(PermissionDenied, match="docs"):
        ask(cluster, "ListShards", pb.ListShardsRequest(collection="docs"), reader)
    assert cluster.asked == [("list", None), ("list", "docs"), ("list", None)]


def test_leadership_is_an_admins_to_hand_over() -> None:
    cluster = Cluster()
    for to in ("n2", ""):
        ask(cluster, "TransferLeader", pb.TransferLeaderRequest(collection="docs", to=to))
    ask(cluster, "TransferLeader", pb.TransferLeaderRequest(to="n1"))
    assert cluster.asked == [("transfer", "docs", "n2"), ("transfer", "docs", None), ("transfer", "", "n1")]
    own = Principal("id", "own", (Grant(Role.ADMIN, ("docs", "l*")),))
    ask(cluster, "TransferLeader", pb.TransferLeaderRequest(collection="docs"), own)
    for refused, who in (("", own), ("other", own), ("docs", replace(own, grants=(Grant(Role.WRITE),)))):
        with pytest.raises(PermissionDenied):
            ask(cluster, "TransferLeader", pb.TransferLeaderRequest(collection=refused), who)
    assert len(cluster.asked) == 4
    assert next(one for one in ShardsServicer(cluster).methods() if one.name == "Shards/TransferLeader").audited


def test_replicas_are_compared() -> None:
    cluster = Cluster()
    assert verification_from_wire(ask(cluster, "VerifyShard", pb.VerifyShardRequest(collection="docs"))) == FOUND
    ask(cluster, "VerifyShard", pb.VerifyShardRequest(collection="docs", deep=True))
    assert cluster.asked == [("verify", "docs", False), ("verify", "docs", True)]
    for wrong in ("", "no such name!"):
        with pytest.raises(InvalidArgument):
            ask(cluster, "VerifyShard", pb.VerifyShardRequest(collection=wrong))


def test_a_node_alone_is_its_own_cluster() -> None:
    node = FakeNode()
    shards = LoneShards(node, "n")

    async def test() -> None:
        call = Call()
        assert await shards.list(None, call) == []
        for name in ("b", "a"):
            await node.create_collection(CollectionSchema(name, 2, "l2"), call)
        await node.upsert("a", UpsertBatch((1,), np.ones((1, 2), np.float32), (b"{}",)), call)
        first, second = await shards.list(None, call)
        assert (first.collection, first.group, first.leader, first.healthy) == ("a", 0, "n/0", True)
        assert [(one.node, one.role, one.applied, one.lag) for one in first.replicas] == [("n", "leader", 1, 0)]
        assert await shards.list("b", call) == [second]
        found = await shards.verify("a", call)
        assert (found.agree, found.complete, found.log_index) == (True, True, 1)
        assert [(one.name, one.state, one.records) for one in found.replicas] == [("n/0", "ok", 1)]
        for wrong in (shards.list("c", call), shards.verify("c", call), shards.transfer("c", None, call)):
            with pytest.raises(CollectionNotFound):
                await wrong
        for to in (None, "n", "n/0"):
            with pytest.raises(Unsupported, match="alone"):
                await shards.transfer("a", to, call)
        with pytest.raises(InvalidArgument, match="n2"):
            await shards.transfer("", "n2", call)

    asyncio.run(test())


def test_a_damaged_record_is_disagreement() -> None:
    class Damaged(FakeNode):
        async def verify(self, name, call):
            return {"records": 3, "log_index": 5, "digest": "aa", "computed": "bb", "equal": False, "differing": 1}

    found = asyncio.run(LoneShards(Damaged(), "n").verify("docs", Call(), deep=True))
    assert not found.agree
    assert [(one.state, one.digest, one.deep, one.error) for one in found.replicas] == [
        ("damaged", "aa", "bb", "1 records are not what was written")]
