"""Hosting with real replicas: three nodes of one event loop, with databases, RocksDB logs and Raft between them."""

import asyncio
import shutil
from contextlib import suppress

import numpy as np
import pytest

from tests.unit.raft.wires import LoopFrames
from vecdb.app import open_embedded, open_logs, open_store
from vecdb.core.errors import DataCorrupted, NotLeader, OutcomeUnknown, Unavailable, VecdbError
from vecdb.core.records import UpsertBatch
from vecdb.core.schema import CollectionSchema
from vecdb.raft.driver import Driver
from vecdb.raft.settings import RaftSettings
from vecdb.services.control import Control
from vecdb.services.hosting import Hosting, HostingSettings
from vecdb.services.ledger import Ledger
from vecdb.shard.codec import encode

NODES = ("n1", "n2", "n3")
DIM = 8
SETTINGS = RaftSettings(heartbeat_s=0.02, election_s_min=0.15, election_s_max=0.3, checkpoint_bytes=1 << 14,
                        keep_entries=4, log_bytes=1 << 16)


class Node:
    """``folder`` outlives what is started in it."""

    def __init__(self, cluster, name):
        self.cluster, self.name, self.folder = cluster, name, cluster.folder / name
        self.told = []
        self.hosting = None

    def start(self, seed):
        self.database = open_embedded(self.folder, threads=1, background=False, replicated=True)
        self.store = open_logs(self.folder / "raft")
        self.frames = self.cluster.wires[self.name] = LoopFrames(self.cluster.wires, self.name)
        self.driver = Driver(self.name, self.store, self.frames, seed=seed, settings=SETTINGS, tell=self.tell)
        self.control = Control(self.folder / "control", open_store, replication_factor=3)
        self.hosting = Hosting(self.name, NODES, self.driver, self.database, self.control, Ledger(self.store), self,
                               draw=lambda: (seed + 1) << 17, tell=self.tell,
                               settings=HostingSettings(look_s=0.05, retry_s=(0.05, 0.5)))
        self.hosting.start()

    def tell(self, level, event, **fields):
        self.told.append(event)

    async def founding(self, node):
        other = self.cluster.nodes[node].hosting
        if other is None or other.founding is None:
            raise Unavailable("down")
        return other.founding

    async def stop(self):
        if self.hosting is None:
            return
        hosting, self.hosting = self.hosting, None
        self.cluster.wires.pop(self.name)
        await hosting.stop()
        self.driver.close()
        self.control.close()
        self.store.close()
        self.database.close()

    def digest(self, name):
        with suppress(VecdbError):
            digest = self.database.replica(name).digest()
            return digest.log_index, digest.records, digest.digest
        return None


class Cluster:
    def __init__(self, folder):
        self.folder, self.wires = folder, {}
        self.nodes = {name: Node(self, name) for name in NODES}
        self.seeds = iter(range(1, 100))

    def start(self, *names):
        for name in names or NODES:
            self.nodes[name].start(next(self.seeds))

    async def until(self, so, what):
        for _ in range(3_000):
            if so():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"{what} did not come about: {[node.told[-8:] for node in self.nodes.values()]}")

    async def settle(self):
        up = [node for node in self.nodes.values() if node.hosting is not None]

        def settled():
            epochs = {node.control.state.epoch for node in up}
            return len(epochs) == 1 and all(node.hosting.settled for node in up)

        await self.until(settled, "rest")

    async def ask(self, ask):
        """Of any node, until it is done by the one that leads."""
        while True:
            for node in self.nodes.values():
                if node.hosting is not None:
                    with suppress(NotLeader, Unavailable, OutcomeUnknown):
                        return await ask(node)
            await asyncio.sleep(0.02)

    async def create(self, name):
        """Its shard."""
        async def made(node):
            entry = await node.control.create(CollectionSchema(name, DIM))
            return node.control.state.shards[entry.shards[0]]

        return await self.ask(made)

    async def drop(self, name):
        return await self.ask(lambda node: node.control.drop(name))

    async def write(self, name, first, count=50):
        rng = np.random.default_rng(first)
        vectors = rng.standard_normal((count, DIM)).astype(np.float32)
        batch = UpsertBatch(tuple(range(first, first + count)), vectors, (b"{}",) * count)
        done = await self.ask(lambda node: node.hosting.replicator(name).propose(encode(batch), None))
        assert done.result.inserted + done.result.updated == count  # tried again it may have been done before
        return done.log_index

    async def agree(self, name, records):
        def same():
            found = {node.digest(name) for node in self.nodes.values()}
            return len(found) == 1 and None not in found and found.pop()[1] == records

        await self.until(same, f"{records} records in {name} on all")


