"""Any node answers any call: where it goes, what it waits for, what is done again and what is not."""

import asyncio
from typing import Any

import pytest

from tests.fake_cluster import NAMES, SCHEMA, FakeCluster, batch, run, soon
from tests.waiting import until
from vecdb.core.calls import Consistency, Stopped, WriteToken
from vecdb.core.errors import (
    DataCorrupted,
    DeadlineExceeded,
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    SchemaChanged,
    StorageError,
    Unavailable,
)
from vecdb.core.records import DeleteIds

TOKEN = WriteToken(b"key", 5)
LINEAR = {"consistency": Consistency.LINEARIZABLE}


# --- writes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", NAMES)
def test_a_write_finds_the_leader_from_any_node_and_says_where_it_is(entry: str) -> None:
    async def test(cluster: FakeCluster) -> None:
        result = await cluster.nodes[entry].upsert("docs", batch(), soon())
        assert (result.inserted, result.shard, result.log_index) == (1, 1, 1)
        assert [one for one in cluster.asked if one.startswith("propose")] == ([] if entry == "n1" else ["propose n1"])

    run(test)


def test_a_node_without_a_replica_finds_the_leader_too_and_remembers_it() -> None:
    async def test(cluster: FakeCluster) -> None:
        node = cluster.nodes["n1"]
        assert (await node.upsert("docs", batch(), soon())).log_index == 1
        cluster.asked.clear()
        assert (await node.delete("docs", DeleteIds((1,)), soon())).log_index == 2
        assert cluster.asked == ["propose n3"]

    run(test, placed=("n2", "n3"), leader="n3")


def test_while_nobody_leads_a_write_waits_for_who_will() -> None:
    async def test(cluster: FakeCluster) -> None:
        group = cluster.shard("docs")
        group.leader = None
        write = asyncio.create_task(cluster.nodes["n2"].upsert("docs", batch(), soon()))
        await asyncio.sleep(0.2)
        assert not write.done()
        group.leader = "n3"
        assert (await write).log_index == 1

    run(test)


def test_without_a_leader_until_the_deadline_nothing_was_done_and_that_is_said() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.shard("docs").leader = None
        with pytest.raises(Unavailable, match="no leader of 'docs' answered in time") as caught:
            await cluster.nodes["n2"].upsert("docs", batch(), soon(0.3))
        assert caught.value.fields["retry_after_s"] > 0

    run(test)


@pytest.mark.parametrize("how", ["mute", "lost here"])
def test_what_may_have_been_done_is_done_again_under_its_key_alone(how: str) -> None:
    async def test(cluster: FakeCluster) -> None:
        entry, group = ("n2" if how == "mute" else "n1"), cluster.shard("docs")
        if how == "mute":
            cluster.mute = {"n1"}
        else:
            group.loses = [OutcomeUnknown("it stepped down")]
        with pytest.raises(OutcomeUnknown):
            await cluster.nodes[entry].upsert("docs", batch(), soon())
        assert len(group.log) == 1
        if how != "mute":
            group.loses = [OutcomeUnknown("it stepped down")]
        asyncio.get_running_loop().call_later(0.2, cluster.mute.clear)
        result = await cluster.nodes[entry].upsert("docs", batch(), soon(token=TOKEN))
        assert result.log_index == 2, "what the first attempt with the key did"
        assert len(group.log) >= 3

    run(test)


def test_an_unknown_end_stays_unknown_when_time_or_room_runs_out() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.mute = {"n1"}
        with pytest.raises(OutcomeUnknown, match="the deadline came before the end was known"):
            await cluster.nodes["n2"].upsert("docs", batch(), soon(0.4, token=TOKEN))
        cluster.mute.clear()
        cluster.shard("docs").loses = [OutcomeUnknown("it stepped down"), Overloaded("full", retry_after_s=0.1)]
        with pytest.raises(OutcomeUnknown, match="full"):
            await cluster.nodes["n1"].upsert("docs", batch(), soon(token=TOKEN))

    run(test)


