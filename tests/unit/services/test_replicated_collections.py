"""Collections of a cluster: made, dropped and found by way of any node; what is no read of records."""

import asyncio
from typing import Any

import pytest

from tests.fake_cluster import SCHEMA, FakeCluster, batch, run, soon
from tests.waiting import until
from vecdb.client.positions import GONE, Positions
from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import CollectionExists, CollectionNotFound, DeadlineExceeded, InvalidArgument, Unavailable
from vecdb.core.schema import CollectionSchema
from vecdb.services import leaders
from vecdb.services.coordinator import care


def test_collections_are_made_and_dropped_by_way_of_any_node() -> None:
    async def test(cluster: FakeCluster) -> None:
        node, other = cluster.nodes["n2"], CollectionSchema("other", 2, "l2")  # type: ignore[arg-type]
        await node.create_collection(other, soon())
        assert await cluster.nodes["n3"].list_collections(soon()) == ["docs", "other"]
        with pytest.raises(CollectionExists):
            await node.create_collection(other, soon())
        await cluster.nodes["n3"].drop_collection("other", soon())
        with pytest.raises(CollectionNotFound):
            await node.drop_collection("other", soon())
        with pytest.raises(CollectionNotFound):
            await node.schema("other", soon())

    run(test)


def test_a_change_whose_answer_was_lost_is_asked_for_again_and_happens_once() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.mute = {"n1"}
        asyncio.get_running_loop().call_later(0.15, cluster.mute.clear)
        await cluster.nodes["n2"].create_collection(CollectionSchema("other", 2, "l2"), soon())  # type: ignore[arg-type]
        assert cluster.asked.count("change n1") >= 2
        assert cluster.states[-1].next_group == 3

    run(test)


def test_what_is_remembered_of_groups_that_are_no_more_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaders, "FOUND_MOST", 4)

    async def test(cluster: FakeCluster) -> None:
        node = cluster.nodes["n2"]
        for _ in range(8):
            await node.create_collection(CollectionSchema("other", 2, "l2"), soon())  # type: ignore[arg-type]
            await node.upsert("other", batch(), soon())
            await node.drop_collection("other", soon())
            assert len(node.leaders._found) <= 4
        await node.upsert("docs", batch(), soon())
        assert node.leaders._found[1] == "n1"

    run(test)


def test_creating_returns_once_somebody_leads() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.elects = None
        other = CollectionSchema("other", 2, "l2")  # type: ignore[arg-type]
        making = asyncio.create_task(cluster.nodes["n2"].create_collection(other, soon()))
        await asyncio.sleep(0.2)
        assert not making.done()
        cluster.shard("other").leader = "n3"
        await making
        with pytest.raises(DeadlineExceeded, match="was made, and its replicas have elected no leader"):
            await cluster.nodes["n2"].create_collection(CollectionSchema("third", 2, "l2"), soon(0.3))  # type: ignore[arg-type]

    run(test)


def test_a_node_that_has_not_heard_of_a_collection_looks_before_it_says_no() -> None:
    async def test(cluster: FakeCluster) -> None:
        other = CollectionSchema("other", 2, "l2")  # type: ignore[arg-type]
        with cluster.behind("n2", name=None):
            await cluster.nodes["n1"].create_collection(other, soon())
            looking = asyncio.create_task(cluster.nodes["n2"].schema("other", soon()))
            listing = asyncio.create_task(cluster.nodes["n2"].list_collections(soon()))
            await asyncio.sleep(0.05)
        assert await looking == other
        assert await listing == ["docs", "other"]
        with pytest.raises(CollectionNotFound):
            await cluster.nodes["n2"].count("none", None, soon())
        cluster.control.leader = None
        with pytest.raises(Unavailable, match="knows of no collection 'none', and the control group"):
            await cluster.nodes["n2"].count("none", None, soon(0.3))
        assert await cluster.nodes["n2"].list_collections(soon()) == ["docs", "other"]

    run(test)


def test_who_knows_of_nothing_does_not_say_that_there_is_nothing() -> None:
    """A node that was never founded, or whose disk was lost with the majority's."""
    async def test(cluster: FakeCluster) -> None:
        cluster.control.applied["n2"] = 0
        cluster.control.behind.add("n2")
        cluster.control.leader = None
        began = asyncio.get_running_loop().time()
        node = cluster.nodes["n2"]
        for asked in (node.list_collections(soon(30.0)), node.count("docs", None, soon(30.0))):
            with pytest.raises(Unavailable, match="the control group"):
                await asked
        assert asyncio.get_running_loop().time() - began < 5.0, "another node may know, and must be asked in time"
        assert await cluster.nodes["n3"].list_collections(soon()) == ["docs"]

    run(test)


