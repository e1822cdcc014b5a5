"""What the control leader does about nodes, against a control group that does what it is told at once."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest

from tests.key_store import Clock
from vecdb.cluster.control import ControlState, NodeEntry, apply
from vecdb.cluster.control.commands import node_put, token_put
from vecdb.cluster.joining import Candidate, make_token
from vecdb.core.calls import Call
from vecdb.core.cluster import NodeState, Role
from vecdb.core.errors import JoinRefused, NotLeader, Unavailable
from vecdb.ports.replicator import Committed, ReplicaStatus
from vecdb.services.announcing import LATELY_S, Announcements, Report
from vecdb.services.directory import Directory
from vecdb.services.joining import FAREWELL_S, Registrar

FOUNDERS = {name: f"{name}:7702" for name in ("c1", "c2", "c3")}
NEW = Candidate("s1", 7, "s1:7702", role=Role.SHARD, version="1.4.0", commands=2)


@dataclass
class Group:
    """Met: control group and replicator."""

    state: ControlState = field(default_factory=ControlState)
    status_now: ReplicaStatus = field(default_factory=lambda: ReplicaStatus(
        "c1/1", "ok", "leader", 3, "c1/1", 9, 9, 1, 9, 0, ("c1/1", "c2/2", "c3/3"),
        matches={"c2/2": 9, "c3/3": 9}))
    changes: list[tuple[str | None, str | None, bool]] = field(default_factory=list)

    @property
    def replicator(self) -> "Group":
        return self

    def status(self) -> ReplicaStatus:
        return self.status_now

    def put(self, command: bytes) -> None:
        self.state = apply(self.state, self.state.log_index + 1, 3, command).state

    async def propose(self, command: bytes, deadline: float | None) -> Committed:
        self.put(command)
        return Committed(self.state.log_index, None)

    async def read_index(self, deadline: float | None) -> int:
        return self.state.log_index

    async def change_members(self, add: str | None, remove: str | None, deadline: float | None, *,
                             observe: bool = False) -> None:
        self.changes.append((add, remove, observe))
        status = self.status_now
        here = [one for one in (*status.voters, *status.learners) if one != remove]
        voters = [one for one in here if one in status.voters] + ([add] if add and not observe else [])
        learners = [one for one in here if one in status.learners] + ([add] if add and observe else [])
        self.status_now = replace(status, voters=tuple(voters), learners=tuple(learners))


class Bench:
    def __init__(self, *, registered: bool = True) -> None:
        self.clock, self.group = Clock(), Group()
        self.heard = Announcements(lambda: 3 if self.group.status_now.role == "leader" else 0, self.clock)
        directory = Directory("c1", "c1:7702", FOUNDERS, None, lambda: self.group.state.nodes)
        self.events: list[str] = []
        self.registrar = Registrar("c1", "1.4.0", self.group, directory, self.heard, self.clock,  # type: ignore[arg-type]
                                   tell=lambda level, event, **fields: self.events.append(event))
        self.heard.look()
        entry, self.token = make_token(Random(1).randbytes, self.clock.wall())
        self.group.put(token_put(entry))
        if registered:
            for name, address in FOUNDERS.items():
                self.group.put(node_put(NodeEntry(name, address, role=Role.COORDINATOR, version="1.4.0")))
        self.clock.now += LATELY_S + 1

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(work)

    def admit(self, one: Candidate = NEW, token: str | None = None) -> Any:
        return self.do(self.registrar.admit(one, self.token if token is None else token, Call()))

    def hear(self, one: Candidate = NEW, replica: str = "s1/70", *, joining: bool = True) -> None:
        self.do(self.registrar.announced(Report(one, replica, joining, 1, self.clock.wall())))

    def founder(self, number: int = 3, address: str = "c3:7702", *, incarnation: int = 1, replica: str = "") -> None:
        """Word by the name of c3, whose replica the control group has as c3/3."""
        one = Candidate("c3", number, address, role=Role.COORDINATOR, version="1.4.0", commands=2)
        self.do(self.registrar.announced(Report(one, replica or f"c3/{number}", number != 3, incarnation,
                                                self.clock.wall())))

    def settle(self) -> None:
        while self.do(self.registrar.look()):
            pass

    @property
    def nodes(self) -> dict[str, NodeEntry]:
        return dict(self.group.state.nodes)


def test_who_is_let_in_is_written_down_and_takes_part_once_it_has_a_replica() -> None:
    bench = Bench()
    assert bench.admit() == {**FOUNDERS, "s1": "s1:7702"}
    assert bench.nodes["s1"].role is Role.SHARD
    bench.settle()
    assert bench.group.changes == [], "there is no replica yet"
    bench.hear()
    bench.settle()
    assert bench.group.changes == [("s1/70", None, True)]
    bench.hear(joining=False)
    bench.settle()
    assert len(bench.group.changes) == 1
    assert bench.admit() == bench.admit(), "a reply that was lost is asked for again"
    assert bench.nodes["s1"].joined_s == bench.nodes["s1"].updated_s


def test_a_replica_that_was_lost_is_replaced_by_an_observer() -> None:
    bench = Bench()
    bench.admit()
    bench.hear()
    bench.settle()
    bench.hear(replica="s1/71")
    bench.settle()
    assert bench.group.changes[1:] == [("s1/71", "s1/70", True)]
    bench.hear(replica="c9/5")
    bench.settle()
    assert len(bench.group.changes) == 2, "nobody speaks for another's replica"


def test_who_joins_to_vote_votes_as_long_as_there_is_room() -> None:
    bench = Bench()
    bench.admit(replace(NEW, role=Role.COORDINATOR))
    bench.hear(replace(NEW, role=Role.COORDINATOR))
    bench.settle()
    assert bench.group.changes == [("s1/70", None, False)]
    bench.group.status_now = replace(bench.group.status_now, voters=tuple(f"v{one}/1" for one in range(7)))
    for one in range(7):
        bench.group.put(node_put(NodeEntry(f"v{one}", f"v{one}:1")))
    with pytest.raises(JoinRefused, match="as many as may") as refused:
        bench.admit(Candidate("x", 1, "x:1", role=Role.BOTH, version="1.4.0", commands=2))
    assert refused.value.reason == "full"
    bench.admit(Candidate("x", 1, "x:1", role=Role.SHARD, version="1.4.0", commands=2))


def test_names_in_use_are_refused_and_free_after_a_silence() -> None:
    bench = Bench()
    bench.admit()
    bench.hear(joining=False)
    for twin in (replace(NEW, number=8), replace(NEW, name="c1", address="x:1")):
        with pytest.raises(JoinRefused) as refused:
            bench.admit(twin)
        assert refused.value.reason == "name_in_use"
    bench.clock.now += LATELY_S
    bench.admit(replace(NEW, number=8))


def test_a_leader_that_is_new_does_not_know_who_lives() -> None:
    bench = Bench()
    bench.admit()
    bench.group.status_now = replace(bench.group.status_now, role="follower")
    with pytest.raises(NotLeader):
        bench.admit()
    bench.heard.look()
    bench.group.status_now = replace(bench.group.status_now, role="leader")
    with pytest.raises(Unavailable, match="not known yet"):
        bench.admit(replace(NEW, number=8))
    bench.clock.now += LATELY_S
    bench.admit(replace(NEW, number=8))


def test_nobody_joins_while_a_founder_may_be_of_a_version_that_knows_no_nodes() -> None:
    bench = Bench(registered=False)
    with pytest.raises(Unavailable, match="c1, c2, c3"):
        bench.admit()
    for name in ("c1", "c2"):
        bench.hear(Candidate(name, 1, FOUNDERS[name], role=Role.BOTH, version="1.4.0", commands=2), f"{name}/1",
                   joining=False)
    assert bench.nodes == {}
    bench.hear(Candidate("c3", 1, FOUNDERS["c3"], role=Role.BOTH, version="1.4.0", commands=2), "c3/3", joining=False)
    for name in ("c1", "c2"):
        bench.hear(Candidate(name, 1, FOUNDERS[name], role=Role.BOTH, version="1.4.0", commands=2), f"{name}/1",
                   joining=False)
    assert set(bench.nodes) == set(FOUNDERS)
    bench.admit()


def test_settings_that_changed_are_taken_over_but_not_who_votes() -> None:
    bench = Bench()
    bench.admit()
    bench.hear()
    bench.settle()
    bench.hear(replace(NEW, address="moved:1", zone="b", version="1.5.0"), joining=False)
    entry = bench.nodes["s1"]
    assert (entry.address, entry.zone, entry.version) == ("moved:1", "b", "1.5.0")
    bench.hear(replace(NEW, role=Role.BOTH, zone="c"), joining=False)
    assert bench.nodes["s1"] == entry
    assert "node_role_kept" in bench.events


def test_who_has_left_is_taken_out_and_is_not_written_down_again_by_its_own_word() -> None:
    bench = Bench()
    bench.admit()
    bench.hear()
    bench.settle()
    left = replace(bench.nodes["s1"], state=NodeState.LEFT)
    bench.group.state = replace(bench.group.state, nodes={**bench.group.state.nodes, "s1": left})
    bench.settle()
    assert len(bench.group.changes) == 1, "it is given a moment to hear of it"
    bench.clock.now += FAREWELL_S
    bench.settle()
    assert bench.group.changes[1:] == [(None, "s1/70", False)]
    bench.hear()
    bench.settle()
    assert bench.nodes["s1"].state is NodeState.LEFT
    assert len(bench.group.changes) == 2
    bench.clock.now += LATELY_S
    bench.admit(replace(NEW, number=9))
    bench.hear(replace(NEW, number=9), "s1/90")
    bench.settle()
    assert bench.nodes["s1"].state is NodeState.ACTIVE
    assert bench.group.changes[2:] == [("s1/90", None, True)]


def test_a_founder_s_address_is_not_taken_by_another_process_and_is_put_right_when_it_was() -> None:
    bench = Bench()
    bench.founder()
    with pytest.raises(JoinRefused) as refused:
        bench.founder(8, "elsewhere:1", incarnation=9)
    assert (refused.value.reason, bench.nodes["c3"].address) == ("name_in_use", "c3:7702")
    bench.group.put(node_put(replace(bench.nodes["c3"], address="elsewhere:1")))
    bench.founder()
    assert bench.nodes["c3"].address == "c3:7702"
    bench.clock.now += LATELY_S
    bench.founder(8, "elsewhere:1", incarnation=9)
    assert bench.nodes["c3"].address == "elsewhere:1", "as it may be where a disk was lost with its machine"
    bench.founder()
    assert bench.nodes["c3"].address == "c3:7702", "but not for as long as the first one lives, though it is older"


def test_a_new_leader_believes_no_other_disk_while_raft_hears_from_the_node() -> None:
    bench = Bench()
    bench.group.status_now = replace(bench.group.status_now, role="follower")
    bench.heard.look()
    bench.group.status_now = replace(bench.group.status_now, role="leader", heard_s={"c3/3": 0.1})
    with pytest.raises(Unavailable, match="not known yet"):
        bench.founder(8, "elsewhere:1", incarnation=9)
    bench.founder()
    bench.group.status_now = replace(bench.group.status_now, heard_s={"c2/2": 99.0, "c3/3": 99.0})
    with pytest.raises(JoinRefused):
        bench.founder(8, "elsewhere:1", incarnation=9)
    assert bench.nodes["c3"].address == "c3:7702"
