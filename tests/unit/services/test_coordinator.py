"""Collections with several shards, by way of any node: split, asked, merged, and honest about what is missing."""

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.fake_cluster import NAMES, FakeCluster, run, soon
from tests.waiting import until
from vecdb.cluster import control
from vecdb.cluster.routing import HASH_SPACE, hash_of_id
from vecdb.core.calls import Consistency, WriteToken
from vecdb.core.cluster import JobState
from vecdb.core.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    InvalidArgument,
    OutcomeUnknown,
    StaleCursor,
    StaleShardMap,
    Unavailable,
    Unsupported,
)
from vecdb.core.layout import Layout
from vecdb.core.query import Count, QueryRequest, ScanRequest
from vecdb.core.records import DeleteIds, UpsertBatch
from vecdb.services.replicas import LOOK_S
from vecdb.services.replicated import ReplicatedNode

THREE = Layout(shards=3)
GROUPS = (1, 2, 3)


def batch(count: int = 60) -> UpsertBatch:
    return UpsertBatch(tuple(range(count)), np.ones((count, 2), np.float32), (b"{}",) * count)


def token(name: bytes = b"key") -> WriteToken:
    return WriteToken(name, 7)


async def split(cluster: FakeCluster, group: int) -> tuple[int, int]:
    """Two take the place of one; the numbers of both."""
    shard = cluster.states[-1].shards[group]
    middle = (shard.lo + shard.hi) // 2
    first = cluster.states[-1].next_group
    job = cluster.states[-1].next_job
    await cluster.change(
        control.job_put("split", "docs", {}), control.shards_add(job, "docs", [
            (shard.lo, middle, shard.replicas), (middle, shard.hi, shard.replicas)]),
        control.shards_switch(job, "docs", [group], [first, first + 1]))
    return first, first + 1


# --- writes ---------------------------------------------------------------------------------------


def test_a_write_is_split_and_says_where_it_is() -> None:
    async def test(cluster: FakeCluster) -> None:
        done = await cluster.nodes["n2"].upsert("docs", batch(), soon())
        assert done.positions == ((1, 1), (2, 1), (3, 1))
        assert done.inserted == 3, "one of each group, as these count"
        assert [len(cluster.groups[group].log) for group in GROUPS] == [1, 1, 1]
        alone = await cluster.nodes["n2"].upsert("docs", batch(1), soon())
        assert len(alone.positions) == 1
        assert await cluster.nodes["n3"].count("docs", None, soon()) == 4
        nothing = await cluster.nodes["n1"].delete("docs", DeleteIds(()), soon())
        assert (nothing.deleted, nothing.positions) == (0, ())

    run(test, THREE)


def test_parts_carry_the_key_and_the_fingerprint_of_the_whole() -> None:
    async def test(cluster: FakeCluster) -> None:
        await cluster.nodes["n1"].upsert("docs", batch(), soon(token=token()))
        heads = {cluster.groups[group].log[0][2:2 + 1 + 3 + 8] for group in GROUPS}
        assert heads == {b"\x03key" + (7).to_bytes(8, "little")}

    run(test, THREE)


@pytest.mark.parametrize("keyed", [True, False])
def test_a_write_that_is_done_in_part_says_on_which_shards_and_is_finished_by_its_key(keyed: bool) -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.groups[2].leader = None
        with pytest.raises(OutcomeUnknown, match="not done on every shard: 2 of its shards have done") as told:
            await cluster.nodes["n1"].upsert("docs", batch(), soon(0.4, token=token() if keyed else None))
        fields = told.value.fields
        assert (fields["shards_done"], fields["shards_failed"], fields["shards_unknown"]) == ([1, 3], [2], [])
        assert fields["cause"] == "Unavailable"
        cluster.groups[2].leader = "n3"
        done = await cluster.nodes["n1"].upsert("docs", batch(), soon(token=token()))
        firsts = ((1, 1), (2, 1), (3, 1)) if keyed else ((1, 2), (2, 1), (3, 2))
        assert done.positions == firsts, "what was done is answered with where it was"

    run(test, THREE)


def test_where_nothing_was_done_the_error_is_as_ever() -> None:
    async def test(cluster: FakeCluster) -> None:
        for group in GROUPS:
            cluster.groups[group].leader = None
        with pytest.raises(Unavailable, match="no leader of 'docs' answered in time"):
            await cluster.nodes["n1"].upsert("docs", batch(), soon(0.3))

    run(test, THREE)


