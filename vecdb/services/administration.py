"""What operators ask of a node: answered from the control state, or by whoever leads the control group.

Only the leader hears of all nodes, and only through him things change; so all but the simplest questions go to him, as
writes of records go to the leader of their shard (:mod:`vecdb.services.leaders`).  A node that is asked by another
answers for itself or says who leads.

Where nobody who leads answers in time, a node tells of the cluster what it has itself, and that nobody is known to
lead: who looks for what is lost asks when most is.

A job is refused as its plan would be, by the leader, before it is written down.  What was promised is kept by the
governor (:mod:`vecdb.services.governor`), who plans anew at every step.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

from vecdb.cluster.control import (
    ControlState,
    JobEntry,
    NodeEntry,
    job_cancel,
    job_put,
    node_of,
    node_remove,
    node_state,
    setting_put,
    token_put,
    token_revoke,
)
from vecdb.cluster.joining import make_token
from vecdb.core.calls import Call, WriteToken
from vecdb.core.cluster import JobInfo, JobState, NodeInfo, NodeState, Plan, Role
from vecdb.core.errors import (
    DeadlineExceeded,
    InvalidArgument,
    JobNotFound,
    NodeNotFound,
    NodeRemoved,
    NotLeader,
    ShardBusy,
    TokenNotFound,
    Unavailable,
    Unsupported,
    VecdbError,
)
from vecdb.core.operations import SETTINGS, ClusterInfo, JoinToken, NewJoinToken
from vecdb.ports.clock import Clock
from vecdb.ports.operations import Operations
from vecdb.ports.replicator import ReplicaStatus, Replicator
from vecdb.services.governor import Governor
from vecdb.services.leaders import Leaders, Task
from vecdb.services.operations.base import Operation, commands_of, too_late
from vecdb.services.operations.placing import away, held_before
from vecdb.services.passing import copy_of
from vecdb.services.replicas import CONTROL

T = TypeVar("T")

SHARE: Final = 0.75
"""Of the time that a call has, how much the leader is given to say how the cluster is: the rest is for the reply."""
RESHARDING: Final = ("split", "merge")
RESTORING: Final = ("restore", "attach")
TOKEN_TTL_S: Final = 3_600.0
TOKEN_MOST_S: Final = 366 * 86_400.0


class Controlled(Protocol):
    """The control group: :class:`vecdb.services.control.Control`."""

    @property
    def state(self) -> ControlState: ...

    @property
    def replicator(self) -> Replicator | None: ...

    def status(self) -> ReplicaStatus | None: ...


class OwnOperations:
    """Met where this node leads the control group; ``NotLeader`` where it does not."""

    def __init__(self, me: str, name: str, control: Controlled, governor: Governor,
                 operations: Mapping[str, Operation], leads: Callable[[], Mapping[str, int]]) -> None:
        """``name``: of the cluster; ``leads``: how many shards each node leads, as far as this one knows."""
        self._me = me
        self._name = name
        self._control = control
        self._governor = governor
        self._operations = operations
        self._leads = leads
        self._beginning = {kinds: asyncio.Lock() for kinds in (RESHARDING, RESTORING)}

    def _leading(self) -> ControlState:
        replicator = self._control.replicator
        if replicator is None:
            raise Unavailable("the control group is not here yet", retry_after_s=0.1)
        status = replicator.status()
        if status.role != "leader":
            raise NotLeader(f"{status.leader} leads the control group" if status.leader else
                            "the control group has no leader at the moment", leader=status.leader)
        return self._control.state

    async def _propose(self, command: bytes) -> object:
        outcome = await self._governor.context.propose(command)
        if isinstance(outcome, VecdbError):
            raise outcome
        return outcome

    async def cluster(self, call: Call) -> ClusterInfo:
        self._leading()
        return self._glance()

    def known(self) -> ClusterInfo | None:
        """As this node has it, whoever leads: nobody is said to, and no node to be heard; None if it has nothing."""
        if not self._control.state.log_index:
            return None
        told = self._glance()
        return replace(told, leader=None, nodes=tuple(replace(one, heard_s=-1.0, leaders=-1, stats={},
                                                              silent_s=-1.0)
                                                      for one in told.nodes))

    def _glance(self) -> ClusterInfo:
        state, status = self._control.state, self._control.status()
        voters = set() if status is None else set(map(node_of, status.voters))
        loads, leads, context = state.loads(), self._leads(), self._governor.context
        nodes = [NodeInfo(one.name, one.address, one.client_address, one.http_address, one.role, one.zone,
                          one.capacity, one.state, one.version, context.word_s(one.name), one.name in voters,
                          loads.get(one.name, 0), leads.get(one.name, -1), dict(context.stats(one.name)),
                          self._silent_s(one))
                 for one in state.nodes.values() if one.state is not NodeState.LEFT]
        settings = {name: state.settings.get(name, default) for name, (default, *_) in SETTINGS.items()}
        return ClusterInfo(self._name, self._me, self._me, state.epoch, tuple(sorted(nodes, key=lambda one: one.name)),
                           len(state.collections), sum(len(one.shards) for one in state.collections.values()),
                           sum(not one.state.ended for one in state.jobs.values()), settings,
                           tuple(sorted(voters - state.nodes.keys())))

    def _silent_s(self, node: NodeEntry) -> float:
        """Of one that was never heard: since it joined, if that was after this node began to lead."""
        context = self._governor.context
        silent_s = context.heard_s(node.name)
        if context.word_s(node.name) >= 0:
            return silent_s
        return min(silent_s, max(0.0, context.clock.wall() - node.joined_s))

    async def cluster_jobs(self, call: Call, *, id: int = 0, ended: bool = False) -> list[JobInfo]:
        state = self._leading()
        if id:
            return [_told(_job(state, id))]
        return [_told(one) for one in sorted(state.jobs.values(), key=lambda one: one.id)
                if ended or not one.state.ended]

    async def plan_job(self, kind: str, target: str, args: Mapping[str, Any], call: Call) -> Plan:
        plan = self._planned(kind, target, args)
        _check_free(self._control.state, kind, target, args)
        look = getattr(self._operations[kind], "look", None)
        if look is None:
            return plan
        return replace(plan, notes=(*plan.notes, *await look(self._control.state, target, args)))

    def _planned(self, kind: str, target: str, args: Mapping[str, Any]) -> Plan:
        state, operation = self._leading(), self._operation(kind)
        return operation.plan(state, target, args, away(self._governor.context))

    def _operation(self, kind: str) -> Operation:
        operation = self._operations.get(kind)
        if operation is None:
            raise InvalidArgument("kind", f"there is no job {kind[:40]!r}", got=kind[:40],
                                  limit=sorted(self._operations))
        return operation

    async def begin_job(self, kind: str, target: str, args: Mapping[str, Any], call: Call) -> int:
        """Jobs of which one may take what another wants are planned and written down one after another."""
        together = next((lock for kinds, lock in self._beginning.items() if kind in kinds), None)
        if together is None:
            return await self._begin_job(kind, target, args, call)
        async with together:
            return await self._begin_job(kind, target, args, call)

    async def _begin_job(self, kind: str, target: str, args: Mapping[str, Any], call: Call) -> int:
        key = b"" if call.token is None else call.token.key
        if not key or key not in self._leading().keys:  # asked again: what it has begun is no reason to refuse it
            await self.plan_job(kind, target, args, call)
        self._governor.context.check_read(commands_of(self._operation(kind)))
        clock = self._governor.context.clock
        made = await self._propose(job_put(kind, target, args, at_s=clock.wall(), key=key))
        if not isinstance(made, JobEntry):
            raise VecdbError("the control group answered with what is no job", got=type(made).__name__)
        return made.id

    async def cancel_job(self, id: int, call: Call) -> JobInfo:
        """Refused where it would come too late, by what is agreed on now and not by what the job has noted."""
        _job(self._leading(), id)
        async with self._governor.context.deciding(id):
            if not await self._governor.is_up_to_date():
                raise Unavailable("who leads the control group has just begun to", retry_after_s=0.1)
            job = _job(self._leading(), id)
            if not job.state.ended and job.state is not JobState.CANCELLING:
                why = too_late(self._operations.get(job.kind), job, self._control.state)
                if why:
                    raise InvalidArgument("job", f"job {id}, {job.kind} {job.target}, is past taking back: {why}",
                                          got=job.phase)
                await self._propose(job_cancel(id, at_s=self._governor.context.clock.wall()))
        return _told(_job(self._control.state, id))

    async def create_join_token(self, ttl_s: float, roles: Sequence[str], call: Call) -> NewJoinToken:
        self._leading()
        ttl_s = ttl_s or TOKEN_TTL_S
        if not 0 < ttl_s <= TOKEN_MOST_S:
            raise InvalidArgument("ttl", "is how long the token is good for", got=ttl_s, limit=TOKEN_MOST_S)
        unknown = [one for one in roles if one not in list(Role)]
        if unknown:
            raise InvalidArgument("roles", f"{unknown[0][:40]!r} is no role", got=unknown[0][:40], limit=list(Role))
        now = self._governor.context.clock.wall()
        entry, secret = make_token(os.urandom, now, ttl_s, map(Role, roles))
        await self._propose(token_put(entry))
        return NewJoinToken(JoinToken(entry.id, entry.created_s, entry.expires_s, entry.roles), secret)

    async def join_tokens(self, call: Call) -> list[JoinToken]:
        return [JoinToken(one.id, one.created_s, one.expires_s, tuple(one.roles))
                for one in sorted(self._leading().tokens.values(), key=lambda one: one.created_s)]

    async def revoke_join_token(self, id: str, call: Call) -> None:
        if id not in self._leading().tokens:
            raise TokenNotFound(f"there is no token {id[:40]!r}", token=id[:40])
        await self._propose(token_revoke(id))

    async def activate_node(self, node: str, call: Call) -> None:
        self._node(node)
        await self._propose(node_state(node, NodeState.ACTIVE))

    async def remove_node(self, node: str, call: Call) -> None:
        state = self._node(node)
        held = state.loads().get(node, 0)
        if held:
            raise InvalidArgument("node", f"{node} should hold {held} replicas yet: drain it first, or repair it if it "
                                  "is lost", got=node)
        moving = [group for group, nodes in held_before(state).items() if node in nodes and group in state.shards]
        if moving:
            raise InvalidArgument("node", f"{node} has {len(moving)} replicas that are on their way to other nodes, "
                                  f"which may have nothing of them yet (shard {moving[0]} is the first): wait for the "
                                  "job, or cancel it", got=node)
        status = self._control.status()
        if status is not None and node in map(node_of, status.voters) and len(status.voters) <= 1:
            raise InvalidArgument("node", f"{node} is the only coordinator", got=node)
        await self._propose(node_remove(node))

    def _node(self, node: str) -> ControlState:
        state = self._leading()
        if node not in state.nodes or state.nodes[node].state is NodeState.LEFT:
            raise NodeNotFound(f"there is no node {node[:80]!r}", node=node[:80], known=sorted(state.nodes)[:64])
        return state

    async def set_cluster_setting(self, name: str, value: Any, call: Call) -> None:
        self._leading()
        if name not in SETTINGS:
            raise InvalidArgument("name", f"there is no setting {name[:80]!r}", got=name[:80], limit=sorted(SETTINGS))
        _, least, most, _ = SETTINGS[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))
                                  or not least <= value <= most):
            raise InvalidArgument("value", f"of {name} must be a number from {least:g} to {most:g}",
                                  got=str(value)[:80], limit=[least, most])
        await self._propose(setting_put(name, value))


class Administration:
    """Any node's: asks whoever leads the control group.  Met: :class:`vecdb.ports.operations.Operations`."""

    def __init__(self, me: str, nodes: Callable[[], Sequence[str]], own: Operations, other: Callable[[str], Operations],
                 leaders: Leaders, known: Callable[[], ClusterInfo | None], clock: Clock) -> None:
        """``nodes``: those that vote in the control group, or all; ``other``: of another node, for itself alone;
        ``known``: what this node knows by itself.
        """
        self._me = me
        self._nodes = nodes
        self._own = own
        self._other = other
        self._leaders = leaders
        self._known = known
        self._clock = clock

    async def _ask(self, call: Call, ask: Callable[[Operations, Call], Awaitable[T]], *, once: bool = False,
                   reads: bool = False) -> T:
        return await self._leaders.ask(Task(CONTROL, self._nodes(), call, once=once, reads=reads), lambda node: ask(
            self._own if node == self._me else self._other(node), copy_of(call)))

    async def cluster(self, call: Call) -> ClusterInfo:
        """By whoever leads; if he does not answer in most of the call's time, as this node has it, without a leader."""
        now = self._clock.monotonic()
        mine = replace(call, deadline=now + SHARE * (self._leaders.deadline(call) - now))
        try:
            return await self._ask(mine, lambda one, its: one.cluster(its), reads=True)
        except (Unavailable, DeadlineExceeded) as error:
            known = None if isinstance(error, NodeRemoved) else self._known()
            if known is None:
                raise
            call.check()
            return known

    async def cluster_jobs(self, call: Call, *, id: int = 0, ended: bool = False) -> list[JobInfo]:
        return await self._ask(call, lambda one, mine: one.cluster_jobs(mine, id=id, ended=ended), reads=True)

    async def plan_job(self, kind: str, target: str, args: Mapping[str, Any], call: Call) -> Plan:
        return await self._ask(call, lambda one, mine: one.plan_job(kind, target, args, mine), reads=True)

    async def begin_job(self, kind: str, target: str, args: Mapping[str, Any], call: Call) -> int:
        if call.token is None:  # what is tried again here must be done once
            call.token = WriteToken(os.urandom(16))
        return await self._ask(call, lambda one, mine: one.begin_job(kind, target, args, mine))

    async def cancel_job(self, id: int, call: Call) -> JobInfo:
        return await self._ask(call, lambda one, mine: one.cancel_job(id, mine))

    async def create_join_token(self, ttl_s: float, roles: Sequence[str], call: Call) -> NewJoinToken:
        return await self._ask(call, lambda one, mine: one.create_join_token(ttl_s, roles, mine), once=True)

    async def join_tokens(self, call: Call) -> list[JoinToken]:
        return await self._ask(call, lambda one, mine: one.join_tokens(mine), reads=True)

    async def revoke_join_token(self, id: str, call: Call) -> None:
        await self._ask(call, lambda one, mine: one.revoke_join_token(id, mine))

    async def activate_node(self, node: str, call: Call) -> None:
        await self._ask(call, lambda one, mine: one.activate_node(node, mine))

    async def remove_node(self, node: str, call: Call) -> None:
        await self._ask(call, lambda one, mine: one.remove_node(node, mine))

    async def set_cluster_setting(self, name: str, value: Any, call: Call) -> None:
        await self._ask(call, lambda one, mine: one.set_cluster_setting(name, value, mine))


