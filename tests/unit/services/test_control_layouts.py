"""Where the control group's leader puts new collections, and what it proposes at all."""

import asyncio
from dataclasses import replace

import pytest

from vecdb.cluster.control import CollectionEntry, ControlState, NodeEntry, apply, setting_put
from vecdb.core.cluster import JobState, NodeState, Role
from vecdb.core.errors import InvalidArgument, KeyNotFound, NotLeader, Unavailable, Unsupported
from vecdb.core.layout import Layout
from vecdb.core.schema import CollectionSchema
from vecdb.ports.replicator import Committed, ReplicaStatus
from vecdb.services.control import Control
from vecdb.testing.disk import MemoryStore

NAMES = tuple(f"n{at}" for at in range(1, 7))
SCHEMA = CollectionSchema("docs", 4)


class Leader:
    """Commits at once."""

    def __init__(self, control, heard=None):
        self.control, self.heard, self.role = control, heard or {}, "leader"
        self.machine = control.open()

    def status(self):
        voters, others = NAMES[:3], NAMES[3:]
        return ReplicaStatus("n1/1", "ok", self.role, 1, "n1/1", 1, 1, 1, 1, 0, tuple(f"{one}/1" for one in voters),
                             tuple(f"{one}/2" for one in others), heard_s=self.heard)

    async def propose(self, command, deadline):
        at = self.machine.state.log_index + 1
        outcome = self.machine.apply(at, 1, command)
        if isinstance(outcome, Exception):
            raise outcome
        return Committed(at, outcome)


def made(announced=False, heard=None):
    control = Control(None, lambda path: MemoryStore(), replication_factor=3, announced=announced)
    control.replicator = Leader(control, heard)
    return control


def node(name, role=Role.SHARD, **more):
    return NodeEntry(name, f"{name}:7702", role=role, **more)


def test_shards_go_to_nodes_that_hold_replicas_by_zone_and_capacity():
    async def story():
        control = made(announced=True)
        for at, name in enumerate(NAMES):
            await control.node_put(node(name, Role.COORDINATOR if at == 0 else Role.BOTH, zone="ab"[at % 2],
                                        capacity=2.0 if name == "n2" else 1.0))
        await control.node_state("n6", NodeState.DRAINING, 1.0)
        entry = await control.create(SCHEMA, layout=Layout(shards=60, replication_factor=2, shard_key="tenant"))
        assert (len(entry.shards), entry.replication_factor, entry.shard_key) == (60, 2, "tenant")
        shards = control.state.of("docs")
        assert len({one.hi - one.lo for one in shards}) <= 2
        zones = {name: one.zone for name, one in control.state.nodes.items()}
        assert all({zones[name] for name in one.desired} == {"a", "b"} for one in shards)
        loads = control.state.loads()
        assert set(loads) == {"n2", "n3", "n4", "n5"}
        assert loads["n2"] > 1.5 * loads["n4"]
        assert abs(loads["n3"] - loads["n5"]) <= 6
        assert {one.replicas[0].rpartition("/")[2] for one in shards} <= {"1", "2"}
        with pytest.raises(InvalidArgument):
            await control.create(replace(SCHEMA, name="more"), layout=Layout(replication_factor=5))
        many = await control.create(replace(SCHEMA, name="many"), layout=Layout(expected_records=10_000_000))
        assert (len(many.shards), many.replication_factor) == (4, 3)
        one = await control.create(replace(SCHEMA, name="one"))
        assert control.state.only("one").label == "one"
        assert len(control.state.only("one").desired) == one.replication_factor == 3

    asyncio.run(story())


def test_a_new_collection_avoids_disks_that_are_nearly_full_while_there_are_others():
    async def story():
        control = made(announced=True, heard={f"{name}/{1 if name < 'n4' else 2}": 0.1 for name in NAMES})
        control.low = {"n2", "n5"}.__contains__
        for at, name in enumerate(NAMES):
            await control.node_put(node(name, zone="ab"[at % 2]))
        await control.create(SCHEMA, layout=Layout(shards=20, replication_factor=3))
        assert {name for one in control.state.of("docs") for name in one.desired} == {"n1", "n3", "n4", "n6"}
        await control.create(replace(SCHEMA, name="more"), layout=Layout(shards=1, replication_factor=5))
        assert len(set(control.state.of("more")[0].desired) & {"n2", "n5"}) == 1, "there are but four others"

    asyncio.run(story())