def test_a_position_that_the_log_will_not_reach_is_refused() -> None:
    async def test(cluster: FakeCluster) -> None:
        await cluster.nodes["n1"].upsert("docs", batch(), soon())
        for node in cluster.nodes.values():
            with pytest.raises(InvalidArgument, match=r"index 99 of shard 1 \('docs'\), whose log ends at 1") as told:
                await node.count("docs", None, soon(30.0, session=((1, 99),)))
            assert told.value.fields["argument"] == "session"
            with pytest.raises((Unavailable, DeadlineExceeded)):  # of a shard that the session has dropped
                await node.count("docs", None, soon(0.5, session=((1, GONE),)))
            assert await node.count("docs", None, soon(session=((1, 1),))) == 1
        cluster.shard("docs").leader = None
        with pytest.raises((Unavailable, DeadlineExceeded)):  # nobody can say
            await cluster.nodes["n2"].count("docs", None, soon(0.5, session=((1, 99),)))

    run(test)


def test_a_node_that_has_just_started_waits_until_it_knows() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.unopened = {"n2"}
        other = CollectionSchema("other", 2, "l2")  # type: ignore[arg-type]
        waiting = [asyncio.create_task(one) for one in (
            cluster.nodes["n2"].create_collection(other, soon()), cluster.nodes["n2"].list_collections(soon()),
            cluster.nodes["n2"].schema("none", soon()))]
        await asyncio.sleep(0.25)
        assert not any(one.done() for one in waiting)
        cluster.unopened.clear()
        await waiting[0]
        assert "docs" in await waiting[1]
        with pytest.raises(CollectionNotFound):
            await waiting[2]
        cluster.unopened = {"n2"}
        with pytest.raises(DeadlineExceeded, match="it was done"):
            await cluster.nodes["n2"].drop_collection("other", soon(0.3))

    run(test)


def test_a_session_that_wrote_to_a_collection_made_anew_reads_from_that_one() -> None:
    async def test(cluster: FakeCluster) -> None:
        with cluster.behind("n2", name=None):
            await cluster.nodes["n1"].drop_collection("docs", soon())
            await cluster.nodes["n1"].create_collection(SCHEMA, soon())
            result = await cluster.nodes["n1"].upsert("docs", batch(), soon())
            assert result.shard == 2
            reading = asyncio.create_task(cluster.nodes["n2"].count("docs", None, soon(session=((2, 1),))))
            await asyncio.sleep(0.05)
            assert not reading.done()
        assert await reading == 1

    run(test)


@pytest.mark.parametrize("asked", [{"session": ((2, 1),)}, {"consistency": Consistency.LINEARIZABLE}],
                         ids=["session", "linearizable"])
def test_a_read_that_is_handed_on_is_not_answered_from_the_collection_that_had_the_name_before(asked: dict[str, Any]
                                                                                                ) -> None:
    async def test(cluster: FakeCluster) -> None:
        node = cluster.nodes["n1"]
        for _ in range(3):
            await node.upsert("docs", batch(), soon())
        with cluster.behind("n2", name=None):  # it holds the old one, and knows of no other
            await node.drop_collection("docs", soon())
            await node.create_collection(SCHEMA, soon())
            assert (await node.upsert("docs", batch(), soon())).shard == 2
            cluster.groups[1].leader = "n2"
            assert await cluster.own["n2"].count("docs", None, soon()) == 3
            cluster.down = {"n3"}
            reading = asyncio.create_task(node.count("docs", None, soon(**asked)))
            await until(lambda: "count n2" in cluster.asked)
            await asyncio.sleep(0.3)
            assert not reading.done()
            cluster.down.clear()
            assert await reading == 1

    run(test, placed=("n2", "n3"), leader="n3")