def test_of_a_part_without_a_key_nobody_knows() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.groups[3].loses.append(OutcomeUnknown("it went away"))
        with pytest.raises(OutcomeUnknown) as told:
            await cluster.nodes["n1"].upsert("docs", batch(), soon())
        assert (told.value.fields["shards_unknown"], told.value.fields["shards_done"]) == ([3], [1, 2])
        cluster.groups[3].loses.append(OutcomeUnknown("it went away"))
        done = await cluster.nodes["n1"].upsert("docs", batch(), soon(token=token()))
        assert dict(done.positions)[3] == 2, "with one it is asked again, and answered"

    run(test, THREE)


def test_a_refusal_of_one_part_says_what_was_done_of_the_others() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.groups[1].loses.append(InvalidArgument("idempotency_key", "was used for another write"))
        with pytest.raises(InvalidArgument, match="another write") as told:
            await cluster.nodes["n1"].upsert("docs", batch(), soon(token=token()))
        assert told.value.fields["shards_done"] == [2, 3]

    run(test, THREE)


def test_a_cancelled_write_frees_its_place() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.frozen = {"n1"}
        node = cluster.nodes["n2"]
        writing = asyncio.create_task(node.upsert("docs", batch(), soon()))
        await until(lambda: node.writer.gate.inside == 1)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert node.writer.gate.inside == 0

    run(test, THREE)


@pytest.mark.parametrize("layout", [Layout(), THREE])
def test_a_sealed_shard_is_waited_for_and_its_part_goes_to_those_that_take_its_place(layout: Layout) -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.sealed.add(1)
        node = cluster.nodes["n2"]
        writing = asyncio.create_task(node.upsert("docs", batch(), soon(token=token())))
        await asyncio.sleep(0.1)
        assert not writing.done()
        assert not cluster.groups[1].log, "what is refused does not come into the log"
        heirs = await split(cluster, 1)
        done = await writing
        assert set(heirs) <= {shard for shard, _ in done.positions}
        assert 1 not in dict(done.positions)
        assert node.counts.handed_on.get("rerouted", 0) + node.counts.handed_on["sealed"] >= 1
        cluster.sealed = set(heirs[:1])
        with pytest.raises(OutcomeUnknown, match="not done on every shard") as told:
            await node.upsert("docs", batch(), soon(0.3, token=token(b"other")))
        assert told.value.fields["shards_failed"] == [heirs[0]]

    run(test, layout)


def test_of_a_shard_key_every_record_has_a_value() -> None:
    async def test(cluster: FakeCluster) -> None:
        with pytest.raises(InvalidArgument, match=r"metadata\[0\]\.tenant: is the collection's shard key"):
            await cluster.nodes["n2"].upsert("docs", batch(2), soon())
        tenants = UpsertBatch((1, 2), np.ones((2, 2), np.float32), (b'{"tenant":"a"}',) * 2)
        assert len((await cluster.nodes["n2"].upsert("docs", tenants, soon())).positions) == 1
        assert len((await cluster.nodes["n2"].delete("docs", DeleteIds((1,)), soon())).positions) == 3

    run(test, Layout(shards=3, shard_key="tenant"))
    run(lambda cluster: _refused(cluster.nodes["n1"]), Layout(shard_key="tenant"))


async def _refused(node: ReplicatedNode) -> None:
    with pytest.raises(InvalidArgument, match="shard key"):
        await node.upsert("docs", batch(2), soon())


# --- reads ----------------------------------------------------------------------------------------


def request(*rows: float) -> QueryRequest:
    return QueryRequest(np.array([[one, 0.0] for one in rows], np.float32), 2)


def test_every_shard_answers_and_the_nearest_of_all_are_found() -> None:
    async def test(cluster: FakeCluster) -> None:
        found = await cluster.nodes["n3"].query("docs", request(1.0, 2.0), soon())
        assert [one.ids for one in found.matches] == [[1, 2], [1, 2]], "all are as far: the lowest two"
        assert found.matches[1].distances.tolist() == [2.0, 2.0]
        calls = [call for what, call in cluster.engines["n3"].calls if what == "query"]
        assert len({id(call) for call in calls}) == 3, "who ends one of them ends no other"
        assert not [one for one in cluster.asked if one.startswith("query")], "all are here"

    run(test, THREE)


