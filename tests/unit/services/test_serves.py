"""Which replicas answer reads: not one that has been opened again and is not as far as its group was."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from tests.key_store import Clock
from vecdb.cluster.control import ControlState, ShardEntry
from vecdb.core.schema import CollectionSchema
from vecdb.ports.replicator import ReplicaStatus
from vecdb.services.replicas import LOOK_S, UNLED_S, OwnReplicas

BEHIND = ReplicaStatus("n1/1", "ok", "follower", 3, "n2/2", 4, 2, 1, 9, 0, ("n1/1", "n2/2", "n3/3"), current=False)


class Bench:
    def __init__(self) -> None:
        self.status, self.clock = BEHIND, Clock()
        entry = ShardEntry.only(CollectionSchema("docs", 4), 1, BEHIND.voters)
        hosted: Any = SimpleNamespace(replicator=lambda label: SimpleNamespace(status=lambda: self.status))
        control: Any = SimpleNamespace(state=ControlState(shards={1: entry}))
        engine: Any = None
        self.own = OwnReplicas(engine, hosted, control, self.clock)

    def serves(self, **changes: Any) -> bool:
        self.status = replace(self.status, **changes)
        self.clock.now += 2 * LOOK_S
        return self.own.serves(1)


def test_who_is_not_as_far_as_the_group_was_sends_reads_elsewhere() -> None:
    bench = Bench()
    assert not bench.serves()
    assert bench.serves(current=True)
    assert bench.serves(leader=None), "it was as far, and a lost leader takes nothing away"
    assert not bench.serves(voters=("n2/2", "n3/3"))


def test_where_nobody_leads_for_a_while_what_there_is_is_served() -> None:
    bench = Bench()
    assert not bench.serves(leader=None)
    bench.clock.now += UNLED_S / 2
    assert not bench.serves()
    assert not bench.serves(leader="n2/2"), "somebody leads: there is more to come"
    assert not bench.serves(leader=None)
    bench.clock.now += UNLED_S - 4 * LOOK_S
    assert not bench.serves(), "it counts from when the leader was lost"
    bench.clock.now += 4 * LOOK_S
    assert bench.serves()
