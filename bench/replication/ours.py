"""A node of nothing but the replicated log, as ``vecdb serve`` composes it, over a machine that counts.

    python -m bench.replication.ours NAME '{"n0": "host:port", …}' FOLDER [CERTIFICATES]

With a folder of certificates frames go over mutual TLS.  Asked by lines (:mod:`.load`).
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench.replication.load import Done, Load, serve
from bench.replication.processes import CLUSTER
from vecdb.config import ClusterSettings
from vecdb.core.errors import StorageError, VecdbError
from vecdb.ports.replicator import Incoming, Position, Snapshot, SnapshotFile
from vecdb.raft.driver import Driver, GroupReplicator
from vecdb.rpc.frames import GrpcFrames
from vecdb.rpc.peer_certificates import open_peer_certificates
from vecdb.rpc.peer_channels import PeerChannels
from vecdb.rpc.peers_server import PeerServer, PeerServerOptions
from vecdb.runtime.clock import SystemClock
from vecdb.storage.rocksdict import RocksStore
from vecdb.storage.split import SplitStore

GROUP = 1
PATIENCE_S = 30.0


class Counting:
    """A state machine with next to no state: the log's cost stands alone."""

    def __init__(self) -> None:
        self._position = Position(0, 0)

    def position(self) -> Position:
        return self._position

    def apply(self, log_index: int, term: int, command: bytes) -> object:
        self._position = Position(log_index, term)
        return len(command)

    def checkpoint(self) -> Position:
        return self._position

    def snapshot(self) -> Snapshot:
        raise StorageError("a bench's machine makes no snapshots")

    def receive(self, position: Position, files: Sequence[SnapshotFile]) -> Incoming:
        raise StorageError("a bench's machine takes no snapshots")


class Node:
    """Everything of one node; its loop runs in a thread beside the one that answers lines."""

    def __init__(self, name: str, addresses: dict[str, str], folder: Path, certificates: Path | None) -> None:
        self.name, self.addresses, self.folder, self.certificates = name, addresses, folder, certificates
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.replicator: GroupReplicator = self.run(self.start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def start(self) -> GroupReplicator:
        tls = None
        if self.certificates is not None:
            of = self.certificates
            files = ClusterSettings(name=CLUSTER, nodes=self.addresses, cert_file=of / f"{self.name}.pem",
                                    key_file=of / f"{self.name}.key", ca_file=of / "ca.pem")  # fmt: skip
            tls = open_peer_certificates(files, self.name, SystemClock())
        channels = PeerChannels(self.name, CLUSTER, self.addresses, tls)
        frames = GrpcFrames(channels, self.name, CLUSTER)
        server = PeerServer(PeerServerOptions(self.name, CLUSTER, self.addresses[self.name], tuple(self.addresses),
                                              None if tls is None else tls.grpc_credentials(), tls is None),
                            [frames.servicer()])  # fmt: skip
        await server.start()
        self.server = server
        store = SplitStore(RocksStore(self.folder / "raft"), self.folder / "raft" / "values")
        self.driver = Driver(self.name, store, frames, seed=time.time_ns())
        self.groups = [self.add(GROUP)]
        return self.groups[0]

    def add(self, group: int) -> GroupReplicator:
        return self.driver.add(group, Counting(), number=1, voters=tuple(f"{one}/1" for one in sorted(self.addresses)))

    async def grow(self, count: int) -> None:
        """Have so many groups, as many led here as elsewhere."""
        while len(self.groups) < count:
            self.groups.append(self.add(GROUP + len(self.groups)))
            await asyncio.sleep(0)

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "status":
            status = self.replicator.status()
            return {"leads": status.role == "leader", "ready": all(
                0 <= heard < 1.0 for heard in status.heard_s.values()), "status": str(status)}  # fmt: skip
        if command["do"] == "groups":
            self.run(self.grow(command["count"]))
            return {}
        if command["do"] == "idle":
            began, cpu = time.perf_counter(), time.process_time()
            time.sleep(command["seconds"])
            led = [one.status() for one in self.groups]
            return {"core_share": (time.process_time() - cpu) / (time.perf_counter() - began),
                    "led": sum(status.role == "leader" for status in led),
                    "leaderless": sum(status.leader is None for status in led),
                    "term_most": max(status.term for status in led)}  # fmt: skip
        over = threading.Event()
        load = Load(command["size"], command["window"], command["seconds"], over.set,
                    lambda again: self.loop.call_soon_threadsafe(self.loop.call_later, 0.01, again))
        tasks: set[asyncio.Task[None]] = set()

        async def one(payload: bytes, done: Done) -> None:
            try:
                await self.replicator.propose(payload, self.loop.time() + PATIENCE_S)
            except VecdbError as error:
                done(type(error).__name__)
            else:
                done("")

        def propose(payload: bytes, done: Done) -> None:
            task = self.loop.create_task(one(payload, done))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        self.loop.call_soon_threadsafe(load.begin, propose)
        over.wait(command["seconds"] + PATIENCE_S)
        return load.result()


def main() -> None:
    name, addresses, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    serve(Node(name, addresses, folder, Path(sys.argv[4]) if len(sys.argv) > 4 else None).answer)


if __name__ == "__main__":
    main()