def test_refusals_pass_through_as_they_are() -> None:
    async def test(cluster: FakeCluster) -> None:
        for error in (Overloaded("full", retry_after_s=0.1), InvalidArgument("vectors", "no", got=1, limit=2)):
            cluster.shard("docs").loses = [error]
            with pytest.raises(type(error)) as caught:
                await cluster.nodes["n2"].upsert("docs", batch(), soon())
            assert caught.value is error

    run(test)


def test_a_write_waits_for_room_where_it_is_to_be_applied() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.full = {"n1": 2}
        assert (await cluster.nodes["n2"].upsert("docs", batch(), soon())).inserted == 1
        assert cluster.full == {"n1": 0}
        cluster.full = {"n1": 100, "n2": 100}
        with pytest.raises(Overloaded) as caught:
            await cluster.nodes["n2"].upsert("docs", batch(), soon(0.4))
        assert caught.value.fields["retry_after_s"] == 3.0
        assert cluster.full["n2"] == 100, "who does not lead is not asked"

    run(test)


def test_a_frozen_leader_is_left_once_somebody_else_leads() -> None:
    async def test(cluster: FakeCluster) -> None:
        group = cluster.shard("docs")
        cluster.frozen = {"n1"}
        write = asyncio.create_task(cluster.nodes["n2"].upsert("docs", batch(), soon(20, token=TOKEN)))
        bare = asyncio.create_task(cluster.nodes["n2"].upsert("docs", batch(), soon(20)))
        await asyncio.sleep(0.1)
        group.leader = "n3"
        assert (await write).shard == 1
        with pytest.raises(OutcomeUnknown, match="n1 did not answer, and n3 leads by now"):
            await bare

    run(test)


def test_what_a_frozen_leader_may_have_done_stays_open_though_nobody_else_can_do_it() -> None:
    async def test(cluster: FakeCluster) -> None:
        group = cluster.shard("docs")
        for error in (Overloaded("full", retry_after_s=0.1), None):
            group.leader, cluster.frozen = "n1", {"n1"}
            write = asyncio.create_task(cluster.nodes["n2"].upsert("docs", batch(), soon(1.5, token=TOKEN)))
            await asyncio.sleep(0.1)
            group.leader = "n3"
            if error is None:
                cluster.down = {"n3"}
            else:
                group.loses = [error]
            with pytest.raises(OutcomeUnknown):
                await write

    run(test)


def test_a_frozen_leader_is_left_by_a_node_that_has_to_ask_who_leads() -> None:
    async def test(cluster: FakeCluster) -> None:
        group = cluster.shard("docs")
        cluster.frozen = {"n2"}
        write = asyncio.create_task(cluster.nodes["n1"].upsert("docs", batch(), soon(20, token=TOKEN)))
        await asyncio.sleep(0.1)
        group.leader = "n3"
        assert (await write).shard == 1

    run(test, placed=("n2", "n3"), leader="n2")


def test_a_cancelled_write_frees_its_waiter_and_its_place() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.frozen = {"n1"}
        node = cluster.nodes["n2"]
        write = asyncio.create_task(node.upsert("docs", batch(), soon()))
        await until(lambda: node.writer.gate.inside == 1)
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write
        assert node.writer.gate.inside == 0
        assert len(asyncio.all_tasks()) == 1

    run(test)


def test_a_write_checked_against_another_schema_is_refused() -> None:
    async def test(cluster: FakeCluster) -> None:
        with pytest.raises(SchemaChanged):
            await cluster.nodes["n2"].upsert("docs", batch(SCHEMA.shape ^ 1), soon())
        await cluster.nodes["n2"].upsert("docs", batch(SCHEMA.shape), soon())

    run(test)


# --- reads ----------------------------------------------------------------------------------------


