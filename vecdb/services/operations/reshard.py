"""Splitting a shard and merging two: the same operation, in which some shards' records go to others, which then take
their place.

**Phases.**  *load*: shards are made for the hashes of the sources, in state ``loading``, and wait for leaders.  *copy*:
a copier for each source fills them (:mod:`vecdb.services.copying`) until what is missing is little.  *seal*: the
sources take no more writes; what is left is copied; marks of all are compared, records and digests; and one command of
the control group lets calls go to the new shards.  *retire*: the sources stay for a while, for who has not heard of it,
and are forgotten.

**What stands where.**  Nothing is remembered that the control state does not say: the shards that the job made are
named by it there, loading or active.  A step that finds them loading goes on with them, whoever made them.

**The order that keeps every write.**  A seal is lifted only when it is certain that no switch will follow it: the
targets are forgotten first, in the control group's log, and a switch to shards that are not there is refused, whoever
proposed it and however late it comes.  So ``abandon`` is forget, then UNSEAL; and UNSEAL carries the fence of the
attempt, the number of its first shard, so that no late SEAL of it takes effect after that.  Reads that must be fresh
are refused by a sealed shard's leader: between its SEAL and its last reader the switch may come.

**Time.**  From the first SEAL to the switch writes to the sources wait.  If that takes :data:`SEAL_S` the attempt is
abandoned and another one is made, with shards of its own; after :data:`MOST_ATTEMPTS` the job has failed.  A digest
that differs fails it at once.

**Cancelled** the job ends, and nothing of it is left, until the switch is proposed; a cancel that comes later is
refused.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final, NoReturn, Protocol

from vecdb.cluster.control import CollectionEntry, ControlState, ShardEntry, node_of
from vecdb.cluster.planning import Room
from vecdb.cluster.routing import check_distinct, hash_of, hash_of_id, value_key
from vecdb.core.calls import Call
from vecdb.core.cluster import MAX_COLLECTION_SHARDS, JobState, Plan, PlanStep, ShardState
from vecdb.core.errors import (
    Cancelled,
    CollectionNotFound,
    DataCorrupted,
    DeadlineExceeded,
    InvalidArgument,
    LimitExceeded,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ShardNotFound,
    Unavailable,
    VecdbError,
)
from vecdb.core.ids import check_id
from vecdb.ports.copies import NEVER, Copies, CopyOrder, CopyStatus, CopyTarget
from vecdb.services.operations.base import Context, Job, Step, copy_limit, is_cancelled, late, numbered, proposed
from vecdb.services.operations.placing import away
from vecdb.shard import codec
from vecdb.shard.digest import MODULUS
from vecdb.shard.marks import Mark, MarkResult
from vecdb.shard.seal import Seal, Unseal

SEAL_S: Final = 10.0
"""From the first seal to the switch at most."""
LAG: Final = 200
"""Entries of the log that may be missing when the seal comes."""
GRACE_S: Final = 30.0
"""For who has an old map; the sources refuse him, and what refuses must be there."""
MOST_ATTEMPTS: Final = 8
ASK_S: Final = 5.0
LOOK_S: Final = 0.02
UNHEARD_S: Final = 5.0
_PASSING: Final = (Unavailable, OutcomeUnknown, DeadlineExceeded, Overloaded, Cancelled)

NewShard = tuple[int, int, tuple[str, ...]]


class Commands(Protocol):
    """The control group's commands for it: :mod:`vecdb.cluster.control`."""

    def add(self, job: int, collection: str, shards: Sequence[NewShard]) -> bytes:
        """Make shards that are filled; their hashes are those of active shards of the collection."""
        ...

    def switch(self, job: int, collection: str, retire: Sequence[int], activate: Sequence[int]) -> bytes:
        """Let calls go to others: refused unless these are loading, of this job, and have the very same hashes."""
        ...

    def forget(self, groups: Sequence[int]) -> bytes:
        """Take away shards that calls do not go to."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """``ranges``: of the new shards, in order."""

    collection: CollectionEntry
    sources: tuple[ShardEntry, ...]
    ranges: tuple[tuple[int, int], ...]


class Reshard:
    """An :class:`~vecdb.services.operations.base.Operation`.  ``copies``: the copiers of a node.

    ``kind`` split: ``target`` is a shard's group; ``args``: ``into``, how many of equal ranges (2), or ``at``, an id or
    a value of the shard key with which the second begins, or ``apart``, one that gets a shard of its own.  ``kind``
    merge: ``target`` is a shard's group, ``with`` that of a neighbour.  Both: ``bytes_per_s`` of each copier until the
    sources are sealed; none: the cluster's ``copy_bytes_s``, which counts for those under way as well.
    """

    def __init__(self, kind: str, copies: Callable[[str], Copies], commands: Commands, *, grace_s: float = GRACE_S,
                 seal_s: float = SEAL_S, lag: int = LAG) -> None:
        self.kind = kind
        self.copies = copies
        self.commands = commands
        self.grace_s, self.seal_s, self.lag = grace_s, seal_s, lag

    # --- what is wanted ---------------------------------------------------------------------------

    def plan(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str] = ()) -> Plan:
        wanted = self.wanted(state, target, args)
        replicas = choose(state, wanted, away)
        names = " and ".join(str(one.group) for one in wanted.sources)
        steps = [PlanStep("make", wanted.collection.name, f"make a shard for hashes {lo:016x} to {hi - 1:016x} on "
                          f"{', '.join(nodes)}") for (lo, hi), nodes in zip(wanted.ranges, replicas, strict=True)]
        steps += [PlanStep("copy", str(one.group), f"copy the records of shard {one.group} while it is used")
                  for one in wanted.sources]
        steps += [PlanStep("switch", wanted.collection.name, f"let calls go to the new shards instead of {names}"),
                  PlanStep("forget", names, f"delete {names} after {self.grace_s:g} s")]
        return Plan(self.kind, tuple(steps), ("writes to these records wait for the switch, some tenths of a second",))

    def wanted(self, state: ControlState, target: str, args: Mapping[str, Any]) -> Wanted:
        """Raises ``InvalidArgument``, ``LimitExceeded`` or ``ShardNotFound`` where it makes no sense."""
        first = _active(state, target)
        entry = state.get(first.name)
        if self.kind == "merge":
            second = _active(state, args.get("with"))
            lower, upper = sorted((first, second), key=lambda one: one.lo)
            if second.name != first.name or lower.hi != upper.lo:
                why = f"{second.group} is no neighbour of {first.group}" if second.name == first.name else (
                    f"{first.group} is a shard of {first.name!r}, and {second.group} one of {second.name!r}")
                raise InvalidArgument("with", why, got=second.group,
                                      limit=f"a shard of {first.name!r} whose hashes follow or go before")
            return Wanted(entry, (lower, upper), ((lower.lo, upper.hi),))
        edges = [first.lo, *_cuts(first, entry.shard_key, args), first.hi]
        if len(entry.shards) + len(edges) - 2 > MAX_COLLECTION_SHARDS:
            raise LimitExceeded("into", f"{first.name!r} would have more than {MAX_COLLECTION_SHARDS} shards",
                                got=len(edges) - 1, limit=MAX_COLLECTION_SHARDS)
        return Wanted(entry, (first,), tuple(pairwise(edges)))

    # --- steps ------------------------------------------------------------------------------------

    async def step(self, job: Job, context: Context) -> Step:
        attempt = Attempt(self, job, context)
        try:
            return await attempt.next()
        except NotLeader:  # of the control group: another goes on
            raise
        except (*_PASSING, TimeoutError) as error:
            if job.phase != "seal":
                raise
            return attempt.give_up(f"{type(error).__name__}: {error}", final=False)
        except Exception as error:  # whatever it is, nothing may stay sealed
            if job.phase in ("", "abandon", "retire"):
                raise
            return attempt.give_up(f"{type(error).__name__}: {error}", final=True)

    past = "the new shards took over"

    def too_late(self, job: Job, state: ControlState) -> str:
        return "calls go to what it made" if is_switched(job, state) else ""

    async def cancel(self, job: Job, context: Context) -> Step:
        attempt = Attempt(self, job, context)
        if attempt.switched:  # it is finished
            return replace(await attempt.next(), error=late(self))
        return await attempt.abandon(JobState.CANCELLED, "")


class Attempt:
    """What a step has in hand."""

    def __init__(self, operation: Reshard, job: Job, context: Context) -> None:
        self._operation = operation
        self._job = job
        self._context = context
        self._state = context.state()
        mine = [one for one in self._state.shards.values() if one.job == job.id]
        self._loading = sorted((one for one in mine if one.state is ShardState.LOADING), key=lambda one: one.lo)
        self._fence = int(job.data.get("fence", 0)) or min((one.group for one in self._loading), default=0)
        self.switched = is_switched(job, self._state)

    def _sources(self) -> list[int]:
        """As the job noted them when it began; before that as it was asked."""
        return [int(one) for one in self._job.data.get("sources", [])]

    async def next(self) -> Step:
        if self.switched:
            return await self._retire()
        if self._job.phase == "abandon":
            return await self.abandon(JobState.FAILED if self._job.data.get("final") else JobState.RUNNING,
                                      str(self._job.data.get("why", "")))
        if not self._loading:
            return await self._begin()
        if self._job.phase == "seal":
            return await self._seal()
        return await self._copy()

    def _step(self, phase: str, again_s: float = 0.5, **data: Any) -> Step:
        job = self._job
        return Step(phase, job.done, job.total, "records", data={**job.data, **data}, again_s=again_s)

    def give_up(self, why: str, *, final: bool) -> Step:
        """Noted before it is done."""
        attempts = int(self._job.data.get("attempts", 0)) + 1
        return self._step("abandon", 0.0, fence=self._fence, why=why, attempts=attempts,
                          final=final or attempts >= MOST_ATTEMPTS)

    # --- load -------------------------------------------------------------------------------------

    async def _begin(self) -> Step:
        job, context, operation = self._job, self._context, self._operation
        wanted = operation.wanted(self._state, job.target, job.args)
        sources = [one.group for one in wanted.sources]
        if self._sources() != sources:
            return self._step("load", 0.0, sources=sources)  # noted first: who goes on has to know what to unseal
        if any(one.job not in (0, job.id) and not _over(self._state, one.job) for one in wanted.sources):
            return self._step("waiting", 2.0)
        silent = away(context, UNHEARD_S)
        nodes = choose(self._state, wanted, silent)
        named = await numbered(context, nodes, self._call(ASK_S), silent)
        outcome = await context.propose(operation.commands.add(job.id, wanted.collection.name, [
            (lo, hi, replicas) for (lo, hi), replicas in zip(wanted.ranges, named, strict=True)]))
        if isinstance(outcome, VecdbError) and not self._made():
            raise outcome
        return self._step("load", 0.1, fence=0, nodes={})

    def _made(self) -> bool:
        """Whether shards are there after all: a command that nobody heard of may take effect late, and the next one is
        refused for it, as hashes are filled once at a time.
        """
        return any(one.job == self._job.id and one.state is ShardState.LOADING
                   for one in self._context.state().shards.values())

    # --- copy -------------------------------------------------------------------------------------

    async def _copy(self) -> Step:
        sources = [self._source(group) for group in self._sources()]
        nodes = dict(self._job.data.get("nodes", {}))
        if self._job.data.get("fence") != self._fence or set(nodes) != {str(one.group) for one in sources}:
            for one in (*sources, *self._loading):
                if await self._context.leader(one.group) is None:
                    return replace(self._step("load", 0.1), error=f"shard {one.group} has no leader: it waits")
            nodes = {str(one.group): await self._reader(one.group) for one in sources}
            return self._step("copy", 0.0, fence=self._fence, nodes=nodes)
        found = [await self._copied(one, nodes[str(one.group)]) for one in sources]
        failed = next((one for one in found if one.state not in ("copying", "following")), None)
        if failed is not None:
            return self.give_up(f"the copy of shard {failed.source}: {failed.error or failed.state}", final=False)
        ready = all(one.state == "following" and one.lag <= self._operation.lag for one in found)
        step = self._step("seal" if ready else "copy", 0.0 if ready else 0.5)
        return Step(step.phase, sum(one.records for one in found), sum(one.total for one in found), "records",
                    error="" if ready else next((self._stands(one.error) for one in found if one.error), ""),
                    data=step.data, again_s=step.again_s)

    def _stands(self, error: str) -> str:
        """With what can be done about it."""
        if not error.endswith(NEVER):
            return error
        if self._job.args.get("bytes_per_s"):
            return f"{error}; cancel it, and begin another with a higher bytes_per_s"
        return f"{error}; raise copy_bytes_s (vecdb cluster set), or cancel it"

    async def _reader(self, group: int) -> str:
        """A node that follows the source rather than leads it, was heard, and whose replica is well."""
        status = await self._context.leader(group)
        if status is None:
            raise Unavailable(f"shard {group} has no leader", group=group)
        voters = sorted(map(node_of, status.voters), key=lambda node: (node == node_of(status.me), node))
        for node in voters:
            if self._context.heard_s(node) <= UNHEARD_S and not await self._ended(node, group):
                return node
        return node_of(status.me)

    async def _ended(self, node: str, group: int) -> bool:
        """Whether a node says that its replica is not well, as after its disk was full: it hears of no changes."""
        try:
            found = (await self._context.replicas(node).status([group], self._call(ASK_S))).get(group)
        except VecdbError:
            return False
        return found is not None and found.state != "ok"

    async def _copied(self, source: ShardEntry, node: str) -> CopyStatus:
        """How far the copier is; it is started where there is none."""
        targets = tuple(CopyTarget(one.group, one.lo, one.hi, one.desired) for one in self._loading)
        limit = 0 if self._job.phase == "seal" else copy_limit(self._job, self._context.state())  # writes wait for it
        order = CopyOrder(self._job.id, self._fence, source.group, source.lo, source.hi, targets,
                          self._state.get(source.name).shard_key or "", limit)
        return await self._operation.copies(node).start(order, self._call(ASK_S))

    def _source(self, group: int) -> ShardEntry:
        entry = self._state.shards.get(group)
        if entry is None or entry.state is not ShardState.ACTIVE:
            raise CollectionNotFound(f"shard {group}")
        return entry

    # --- seal -------------------------------------------------------------------------------------

    async def _seal(self) -> Step:
        """Seal, copy the rest, compare, switch.  Whatever goes wrong is :meth:`give_up`'s."""
        operation, context, job = self._operation, self._context, self._job
        sources = [self._source(group) for group in self._sources()]
        until = context.clock.monotonic() + operation.seal_s
        async with asyncio.timeout(operation.seal_s + ASK_S):
            sealed = [await self._proposed(one.group, Seal(job.id, self._fence), until) for one in sources]
            for one, mark in zip(sources, sealed, strict=True):
                await self._drained(one, mark.log_index, until)
            taken = [await self._proposed(one.group, Mark(), until) for one in self._loading]
            _compare(sealed, taken, self._state.get(sources[0].name).shard_key)
            async with context.deciding(job.id):
                self._check_wanted(until)
                outcome = await context.propose(operation.commands.switch(
                    job.id, sources[0].name, [one.group for one in sources], [one.group for one in self._loading]))
        if isinstance(outcome, VecdbError):
            raise outcome
        context.tell("info", "resharded", job=job.id, retired=[one.group for one in sources],
                     activated=[one.group for one in self._loading], records=sum(one.records for one in sealed))
        return self._step("retire", 0.0)

    def _check_wanted(self, until: float) -> None:
        """Raise where the seal is to be lifted again."""
        if is_cancelled(self._job, self._context.state()):
            raise Cancelled("the job is being cancelled")
        if self._context.clock.monotonic() >= until:
            raise DeadlineExceeded("the seal has lasted for too long")

    async def _proposed(self, group: int, command: Seal | Mark, until: float) -> MarkResult:
        """The mark that a command leaves; tried until ``until``."""
        data = codec.encode(command)
        while True:
            try:
                done = await self._ask_leader(group, data, until)
            except (*_PASSING, CollectionNotFound) as error:
                if self._context.clock.monotonic() >= until or isinstance(error, CollectionNotFound):
                    raise
                self._check_wanted(until)
                await asyncio.sleep(LOOK_S)
                continue
            if isinstance(done, MarkResult):
                return done
            _refuse(done)

    async def _ask_leader(self, group: int, command: bytes, until: float) -> object:
        if group not in self._context.state().shards:
            raise CollectionNotFound(f"shard {group}")
        status = await self._context.leader(group)
        if status is None:
            raise Unavailable(f"shard {group} has no leader", group=group)
        left = max(0.1, min(ASK_S, until - self._context.clock.monotonic()))
        try:
            return (await self._context.replicas(node_of(status.me)).propose(group, command, self._call(left))).result
        except NotLeader as error:  # which would be taken for the control group's
            raise Unavailable(error.message, group=group) from error

    async def _drained(self, source: ShardEntry, log_index: int, until: float) -> None:
        """Return once everything up to a place in the source's log is at the targets."""
        node = self._job.data["nodes"][str(source.group)]
        while True:
            status = await self._copied(source, node)
            if status.state not in ("copying", "following"):
                raise Unavailable(f"the copy of shard {source.group}: {status.error or status.state}")
            if status.state == "following" and status.copied_to >= log_index:
                return
            if self._context.clock.monotonic() >= until:
                raise DeadlineExceeded(f"shard {source.group} is {log_index - status.copied_to} entries behind")
            self._check_wanted(until)
            await asyncio.sleep(LOOK_S)

    # --- afterwards -------------------------------------------------------------------------------

    async def _retire(self) -> Step:
        """Let go of the sources once nobody can have them on his map."""
        now = self._context.clock.wall()
        if "switched_s" not in self._job.data:
            await self._stop_copiers()
            return self._step("retire", 0.5, switched_s=now)
        if now - float(self._job.data["switched_s"]) < self._operation.grace_s:
            return self._step("retire", min(5.0, self._operation.grace_s))
        left = [group for group in self._sources() if group in self._state.shards]
        if left:
            await self._forget(left)
        return Step("done", self._job.total, self._job.total, "records", JobState.DONE)

    async def abandon(self, state: JobState, why: str) -> Step:
        """Forget the new shards, and lift the seals.  In this order: see the module."""
        if self._loading:
            try:
                await self._forget([one.group for one in self._loading])
            except InvalidArgument as error:  # calls go to them by now: the next step sees that
                raise Unavailable(error.message) from error
        await self._stop_copiers()
        for group in self._sources():
            if self._fence and group in self._context.state().shards:
                await self._unsealed(group)
        if state is JobState.RUNNING:
            step = self._step("load", min(30.0, 0.5 * 2.0 ** int(self._job.data.get("attempts", 1))), fence=0, nodes={})
            return replace(step, error=why)
        return Step(state.value, self._job.done, self._job.total, "records", state, why)

    async def _unsealed(self, group: int) -> None:
        try:
            done = await self._ask_leader(group, codec.encode(Unseal(self._job.id, self._fence)),
                                          self._context.clock.monotonic() + ASK_S)
        except CollectionNotFound:
            return  # dropped meanwhile
        if isinstance(done, VecdbError):
            raise done

    async def _forget(self, groups: Sequence[int]) -> None:
        await proposed(self._context, self._operation.commands.forget(groups))

    async def _stop_copiers(self) -> None:
        """As far as their nodes answer; what is not stopped fails by itself when its targets or its source are gone."""
        for group, node in self._job.data.get("nodes", {}).items():
            try:
                await self._operation.copies(node).stop(self._job.id, int(group), self._call(ASK_S))
            except VecdbError as error:
                self._context.tell("info", "copier_not_stopped", job=self._job.id, node=node, error=error.message)

    def _call(self, seconds: float) -> Call:
        return Call(deadline=self._context.clock.monotonic() + seconds)


