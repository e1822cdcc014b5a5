"""The members of a shard's group follow the nodes that the control state wants it on.

Whoever leads a group looks at it twice a second and makes at most one change at a time, as Raft wants it:

1. A wanted node without a replica is asked for the one that it has begun for the group (the node's reconciler makes it
   as soon as the control state names the node), which joins as a learner and is promoted once it has caught up.
2. Only when **every** wanted node votes is one removed that is not wanted: first one that is not heard, the leader
   last, who hands over before.  So a move adds before it takes away, and there are never fewer copies than there were.
3. One that is joining and is wanted no more (the move was cancelled) goes at once.

What is to be done is read off the group's own configuration and the control state each time; nothing is remembered, and
a leader that is killed between two steps leaves a group that the next one goes on with.

A wanted node that is away stops what would come after it, which is what should be: a replica is given up only for one
that is there.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from vecdb.core.calls import Call
from vecdb.core.errors import NotLeader, VecdbError
from vecdb.ports.clock import Clock
from vecdb.ports.replicator import ReplicaStatus, Replicator
from vecdb.ports.tell import Tell, tell_nobody

LOOK_S: Final = 0.5
ASK_S: Final = 2.0
CHANGE_S: Final = 10.0
TELL_S: Final = 30.0
"""Until the same failure of a group is told again."""


class Step(NamedTuple):
    """One change of a group's members: replicas, ``node/number``."""

    add: str | None = None
    remove: str | None = None


class Own(Protocol):
    """This node's replicas: :class:`vecdb.services.replicas.OwnReplicas`."""

    def look(self, group: int) -> ReplicaStatus | None: ...

    def replicator(self, group: int) -> Replicator: ...


class Others(Protocol):
    """Those of another node: :class:`vecdb.ports.peers.Replicas`."""

    async def status(self, groups: Sequence[int], call: Call) -> dict[int, ReplicaStatus]: ...


def lacking(desired: Sequence[str], status: ReplicaStatus) -> list[str]:
    """Wanted nodes without a replica in the configuration."""
    here = {_node(one) for one in _everybody(status)}
    return [node for node in desired if node not in here]


def next_step(desired: Sequence[str], status: ReplicaStatus, offered: Mapping[str, str]) -> Step | None:
    """What the leader with this ``status`` should do next; None: nothing, or wait.

    ``offered``: for wanted nodes without a replica in the configuration, the replica each has begun.
    """
    wanted = set(desired)
    if not wanted:
        return None
    for one in (*status.joining, *status.learners):
        if _node(one) not in wanted:
            return Step(remove=one)
    if status.joining:
        return None  # being promoted
    for node in lacking(desired, status):
        if node in offered:
            return Step(add=offered[node])
    if wanted - {_node(one) for one in status.voters}:
        return None  # somebody is away: nobody is given up for him
    extra = [one for one in status.voters if _node(one) not in wanted]
    if not extra:
        return None
    return Step(remove=max(extra, key=lambda one: (one != status.me, status.heard_s.get(one, 0.0), one)))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A shard: its group, the nodes it should be on, and the collection, for whoever reads of it."""

    group: int
    desired: tuple[str, ...]
    name: str


class MemberKeeper:
    """See the module.  Belongs to one event loop.

    ``wanted``: the shards of the moment.  ``tell`` hears of ``members_changed`` and, at most twice a minute for a
    group, of ``members_stuck``.
    """

    def __init__(self, me: str, own: Own, wanted: Callable[[], Iterable[Wanted]], others: Callable[[str], Others],
                 clock: Clock, *, tell: Tell = tell_nobody) -> None:
        self._me = me
        self._own = own
        self._wanted = wanted
        self._others = others
        self._clock = clock
        self._tell = tell
        self._told: dict[int, float] = {}
        self._busy: dict[int, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; a change under way may still be committed.  May be said again."""
        tasks = [one for one in (self._task, *self._busy.values()) if one is not None]
        self._task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception as error:  # whatever it is, it must not be the end
                self._stuck(Wanted(0, (), ""), error)
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Begin what is to be done for the groups that this node leads; each in a task of its own."""
        for shard in self._wanted():
            if shard.group in self._busy:
                continue
            status = self._own.look(shard.group)
            if status is None or status.role != "leader" or not self._differs(shard, status):
                continue
            task = asyncio.get_running_loop().create_task(self._keep(shard, status))
            self._busy[shard.group] = task
            task.add_done_callback(lambda _, group=shard.group: self._busy.pop(group, None))  # type: ignore[misc]

    @staticmethod
    def _differs(shard: Wanted, status: ReplicaStatus) -> bool:
        return sorted(shard.desired) != sorted(map(_node, _everybody(status)))

    async def _keep(self, shard: Wanted, status: ReplicaStatus) -> None:
        try:
            offered = await self._offered(shard, lacking(shard.desired, status))
            step = next_step(shard.desired, status, offered)
            if step is None:
                return
            deadline = asyncio.get_running_loop().time() + CHANGE_S
            await self._own.replicator(shard.group).change_members(step.add, step.remove, deadline)
            self._tell("info", "members_changed", group=shard.group, collection=shard.name, add=step.add,
                       remove=step.remove)
        except NotLeader:
            return  # handed over, as it should: the next leader goes on
        except Exception as error:  # whatever it is, it must not be the end
            self._stuck(shard, error)

    async def _offered(self, shard: Wanted, nodes: Iterable[str]) -> dict[str, str]:
        """What some of these nodes have begun for the group: those that answer first, which is enough for one change.

        One that hangs, or fails, keeps nobody from asking the others.
        """
        found: dict[str, str] = {}

        async def ask(node: str) -> None:
            call = Call(deadline=self._clock.monotonic() + ASK_S)
            with suppress(VecdbError, TimeoutError):
                async with asyncio.timeout(ASK_S):
                    status = (await self._others(node).status([shard.group], call)).get(shard.group)
                if status is not None and status.state == "joining":
                    found[node] = status.me

        waiting = {asyncio.create_task(ask(node)) for node in nodes if node != self._me}
        try:
            while waiting and not found:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in waiting:
                task.cancel()
        return found

    def _stuck(self, shard: Wanted, error: Exception) -> None:
        now = self._clock.monotonic()
        if now - self._told.get(shard.group, -TELL_S) >= TELL_S:
            self._told[shard.group] = now
            self._tell("warning", "members_stuck", group=shard.group, collection=shard.name,
                       error=f"{type(error).__name__}: {error}")


def _everybody(status: ReplicaStatus) -> tuple[str, ...]:
    return (*status.voters, *status.learners, *status.joining)


def _node(replica: str) -> str:
    return replica.rpartition("/")[0]
