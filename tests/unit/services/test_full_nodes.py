"""Nodes whose disks are nearly full: what jobs give them, and what plans say of them."""

from collections.abc import Mapping

import pytest

from tests.unit.services.governed import Governed
from tests.unit.services.test_missing_replicas import joined, run
from vecdb.cluster.control import setting_put
from vecdb.core.cluster import JobState
from vecdb.core.errors import NoNodeForReplica
from vecdb.services.operations.kinds import Move, Rebalance
from vecdb.services.operations.placing import away


class Full(Governed):
    """With disks of 100 MiB; ``full``: those that have 5 MiB left."""

    full: tuple[str, ...] = ()

    def stats(self, node: str) -> Mapping[str, float]:
        return {"disk_total_bytes": float(100 << 20), "disk_free_bytes": float((5 if node in self.full else 90) << 20)}


def cluster() -> Full:
    """Six shards on the first two of four nodes; the last is nearly full."""
    governed = Full(2)
    for name in ("repair_after_s", "scrub_every_s", "rebalance_auto"):
        governed.do(setting_put(name, 0))
    governed.collection("docs", *[("n1", "n2")] * 6)
    joined(governed, "n3")
    joined(governed, "n4")
    governed.full = ("n4",)
    return governed


def held(governed: Full) -> set[str]:
    return {node for group in governed.now.get("docs").shards for node in governed.there[group]}


def test_loads_are_made_even_without_a_node_that_is_nearly_full() -> None:
    governed = cluster()
    governed.begin("rebalance", "")
    run(governed, 30)
    assert [job.state for job in governed.now.jobs.values()] == [JobState.DONE]
    assert held(governed) == {"n1", "n2", "n3"}
    governed.full = ()
    governed.begin("rebalance", "")
    run(governed, 30)
    assert held(governed) == {"n1", "n2", "n3", "n4"}


def test_a_plan_says_so_where_a_node_is_named_that_is_nearly_full() -> None:
    governed = cluster()
    now = away(governed)
    group = str(governed.now.get("docs").shards[0])
    assert any("disk of n4 is nearly full" in note
               for note in Move().plan(governed.now, group, {"from": "n1", "to": "n4"}, now).notes)
    assert Move().plan(governed.now, group, {"from": "n1", "to": "n3"}, now).notes == ()
    with pytest.raises(NoNodeForReplica, match="disk of n4"):
        Rebalance().plan(governed.now, "", {"to": "n4"}, now)
