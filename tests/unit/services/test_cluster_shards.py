"""Shards as a cluster tells of them: how replicas are, whether they agree, leadership handed over."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.fake_cluster import SCHEMA, FakeCluster, FakeReplicator, soon
from vecdb.cluster.control import replication
from vecdb.core.errors import (
    CollectionNotFound,
    DataCorrupted,
    InvalidArgument,
    Overloaded,
    StorageError,
    StorageFull,
    StorageReadOnly,
    Unavailable,
    Unsupported,
)
from vecdb.core.records import DeleteIds
from vecdb.services import shards


def run(test: Callable[[FakeCluster], Coroutine[Any, Any, None]], **given: Any) -> None:
    async def whole() -> None:
        cluster = FakeCluster(**given)
        await cluster.nodes["n1"].create_collection(SCHEMA, soon())
        for number in range(3):
            await cluster.nodes["n1"].delete("docs", DeleteIds((number,)), soon())
        async with asyncio.timeout(30):
            await test(cluster)

    asyncio.run(whole())


def test_every_replica_is_told_of_with_what_it_lacks() -> None:
    async def test(cluster: FakeCluster) -> None:
        with cluster.behind("n3"):
            await cluster.nodes["n1"].delete("docs", DeleteIds((9,)), soon())
            control, docs = await cluster.shards["n2"].list(None, soon())
        assert (control.state, docs.state) == ("active", "active")
        assert (control.collection, control.group, control.leader, control.healthy) == ("", 0, "n1/7", True)
        assert (docs.collection, docs.group, docs.leader, docs.healthy) == ("docs", 1, "n1/7", True)
        assert [(one.name, one.role, one.lag) for one in docs.replicas] == [
            ("n1/7", "leader", 0), ("n2/7", "follower", 0), ("n3/7", "follower", 1)]

    run(test)


def test_replicas_that_shards_lack_of_their_factor_are_told_of() -> None:
    async def test(cluster: FakeCluster) -> None:
        assert [(one.wanted, one.lacks) for one in await cluster.shards["n2"].list(None, soon())] == [(0, 0), (2, 0)]
        details = (await cluster.nodes["n2"].describe("docs", soon())).details
        assert (details["replication_factor"], "replicas_lacking" in details) == (2, False)
        await cluster.change(replication("docs", 5))
        for name in (None, "docs"):
            assert [(one.wanted, one.lacks, one.healthy)
                    for one in await cluster.shards["n2"].list(name, soon()) if one.collection] == [(5, 3, True)]
        details = (await cluster.nodes["n2"].describe("docs", soon())).details
        assert (details["replication_factor"], details["replicas_lacking"]) == (5, 3)

    run(test, placed=("n1", "n2"))


def test_a_node_that_does_not_answer_is_unreachable_and_no_error() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.down = {"n1"}
        (docs,) = await cluster.shards["n2"].list("docs", soon())
        assert (docs.leader, docs.healthy) == (None, False)
        assert [(one.name, one.state, one.lag) for one in docs.replicas] == [
            ("n1/7", "unreachable", -1), ("n2/7", "ok", -1), ("n3/7", "ok", -1)]
        assert docs.replicas[0].error == "it does not answer (n1 is down)"
        cluster.down = set()
        with pytest.raises(CollectionNotFound):
            await cluster.shards["n2"].list("none", soon())

    run(test)


def test_replicas_are_compared_at_one_mark() -> None:
    async def test(cluster: FakeCluster) -> None:
        found = await cluster.shards["n2"].verify("docs", soon())
        assert (found.agree, found.complete, found.log_index) == (True, True, 4)
        assert {(one.state, one.digest, one.records) for one in found.replicas} == {("ok", "same", 4)}
        cluster.digests["n3"] = "another"
        cluster.down = {"n1"}
        cluster.shard("docs").leader = "n2"
        found = await cluster.shards["n2"].verify("docs", soon())
        assert (found.agree, found.complete) == (False, False)
        assert [(one.name, one.state) for one in found.replicas] == [
            ("n1/7", "unreachable"), ("n2/7", "ok"), ("n3/7", "ok")]

    run(test)


def test_a_deep_comparison_finds_what_a_replica_no_longer_holds() -> None:
    async def test(cluster: FakeCluster) -> None:
        found = await cluster.shards["n2"].verify("docs", soon(), deep=True)
        assert (found.agree, {one.deep for one in found.replicas}) == (True, {"same"})
        cluster.engines["n3"].failing = DataCorrupted("a flipped bit", path="x")
        found = await cluster.shards["n2"].verify("docs", soon(), deep=True)
        assert not found.agree
        assert [one.state for one in found.replicas] == ["ok", "ok", "damaged"]
        cluster.engines["n3"].failing = Overloaded("too many calls")
        found = await cluster.shards["n2"].verify("docs", soon(), deep=True)
        assert (found.agree, found.complete) == (True, False), "who is busy is not damaged"
        assert [one.state for one in found.replicas] == ["ok", "ok", "unreachable"]
        for passing in (StorageError("the disk refuses"), StorageFull("no room"), StorageReadOnly("not now")):
            cluster.engines["n3"].failing = passing
            found = await cluster.shards["n2"].verify("docs", soon(), deep=True)
            assert (found.agree, found.complete) == (True, False), "nor is one whose disk is not read just then"
            assert [(one.state, one.error) for one in found.replicas][2] == ("unchecked", passing.message)

    run(test)


def test_a_replica_that_does_not_come_to_the_mark_is_behind() -> None:
    async def test(cluster: FakeCluster) -> None:
        with cluster.behind("n3"):
            found = await cluster.shards["n1"].verify("docs", soon(1.5))
        assert (found.agree, found.complete, found.replicas[2].state) == (True, False, "behind")

    run(test)


def test_where_nobody_leads_a_comparison_ends_and_says_so_of_each_replica() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.shard("docs").leader = None
        cluster.down = {"n3"}
        found = await cluster.shards["n2"].verify("docs", soon(1.0))
        assert (found.agree, found.complete, found.log_index) == (True, False, 0)
        assert [(one.name, one.state) for one in found.replicas] == [
            ("n1/7", "unchecked"), ("n2/7", "unchecked"), ("n3/7", "unreachable")]
        assert "nobody leads the shard" in found.replicas[0].error
        assert "n3 is down" in found.replicas[2].error
        cluster.down = {"n1", "n3"}
        with pytest.raises(Unavailable, match="no leader of 'docs' answered in time"):  # another node may know more
            await cluster.shards["n2"].verify("docs", soon(0.5))

    run(test)


def test_a_replica_that_comes_nearer_to_the_mark_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MARK_S", 0.05)
    monkeypatch.setattr(shards, "STILL_S", 20.0)

    async def test(cluster: FakeCluster) -> None:
        with cluster.behind("n3"):
            asked = asyncio.ensure_future(cluster.shards["n1"].verify("docs", soon(25)))
            await asyncio.sleep(0.3)
            assert not asked.done(), "though it was not there when it was asked first"
        assert (await asked).complete

    run(test)


def test_leadership_goes_where_it_is_told_to_go() -> None:
    async def test(cluster: FakeCluster) -> None:
        shards, group = cluster.shards["n2"], cluster.shard("docs")
        await shards.transfer("docs", "n2", soon())
        assert group.leader == "n2"
        await shards.transfer("docs", "n3/7", soon())
        assert group.leader == "n3"
        await shards.transfer("docs", "n3", soon())
        assert group.leader == "n3"
        await shards.transfer("", "n2", soon())
        assert cluster.control.leader == "n2"
        with pytest.raises(InvalidArgument, match="'n9' holds no replica that could lead"):
            await shards.transfer("docs", "n9", soon())

    run(test)


def test_a_handover_returns_when_somebody_leads() -> None:
    async def test(cluster: FakeCluster) -> None:
        group = cluster.shard("docs")

        async def given_up(self: FakeReplicator, to: str | None, deadline: float | None) -> None:
            self._lead()
            self.group.leader = None

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(FakeReplicator, "transfer", given_up)
            handed = asyncio.create_task(cluster.shards["n2"].transfer("docs", "n3", soon()))
            while group.leader is not None:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert not handed.done()
            group.leader = "n2"
            await handed
            with pytest.raises(Unavailable, match="'docs' was given up, and no replica leads in its place"):
                await cluster.shards["n2"].transfer("docs", "n3", soon(0.5))

    run(test)


def test_the_collection_of_which_no_leader_answers_is_named() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.shard("docs").leader = cluster.control.leader = None
        with pytest.raises(Unavailable, match="no leader of 'docs' answered in time"):
            await cluster.shards["n2"].transfer("docs", None, soon(0.3))
        with pytest.raises(Unavailable, match="no leader of the control group answered in time"):
            await cluster.shards["n2"].transfer("", None, soon(0.3))

    run(test)


def test_who_is_alone_hands_nothing_over() -> None:
    async def test(cluster: FakeCluster) -> None:
        with pytest.raises(Unsupported, match="n3 holds the only replica"):
            await cluster.shards["n2"].transfer("docs", None, soon())

    run(test, placed=("n3",), leader="n3")
