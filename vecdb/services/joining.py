"""How a node becomes a member of a cluster that is there, and how it ceases to be one.

**The node** (:class:`Joiner`) draws the number of its disk, asks the addresses it was given until one answers, and has
its token looked at by the leader of the control group.  What it is told, the addresses of all, it writes down before it
goes on, so that from then on it needs neither the token nor those addresses.

**The leader** (:class:`Registrar`) writes into the control state who was let in.  That is all that joining is: the
node's entry makes others believe its certificate, and the rest follows from what nodes tell of themselves
(:mod:`vecdb.services.announcing`): the replica of the control group that a member has begun and that is in the group's
configuration not yet is added to it, as an observer, or as a voter where its role votes; the entry is written again
where a node tells other addresses, another zone or a newer version than it has; and the replica of a node that has left
is taken out.  All of it is read off anew twice a second, by whoever leads.

**Two nodes by one name** are told apart by their disks' numbers: who asks to join by the name of a node that was heard
from within :data:`LATELY_S` by another disk is refused.  A node that was lost may come back under its name, with an
empty disk, once it was silent for so long, and takes its own place, which stays of the kind it was.  The same holds for
who announces itself by a founder's name: a leader that is new does not write down a stranger's address while Raft hears
from the one that there is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from vecdb.cluster.control import MAX_VOTERS, ControlState, NodeEntry, node_of
from vecdb.cluster.control.commands import node_put
from vecdb.cluster.control.entries import FIRST_COMMANDS
from vecdb.cluster.founding import Founding
from vecdb.cluster.joining import Candidate, check_candidate, check_name_free, check_room, check_token, check_version
from vecdb.core.calls import Call
from vecdb.core.cluster import NodeState
from vecdb.core.errors import JoinRefused, NotLeader, Unavailable, VecdbError
from vecdb.ports.clock import Clock
from vecdb.ports.replicator import ReplicaStatus, Replicator
from vecdb.ports.tell import Tell, tell_nobody
from vecdb.services.announcing import LATELY_S, Announcements, Answer, Report
from vecdb.services.control import members
from vecdb.services.directory import Directory, Noted
from vecdb.services.ledger import Ledger

LOOK_S: Final = 0.5
CHANGE_S: Final = 10.0
FAREWELL_S: Final = 2.0
"""How long a node that has left is given to hear of it by the log before it is taken out."""
PAUSE_S: Final = (0.2, 5.0)
"""Between attempts to join: the first, and the longest."""
REFUSED_S: Final = 10.0
"""After a refusal, which another token or a name may end."""
TELL_S: Final = 30.0
ASK_S: Final = 10.0


class Controlled(Protocol):
    """The control group: :class:`vecdb.services.control.Control`."""

    @property
    def state(self) -> ControlState: ...

    @property
    def replicator(self) -> Replicator | None: ...


class Registrar:
    """See the module.  Belongs to one event loop; does nothing where this node does not lead."""

    def __init__(self, me: str, version: str, control: Controlled, directory: Directory, announcements: Announcements,
                 clock: Clock, *, tell: Tell = tell_nobody) -> None:
        self._me = me
        self._version = version
        self._control = control
        self._directory = directory
        self._announcements = announcements
        self._clock = clock
        self._tell = tell
        self._farewells: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._awake = asyncio.Event()
        self._entering = asyncio.Lock()

    def _leading(self) -> tuple[Replicator, ReplicaStatus]:
        replicator = self._control.replicator
        if replicator is None:
            raise Unavailable("the control group is not here yet", retry_after_s=0.1)
        status = replicator.status()
        if status.role != "leader":
            raise NotLeader(f"{status.leader} leads the control group" if status.leader else
                            "the control group has no leader at the moment", leader=status.leader)
        return replicator, status

    # --- who asks -----------------------------------------------------------------------------------

    async def admit(self, one: Candidate, token: str, call: Call) -> dict[str, str]:
        """Let a node in; returns the addresses of all.  ``JoinRefused``, ``NotLeader``, ``Unavailable``."""
        replicator, status = self._leading()
        check_candidate(one)
        await replicator.read_index(call.deadline)  # tokens that were revoked, nodes that left
        state, now_s = self._control.state, self._clock.wall()
        check_token(token, state.tokens, one.role, now_s)
        before = state.nodes.get(one.name)
        there = before is not None and before.state is not NodeState.LEFT
        self._check_names(one, there, status)
        check_version(one.version, self._versions(state, one.name))
        check_room(one, state.nodes)
        self._check_votes(one, status)
        self._check_release(one)
        await self._put(replicator, one, call.deadline)
        self._tell("info", "node_joined", about=one.name, address=one.address, role=one.role.value, zone=one.zone,
                   version=one.version, again=before is not None)
        return dict(self._directory)

    async def check(self, one: Candidate, token: str) -> dict[str, str]:
        """Whether a node would be let in, as far as this one knows, whoever leads; returns the addresses of all.

        Nothing is changed.  Who has the name is only known to the leader, and to him once the node asks to join.
        ``JoinRefused``, ``Unavailable``.
        """
        replicator, state = self._control.replicator, self._control.state
        if replicator is None or not state.log_index:
            raise Unavailable("the control group is not here yet", retry_after_s=0.1)
        check_candidate(one)
        check_token(token, state.tokens, one.role, self._clock.wall())
        check_version(one.version, self._versions(state, one.name))
        check_room(one, state.nodes)
        self._check_votes(one, replicator.status())
        self._check_release(one)
        return dict(self._directory)

    def clients(self) -> dict[str, str]:
        """Where clients reach the nodes, of those that have told."""
        return {one.name: one.client_address for one in self._control.state.nodes.values()
                if one.client_address and one.state is not NodeState.LEFT}

    def _versions(self, state: ControlState, but: str) -> list[str]:
        return [self._version, *(entry.version for entry in state.nodes.values()
                                 if entry.state is not NodeState.LEFT and entry.name != but)]

    def _check_names(self, one: Candidate, there: bool, status: ReplicaStatus) -> None:
        voter = any(node_of(replica) == one.name for replica in (*status.voters, *status.joining))
        report, leading_s = self._announcements.report(one.name), self._announcements.leading_s
        if one.name == self._me:
            raise JoinRefused(f"there is a node {one.name} already: two nodes have this name", reason="name_in_use",
                              node=one.name)
        if (there or voter) and report is None and leading_s < LATELY_S:
            raise Unavailable(f"whether the node {one.name} that there is still lives is not known yet",
                              retry_after_s=LATELY_S - leading_s)
        check_name_free(one.name, one.number, None if report is None else report.node.number,
                        None if report is None else self._announcements.heard_s(one.name), LATELY_S)
        state, founders = self._control.state, list(map(node_of, status.voters))
        untold = [node for node in founders if node not in state.nodes]
        if untold and (self._untold(status, state.nodes) or 2 * len(untold) >= len(founders)):
            raise Unavailable(f"nodes that founded the cluster have not told their version yet: {', '.join(untold)}",
                              retry_after_s=2.0, nodes=untold)

    def _untold(self, status: ReplicaStatus, known: Mapping[str, object]) -> list[str]:
        """Members that are heard and have not said what they read, or read no commands about nodes.

        One that is away is not waited for: it says so when it is back, and is refused if it is too old.
        """
        found = []
        for node, (_, heard) in members(status).items():
            report = self._announcements.report(node)
            if heard and node not in known and (report is None or report.node.commands < FIRST_COMMANDS):
                found.append(node)
        return found

    @staticmethod
    def _check_votes(one: Candidate, status: ReplicaStatus) -> None:
        voting = {node_of(replica) for replica in (*status.voters, *status.joining)}
        if one.role.votes and one.name not in voting and len(voting) >= MAX_VOTERS:
            raise JoinRefused(f"{len(voting)} nodes vote in this cluster, as many as may: join as cluster.role=shard",
                              reason="full", role=one.role.value)

    async def _put(self, replicator: Replicator, one: Candidate, deadline: float | None) -> None:
        async with self._entering:  # two of one node would undo each other
            before = self._control.state.nodes.get(one.name)
            entry = one.entry(before, self._clock.wall())
            if entry is not before:
                await replicator.propose(node_put(entry), deadline)
        self._awake.set()

    # --- who announces itself -----------------------------------------------------------------------

    async def announced(self, report: Report) -> Answer:
        """Hear of a member; ``NotLeader`` with who does lead; ``JoinRefused`` where another process is that node."""
        _, status = self._leading()
        replica, heard = members(status).get(report.node.name, ("", False))
        if heard:
            self._check_stranger(report, replica)
        answer = self._announcements.take(report, replica)
        self._check_release(report.node)
        with suppress(VecdbError):  # it comes again in two seconds
            await self._register(report)
        return answer

    def _check_stranger(self, report: Report, replica: str) -> None:
        """``Unavailable`` while a leader that is new knows by Raft alone that a node is heard, and another disk
        announces itself by its name: soon the node itself will have done so.
        """
        one, left = report.node, LATELY_S - self._announcements.leading_s
        if left > 0 and replica not in (report.replica, f"{one.name}/{one.number}") \
                and self._announcements.report(one.name) is None:
            raise Unavailable(f"whether the node {one.name} that there is still lives is not known yet",
                              retry_after_s=left)

    def _check_release(self, one: Candidate) -> None:
        """``JoinRefused`` for a member that was started as a release too far from the others', or as one that does not
        read what all had agreed to use.
        """
        state = self._control.state
        check_version(one.version, [entry.version for entry in state.nodes.values()
                                    if entry.state is not NodeState.LEFT and entry.name != one.name])
        agreed = state.commands
        if agreed is not None and one.commands < agreed:
            raise JoinRefused(f"this node reads control commands of version {one.commands}, and the cluster's nodes "
                              f"have agreed on {agreed}: a release cannot be taken back once all nodes have it",
                              reason="version", version=one.version[:40], got=one.commands, limit=agreed)

    async def _register(self, report: Report) -> None:
        """Have the entry as the node describes itself; that of a founder is made by its first word."""
        replicator, status = self._leading()
        state, one = self._control.state, check_candidate(report.node)
        told = [node for node in map(node_of, status.voters)
                if node in state.nodes or self._announcements.report(node) is not None]
        if one.commands < FIRST_COMMANDS or 2 * len(told) <= len(status.voters) or self._untold(status, state.nodes):
            return  # a member that has said nothing yet may be of a version that does not read the command
        before = state.nodes.get(one.name)
        if before is not None and before.state is NodeState.LEFT:
            return
        votes = any(node_of(replica) == one.name for replica in (*status.voters, *status.joining))
        if before is not None and one.role.votes != votes and one.role is not before.role:
            self._seldom("node_role_kept", one.name, asked=one.role.value, role=before.role.value,
                         why="who votes is settled when a node joins")
            return
        if before is None or one.entry(before, self._clock.wall()) is not before:
            await self._put(replicator, one, self._deadline())
            self._tell("info", "node_registered", about=one.name, address=one.address, role=one.role.value,
                       zone=one.zone, version=one.version)
        if report.joining:
            self._awake.set()

    def _seldom(self, event: str, node: str, **fields: object) -> None:
        now = self._clock.monotonic()
        if now - self._told.get(f"{event} {node}", -TELL_S) >= TELL_S:
            self._told[f"{event} {node}"] = now
            self._tell("warning", event, about=node, **fields)

    @staticmethod
    def _deadline() -> float:
        return asyncio.get_running_loop().time() + CHANGE_S

    # --- who is in the group ------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever."""
        while True:
            self._awake.clear()
            try:
                if self._announcements.look():
                    while await self.look():
                        pass
            except NotLeader:
                pass
            except Exception as error:  # whatever it is, it must not be the end
                self._seldom("members_stuck", self._me, error=f"{type(error).__name__}: {error}")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._awake.wait()

    async def look(self) -> bool:
        """Make the next change of the control group's members; whether there was one."""
        replicator, status = self._leading()
        state = self._control.state
        here = {node_of(replica): replica for replica in (*status.voters, *status.learners, *status.joining)}
        for node, replica in here.items():
            if node in state.nodes and state.nodes[node].state is NodeState.LEFT and self._farewell(replica, status):
                await replicator.change_members(None, replica, self._deadline())
                self._farewells.pop(replica, None)
                self._announcements.forget(node)
                self._tell("info", "node_left", about=node, replica=replica)
                return True
        for node, entry in state.nodes.items():
            step = self._step(node, entry, here.get(node), status)
            if step is not None:
                add, remove, observe = step
                await replicator.change_members(add, remove, self._deadline(), observe=observe)
                self._tell("info", "node_takes_part", about=node, replica=add, before=remove, observes=observe)
                return True
        return False

    def _farewell(self, replica: str, status: ReplicaStatus) -> bool:
        """Whether one that has left knows it, as far as its log goes, or was given the time."""
        now = self._clock.monotonic()
        since = self._farewells.setdefault(replica, now)
        return replica == status.me or now - since >= FAREWELL_S or (
            status.matches.get(replica, 0) >= status.commit and now - since >= LOOK_S)

    def _step(self, node: str, entry: NodeEntry, known: str | None, status: ReplicaStatus
              ) -> tuple[str, str | None, bool] | None:
        """A member's replica that is to be added, in place of which, and whether it observes."""
        report = self._announcements.report(node)
        if entry.state is NodeState.LEFT or report is None or not report.joining or report.replica in ("", known) \
                or node_of(report.replica) != node or self._announcements.heard_s(node) > LATELY_S:
            return None
        if known is None:
            return report.replica, None, not entry.role.votes
        return (report.replica, known, True) if known in status.learners else None  # of voters Raft sees to it