@pytest.mark.parametrize("consistency", list(Consistency))
def test_reads_of_every_consistency_see_what_they_must_on_every_shard(consistency: Consistency) -> None:
    async def test(cluster: FakeCluster) -> None:
        for group in GROUPS:
            cluster.groups[group].behind.add("n2")
        done = await cluster.nodes["n1"].upsert("docs", batch(), soon())
        session = done.positions if consistency is Consistency.SESSION else ()
        seen = await cluster.nodes["n2"].count("docs", None, soon(consistency=consistency, session=session))
        assert seen == (0 if consistency is Consistency.EVENTUAL else 3)

    run(test, THREE)


def test_a_part_that_nobody_answers_fails_the_call_or_is_named_as_missing() -> None:
    async def test(cluster: FakeCluster) -> None:
        node = cluster.nodes["n1"]
        await node.upsert("docs", batch(), soon())
        for name in NAMES:
            cluster.groups[2].states[name] = "halted"
        await asyncio.sleep(1.5 * LOOK_S)
        with pytest.raises((Unavailable, DeadlineExceeded)) as failed:  # on a slow machine the deadline may come first
            await node.count("docs", None, soon(1.0))
        assert failed.value.fields["shard"] == 2
        assert isinstance(failed.value, DeadlineExceeded) or "docs" in failed.value.message
        counted = await node.count("docs", None, soon(1.5, allow_partial=True))
        assert isinstance(counted, Count)
        assert (counted, counted.missing, counted.partial) == (2, ("shard 2",), True)
        found = await node.query("docs", request(1.0), soon(1.5, allow_partial=True))
        assert (found.matches[0].ids, found.missing) == ([1, 3], ("shard 2",))
        cluster.records = {1: [10, 11], 2: [20], 3: [30]}
        page = await node.scan("docs", ScanRequest(), soon(2.0, allow_partial=True))
        assert (page.ids, page.missing, page.cursor) == ([10, 11, 30], ("shard 2",), None)
        for group in (1, 3):
            for name in NAMES:
                cluster.groups[group].states[name] = "halted"
        await asyncio.sleep(1.5 * LOOK_S)
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await node.count("docs", None, soon(1.0, allow_partial=True))

    run(test, THREE)


def test_a_slow_shard_does_not_hold_a_partial_answer_past_the_deadline() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.placed = ("n2",)
        cluster.frozen = {"n2"}
        await cluster.change(control.place(3, ["n2"]))
        cluster.groups[3].applied = {"n2": 0}
        await asyncio.sleep(1.5 * LOOK_S)
        counted = await cluster.nodes["n1"].count("docs", None, soon(1.5, allow_partial=True))
        assert isinstance(counted, Count)
        assert counted.missing == ("shard 3",)

    run(test, THREE)


def test_a_shard_that_moves_is_looked_for_where_it_was_until_it_has_moved() -> None:
    async def test(cluster: FakeCluster) -> None:
        nodes = [control.NodeEntry(name, f"{name}:7702") for name in NAMES]
        await cluster.change(*map(control.node_put, nodes), control.job_put("move", "1", {}))
        (job,) = cluster.states[-1].jobs
        moving = {"1": {"desired": ["n3"], "before": ["n2"]}}
        await cluster.change(control.job_update(job, state=JobState.RUNNING, data={"moving": moving}),
                             control.place(1, ["n3"]))
        entry, own = cluster.nodes["n1"], cluster.nodes["n3"]
        for node in (entry, own):  # n2 alone has it: neither the one that asks nor the one that it goes to
            assert await node.count("docs", None, soon()) == 0
        assert (await entry.upsert("docs", batch(), soon())).inserted == 1
        assert entry.know.members(cluster.states[-1].labelled("docs")) == ["n3", "n2"]
        await cluster.change(control.job_update(job, state=JobState.DONE, data={"moving": moving}))
        assert entry.know.members(cluster.states[-1].labelled("docs")) == ["n3"]

    run(test, placed=("n2",), leader="n2")


@pytest.mark.parametrize("frozen", ["n1", "n3"])
def test_a_read_that_hangs_on_one_node_is_asked_of_another(frozen: str) -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.frozen = {frozen}
        for _ in range(6):
            assert await cluster.nodes["n2"].count("docs", None, soon(20)) == 0
        assert cluster.nodes["n2"].counts.handed_on.get("hedge", 0) >= 1 or f"count {frozen}" not in cluster.asked

    run(test, placed=("n1", "n3"))


