"""Shards that are asked of one node in one call: which they are, and what becomes of those that it does not answer."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from tests.fake_cluster import NAMES, FakeCluster, run, soon
from tests.unit.services.test_coordinator import batch, split
from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import DeadlineExceeded, InvalidArgument, Unavailable
from vecdb.core.layout import Layout
from vecdb.core.query import Count, QueryRequest, QueryResult
from vecdb.core.records import Record
from vecdb.services.coordinator import fan
from vecdb.services.coordinator.bundles import MOST, Bundles
from vecdb.services.coordinator.node import FEW_IDS, LIGHT_ROWS
from vecdb.services.replicas import LOOK_S

THREE = Layout(shards=3)
TWO_NODES = ("n1", "n3")
"""Those that have all shards, where n2 is asked, which has none."""


def request(*firsts: float, **more: Any) -> QueryRequest:
    return QueryRequest(np.array([[one, 0] for one in firsts or (1.0,)], np.float32), 3, **more)


def on(test: Callable[[FakeCluster, Any], Coroutine[Any, Any, None]], layout: Layout = THREE, **given: Any) -> None:
    async def whole(cluster: FakeCluster) -> None:
        await test(cluster, cluster.nodes["n2"])
        nodes, turns = cluster.nodes["n2"].reader.loads._nodes.values(), 0
        while any(one.flying for one in nodes):  # what was given up ends in the next turns of the loop
            await asyncio.sleep(0.01)
            assert (turns := turns + 1) < 500, "what began has not ended"
        assert all(one.flying == 0 for one in nodes), "what ended had begun"

    run(whole, layout, **{"placed": TWO_NODES, **given})


def asked(cluster: FakeCluster) -> Counter[str]:
    """Calls between nodes by method, since the last look."""
    found = Counter(one.partition(" ")[0] for one in cluster.asked)
    cluster.asked.clear()
    return found


def test_one_call_asks_a_node_for_all_its_shards() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        await node.upsert("docs", batch(), soon())
        asked(cluster)
        found = await node.query("docs", request(2.0, 5.0), soon())
        assert [one.ids for one in found.matches] == [[1, 2, 3]] * 2
        assert found.matches[1].distances.tolist() == [5.0] * 3
        assert asked(cluster) == {"query_shards": 1}
        assert (await node.count("docs", None, soon()), asked(cluster)) == (3, {"count_shards": 1})
        assert (await node.query("docs", request(), soon(shards=(1, 3)))).matches[0].ids == [1, 3]
        assert asked(cluster) == {"query_shards": 1}

    on(test)


def test_a_fetch_asks_each_shard_for_its_own_ids() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        wanted: dict[str, list[int]] = {}

        async def fetch(label: str, ids: Any, call: Call, **_: Any) -> list[Record]:
            wanted[label] = list(ids)
            return [Record(one) for one in ids if one != 7]

        for engine in cluster.engines.values():
            engine.fetch = fetch  # type: ignore[attr-defined]
        ids = [9, 3, 7, 3, *range(20, 40)]
        found = await node.fetch("docs", ids, soon())
        assert [one.id for one in found] == [one for one in ids if one != 7]
        assert asked(cluster) == {"fetch_shards": 1}
        assert sorted(one for some in wanted.values() for one in some) == sorted(set(ids))
        assert len(wanted) == 3
        many = list(range(FEW_IDS + 1))
        assert [one.id for one in await node.fetch("docs", many, soon())] == [one for one in many if one != 7]
        assert asked(cluster) == {"fetch": 3}, "their answers may be long"

    on(test)


def test_what_is_here_is_not_asked_for_elsewhere() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        assert (await node.query("docs", request(), soon())).matches[0].ids == [1, 2, 3]
        assert not asked(cluster)
        for group in (1, 3):
            cluster.groups[group].learning.add("n2")
        await asyncio.sleep(1.5 * LOOK_S)
        assert (await node.query("docs", request(), soon())).matches[0].ids == [1, 2, 3]
        assert asked(cluster) == {"query_shards": 1}
        assert cluster.engines["n2"].answered[-1] == "docs@2"

    on(test, placed=NAMES)


@pytest.mark.parametrize("asking", [request(explain=True), request(include_vectors=True, exact=True),
                                    request(*range(LIGHT_ROWS + 1))])
def test_what_is_long_or_explained_is_divided(asking: QueryRequest) -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        found = await node.query("docs", asking, soon())
        assert len(found.matches) == len(asking.vectors)
        calls = asked(cluster)
        assert calls == ({"query": 3} if asking.explain else {"query": 1, "query_shards": 1}), "of two nodes"
        assert (found.plan is not None) == asking.explain

    on(test)


@pytest.mark.parametrize("away", ["down", "mute", "frozen"])
def test_a_node_that_does_not_answer_is_not_waited_for(away: str) -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        await node.upsert("docs", batch(), soon())
        getattr(cluster, away).add("n3")
        for _ in range(6):
            assert await node.count("docs", None, soon(20)) == 3
        calls = asked(cluster)
        assert not calls["count"], "what one does not answer another is asked for, in one call"
        assert 6 <= calls["count_shards"] <= 12

    on(test)


@pytest.mark.parametrize("second", ["frozen", "down"])
def test_of_three_that_have_them_one_hangs_and_one_is_no_better(second: str) -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        await node.upsert("docs", batch(), soon())
        cluster.frozen.add("n1")
        getattr(cluster, second).add("n3")
        loads = node.reader.loads
        loads.began("n3")  # so that n1 is asked first, and n4 last
        for _ in range(2):
            loads.began("n4")
        assert await node.count("docs", None, soon(120)) == 3
        assert asked(cluster)["count_shards"] == 2
        for other in ("n3", "n4", "n4"):
            loads.ended(other, 0.0, 0.0)

    on(test, names=(*NAMES, "n4"), placed=("n1", "n3", "n4"))


def test_a_shard_that_one_node_cannot_answer_is_asked_of_another() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        cluster.groups[2].states["n1"] = "halted"
        await asyncio.sleep(1.5 * LOOK_S)
        for _ in range(4):
            node.reader.loads._nodes.clear()
            node.reader.loads.began("n3")  # so that n1 is the one to ask
            assert (await node.query("docs", request(), soon())).matches[0].ids == [1, 2, 3]
            node.reader.loads.ended("n3", 0.0, 0.0)
        calls = asked(cluster)
        assert calls == {"query_shards": 4, "query": 4}
        assert cluster.engines["n3"].answered == ["docs@2"] * 4
        assert not any(one.failed_until for one in node.reader.loads._nodes.values()), "the node is well"

    on(test)


async def told(ask: Callable[[Call], Coroutine[Any, Any, Any]], good: Callable[[Any], bool], **more: Any) -> None:
    """What a call ends with that has to wait for its deadline: a busy machine may need more time for the rest."""
    answers: list[Any] = []
    for seconds in (0.6, 2.5, 6.0):
        try:
            answers.append(await ask(soon(seconds, **more)))
        except (Unavailable, DeadlineExceeded) as error:
            answers.append(error)
        if good(answers[-1]):
            return
    raise AssertionError(answers)


def test_nobody_else_has_it_and_it_fails_as_ever() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        for name in TWO_NODES:
            cluster.groups[2].states[name] = "halted"
        await asyncio.sleep(1.5 * LOOK_S)
        await told(lambda call: node.count("docs", None, call),
                   lambda it: isinstance(it, Unavailable) and it.fields["shard"] == 2)
        await told(lambda call: node.count("docs", None, call),
                   lambda it: isinstance(it, Count) and (int(it), it.missing) == (0, ("shard 2",)), allow_partial=True)
        await told(lambda call: node.query("docs", request(), call),
                   lambda it: isinstance(it, QueryResult) and (it.matches[0].ids, it.missing) == ([1, 3], ("shard 2",)),
                   allow_partial=True)

    on(test)


def test_of_a_node_with_one_slow_shard_the_others_are_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # The end of the call is far off, so that waiting for it would show.
    monkeypatch.setattr(fan, "partial_until", lambda call, now: (now + 0.8, now + 1_000.0))

    async def test(cluster: FakeCluster, node: Any) -> None:
        engine = cluster.engines["n1"]
        query, held = engine.query, asyncio.Event()

        async def slowly(label: str, *args: Any) -> Any:
            if label == "docs@2":
                await held.wait()
            return await query(label, *args)

        engine.query = slowly  # type: ignore[assignment, method-assign]
        found = await node.query("docs", request(), soon(1_000.0, allow_partial=True))
        assert (found.matches[0].ids, found.missing) == ([1, 3], ("shard 2",))
        held.set()
        assert not (await node.query("docs", request(), soon(5.0, allow_partial=True))).missing

    on(test, placed=("n1",))


def test_a_node_of_an_earlier_release_is_asked_one_by_one() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        async def unknown(*_: Any, **__: Any) -> Any:
            raise Unavailable("node n1 does not know this call", unknown_call=True)

        cluster.own["n1"].query_shards = unknown  # type: ignore[method-assign]
        for _ in range(3):
            assert (await node.query("docs", request(), soon())).matches[0].ids == [1, 2, 3]
        assert asked(cluster) == {"query_shards": 1, "query": 9}, "once is enough"
        assert not any(one.failed_until for one in node.reader.loads._nodes.values()), "the node is well"
        node._fan._bundles._older.clear()  # as after a while, when it is of this release
        del cluster.own["n1"].query_shards
        assert (await node.query("docs", request(), soon())).matches[0].ids == [1, 2, 3]
        assert asked(cluster) == {"query_shards": 1}

    on(test, placed=("n1",))


def test_fresh_reads_go_to_who_leads() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        done = await node.upsert("docs", batch(), soon())
        for group in (1, 2, 3):
            cluster.groups[group].behind.add("n3")
            cluster.groups[group].log.append(b"\x01\x01\x00")
            cluster.groups[group].move()
        asked(cluster)
        assert await node.count("docs", None, soon(consistency=Consistency.LINEARIZABLE)) == 6
        assert asked(cluster)["count_shards"] == 1
        written = tuple((group, 2) for group, _ in done.positions)
        assert await node.count("docs", None, soon(session=written, consistency=Consistency.SESSION)) == 6
        cluster.groups[2].leader = "n3"
        cluster.groups[2].behind.clear()
        cluster.groups[2].move()
        for _ in range(2):  # the first finds out who leads
            assert await node.count("docs", None, soon(consistency=Consistency.LINEARIZABLE)) == 6
        asked(cluster)
        assert await node.count("docs", None, soon(consistency=Consistency.LINEARIZABLE)) == 6
        calls = asked(cluster)
        assert (calls["count_shards"], calls["count"]) == (1, 1)

    on(test)


def test_a_map_of_before_is_looked_at_anew() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        await node.upsert("docs", batch(), soon())
        with cluster.behind("n2", name=None):
            heirs = await split(cluster, 2)
            for group in heirs:
                cluster.groups[group].log.append(b"\x01\x01\x00")
                cluster.groups[group].move()
            reading = asyncio.create_task(node.count("docs", None, soon()))
            await asyncio.sleep(0.1)
            assert not reading.done()
        assert await reading == 4
        assert node.counts.handed_on["stale_map"] >= 1

    on(test)


def test_what_is_wrong_with_the_read_is_told() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        for engine in cluster.engines.values():
            engine.failing = InvalidArgument("filter", "is wrong")
        with pytest.raises(InvalidArgument, match="is wrong"):
            await node.query("docs", request(), soon())
        assert asked(cluster) == {"query_shards": 1}

    on(test)


def test_who_goes_is_not_worked_for() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        for engine in cluster.engines.values():
            engine.pause.clear()
        calls = [asyncio.create_task(node.query("docs", request(), soon())) for _ in range(3)]
        await asyncio.sleep(0.05)
        for one in calls:
            one.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended)
        await asyncio.sleep(0.05)
        assert not node.gathering._lanes

    on(test)


def test_queries_for_the_same_shards_of_a_node_travel_together() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        cluster.engines["n1"].pause.clear()
        calls = [asyncio.create_task(node.query("docs", request(float(at)), soon())) for at in range(8)]
        await asyncio.sleep(0.05)
        cluster.engines["n1"].pause.set()
        for at, one in enumerate(calls):
            found = (await one).matches
            assert [(match.ids, match.distances.tolist()) for match in found] == [([1, 2, 3], [at] * 3)]
        assert asked(cluster)["query_shards"] == 2
        assert node.gathering.gathered == 7

    on(test, placed=("n1",))


# --- which ----------------------------------------------------------------------------------------


def covered(cluster: FakeCluster, node: Any, heavy: bool = False) -> dict[str, int]:
    bundles: Bundles = node._fan._bundles
    shards = cluster.states[-1].of("docs")
    found = bundles.cover(shards, soon(), heavy)
    groups = [shard.group for one in found for shard in one.shards]
    assert len(groups) == len(set(groups))
    return {one.node: len(one.shards) for one in found}


def test_few_calls_are_made_where_nodes_are_alike() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        count = len(cluster.states[-1].of("docs"))
        assert sorted(covered(cluster, node).values()) == [count // 2] * 2, "no call is of too many"
        assert sorted(covered(cluster, node, heavy=True).values()) == [count // 2] * 2
        first = {next(iter(covered(cluster, node))) for _ in range(50)}
        assert first == set(TWO_NODES), "no node comes first by its name"

    on(test, Layout(shards=MOST + 2))


def test_who_is_slow_is_asked_for_less_and_who_has_failed_for_nothing() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        loads, now = node.reader.loads, node.know.clock.monotonic()
        loads.began("n1")
        loads.ended("n1", now, 0.05)
        assert covered(cluster, node) == {"n3": 3}
        loads.began("n3")
        loads.ended("n3", now, 0.0, failed=True)
        assert covered(cluster, node) == {"n1": 3}

    on(test)


def test_where_nobody_else_has_them_a_call_may_be_of_many() -> None:
    async def test(cluster: FakeCluster, node: Any) -> None:
        assert covered(cluster, node) == covered(cluster, node, heavy=True) == {"n1": 3 * MOST}

    on(test, Layout(shards=3 * MOST), placed=("n1",))
