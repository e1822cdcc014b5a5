"""A ready node warns of shards that nobody leads."""

from dataclasses import replace

from vecdb.cluster.control import ControlState, ShardEntry
from vecdb.core.cluster import ShardState
from vecdb.core.schema import CollectionSchema
from vecdb.ports.replicator import ReplicaStatus
from vecdb.services.hosts import HostedShard
from vecdb.serving.leaderless import AFTER_S, NAMED, Leaderless

LED = ReplicaStatus(me="n3/7", state="ok", role="follower", term=2, leader="n1/7", commit=90, applied=90, first=1,
                    last=90, log_bytes=1, voters=("n1/7", "n2/7", "n3/7"))
UNLED = replace(LED, leader=None)


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.seen = Leaderless("n3", lambda: self.now)

    def look(self, *replicas: ReplicaStatus | None, state: ShardState = ShardState.ACTIVE,
             nodes: tuple[str, ...] = ("n1/7", "n2/7", "n3/7")) -> list[str]:
        shards = {group: replace(ShardEntry.only(CollectionSchema(name=f"c{group}", dim=2), group, nodes), state=state)
                  for group in range(1, len(replicas) + 1)}
        self.seen.look(ControlState({}, shards), {
            one.label: HostedShard(one.name, one.group, replicas[one.group - 1], "") for one in shards.values()})
        return self.seen.warnings({"n1": "refused"})


def test_what_nobody_leads_for_longer_than_an_election_is_named_with_the_nodes_that_are_away() -> None:
    world = World()
    assert world.look(LED, UNLED) == []
    world.now += AFTER_S
    first, second = world.look(LED, UNLED)
    assert "nobody leads shard 2 of 'c2', for 10 s" in first
    assert (world.seen.unled_s(1), world.seen.unled_s(2)) == (0.0, AFTER_S)
    assert second == "node n1 is not reached: refused"
    assert world.look(LED, LED) == []
    assert world.look(LED, UNLED) == [], "it is counted anew"
    world.now += AFTER_S
    assert len(world.look(*[UNLED] * 2)) == 2, "one of them for long enough"
    world.now += AFTER_S
    assert len(world.look(*[UNLED] * (NAMED + 3))) == 3
    world.now += AFTER_S
    told = world.look(*[UNLED] * (NAMED + 3))
    assert (len(told), told[NAMED]) == (NAMED + 2, "nobody leads 3 more shards")


def test_what_does_not_belong_here_or_is_not_served_is_no_matter() -> None:
    world = World()
    for _ in range(2):
        for told in (world.look(UNLED, state=ShardState.RETIRED), world.look(UNLED, nodes=("n1/7", "n2/7")),
                     world.look(None)):
            assert told == []
        world.now += 2 * AFTER_S
