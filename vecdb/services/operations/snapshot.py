"""Snapshots of a cluster: made, verified, deleted.  See :mod:`vecdb.services.backup` for what they are.

**Made.**  The job writes down at the place itself which shards there are to save (``jobs/WORK/plan.json``); nodes save
them and note that beside it; when all are noted the snapshot is written.  A collection whose shards were replaced
meanwhile, by a split or a merge, is planned anew with those that took their place; one that was dropped is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from vecdb.cluster.control import ControlState
from vecdb.core.cluster import JobState, Plan, PlanStep, ShardState
from vecdb.core.errors import (
    DataCorrupted,
    SnapshotExists,
    SnapshotNotFound,
    StorageError,
    Unavailable,
)
from vecdb.core.schema import CollectionSchema
from vecdb.ports.backups import SAVE, VERIFY, BackupOrder
from vecdb.services.backup import repository as places
from vecdb.services.backup.manifest import CollectionManifest, ShardRef, Snapshot
from vecdb.services.backup.repository import Repository
from vecdb.services.backup.work import PLAN, OpenRepository, note_key, work_of
from vecdb.services.operations.backing import (
    STEP_S,
    Asked,
    BackupsOf,
    Places,
    Working,
    able,
    asked,
    givers,
    ignoring,
    names_in,
    patiently,
    stop_everywhere,
)
from vecdb.services.operations.base import GOES_ON, Context, Job, Step

PROBLEMS: Final = 20
LOOKED_AT: Final = 64
"""Shards for which a node is looked for in one step: it is asked for them one by one."""


class SnapshotCreate:
    """``target``: its name; ``args``: ``url``, ``collections`` (a list; all), ``bytes_per_s`` of each node.

    ``cluster`` and ``version`` are written into it.
    """

    kind = "snapshot"
    past = "the snapshot was written"

    def __init__(self, backups: BackupsOf, open_repository: OpenRepository, cluster: str, version: str) -> None:
        self._backups = backups
        self._places = Places(open_repository)
        self._cluster = cluster
        self._version = version
        self._plans: dict[int, dict[str, Any]] = {}

    def plan(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str] = ()) -> Plan:
        where = asked(target, args, "collections")
        names = _chosen(state, names_in(args, "collections"))
        steps = [PlanStep("save", name, f"save {len(state.get(name).shards)} shards of {name!r} to {where.url}")
                 for name in names]
        return Plan(self.kind, tuple(steps), ("each shard as of one place in its log; not all of the same instant",))

    async def look(self, state: ControlState, target: str, args: Mapping[str, Any]) -> tuple[str, ...]:
        where = asked(target, args, "collections")
        return await self._places.look(where.url, lambda repository: repository.check_new(where.name),
                                       makes=True)

    async def step(self, job: Job, context: Context) -> Step:
        where = asked(job.target, job.args, "collections")
        try:
            return await patiently(job, self._step(job, context, where))
        except GOES_ON:
            raise
        except Exception as error:
            if job.phase or not isinstance(error, SnapshotExists | StorageError):  # else nothing was done yet
                await ignoring(self._tidy(job, context, where))
            raise

    async def _step(self, job: Job, context: Context, where: Asked) -> Step:
        repository = await self._places.open(where.url, create=not job.phase)
        work = work_of(where.name, job.id)
        thread = self._places.thread
        if not job.phase:
            await thread(repository.check_new, where.name)
            await thread(repository.lease, places.SAVE, work)
            plan = await thread(_planned, repository, context.state(), names_in(job.args, "collections"))
            await self._write_plan(job, repository, work, plan)
            return Step("saving", 0, len(_groups(plan)), "shards", data={"under_way": {}}, again_s=0.0)
        if self._places.is_due(job.id, context.clock.monotonic()):
            await thread(repository.lease, places.SAVE, work)
        if job.phase == "writing" and await thread(_is_made, repository, where.name, self._maker(work)):
            await ignoring(self._tidied(job, context, repository, work))
            return Step("done", job.total, job.total, "shards", JobState.DONE)
        plan = await self._current_plan(job, context, repository, work)
        saved = await thread(_saved, repository, work)
        if all(group in saved for group in _groups(plan)):
            if job.phase != "writing":  # noted first: who finds it written has to know that it may be his own
                return Step("writing", job.total, job.total, "shards", again_s=0.0)
            return await self._commit(job, context, repository, work, plan)
        return await self._save(job, context, where, plan, saved)

    def _maker(self, work: str) -> str:
        return f"{self._cluster}/{work}"

    async def _write_plan(self, job: Job, repository: Repository, work: str, plan: dict[str, Any]) -> None:
        await self._places.thread(repository.objects.put, note_key(work, PLAN), orjson.dumps(plan))
        self._plans = {job.id: plan}

    async def _current_plan(self, job: Job, context: Context, repository: Repository, work: str) -> dict[str, Any]:
        """What there is to save, by the shards that there are now."""
        plan = self._plans.get(job.id)
        if plan is None:
            raw = await self._places.thread(repository.objects.get, note_key(work, PLAN))
            if raw is None:
                raise DataCorrupted(f"the plan of this snapshot is gone from {repository.url}", path=repository.url)
            plan = dict(orjson.loads(raw))
        state, before = context.state(), plan["collections"]
        names = [one["schema"]["name"] for one in before]
        now = [_collection(state, name) for name in names if name in state.collections]
        if [one["shards"] for one in now] != [one["shards"] for one in before]:
            plan = {**plan, "collections": now}
            await self._write_plan(job, repository, work, plan)
        self._plans = {job.id: plan}
        return plan

    async def _save(self, job: Job, context: Context, where: Asked, plan: dict[str, Any], saved: set[int]) -> Step:
        groups = _groups(plan)
        left = [group for group in groups if group not in saved]
        notes = {key: dict(one) for key, one in job.data.get("under_way", {}).items() if int(key) in left}
        working = Working(job, context, self._backups, notes)
        for key in list(notes):
            if notes[key]["node"]:
                await working.advance(key, self._order(job, where, int(key)))
        everybody = [one.name for one in able(context.state())]
        for group in left[:LOOKED_AT]:
            note = notes.get(str(group), {"node": ""})
            if working.room <= 0 or working.pick(everybody) is None:
                break
            if not note["node"]:
                before = str(plan["before"].get(str(group), ""))
                node = working.pick(await givers(context, group, before, note.get("avoid", [])))
                if node is not None:
                    notes[str(group)] = {**note, "node": node}
                    await working.advance(str(group), self._order(job, where, group))
        return Step("saving", len(groups) - len(left), len(groups), "shards", data={"under_way": notes}, again_s=STEP_S)

    def _order(self, job: Job, where: Asked, group: int) -> BackupOrder:
        return BackupOrder(job.id, SAVE, group, where.url, where.name, where.bytes_per_s)

    async def _commit(self, job: Job, context: Context, repository: Repository, work: str,
                      plan: dict[str, Any]) -> Step:
        snapshot = await self._places.thread(self._assembled, repository, work, plan, job.target, context)
        lease = await self._places.thread(repository.lease, places.SAVE, work)
        try:
            await self._places.thread(repository.commit, snapshot, lease)
        except SnapshotExists:  # a store that was asked twice, since its first answer was lost, says so of one's own
            if not await self._places.thread(_is_made, repository, snapshot.name, snapshot.made_by):
                raise
        except Unavailable as error:
            if "objects" not in error.fields:
                raise
            await self._places.thread(_forget_saved, repository, work)  # swept: every shard looks again what is there
            await stop_everywhere(job, context, self._backups)
            raise
        context.tell("info", "snapshot_made", job=job.id, snapshot=job.target, url=repository.url,
                     records=snapshot.info().records, bytes=snapshot.info().bytes, added=snapshot.info().added_bytes)
        shards = sum(len(one.shards) for one in snapshot.collections)
        await ignoring(self._tidied(job, context, repository, work))
        return Step("done", shards, shards, "shards", JobState.DONE)

    def _assembled(self, repository: Repository, work: str, plan: dict[str, Any], name: str,
                   context: Context) -> Snapshot:
        state = context.state()
        collections = []
        for one in plan["collections"]:
            refs = []
            for group in one["shards"]:
                raw = repository.objects.get(note_key(work, group))
                if raw is None:
                    raise Unavailable(f"what was noted of shard {group} is gone", group=group)
                refs.append(ShardRef.from_json(orjson.loads(raw)))
            collections.append(CollectionManifest(CollectionSchema.from_json(one["schema"]), one["replication_factor"],
                                                  one["shard_key"], tuple(sorted(refs, key=lambda ref: ref.lo))))
        keys = tuple(entry.to_json() for entry in state.api_keys.values())
        return Snapshot(name, context.clock.wall(), self._cluster, self._version, tuple(collections),
                        dict(state.settings), keys, self._maker(work))

    async def cancel(self, job: Job, context: Context) -> Step:
        """What was saved is swept, unless others are at work there, or all of it is there already."""
        where = asked(job.target, job.args, "collections")
        if job.phase == "writing":
            repository, work = await self._places.open(where.url), work_of(where.name, job.id)
            if await self._places.thread(_is_made, repository, where.name, self._maker(work)):
                await ignoring(self._tidied(job, context, repository, work))
                return Step("done", job.total, job.total, "shards", JobState.DONE)
        await ignoring(self._tidy(job, context, where))
        return Step("cancelled", job.done, job.total, "shards", JobState.CANCELLED)

    async def _tidy(self, job: Job, context: Context, where: Asked) -> None:
        repository = await self._places.open(where.url)
        work = work_of(where.name, job.id)
        await ignoring(self._tidied(job, context, repository, work))
        await ignoring(self._places.thread(repository.sweep, where.name, work))

    async def _tidied(self, job: Job, context: Context, repository: Repository, work: str) -> None:
        self._plans.pop(job.id, None)
        await stop_everywhere(job, context, self._backups)
        await self._places.thread(_forget_saved, repository, work, plan=True)
        await self._places.thread(places.Lease(repository.objects, places.SAVE, work).release)


def _is_made(repository: Repository, name: str, maker: str) -> bool:
    try:
        return repository.load(name).made_by == maker
    except SnapshotNotFound:
        return False


def _made(snapshot: Snapshot) -> list[object]:
    """What tells a snapshot from a later one of its name."""
    return [snapshot.created_s, snapshot.made_by]


def _is_there(repository: Repository, name: str, made: list[object] | None) -> bool:
    """Whether there is the snapshot that is meant; any of the name where that was not noted."""
    try:
        return made in (None, _made(repository.load(name)))
    except SnapshotNotFound:
        return False


def _chosen(state: ControlState, names: tuple[str, ...] | None) -> list[str]:
    for name in names or ():
        state.get(name)
    return sorted(state.collections) if names is None else list(names)


def _collection(state: ControlState, name: str) -> dict[str, Any]:
    entry = state.get(name)
    shards = [group for group in entry.shards if state.shards[group].state is ShardState.ACTIVE]
    return {"schema": entry.schema.to_json(), "replication_factor": entry.replication_factor,
            "shard_key": entry.shard_key, "shards": shards}


def _planned(repository: Repository, state: ControlState, names: tuple[str, ...] | None) -> dict[str, Any]:
    """``before``: the nodes that gave shards to the last snapshot, whose files are there already."""
    latest = repository.latest()
    before = {} if latest is None else {str(ref.group): ref.node for one in latest.collections for ref in one.shards}
    return {"collections": [_collection(state, name) for name in _chosen(state, names)], "before": before}


def _groups(plan: Mapping[str, Any]) -> list[int]:
    return [group for one in plan["collections"] for group in one["shards"]]


def _saved(repository: Repository, work: str) -> set[int]:
    """Shards that were noted as saved."""
    names = (one.key.rpartition("/")[2].removesuffix(".json") for one in repository.objects.list(f"jobs/{work}/"))
    return {int(name) for name in names if name.isdecimal()}


def _forget_saved(repository: Repository, work: str, *, plan: bool = False) -> None:
    repository.objects.delete([one.key for one in repository.objects.list(f"jobs/{work}/")
                               if plan or one.key != note_key(work, PLAN)])


class SnapshotDelete:
    """``target``: the snapshot's name; ``args``: ``url``."""

    kind = "snapshot_delete"
    past = "the snapshot had begun to be deleted"

    def __init__(self, open_repository: OpenRepository) -> None:
        self._places = Places(open_repository)

    def plan(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str] = ()) -> Plan:
        where = asked(target, args)
        return Plan(self.kind, (PlanStep("delete", target, f"delete the snapshot {target!r} at {where.url}, and what "
                                         "no other snapshot there needs"),))

    async def look(self, state: ControlState, target: str, args: Mapping[str, Any]) -> tuple[str, ...]:
        where = asked(target, args)
        return await self._places.look(where.url, lambda repository: repository.load(where.name))

    async def step(self, job: Job, context: Context) -> Step:
        return await patiently(job, self._step(job, context))

    async def _step(self, job: Job, context: Context) -> Step:
        where = asked(job.target, job.args)
        repository = await self._places.open(where.url)
        if not job.phase:
            found = await self._places.thread(repository.load, where.name)
            return Step("sweeping", data={"made": _made(found)}, again_s=0.0)
        work = work_of(where.name, job.id)
        if await self._places.thread(_is_there, repository, where.name, job.data.get("made")):
            done = await self._places.thread(repository.remove, where.name, work)
        else:  # deleted by an attempt before, which swept or did not
            done = await self._places.thread(repository.sweep, where.name, work)
        if done.withheld:
            context.tell("info", "sweep_withheld", job=job.id, why=done.withheld)
        return Step("done", done.objects, done.objects, "objects", JobState.DONE,
                    data={"objects": done.objects, "bytes": done.bytes, "withheld": done.withheld})

    def too_late(self, job: Job, state: ControlState) -> str:
        return "what is deleted cannot be had back" if job.phase else ""

    async def cancel(self, job: Job, context: Context) -> Step:
        if job.phase:
            return await self.step(job, context)  # it is half done
        return Step("cancelled", state=JobState.CANCELLED)


