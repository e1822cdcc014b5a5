"""What a node is beside its engine when it is one of a cluster, put together from settings.

On one event loop: the logs of all groups and their driver, frames and calls to the other nodes, the listener for
theirs, the control group with the reconciler that follows it, and the node that hands calls on.

**Directories.**  ``raft`` holds the logs and ``control`` what the control group agreed on; ``cluster.id`` says which
node of which cluster the data directory is of, and the engine is opened by nobody else then.

**A disk that refuses** the logs ends every promise of this process: it goes on handing calls to other nodes, says that
it is not ready, and once the disk takes writes again asks to be started anew, which is what opens a log again.

**Ready** is a node that serves and whose replicas are whole: :mod:`vecdb.serving.readiness`.

**Stopping.**  Leaderships are handed over first, so that no group waits for an election; calls that run meanwhile find
the new leaders.  Then the faces drain, what came back meanwhile is handed over again, nodes are answered no more,
replicas are let go of, and stores are closed, which makes durable what was applied: the next start replays little.
"""

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from random import SystemRandom
from typing import Any, Final, cast

from vecdb.app import CLUSTER_ID, open_logs, open_store, repositories
from vecdb.client.remote.node import RemoteNode
from vecdb.client.remote.options import Options
from vecdb.cluster.joining import Release
from vecdb.config import Settings
from vecdb.core.errors import DataCorrupted, FormatMismatch, StorageError, Unavailable, VecdbError
from vecdb.core.nodes import bracketed
from vecdb.ports.observer import NullObserver, Observer
from vecdb.ports.peers import Replicas
from vecdb.ports.replicator import Replicator
from vecdb.ports.store import Store
from vecdb.ports.tell import Tell
from vecdb.raft.driver import Driver
from vecdb.raft.settings import RaftSettings
from vecdb.rpc.admin import About, AdminServicer
from vecdb.rpc.backups import BackupsServicer, RemoteBackups
from vecdb.rpc.copies import CopiesServicer, RemoteCopies
from vecdb.rpc.door import Guards
from vecdb.rpc.edge import Edge
from vecdb.rpc.frames import GrpcFrames
from vecdb.rpc.members import OPEN, PROCESS
from vecdb.rpc.operations import OperationsServicer
from vecdb.rpc.peer import PEER_PREFIX
from vecdb.rpc.peer_certificates import open_peer_certificates
from vecdb.rpc.peer_channels import PeerChannels
from vecdb.rpc.peers import (
    FoundingServicer,
    PeerChannel,
    RemotePeers,
    RemoteWitnesses,
    ReplicasServicer,
    cluster_guards,
)
from vecdb.rpc.peers_server import PeerServer, PeerServerOptions
from vecdb.rpc.probing import Probes
from vecdb.rpc.servicers import CollectionsServicer, QueriesServicer, RecordsServicer
from vecdb.rpc.tls import Certificates
from vecdb.runtime.clock import SystemClock
from vecdb.runtime.replication import CONTROL, Figures
from vecdb.segment.files import sync_directory
from vecdb.services.aside import set_aside
from vecdb.services.backup.fetching import Fetcher
from vecdb.services.backup.local import RESTORING
from vecdb.services.backup.work import BackupWork, Held
from vecdb.services.balance import Balancer, BalanceSettings
from vecdb.services.cluster_keys import ClusterKeys
from vecdb.services.control import Control
from vecdb.services.control_calls import ControlCalls
from vecdb.services.copying import Copying
from vecdb.services.departures import Departures
from vecdb.services.directory import Directory
from vecdb.services.hosting import Hosting
from vecdb.services.keys import KeyRing
from vecdb.services.ledger import Ledger
from vecdb.services.local import LocalDatabase
from vecdb.services.node import LocalNode
from vecdb.services.proposing import Proposer, Sources
from vecdb.services.replicas import OwnReplicas
from vecdb.services.replicated import Cluster, ReplicatedNode
from vecdb.services.shards import ClusterShards
from vecdb.serving.governing import Backing, Governing, is_member
from vecdb.serving.leaderless import Leaderless
from vecdb.serving.membership import Membership, draw
from vecdb.serving.readiness import NAMED, Readiness
from vecdb.serving.shard_loads import ShardLoads
from vecdb.storage.paths import replace_file

