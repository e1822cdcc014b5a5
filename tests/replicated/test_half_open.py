"""Three nodes, and one whose peer port takes connections and says nothing, while it can be heard itself.

No packet is refused and no connection ends: only deadlines and keepalives tell that somebody is not there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.chaos.networks import CUT, Proxies
from tests.replicated_nodes import NAMES, Together, agreed, wait_for
from vecdb.config import Settings

ROWS = np.random.default_rng(6).normal(size=(200, 8)).astype(np.float32)


@dataclass
class Doors:
    """The nodes, each with its peer port behind a door that may be shut on everybody."""

    nodes: Together
    network: Proxies

    def shut(self, name: str) -> None:
        """Connections to it, those there are and those to come, are taken, and nothing goes through."""
        self.network.rule("", name, CUT)
        self.network.rule(name, "", CUT)

    def url(self, name: str) -> str:
        return f"grpc://127.0.0.1:{self.nodes.addresses[NAMES.index(name)]['grpc_port']}"


@contextmanager
def doors(path: Any) -> Iterator[Doors]:
    network = Proxies()

    def behind(made: Settings) -> Settings:
        name = made.server.node_id
        cluster = made.cluster.model_copy(update={"nodes": {one: network.peer(one) for one in NAMES},
                                                  "peer_port": network.peer_port(name)})
        return made.model_copy(update={"cluster": cluster})

    nodes = Together(path, settings=behind)
    try:
        yield Doors(nodes, network)
    finally:
        network.heal()
        nodes.stop()
        network.close()


def leader_of(db: vecdb.Database, name: str) -> str:
    def led() -> str | None:
        leader = next(one.leader for one in db.admin.shards() if one.collection == name)
        return None if leader is None else leader.partition("/")[0]

    return str(wait_for(led, f"a leader of {name!r}"))


def unreachable(db: vecdb.Database) -> list[str]:
    """Nodes that do not say how their replicas are, as the node that is asked sees it."""
    shard = next(one for one in db.admin.shards() if one.collection == "docs")
    return [one.node for one in shard.replicas if one.state == "unreachable"]


@pytest.mark.parametrize("who", ["follower", "leader"])
def test_a_node_behind_a_black_hole_holds_nobody_up(tmp_path: Any, who: str) -> None:
    with doors(tmp_path) as made, vecdb.connect(made.nodes.url, timeout=60) as db:
        docs = db.create_collection("docs", dim=8)
        docs.upsert(ids=range(20), vectors=ROWS[:20])
        leader = leader_of(db, "docs")
        hurt = leader if who == "leader" else next(one for one in NAMES if one != leader)
        others = [one for one in NAMES if one != hurt]
        made.shut(hurt)
        for at in range(20, 200, 20):
            docs.upsert(ids=range(at, at + 20), vectors=ROWS[at:at + 20])
        assert docs.count() == 200
        if who == "leader":
            wait_for(lambda: leader_of(db, "docs") != hurt, "its end as leader, as it cannot hear that anybody follows")
        for name in others:  # each asked alone: whatever it asks of others is answered by one that can
            with vecdb.connect(made.url(name), timeout=60, consistency="linearizable") as alone:
                assert alone["docs"].query(ROWS[150], k=1).ids == [150]
                alone["docs"].upsert(ids=[f"from {name}"], vectors=ROWS[:1])
                wait_for(lambda: unreachable(alone) == [hurt], f"word of {hurt} at {name}")
        assert made.network.counters["waits_of_connections_cut"], "there was something to hold up"
        made.network.heal()
        wait_for(lambda: all(one.healthy and all(replica.lag == 0 for replica in one.replicas)
                             for one in db.admin.shards()), "all replicas level")
        agreed(db, "docs")
