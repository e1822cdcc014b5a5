"""Comparing the replicas of shards, and building anew the one that is not as the others.

Every replica is compared at one place of its log (:mod:`vecdb.shard.marks`), and, unless only digests are asked for,
reads its records again from its disk.  Who holds something else than **most** of the replicas, or cannot read what it
remembers, is told to set its state aside and is built anew from the others (``rebuild`` of ``services/hosting``).
Where no majority holds the same nobody is touched: that is for people, and the job fails with what was found.

One replica of a shard is rebuilt at a time, and only while all others were heard: a scrub must not be what takes the
majority away.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from vecdb.cluster.control import ControlState, ShardEntry, node_of
from vecdb.core.calls import Call
from vecdb.core.cluster import JobState, Plan, PlanStep, ShardState
from vecdb.core.shards import ReplicaDigest, ShardVerification
from vecdb.services.operations.base import Context, Job, Step

VERIFY_S: Final = 3_600.0
TRIES: Final = 5
AGAIN_S: Final = 2.0
"""A shard of which some replica does not answer is asked again, and after so many times left to the next scrub."""
ASK_S: Final = 10.0

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
        past = set(job.data.get("past", ()))
        left = [one for one in _shards(state, job.target, job.args) if one.group not in past]
        rebuilt, unsure = list(job.data.get("rebuilt", ())), list(job.data.get("unsure", ()))
        if not left:
            error = "" if not unsure else f"no majority of the replicas of {', '.join(unsure)} holds the same: " \
                "compare them (vecdb shard verify --deep) and decide which is right"
            return Step("done", len(past), len(past), "shards", JobState.FAILED if error else JobState.DONE, error,
                        {"past": sorted(past), "rebuilt": rebuilt, "unsure": unsure})
        entry = left[0]
        call = Call(deadline=context.clock.monotonic() + VERIFY_S)
        found = await self._verify(entry.label, call, bool(job.args.get("deep", True)))
        tries = int(job.data.get("tries", 0)) + 1
        if not found.complete and tries < TRIES:
            return Step("comparing", len(past), len(past) + len(left), "shards", data={
                "past": sorted(past), "rebuilt": rebuilt, "unsure": unsure, "tries": tries}, again_s=AGAIN_S)
        bad = faulty(found)
        if bad is None and found.complete:
            unsure.append(entry.label)
            context.tell("error", "replicas_differ", collection=entry.name, group=entry.group, replicas=[
                f"{one.name}: {one.state}, {one.records} records, digest {one.digest}"
                + (f", {one.error}" if one.error else "") for one in found.replicas])
        if bad and found.complete:
            # The others stay as they are: one at a time, and this shard is looked at again after it.
            one = bad[0]
            await context.replicas(node_of(one.name)).rebuild(
                entry.group, Call(deadline=context.clock.monotonic() + ASK_S))
            context.tell("warning", "replica_rebuilt", collection=entry.name, group=entry.group, replica=one.name,
                         why=one.error or "its digest differs")
            rebuilt.append(one.name)
        past.add(entry.group)
        return Step("comparing", len(past), len(past) + len(left) - 1, "shards", data={
            "past": sorted(past), "rebuilt": rebuilt, "unsure": unsure}, again_s=0.05)

    async def cancel(self, job: Job, context: Context) -> Step:
        """Nothing is half done: what is being built anew goes on by itself."""
        return Step("cancelled", job.done, job.total, "shards", JobState.CANCELLED, data=job.data)


def _shards(state: ControlState, name: str, args: Mapping[str, Any]) -> list[ShardEntry]:
    only = args.get("shard")
    return [one for one in state.of(name) if one.state is ShardState.ACTIVE and only in (None, one.group)]
