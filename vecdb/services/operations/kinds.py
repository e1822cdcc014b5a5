"""The operations that place shards: what each wants, what it asks of the state before, and what it does at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any, Final

from vecdb.cluster.control import ControlState, node_state, replication
from vecdb.cluster.planning import Room, Wish, completed, homeless, moved, rebalanced, replicated, vacated
from vecdb.core.cluster import NodeState, Plan, PlanStep, ShardState
from vecdb.core.errors import CollectionNotFound, InvalidArgument, NodeNotFound, NoNodeForReplica
from vecdb.services.operations.base import Context, Job, proposed
from vecdb.services.operations.placing import PlacingOperation, away, held_before, lacking_majority

NAMED: Final = 8
"""Shards in a note."""


class Move(PlacingOperation):
    """``target``: a shard's group; ``args``: ``from`` and ``to``, nodes."""

    kind = "move"
    past = "the shard had moved"

    def wishes(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str]) -> list[Wish]:
        group, source, to = int(target), str(args["from"]), str(args["to"])
        entry = state.shards.get(group)
        if entry is None or (to in entry.desired and source not in entry.desired):
            return []  # dropped, or placed
        return [moved(state, group, source, to, away)]

    def check(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str]) -> tuple[str, ...]:
        if not target.isdecimal() or len(target) >= 20:
            raise InvalidArgument("shard", "is the number of a shard", got=target[:40], limit="vecdb shard list")
        moved(state, int(target), str(args.get("from", "")), str(args.get("to", "")), away)
        return ()


class Replication(PlacingOperation):
    """``target``: a collection; ``args``: ``factor``; ``missing``, True: only replicas that are missing of those that
    it is to have anyhow are made, as far as there are nodes, which is what a cluster begins by itself.
    """

    kind = "replication"
    past = "every shard had its replicas"

    def wishes(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str]) -> list[Wish]:
        if target not in state.collections:
            return []
        wanted = completed if args.get("missing") else replicated
        return wanted(state, target, int(args["factor"]), away)

    def check(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str]) -> tuple[str, ...]:
        factor = args.get("factor")
        if not isinstance(factor, int) or isinstance(factor, bool):
            raise InvalidArgument("factor", "is a number of replicas", got=str(factor)[:40])
        placed = {one.group: one.desired for one in replicated(state, target, factor, away)}
        able = [node for node in state.nodes.values() if node.role.holds and node.state is NodeState.ACTIVE]
        if len(able) < factor:
            raise NoNodeForReplica(f"{factor} replicas of a shard want {factor} nodes that hold replicas and are "
                                   f"active; there are {len(able)}", got=len(able), limit=factor)
        short = [one for one in state.all_of(target) if one.state is ShardState.ACTIVE
                 and len(placed.get(one.group, one.desired)) < factor]
        if short and state.get(target).replication_factor == factor:
            return (f"{len(short)} shard{'s lack replicas that are' if len(short) > 1 else ' lacks a replica that is'} "
                    "made once a node for it is heard",)
        if factor < 3:
            return (f"with {factor} replica{'s' if factor > 1 else ''} the loss of any node of a shard stops its "
                    "writes" if factor == 2 else "with 1 replica the loss of a node loses what only it had",)
        return ()

    def plan(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str] = ()) -> Plan:
        plan = super().plan(state, target, args, away)
        factor = args.get("factor")
        if not plan.empty or state.get(target).replication_factor == factor:
            return plan
        note = PlanStep("note", target, f"the shards of {target!r} have {factor} replica{'s' if factor != 1 else ''} "
                        "each, and so have those that are made from here on")
        return replace(plan, steps=(note,))

    async def finish(self, job: Job, context: Context) -> str:
        """From here on it is what shards are made with, by a split as well."""
        state, factor = context.state(), int(job.args["factor"])
        if job.target not in state.collections or job.args.get("missing"):
            return ""
        short = [one for one in state.all_of(job.target) if one.state is not ShardState.RETIRED
                 and len(one.desired) < factor]
        if short:
            return f"{len(short)} shards have no node for another replica that is heard: add one, or wait for it"
        await proposed(context, replication(job.target, factor))
        return ""

    def is_reached(self, job: Job, state: ControlState) -> bool:
        entry = state.collections.get(job.target)
        return entry is None or entry.replication_factor == job.args.get("factor")


