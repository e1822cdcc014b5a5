"""A cluster is founded once, by nodes that agree on who they are."""

from tests.unit.services.hosted import Cluster


def test_a_cluster_is_founded_when_all_have_met_and_not_before():
    cluster = Cluster()
    cluster.start()
    cluster.settle()
    members = {node.hosting.founding.members for node in cluster.nodes.values()}
    assert len(members) == 1
    assert set(members.pop()) == cluster.judge.groups[0].voters
    cluster.end()
    late = Cluster(3)
    late.start("n1", "n2")
    late.world.run(30)
    assert not late.judge.groups
    assert [fields["missing"] for _, event, fields in late.nodes["n1"].told if event == "cluster_waits_for_nodes"] \
        == [["n3"]]
    late.start("n3")
    late.settle()
    late.end()


def test_nodes_with_other_settings_are_told_and_found_nothing():
    cluster = Cluster(4)
    cluster.nodes["n3"].names = ("n1", "n3")
    cluster.start()
    cluster.world.run(20)
    assert not cluster.judge.groups
    assert "cluster_nodes_differ" in [event for _, event, _ in cluster.nodes["n3"].told]
    cluster.end()
