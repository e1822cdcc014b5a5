"""Leaders of shards are spread over nodes: who leads too many hands one over, now and then.

After a rolling restart one node leads every shard, for each that stops hands over and none asks for anything back.  So
every node looks, every ten seconds, and gives one leadership away when it leads **at least two more** than the node
that leads fewest among those that could take one.  The sum of the squares of what nodes lead falls with each such
hand-over, so they end, and a difference of one, which moving a leader would only turn round, stays.

**Who leads far too many** gives several at a look, at the same time: a quarter of the difference, and no more than
:data:`MOST`, each as if those before it were done.  A quarter, because others that look meanwhile give to the same
node.  No node gives the same group twice within a minute, so that two of them can never hand it to and fro quickly.

**Nothing is taken from a node and nobody is asked for permission**: only a leader knows who has caught up, and whoever
has least is given to by many at worst, which the next looks mend (they do not come at the same time).

**A hand-over that somebody asked for** is not undone where it leaves a difference of one.  Where it leaves more,
another group makes room if one can: the leadership that was won last is the last to be given away.

**What a node cannot see** it asks for.  It knows the leaders of the groups it has replicas of; of the others it asks
the one node it is about to give to.  Counts too small would let two nodes, each of which knows too little of the
other, hand a group to and fro for ever.

**Only while all is well**: every group here has a leader, the one to be given to is a voter that was heard of without
a pause for :attr:`BalanceSettings.steady_s` and is nearly up to date, no member of the group is being changed and no
job moves, splits or merges the shard, and that node has not lost a leadership since the last look, which is what a node
does that is about to stop.  It is asked before: who has the log and has not applied it, as a node that was just
started, would let writes wait until it has.

**The control group is left where it is** and counts for nothing.  Its leader has next to nothing to do, so to count
it would keep a collection from the node that has it, and to move it would make somebody's ``create`` wait for nothing.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from vecdb.cluster.control import ControlState
from vecdb.core.calls import Call
from vecdb.core.cluster import ShardState
from vecdb.core.errors import Unavailable, VecdbError
from vecdb.ports.clock import Clock
from vecdb.ports.replicator import ReplicaStatus
from vecdb.ports.tell import Tell, tell_nobody

LEAST_DIFFERENCE: Final = 2
"""With one a hand-over would make the same difference the other way, and would be answered by another, for ever."""
PART: Final = 4
"""Of the difference, what is given at a look: one of so many."""
MOST: Final = 8
"""Hand-overs at once: each lets the writes of one shard wait for a moment."""


@dataclass(frozen=True, slots=True)
class BalanceSettings:
    """Seconds, but ``behind``: log indices that who is given to may lack.

    ``first_s``: before the first look; ``period_s``: from one to the next, give or take the share ``jitter``.
    ``heard_s``: how long ago the leader may have heard of him; ``steady_s``: for how long it must have, all the time.
    ``call_s``: of a hand-over, and of a question.
    ``rest_s``: how long a group that was given away is not given away again.
    """

    first_s: float = 20.0
    period_s: float = 10.0
    jitter: float = 0.2
    heard_s: float = 1.0
    steady_s: float = 10.0
    behind: int = 1_000
    call_s: float = 2.0
    rest_s: float = 60.0


class Own(Protocol):
    """This node's replicas: :class:`vecdb.services.replicas.OwnReplicas`."""

    def look(self, group: int) -> ReplicaStatus | None: ...

    async def transfer(self, group: int, to: str | None, call: Call) -> None: ...


class Others(Protocol):
    """Those of another node: :class:`vecdb.ports.peers.Replicas`."""

    async def status(self, groups: Sequence[int], call: Call) -> dict[int, ReplicaStatus]: ...


def choose(me: str, leaders: Mapping[int, str | None], movable: Mapping[int, Collection[str]]
           ) -> tuple[int, str] | None:
    """The group that ``me`` should hand over now, and to which node; None where it should keep what it has.

    ``leaders``: of groups, the nodes that lead them.  ``movable``: of groups that ``me`` leads, the nodes that could
    take them over, those groups first that would best be moved.  Of nodes that lead equally few it is the first by
    name.
    """
    mine = {group: nodes for group, nodes in movable.items() if leaders.get(group) == me}
    takers = {node for nodes in mine.values() for node in nodes} - {me}
    if not takers:
        return None
    leads = Counter(leaders.values())
    least = min(takers, key=lambda node: (leads[node], node))
    if leads[me] - leads[least] < LEAST_DIFFERENCE:
        return None
    return next(group for group, nodes in mine.items() if least in nodes), least


