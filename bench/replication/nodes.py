"""Three ``vecdb serve`` on loopback, with mutual TLS between them, that may be killed and started again."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vecdb
from bench.replication.processes import CLUSTER, NODES, free_ports
from bench.server.processes import Child, wait_for_file
from vecdb.core.errors import VecdbError
from vecdb.core.shards import ReplicaInfo, ShardInfo
from vecdb.rpc.peer_certificates import issue

NAMES = tuple(f"n{number}" for number in range(NODES))
HEALTHY_S = 300.0


def wait_until(found: Callable[[], Any], what: str, seconds: float = HEALTHY_S, pause_s: float = 0.05) -> Any:
    """What ``found`` returns once that is true; an error means not yet."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if answer := found():
                return answer
        except VecdbError:
            pass
        time.sleep(pause_s)
    raise SystemExit(f"{what}: not after {seconds:.0f} s")


class Cluster:
    """``serve`` of each node in a folder of its own below ``place``."""

    def __init__(self, place: Path) -> None:
        self.place = place
        issue(place / "certificates", CLUSTER, NAMES)
        ports = free_ports(2 * NODES)
        self.ports = dict(zip(NAMES, ports[:NODES], strict=True))
        self._nodes = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip(NAMES, ports[NODES:], strict=True))
        self.url = "grpc://" + ",".join(f"127.0.0.1:{port}" for port in self.ports.values())
        self.children: dict[str, Child] = {}
        for name in NAMES:
            self.start(name)
        for name in NAMES:
            self.ready(name)

    def start(self, name: str) -> None:
        certificates = self.place / "certificates"
        (self.place / f"{name}.ready").unlink(missing_ok=True)
        self.children[name] = Child(
            [sys.executable, "-m", "vecdb.cli", "serve", "--data", str(self.place / name), "--http-port", "-1",
             "--port", str(self.ports[name]), "--ready-file", str(self.place / f"{name}.ready")],
            log=self.place / f"{name}.log", environment={
                "VECDB_SERVER__NODE_ID": name, "VECDB_CLUSTER__NAME": CLUSTER, "VECDB_CLUSTER__NODES": self._nodes,
                "VECDB_CLUSTER__CERT_FILE": str(certificates / f"{name}.pem"),
                "VECDB_CLUSTER__KEY_FILE": str(certificates / f"{name}.key"),
                "VECDB_CLUSTER__CA_FILE": str(certificates / "ca.pem"),
                "VECDB_CLUSTER__BALANCE_LEADERS": "false",  # who leads is what is measured
                "VECDB_TELEMETRY__RECALL_SAMPLES_PER_MINUTE": "0"})  # fmt: skip

    def ready(self, name: str) -> None:
        wait_for_file(self.children[name], self.place / f"{name}.ready")

    def kill(self, name: str) -> float:
        """As a crash does; returns the moment."""
        self.children[name].process.kill()
        self.children[name].process.wait()
        return time.monotonic()

    def wipe(self, name: str) -> None:
        """Everything the node had is gone: a new disk."""
        shutil.rmtree(self.place / name)

    def cpu_s(self) -> float:
        return sum(child.cpu_s() for child in self.children.values())

    def end(self) -> None:
        for child in self.children.values():
            child.end()


def shard(db: vecdb.Database, collection: str) -> ShardInfo:
    (found,) = db.admin.shards(collection)
    return found


def leader(db: vecdb.Database, collection: str) -> str:
    """The node that leads the collection's shard."""
    return str(wait_until(lambda: shard(db, collection).leader, "a leader")).partition("/")[0]


def replica(db: vecdb.Database, collection: str, node: str) -> ReplicaInfo | None:
    """A node's replica, as it says itself."""
    return next((one for one in shard(db, collection).replicas if one.node == node and one.state == "ok"), None)


def healthy(db: vecdb.Database, collection: str, most_behind: int = 1_000) -> bool:
    """Whether every replica is well and near the leader."""
    found = shard(db, collection)
    return found.healthy and len(found.replicas) == NODES and all(0 <= one.lag <= most_behind for one in found.replicas)
