"""What nodes tell of themselves, every other second, to whoever leads the control group.

It is kept in the leader's memory alone: a thousand facts that are old in a moment are no affair of a log.  A new
leader has heard of nobody, so **silence counts from when it began to lead**; else every election would look as if all
nodes had gone at once.  What is decided is decided by that; who asks is told which nodes the leader has not heard yet
(:meth:`Announcements.word_s`), for one that died before the election is none that was heard since.

**Clocks.**  What ends at a time (tokens, leases) ends by the leader's clock.  A node tells the time it has, and one
that is off by more than :data:`~vecdb.core.cluster.CLOCK_OFF_S` is told of, loudly and by name, for API keys end by its
own and its logs mislead; nothing of the cluster is decided by what it says.

**Two processes by one name**: the one that was heard within :data:`LATELY_S` keeps it, and the other is refused and
told why, as the one that keeps it is told that there is another.  A later process on the same disk is a restart.  Of
two on different disks the one counts whose replica the control group has, whoever came first, so what was taken while
a node was silent it takes back when it speaks.  Which of the two has the node's address is looked at before that, at
each call (:mod:`vecdb.rpc.peer_twins`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final, Protocol

from vecdb.cluster.joining import Candidate
from vecdb.cluster.loads import ShardLoad
from vecdb.core.calls import Call
from vecdb.core.cluster import CLOCK_OFF_S
from vecdb.core.errors import JoinRefused, NodeRemoved, NotLeader, VecdbError
from vecdb.ports.clock import Clock
from vecdb.ports.replicator import ReplicaStatus
from vecdb.ports.tell import Tell, tell_nobody

PERIOD_S: Final = 2.0
LATELY_S: Final = 10.0
"""A node that was heard from within this lives."""
SOON_S: Final = 0.2
ASK_S: Final = 2.0
TELL_S: Final = 60.0
"""Until the same of a node is told again."""
REMOVED_S: Final = 6.0
"""For so long a node must hear from all it reaches that it was removed, before it believes it: one may lag."""
CLOCK_OFF: Final = "clock_off_s"
TWICE: Final = "node_twice"
_NOTHING: Final[Mapping[str, float]] = {}


@dataclass(frozen=True, slots=True)
class Report:
    """A node at a moment.  ``replica``: its own of the control group, empty: not there yet; ``joining``: that is no
    member yet.  ``incarnation``: of its process, later ones have higher numbers; ``wall_s``: its clock.  ``shards``:
    what its replicas hold, and how busy they keep it.
    """

    node: Candidate
    replica: str = ""
    joining: bool = False
    incarnation: int = 0
    wall_s: float = 0.0
    stats: Mapping[str, float] = field(default_factory=dict)
    shards: Mapping[int, ShardLoad] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """``wall_s``: the leader's clock; ``twice``: another process speaks by this name, too."""

    wall_s: float
    twice: bool = False


@dataclass(slots=True)
class _Heard:
    report: Report
    at: float
    stats: Mapping[str, float]
    twin_at: float = -inf
    """When another process by this name was refused last."""