@pytest.mark.parametrize("entry", ["n1", "n3"])
@pytest.mark.parametrize("again", [True, False])
def test_a_session_that_dropped_a_collection_is_not_answered_from_it(again: bool, entry: str) -> None:
    async def test(cluster: FakeCluster) -> None:
        known = Positions()
        known.saw("docs", await cluster.nodes["n1"].upsert("docs", batch(), soon()))
        with cluster.behind("n3", name=None):
            await cluster.nodes["n1"].drop_collection("docs", soon())
            known.dropped("docs", known.of("docs"))
            if again:
                await cluster.nodes["n1"].create_collection(SCHEMA, soon())
                cluster.down = {"n2"}
            call = known.call("docs", soon(), None)
            assert call is not None
            assert await cluster.nodes["n3"].count("docs", None, soon()) == 1, "it has not heard of it"
            reading = asyncio.create_task(cluster.nodes[entry].count("docs", None, call))
            if entry == "n1" and not again:
                await until(reading.done)
            else:
                await asyncio.sleep(0.5)
                assert not reading.done()
        cluster.down.clear()
        if again:
            assert await reading == 0
        else:
            with pytest.raises(CollectionNotFound):
                await reading

    run(test, placed=("n2", "n3"), leader="n2")


@pytest.mark.parametrize("entry", ["n1", "n2", "n3"])
@pytest.mark.parametrize("again", ["", "made", "written"])
def test_who_dropped_a_collection_asks_for_the_strongest_and_is_not_answered_from_it(again: str, entry: str) -> None:
    """Most of its replicas have not heard of it, so that one of them leads what is no more."""
    async def test(cluster: FakeCluster) -> None:
        known = Positions()
        for _ in range(3):
            known.saw("docs", await cluster.nodes["n1"].upsert("docs", batch(), soon()))
        with cluster.behind("n2", "n3", name=None):
            await cluster.nodes["n1"].drop_collection("docs", soon())
            known.dropped("docs", known.of("docs"))
            cluster.groups[1].leader = "n3"
            if again:
                await cluster.nodes["n1"].create_collection(SCHEMA, soon())
                cluster.shard("docs", "n1").leader = "n1"
            if again == "written":
                known.saw("docs", await cluster.nodes["n1"].upsert("docs", batch(), soon()))
            call = known.call("docs", soon(), Consistency.LINEARIZABLE)
            assert call is not None
            reading = asyncio.create_task(cluster.nodes[entry].count("docs", None, call))
            if entry == "n1":
                await until(reading.done)
            else:
                await asyncio.sleep(0.5)
                assert not reading.done()
        if again:
            assert await reading == (again == "written")
        else:
            with pytest.raises(CollectionNotFound):
                await reading

    run(test)


def test_a_session_that_wrote_to_what_a_node_cannot_learn_of_is_not_answered_from_what_it_knows() -> None:
    async def test(cluster: FakeCluster) -> None:
        with cluster.behind("n2", name=None):
            await cluster.nodes["n1"].drop_collection("docs", soon())
            await cluster.nodes["n1"].create_collection(SCHEMA, soon())
            done = await cluster.nodes["n1"].upsert("docs", batch(), soon())
            cluster.control.leader = None
            assert await cluster.nodes["n2"].count("docs", None, soon()) == 0
            with pytest.raises(Unavailable, match="has not heard of"):
                await cluster.nodes["n2"].count("docs", None, soon(0.3, session=((done.shard, done.log_index),)))
            with pytest.raises(Unavailable, match="has not heard of"):
                await cluster.nodes["n2"].schema("docs", soon(0.3, session=((done.shard, done.log_index),)))

    run(test)


def test_a_write_to_a_collection_that_is_dropped_under_it_says_so() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.shard("docs").leader = None
        write = asyncio.create_task(cluster.nodes["n2"].upsert("docs", batch(), soon()))
        await asyncio.sleep(0.05)
        await cluster.nodes["n1"].drop_collection("docs", soon())
        with pytest.raises(CollectionNotFound):
            await write

    run(test)


@pytest.mark.parametrize("again", [True, False])
def test_a_read_of_a_collection_that_is_dropped_under_it_follows_the_one_made_anew(again: bool) -> None:
    """There was a collection of this name all the time, for all that this caller can know."""
    async def test(cluster: FakeCluster) -> None:
        for engine in cluster.engines.values():
            engine.failing = Unavailable("no replica serves")
        read = asyncio.create_task(cluster.nodes["n2"].count("docs", None, soon()))
        await asyncio.sleep(0.05)
        await cluster.nodes["n1"].drop_collection("docs", soon())
        if again:
            with cluster.behind("n2", name=None):
                await cluster.nodes["n1"].create_collection(SCHEMA, soon())
                await asyncio.sleep(0.2)
                assert not read.done(), "it asks for what was made since"
            await cluster.nodes["n1"].upsert("docs", batch(), soon())
            for engine in cluster.engines.values():
                engine.failing = None
            assert await read in (0, 1)
        else:
            with pytest.raises(CollectionNotFound):
                await read

    run(test)