class Seeds(Protocol):
    """Nodes by their addresses alone: :class:`vecdb.rpc.members.JoinCalls`."""

    async def join(self, address: str, one: Candidate, token: str, deadline: float) -> tuple[dict[str, str], str]:
        """Addresses of all, and who leads; ``JoinRefused``, or ``VecdbError`` for what may pass."""
        ...


class Joiner:
    """What :class:`~vecdb.services.founding.Founder` is to founders, for a node that joins.

    ``thread`` runs what blocks; ``draw`` is the process's entropy.
    """

    fresh = True
    """What joins has promised nothing: a log that is not there never was."""

    def __init__(self, addresses: Sequence[str], token: Callable[[], str], describe: Callable[[int], Candidate],
                 ledger: Ledger, directory: Directory, seeds: Seeds, tell: Tell, *, draw: Callable[[], int],
                 thread: Callable[..., Awaitable[Any]], joined: Callable[[str], None] = lambda leader: None) -> None:
        self._addresses = addresses
        self._token = token
        self._describe = describe
        self._ledger = ledger
        self._directory = directory
        self._seeds = seeds
        self._tell = tell
        self._draw = draw
        self._thread = thread
        self._joined = joined
        self._told: tuple[str, float] = ("", 0.0)
        self.missing: dict[str, str] = {}
        self.late = False
        self.waits_for = ""
        """Why this node is no member yet, for whoever asks."""

    async def found(self, has_state: bool) -> Founding:
        """Return once this node is a member, whether or not it was one before."""
        mine = self._ledger.founding
        if mine is not None and mine.over and self._ledger.directory is not None:
            return mine
        if mine is None or mine.over:
            mine = Founding(self._draw())
            await self._thread(self._ledger.write_founding, mine)
        nodes, leader = await self._insist(self._describe(mine.number))
        self._directory.tell(nodes)
        await self._thread(self._ledger.write_directory, Noted({}, nodes))
        mine = Founding(mine.number, joined=True)
        await self._thread(self._ledger.write_founding, mine)
        self._tell("info", "cluster_joined", node=self._describe(mine.number).name, number=mine.number,
                   members=sorted(nodes))
        self.waits_for = ""
        self._joined(leader)
        return mine

    async def _insist(self, one: Candidate) -> tuple[dict[str, str], str]:
        pause, loop = PAUSE_S[0], asyncio.get_running_loop()
        while True:
            wait = pause
            for address in self._addresses:
                try:
                    return await self._seeds.join(address, one, self._token(), loop.time() + ASK_S)
                except JoinRefused as error:
                    wait = REFUSED_S
                    self._tell_seldom("cluster_refuses", one, address, error, reason=error.reason)
                    break
                except VecdbError as error:
                    self._tell_seldom("cluster_not_reached", one, address, error)
            await asyncio.sleep(wait)
            pause = min(2 * pause, PAUSE_S[1])

    def _tell_seldom(self, event: str, one: Candidate, address: str, error: VecdbError, **fields: object) -> None:
        self.waits_for = f"{address}: {error.message}"
        now = asyncio.get_running_loop().time()
        what = f"{event} {error.message}"
        if what != self._told[0] or now - self._told[1] > TELL_S:
            self._told = (what, now)
            self._tell("error", event, node=one.name, address=address, error=error.message, **fields)