class Announcements:
    """What the leader has heard.  Belongs to one event loop.

    ``leading()``: the term in which this node leads the control group, 0: it does not.
    """

    def __init__(self, leading: Callable[[], int], clock: Clock, tell: Tell = tell_nobody) -> None:
        self._leading = leading
        self._clock = clock
        self._tell = tell
        self._term = 0
        self._since = 0.0
        self._heard: dict[str, _Heard] = {}
        self._told: dict[tuple[str, str], float] = {}

    def look(self) -> bool:
        """Whether this node leads; note since when."""
        term = self._leading()
        if term != self._term:
            self._term, self._since = term, self._clock.monotonic()
        return term > 0

    def take(self, report: Report, replica: str = "") -> Answer:
        """Of a node; ``NotLeader`` where this one does not lead, ``JoinRefused`` where another process is that node.

        ``replica``: the node's that the control group has, empty where it has none.
        """
        if not self.look():
            raise NotLeader("this node does not lead the control group")
        name, now, wall = report.node.name, self._clock.monotonic(), self._clock.wall()
        off = report.wall_s - wall
        if abs(off) > CLOCK_OFF_S:
            self._seldom("node_clock_off", name, off_s=round(off, 1))
        before = self._heard.get(name)
        if before is not None and now - before.at < LATELY_S and not _succeeds(report, before.report, replica):
            before.twin_at = now
            self._seldom(TWICE, name, address=before.report.node.address, other=report.node.address,
                         why="two processes speak by this name: the one that the cluster knows keeps it")
            raise JoinRefused(
                f"two nodes have this name (node_twice): {name} at {before.report.node.address} was heard from "
                f"{now - before.at:.1f} s ago, and is another process.  Give this one another name (server.node_id), "
                f"or stop the other; if it was lost, wait until it was silent for {LATELY_S:g} s", reason="name_in_use",
                node=name)
        stats = {**report.stats, CLOCK_OFF: round(off, 3)}
        twin_at = -inf
        if before is not None and before.report.incarnation == report.incarnation:
            twin_at = before.twin_at
        elif before is not None and before.report.node.number != report.node.number and now - before.at < LATELY_S:
            twin_at = now
        self._heard[name] = _Heard(report, now, stats, twin_at)
        return Answer(wall, now - twin_at < LATELY_S)

    def _seldom(self, event: str, node: str, **fields: object) -> None:
        now = self._clock.monotonic()
        if now - self._told.get((event, node), -TELL_S) >= TELL_S:
            self._told[event, node] = now
            self._tell("error", event, about=node, **fields)

    @property
    def leading_s(self) -> float:
        """For how long this node leads; 0 where it does not."""
        return self._clock.monotonic() - self._since if self.look() else 0.0

    def heard_s(self, node: str) -> float:
        """Seconds since a node was heard of, or since this one leads; 0 where it does not."""
        leading_s, heard = self.leading_s, self._heard.get(node)
        return leading_s if heard is None else min(leading_s, self._clock.monotonic() - heard.at)

    def word_s(self, node: str) -> float:
        """Seconds since a node was heard of; -1: not since this one leads.  Silence is :meth:`heard_s`."""
        return -1.0 if self.report(node) is None else self._clock.monotonic() - self._heard[node].at

    def report(self, node: str) -> Report | None:
        """The last of a node, heard since this one leads."""
        heard = self._heard.get(node)
        return None if heard is None or not self.look() or heard.at < self._since else heard.report

    def stats(self, node: str) -> Mapping[str, float]:
        """What a node told of itself last, :data:`CLOCK_OFF` with it; empty where it has told nothing since this node
        leads.
        """
        return _NOTHING if self.report(node) is None else self._heard[node].stats

    def shard_loads(self) -> dict[int, ShardLoad]:
        """What nodes have told of their shards since this one leads: bytes of the largest replica, work of all."""
        found: dict[int, ShardLoad] = {}
        for node in self._heard:
            report = self.report(node)
            for group, load in (report.shards if report is not None else {}).items():
                before = found.get(group, ShardLoad(0.0, 0.0))
                found[group] = ShardLoad(max(before.bytes, load.bytes), before.busy + load.busy)
        return found

    def forget(self, node: str) -> None:
        """It was removed."""
        self._heard.pop(node, None)


def _succeeds(report: Report, before: Report, replica: str) -> bool:
    """Whether a report is of the process that was heard, or of one that is the node in its place."""
    if report.incarnation == before.incarnation:
        return True
    if report.node.number == before.node.number:
        return report.incarnation > before.incarnation
    return report.replica == replica != before.replica


class Leaders(Protocol):
    """Those who may be asked: clients of other nodes' Members service."""

    async def announce(self, node: str, report: Report, call: Call) -> Answer: ...


class Own(Protocol):
    """This node's own: :class:`vecdb.services.joining.Registrar`."""

    async def announced(self, report: Report) -> Answer: ...


