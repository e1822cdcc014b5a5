"""Who leads the control group runs the jobs: a step at a time each, and some at once.

Twice a second the governor looks at the jobs that the control state has.  One that waits is begun when nothing that
it would get in the way of is running; one that runs is given its next step when that is due; one that is being
cancelled is given its ``cancel``.  What comes of a step is written down in the control group's log where it says
something new, progress at most every :data:`PROGRESS_S` seconds.

Nothing of this is remembered by the node: another that is elected reads the same jobs and goes on, once it has applied
what those before it have committed; it would take a step back otherwise, or one that was taken.  A step that fails
because somebody was away is tried again, after a pause that grows, and what a job waits for stands there for whoever
asks; any other error ends the job, and stands there as well.

By itself it begins four kinds of jobs (settings of the cluster, ``vecdb cluster set``): ``repair`` of a node that was
not heard for ``repair_after_s``, where another can take anything that it holds; ``replication`` of a collection whose
shards have fewer replicas than they are to have, as those that were made when there were fewer nodes, once a node can
take one (``repair_after_s`` 0: neither); ``scrub`` of a collection that was not
compared for ``scrub_every_s``; and ``rebalance`` (``rebalance_auto``), after nodes came or went, or where some shards
hold or do more than others (:mod:`vecdb.cluster.loads`).  That one is on unless it is turned off: a node that joins is
meant to take part, and what keeps it from going to and fro are the two thresholds, the time that must pass, and that
nothing else is placed and nobody away meanwhile.  Nobody counts as away who has nothing to come back to: who is
drained, or lost for so long that what it held was built anew.

What it has begun by itself and somebody has cancelled, or what has failed, it lets rest for :data:`REST_S`.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

from vecdb.cluster.control import ControlState, JobEntry, NodeEntry, job_put, job_update, version_of
from vecdb.cluster.loads import ShardLoad, uneven, weights
from vecdb.cluster.planning import completed, lacking, rebalanced, vacated
from vecdb.core.calls import Call
from vecdb.core.cluster import JobState, NodeState
from vecdb.core.errors import NotLeader, Unavailable, Unsupported, VecdbError
from vecdb.ports.clock import Clock
from vecdb.ports.peers import Replicas
from vecdb.ports.replicator import ReplicaStatus, Replicator
from vecdb.ports.tell import Tell, tell_nobody
from vecdb.services.operations.base import PASSING, Job, Operation, Step, commands_of, is_cancelled, late
from vecdb.services.operations.placing import away as away_now
from vecdb.services.operations.placing import held_before

LOOK_S: Final = 0.5
PROGRESS_S: Final = 2.0
AT_ONCE: Final = 8
"""Jobs that run at the same time."""
RETRY_S: Final = (0.5, 15.0)
"""Pauses after a failure that may pass: the first, and the longest."""
ASK_S: Final = 2.0
PROPOSE_S: Final = 10.0
STANDS: Final = 3
"""Failures in a row after which what a job waits for is noted for whoever asks."""

REPAIR_AFTER_S: Final = 600.0
SCRUB_EVERY_S: Final = 86_400.0
UNEVEN: Final = 0.25
"""How far from its share, as a part of it, a node must be before shards are moved for it; they stop moving where the
planner finds all even, which is at a twentieth (or one replica): what lies between keeps them from going to and fro."""
UNEVEN_S: Final = 120.0
"""For how long, without a pause; new leaders begin to count anew, and work is measured over a minute."""
MOVES: Final = 2
"""Shards that are moved at a time."""
FILLING: Final = 4
"""Collections whose missing replicas are made at a time."""
REST_S: Final = 600.0
"""After a job that was begun by itself has failed, or was cancelled, until the next one for the same."""
_STILL: Final = ("scrub", "snapshot_verify", "snapshot_delete")
"""Jobs that place nothing."""
BEGIN_S: Final = 5.0
"""How often it is looked whether a job should begin by itself."""


class Controlled(Protocol):
    """The control group: :class:`vecdb.services.control.Control`."""

    @property
    def state(self) -> ControlState: ...

    @property
    def replicator(self) -> Replicator | None: ...

    def check_read(self, version: int) -> None: ...


class Heard(Protocol):
    """What nodes tell of themselves: :class:`vecdb.services.announcing.Announcements`."""

    def heard_s(self, node: str) -> float: ...

    def word_s(self, node: str) -> float: ...

    def stats(self, node: str) -> Mapping[str, float]: ...

    def shard_loads(self) -> Mapping[int, ShardLoad]: ...


class Reached(Protocol):
    """Replicas of any node, this one's own as well."""

    def __call__(self, node: str) -> Replicas: ...


