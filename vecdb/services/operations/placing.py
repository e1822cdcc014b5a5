"""Operations that say on which nodes shards should be: move, replication, drain, repair, rebalance.

All are the same loop.  A planner (:mod:`vecdb.cluster.planning`), which is a pure function of the control state, names
the shards that should be elsewhere; some at a time are placed there, by a command that changes what is *wanted*; who
leads such a shard makes it so (:mod:`vecdb.services.keeping`); and when the group's voters are where they should be it
is done, and the next is placed.  The planner is asked anew at every step, so what changes meanwhile (a collection that
was made or dropped, a node that came or went) is met as it is, and who takes over the job needs no memory of it.

What is noted is what is under way: the nodes that a shard is to be on and was on before, which is what a cancelled job
goes back to, and where the shard is looked for until it has moved (:func:`held_before`).
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vecdb.cluster.control import ControlState, ShardEntry, place
from vecdb.cluster.planning import Away, Wish, holding
from vecdb.core.cluster import JobState, Plan, PlanStep, disk_state
from vecdb.core.errors import VecdbError
from vecdb.ports.replicator import ReplicaStatus
from vecdb.services.operations.base import Context, Job, Step, late, proposed

AWAY_S: Final = 10.0
"""Not heard for so long a node gets nothing."""
PATIENCE_S: Final = 60.0
"""For so long a node that is not heard, and that shards could go to, is waited for before a job fails for the lack of
nodes: one that is started again, or has much to do, is silent for some seconds."""
RECEIVE_AT_ONCE: Final = 2
"""Replicas that one node is sent at a time: snapshots share its disk and its network."""
AT_ONCE: Final = 32
"""Shards of one job that are under way."""


class PlacingOperation(ABC):
    """The loop of the module; kinds say what they want.  An :class:`~vecdb.services.operations.base.Operation`."""

    kind: str = ""
    past: str = "all was placed"

    @abstractmethod
    def wishes(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str]) -> list[Wish]:
        """Shards that should be elsewhere than the state says, in the order in which they are to go."""

    def check(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str]) -> tuple[str, ...]:
        """What whoever agrees to the plan should know; raises a ``VecdbError`` where it makes no sense."""
        return ()

    def plan(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str] = ()) -> Plan:
        """One step for each shard that is placed anew."""
        notes = self.check(state, target, args, away)
        wishes = self.wishes(state, target, args, away)
        return Plan(self.kind, tuple(_step_of(state, wish) for wish in wishes), (*notes, *_low(state, wishes, away)))

    async def begin(self, job: Job, context: Context) -> None:  # noqa: B027  # most have nothing to do
        """What comes before the first placement; done again after a change of leader."""

    async def finish(self, job: Job, context: Context) -> str:
        """What comes when nothing is left to place; the error if there is one."""
        return ""

    def is_reached(self, job: Job, state: ControlState) -> bool:
        """Whether :meth:`finish` has done what it does, as far as the state says."""
        return True

    async def revoke(self, job: Job, context: Context) -> None:  # noqa: B027
        """What a cancelled job takes back beside the placements that are under way."""

    async def step(self, job: Job, context: Context) -> Step:
        if not job.phase:
            await self.begin(job, context)
        moving, ended, unled = await self._settled(job, context)
        done = job.done + ended
        state = context.state()
        wishes = [one for one in self.wishes(state, job.target, job.args, away(context))
                  if str(one.group) not in moving]
        if not wishes and not moving:
            error = await self.finish(job, context)
            awaited = [one.name for one in holding(context.state())
                       if AWAY_S < context.heard_s(one.name) <= PATIENCE_S and one.name != job.target]
            if error and awaited:
                return Step("moving", done, done, "shards", error=f"{error} ({', '.join(awaited[:8])})",
                            data={"moving": {}}, again_s=2.0)
            return Step("done", done, done, "shards", JobState.FAILED if error else JobState.DONE, error)
        total = done + len(moving) + len(wishes)
        for wish in self._next(state, wishes, moving, int(job.args.get("at_once", AT_ONCE))):
            before = list(state.shards[wish.group].desired)
            moving[str(wish.group)] = {"desired": list(wish.desired), "before": before}
        # Noted before it is done: a placement that nobody knows of could not be taken back.
        placed = job.data.get("moving", {})
        for group, one in moving.items():
            if group in placed:
                await _place(context, int(group), one["desired"])
        fresh = any(group not in placed for group in moving)
        waits = "" if not unled else f"nobody leads {', '.join(unled[:8])}{' and others' if len(unled) > 8 else ''}, " \
            "which moves once somebody does (vecdb doctor says more)"
        return Step("moving", done, total, "shards", error=waits, data={"moving": moving},
                    again_s=0.05 if fresh else 0.5)

    async def cancel(self, job: Job, context: Context) -> Step:
        """Go back to where the shards under way were; those that have arrived stay, and if that is all it is done."""
        moving, ended, _ = await self._settled(job, context)
        state, done, back = context.state(), job.done + ended, 0
        for group, one in moving.items():
            entry = state.shards.get(int(group))
            if entry is not None and sorted(entry.desired) == sorted(one["desired"]):
                await _place(context, int(group), one["before"])
                back += 1
        if job.phase and not moving and self.is_reached(job, state) and not self._is_wanting(job, context):
            return Step("done", done, done, "shards", JobState.DONE, late(self))
        await self.revoke(job, context)
        told = [f"{done} of {job.total} shards were placed by then, and stay so"] if done else []
        if back:
            told.append(f"{back} that were under way go back to where they were")
        return Step("cancelled", done, job.total, "shards", JobState.CANCELLED, "; ".join(told))

    def _is_wanting(self, job: Job, context: Context) -> bool:
        """Whether there is something left to place, or what was asked for cannot be any more."""
        try:
            return bool(self.wishes(context.state(), job.target, job.args, away(context)))
        except VecdbError:
            return True

    async def _settled(self, job: Job, context: Context) -> tuple[dict[str, Any], int, list[str]]:
        """What is still under way, how much of it has ended, and of what is under way the shards that nobody leads."""
        state, moving, ended = context.state(), dict[str, Any](), 0
        unled: list[str] = []
        for group, one in job.data.get("moving", {}).items():
            entry = state.shards.get(int(group))
            if entry is None:
                continue  # dropped
            wanted = sorted(entry.desired)
            if wanted not in (sorted(one["desired"]), sorted(one["before"])):
                continue  # somebody else has placed it meanwhile: it is his
            status = await context.leader(int(group))
            if wanted == sorted(one["desired"]) and is_there(one["desired"], status):
                ended += 1
                continue
            moving[group] = one
            if status is None:
                unled.append(f"shard {group} of {entry.name!r}{lacking_majority(one['before'], away(context))}")
        return moving, ended, unled

    @staticmethod
    def _next(state: ControlState, wishes: Sequence[Wish], moving: Mapping[str, Any], at_once: int) -> list[Wish]:
        """As many as there is room for, on every node that receives."""
        most = max(1, min(at_once, AT_ONCE))
        receiving: Counter[str] = Counter()
        for one in moving.values():
            receiving.update(set(one["desired"]) - set(one["before"]))
        chosen: list[Wish] = []
        for wish in wishes:
            new = set(wish.desired) - set(state.shards[wish.group].desired)
            if len(moving) + len(chosen) < most and all(receiving[node] < RECEIVE_AT_ONCE for node in new):
                receiving.update(new)
                chosen.append(wish)
        return chosen


def away(context: Context, silent_s: float = AWAY_S) -> Away:
    """Nodes that are given nothing now, for they are not heard, and those that are given nothing while others can take
    it, for their disks are nearly full.
    """
    nodes = context.state().nodes
    return Away((name for name in nodes if context.heard_s(name) > silent_s),
                (name for name in nodes if disk_state(context.stats(name))))


def _low(state: ControlState, wishes: Sequence[Wish], away: Sequence[str]) -> tuple[str, ...]:
    """For the plan: nodes that are given replicas though their disks are nearly full."""
    low = away.low if isinstance(away, Away) else frozenset[str]()
    new = {node for wish in wishes for node in wish.desired if node not in state.shards[wish.group].desired}
    return tuple(f"the disk of {node} is nearly full: what it is given may fill it, and then all its shards halt"
                 for node in sorted(new & low))


def held_before(state: ControlState) -> dict[int, tuple[str, ...]]:
    """By group: the nodes that shards under way were on.  Until the group has moved it is they who hold it."""
    return {int(group): tuple(one["before"]) for job in state.jobs.values() if not job.state.ended
            for group, one in job.data.get("moving", {}).items()}


def lacking_majority(nodes: Sequence[str], away: Sequence[str]) -> str:
    """In brackets, whom a shard of these nodes needs back to have a leader; empty where enough of them are heard."""
    silent = [node for node in nodes if node in away]
    if 2 * (len(nodes) - len(silent)) > len(nodes):
        return ""
    loss = "one" if len(nodes) < 3 else str(len(nodes) // 2 + len(nodes) % 2)
    count = f"{len(nodes)} replica{'s' if len(nodes) > 1 else ''}"
    return f" (it needs {' or '.join(silent)} back: with {count} the loss of {loss} stops changes of members as well)"


def holds_alone(state: ControlState, entry: ShardEntry, node: str) -> bool:
    """Whether nobody but ``node`` may have what the shard holds, as far as the state says."""
    before = held_before(state).get(entry.group, entry.desired)
    return node in before and 1 in (len(before), len(entry.desired))


async def _place(context: Context, group: int, desired: Sequence[str]) -> None:
    entry = context.state().shards.get(group)
    if entry is None or sorted(entry.desired) == sorted(desired):
        return
    await proposed(context, place(group, tuple(desired)))


def is_there(desired: Sequence[str], status: ReplicaStatus | None) -> bool:
    """Whether a group votes on the wanted nodes and nowhere else, as its leader says."""
    return status is not None and not status.joining and not status.learners \
        and sorted(one.rpartition("/")[0] for one in status.voters) == sorted(desired)


def _step_of(state: ControlState, wish: Wish) -> PlanStep:
    """For people: which replica goes where."""
    entry = state.shards[wish.group]
    lost = sorted(set(entry.desired) - set(wish.desired))
    won = sorted(set(wish.desired) - set(entry.desired))
    what = f"shard {wish.group} of {entry.name!r}"
    if lost and won:
        return PlanStep("move", str(wish.group), f"{what}: from {', '.join(lost)} to {', '.join(won)}")
    if won:
        return PlanStep("add", str(wish.group), f"{what}: another replica on {', '.join(won)}")
    return PlanStep("remove", str(wish.group), f"{what}: no replica on {', '.join(lost)} any more")
