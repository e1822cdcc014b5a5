"""What an operation on the cluster is: something that takes a while, is planned before, and survives whoever runs it.

An operation stands in the control state as a **job** (kind, target, arguments, phase, data), and the node that leads
the control group runs it, step by step (:mod:`vecdb.services.governor`).  A step reads what is, does one thing towards
what should be, and says what to write down.  It may be the last one before its process is killed, and it may be run
again by another: so it does nothing twice that it must not, and finds out instead of remembering.

What is written down goes through the control group's log.  Who leads no more cannot write there, and what a step asks
of other nodes is either idempotent or names the job's attempt, so two leaders that overlap do no harm.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from vecdb.cluster.control import ControlState, node_of
from vecdb.core.calls import Call
from vecdb.core.cluster import JobState, Plan
from vecdb.core.errors import (
    Cancelled,
    DeadlineExceeded,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    VecdbError,
)
from vecdb.ports.clock import Clock
from vecdb.ports.peers import Replicas
from vecdb.ports.replicator import ReplicaStatus
from vecdb.ports.tell import Tell

COMMANDS: Final = 2
"""The version of the control commands that jobs are written down with, and that kinds use which say nothing else."""

PASSING: Final = (Unavailable, DeadlineExceeded, OutcomeUnknown, Overloaded, Cancelled)
"""A step that raises one of these is tried again."""
GOES_ON: Final = (*PASSING, NotLeader)
"""And with this one another leader does it; any other error is the job's end."""


class Job(Protocol):
    """As the control state has it.  ``data``: the operation's own notes, JSON."""

    @property
    def id(self) -> int: ...

    @property
    def kind(self) -> str: ...

    @property
    def target(self) -> str: ...

    @property
    def args(self) -> Mapping[str, Any]: ...

    @property
    def state(self) -> str: ...

    @property
    def phase(self) -> str: ...

    @property
    def done(self) -> int: ...

    @property
    def total(self) -> int: ...

    @property
    def data(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Step:
    """What came of a step, to be written down where it differs from what stands there.

    ``state``: running, done, failed or cancelled.  ``again_s``: when the next step should be, if there is one
    (0: now; else when it is looked for steps that are due, which is every half second).
    ``done`` of ``total`` in ``unit``.  ``data`` replaces what the job noted.
    """

    phase: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    state: JobState = JobState.RUNNING
    error: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    again_s: float = 0.5


class Context(Protocol):
    """What a step may use; of the node that leads the control group."""

    @property
    def me(self) -> str: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def tell(self) -> Tell: ...

    def state(self) -> ControlState:
        """What is agreed on, as applied here."""
        ...

    async def propose(self, command: bytes) -> object:
        """Have a control command committed and applied here; its outcome, or the ``VecdbError`` that it is."""
        ...

    def replicas(self, node: str) -> Replicas:
        """A node's replicas, this one's own as well."""
        ...

    async def leader(self, group: int) -> ReplicaStatus | None:
        """What the replica that leads a shard's group says of it; None where nobody does, or answers."""
        ...

    def heard_s(self, node: str) -> float:
        """Seconds since this leader heard of the node (since it leads, if it has not)."""
        ...

    def stats(self, node: str) -> Mapping[str, float]:
        """What the node last told of itself; empty where it has not."""
        ...

    def deciding(self, job: int) -> AbstractAsyncContextManager[None]:
        """Inside of it no cancel of the job is accepted: for the command that cannot be taken back, which is proposed
        there unless the job :func:`is_cancelled` by then.
        """
        ...


class Operation(Protocol):
    """A kind of job.

    One whose plan depends on what is outside of the cluster has a method ``look(state, target, args)`` besides, a
    coroutine that raises as the first step would, or returns notes for the plan.

    One that proposes control commands of a later version than jobs themselves (:data:`COMMANDS`) says so by an
    attribute ``command_version``: it is not begun before every node reads them (:func:`commands_of`).

    **Cancelling.**  One that comes to where nothing can be taken back any more has a method ``too_late(job, state)``:
    why a cancel is refused, empty where it is not.  What was accepted before that, and came too late nevertheless, ends
    as ``done`` and says so: ``past``, an attribute, names what was quicker (:func:`late`).
    """

    @property
    def kind(self) -> str: ...

    def plan(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str] = ()) -> Plan:
        """What it would do now, for people to agree to; pure.  ``away``: nodes that are not heard.

        Raises a ``VecdbError`` where it makes no sense or cannot be done.
        """
        ...

    async def step(self, job: Job, context: Context) -> Step:
        """Do the next thing.  Raised ``Unavailable`` and the like are tried again, other errors end the job."""
        ...

    async def cancel(self, job: Job, context: Context) -> Step:
        """Undo what must be, a step at a time, until the state says ``cancelled``, or ``done`` if it is too late."""
        ...


def too_late(operation: Operation | None, job: Job, state: ControlState) -> str:
    """Why a job cannot be cancelled any more; empty where it can."""
    ask = getattr(operation, "too_late", None)
    return "" if ask is None else str(ask(job, state))


def late(operation: Operation | None) -> str:
    """What a job says that was done when it should have been cancelled."""
    return f"the cancel came after {getattr(operation, 'past', 'it was done')}"


def is_cancelled(job: Job, state: ControlState) -> bool:
    """Whether the job is to end, by what the control group has agreed on since its step began."""
    found = state.jobs.get(job.id)
    return found is not None and found.state is JobState.CANCELLING


def copy_limit(job: Job, state: ControlState) -> int:
    """Bytes a second that a job may copy: as it says, else as the cluster does; 0: as fast as it goes."""
    common = state.settings.get("copy_bytes_s")
    return int(job.args.get("bytes_per_s", 0)) or (int(common) if isinstance(common, (int, float)) else 0)


def commands_of(operation: Operation) -> int:
    """The version of control commands that every node must read before such a job is begun."""
    return max(COMMANDS, int(getattr(operation, "command_version", COMMANDS)))


async def proposed(context: Context, command: bytes) -> None:
    """Have a control command committed; raises what it was refused with."""
    outcome = await context.propose(command)
    if isinstance(outcome, VecdbError):
        raise outcome


async def numbered(context: Context, shards: Sequence[tuple[str, ...]], call: Call, silent: Collection[str] = ()
                   ) -> list[tuple[str, ...]]:
    """Replicas of nodes, by the numbers that these have now.

    One that is ``silent`` and has no number, for it is no member of the control group, is left out: shards are given
    replicas that they lack later.  Raises ``Unavailable`` where another has none yet.
    """
    control = (await context.replicas(context.me).status([0], call)).get(0)
    if control is None:
        raise Unavailable("the control group is not here")
    known = {node_of(one): one for one in (*control.voters, *control.learners, *control.joining)}
    missing = {node for nodes in shards for node in nodes if node not in known}
    for node in sorted(missing.difference(silent)):
        raise Unavailable(f"{node} is no member of the control group yet", node=node)
    return [tuple(sorted(known[node] for node in nodes if node not in missing)) for nodes in shards]