def test_an_eventual_read_is_the_replica_s_own_as_it_is() -> None:
    async def test(cluster: FakeCluster) -> None:
        with cluster.behind("n2"):
            await cluster.nodes["n1"].upsert("docs", batch(), soon())
            cluster.asked.clear()
            assert await cluster.nodes["n2"].count("docs", None, soon()) == 0
            assert not cluster.asked
        assert await cluster.nodes["n2"].count("docs", None, soon()) == 1

    run(test)


@pytest.mark.parametrize("entry", ["n1", "n2"])
def test_a_replica_that_was_opened_anew_while_a_read_waited_its_turn_is_not_believed(entry: str) -> None:
    """It may have gone back to its last checkpoint, after the read had waited for it."""
    async def test(cluster: FakeCluster) -> None:
        node, group = cluster.nodes[entry], cluster.shard("docs")
        done = await cluster.nodes["n1"].upsert("docs", batch(), soon())
        for call in (soon(**LINEAR), soon(session=((done.shard, done.log_index),))):
            cluster.engines[entry].pause.clear()
            read = asyncio.create_task(node.count("docs", None, call))
            while not cluster.engines[entry].calls:
                await asyncio.sleep(0.01)
            cluster.engines[entry].calls.clear()
            cluster.own[entry]._hosted.lives.clear()  # type: ignore[attr-defined]
            group.applied[entry] = 0
            cluster.engines[entry].pause.set()
            asyncio.get_running_loop().call_later(0.01, group.applied.__setitem__, entry, 1)  # the log replays
            assert await read == 1
            await asyncio.sleep(0.02)

    run(test)


def test_a_session_read_waits_for_what_the_session_wrote_and_not_for_other_shards() -> None:
    async def test(cluster: FakeCluster) -> None:
        node = cluster.nodes["n2"]
        with cluster.behind("n2"):
            await cluster.nodes["n1"].upsert("docs", batch(), soon())
            read = asyncio.create_task(node.count("docs", None, soon(session=((1, 1),))))
            await asyncio.sleep(0.05)
            assert not read.done()
            assert await node.count("docs", None, soon(session=((0, 99),))) == 0
        assert await read == 1
        assert not any(one.startswith("count") for one in cluster.asked)

    run(test)


@pytest.mark.parametrize("asked", [{"session": ((1, 1),)}, LINEAR], ids=["session", "linearizable"])
def test_a_replica_that_stays_behind_hands_the_read_to_the_leader(asked: dict[str, Any]) -> None:
    async def test(cluster: FakeCluster) -> None:
        await cluster.nodes["n1"].upsert("docs", batch(), soon())
        with cluster.behind("n2", "n3"):
            await cluster.nodes["n1"].upsert("docs", batch(), soon())
            assert await cluster.nodes["n2"].count("docs", None, soon(**asked)) in (1, 2)
            assert await cluster.nodes["n2"].count("docs", None, soon(session=((1, 2),))) == 2
            assert await cluster.nodes["n2"].count("docs", None, soon(**LINEAR)) == 2
        assert "count n1" in cluster.asked

    run(test)


def test_linearizable_reads_ask_the_leader_where_the_log_is_and_answer_here() -> None:
    async def test(cluster: FakeCluster) -> None:
        await cluster.nodes["n1"].upsert("docs", batch(), soon())
        cluster.asked.clear()
        counts = await asyncio.gather(*(cluster.nodes["n2"].count("docs", None, soon(**LINEAR)) for _ in range(20)))
        assert counts == [1] * 20
        assert cluster.asked == ["read_index n1", "read_index 1"], "twenty reads of a moment are one question"
        assert len(cluster.engines["n2"].calls) == 20

    run(test)