class NoCluster:
    """Of a node that is alone: every method raises ``Unsupported``."""

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def refuse(*args: Any, **named: Any) -> Any:
            raise Unsupported("this node is alone: it is of no cluster (cluster.name is empty)", method=name)

        return refuse


LONE: Final[Any] = NoCluster()


def _job(state: ControlState, id: int) -> JobEntry:
    found = state.jobs.get(id)
    if found is None:
        raise JobNotFound(f"there is no job {id}", job=id)
    return found


def _check_free(state: ControlState, kind: str, target: str, args: Mapping[str, Any]) -> None:
    """A shard is split or merged by one job at a time: the one that came second could only fail."""
    if kind not in RESHARDING:
        return
    asked = {target, str(args.get("with", target))}
    for job in state.jobs.values():
        if not job.state.ended and job.kind in RESHARDING:
            both = asked & {job.target, str(job.args.get("with", job.target))}
            if both:
                group = min(both)
                raise ShardBusy(f"a change of shard {group} is under way: job {job.id}, {job.kind} {job.target}",
                                job=job.id, shard=int(group))


def _told(job: JobEntry) -> JobInfo:
    """With when it will be done, if it goes on as it went so far; not where it waits for something."""
    eta_s = -1.0
    passed = job.updated_s - job.created_s
    if job.state is JobState.RUNNING and not job.error and 0 < job.done < job.total and passed > 0:
        eta_s = passed * (job.total - job.done) / job.done
    return JobInfo(job.id, job.kind, job.target, job.args, job.state, job.phase, job.done, job.total, job.unit,
                   job.created_s, job.updated_s, eta_s, job.error)