def test_who_asks_for_a_shard_that_is_no_more_is_told_and_asks_its_successors() -> None:
    async def test(cluster: FakeCluster) -> None:
        await cluster.nodes["n1"].upsert("docs", batch(), soon())
        with cluster.behind("n2", name=None):
            heirs = await split(cluster, 2)
            for group in heirs:
                cluster.groups[group].log.append(b"\x01\x01\x00")
                cluster.groups[group].move()
            for name in NAMES:
                cluster.groups[2].states[name] = "halted" if name == "n2" else "ok"
            reading = asyncio.create_task(cluster.nodes["n2"].count("docs", None, soon()))
            await asyncio.sleep(0.1)
        assert await reading == 4, "the two others, and both that took its place"
        assert cluster.nodes["n2"].counts.handed_on["stale_map"] >= 1

    run(test, THREE)


def test_shards_asked_for_by_number_answer_for_themselves_or_say_that_they_are_no_more() -> None:
    async def test(cluster: FakeCluster) -> None:
        await cluster.nodes["n1"].upsert("docs", batch(), soon())
        node = cluster.nodes["n2"]
        assert await node.count("docs", None, soon(shards=(1, 3))) == 2
        mapped = await node.shard_map("docs", soon())
        assert [one.group for one in mapped.shards] == [1, 2, 3]
        assert (mapped.shards[0].lo, mapped.shards[-1].hi) == (0, HASH_SPACE)
        assert mapped.shards[0].nodes == NAMES
        await split(cluster, 1)
        with pytest.raises(StaleShardMap) as told:
            await node.count("docs", None, soon(shards=(1, 3)))
        assert told.value.fields["epoch"] > mapped.epoch
        assert (await node.shard_map("docs", soon())).epoch > mapped.epoch
        with pytest.raises(Unsupported):
            await node.scan("docs", ScanRequest(), soon(shards=(3,)))
        with pytest.raises(CollectionNotFound):
            await node.count("nothing", None, soon(shards=(3,)))

    run(test, THREE)


def test_a_session_that_wrote_before_a_split_finds_it_after() -> None:
    async def test(cluster: FakeCluster) -> None:
        done = await cluster.nodes["n1"].upsert("docs", batch(), soon())
        heirs = await split(cluster, 2)
        for group in heirs:
            cluster.groups[group].behind.add("n2")
            cluster.groups[group].log.append(b"\x01\x01\x00")
            cluster.groups[group].move()
        node = cluster.nodes["n2"]
        call = soon(session=done.positions, consistency=Consistency.SESSION)
        assert await node.count("docs", None, call) == 4, "what a successor lacks here is found where it is"
        for group in heirs:
            cluster.groups[group].behind.clear()
            cluster.groups[group].move()
        assert await node.count("docs", None, soon(session=done.positions, consistency=Consistency.SESSION)) == 4
        cluster.asked.clear()
        assert await node.count("docs", None, soon(session=done.positions, consistency=Consistency.SESSION)) == 4
        assert not [one for one in cluster.asked if one.startswith("read_index")], "once is enough"

    run(test, THREE)


# --- scans ----------------------------------------------------------------------------------------


async def pages(node: Any, limit: int, call: Any = soon, after: Any = 0) -> list[int]:
    out: list[int] = []
    while after is not None:
        page = await node.scan("docs", ScanRequest(limit=limit, after=after), call())
        assert len(page.ids) <= limit
        assert len(page.metadata) == len(page.ids)
        out += page.ids
        after = page.cursor
    return out


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
def test_a_scan_goes_through_all_shards(limit: int) -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.records = {1: [10, 11, 12], 2: [], 3: [30, 31]}
        assert await pages(cluster.nodes["n2"], limit) == [10, 11, 12, 30, 31]
        first = await cluster.nodes["n1"].scan("docs", ScanRequest(limit=4), soon())
        assert first.ids == [10, 11, 12, 30], "a page is filled from the next shard"

    run(test, THREE)


