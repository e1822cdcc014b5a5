"""What operators are told, over the wire, by releases that tell less and to releases that know less."""

from vecdb.core.cluster import NodeInfo
from vecdb.core.operations import ClusterInfo
from vecdb.v1 import operations_pb2 as pb
from vecdb.wire.operations import cluster_from_wire, cluster_to_wire

NODES = (NodeInfo("n1", "n1:7702", "n1:7700", heard_s=1.5, leaders=2, stats={"halted": 1.0}, silent_s=1.5),
         NodeInfo("n2", "n2:7702", silent_s=4.0), NodeInfo("n3", "n3:7702"))


def test_a_cluster_at_a_glance_comes_as_it_went() -> None:
    info = ClusterInfo("prod", "n1", "n1", 3, NODES, 1, 2, 3, {"repair_after_s": 60.0}, ("c9",))
    msg = pb.GetClusterReply.FromString(cluster_to_wire(info).SerializeToString())
    assert cluster_from_wire(msg) == info
    assert [one.silence_s for one in NODES] == [1.5, 4.0, -1.0]


def test_of_a_release_that_tells_no_silence_it_is_when_the_last_word_was() -> None:
    msg = cluster_to_wire(ClusterInfo("prod", "n1", "n1", 3, NODES))
    for node in msg.nodes:
        node.ClearField("silent_s")
    assert [one.silence_s for one in cluster_from_wire(msg).nodes] == [1.5, -1.0, -1.0]
