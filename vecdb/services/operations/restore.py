"""Restoring collections of a snapshot into this cluster, of whatever size it is.

For each collection, one after another, shards are made that nobody sees (:mod:`vecdb.cluster.control.loading`), as many
as there were or as are asked for, on this cluster's nodes; nodes load the snapshot's shards into them; marks of all of
them are added up and held against the snapshot's count and digest; and one command of the control group lets calls go
to the collection.  Cancelled, or failed, what is not ready is abandoned; collections that were ready stay.

**Killed anywhere** the next step reads from the control state which collection stands where: in ``loading``, filled by
this job; in ``collections``, since it is ready; or nowhere.  What is noted is the place in the list, the items that are
loaded, and how far those under way are, which may be less than is true: pieces that come again do nothing.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from vecdb.cluster.control import (
    MAX_VOTERS,
    ApiKeyEntry,
    CollectionEntry,
    ControlState,
    JobEntry,
    ShardEntry,
    api_key_put,
    collection_abandon,
    collection_load,
    collection_ready,
    node_of,
    setting_put,
)
from vecdb.cluster.placement import ranges
from vecdb.cluster.planning import Room, holding
from vecdb.cluster.routing import check_distinct
from vecdb.core.cluster import MAX_COLLECTION_SHARDS, JobState, Plan, PlanStep
from vecdb.core.errors import (
    CollectionExists,
    DataCorrupted,
    InvalidArgument,
    LimitExceeded,
    NoNodeForReplica,
    NotLeader,
    Unavailable,
)
from vecdb.core.schema import check_name
from vecdb.ports.backups import LOAD, BackupOrder
from vecdb.ports.copies import CopyTarget
from vecdb.services.backup import repository as places
from vecdb.services.backup.local import Wanted, chosen
from vecdb.services.backup.manifest import ShardRef, Snapshot
from vecdb.services.backup.repository import Repository
from vecdb.services.backup.work import OpenRepository, work_of
from vecdb.services.operations.backing import (
    STEP_S,
    UNHEARD_S,
    Asked,
    BackupsOf,
    Places,
    Working,
    able,
    asked,
    call_of,
    ignoring,
    patiently,
    stop_everywhere,
)
from vecdb.services.operations.base import GOES_ON, Context, Job, Step, copy_limit, numbered, proposed
from vecdb.services.operations.placing import away
from vecdb.shard import codec
from vecdb.shard.digest import MODULUS
from vecdb.shard.marks import Mark, MarkResult

_KINDS: Final = ("restore", "attach")
NAMED: Final = 100
"""Collections that a plan names where all are asked for."""


class Restore:
    """``target``: the snapshot's name; ``args``: ``url``; ``collections``: names in the snapshot with the names they
    are to have, none: all as they are; ``shards`` and ``replication_factor`` of each, none: as they were; of
    fewer nodes than that they are given the rest when some join; ``settings``, ``api_keys``: whether those that are not
    here are restored too; ``bytes_per_s``.
    """

    kind = "restore"
    past = "the collections were there"
    takes: tuple[str, ...] = ("collections", "shards", "replication_factor", "settings", "api_keys")
    """Arguments, beside those of every such job."""

    def __init__(self, backups: BackupsOf, open_repository: OpenRepository) -> None:
        self._backups = backups
        self._places = Places(open_repository)

    # --- what is wanted ---------------------------------------------------------------------------

    def plan(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str] = ()) -> Plan:
        where = asked(target, args, *self.takes)
        names = _names(args)
        shards, factor = _number(args, "shards", MAX_COLLECTION_SHARDS), _number(args, "replication_factor", MAX_VOTERS)
        _check_free(state, (names or {}).values())
        _check_jobs((names or {}).values(), {job.id: _made(_names(job.args)) for job in _under_way(state)})
        what = "all collections" if names is None else ", ".join(
            repr(to) if one == to else f"{to!r} from {one!r}" for one, to in names.items())
        what += f", each in {shards} shard{'s' if shards > 1 else ''}" if shards else ""
        what += f", with {factor} replica{'s' if factor > 1 else ''} of each shard" if factor else ""
        notes = ("a collection is seen when all of it is there; its indexes are built anew",
                 *_few(state, factor, away))
        return Plan(self.kind, (PlanStep("restore", target, f"restore {what} from the snapshot {target!r} at "
                                         f"{where.url}"),), notes)

    async def look(self, state: ControlState, target: str, args: Mapping[str, Any]) -> tuple[str, ...]:
        """By the names in the snapshot, where all of it is asked for, here or by a job that is under way."""
        where, names = asked(target, args, *self.takes), _names(args)
        factors: dict[str, int] = {}

        def find(repository: Repository) -> None:
            factors.update((one.name, one.collection.replication_factor)
                           for one in chosen(repository.load(where.name), names))

        notes, found = await self._places.look(where.url, find), list(factors)
        _check_free(state, found)
        if not _number(args, "replication_factor", MAX_VOTERS):
            notes = (*notes, *_fewer(state, factors))
        if found:
            _check_jobs(found, {job.id: await self._makes(job) for job in _under_way(state)})
        return notes if names is not None or not found else (_all_of(found), *notes)

    async def _makes(self, job: Job) -> set[str]:
        """The names of what another job is to make, as far as they are to be had."""
        names = _names(job.args)
        found = _made(names)
        if names is None:
            where = asked(job.target, job.args, *job.args)
            await ignoring(self._places.look(where.url, lambda repository: found.update(
                one.name for one in repository.load(where.name).collections)))
        return found

    # --- steps ------------------------------------------------------------------------------------

    async def step(self, job: Job, context: Context) -> Step:
        try:
            return await patiently(job, self._step(job, context))
        except GOES_ON:
            raise
        except Exception:  # whatever it is, nothing may keep the names of what is not ready
            await self._abandon(job, context)
            await ignoring(self._left(job, context))
            raise

    async def _left(self, job: Job, context: Context) -> None:
        where = asked(job.target, job.args, *self.takes)
        await self._let_go(job, context, await self._places.open(where.url), where)

    async def _step(self, job: Job, context: Context) -> Step:
        where = replace(asked(job.target, job.args, *self.takes), bytes_per_s=copy_limit(job, context.state()))
        repository = await self._places.open(where.url)
        if not job.phase or self._places.is_due(job.id, context.clock.monotonic()):
            # A place that is only read, with a key that may do no more, is as good: nobody deletes there meanwhile.
            await ignoring(self._places.thread(repository.lease, places.READ, work_of(where.name, job.id)))
        snapshot = await self._places.thread(repository.load, where.name)
        wanted = chosen(snapshot, _names(job.args))
        total = sum(len(one.collection.shards) for one in wanted)
        if not job.phase:
            _check_free(context.state(), [one.name for one in wanted])
            return Step("loading", 0, total, "shards", data=_notes(0, wanted), again_s=0.0)
        at = int(job.data.get("next", 0))
        if at >= len(wanted):
            await self._finish(job, context, snapshot, repository, where)
            return Step("done", total, total, "shards", JobState.DONE, data=_notes(at, wanted))
        return await self._advance(job, context, where, wanted, at, total)

    async def _advance(self, job: Job, context: Context, where: Asked, wanted: Sequence[Wanted], at: int,
                       total: int) -> Step:
        one, before = wanted[at], sum(len(this.collection.shards) for this in wanted[:at])
        state = context.state()
        entry = state.loading.get(one.name)
        if entry is not None and _job_of(state, entry) != job.id:
            raise CollectionExists(one.name, _job_of(state, entry))
        if job.phase == "opening" and entry is None:  # it was there when that was noted: it is ready, or was abandoned
            state.get(one.name)
            return Step("loading", before + len(one.collection.shards), total, "shards", again_s=0.0,
                        data=_notes(at + 1, wanted))
        if entry is None:
            await self._begin(job, context, one)
            return Step("loading", before, total, "shards", data=_notes(at, wanted), again_s=0.1)
        targets = [state.shards[group] for group in entry.shards]
        loaded = set(map(int, job.data.get("loaded", [])))
        loaded |= {place for place, ref in enumerate(one.collection.shards) if not ref.records}
        if job.phase == "opening" or len(loaded) == len(one.collection.shards):
            if job.phase != "opening":
                return Step("opening", before + len(loaded), total, "shards", data=job.data, again_s=0.0)
            await self._open(job, context, one, targets)
            return Step("opening", before + len(loaded), total, "shards", data=job.data, again_s=0.0)
        notes = await self._load(job, context, where, one, targets, loaded)
        return Step("loading", before + len(loaded), total, "shards", again_s=STEP_S,
                    data={**_notes(at, wanted), "loaded": sorted(loaded), "under_way": notes})

    # --- a collection -----------------------------------------------------------------------------

    async def _begin(self, job: Job, context: Context, wanted: Wanted) -> None:
        """Make shards for it that nobody sees."""
        state, source = context.state(), wanted.collection
        count = _number(job.args, "shards", MAX_COLLECTION_SHARDS)
        edges = ranges(count) if count else [(ref.lo, ref.hi) for ref in source.shards]
        factor = _number(job.args, "replication_factor", MAX_VOTERS) or source.replication_factor
        silent = away(context, UNHEARD_S)
        room = Room(state, silent)
        plans = [room.placed(state.next_group + place, factor) for place in range(len(edges))]
        if not all(plans):
            raise Unavailable("there is no node that could hold a replica")
        unheard = sorted({node for nodes in plans for node in nodes if node in room.away})
        if unheard:
            context.tell("warning", "replicas_unheard", job=job.id, collection=wanted.name, nodes=unheard)
        named = await numbered(context, plans, call_of(context), silent)
        await proposed(context, collection_load(job.id, wanted.schema, [
            (lo, hi, replicas) for (lo, hi), replicas in zip(edges, named, strict=True)], factor, source.shard_key))

    async def _load(self, job: Job, context: Context, where: Asked, wanted: Wanted, targets: Sequence[ShardEntry],
                    loaded: set[int]) -> dict[str, dict[str, Any]]:
        """A step for every item under way, and others put under way; what is loaded by then is added."""
        refs = wanted.collection.shards
        notes = {key: dict(one) for key, one in job.data.get("under_way", {}).items() if int(key) not in loaded}
        working = Working(job, context, self._backups, notes)
        everybody = [one.name for one in able(context.state())]
        for place in range(len(refs)):
            key = str(place)
            if place in loaded or (key not in notes and working.room <= 0):
                continue
            note = notes.get(key, {"node": "", "after": -1, "batches": 0})
            if not note["node"] and working.pick(everybody) is None:
                continue
            if not note["node"]:
                near = await self._near(context, refs[place], targets)
                node = working.pick(sorted(near, key=lambda one: note.get("avoid", []).count(one)))
                if node is None:
                    continue
                notes[key] = note = {**note, "node": node}
            status = await working.advance(key, self._order(job, where, wanted, place, targets, note))
            if status is not None:
                note["after"], note["batches"] = status.after, status.batches
                if status.state == "done":
                    loaded.add(place)
                    del notes[key]
        return notes

    async def _near(self, context: Context, ref: ShardRef, targets: Sequence[ShardEntry]) -> list[str]:
        """Nodes to load a shard on: who leads the first of its targets goes first.  None while that has no leader."""
        first = next(one for one in targets if one.hi > ref.lo)
        status = await context.leader(first.group)
        if status is None:
            return []
        leader = node_of(status.me)
        return sorted((one.name for one in able(context.state())), key=lambda name: (name != leader, name))

    def _order(self, job: Job, where: Asked, wanted: Wanted, place: int, targets: Sequence[ShardEntry],
               note: Mapping[str, Any]) -> BackupOrder:
        ref = wanted.collection.shards[place]
        over = tuple(CopyTarget(one.group, one.lo, one.hi, one.desired) for one in targets
                     if one.lo < ref.hi and ref.lo < one.hi)
        return BackupOrder(job.id, LOAD, place, where.url, where.name, where.bytes_per_s, wanted.collection.name, over,
                           int(note["after"]), int(note["batches"]))

    async def _open(self, job: Job, context: Context, wanted: Wanted, targets: Sequence[ShardEntry]) -> None:
        """Compare what is there with what was saved, and let calls go to it."""
        marks = await asyncio.gather(*(self._mark(context, one.group) for one in targets))
        records = sum(one.records for one in marks)
        digest = f"{sum(int(one.digest, 16) for one in marks) % MODULUS:032x}"
        source = wanted.collection
        check_distinct(source.shard_key, records, source.records)
        if (records, digest) != (source.records, source.digest):
            raise DataCorrupted(f"{wanted.name!r} has {records} records after it was restored and was saved with "
                                f"{source.records}, or their digest differs", path=str(job.args.get("url")),
                                region="backup")
        await proposed(context, collection_ready(job.id, wanted.name))
        await stop_everywhere(job, context, self._backups)
        context.tell("info", "collection_restored", job=job.id, collection=wanted.name, records=records, digest=digest)

    async def _mark(self, context: Context, group: int) -> MarkResult:
        status = await context.leader(group)
        if status is None:
            raise Unavailable(f"shard {group} has no leader", group=group)
        try:
            done = await context.replicas(node_of(status.me)).propose(group, codec.encode(Mark()), call_of(context))
        except NotLeader as error:  # which would be taken for the control group's
            raise Unavailable(error.message, group=group) from error
        if not isinstance(done.result, MarkResult):
            raise Unavailable(f"shard {group} gave no mark", group=group)
        return done.result

    # --- the end ----------------------------------------------------------------------------------

    async def _finish(self, job: Job, context: Context, snapshot: Snapshot, repository: Repository,
                      where: Asked) -> None:
        state = context.state()
        if job.args.get("settings"):
            for name, value in snapshot.settings.items():
                if name not in state.settings:
                    await proposed(context, setting_put(name, value))
        if job.args.get("api_keys"):
            for one in snapshot.api_keys:
                entry = ApiKeyEntry.from_json(one)
                if entry.id not in state.api_keys:
                    await proposed(context, api_key_put(entry, at_s=context.clock.wall()))
        await self._let_go(job, context, repository, where)

    async def _let_go(self, job: Job, context: Context, repository: Repository, where: Asked) -> None:
        await stop_everywhere(job, context, self._backups)
        lease = places.Lease(repository.objects, places.READ, work_of(where.name, job.id))
        await ignoring(self._places.thread(lease.release))

    def too_late(self, job: Job, state: ControlState) -> str:
        ready, left = _ready(job, state)
        return "calls go to what it made" if ready and not left else ""

    async def cancel(self, job: Job, context: Context) -> Step:
        ready, left = _ready(job, context.state())
        if ready and not left:
            return await self.step(job, context)  # nothing is left to abandon
        await self._abandon(job, context)
        await ignoring(self._left(job, context))
        told = f"{', '.join(map(repr, ready))} {'was' if len(ready) == 1 else 'were'} there by then, and " \
            f"stay{'s' if len(ready) == 1 else ''}" if ready else ""
        return Step("cancelled", job.done, job.total, "shards", JobState.CANCELLED, told, job.data)

    async def _abandon(self, job: Job, context: Context) -> None:
        await stop_everywhere(job, context, self._backups)
        state = context.state()
        for name, entry in state.loading.items():
            if _job_of(state, entry) == job.id:
                await proposed(context, collection_abandon(job.id, name))


def _all_of(names: Sequence[str]) -> str:
    """For a plan that names no collections."""
    told = ", ".join(map(repr, names[:NAMED]))
    return f"all collections: {told}" + (f" and {len(names) - NAMED} more" if names[NAMED:] else "")


def _notes(at: int, wanted: Sequence[Wanted]) -> dict[str, Any]:
    """What a job remembers when it comes to the collection at a place of its list."""
    return {"next": at, "names": [one.name for one in wanted], "loaded": [], "under_way": {}}


def _ready(job: Job, state: ControlState) -> tuple[list[str], list[str]]:
    """The collections of a job that calls go to, as far as it has noted them, and those that are left."""
    at, names = int(job.data.get("next", 0)), [str(one) for one in job.data.get("names", [])]
    if job.phase == "opening" and at < len(names) and names[at] not in state.loading and names[at] in state.collections:
        at += 1
    return names[:at], names[at:]


def _job_of(state: ControlState, entry: CollectionEntry) -> int:
    return state.shards[entry.shards[0]].job


def _under_way(state: ControlState) -> list[JobEntry]:
    """Jobs that may yet make collections: those that wait for others to end, too."""
    return [job for job in state.jobs.values() if job.kind in _KINDS and not job.state.ended]


def _check_free(state: ControlState, names: Iterable[str]) -> None:
    for name in names:
        if name in state.loading:
            raise CollectionExists(name, _job_of(state, state.loading[name]))
        if name in state.collections:
            raise CollectionExists(name)


def _few(state: ControlState, factor: int, away: Sequence[str]) -> tuple[str, ...]:
    """What replicas wait for; ``NoNodeForReplica`` where more were asked for than there could be."""
    count = len(holding(state))
    if factor > count:
        raise NoNodeForReplica(f"{factor} replicas of a shard want {factor} nodes that hold replicas and are active; "
                               f"there are {count}", got=factor, limit=count)
    silent = sorted(one.name for one in holding(state) if one.name in away)
    return () if not silent else (
        f"{', '.join(silent)} {'is' if len(silent) == 1 else 'are'} not heard: replicas that no other node is left for "
        "are made there, once it is heard again, or elsewhere, as those of a node that is lost",)


def _fewer(state: ControlState, factors: Mapping[str, int]) -> list[str]:
    """Which collections begin with fewer replicas than they are to have."""
    count = len(holding(state))
    there = "there is 1 node that holds" if count == 1 else f"there are {count} nodes that hold"
    return [f"{name!r} is to have {factor} replicas of each shard, and {there} any: it is given the others when nodes "
            "join" for name, factor in sorted(factors.items()) if factor > count]


def _check_jobs(names: Iterable[str], makes: Mapping[int, set[str]]) -> None:
    for name in names:
        for job, theirs in makes.items():
            if name in theirs:
                raise CollectionExists(name, job)


def _made(names: Mapping[str, str] | None) -> set[str]:
    return set((names or {}).values())


def _names(args: Mapping[str, Any]) -> dict[str, str] | None:
    """A list of names, or an object of names with those they are to have."""
    value = args.get("collections")
    if value is None:
        return None
    if isinstance(value, list):
        value = {one: one for one in value if isinstance(one, str)}
    if not isinstance(value, dict) or not value:
        raise InvalidArgument("collections", "must be names, or names with new names", got=type(value).__name__,
                              limit="a list or an object")
    return {check_name(one): check_name(to) for one, to in value.items()}


def _number(args: Mapping[str, Any], name: str, most: int) -> int:
    value = args.get(name) or 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise LimitExceeded(name, "must be a whole number", got=str(value)[:40], limit=f"1..{most}")
    return value