@pytest.mark.parametrize("at", range(6))
def test_a_scan_goes_on_in_a_shard_that_was_split_as_it_was(at: int) -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.records = {1: [10, 11], 2: [20, 21], 3: [30]}
        node = cluster.nodes["n2"]
        found, after = [], 0
        for _ in range(at):
            page = await node.scan("docs", ScanRequest(limit=1, after=after), soon())
            found += page.ids
            after = page.cursor  # type: ignore[assignment]
            if after is None:
                break
        low, high = await split(cluster, 2)
        cluster.records |= {low: [20], high: [21]}
        if after is not None:
            found += await pages(node, 2, after=after)
        assert sorted(found) == [10, 11, 20, 21, 30], "each once, whenever it was"

    run(test, THREE)


def test_a_place_in_a_shard_that_is_gone_is_refused() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.records = {1: [10, 11]}
        node = cluster.nodes["n1"]
        page = await node.scan("docs", ScanRequest(limit=1), soon())
        (low, high) = await split(cluster, 1)
        assert await pages(node, 1, after=page.cursor) == [11]
        for session, consistency in ((((low, 5),), Consistency.SESSION), ((), Consistency.LINEARIZABLE)):
            with pytest.raises(StaleCursor, match="begin the scan anew"):
                await node.scan("docs", ScanRequest(limit=1, after=page.cursor),  # type: ignore[arg-type]
                                soon(session=session, consistency=consistency))
        await cluster.change(control.shards_forget([1]))
        with pytest.raises(StaleCursor):
            await node.scan("docs", ScanRequest(limit=1, after=page.cursor), soon())  # type: ignore[arg-type]
        assert high in {one.group for one in await node.shards("docs", soon())}

    run(test, THREE)


def test_a_cursor_from_before_the_only_shard_was_split_goes_on_in_it() -> None:
    async def test(cluster: FakeCluster) -> None:
        cluster.records = {1: [10, 11, 12]}
        node = cluster.nodes["n1"]
        page = await node.scan("docs", ScanRequest(limit=1), soon())
        assert page.cursor == 1, "a place, as it always was"
        low, high = await split(cluster, 1)
        cluster.records |= {low: [10, 12], high: [11]}
        assert await pages(node, 1, after=page.cursor) == [11, 12]
        assert sorted(await pages(node, 1)) == [10, 11, 12]

    run(test)


@pytest.mark.parametrize("cursor", [b"", b"\x01", b"\x02" + bytes(24), bytes(25), b"\x01" + bytes(30)])
def test_what_is_no_cursor_is_refused(cursor: bytes) -> None:
    async def test(cluster: FakeCluster) -> None:
        with pytest.raises(InvalidArgument, match="no cursor"):
            await cluster.nodes["n1"].scan("docs", ScanRequest(after=cursor), soon())

    run(test, THREE)


# --- maintenance ----------------------------------------------------------------------------------


def test_what_is_told_of_a_collection_is_of_all_its_shards() -> None:
    async def test(cluster: FakeCluster) -> None:
        await cluster.nodes["n1"].upsert("docs", batch(), soon())
        node = cluster.nodes["n2"]
        told = await node.describe("docs", soon())
        assert (told.name, told.records) == ("docs", 3)
        assert [one["shard"] for one in told.details["shards"]] == [1, 2, 3]
        assert all(one["leader"] == "n1/7" for one in told.details["shards"])
        done: list[tuple[str, int, int]] = []
        assert (await node.optimize("docs", soon(), lambda *news: done.append(news))).name == "docs"
        assert {stage for stage, _, _ in done} == {"shard 1: seal", "shard 2: seal", "shard 3: seal"}
        assert len(await node.jobs("docs", soon())) == 9
        shards = await cluster.shards["n2"].list("docs", soon())
        assert [one.group for one in shards] == [1, 2, 3]
        assert (await cluster.shards["n2"].verify("docs@2", soon())).group == 2
        with pytest.raises(InvalidArgument, match="docs@1, docs@2, docs@3"):
            await cluster.shards["n2"].verify("docs", soon())

    run(test, THREE)


def test_records_are_where_their_hash_says() -> None:
    async def test(cluster: FakeCluster) -> None:
        shards = await cluster.nodes["n1"].shards("docs", soon())
        for identity in range(40):
            done = await cluster.nodes["n1"].delete("docs", DeleteIds((identity,)), soon())
            (shard,) = [one for one in shards if one.lo <= hash_of_id(identity) < one.hi]
            assert done.shard == shard.group

    run(test, THREE)