async def leader_among(group: int, nodes: Sequence[str], replicas: Reached, clock: Clock) -> ReplicaStatus | None:
    """What the leader of a group says of it, as far as it is on one of these nodes and answers."""

    async def ask(node: str) -> ReplicaStatus | None:
        with suppress(VecdbError):
            return (await replicas(node).status([group], Call(deadline=clock.monotonic() + ASK_S))).get(group)
        return None

    found = [one for one in await asyncio.gather(*map(ask, nodes)) if one is not None and one.role == "leader"]
    return max(found, key=lambda one: one.term) if found else None


class GovernorContext:
    """What steps use: :class:`vecdb.services.operations.base.Context`."""

    def __init__(self, me: str, control: Controlled, replicas: Reached, heard: Heard, clock: Clock, tell: Tell) -> None:
        self._me = me
        self._control = control
        self._replicas = replicas
        self._heard = heard
        self._clock = clock
        self._tell = tell
        self._deciding: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    @property
    def me(self) -> str:
        return self._me

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def tell(self) -> Tell:
        return self._tell

    def state(self) -> ControlState:
        return self._control.state

    async def propose(self, command: bytes) -> object:
        replicator = self._control.replicator
        if replicator is None:
            raise Unavailable("the control group is not here")
        self._control.check_read(version_of(command))
        committed = await replicator.propose(command, asyncio.get_running_loop().time() + PROPOSE_S)
        return committed.result

    def check_read(self, version: int) -> None:
        """Raise ``Unsupported``, which names them, where nodes do not read control commands of this version."""
        self._control.check_read(version)

    def replicas(self, node: str) -> Replicas:
        return self._replicas(node)

    async def leader(self, group: int) -> ReplicaStatus | None:
        entry = self.state().shards.get(group)
        if entry is None:
            return None
        nodes = dict.fromkeys((*entry.desired, *held_before(self.state()).get(group, ())))
        return await leader_among(group, list(nodes), self._replicas, self._clock)

    def heard_s(self, node: str) -> float:
        return 0.0 if node == self._me else self._heard.heard_s(node)

    def word_s(self, node: str) -> float:
        """For who asks how the cluster is; :class:`vecdb.services.announcing.Announcements`."""
        return 0.0 if node == self._me else self._heard.word_s(node)

    def stats(self, node: str) -> Mapping[str, float]:
        return self._heard.stats(node)

    @asynccontextmanager
    async def deciding(self, job: int) -> AsyncIterator[None]:
        """One at a time of a job: who cancels it, and who does what cannot be taken back."""
        lock = self._deciding.setdefault(job, asyncio.Lock())
        async with lock:
            yield


@dataclass(slots=True)
class _Run:
    """Of a job, while this node leads."""

    task: "asyncio.Task[None] | None" = None
    due: float = 0.0
    failures: int = 0
    written: float = -PROGRESS_S


