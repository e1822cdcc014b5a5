"""What becomes of a damaged replica hangs on whether there are others, as the shard is placed now."""

import pytest

from tests.unit.services.hosted import NODES, SOON, Cluster, schema
from vecdb.cluster.control import NodeEntry, create, node_put, place


@pytest.mark.parametrize(("made", "now"), [(NODES, NODES[:1]), (NODES[:1], NODES)])
def test_the_only_replica_is_the_one_that_is_now_and_not_the_one_that_was_made(made, now):
    """The replication factor was changed since the collection was made."""
    cluster = Cluster()
    cluster.start()
    cluster.settle()
    judge, node = cluster.judge, cluster.nodes["n1"]

    def agree(command):
        cluster.leader()
        judge.propose(0, judge.leader(0), command)

    for name in NODES:
        agree(node_put(NodeEntry(name, f"{name}:1", commands=2, joined_s=1.0)))
    agree(create(schema(), [one for one in sorted(judge.groups[0].voters) if one.split("/")[0] in made]))
    cluster.settle()
    agree(place(1, now))
    cluster.world.run(1)
    cluster.kill("n1")
    node.disk.rows["a"].damaged = True
    cluster.start("n1")
    assert cluster.world.run_until(lambda: "replica_state_damaged" in {event for _, event, _ in node.told}, SOON)
    cluster.world.run(1)
    assert bool(node.disk.aside) == (len(now) > 1)
    cluster.end()
