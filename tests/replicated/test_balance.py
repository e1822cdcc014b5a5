"""Three real nodes, one of which leads every shard: soon each leads one."""

from pathlib import Path

import numpy as np
import pytest

import vecdb
from tests.replicated_nodes import Together, wait_for
from vecdb.config import Settings
from vecdb.services.balance import BalanceSettings
from vecdb.serving import cluster

NAMES = ("a", "b", "c")
LOOKS_S = 1.0


def balanced(made: Settings) -> Settings:
    return made.model_copy(update={"cluster": made.cluster.model_copy(update={"balance_leaders": True})})


def leaves(nodes: Together, db: vecdb.Database) -> None:
    """A node that stops hands over what it leads, and what it is given after that."""
    first = nodes.running[0]._member
    for _ in range(2):
        nodes.in_loop(first.hand_over())
        wait_for(lambda: all(one.leader and not one.leader.startswith("n1/") for one in db.admin.shards()),
                 "others to lead")
        db.admin.transfer_leader("a", "n1")


def test_leaders_are_spread_and_no_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "BALANCE", BalanceSettings(first_s=LOOKS_S, period_s=LOOKS_S, heard_s=5.0,
                                                            steady_s=0.0))
    nodes = Together(tmp_path, settings=balanced)
    try:
        with vecdb.connect(nodes.url) as db:
            for name in NAMES:
                db.create_collection(name, dim=2)
            for name in NAMES:
                db.admin.transfer_leader(name, "n1")
            written = 0

            def spread() -> bool:
                nonlocal written
                for name in NAMES:
                    db.collection(name).upsert(ids=[written], vectors=np.ones((1, 2), np.float32))
                written += 1
                leaders = {one.collection: one.leader for one in db.admin.shards() if one.collection in NAMES}
                if None in leaders.values() or len(set(leaders.values())) < len(NAMES):
                    return False
                if sum(one._member._events.counts["leader_balanced"] for one in nodes.running):
                    return True
                for name in NAMES:  # it was elections that spread them
                    db.admin.transfer_leader(name, "n1")
                return False

            wait_for(spread, "a leader on each node", 120.0)
            leaves(nodes, db)
            assert [db.collection(name).count(consistency="linearizable") for name in NAMES] == [written] * len(NAMES)
    finally:
        nodes.stop()
