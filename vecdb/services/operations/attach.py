"""Attaching collections of a snapshot to this cluster by their files: no record goes through a log, none is indexed.

As with :class:`~vecdb.services.operations.restore.Restore` shards are made that nobody sees, here with the ranges that
the snapshot's have; then the nodes that are to hold replicas of a shard fetch its files, each from the place itself;
and when they have them one command in the shard's log lets every replica be what the files say
(:mod:`vecdb.shard.adoption`).  Marks are held against the snapshot's count and digest, and the collection is opened.

A node that is not heard is not waited for, as long as a majority has the files: it fetches them when it comes to the
command.  A node of a release that does not know adopting does not know fetching either, and refuses: the job then fails
before anything was proposed.  **Killed anywhere** the next step asks the nodes again, which know what they have; a
command that was proposed already does nothing.

A replica that finds, at the command, that the files are not what they should be stops there, which its status says.
Where a majority of a shard's have stopped for that, no later step could do better: the job fails.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from vecdb.cluster.control import ControlState, ShardEntry, node_of
from vecdb.core.cluster import Plan, PlanStep
from vecdb.core.errors import (
    DataCorrupted,
    DeadlineExceeded,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    VecdbError,
)
from vecdb.ports.backups import INSTALL, BackupOrder
from vecdb.ports.copies import CopyTarget
from vecdb.services.backup.local import Wanted
from vecdb.services.backup.manifest import ShardRef
from vecdb.services.operations.backing import UNHEARD_S, Asked, Working, call_of
from vecdb.services.operations.base import Context, Job
from vecdb.services.operations.restore import Restore
from vecdb.shard import codec
from vecdb.shard.adoption import Adopt

AHEAD: Final = 64
"""Shards that are fetched while the first of them is not adopted: what nodes have by then is remembered."""
_REFUSED: Final = f"{DataCorrupted.__name__}:"
_LATER: Final = (DeadlineExceeded, NotLeader, OutcomeUnknown, Overloaded, Unavailable)


class Attach(Restore):
    """``target``: the snapshot's name; ``args``: ``url``, ``collections``, ``replication_factor`` and ``bytes_per_s``
    as of a restore.
    """

    kind = "attach"
    takes = ("collections", "replication_factor")

    def plan(self, state: ControlState, target: str, args: Mapping[str, Any], away: Sequence[str] = ()) -> Plan:
        plan = super().plan(state, target, args, away)
        steps = tuple(PlanStep("attach", one.target, one.text.replace("restore", "attach", 1)) for one in plan.steps)
        return Plan(self.kind, steps, ("a collection is seen when all of it is there; replicas take its files, with "
                                       "the indexes as they are", *plan.notes[1:]))

    async def _load(self, job: Job, context: Context, where: Asked, wanted: Wanted, targets: Sequence[ShardEntry],
                    loaded: set[int]) -> dict[str, dict[str, Any]]:
        """A step for every file set on its way to a node; shards whose nodes have theirs adopt them."""
        notes = {key: dict(one) for key, one in job.data.get("under_way", {}).items()
                 if int(key.partition("/")[0]) not in loaded}
        working = Working(job, context, self._backups, notes)
        due = []
        for place in [one for one in range(len(targets)) if one not in loaded][:AHEAD]:
            target = targets[place]
            heard = [node for node in target.desired if context.heard_s(node) <= UNHEARD_S]
            for node in heard:
                await self._fetch(working, node, self._install(job, where, wanted, place, target))
            have = [node for node in target.desired if notes.get(f"{place}/{node}", {}).get("have")]
            if len(have) > len(target.desired) // 2 and set(heard) <= set(have):
                due.append(place)
        done = await asyncio.gather(*(self._adopt(context, where, wanted.collection.shards[place], targets[place])
                                      for place in due))
        for place, adopted in zip(due, done, strict=True):
            if adopted:
                loaded.add(place)
        return {key: one for key, one in notes.items() if int(key.partition("/")[0]) not in loaded}

    async def _fetch(self, working: Working, node: str, order: BackupOrder) -> None:
        """Let a node fetch, or see how far it is."""
        key = f"{order.item}/{node}"
        note = working.notes.get(key, {"node": "", "have": False})
        if note["have"] or (not note["node"] and (working.room <= 0 or working.pick([node]) is None)):
            return
        working.notes[key] = note = {**note, "node": node}
        status = await working.advance(key, order)
        if status is not None and status.state == "done":
            working.notes[key] = {**note, "node": "", "have": True}

    def _install(self, job: Job, where: Asked, wanted: Wanted, place: int, target: ShardEntry) -> BackupOrder:
        return BackupOrder(job.id, INSTALL, place, where.url, where.name, where.bytes_per_s, wanted.collection.name,
                           (CopyTarget(target.group, target.lo, target.hi, target.desired),))

    async def _adopt(self, context: Context, where: Asked, ref: ShardRef, target: ShardEntry) -> bool:
        """Whether the shard has adopted its files; else a later step tries again."""
        command = Adopt(where.url, ref.sha256, ref.lo, ref.hi - 1, ref.records, ref.digest)
        try:
            status = await context.leader(target.group)
            if status is None:
                await self._check_taken(context, where, target)
                return False
            await context.replicas(node_of(status.me)).propose(target.group, codec.encode(command), call_of(context))
        except _LATER:
            return False
        return True

    async def _check_taken(self, context: Context, where: Asked, target: ShardEntry) -> None:
        """Raise ``DataCorrupted`` where most replicas of a shard refuse its files."""

        async def refusal(node: str) -> str:
            with suppress(VecdbError):
                status = (await context.replicas(node).status([target.group], call_of(context))).get(target.group)
                if status is not None and status.state == "halted" and status.error.startswith(_REFUSED):
                    return status.error
            return ""

        told = [one for one in await asyncio.gather(*map(refusal, target.desired)) if one]
        if len(told) > len(target.desired) // 2:
            raise DataCorrupted(f"the files of shard {target.group} are refused by {len(told)} of "
                                f"{len(target.desired)} replicas: {told[0]}", path=where.url, region="backup")