def test_a_linearizable_read_sees_what_was_acknowledged_before_it_began() -> None:
    """Reads that come while a question is under way share the next one, never that one."""
    async def test(cluster: FakeCluster) -> None:
        node, group = cluster.nodes["n2"], cluster.shard("docs")

        async def one(number: int) -> None:
            await asyncio.sleep(0.001 * (number % 7))
            await cluster.nodes[NAMES[number % 3]].upsert("docs", batch(), soon())
            acknowledged = len(group.log)
            assert await node.count("docs", None, soon(**LINEAR)) >= acknowledged

        await asyncio.gather(*map(one, range(60)))

    run(test)


def test_without_a_leader_a_linearizable_read_fails_and_an_eventual_one_does_not() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.shard("docs").leader = None
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await cluster.nodes["n2"].count("docs", None, soon(0.4, **LINEAR))
        assert await cluster.nodes["n2"].count("docs", None, soon()) == 0

    run(test)


@pytest.mark.parametrize("failure", [
    StorageError("the disk", path="x"), DataCorrupted("bytes", path="x"), Unavailable("halted")])
def test_what_one_replica_cannot_answer_another_does(failure: Any) -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.engines["n2"].failing = failure
        assert await cluster.nodes["n2"].count("docs", None, soon()) == 0
        for engine in cluster.engines.values():
            engine.failing = failure
        with pytest.raises(type(failure)):
            await cluster.nodes["n2"].count("docs", None, soon(0.4))

    run(test)


@pytest.mark.parametrize("how", ["joining", "learning"])
def test_a_replica_that_is_new_serves_nothing_and_a_node_that_is_down_costs_no_answer(how: str) -> None:
    async def test(cluster: FakeCluster) -> None:
        await cluster.nodes["n1"].upsert("docs", batch(), soon())
        group = cluster.shard("docs")
        group.applied["n2"] = 0
        if how == "joining":
            group.states["n2"] = "joining"
        else:
            group.learning = {"n2"}
        await asyncio.sleep(0.11)  # what is known of a replica may be so old
        cluster.down = {"n3"}
        for _ in range(8):
            assert await cluster.nodes["n2"].count("docs", None, soon()) == 1
        assert "count n3" in cluster.asked

    run(test)


def test_a_read_waits_for_a_replica_that_comes_back() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.down = {"n1", "n3"}
        cluster.engines["n2"].failing = Unavailable("it is made anew")
        read = asyncio.create_task(cluster.nodes["n2"].count("docs", None, soon()))
        await asyncio.sleep(0.2)
        assert not read.done()
        cluster.engines["n2"].failing = None
        assert await read == 0

    run(test)


def test_a_cancelled_read_ends_where_it_is() -> None:
    async def test(cluster: FakeCluster) -> None:
        for kind in ({}, LINEAR):
            cluster.engines["n2"].pause.clear()
            call = soon(**kind)  # type: ignore[arg-type]
            read = asyncio.create_task(cluster.nodes["n2"].count("docs", None, call))
            await asyncio.sleep(0.05)
            read.cancel()
            with pytest.raises(asyncio.CancelledError):
                await read
        cluster.engines["n2"].pause.set()
        with cluster.behind("n2"):
            await cluster.nodes["n1"].upsert("docs", batch(), soon())
            cluster.frozen = {"n1"}
            for asked in (soon(session=((1, 1),)), soon(**LINEAR)):
                read = asyncio.create_task(cluster.nodes["n2"].count("docs", None, asked))
                await asyncio.sleep(0.05)
                read.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await read
        await asyncio.sleep(0.02)
        assert len(asyncio.all_tasks()) == 1
        assert not cluster.nodes["n2"].barriers._now
        assert not cluster.nodes["n2"].barriers._next

    run(test)


def test_a_call_that_was_ended_is_not_begun_elsewhere() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.engines["n2"].failing = Unavailable("halted")
        call = soon()
        call.end(Stopped.DEADLINE)
        with pytest.raises(DeadlineExceeded):
            await cluster.nodes["n2"].count("docs", None, call)
        assert not cluster.asked

    run(test)