class Announcer:
    """Tells of this node, for as long as it runs.  Belongs to one event loop.

    ``status()``: of its replica of the control group; ``report()``: itself as it is now; ``settled()``:
    whether it is a member by what it knows itself; ``removed()`` is told when it is known that this node was removed.
    """

    def __init__(self, me: str, nodes: Sequence[str], own: Own, others: Leaders,
                 status: Callable[[], ReplicaStatus | None], report: Callable[[], Awaitable[Report]],
                 clock: Clock, *, settled: Callable[[], bool], removed: Callable[[], None], tell: Tell = tell_nobody
                 ) -> None:
        self._me = me
        self._nodes = nodes
        self._own = own
        self._others = others
        self._status = status
        self._report = report
        self._clock = clock
        self._settled = settled
        self._removed = removed
        self._tell = tell
        self._leader = ""
        self._refused_since: float | None = None
        self._told_at = -TELL_S
        self._turn = 0
        self.refused = ""
        """Why the leader does not want this node as it is, though it is a member; empty where it does."""
        self.clock_off_s = 0.0
        """This node's clock against the leader's, when that was last heard."""

    def likely(self, node: str) -> None:
        """Who probably leads, as somebody else has said."""
        self._leader = node

    async def run(self) -> None:
        """For ever; more often until this node is a member by the control state."""
        pause = SOON_S
        while True:
            try:
                await self.announce()
            except (VecdbError, OSError):
                pass
            except Exception as error:  # whatever it is, it must not be the end: who is silent is given up
                self._broken(error)
            pause = PERIOD_S if self._settled() else min(1.5 * pause, PERIOD_S)
            await asyncio.sleep(pause)

    async def announce(self) -> None:
        """Once, to who leads; raises why not."""
        report = await self._report()
        try:
            answer = await self._ask(report)
        except NodeRemoved:
            now = self._clock.monotonic()
            if self._refused_since is None:
                self._refused_since = now
            elif now - self._refused_since >= REMOVED_S:
                self._removed()
            raise
        except JoinRefused as error:
            self._is_refused(error)
            raise
        self._refused_since, self.refused = None, ""
        self.clock_off_s = report.wall_s - answer.wall_s
        now = self._clock.monotonic()
        if (abs(self.clock_off_s) > CLOCK_OFF_S or answer.twice) and now - self._told_at >= TELL_S:
            self._told_at = now
            if answer.twice:
                self._tell("error", TWICE, about=self._me,
                           why="another process speaks by this node's name, and is refused: are there two?")
            else:
                self._tell("error", "clock_off", about=self._me, off_s=round(self.clock_off_s, 1),
                           why="against the clock of the cluster's leader")

    def _broken(self, error: Exception) -> None:
        now = self._clock.monotonic()
        if now - self._told_at >= TELL_S:
            self._told_at = now
            self._tell("error", "announcing_broken", about=self._me, error=f"{type(error).__name__}: {error}")

    def _is_refused(self, error: JoinRefused) -> None:
        self.refused = error.message
        now = self._clock.monotonic()
        if now - self._told_at >= TELL_S:
            self._told_at = now
            event = TWICE if error.reason == "name_in_use" else "node_refused"
            self._tell("error", event, about=self._me, reason=error.reason, why=error.message)

    async def _ask(self, report: Report) -> Answer:
        """Who is known to lead, else the others in turn, who say who does."""
        status = self._status()
        leader = status.leader.rpartition("/")[0] if status is not None and status.leader else self._leader
        asked: set[str] = set()
        last: VecdbError | None = None
        while len(asked) < 2:
            node = leader if leader and leader not in asked else self._next(asked)
            if node is None:
                break
            asked.add(node)
            try:
                if node == self._me:
                    answer = await self._own.announced(report)
                else:
                    answer = await self._others.announce(node, report, Call(deadline=self._clock.monotonic() + ASK_S))
            except NotLeader as error:
                leader, last = (error.leader or "").partition("/")[0], error
            except (NodeRemoved, JoinRefused):
                self._leader = ""
                raise
            except VecdbError as error:
                leader, last = "", error
            else:
                self._leader = node
                return answer
        self._leader = ""
        raise last or NotLeader("nobody is known to lead the control group")

    def _next(self, asked: set[str]) -> str | None:
        """Another each time: the first may be down for long."""
        left = [node for node in self._nodes if node not in asked]
        self._turn += 1
        return left[self._turn % len(left)] if left else None