def test_who_has_not_announced_himself_is_waited_for_while_he_is_heard():
    async def story():
        control = made(announced=True, heard={"n5/2": 99.0, "n6/2": 99.0})
        for name in NAMES[:3]:
            await control.node_put(node(name))
        with pytest.raises(Unavailable, match="n4"):
            await control.create(SCHEMA)
        await control.node_put(node("n4", Role.COORDINATOR))
        await control.create(SCHEMA)
        assert control.state.only("docs").desired == ("n1", "n2", "n3")

    asyncio.run(story())


def test_of_the_nodes_of_a_new_shard_a_majority_must_be_heard():
    """The others count all the same, and make their replicas when they are back."""
    async def story():
        heard = {"n2/1": 99.0, "n3/1": 99.0}
        control = made(announced=True, heard=heard)
        for name in NAMES:
            await control.node_put(node(name, Role.BOTH if name < "n4" else Role.COORDINATOR))
        with pytest.raises(Unavailable, match="n2, n3 are not"):
            await control.create(SCHEMA)
        assert "docs" not in control.state.collections
        del heard["n2/1"]
        assert (await control.create(SCHEMA)).replication_factor == 3
        assert sorted(control.state.only("docs").desired) == ["n1", "n2", "n3"]

    asyncio.run(story())


def test_nothing_is_proposed_that_a_node_could_not_read():
    async def story():
        control = made()
        await control.node_put(node("n1", commands=1, version="1.0"))
        with pytest.raises(Unsupported, match="n1"):
            await control.setting_put("x", 1)
        with pytest.raises(Unsupported):
            await control.create(SCHEMA, layout=Layout(shards=2))
        assert isinstance(await control.create(SCHEMA, layout=Layout(replication_factor=1)), CollectionEntry)
        assert isinstance(await control.drop("docs"), CollectionEntry)
        control.replicator.role = "follower"
        with pytest.raises(NotLeader):
            await control.drop("docs")

    asyncio.run(story())


def test_jobs_shards_and_settings_by_method():
    async def story():
        control, heard = made(), []
        for name in NAMES:
            await control.node_put(node(name))
        await control.create(SCHEMA, layout=Layout(shards=1, replication_factor=1))
        control.on_change(heard.append)
        job = await control.job_put("split", "docs", {"at": 2}, 1.0)
        first, = control.state.get("docs").shards
        groups = await control.shards_add(job.id, "docs", [(0, 1 << 63, ["n1/1"]), (1 << 63, 1 << 64, ["n2/1"])])
        await control.place(groups[0], ["n4"])
        entry = await control.shards_switch(job.id, "docs", [first], groups)
        assert entry.shards == groups
        assert await control.shards_forget([first]) == (first,)
        assert control.state.was_dropped(first)
        done = await control.job_update(replace(job, state=JobState.DONE, done=2), 2.0)
        assert (done.state, done.args, (await control.job_cancel(job.id, 3.0)).state) == (
            JobState.DONE, {"at": 2}, JobState.DONE)
        await control.replication("docs", 2)
        await control.setting_put("scrub_every_s", 60.0)
        await control.token_revoke("none")
        with pytest.raises(KeyNotFound):
            await control.api_key_revoke("none", 4.0)
        with pytest.raises(InvalidArgument):
            await control.node_remove("n4", 5.0)
        assert (await control.node_remove("n6", 5.0)).state is NodeState.LEFT
        assert len({state.log_index for state in heard}) == len(heard) == 9
        assert heard[-1] == control.state

    asyncio.run(story())


def test_listeners_hear_of_what_has_changed_alone():
    control, heard = made(), []
    control.on_change(heard.append)
    machine = control.replicator.machine
    for at, value in enumerate((1, 1, 2, None, None)):
        machine.apply(at + 1, 1, setting_put("x", value))
    assert [dict(state.settings) for state in heard] == [{"x": 1}, {"x": 2}, {}]
    assert apply(ControlState(), 1, 1, setting_put("x", None)).state == ControlState(log_index=1, term=1)
