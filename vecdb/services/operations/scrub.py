"""Comparing the replicas of shards, and building anew the one that is not as the others.

Every replica is compared at one place of its log (:mod:`vecdb.shard.marks`), and, unless only digests are asked for,
reads its records again, and from its disk every file of its sealed segments (:mod:`vecdb.services.rereading`; an index
that is damaged it makes anew by itself).  Who holds something else than **most** of the replicas, or cannot read what
it remembers, is told to set its state aside and is built anew from the others (``rebuild`` of ``services/hosting``).
Where no majority holds the same nobody is touched: that is for people, and the job fails with what was found.

One replica of a shard is rebuilt at a time, and only while all others were heard: a scrub must not be what takes the
majority away.  And what a replica *says* of its bytes, where it holds what the others do as far as it remembers, is
asked twice: a medium may fail to give them once.  A disk that refuses for another reason, a node that is busy or stops
say nothing of records.  Such a replica is asked again, and in the end the job says of whom it does not know.

**Cancelled** it ends within a second or two, and so does the reading of records on all nodes, which may take hours.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from vecdb.cluster.control import ControlState, ShardEntry, node_of
from vecdb.core.calls import Call
from vecdb.core.cluster import JobState, Plan, PlanStep, ShardState
from vecdb.core.errors import Cancelled
from vecdb.core.shards import UNCHECKED, ReplicaDigest, ShardVerification
from vecdb.services.operations.base import Context, Job, Step, is_cancelled

VERIFY_S: Final = 3_600.0
TRIES: Final = 5
AGAIN_S: Final = 2.0
"""A shard of which some replica does not answer is asked again, and after so many times left to the next scrub."""
ASK_S: Final = 10.0
LOOK_S: Final = 1.0
"""How often it is looked, while nodes read, whether the job was cancelled."""
NAMED: Final = 8

Verify = Callable[[str, Call, bool], Awaitable[ShardVerification]]
"""``(label, call, deep)``."""


def faulty(found: ShardVerification) -> list[ReplicaDigest] | None:
    """Replicas that should be built anew; None where no majority holds the same, so that nobody can say which."""
    good = [one for one in found.replicas if one.state == "ok" and one.digest]
    held = Counter((one.digest, one.records) for one in good)
    if not held:
        return None
    what, count = held.most_common(1)[0]
    if 2 * count <= len(found.replicas):
        return None
    return [one for one in found.replicas
            if one.state == "damaged" or (one.state == "ok" and (one.digest, one.records) != what)]


class Scrub:
    """``target``: a collection; ``args``: ``deep`` (True: read every record again), ``shard`` (that one alone)."""

    kind = "scrub"

    def __init__(self, verify: Verify) -> None:
        self._verify = verify

    def plan(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str] = ()) -> Plan:
        """One step a shard; ``CollectionNotFound``."""
        steps = [PlanStep("compare", str(one.group), f"compare the replicas of shard {one.group} of {target!r} on "
                          f"{', '.join(one.desired)}, and build anew one that differs")
                 for one in _shards(state, target, args)]
        return Plan(self.kind, tuple(steps))

    async def step(self, job: Job, context: Context) -> Step:
        state = context.state()
        if job.target not in state.collections:
            return Step("done", job.done, job.total, "shards", JobState.DONE)
        notes = {key: list(job.data.get(key, ())) for key in ("past", "rebuilt", "unsure", "unchecked")}
        left = [one for one in _shards(state, job.target, job.args) if one.group not in notes["past"]]
        if not left:
            return _ended(notes)
        entry, total = left[0], len(notes["past"]) + len(left)
        found = await self._compared(job, context, entry)
        tries, suspect = int(job.data.get("tries", 0)) + 1, str(job.data.get("suspect", ""))
        bad = faulty(found)
        damaged = bad[0].name if bad and bad[0].error and found.complete else ""
        sure = found.complete and damaged in ("", suspect)
        if not sure and tries < TRIES:
            waits = next((one.error for one in found.replicas if one.error and one.state == UNCHECKED), "") \
                if not found.log_index else ""
            return Step("comparing", len(notes["past"]), total, "shards", again_s=AGAIN_S, data={
                **notes, "tries": tries, "suspect": damaged or suspect},
                error=waits and f"shard {entry.group} of {entry.name!r} is asked again, {TRIES - tries} times: {waits}")
        if not sure:
            notes["unchecked"] += _unchecked(entry, found)
        elif bad is None:
            notes["unsure"].append(entry.label)
            context.tell("error", "replicas_differ", collection=entry.name, group=entry.group, replicas=[
                f"{one.name}: {one.state}, {one.records} records, digest {one.digest}"
                + (f", {one.error}" if one.error else "") for one in found.replicas])
        elif bad:
            # The others stay as they are: one at a time, and this shard is looked at again after it.
            one = bad[0]
            await context.replicas(node_of(one.name)).rebuild(
                entry.group, Call(deadline=context.clock.monotonic() + ASK_S))
            context.tell("warning", "replica_rebuilt", collection=entry.name, group=entry.group, replica=one.name,
                         why=one.error or "its digest differs")
            notes["rebuilt"].append(one.name)
        notes["past"] = sorted({*notes["past"], entry.group})
        return Step("comparing", len(notes["past"]), total, "shards", data=notes, again_s=0.05)

    async def _compared(self, job: Job, context: Context, entry: ShardEntry) -> ShardVerification:
        """Raises ``Cancelled`` once the job is to end."""
        call = Call(deadline=context.clock.monotonic() + VERIFY_S)
        asking = asyncio.ensure_future(self._verify(entry.label, call, bool(job.args.get("deep", True))))
        try:
            while not asking.done():
                await asyncio.wait([asking], timeout=LOOK_S)
                if is_cancelled(job, context.state()):
                    raise Cancelled("the job is being cancelled")
        finally:
            if not asking.done():
                asking.cancel()
                await asyncio.wait([asking], timeout=LOOK_S)
        return asking.result()

    async def cancel(self, job: Job, context: Context) -> Step:
        """Nothing is half done: what is being built anew goes on by itself."""
        return Step("cancelled", job.done, job.total, "shards", JobState.CANCELLED, data=job.data)


def _unchecked(entry: ShardEntry, found: ShardVerification) -> list[str]:
    """Which replicas of a shard nothing is known of, and which are not built anew for that."""
    told = [f"shard {entry.group} on {one.name}: {one.error or one.state}" for one in found.replicas if not one.digest]
    return told + [f"shard {entry.group} on {one.name}, which is built anew once all others are heard and it says the "
                   f"same twice: {one.error or one.state}" for one in found.replicas if one.state == "damaged"]


def _ended(notes: Mapping[str, Sequence[Any]]) -> Step:
    unsure, unchecked, count = notes["unsure"], notes["unchecked"], len(notes["past"])
    error = "" if not unsure else f"no majority of the replicas of {', '.join(unsure)} holds the same: compare them " \
        "(vecdb shard verify --deep) and decide which is right"
    if unchecked:
        more = f"; and {len(unchecked) - NAMED} more" if len(unchecked) > NAMED else ""
        error += f"{'; ' if error else ''}not all could be checked, which is left to the next scrub: " \
            f"{'; '.join(unchecked[:NAMED])}{more}"
    return Step("done", count, count, "shards", JobState.FAILED if unsure else JobState.DONE, error, notes)


def _shards(state: ControlState, name: str, args: Mapping[str, Any]) -> list[ShardEntry]:
    only = args.get("shard")
    return [one for one in state.of(name) if one.state is ShardState.ACTIVE and only in (None, one.group)]
