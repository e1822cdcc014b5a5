"""When a node is not ready for the sake of its replicas."""

from dataclasses import replace

import pytest

from vecdb.cluster.control import ControlState, ShardEntry
from vecdb.core.cluster import ShardState
from vecdb.core.schema import CollectionSchema
from vecdb.ports.replicator import ReplicaStatus
from vecdb.services.hosts import HostedShard
from vecdb.serving.readiness import UNLED_S, Readiness

WHOLE = ReplicaStatus(me="n3/7", state="ok", role="follower", term=2, leader="n1/7", commit=90, applied=90, first=1,
                      last=90, log_bytes=1, voters=("n1/7", "n2/7", "n3/7"))
JOINING = replace(WHOLE, state="joining", voters=(), applied=1, commit=1, current=False)
LEARNER = replace(WHOLE, voters=("n1/7", "n2/7"), joining=("n3/7",))
"""It has everything already, and no vote yet."""
REPLAYS = replace(WHOLE, applied=4, current=False)


class World:
    """The shards that are to be on n3, and how its replicas of them are."""

    def __init__(self, **replicas: ReplicaStatus | None) -> None:
        self.now = 100.0
        self.control = WHOLE
        self.replicas: dict[str, ReplicaStatus | None] = dict(replicas)
        self.states: dict[str, ShardState] = {}
        self.snapshot: tuple[int, int] | None = None
        self.readiness = Readiness("n3", lambda: self.now, lambda group: self.snapshot)

    def __call__(self) -> str:
        shards = {}
        for group, name in enumerate(sorted(self.replicas), 1):
            entry = ShardEntry.only(CollectionSchema(name=name, dim=2), group, ("n1/7", "n2/7", "n3/7"))
            shards[group] = replace(entry, state=self.states.get(name, ShardState.ACTIVE))
        hosted = {one.label: HostedShard(one.name, one.group, self.replicas[one.name], "") for one in shards.values()}
        return " ".join(self.readiness.reasons(self.control, ControlState({}, shards), hosted))


@pytest.mark.parametrize("how", [JOINING, LEARNER, REPLAYS, None, replace(WHOLE, state="removed")])
def test_a_replica_that_is_not_whole_at_the_start_is_waited_for(how: ReplicaStatus | None) -> None:
    world = World(a=WHOLE, docs=how)
    assert world() == "replicas here have not caught up yet: docs"
    world.replicas["docs"] = WHOLE
    assert not world()


def test_lag_behind_writes_that_go_on_is_nothing_to_wait_for() -> None:
    world = World(docs=WHOLE)
    assert not world()
    world.replicas["docs"] = replace(WHOLE, applied=90, commit=50_000, last=60_000)
    assert not world()


def test_a_replica_that_was_whole_and_is_rebuilt_is_waited_for_and_said_how_far_it_is() -> None:
    world = World(docs=WHOLE)
    assert not world()
    world.replicas["docs"] = JOINING
    world.snapshot = (3 << 20, 12 << 20)
    world.now += 10_000  # however long it takes: there is a leader
    assert world() == "replicas here have not caught up yet: docs (a snapshot comes: 3.0 of 12.0 MiB)"
    world.replicas["docs"] = WHOLE
    assert not world()


def test_what_is_moved_here_is_waited_for_only_once_its_group_counts_on_it() -> None:
    world = World(docs=WHOLE)
    assert not world()
    world.replicas["new"] = JOINING
    assert not world()
    world.replicas["new"] = WHOLE
    assert not world()
    world.replicas["new"] = REPLAYS
    assert "new" in world()
    del world.replicas["new"]
    assert not world()
    world.replicas["new"] = JOINING  # it was away, and comes again
    assert not world()


@pytest.mark.parametrize("how", [replace(JOINING, leader=None), replace(REPLAYS, leader=None)])
def test_a_shard_that_nobody_leads_is_waited_for_no_longer_than_a_while(how: ReplicaStatus) -> None:
    world = World(a=WHOLE, docs=how)
    assert "docs" in world()
    world.now += UNLED_S
    assert not world()
    world.replicas["docs"] = replace(how, leader="n1/7")
    assert "docs" in world()
    world.replicas["docs"] = how
    assert "docs" in world(), "the time begins anew: it was led meanwhile"
    world.now += UNLED_S
    assert not world()


def test_one_that_takes_long_to_open_is_waited_for_although_it_hears_of_no_leader() -> None:
    world = World(a=WHOLE, docs=None)
    assert "docs" in world()
    world.now += 2 * UNLED_S
    assert "docs" in world()
    world.replicas["docs"] = replace(REPLAYS, leader=None)
    assert "docs" in world(), "from now on it can hear of one"
    world.now += UNLED_S
    assert not world()


def test_a_shard_that_is_on_its_way_out_is_not_waited_for() -> None:
    world = World(docs=JOINING)
    world.states["docs"] = ShardState.RETIRED
    assert not world()


def test_the_control_group_comes_first() -> None:
    world = World(docs=WHOLE)
    world.control = replace(WHOLE, current=False)
    assert world() == "the control group's log is being replayed"
    world.control = LEARNER
    assert world() == "the control group's replica here has no vote yet"
    world.control = replace(WHOLE, voters=("n1/7",), learners=("n3/7",))
    assert not world(), "it observes"


def test_many_are_named_in_part() -> None:
    world = World(**dict.fromkeys(("a", "b", "c", "d", "e"), JOINING))
    assert world() == "replicas here have not caught up yet: a, b, c and 2 more"