class Drain(PlacingOperation):
    """``target``: a node.  It is given nothing any more, all it has goes elsewhere, and then it is ``drained``."""

    kind = "drain"
    past = "the node was drained"

    def wishes(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str]) -> list[Wish]:
        return vacated(state, target, away)

    def check(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str]) -> tuple[str, ...]:
        _check_node(state, target)
        left = homeless(state, target, away)
        if left:
            raise NoNodeForReplica(f"{len(left)} shards of {target} have no other node to go to (shard {left[0].group} "
                                   f"of {left[0].name!r} is the first): add a node, or lower their replication factor",
                                   node=target, shards=[one.group for one in left[:16]])
        jobs = _drained_by(state, target)
        return (f"job {jobs[0]} drains it already",) if jobs else ()

    def plan(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str] = ()) -> Plan:
        plan = super().plan(state, target, args, away)
        if _drained_by(state, target):
            return replace(plan, steps=())
        if not plan.empty or state.nodes[target].state in (NodeState.DRAINED, NodeState.LEFT):
            return plan
        step = PlanStep("drain", target, f"{target} holds no replica, and is given none any more")
        return replace(plan, steps=(step,))

    async def begin(self, job: Job, context: Context) -> None:
        node = context.state().nodes.get(job.target)
        if node is not None and node.state is NodeState.ACTIVE:
            await proposed(context, node_state(job.target, NodeState.DRAINING))

    async def finish(self, job: Job, context: Context) -> str:
        left = homeless(context.state(), job.target, away(context))
        if left:
            return f"{len(left)} shards have no other node to go to that is heard: add one, or lower their " \
                "replication factor"
        await proposed(context, node_state(job.target, NodeState.DRAINED))
        return ""

    def is_reached(self, job: Job, state: ControlState) -> bool:
        node = state.nodes.get(job.target)
        return node is None or node.state in (NodeState.DRAINED, NodeState.LEFT)

    def too_late(self, job: Job, state: ControlState) -> str:
        return "the node is drained" if job.phase and self.is_reached(job, state) else ""

    async def revoke(self, job: Job, context: Context) -> None:
        node = context.state().nodes.get(job.target)
        others = [one for one in _drained_by(context.state(), job.target) if one != job.id]
        if node is not None and node.state is NodeState.DRAINING and not others:
            await proposed(context, node_state(job.target, NodeState.ACTIVE))


class Repair(PlacingOperation):
    """``target``: a node that is lost.  What it held is built anew elsewhere, from the other replicas.

    It stays a node: should it come back it finds that its replicas are wanted no more, and deletes them.
    """

    kind = "repair"

    def wishes(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str]) -> list[Wish]:
        if not args.get("force") and target in state.nodes and target not in away:
            return []  # it is back
        return vacated(state, target, away)

    def check(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str]) -> tuple[str, ...]:
        _check_node(state, target)
        if target not in away and not args.get("force"):
            raise InvalidArgument("node", f"{target} is heard, or was some seconds ago: drain it, or if it is lost "
                                  "try again when it has been silent for longer, or say --force", got=target)
        left = homeless(state, target, away)
        notes = [f"{len(left)} shards have no other node to go to, and keep what they have"] if left else []
        job = next((job for job in state.jobs.values() if (job.kind, job.target) == (self.kind, target)
                    and not job.state.ended), None)
        if job is not None:
            notes.append(f"job {job.id} repairs it already" + (f", and waits: {job.error}" if job.error else ""))
        lost = _lost_with(state, target, away)
        return (*notes, lost) if lost else tuple(notes)

    def plan(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str] = ()) -> Plan:
        plan = super().plan(state, target, args, away)
        if plan.empty and _lost_with(state, target, away):
            raise NoNodeForReplica("; ".join(plan.notes), node=target)
        return plan


class Rebalance(PlacingOperation):
    """All nodes by their capacity; ``target`` is empty.  ``args``: ``collection``, whose shards alone are moved;
    ``to``, the node that alone is given some; ``weights``, what a replica of a shard weighs by what was measured when
    the job was begun (:mod:`vecdb.cluster.loads`), so that it aims at one thing from beginning to end; ``at_once``, of
    shards under way.
    """

    kind = "rebalance"

    def check(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str]) -> tuple[str, ...]:
        name, to = str(args.get("collection", "")), str(args.get("to", ""))
        if name and name not in state.collections:
            raise CollectionNotFound(name)
        if to:
            _check_node(state, to)
            if to in away or not state.nodes[to].role.holds or state.nodes[to].state is not NodeState.ACTIVE:
                raise NoNodeForReplica(f"{to} is given no replicas: it is away, drained, or holds none by its role",
                                       node=to)
            if to in Room(state, away).low:
                raise NoNodeForReplica(f"the disk of {to} is nearly full: it is given nothing to make loads even; "
                                       "vecdb shard move gives it a shard all the same", node=to)
        _weights(args)
        at_once = args.get("at_once", 1)
        if type(at_once) is not int or at_once < 1:
            raise InvalidArgument("at_once", "is a number of shards", got=str(at_once)[:40])
        return ()

    def wishes(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str]) -> list[Wish]:
        return rebalanced(state, away, only=str(args.get("collection", "")), onto=str(args.get("to", "")),
                          weights=_weights(args))


def _weights(args: Mapping[str, Any]) -> dict[int, float]:
    given = args.get("weights", {})
    try:
        found = {int(group): float(weight) for group, weight in given.items()}
    except (AttributeError, TypeError, ValueError):
        found = {0: 0.0}
    if not all(0.0 < weight < inf for weight in found.values()):
        raise InvalidArgument("weights", "are numbers above 0 by shard", got=str(given)[:80])
    return found


def _lost_with(state: ControlState, node: str, away: Sequence[str]) -> str:
    """Of which shards of a node a majority is away: nobody can move them."""
    before = held_before(state)
    lost = [f"shard {entry.group} of {entry.name!r}{why}" for entry in state.shards.values()
            if entry.state is ShardState.ACTIVE and node in (nodes := before.get(entry.group, entry.desired))
            and (why := lacking_majority(nodes, away))]
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    return f"a repair cannot move {', '.join(lost[:NAMED])}{more}" if lost else ""


def _drained_by(state: ControlState, node: str) -> list[int]:
    return [job.id for job in state.jobs.values() if job.kind == "drain" and job.target == node and not job.state.ended]


def _check_node(state: ControlState, node: str) -> None:
    if node not in state.nodes:
        raise NodeNotFound(f"there is no node {node[:80]!r}", node=node[:80], known=sorted(state.nodes)[:64])
