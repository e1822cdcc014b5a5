"""What of a node is about who belongs to the cluster, put together: joining, announcing, and having been removed.

**A node that was removed** hears so from the control state, or from everybody it still reaches.  It lets go of its
replicas, answers calls with ``NodeRemoved``, is not ready and says why; what it holds stays on its disk.  It forgets
that it was a member, so with ``cluster.join`` and a token it may be started anew and join like any other.

**A node whose name another process has** goes on as it is, and says so for :data:`TWIN_S` since it last heard of it: in
its log, in the warnings of ``/readyz``, and by a figure that it announces, which ``vecdb doctor`` reads.  The other
one is refused everywhere, and is not ready.
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final

from vecdb.cluster.founding import Founding
from vecdb.cluster.joining import Candidate, Release
from vecdb.cluster.loads import ShardLoad
from vecdb.config import Settings
from vecdb.core.access import Principal
from vecdb.core.cluster import NodeState, disk_state
from vecdb.core.errors import DataCorrupted, NodeRemoved, StorageError
from vecdb.core.nodes import bracketed, is_wildcard, split_address
from vecdb.ports.clock import Clock
from vecdb.ports.tell import Tell
from vecdb.rpc.door import Authenticate
from vecdb.rpc.members import JoinCalls, MembersServicer, RemoteMembers
from vecdb.rpc.peer_twins import TWICE
from vecdb.rpc.peers import RemotePeers
from vecdb.rpc.seldom import Seldom
from vecdb.rpc.tls import Certificates
from vecdb.runtime.memory import disk, memory
from vecdb.services.announcing import Announcements, Announcer, Report
from vecdb.services.cluster_keys import ClusterKeys
from vecdb.services.control import Control
from vecdb.services.directory import Directory
from vecdb.services.founding import NUMBERS
from vecdb.services.joining import Joiner, Registrar
from vecdb.services.ledger import Ledger

LOOK_S: Final = 0.5
LEFT_S: Final = 3.0
TWIN_S: Final = 30.0
REMOVED: Final = "this node was removed from the cluster: it may join anew, with a token (cluster.join, cluster.token)"


def draw() -> int:
    """A number for a disk."""
    return secrets.randbelow(NUMBERS[1] - NUMBERS[0]) + NUMBERS[0]


class Membership:
    """Belongs to one event loop.  ``stats()``: what is told of the node beside its disk and memory;
    ``loads()``: of its shards.
    """

    def __init__(self, settings: Settings, release: Release, control: Control, directory: Directory, ledger: Ledger,
                 peers: RemotePeers, certificates: Certificates | None, clock: Clock, tell: Tell,
                 stats: Callable[[], Mapping[str, float]], loads: Callable[[], Mapping[int, ShardLoad]],
                 incarnation: int) -> None:
        self._me = settings.server.node_id
        self._settings = settings
        self._release = release
        self._control = control
        self._directory = directory
        self._ledger = ledger
        self._clock = clock
        self._tell = tell
        self._stats = stats
        self._loads = loads
        self._loop = asyncio.get_running_loop()
        self._incarnation = incarnation
        self._seldom = Seldom(tell)
        self._twin: tuple[str, float] | None = None
        """From where another process spoke by this node's name, and when."""
        self._ports: dict[str, Any] = {}
        self.removed = asyncio.Event()
        self.announcements = Announcements(self._leading, clock, tell)
        self.registrar = Registrar(self._me, release.version, control, directory, self.announcements, clock, tell=tell)
        control.told = self._told
        control.low = lambda node: bool(disk_state(self.announcements.stats(node)))
        self._members = RemoteMembers(peers.replicas)
        self._announcer = Announcer(self._me, directory.names, self.registrar, self._members, control.status,
                                    self._report, clock, settled=self._settled, removed=self._was_removed, tell=tell)
        cluster = settings.cluster
        self.joiner = None if not cluster.join else Joiner(
            cluster.join, cluster.token.get_secret_value, self.describe, ledger, directory,
            JoinCalls(self._me, cluster, certificates, self._incarnation), tell, draw=draw, thread=self._thread,
            joined=self._announcer.likely)

    def servicer(self) -> MembersServicer:
        return MembersServicer(self._me, self.registrar, self._leader, self._members.admit, self._votes, self._clock,
                                self._incarnation, self._was_claimed)

    async def process(self, node: str, incarnation: int, host: str) -> int:
        """:data:`vecdb.rpc.peer_twins.Ask`."""
        return await self._members.process(node, incarnation, host) if node in self._directory else 0

    def start(self, addresses: Mapping[str, Any], stack: AsyncExitStack) -> None:
        """Begin to tell of this node, once it is known where clients reach it; ``stack`` undoes it."""
        self._ports = dict(addresses)
        for work in (self._announcer.run(), self.registrar.run(), self._follow()):
            stack.callback(self._loop.create_task(work).cancel)

    # --- this node --------------------------------------------------------------------------------

    def describe(self, number: int) -> Candidate:
        """This node as it stands in the control state."""
        server, cluster = self._settings.server, self._settings.cluster
        address = cluster.address(self._me)
        host = split_address(address)[0] if is_wildcard(server.host) else server.host
        client = server.advertise
        if not client and not server.host.startswith("unix:"):
            client = f"{bracketed(host)}:{self._ports.get('grpc_port') or server.grpc_port}"
        http = ""
        if client and server.http_port >= 0:
            port = self._ports.get("http_port") or server.http_port
            http = f"{bracketed(split_address(client)[0])}:{port}" if port else ""
        if client.endswith(":0"):  # not known yet
            client = http = ""
        return Candidate(self._me, number, address, client, http, cluster.part, cluster.zone, cluster.capacity,
                         self._release.version, self._release.commands)

    async def _report(self) -> Report:
        folder = self._settings.data_dir
        room = await self._loop.run_in_executor(None, _room, folder)
        status, founding = self._control.status(), self._ledger.founding
        stats = {**room, **self._stats(), "control_applied": float(self._control.state.log_index)}
        if self.warnings():
            stats[TWICE] = 1.0
        return Report(self.describe(0 if founding is None else founding.number), "" if status is None else status.me,
                      status is not None and status.state == "joining", self._incarnation, self._clock.wall(), stats,
                      self._loads())

    def _settled(self) -> bool:
        status, entry = self._control.status(), self._control.state.nodes.get(self._me)
        return entry is not None and status is not None and status.state == "ok"

    async def _thread(self, work: Callable[..., Any], *args: Any) -> Any:
        return await self._loop.run_in_executor(None, work, *args)

    # --- the control group ------------------------------------------------------------------------

    def _told(self, node: str) -> int | None:
        """What a node has told that it reads, where this one leads."""
        report = self.announcements.report(node)
        return None if report is None else report.node.commands

    def _leading(self) -> int:
        status = self._control.status()
        return status.term if status is not None and status.role == "leader" else 0

    def _leader(self) -> str | None:
        status = self._control.status()
        return None if status is None or status.leader is None else status.leader.rpartition("/")[0]

    def _votes(self, node: str) -> bool:
        status = self._control.status()
        return status is not None and any(one.rpartition("/")[0] == node for one in status.voters)

    # --- the end ----------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Look whether this node, having been a member in this life, has left by its own control state, for longer than
        it takes to read a log in which it left and joined anew.
        """
        member, since = False, 0.0
        while not self.removed.is_set():
            entry, now = self._control.state.nodes.get(self._me), self._clock.monotonic()
            left = entry is not None and entry.state is NodeState.LEFT
            member, since = member or (entry is not None and not left), since if left else now
            if member and left and now - since >= LEFT_S:
                self._was_removed()
            await asyncio.sleep(LOOK_S)

    def _was_removed(self) -> None:
        if not self.removed.is_set():
            self.removed.set()
            self._tell("error", "node_removed", about=self._me, why=REMOVED)

    async def forget(self) -> None:
        """After this node's replicas were let go of: let it join anew at the next start."""
        with suppress(StorageError, DataCorrupted):
            await self._thread(self._ledger.write_founding, Founding(draw()))

    def reason(self) -> str:
        """Why this node is no member; empty where it is one."""
        if self.removed.is_set():
            return REMOVED
        if self.joiner is not None and self.joiner.waits_for:
            return f"it could not join the cluster yet: {self.joiner.waits_for}"
        if self._announcer.refused:
            return f"the cluster refuses it as it is: {self._announcer.refused}"
        return ""

    def _was_claimed(self, host: str) -> None:
        self._twin = host, self._clock.monotonic()
        self._seldom("error", TWICE, TWICE, host, about=self._me, why="another process speaks by this node's name from "
                     "there, and is refused by who asked: give it another name (server.node_id), or stop it")

    def warnings(self) -> list[str]:
        """What is amiss though this node serves."""
        if self._twin is None or self._clock.monotonic() - self._twin[1] > TWIN_S:
            return []
        return [f"two nodes have this name (node_twice): another process speaks as {self._me} from {self._twin[0]}, "
                "and is refused"]

    def guarded(self, authenticator: Authenticate, keys: ClusterKeys, waits_for: Callable[[], Sequence[str]],
                unfounded: Callable[[], bool]) -> Authenticate:
        """Who is let in where this node serves: nobody before the cluster's keys are known, or once it was removed.

        ``waits_for``: what callers are told meanwhile, as ``/readyz`` tells it; ``unfounded``: whether that is nodes
        which were not started yet.
        """
        never = self._settings.security.require_keys == "never"
        return _Gate(authenticator, self.removed, (lambda: None) if never else
                     lambda: keys.check_known(waits_for, unfounded))

    def knows_keys(self) -> bool:
        """Whether the control state is here, be it empty."""
        if self._control.state.log_index:
            return True
        status = self._control.status()
        return status is not None and status.state == "ok" and status.leader is not None \
            and 0 < status.commit == status.applied


class _Gate:
    def __init__(self, inner: Authenticate, removed: asyncio.Event, known: Callable[[], None]) -> None:
        self._inner = inner
        self._removed = removed
        self._check_known = known

    def check(self, metadata: Any, peer: str, certificate: str = "") -> Principal:
        if self._removed.is_set():
            raise NodeRemoved(REMOVED)
        self._check_known()
        return self._inner.check(metadata, peer, certificate)


def _room(folder: Path) -> dict[str, float]:
    room, held = disk(folder), memory()
    return {"disk_free_bytes": float(room.free_bytes), "disk_total_bytes": float(room.total_bytes),
            "memory_bytes": float(held.resident_bytes), "memory_limit_bytes": float(held.total_bytes)}
