"""Three nodes, one of which clients reach and its peers do not, nor it them: who knows of the others is not held up."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from tests.chaos.networks import CUT, Proxies
from tests.replicated_nodes import NAMES, Together, wait_for
from vecdb.config import Settings
from vecdb.rpc.peer_channels import PeerChannels

ROWS = np.random.default_rng(8).normal(size=(40, 8)).astype(np.float32)
HURT = "n3"


def _way(node: str) -> str:
    return f"from {HURT} to {node}"


class Apart:
    """The nodes, with the last one's ways to the others, and theirs to it, through proxies of their own."""

    def __init__(self, path: Any, patch: pytest.MonkeyPatch) -> None:
        self.network = Proxies()
        make = PeerChannels._make

        def through(channels: PeerChannels, node: str, address: str) -> Any:
            return make(channels, node, self.network.peer(_way(node)) if channels.node == HURT else address)

        patch.setattr(PeerChannels, "_make", through)
        self.nodes = Together(path, settings=self._settings)

    def _settings(self, made: Settings) -> Settings:
        name = made.server.node_id
        for one in NAMES:
            self.network._ports[_way(one)] = self.network._host(one)
        cluster = made.cluster.model_copy(update={"nodes": {one: self.network.peer(one) for one in NAMES},
                                                  "peer_port": self.network.peer_port(name)})
        return made.model_copy(update={"cluster": cluster})

    def cut(self) -> None:
        for one in (HURT, *map(_way, NAMES)):
            self.network.rule("", one, CUT)
            self.network.rule(one, "", CUT)

    def url(self, name: str) -> str:
        return f"grpc://127.0.0.1:{self.nodes.addresses[NAMES.index(name)]['grpc_port']}"

    def close(self) -> None:
        self.network.heal()
        self.nodes.stop()
        self.network.close()


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Apart(tmp_path, monkeypatch)
    yield made
    made.close()


def test_reads_of_who_knows_of_well_nodes_are_answered(apart: Apart) -> None:
    with vecdb.connect(apart.nodes.url, timeout=30) as db, vecdb.connect(apart.url(HURT), timeout=30) as alone, \
            vecdb.connect(apart.nodes.url, timeout=30, direct=True) as direct:
        docs = db.create_collection("docs", dim=8, metric="l2", shards=2)
        docs.upsert(ids=range(20), vectors=ROWS[:20])
        wait_for(lambda: alone["docs"].count() == direct["docs"].count() == 20, "the records")
        apart.cut()
        for at in range(10):
            docs.upsert(ids=[at], vectors=ROWS[20 + at:21 + at])
            for found in (docs.fetch([at]), docs.fetch([at], consistency="linearizable"),
                          direct["docs"].fetch([at], consistency="linearizable")):
                assert np.array_equal(np.asarray(found[0].vector), ROWS[20 + at])
        assert docs.count(consistency="linearizable") == 20
        assert alone["docs"].count(consistency="eventual") == 20, "what it has it says"
        apart.network.heal()
        wait_for(lambda: np.array_equal(
            np.asarray(alone["docs"].fetch([9], consistency="linearizable")[0].vector), ROWS[29]),
                 "what the others have told it since")