def is_switched(job: Job, state: ControlState) -> bool:
    """Whether calls go to the shards that the job made, or went there."""
    first = state.shards.get(int(job.data.get("fence", 0)))
    return job.phase == "retire" or (first is not None and first.state is not ShardState.LOADING)


def choose(state: ControlState, wanted: Wanted, silent: Sequence[str]) -> list[tuple[str, ...]]:
    """The nodes of each new shard; those of the sources where the control group knows of no nodes."""
    room, chosen = Room(state, silent), []
    for place in range(len(wanted.ranges)):
        nodes = room.placed(state.next_group + place, wanted.collection.replication_factor)
        chosen.append(nodes or wanted.sources[0].desired)
    return chosen


def _active(state: ControlState, target: object) -> ShardEntry:
    text = str(target)
    if not text.isdecimal() or len(text) >= 20:
        raise InvalidArgument("shard", "is the number of a shard", got=text[:40], limit="vecdb shard list")
    entry = state.shards.get(int(text))
    if entry is None or entry.state is not ShardState.ACTIVE:
        raise ShardNotFound(f"there is no shard {text} that calls go to", shard=int(text))
    return entry


def _cuts(entry: ShardEntry, shard_key: str | None, args: Mapping[str, Any]) -> list[int]:
    """Where ranges begin, but for the first."""
    given = [name for name in ("into", "at", "apart") if args.get(name) is not None]
    if len(given) > 1:
        raise InvalidArgument("at", "one of into, at and apart says where a shard is cut", got=given, limit=1)
    if not given or given == ["into"]:
        parts = args.get("into", 2) if given else 2
        if type(parts) is not int or not 2 <= parts <= min(MAX_COLLECTION_SHARDS, entry.hi - entry.lo):
            raise InvalidArgument("into", "is a number of shards", got=str(parts)[:40],
                                  limit=f"2..{MAX_COLLECTION_SHARDS}")
        return [entry.lo + (entry.hi - entry.lo) * at // parts for at in range(1, parts)]
    value = args[given[0]]
    key = None if shard_key is None else value_key(value)
    if shard_key is not None and key is None:
        raise InvalidArgument(given[0], f"is no value of the shard key {shard_key!r}", got=str(value)[:80])
    place = hash_of_id(check_id(value)) if key is None else hash_of(key)
    cuts = [place] if given == ["at"] else [place, place + 1]
    found = [one for one in cuts if entry.lo < one < entry.hi]
    if not found or not entry.lo <= place < entry.hi:
        raise InvalidArgument(given[0], f"{str(value)[:80]!r} is not within shard {entry.group}, or is where that "
                              "begins", got=str(value)[:80], limit=entry.group)
    return found


def _over(state: ControlState, job: int) -> bool:
    found = state.jobs.get(job)
    return found is None or found.state.ended


def _compare(sources: Sequence[MarkResult], targets: Sequence[MarkResult], shard_key: str | None) -> None:
    """Raise ``DataCorrupted`` unless the targets have exactly the sources' records; see also ``check_distinct``."""
    totals = [(sum(one.records for one in marks), sum(int(one.digest, 16) for one in marks) % MODULUS)
              for marks in (sources, targets)]
    check_distinct(shard_key, totals[1][0], totals[0][0])
    if totals[0] != totals[1]:
        raise DataCorrupted(f"the new shards have {totals[1][0]} records of digest {totals[1][1]:032x}, and those they "
                            f"were copied from {totals[0][0]} of {totals[0][1]:032x}", path="digest")


def _refuse(done: object) -> NoReturn:
    raise done if isinstance(done, VecdbError) else VecdbError("a mark was answered with none", got=type(done).__name__)