LOGS: Final = "raft"
CONDEMNED: Final = "raft.condemned"
"""Says why the logs are set aside at the next start: RocksDB opens with a damaged table, and refuses all writes as soon
as it rewrites that one, every time.
"""
CONTROL_STATE: Final = "control"
CHECKPOINT_BYTES: Final = 64 << 20
"""Of a log, from one checkpoint of its state to the next."""
BALANCE = BalanceSettings()
HEARTBEATS: Final = 3
"""Without which a follower is not one to hand a leadership to, where that is longer than it is for others."""
GRACE_S: Final = 1.0
"""For calls of other nodes to end when this one stops."""
FIGURES_S: Final = 2.0
LOOK_S: Final = 1.0
PROBE_BYTES: Final = 8 << 20
"""What a disk must take before it is believed to be well: more than little files find room for."""


def check_directory(settings: Settings) -> None:
    """Refuse a data directory that is of another node or cluster; mark a new one.

    The caller holds the directory's lock.
    """
    text = f"{settings.cluster.name} {settings.server.node_id}\n"
    path = settings.data_dir / CLUSTER_ID
    found = path.read_text(encoding="ascii", errors="replace") if path.exists() else ""
    if found == text:
        return
    if found:
        cluster, _, node = found.strip().partition(" ")
        raise FormatMismatch(f"{settings.data_dir} is of node {node!r} of cluster {cluster!r}, and the settings are of "
                             f"node {settings.server.node_id!r} of cluster {settings.cluster.name!r}",
                             path=str(settings.data_dir), got=found.strip()[:140], limit=text.strip())
    replace_file(path, text)


class _Events:
    """What replicas tell, counted and passed on."""

    def __init__(self, tell: Tell) -> None:
        self.counts: Counter[str] = Counter({"raft_leader": 0, "leader_balanced": 0})
        self._tell = tell

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        self.counts[event] += 1
        self._tell(level, event, **fields)