def at_once(difference: int) -> int:
    """How many are given away at a look by who leads so many more than the node that leads fewest."""
    return min(MOST, max(1, difference // PART))


def changing(state: ControlState) -> set[int]:
    """Shards that jobs move, split or merge: they stay with who leads them until that is over."""
    found = {entry.group for entry in state.shards.values() if entry.state is ShardState.LOADING}
    for job in state.jobs.values():
        if not job.state.ended:
            found.update(int(group) for group in job.data.get("moving", {}))
            if job.kind in ("split", "merge"):
                found.update(int(one) for one in (job.target, str(job.args.get("with", ""))) if one.isdecimal())
    return found


class Balancer:
    """See the module.  Belongs to one event loop.

    ``well``: whether this node is ready and does not stop.  ``tell`` hears of ``leader_balanced`` for each hand-over,
    and ``leader_not_balanced`` for one that failed, which is left to the next look.
    """

    def __init__(self, me: str, own: Own, state: Callable[[], ControlState], others: Callable[[str], Others],
                 clock: Clock, random: Random, *, well: Callable[[], bool], settings: BalanceSettings | None = None,
                 tell: Tell = tell_nobody, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._me = me
        self._own = own
        self._state = state
        self._others = others
        self._clock = clock
        self._random = random
        self._well = well
        self._settings = settings or BalanceSettings()
        self._tell = tell
        self._sleep = sleep
        self._led: dict[int, int] = {}
        """Groups that this node leads and the terms it does so in, those it has led longest first."""
        self._before: dict[int, str] = {}
        """Who led each group when that was last known."""
        self._given: dict[int, float] = {}
        """When groups were given away, those of the last while."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Hand nothing over any more; may be said again."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        wait = self._settings.first_s
        while True:
            await self._sleep(wait * self._random.uniform(1.0, 1.0 + self._settings.jitter))
            wait = self._settings.period_s
            try:
                await self.look()
            except Exception as error:  # whatever it is, it must not be the end
                self._failed(error, level="error")

    async def look(self) -> None:
        """Hand over a group, or some, if any should be."""
        state = self._state()
        here = {entry.group: self._own.look(entry.group) for entry in state.shards.values()
                if self._me in entry.nodes}
        led = {group: status.term for group, status in here.items() if status is not None and status.role == "leader"}
        self._led = {**{group: term for group, term in self._led.items() if led.get(group) == term}, **led}
        leaders = {group: None if status is None or status.leader is None else _node(status.leader)
                   for group, status in here.items()}
        lost = {before for group, before in self._before.items() if leaders.get(group, before) not in (None, before)}
        self._before = {group: known for group in here if (known := leaders[group] or self._before.get(group))}
        if not self._well() or None in leaders.values():
            return
        now = self._clock.monotonic()
        self._given = {group: at for group, at in self._given.items() if now - at < self._settings.rest_s}
        busy = changing(state)
        able = {group: {name: replica for name, replica in self._able(status).items() if name not in lost}
                for group in self._led
                if (status := here[group]) is not None and group not in self._given and group not in busy}
        chosen = await self._choose(state, leaders, able)
        await asyncio.gather(*(self._give(state, group, node, able[group][node]) for group, node in chosen))

    def _able(self, status: ReplicaStatus) -> dict[str, str]:
        """The nodes that could lead a group this node leads, and their replicas."""
        if status.state != "ok" or status.learners or status.joining:
            return {}
        limits = self._settings
        return {_node(one): one for one in status.voters
                if one != status.me and status.heard_s.get(one, limits.heard_s + 1) <= limits.heard_s
                and status.steady_s.get(one, 0.0) >= limits.steady_s
                and status.last - status.matches.get(one, -limits.behind) < limits.behind}

    async def _choose(self, state: ControlState, leaders: dict[int, str | None], able: dict[int, dict[str, str]]
                      ) -> list[tuple[int, str]]:
        """:func:`choose`, with all that is led by the nodes it chooses, and as often as :func:`at_once` says."""
        refused: set[str] = set()
        asked: set[str] = set()
        found: list[tuple[int, str]] = []
        most = 1
        while len(found) < most:
            chosen = choose(self._me, leaders, {group: nodes.keys() - refused for group, nodes in able.items()})
            if chosen is None:
                break
            group, node = chosen
            if node in asked:
                if not found:
                    leads = Counter(leaders.values())
                    most = at_once(leads[self._me] - leads[node])
                found.append(chosen)
                leaders[group] = node
            else:
                asked.add(node)
                if not await self._ask(state, node, leaders):
                    refused.add(node)
        return found

    async def _ask(self, state: ControlState, node: str, leaders: dict[int, str | None]) -> bool:
        """Take up what a node leads that is not here; False where it does not say."""
        unseen = [entry.group for entry in state.shards.values()
                  if node in entry.nodes and self._me not in entry.nodes]
        try:
            found = await self._others(node).status(unseen, self._call()) if unseen else {}
        except VecdbError as error:
            self._failed(error, to=node)
            return False
        leaders.update({group: node for group, status in found.items() if status.role == "leader"})
        return True

    async def _give(self, state: ControlState, group: int, node: str, replica: str) -> None:
        name = state.shards[group].name
        if not self._well():
            return
        try:
            await self._check_applied(group, node)
            await self._own.transfer(group, replica, self._call())
        except VecdbError as error:
            self._failed(error, to=node, group=group, collection=name)
        else:
            self._before[group] = node
            self._given[group] = self._clock.monotonic()
            self._led.pop(group, None)
            self._tell("info", "leader_balanced", group=group, collection=name, to=node, left=len(self._led))

    async def _check_applied(self, group: int, node: str) -> None:
        """Raise ``Unavailable`` unless the node says that its replica has nearly applied what this one has."""
        own, told = self._own.look(group), (await self._others(node).status([group], self._call())).get(group)
        if own is None or told is None or told.state != "ok" or not told.current \
                or own.applied - told.applied >= self._settings.behind:
            raise Unavailable(f"{node} has not applied what was committed yet", node=node)

    def _call(self) -> Call:
        return Call(deadline=self._clock.monotonic() + self._settings.call_s)

    def _failed(self, error: Exception, level: str = "info", **fields: object) -> None:
        self._tell(level, "leader_not_balanced", error=f"{type(error).__name__}: {error}", **fields)


def _node(replica: str) -> str:
    return replica.rpartition("/")[0]