def run(tmp_path, story):
    async def whole():
        cluster = Cluster(tmp_path)
        try:
            async with asyncio.timeout(120):
                cluster.start()
                await cluster.settle()
                await story(cluster)
        finally:
            for node in cluster.nodes.values():
                await node.stop()

    asyncio.run(whole())


def test_collections_live_and_die_on_all_nodes(tmp_path):
    async def story(cluster):
        first = await cluster.create("docs")
        await cluster.settle()
        for node in cluster.nodes.values():
            assert await node.hosting.ready("docs", None) == first
        log_index = await cluster.write("docs", 0)
        for node in cluster.nodes.values():
            await node.hosting.replicator("docs").wait_applied(log_index, None)
        await cluster.agree("docs", 50)
        away = cluster.nodes["n3"]
        await away.stop()
        await cluster.drop("docs")
        again = await cluster.create("docs")
        await cluster.create("more")
        await cluster.settle()
        await cluster.write("docs", 1_000, 30)
        cluster.start("n3")
        await cluster.settle()
        await cluster.agree("docs", 30)
        await cluster.agree("more", 0)
        assert again.group == first.group + 1
        for node in cluster.nodes.values():
            await cluster.until(lambda node=node: set(node.driver.logs()) == {0, 2, 3}, "the old log's end")
            assert sorted(path.name for path in (node.folder / "collections").iterdir()) == ["g00000002", "g00000003"]

    run(tmp_path, story)


def test_restarts_new_disks_and_lost_logs(tmp_path):
    async def story(cluster):
        await cluster.create("docs")
        await cluster.settle()
        total = 0
        for _ in range(12):
            await cluster.write("docs", total)
            total += 50
        for name in NODES:
            await cluster.nodes[name].stop()
        cluster.start()
        await cluster.settle()
        await cluster.agree("docs", total)
        for lost in ("", "raft", "control", "catalog"):
            node = cluster.nodes["n1"]
            await node.stop()
            await cluster.write("docs", total)
            total += 50
            shutil.rmtree(node.folder / lost)
            node.told.clear()
            cluster.start("n1")
            await cluster.settle()
            await cluster.agree("docs", total)
            assert ("cluster_joined" in node.told) == (lost in ("", "raft"))
            assert ("catalog_damaged" in node.told) == (lost == "catalog")
            assert ("raft_snapshot_installed" in node.told) <= (lost == "")  # what was there is used
        for node in cluster.nodes.values():
            for replicator in (node.control.replicator, node.hosting.replicator("docs")):
                await cluster.until(lambda one=replicator: len(one.status().voters) == 3, "three voters")
                assert replicator.status().me in replicator.status().voters

    run(tmp_path, story)


@pytest.mark.parametrize("when", ["while it is down", "while it runs"])
def test_a_damaged_state_comes_again_from_the_others(tmp_path, when):
    async def story(cluster):
        await cluster.create("docs")
        await cluster.settle()
        for at in range(8):
            await cluster.write("docs", 50 * at)
        await cluster.agree("docs", 400)
        node = cluster.nodes["n2"]
        if when == "while it runs":
            node.database.replica("docs").end(DataCorrupted("a flipped bit was found", path="rows"))
            await cluster.write("docs", 400)
            await cluster.until(lambda: "replica_state_damaged" in node.told, "damage")
        else:
            await node.stop()
            await cluster.write("docs", 400)
            for path in (node.folder / "collections" / "g00000001").rglob("*.sst"):
                data = bytearray(path.read_bytes())
                data[: len(data) // 2] = bytes(len(data) // 2)
                path.write_bytes(data)
            cluster.start("n2")
        await cluster.until(lambda: (node.folder / "collections" / "g00000001.damaged-1").is_dir(), "setting aside")
        await cluster.settle()
        await cluster.agree("docs", 450)
        assert "hosting_stuck" not in node.told

    run(tmp_path, story)