def test_maintenance_says_whose_answer_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(care, "AWAY_S", 0.2)

    async def test(cluster: FakeCluster) -> None:
        told = await cluster.nodes["n2"].describe("docs", soon())
        assert (told.details["by"], told.details["replica"], told.details["leader"]) == ("n2", "n2/7", "n1/7")
        seen: list[str] = []
        cluster.down = {"n3"}
        done = await cluster.nodes["n2"].optimize("docs", soon(), lambda *step: seen.append(step[0]))
        assert (done.details["by"], seen) == ("n2", ["seal"])
        assert done.details["optimized"] == ["n1", "n2"]
        assert [call[0] for call in cluster.engines["n1"].calls] == ["optimize"], "every replica's graphs are its own"
        assert {job["node"] for job in await cluster.nodes["n2"].jobs(None, soon())} == {"n1", "n2"}
        assert (await cluster.nodes["n2"].verify("docs", soon()))["equal"]

    run(test)


def test_a_node_without_a_replica_says_whose_answer_it_is_and_who_leads() -> None:
    async def test(cluster: FakeCluster) -> None:
        await cluster.nodes["n1"].upsert("docs", batch(), soon())
        node = cluster.nodes["n3"]
        for told in (await node.describe("docs", soon()), await node.optimize("docs", soon())):
            by = told.details["by"]
            assert by in ("n1", "n2")
            assert (told.details["replica"], told.details["leader"]) == (f"{by}/7", "n1/7")
            assert told.details["nodes"] == ["n1", "n2"]

    run(test, placed=("n1", "n2"))


@pytest.mark.parametrize("level", [Consistency.SESSION, Consistency.LINEARIZABLE])
def test_a_replica_optimizes_once_it_has_what_the_session_wrote(level: Consistency) -> None:
    async def test(cluster: FakeCluster) -> None:
        with cluster.behind("n2"), cluster.behind("n3"):
            written = await cluster.nodes["n1"].upsert("docs", batch(), soon())
            session = ((1, written.log_index),) if level is Consistency.SESSION else ()
            call = Call(soon(30.0).deadline, consistency=level, session=session)
            work = asyncio.create_task(cluster.nodes["n2"].optimize("docs", call))
            while not cluster.engines["n1"].calls:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert cluster.engines["n2"].calls == cluster.engines["n3"].calls == []
        assert (await work).details["optimized"] == ["n1", "n2", "n3"]
        assert [len(cluster.engines[node].calls) for node in ("n1", "n2", "n3")] == [1, 1, 1]

    run(test)


def test_a_replica_that_is_away_for_a_moment_optimizes_too() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.down = {"n1", "n3"}
        asyncio.get_running_loop().call_later(0.3, cluster.down.clear)
        done = await cluster.nodes["n2"].optimize("docs", soon(30.0))
        assert done.details["optimized"] == ["n1", "n2", "n3"]

    run(test)


def test_descriptions_wait_for_what_the_session_wrote() -> None:
    async def test(cluster: FakeCluster) -> None:
        with cluster.behind("n2"):
            written = await cluster.nodes["n1"].upsert("docs", batch(), soon())
            call = Call(soon().deadline, consistency=Consistency.SESSION, session=((1, written.log_index),))
            assert (await cluster.nodes["n2"].describe("docs", call)).records == written.log_index
            assert cluster.engines["n2"].calls == []

    run(test)


def test_calls_that_are_handed_on_carry_what_they_came_with() -> None:
    async def test(cluster: FakeCluster) -> None:
        call = Call(soon().deadline, None, "request-1", "key ops", Consistency.SESSION, ((1, 0),))
        await cluster.nodes["n1"].count("docs", None, call)
        ((_, seen),) = [*cluster.engines["n2"].calls, *cluster.engines["n3"].calls]
        assert (seen.deadline, seen.request_id, seen.principal, seen.consistency, seen.session) == (
            call.deadline, "request-1", "key ops", Consistency.SESSION, ((1, 0),))
        assert seen is not call

    run(test, placed=("n2", "n3"), leader="n2")
