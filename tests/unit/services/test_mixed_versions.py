"""Nodes of two releases in one cluster: what is not proposed yet, and who is not wanted."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.services.governed import Control as Governing
from tests.unit.services.governed import Governed
from tests.unit.services.test_registrar import FOUNDERS, NEW, Bench
from vecdb.cluster.control import ControlState, NodeEntry, apply, drop, job_put, node_put
from vecdb.cluster.joining import Candidate
from vecdb.core.calls import Call
from vecdb.core.cluster import NodeState, Role
from vecdb.core.errors import FormatMismatch, InvalidArgument, JoinRefused, Unavailable, Unsupported
from vecdb.ports.replicator import ReplicaStatus
from vecdb.services.administration import OwnOperations
from vecdb.services.control import Control
from vecdb.services.governor import Governor
from vecdb.services.operations.base import COMMANDS, commands_of
from vecdb.services.operations.kinds import Rebalance
from vecdb.serving.governing import Backing, operations
from vecdb.testing.disk import MemoryStore

FOUNDER = Candidate("c1", 1, "c1:7702", role=Role.COORDINATOR, version="1.4.0", commands=2)


def founder(bench: Bench, at: int, version: str = "1.4.0", commands: int = 2) -> None:
    name = f"c{at}"
    bench.hear(replace(FOUNDER, name=name, address=FOUNDERS[name], version=version, commands=commands),
               f"{name}/{at}", joining=False)


# --- who is not wanted ----------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "fits"), [("1.3.9", True), ("1.5.0", True), ("1.2.0", False), ("1.6.0", False),
                                               ("2.4.0", False), ("0+unknown", True)])
def test_a_member_that_was_started_two_minors_away_is_refused(version: str, fits: bool) -> None:
    bench = Bench()
    founder(bench, 2)
    before = bench.nodes["c2"]
    if fits:
        founder(bench, 2, version)
        assert bench.nodes["c2"].version == version
        return
    with pytest.raises(JoinRefused, match="one minor version apart") as refused:
        founder(bench, 2, version)
    assert refused.value.reason == "version"
    assert bench.nodes["c2"] == before


def test_a_release_is_not_taken_back_once_all_have_it() -> None:
    bench = Bench()
    for one in ("c1", "c2"):
        bench.group.put(node_put(replace(bench.nodes[one], commands=3)))
    founder(bench, 3, "1.3.0")  # it never had the later one, nor has the cluster agreed on it
    bench.group.put(node_put(replace(bench.nodes["c3"], commands=3)))
    for one in (NEW, replace(NEW, name="c3", address=FOUNDERS["c3"])):
        with pytest.raises(JoinRefused, match="cannot be taken back") as refused:
            bench.hear(one, joining=False)
        assert refused.value.reason == "version"
    with pytest.raises(JoinRefused, match="cannot be taken back"):
        bench.admit()
    bench.admit(replace(NEW, commands=3))


def test_a_store_that_may_be_followed_by_what_cannot_be_read_is_not_opened() -> None:
    store = MemoryStore()
    control = Control(None, lambda path: store, replication_factor=1, reads=3)  # type: ignore[arg-type]
    control.open().apply(1, 1, node_put(NodeEntry("c1", "c1:1", commands=3)))
    older = Control(None, lambda path: store, replication_factor=1, reads=2)  # type: ignore[arg-type]
    with pytest.raises(FormatMismatch, match="agreed on commands of version 3"):
        older.open()


# --- a founder that is away -----------------------------------------------------------------------


def test_a_founder_that_is_away_keeps_nobody_out_and_one_that_is_heard_does() -> None:
    bench = Bench(registered=False)
    founder(bench, 1)
    founder(bench, 2)
    assert bench.nodes == {}, "the third is heard, and may be of a version that knows no nodes"
    bench.group.status_now = replace(bench.group.status_now, heard_s={"c2/2": 0.1, "c3/3": 60.0})
    founder(bench, 1)
    with pytest.raises(Unavailable, match="c2, c3"):
        bench.admit()
    founder(bench, 2)
    assert set(bench.nodes) == {"c1", "c2"}
    bench.admit()
    founder(bench, 3)
    assert {"c1", "c2", "c3", "s1"} == set(bench.nodes)


def test_a_minority_of_the_founders_lets_nobody_in() -> None:
    bench = Bench(registered=False)
    bench.group.status_now = replace(bench.group.status_now, heard_s={"c2/2": 60.0, "c3/3": 60.0})
    founder(bench, 1)
    assert bench.nodes == {}
    with pytest.raises(Unavailable):
        bench.admit()


# --- what is not proposed yet ---------------------------------------------------------------------


def test_commands_wait_for_the_node_that_reads_least() -> None:
    control = Control(None, lambda path: MemoryStore(), replication_factor=1)  # type: ignore[arg-type]
    replica = control.open()
    control.check_read(2)  # nobody announces himself here
    told: dict[str, int] = {"c1": 2}
    control.told = told.get

    class Group:
        def status(self) -> ReplicaStatus:
            return ReplicaStatus("c1/1", "ok", "leader", 1, "c1/1", 1, 1, 1, 1, 0, ("c1/1", "c2/2", "c3/3"),
                                 heard_s={"c2/2": 0.1, "c3/3": 99.0})

    control.replicator = Group()  # type: ignore[assignment]
    control.check_read(1)
    with pytest.raises(Unavailable, match="c2 has not told"):
        control.check_read(2)
    told["c2"] = 1
    with pytest.raises(Unsupported, match="c2 would not understand it") as refused:
        control.check_read(2)
    assert refused.value.fields["nodes"] == ["c2"]
    told["c2"] = 2
    control.check_read(2)
    for at, (name, commands) in enumerate((("c1", 3), ("c2", 2), ("c3", 3)), 1):
        replica.apply(at, 1, node_put(NodeEntry(name, f"{name}:{at}", commands=commands)))
    with pytest.raises(Unsupported) as refused:
        control.check_read(3)
    assert refused.value.fields["nodes"] == ["c2"]


def test_an_old_node_applies_what_it_cannot_read_as_nothing() -> None:
    command = job_put("scrub", "docs", {})
    assert isinstance(apply(ControlState(), 1, 1, command, 1).outcome, InvalidArgument)
    assert not isinstance(apply(ControlState(), 1, 1, command, 2).outcome, InvalidArgument)
    assert "version" not in str(apply(ControlState(), 1, 1, drop("docs"), 1).outcome)


class Later(Rebalance):
    """A kind whose steps propose what only later releases read."""

    command_version = 3


def test_jobs_of_every_kind_may_be_begun_where_all_are_of_this_release() -> None:
    backing = Backing(_unasked, _unasked, "tests", "1.0.0")
    kinds = operations(_unasked, _unasked, backing)
    assert {"split", "merge", "move", "drain", "snapshot"} <= set(kinds)
    assert {name: commands_of(one) for name, one in kinds.items()} == dict.fromkeys(kinds, COMMANDS)


def _unasked(*_: Any) -> Any:
    raise AssertionError("nobody asks for it here")


def test_a_job_of_a_later_release_is_not_begun() -> None:
    async def run() -> None:
        governed = Governed(3)
        kinds: dict[str, Any] = {"rebalance": Later()}
        one = Governor("c1", Governing(governed), governed.replicas, governed, governed.clock, kinds)
        own = OwnOperations("c1", "tests", Governing(governed), one, kinds, dict)
        with pytest.raises(Unsupported) as refused:
            await own.begin_job("rebalance", "", {}, Call())
        assert refused.value.fields["nodes"] == ["n1", "n2", "n3"]
        assert governed.now.jobs == {}
        for node in list(governed.now.nodes.values()):
            governed.do(node_put(replace(node, commands=3, state=NodeState.ACTIVE)))
        assert await own.begin_job("rebalance", "", {}, Call()) in governed.now.jobs

    asyncio.run(run())