class Governor:
    """See the module.  Belongs to one event loop."""

    def __init__(self, me: str, control: Controlled, replicas: Reached, heard: Heard, clock: Clock,
                 operations: Mapping[str, Operation], *, tell: Tell = tell_nobody) -> None:
        self._control = control
        self._clock = clock
        self.operations = operations
        self._tell = tell
        self._heard = heard
        self.context = GovernorContext(me, control, replicas, heard, clock, tell)
        self._runs: dict[int, _Run] = {}
        self._task: asyncio.Task[None] | None = None
        self._at_once = asyncio.Event()
        """A step has ended whose job goes on without a pause."""
        self._begun = 0.0
        self._uneven: float | None = None
        """Since when loads are, without a pause."""
        self._seen: dict[str, float] = {}
        """When collections were seen first by this governor: one that was never compared is not so at once."""
        self._told = ""
        self._term = 0
        """In which this node has led, and has applied all from before."""

    def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End; steps under way are given up, which they stand.  May be said again."""
        tasks = [one for one in (self._task, *(run.task for run in self._runs.values())) if one is not None]
        self._task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._runs.clear()

    @property
    def governs(self) -> bool:
        """Whether this node leads the control group, as far as it knows."""
        replicator = self._control.replicator
        return replicator is not None and replicator.status().role == "leader"

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
                self._told = ""
            except Exception as error:  # whatever it is, it must not be the end
                text = f"{type(error).__name__}: {error}"
                if text != self._told:
                    self._told = text
                    self._tell("error", "governor_stuck", error=text)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._at_once.wait()
            self._at_once.clear()

    async def look(self) -> None:
        """Begin the steps that are due."""
        if not self.governs:
            for run in self._runs.values():
                if run.task is not None:
                    run.task.cancel()
            self._runs.clear()
            return
        if not await self.is_up_to_date():
            return
        state, now = self._control.state, self._clock.monotonic()
        open_jobs = {job.id: job for job in state.jobs.values() if not JobState(job.state).ended}
        for gone in [one for one, run in self._runs.items() if one not in open_jobs and run.task is None]:
            del self._runs[gone]
        for job in sorted(open_jobs.values(), key=lambda one: one.id):
            run = self._runs.setdefault(job.id, _Run())
            if run.task is not None or now < run.due or not self._may_run(job, open_jobs):
                continue
            run.task = asyncio.get_running_loop().create_task(self._advance(job, run))
        if now - self._begun >= BEGIN_S:
            self._begun = now
            await self._begin(state)

    async def is_up_to_date(self) -> bool:
        """Whether this node, which leads, has applied what was committed before it did."""
        replicator = self._control.replicator
        if replicator is None:
            return False
        term = replicator.status().term
        if term != self._term:
            try:
                await replicator.read_index(asyncio.get_running_loop().time() + PROPOSE_S)
            except PASSING:
                return False
            self._term, self._uneven = term, None
        return True

    def _may_run(self, job: Job, others: Mapping[int, Job]) -> bool:
        """A job that waits is begun after those before it that want the same, and not too many at once."""
        if job.state != JobState.WAITING:
            return True
        running = [one for one in others.values() if one.state != JobState.WAITING]
        return len(running) < AT_ONCE and not any(
            one.id < job.id and (one.kind, one.target) == (job.kind, job.target) for one in others.values())

    async def _advance(self, job: JobEntry, run: _Run) -> None:
        try:
            operation = self.operations.get(job.kind)
            if operation is None:
                step = Step(job.phase, job.done, job.total, state=JobState.FAILED, data=job.data,
                            error=f"this version knows of no job {job.kind!r}")
            elif job.state == JobState.CANCELLING:
                step = await operation.cancel(job, self.context)
            else:
                step = await operation.step(job, self.context)
            run.failures = 0
            await self._write(job, step, run)
            run.due = self._clock.monotonic() + step.again_s
            if not step.again_s:
                self._at_once.set()
        except NotLeader:
            return
        except PASSING as error:
            await self._pause(job, run, error)
        except VecdbError as error:
            await self._end(job, run, f"{type(error).__name__}: {error.message}")
        except Exception as error:  # a mistake of ours: the job has failed, the governor has not
            self._tell("error", "job_broken", job=job.id, kind=job.kind, error=f"{type(error).__name__}: {error}")
            await self._end(job, run, f"{type(error).__name__}: {error}")
        finally:
            run.task = None

    async def _pause(self, job: JobEntry, run: _Run, error: VecdbError) -> None:
        first, longest = RETRY_S
        run.failures += 1
        run.due = self._clock.monotonic() + min(first * 2.0 ** (run.failures - 1), longest)
        why = f"{type(error).__name__}: {error.message}"
        self._tell("info", "job_waits", job=job.id, kind=job.kind, error=why)
        if run.failures >= STANDS:
            with suppress(VecdbError):
                await self._write(job, Step(job.phase, job.done, job.total, job.unit, job.state, why, job.data), run)

    async def _end(self, job: JobEntry, run: _Run, error: str) -> None:
        with suppress(VecdbError):
            await self._write(job, Step(job.phase, job.done, job.total, state=JobState.FAILED, error=error,
                                        data=job.data), run)

    async def _write(self, job: JobEntry, step: Step, run: _Run) -> None:
        """Note what came of a step, where it is more than a little further."""
        same = (job.state, job.phase, dict(job.data)) == (step.state, step.phase, dict(step.data))
        further = (job.done, job.total, job.error) != (step.done, step.total, step.error)
        now = self._clock.monotonic()
        if same and not (further and now - run.written >= PROGRESS_S):
            return
        if step.state.ended:
            async with self.context.deciding(job.id):
                if step.state is JobState.DONE and is_cancelled(job, self._control.state):
                    step = replace(step, error=step.error or late(self.operations.get(job.kind)))
                outcome = await self._noted(job, step)
        else:
            outcome = await self._noted(job, step)
        if isinstance(outcome, VecdbError):
            raise outcome
        run.written = now
        if step.state.ended:
            self._tell("error" if step.state is JobState.FAILED else "info", "job_ended", job=job.id, kind=job.kind,
                       target=job.target, state=step.state, error=step.error)

    async def _noted(self, job: JobEntry, step: Step) -> object:
        return await self.context.propose(job_update(
            job.id, state=step.state, phase=step.phase, done=step.done, total=step.total, unit=step.unit or job.unit,
            error=step.error, data=step.data, at_s=self._clock.wall()))

    # --- by itself --------------------------------------------------------------------------------

    async def _begin(self, state: ControlState) -> None:
        """Begin the jobs that nobody has to ask for."""
        after_s = _number(state.settings, "repair_after_s", REPAIR_AFTER_S)
        waiting = {(job.kind, job.target) for job in state.jobs.values() if not JobState(job.state).ended}
        away = away_now(self.context)
        for name in away if after_s > 0 else ():
            if state.nodes[name].state is not NodeState.LEFT and self.context.heard_s(name) > after_s \
                    and not {("repair", name), ("drain", name)} & waiting and vacated(state, name, away):
                await self._put("repair", name, {"why": f"not heard for {after_s:g} s"})
        if after_s > 0:
            await self._fill(state, away, waiting)
        loads = state.loads()
        missed = any(loads.get(name) or self._may_come_back(state.nodes[name], after_s) for name in away)
        await self._balance(state, away, missed=missed)
        every_s, now = _number(state.settings, "scrub_every_s", SCRUB_EVERY_S), self._clock.wall()
        last = {job.target: job.created_s for job in state.jobs.values() if job.kind == "scrub"}
        self._seen = {name: self._seen.get(name, now) for name in state.collections}
        for name, seen_s in self._seen.items():
            if every_s > 0 and ("scrub", name) not in waiting and now - last.get(name, seen_s) > every_s:
                await self._put("scrub", name, {})
                return  # one at a look

    async def _fill(self, state: ControlState, away: Sequence[str], waiting: Collection[tuple[str, str]]) -> None:
        """Have replicas made that shards lack, of some collections at a time."""
        room = FILLING - sum(kind == "replication" for kind, _ in waiting)
        for name in lacking(state, away) if room > 0 else ():
            factor = state.get(name).replication_factor
            wishes = [] if ("replication", name) in waiting else completed(state, name, factor, away)
            if wishes and await self._put("replication", name, {"factor": factor, "missing": True, "why": (
                    f"{len(wishes)} shard{'s have' if len(wishes) > 1 else ' has'} fewer than {factor} replicas")}):
                room -= 1
            if room <= 0:
                return

    def _may_come_back(self, node: NodeEntry, after_s: float) -> bool:
        """Whether one that is silent would be given replicas if it came back; after so long it begins as a new one."""
        lost = 0 < after_s < self.context.heard_s(node.name)
        return node.state is NodeState.ACTIVE and node.role.holds and not lost

    async def _balance(self, state: ControlState, away: Sequence[str], *, missed: bool) -> None:
        """See the module; nothing is moved while anything else is, or while somebody is away, who may come back."""
        busy = any(not JobState(job.state).ended and job.kind not in _STILL for job in state.jobs.values())
        now = self._clock.monotonic()
        if busy or missed or not _number(state.settings, "rebalance_auto", 1.0):
            self._uneven = None
            return
        heavy = weights(state, self._heard.shard_loads())
        off = uneven(state, away, heavy)
        if off < UNEVEN or not rebalanced(state, away, weights=heavy):
            self._uneven = None
        elif self._uneven is None:
            self._uneven = now
        elif now - self._uneven >= UNEVEN_S:
            self._uneven = None
            await self._put("rebalance", "", {"why": f"a node is {100 * off:.0f} % off its share", "at_once": MOVES,
                                              "weights": {str(group): one for group, one in heavy.items()}})

    async def _put(self, kind: str, target: str, args: Mapping[str, Any]) -> bool:
        """Whether the job was begun."""
        if kind not in self.operations or self._rests(kind, target):
            return False
        try:
            self.context.check_read(commands_of(self.operations[kind]))
            outcome = await self.context.propose(job_put(kind, target, args, at_s=self._clock.wall()))
        except (Unsupported, Unavailable):
            return False  # nodes are being upgraded, or have just begun to announce themselves: there is time
        if isinstance(outcome, VecdbError):
            self._tell("warning", "job_not_begun", kind=kind, target=target, error=outcome.message)
            return False
        self._tell("info", "job_begun", kind=kind, target=target)
        return True

    def _rests(self, kind: str, target: str) -> bool:
        """Whether the last that was begun by itself has failed, or was cancelled, a short time ago."""
        last = max((job for job in self._control.state.jobs.values()
                    if (job.kind, job.target) == (kind, target) and "why" in job.args), key=lambda one: one.id,
                   default=None)
        return last is not None and last.state in (JobState.FAILED, JobState.CANCELLED) \
            and abs(self._clock.wall() - last.updated_s) < REST_S


def _number(settings: Mapping[str, Any], name: str, default: float) -> float:
    value = settings.get(name, default)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else default