class Member:
    """This node's part in its cluster; made by :func:`join`."""

    def __init__(self, settings: Settings, database: LocalDatabase, engine: LocalNode, observer: Observer, store: Store,
                 certificates: Certificates | None, release: Release, tell: Tell) -> None:
        """Starts nothing that other nodes see.  In the event loop."""
        me, options = settings.server.node_id, settings.cluster
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._engine = engine
        self._tell = tell
        self._events = _Events(tell)
        self._certificates = certificates
        clock, self.ledger = SystemClock(), Ledger(store)
        self.control = Control(settings.data_dir / CONTROL_STATE, open_store,
                               replication_factor=options.replication_factor, reads=release.commands)
        self.directory = Directory(me, options.address(me), options.nodes, self.ledger.directory,
                                   lambda: self.control.state.nodes)
        cluster = Cluster(me, self.directory.names)
        self.channels = PeerChannels(me, options.name, self.directory, certificates)
        self.frames = GrpcFrames(self.channels, me, options.name, tell)
        self.driver = Driver(me, store, self.frames, seed=secrets.randbits(64), tell=self._events,
                             settings=RaftSettings(heartbeat_s=options.heartbeat_s,
                                                   election_s_min=options.election_s_min,
                                                   election_s_max=options.election_s_max,
                                                   log_bytes=options.log_bytes,
                                                   checkpoint_bytes=min(CHECKPOINT_BYTES, options.log_bytes // 4),
                                                   snapshot_bytes_s=options.snapshot_bytes_s))
        self.peers = RemotePeers(self.channels, _open_node, clock)
        self.probes = Probes(options, self.directory, self._events)
        self.membership = Membership(settings, release, self.control, self.directory, self.ledger, self.peers,
                                     certificates, clock, self._events, self._stats,
                                     ShardLoads(database, observer, lambda: self.hosting.statuses(), clock),
                                     self.channels.incarnation)
        self.hosting = Hosting(me, tuple(options.nodes), self.driver, database, self.control, self.ledger,
                               RemoteWitnesses(self.peers, self.probes), draw=draw, joiner=self.membership.joiner,
                               departures=Departures(store),
                               is_member=lambda entry: is_member(me, self.governing, entry), tell=self._events)
        self.own = OwnReplicas(engine, self.hosting, self.control, clock)
        self.node = ReplicatedNode(cluster, engine, self.own, self.control, self.peers, clock, observer,
                                   SystemRandom())
        sources = Sources(self.control, self.hosting)
        proposer = Proposer(me, self.own, self.control, self.peers, clock, SystemRandom())
        places = repositories(settings.backup)
        database.bring = Fetcher(places, clock)
        self.backups = BackupWork(me, lambda: self.control.state, lambda group: cast(Held, sources(group)), proposer,
                                  places, open_store, settings.data_dir / RESTORING, clock, self.node.caught_up,
                                  tell=self._events)
        self.copies = Copying(sources, proposer, draw=lambda: secrets.randbits(63) + 1, tell=self._events)
        self.shards = ClusterShards(cluster, self.node, self.own, self.control, engine, self.peers, clock)
        self.governing = Governing(
            me, options.name, self.control, self.own, self.peers, self.membership.announcements,
            lambda node: self.copies if node == me else RemoteCopies(self.peers.replicas(node)),
            lambda label, call, deep: self.shards.verify(label, call, deep=deep),
            Backing(lambda node: self.backups if node == me else RemoteBackups(self.peers.replicas(node)), places,
                    options.name, release.version),
            lambda node: cast(RemoteNode, self.peers.node(node)).operations, lambda: self.directory.names,
            self.node.leaders, clock, self._events)
        self.server: PeerServer | None = None
        self._edges: list[Edge] = []
        self._readiness = Readiness(me, self._loop.time, self._receiving)
        self._leaderless = Leaderless(me, self._loop.time)
        self.own.unled_s = self._leaderless.unled_s
        self._kept: set[tuple[Replicator, int]] = set()
        """Leaderships that nobody took, and their terms."""
        heard_s = max(BALANCE.heard_s, HEARTBEATS * options.heartbeat_s)
        self._balancer = Balancer(me, self.own, lambda: self.control.state, self.peers.replicas, clock, SystemRandom(),
                                  well=lambda: not self.reasons(), settings=replace(BALANCE, heard_s=heard_s),
                                  tell=self._events)

    @property
    def running(self) -> int:
        """Calls of other nodes that have begun and not ended."""
        return sum(edge.running for edge in self._edges)

    async def start(self, guards: Guards, workers: Executor, about: About, addresses: Mapping[str, Any],
                    stack: AsyncExitStack) -> int:
        """Listen for the other nodes and take up what is here; returns the port.  ``stack`` undoes it.

        ``addresses``: where clients reach this node.
        """
        self._edges = self._make_edges(cluster_guards(guards), workers, about)
        cluster, me = self._settings.cluster, self._settings.server.node_id
        address = f"{bracketed(cluster.host)}:{cluster.listens_on(me)}"
        credentials = None if self._certificates is None else self._certificates.grpc_credentials()
        self.server = PeerServer(PeerServerOptions(me, cluster.name, address, self.directory, credentials,
                                                   credentials is None, tell=self._tell,
                                                   removed=lambda: self.directory.left, open_methods=OPEN,
                                                   ask=self.membership.process, unasked_methods=(PROCESS,)),
                                 [self.frames.servicer(), *self._edges])
        if self._certificates is not None:
            reload = self._loop.create_task(self._certificates.watch())
            stack.callback(reload.cancel)
        stack.push_async_callback(self._let_go)
        bound = await self.server.start()
        for work in (self._follow(), self._leave(), self.probes.watch(self.frames.away)):
            stack.callback(self._loop.create_task(work).cancel)
        self.membership.start(addresses, stack)
        self.hosting.start()
        self.governing.start()
        if cluster.balance_leaders:
            self._balancer.start()
        return bound

    async def _follow(self) -> None:
        """Let go of nodes that left, and note where the others are."""
        while True:
            nodes = self.directory.noted()
            for name in (*self.channels.made, *self.peers.made):
                if name not in nodes.known:
                    self.frames.forget(name)
                    self.channels.forget(name)
                    await self.peers.forget(name)
            if nodes != self.ledger.directory and self.control.state.nodes:
                with suppress(StorageError, DataCorrupted):  # the logs are in the same store, and find out
                    await self._loop.run_in_executor(None, self.ledger.write_directory, nodes)
            await asyncio.sleep(LOOK_S)

    async def _leave(self) -> None:
        """Once this node was removed: let go of what it holds here, which stays on its disk, and call nobody any more:
        all would refuse it, for ever.
        """
        await self.membership.removed.wait()
        await self._balancer.stop()
        await self.governing.stop()
        await self.hosting.stop()
        self.control.replicator = None
        for group in list(self.driver.host.replicas):
            await self.driver.remove(group)
        await self.frames.close()
        await self.membership.forget()

    # --- the cluster's keys -----------------------------------------------------------------------

    def keys(self, own: KeyRing) -> ClusterKeys:
        """Those of the cluster, and of this node's directory."""
        def blocking(work: Callable[[], Coroutine[Any, Any, object]]) -> object:
            return asyncio.run_coroutine_threadsafe(work(), self._loop).result()

        calls = ControlCalls(self.node.leaders, lambda: self.directory.names, self._replicas,
                             lambda: self.control.replicator, SystemClock())
        return ClusterKeys(lambda: self.control.state.api_keys, self.membership.knows_keys,
                           lambda command: blocking(lambda: calls.change(command)),
                           lambda: blocking(calls.catch_up), own, SystemClock())

    def _replicas(self, node: str) -> Replicas:
        return self.own if node == self._settings.server.node_id else self.peers.replicas(node)

    def _stats(self) -> dict[str, float]:
        """What is told of this node to who leads, beside its disk and memory."""
        shards = [one.status for label, one in self.hosting.statuses().items() if label and one.status is not None]
        return {"replicas": float(len(shards)), "leaders": float(sum(one.role == "leader" for one in shards)),
                "halted": float(sum(one.state == "halted" for one in shards)), "running_calls": float(self.running),
                "sync_slowest_s": self.driver.host.syncs.slowest_s(self._loop.time())}

    def _make_edges(self, guards: Guards, workers: Executor, about: About) -> list[Edge]:
        own, nobody = self.own, NullObserver()
        internal = [*ReplicasServicer(own).methods(), *FoundingServicer(lambda: self.hosting.founding).methods(),
                    *CopiesServicer(self.copies).methods(), *BackupsServicer(self.backups).methods(),
                    *self.membership.servicer().methods()]
        public = [*CollectionsServicer(own).methods(), *RecordsServicer(own, nobody).methods(),
                  *QueriesServicer(own, nobody, guards.deadline_s, guards.on_fault).methods(),
                  *AdminServicer(own, None, about).methods(),
                  *OperationsServicer(lambda: self.governing.own).methods()]
        return [Edge(internal, guards, workers, prefix=PEER_PREFIX), Edge(public, guards, workers)]

    async def _let_go(self) -> None:
        """In the order in which one needs the other."""
        assert self.server is not None
        await self.hand_over()  # others may have taken a node that drained for one that leads too little
        await self.server.stop(GRACE_S)
        await self.governing.stop()
        await self.copies.close()
        await self.backups.close()
        await self.hosting.stop()

    async def close(self) -> None:
        """What was made with the node; after :meth:`start` was undone."""
        self.driver.end()
        await self._loop.run_in_executor(None, self.driver.join)
        await self.frames.close()
        await self.peers.close()
        await self.channels.close()
        await self._loop.run_in_executor(None, self.control.close)

    # --- health -----------------------------------------------------------------------------------

    async def failed(self) -> None:
        """Return once the logs' disk has failed and takes writes again: a start anew then helps."""
        while self.driver.failure is None:
            self._leaderless.look(self.control.state, self.hosting.statuses())
            await asyncio.sleep(LOOK_S)
        self._tell("error", "logs_failed", error=f"{type(self.driver.failure).__name__}: {self.driver.failure}")
        folder = self._settings.data_dir
        while True:
            await asyncio.sleep(LOOK_S)
            with suppress(OSError, StorageError):
                await self._loop.run_in_executor(None, _probe, folder)
                if isinstance(self.driver.failure, DataCorrupted):
                    await self._loop.run_in_executor(None, replace_file, folder / CONDEMNED, "damaged\n")
                return

    def reasons(self) -> list[str]:
        """Why this node does not serve yet, or no more; empty when it does."""
        if self.driver.failure is not None:
            return [f"the logs' disk has failed ({type(self.driver.failure).__name__}: {self.driver.failure}); "
                    "the node starts anew when it takes writes again"]
        if self.membership.reason():
            return [self.membership.reason()]
        status = self.control.status()
        if status is None:
            return [self._founding()]
        found = [] if status.leader is not None else ["the control group has no leader that this node knows of"]
        away = [f"{name!r} ({shard.error})" if shard.error else f"{name!r}"
                for name, shard in self.hosting.statuses().items()
                if name and (shard.status is None or shard.status.state == "halted")]
        if away:
            more = f" and {len(away) - NAMED} more" if len(away) > NAMED else ""
            found.append(f"replicas here are not open: {', '.join(away[:NAMED])}{more}")
        return found or self._readiness.reasons(status, self.control.state, self.hosting.statuses())

    def warnings(self) -> list[str]:
        """What is amiss though this node serves."""
        removed = self.membership.removed.is_set()
        return self.membership.warnings() + ([] if removed else self._leaderless.warnings(self.frames.away()))

    def _receiving(self, group: int) -> tuple[int, int] | None:
        replica = self.driver.host.replicas.get(group)
        return None if replica is None else replica.receiving

    @property
    def unfounded(self) -> bool:
        """Whether the cluster waits for nodes that were not started yet, for longer than it takes to start them."""
        return self.hosting.entrance.late

    def _founding(self) -> str:
        founding = self.hosting.founding
        if founding is None or not founding.over:
            missing = "; ".join(f"{node}: {why}" for node, why in self.hosting.entrance.missing.items())
            return "the cluster is not founded yet: it is once all of its nodes have been up at the same time, by " \
                "vecdb serve on each" + (f"; without an answer: {missing}" if missing else "")
        error = self.hosting.statuses()[""].error
        return f"the control group is not open ({error})" if error else "the control group is not open yet"

    async def hand_over(self) -> None:
        """Give every leadership to another replica, as far as there is one that can take it; nobody is asked twice."""
        await self._balancer.stop()
        settings = self.driver.host.settings
        until = self._loop.time() + 2 * settings.election_s_max

        async def give(replicator: Replicator, term: int) -> None:
            try:
                await replicator.transfer(None, until)
            except VecdbError:
                self._kept.add((replicator, term))

        found = [(one, one.status()) for one in self._replicators()]
        leading = [(one, status.term) for one, status in found if status.role == "leader" and len(status.voters) > 1]
        await asyncio.gather(*(give(*one) for one in leading if one not in self._kept))

    def _replicators(self) -> list[Replicator]:
        found = [] if self.control.replicator is None else [self.control.replicator]
        for name in self.hosting.statuses():
            with suppress(VecdbError):
                if name:
                    found.append(self.hosting.replicator(name))
        return found

    # --- figures ----------------------------------------------------------------------------------

    def figures(self) -> Figures:
        """For the page of metrics, from its thread."""
        try:
            return asyncio.run_coroutine_threadsafe(self._figures(), self._loop).result(FIGURES_S)
        except RuntimeError as error:  # the loop has ended
            raise Unavailable("the node has stopped") from error

    async def _figures(self) -> Figures:
        shards = self.hosting.statuses()
        groups = {one.group: name or CONTROL for name, one in shards.items()}
        receiving = {groups.get(group, ""): replica.receiving for group, replica in self.driver.host.replicas.items()}
        frames = self.frames.counters
        waiting, syncs = frames.pop("waiting_bytes", 0), self.driver.host.syncs
        return Figures(
            replicas={name or CONTROL: one.status for name, one in shards.items() if one.status is not None},
            snapshots={name: one for name, one in receiving.items() if one is not None},
            events=dict(self._events.counts), dropped=dict(self.driver.host.dropped), frames=frames,
            waiting_bytes=waiting,
            refused={} if self.server is None else {**self.server.refused, **self.probes.refused},
            handed_on=dict(self.node.counts.handed_on),
            syncs=(syncs.count, syncs.total_s, syncs.slowest_s(self._loop.time())))


def _probe(folder: Path) -> None:
    """Raise ``OSError`` unless the disk takes some megabytes."""
    path = folder / "probe.partial"
    try:
        with open(path, "wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)


def _open_node(channel: PeerChannel, label: str) -> RemoteNode:
    """Attempts are the caller's, each with its own deadline, and so is what travels together."""
    return RemoteNode(channel, replace(Options(), timeout=None, retries=0, auto_batch=False, schema_ttl=0.0))


def _open_logs(folder: Path, tell: Tell) -> Store:
    """The store of all logs; one that is damaged as a whole, or was found so by the last life of this node, is set
    aside: the node has lost its logs then, and joins its groups anew, without a vote until it has caught up.
    """
    note = folder.with_name(CONDEMNED)
    try:
        if note.exists():
            raise DataCorrupted("the logs were found damaged when they were written to", path=str(folder))
        return open_logs(folder)
    except DataCorrupted as error:
        aside = set_aside(folder)
        tell("error", "logs_damaged", error=error.message, kept=str(aside))
        note.unlink(missing_ok=True)
        sync_directory(note.parent)
        return open_logs(folder)


async def join(settings: Settings, database: LocalDatabase, engine: LocalNode, observer: Observer, release: Release,
               tell: Tell, stack: AsyncExitStack) -> Member:
    """Open what a member of a cluster needs; nothing is seen by others until :meth:`Member.start`."""
    loop = asyncio.get_running_loop()
    certificates = open_peer_certificates(settings.cluster, settings.server.node_id, SystemClock(), tell)
    await loop.run_in_executor(None, check_directory, settings)
    store = await loop.run_in_executor(None, _open_logs, settings.data_dir / LOGS, tell)
    stack.callback(store.close)
    member = Member(settings, database, engine, observer, store, certificates, release, tell)
    stack.push_async_callback(member.close)
    return member
