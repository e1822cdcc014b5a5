"""What is no read of records: descriptions, maintenance, background jobs.

**Which replica answers**: ``describe`` and ``verify`` of each shard this node's if it has one, and ``describe`` names
it; ``jobs`` are of all nodes; ``optimize`` runs on all, for graphs and segments are each replica's own.

**What they have seen** is what the call asks for, as with reads of records.  A replica that optimizes waits first for
what the session wrote, and where the call is linearizable, for what the group had committed then; so whichever replica
describes the collection to that session afterwards has all of it sealed, if it was one of those that optimized
(``details["optimized"]``).  Those that do not serve at the time are asked again for :data:`AWAY_S` seconds, or half of
what the call has if that is less, and then left to what they do in the background; the call fails only if no replica
has done it.

Of a collection with several shards a description adds up what can be (records, bytes) and has a part for each shard;
segments say of which they are.  The digest of a verification is that of all records, however they are divided: shards'
digests are sums over their records, and so add up.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

from vecdb.cluster.control import ShardEntry, collection_of
from vecdb.core.calls import Call, Consistency
from vecdb.core.errors import DeadlineExceeded, Unavailable, Unsupported, VecdbError
from vecdb.core.query import Description
from vecdb.ports.node import Progress
from vecdb.services.coordinator.fan import Answers, Chosen, Fan
from vecdb.services.coordinator.knowledge import ASK_S, Knowledge, Shards
from vecdb.services.coordinator.shard_reads import PASSING, Reading, ShardReader
from vecdb.services.leaders import PAUSE_S
from vecdb.services.passing import copy_of, of_shard
from vecdb.services.replicas import Engine
from vecdb.services.unreachable import refuse_unreachable

T = TypeVar("T")

AT_ONCE: Final = 4
"""Shards that are optimized at the same time: a node has few threads for it."""
AWAY_S: Final = 5.0
"""How long a replica that does not serve is waited for before the others' optimizing is enough."""
DIGEST_BITS: Final = 128
_SUMMED: Final = ("disk_bytes", "memory_bytes")
_COMMON: Final = ("dim", "metric", "vector_type", "index", "indexed_fields")
_LISTED: Final = ("segments", "jobs", "damage")