class SnapshotVerify:
    """``target``: the snapshot's name; ``args``: ``url``, ``bytes_per_s``.  Fails where something is wrong with it."""

    kind = "snapshot_verify"

    def __init__(self, backups: BackupsOf, open_repository: OpenRepository) -> None:
        self._backups = backups
        self._places = Places(open_repository)

    def plan(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str] = ()) -> Plan:
        where = asked(target, args)
        return Plan(self.kind, (PlanStep("verify", target, f"read all of the snapshot {target!r} at {where.url}, and "
                                         "open every shard of it in scratch space of the nodes"),))

    async def look(self, state: ControlState, target: str, args: Mapping[str, Any]) -> tuple[str, ...]:
        where = asked(target, args)
        return await self._places.look(where.url, lambda repository: repository.load(where.name))

    async def step(self, job: Job, context: Context) -> Step:
        try:
            return await patiently(job, self._step(job, context))
        except GOES_ON:
            raise
        except Exception:
            if job.phase:
                await ignoring(self._left(job, context))
            raise

    async def _step(self, job: Job, context: Context) -> Step:
        where = asked(job.target, job.args)
        repository = await self._places.open(where.url)
        work = work_of(where.name, job.id)
        snapshot = await self._places.thread(repository.load, where.name)
        if self._places.is_due(job.id, context.clock.monotonic()):
            await ignoring(self._places.thread(repository.lease, places.READ, work))
        items = [(one.name, place) for one in snapshot.collections for place in range(len(one.shards))]
        next_, records = int(job.data.get("next", 0)), int(job.data.get("records", 0))
        problems = list(job.data.get("problems", []))
        working = Working(job, context, self._backups,
                          {key: dict(one) for key, one in job.data.get("under_way", {}).items()})
        ended = 0
        for key, note in list(working.notes.items()):
            name, place = items[int(key)]
            order = BackupOrder(job.id, VERIFY, place, where.url, where.name, where.bytes_per_s, name)
            if not note["node"]:
                note["node"] = working.pick([one.name for one in able(context.state())]) or ""
            status = await working.advance(key, order) if note["node"] else None
            if status is not None and status.state == "done":
                del working.notes[key]
                ended += 1
                records += status.records
                problems += status.problems
        while next_ < len(items) and working.room > 0 and len(working.notes) < len(able(context.state())):
            working.notes[str(next_)] = {"node": ""}
            next_ += 1
        data = {"next": next_, "records": records, "problems": problems[:PROBLEMS], "under_way": working.notes}
        if next_ < len(items) or working.notes:
            return Step("verifying", job.done + ended, len(items), "shards", data=data, again_s=STEP_S)
        await self._tidied(job, context, repository, work)
        error = f"{len(problems)} problems: {problems[0]}" if problems else ""
        return Step("done", len(items), len(items), "shards", JobState.FAILED if error else JobState.DONE, error, data)

    async def cancel(self, job: Job, context: Context) -> Step:
        await ignoring(self._left(job, context))
        return Step("cancelled", job.done, job.total, "shards", JobState.CANCELLED)

    async def _left(self, job: Job, context: Context) -> None:
        where = asked(job.target, job.args)
        await self._tidied(job, context, await self._places.open(where.url), work_of(where.name, job.id))

    async def _tidied(self, job: Job, context: Context, repository: Repository, work: str) -> None:
        await stop_everywhere(job, context, self._backups)
        await ignoring(self._places.thread(places.Lease(repository.objects, places.READ, work).release))


