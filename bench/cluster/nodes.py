"""Three coordinators on loopback and shard nodes that join them by a token, with mutual TLS, each a process."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import vecdb
from bench.replication.nodes import wait_until
from bench.replication.processes import CLUSTER, free_ports
from bench.server.processes import Child, wait_for_file
from vecdb.core.cluster import NodeState
from vecdb.core.shards import ShardInfo
from vecdb.rpc.peer_certificates import issue

COORDINATORS = ("c1", "c2", "c3")
NEAR = 100
"""Entries of the log that a replica may lack and be called up to date."""
HEARD_S = 2.0


class Nodes:
    """``vecdb serve`` of each node, in a folder of its own below ``place``; ``most`` shard nodes may join."""

    def __init__(self, place: Path, most: int) -> None:
        self.place = place
        names = [*COORDINATORS, *(f"s{number + 1}" for number in range(most))]
        ports = free_ports(2 * len(names))
        self._ports = dict(zip(names, zip(ports[::2], ports[1::2], strict=True), strict=True))
        issue(place / "certificates", CLUSTER, names)
        self.shard_nodes: list[str] = []
        self.children: dict[str, Child] = {}
        self._part: dict[str, dict[str, str]] = {}
        self._token = ""
        founders = ",".join(f"{name}={self._peer(name)}" for name in COORDINATORS)
        for name in COORDINATORS:
            self._part[name] = {"NODES": founders, "ROLE": "coordinator"}
            self.start(name)
        for name in COORDINATORS:
            self.ready(name)
        self.targets = ",".join(f"127.0.0.1:{self._ports[name][0]}" for name in COORDINATORS)
        self.db = vecdb.connect(f"grpc://{self.targets}", timeout=120.0)

    def _peer(self, name: str) -> str:
        return f"127.0.0.1:{self._ports[name][1]}"

    @property
    def first(self) -> str:
        """Where one coordinator is, for clients that take one address."""
        return f"127.0.0.1:{self._ports[COORDINATORS[0]][0]}"

    def grow(self, count: int) -> None:
        """Have so many shard nodes: new ones join."""
        new = [f"s{number + 1}" for number in range(len(self.shard_nodes), count)]
        if new:
            self._token = self._token or self.db.admin.cluster.create_join_token(3_600.0, ["shard"]).secret
        for name in new:
            self._part[name] = {"JOIN": ",".join(map(self._peer, COORDINATORS)), "ROLE": "shard",
                                "TOKEN": self._token, "ADVERTISE": self._peer(name)}  # fmt: skip
            self.start(name)
        for name in new:
            self.ready(name)
        self.shard_nodes += new
        wait_until(lambda: set(self.shard_nodes) <= self._heard(), "shard nodes that are heard")

    def _heard(self) -> set[str]:
        return {one.name for one in self.db.admin.cluster.info().nodes
                if one.state == NodeState.ACTIVE and 0 <= one.heard_s < HEARD_S}  # fmt: skip

    def start(self, name: str) -> None:
        certificates = self.place / "certificates"
        (self.place / f"{name}.ready").unlink(missing_ok=True)
        self.children[name] = Child(
            [sys.executable, "-m", "vecdb.cli", "serve", "--data", str(self.place / name), "--http-port", "-1",
             "--port", str(self._ports[name][0]), "--ready-file", str(self.place / f"{name}.ready")],
            log=self.place / f"{name}.log", environment={
                "VECDB_SERVER__NODE_ID": name, "VECDB_CLUSTER__NAME": CLUSTER,
                "VECDB_CLUSTER__CERT_FILE": str(certificates / f"{name}.pem"),
                "VECDB_CLUSTER__KEY_FILE": str(certificates / f"{name}.key"),
                "VECDB_CLUSTER__CA_FILE": str(certificates / "ca.pem"),
                "VECDB_TELEMETRY__RECALL_SAMPLES_PER_MINUTE": "0",
                **{f"VECDB_CLUSTER__{key}": value for key, value in self._part[name].items()}})  # fmt: skip

    def ready(self, name: str) -> None:
        wait_for_file(self.children[name], self.place / f"{name}.ready")

    def kill(self, name: str) -> float:
        """As a crash does; returns the moment."""
        moment = time.monotonic()
        self.children[name].process.kill()
        self.children[name].process.wait()
        return moment

    def cpu_s(self) -> float:
        """Of all nodes that run."""
        return sum(child.cpu_s() for child in self.children.values())

    def shards(self, collection: str) -> list[ShardInfo]:
        """In the order of their numbers."""
        return sorted(self.db.admin.shards(collection), key=lambda one: one.group)

    def level(self, collection: str, factor: int) -> None:
        """Wait until every replica is there and up to date."""
        def all_there() -> bool:
            found = self.shards(collection)
            return bool(found) and all(one.healthy and len(one.replicas) == factor and all(
                0 <= replica.lag <= NEAR for replica in one.replicas) for one in found)

        wait_until(all_there, f"replicas of {collection!r} that are up to date")

    def end(self) -> None:
        """As a crash: nobody needs their data."""
        self.db.close()
        for child in self.children.values():
            child.kill()


def leader_of(shard: ShardInfo) -> str:
    """The node that leads, empty if nobody is known to."""
    return (shard.leader or "").partition("/")[0]


def elsewhere(shard: ShardInfo, nodes: Sequence[str]) -> str | None:
    """A node that holds no replica of a shard, if there is one."""
    held = {one.node for one in shard.replicas}
    return next((name for name in nodes if name not in held), None)