class Care:
    """Belongs to one event loop."""

    def __init__(self, know: Knowledge, reader: ShardReader, fan: Fan, engine: Engine) -> None:
        self._know = know
        self._reader = reader
        self._fan = fan
        self._engine = engine

    async def describe(self, name: str, call: Call) -> Description:
        """Of the replicas that answer, which the details name with their shard and who leads."""
        reading: Reading[Description] = Reading("describe", lambda shard, mine: self._described_here(shard, mine),
                                       lambda shard, node, name, mine: self._described_there(
                                           shard, name, node.describe(shard.label, mine), mine))

        def merge(answers: Answers[Description]) -> Description:
            return _together(name, answers, self._know)

        found: Description = await self._fan.read(name, call, _all(reading), merge)
        shards = self._know.known(name)
        if shards is None:
            return found
        factor = shards.entry.replication_factor
        lack = sum(max(0, factor - len(one.desired)) for one in shards.all)
        return replace(found, details={**found.details, "replication_factor": factor,
                                       **({"replicas_lacking": lack} if lack else {})})

    async def _described_here(self, shard: ShardEntry, call: Call) -> Description:
        told = await self._engine.describe(shard.label, call)
        return await self._placed(shard, self._know.cluster.me, told, call)

    async def _described_there(self, shard: ShardEntry, node: str, asking: Awaitable[Description], call: Call
                               ) -> Description:
        return await self._placed(shard, node, await asking, call)

    async def _placed(self, shard: ShardEntry, node: str, told: Description, call: Call) -> Description:
        """With the shard and the node's replica of it, where that one has not said it."""
        about = {} if "replica" in told.details else await self._about(shard, node, call)
        return replace(told, name=shard.name, details={**told.details, **about})

    async def _about(self, shard: ShardEntry, node: str, call: Call) -> dict[str, Any]:
        know = self._know
        status = know.own.look(shard.group) if node == know.cluster.me else None
        if node != know.cluster.me:
            until = know.clock.monotonic() + ASK_S
            mine = Call(deadline=until if call.deadline is None else min(until, call.deadline))
            with suppress(VecdbError):
                status = (await know.peers.replicas(node).status([shard.group], mine)).get(shard.group)
        return {"shard": shard.group, "replica": node if status is None else status.me,
                "leader": "" if status is None else status.leader or "", "nodes": know.members(shard)}

    async def optimize(self, name: str, call: Call, on_progress: Progress | None = None) -> Description:
        """On every replica that serves, each once it has what the call must see; progress is the first one's."""
        if call.shards:
            raise Unsupported("optimize: it goes through all shards of a collection", argument="shards")
        shards = await self._know.shards(name, call)
        if len(shards.all) == 1:
            return await self._optimized(shards.all[0], call, on_progress)
        free = asyncio.Semaphore(AT_ONCE)

        async def one(shard: ShardEntry) -> Description:
            def report(stage: str, done: int, total: int) -> None:
                if on_progress is not None:
                    on_progress(f"shard {shard.group}: {stage}", done, total)

            async with free:
                return await self._optimized(shard, copy_of(call), report)

        done = await _every([one(shard) for shard in shards.all])
        call.check()
        for error in done:
            if isinstance(error, BaseException):
                raise error
        return _together(name, Answers(list(shards.all), [one for one in done if isinstance(one, Description)]),
                         self._know)

    async def _optimized(self, shard: ShardEntry, call: Call, on_progress: Progress | None) -> Description:
        know, me = self._know, self._know.cluster.me
        seen = await self._to_be_seen(shard, call)
        now = know.clock.monotonic()
        until = now + (AWAY_S if call.deadline is None else min(AWAY_S, (call.deadline - now) / 2))
        nodes = sorted(know.members(shard), key=lambda one: one != me)
        if nodes[0] == me and not know.own.serves(shard.group):
            nodes = [*nodes[1:], me]
        done = await _every([self._optimized_on(node, shard, call, seen, on_progress if at == 0 else None, until)
                             for at, node in enumerate(nodes)])
        told = {node: one for node, one in zip(nodes, done, strict=True) if isinstance(one, Description)}
        if told:
            node, first = next(iter(told.items()))
            placed = await self._placed(shard, node, first, call)
            return replace(placed, details={**placed.details, "optimized": sorted(told)})
        call.check()
        know.still(shard)
        raise done[0] if done and isinstance(done[0], BaseException) \
            else Unavailable(f"no replica of {shard.name!r} serves", collection=shard.name)

    async def _to_be_seen(self, shard: ShardEntry, call: Call) -> Call:
        """For any replica of the shard, places in its log that it must have come to; what is only known of others'
        logs, or to the leader, is found out here, once for all of them.
        """
        know, mine = self._know, of_shard(call, shard.group)
        if call.session:
            await refuse_unreachable(shard, call, know.barriers.index, ASK_S)
        if call.consistency is Consistency.LINEARIZABLE or know.inherits(shard, call):
            try:
                async with asyncio.timeout_at(know.own.until(call)):
                    log_index = await know.barriers.index(shard.group)
            except TimeoutError:
                self._reader.check_time(call)
                raise DeadlineExceeded("the deadline passed before the leader said where its log is") from None
            mine.session = (*mine.session, (shard.group, log_index))
            mine.consistency = Consistency.SESSION
        return mine

    async def _optimized_on(self, node: str, shard: ShardEntry, call: Call, seen: Call, on_progress: Progress | None,
                            until: float) -> Description:
        """By the replica of a node; one that does not serve is asked again until then, by the clock."""
        know = self._know
        while True:
            try:
                if node != know.cluster.me:
                    return await know.peers.node(node).optimize(shard.label, of_shard(seen, shard.group), on_progress)
                if not know.own.serves(shard.group):
                    raise Unavailable(f"this node has no replica of {shard.name!r} that serves", collection=shard.name)
                return await know.own.settled(shard.group, lambda: know.own.settle(shard.group, seen, AWAY_S),
                                              lambda: self._engine.optimize(shard.label, call, on_progress))
            except (*PASSING, DeadlineExceeded):
                call.check()
                know.still(shard)
                if know.clock.monotonic() + PAUSE_S[1] >= until:
                    raise
            await asyncio.sleep(know.random.uniform(*PAUSE_S))

    async def jobs(self, name: str | None, call: Call) -> list[dict[str, Any]]:
        """Of all nodes that answer in time; each says which ``node`` it is of."""
        know = self._know
        asked: list[tuple[str, str | None]] = [(node, None) for node in know.cluster.nodes]
        if name is not None:
            shards = await know.shards(name, call)
            asked = [(node, shard.label) for shard in shards.all for node in know.members(shard)]
        brief = min(know.leaders.deadline(call), know.clock.monotonic() + ASK_S)

        async def ask(node: str, label: str | None) -> list[dict[str, Any]]:
            if node == know.cluster.me:
                found = await self._engine.jobs(label, call)
            else:
                found = await know.peers.node(node).jobs(label, replace(copy_of(call), deadline=brief))
            return [{**_of_collection(job), "node": node} for job in found]

        answers = await _every([ask(node, label) for node, label in asked])
        call.check()
        return [job for jobs in answers if isinstance(jobs, list) for job in jobs]

    async def verify(self, name: str, call: Call) -> dict[str, Any]:
        reading: Reading[dict[str, Any]] = Reading("verify", lambda shard, mine: self._engine.verify(shard.label, mine),
                                          lambda shard, node, _, mine: node.verify(shard.label, mine))
        return await self._fan.read(name, call, _all(reading), _verified)


def _all(reading: Reading[T]) -> Any:
    def choose(shards: Shards) -> Chosen[T]:
        return [(shard, reading) for shard in shards.all]

    return choose


def _of_collection(job: dict[str, Any]) -> dict[str, Any]:
    """A job as users are told of it, who know nothing of labels."""
    label = job.get("collection")
    if not isinstance(label, str) or "@" not in label:
        return job
    return {**job, "collection": collection_of(label), "shard": int(label.rpartition("@")[2])}


def _together(name: str, answers: Answers[Description], know: Knowledge) -> Description:
    """Of all shards: sums, their segments, and what each says of itself."""
    records = sum(one.records for one in answers.found)
    details: dict[str, Any] = {key: value for key, value in answers.found[0].details.items() if key in _COMMON}
    details |= {"segments": [], "jobs": [], "shards": []}
    for shard, one in zip(answers.shards, answers.found, strict=True):
        part = dict(one.details)
        for key in _LISTED:
            if key in part:
                mine = part.pop(key)
                details.setdefault(key, []).extend(
                    {**entry, "shard": shard.group} for entry in (mine if isinstance(mine, list) else [mine]))
        for key in _SUMMED:
            if key in part:
                details[key] = _plus(details.get(key), part[key])
        said = {key: value for key, value in part.items() if key not in _COMMON}
        details["shards"].append({**said, "shard": shard.group, "records": one.records})
    digests = [one.details["digest"] for one in answers.found if "digest" in one.details]
    if len(digests) == len(answers.found):
        details["digest"] = _sum_of(digests)
    shards = know.known(name)
    if shards is not None:
        details |= {"shard_key": shards.entry.shard_key, "replication_factor": shards.entry.replication_factor}
    if answers.missing:
        details["missing"] = answers.missing
    return Description(name, records, details)


def _plus(a: Any, b: Any) -> Any:
    """The sum of numbers, or of dicts of them."""
    if a is None:
        return b
    if isinstance(a, dict) and isinstance(b, dict):
        return {key: _plus(a.get(key), b.get(key)) if key in a and key in b else a.get(key, b.get(key))
                for key in (*a, *(one for one in b if one not in a))}
    return a + b if isinstance(a, int | float) and isinstance(b, int | float) else a


def _verified(answers: Answers[dict[str, Any]]) -> dict[str, Any]:
    found = answers.found
    return {"records": sum(one["records"] for one in found), "log_index": max(one["log_index"] for one in found),
            "digest": _sum_of(one["digest"] for one in found), "computed": _sum_of(one["computed"] for one in found),
            "equal": all(one["equal"] for one in found),
            "shards": [{"shard": shard.group, **one} for shard, one
                       in zip(answers.shards, answers.found, strict=True)]}


def _sum_of(digests: Iterable[str]) -> str:
    return f"{sum(int(one, 16) for one in digests) % (1 << DIGEST_BITS):032x}"


async def _every(running: Sequence[Awaitable[T]]) -> list[T | BaseException]:
    """Results and errors in their order; cancelled together."""
    return await asyncio.gather(*running, return_exceptions=True)
