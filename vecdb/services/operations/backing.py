"""What operations on snapshots have in common: the place, and shards that are worked at on many nodes, some at a time.

The steps of these jobs remember little: which item is on which node, and for how long nothing that can be asked has to
be remembered.  A node that does not answer any more loses its item to another one; that both may be at it does no harm
(:mod:`vecdb.services.backup`).
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from vecdb.cluster.control import ControlState, NodeEntry, node_of
from vecdb.core.backups import check_snapshot_name, parse_place
from vecdb.core.calls import Call
from vecdb.core.cluster import NodeState
from vecdb.core.errors import InvalidArgument, StorageError, Unavailable, VecdbError
from vecdb.ports.backups import BackupOrder, Backups, BackupStatus
from vecdb.services.backup.repository import Repository
from vecdb.services.backup.work import OpenRepository
from vecdb.services.operations.base import Context, Job, Step

T = TypeVar("T")
AT_ONCE: Final = 16
"""Shards of one job that are worked at."""
ON_A_NODE: Final = 1
ASK_S: Final = 10.0
LOOK_S: Final = 8.0
"""How long a plan waits for a place."""
UNHEARD_S: Final = 5.0
MOST_FAILURES: Final = 8
"""Of one shard, of those that pass, one after another: then the job has failed."""
RENEW_S: Final = 30.0
STEP_S: Final = 0.5
THREADS: Final = 4
"""At places, for each kind of job."""

BackupsOf = Callable[[str], Backups]


@dataclass(frozen=True, slots=True)
class Asked:
    """What every such job says: where, and which snapshot."""

    url: str
    name: str
    bytes_per_s: int


def asked(target: str, args: Mapping[str, Any], *known: str) -> Asked:
    """Raises ``InvalidArgument``; ``known``: further arguments that the job takes."""
    for one in args:
        if one not in ("url", "bytes_per_s", *known):
            raise InvalidArgument("args", "are not what this job takes", got=one[:40],
                                  limit=sorted(("url", "bytes_per_s", *known)))
    rate = args.get("bytes_per_s", 0)
    if isinstance(rate, bool) or not isinstance(rate, int) or rate < 0:
        raise InvalidArgument("bytes_per_s", "must be a whole number", got=str(rate)[:40], limit="0 or more")
    return Asked(parse_place(args.get("url")).url, check_snapshot_name(target), rate)


def names_in(args: Mapping[str, Any], name: str) -> tuple[str, ...] | None:
    """A list of names, None where it is not said."""
    value = args.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise InvalidArgument(name, "must be a list of names", got=type(value).__name__, limit="a list")
    return tuple(dict.fromkeys(value))


class Places:
    """Repositories by URL, opened once; what blocks runs in threads of their own: a place may hang for a minute, and
    the threads of the loop are those that split and write records.
    """

    def __init__(self, open_repository: OpenRepository) -> None:
        self._open = open_repository
        self._threads = ThreadPoolExecutor(THREADS, "places")
        self._known: dict[str, Repository] = {}
        self._renewed: dict[int, float] = {}

    async def open(self, url: str, *, create: bool = False) -> Repository:
        if url not in self._known:
            self._known[url] = await self.thread(self._open, url, create=create)
        elif create:
            await self.thread(self._open, url, create=True)
        return self._known[url]

    async def thread(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **named))

    async def look(self, url: str, find: Callable[[Repository], object], *, makes: bool = False) -> tuple[str, ...]:
        """Raises what ``find`` says of the place, as the job would; where it is not reached now says so in a note for
        the plan.  A folder that is not there is made by a job that ``makes`` one, and is an ``InvalidArgument`` for one
        that reads: who is asked, the leader of the control group, is who would begin the job there.
        """
        try:
            async with asyncio.timeout(LOOK_S):
                await self.thread(find, await self.open(url))
        except TimeoutError:
            return (f"{url} was not looked at: it does not answer",)
        except (StorageError, Unavailable) as error:
            if error.fields.get("missing") and makes:
                return (f"the folder of {url} is made: it is not there yet",)
            if error.fields.get("missing"):
                raise InvalidArgument("url", f"{error.message} on the node that leads the control group, which reads "
                                      "it: mount it there, and on the nodes that hold replicas", got=url) from None
            return (f"{url} was not looked at: {error.message}",)
        return ()

    def is_due(self, job: int, now: float) -> bool:
        """Whether the lease of a job is to be renewed, which is noted."""
        if now - self._renewed.get(job, now - 2 * RENEW_S) < RENEW_S:
            return False
        self._renewed = {one: at for one, at in self._renewed.items() if now - at < 100 * RENEW_S} | {job: now}
        return True


@dataclass(slots=True)
class Working:
    """Items of a job under way.  ``notes``: as the job has them: ``node``, ``failed`` times, the nodes to ``avoid`` it
    has failed on, and what the item adds.
    """

    job: Job
    context: Context
    backups: BackupsOf
    notes: dict[str, dict[str, Any]]

    async def advance(self, key: str, order: BackupOrder) -> BackupStatus | None:
        """How far an item is that is on a node; None: it is to be put on another one."""
        note = self.notes[key]
        node = str(note["node"])
        try:
            status = await self.backups(node).start(order, call_of(self.context))
        except VecdbError as error:
            if self.context.heard_s(node) <= UNHEARD_S and not isinstance(error, Unavailable):
                raise
            self._note_failure(key, error.message)
            return None
        if status.state != "failed":
            if status.done > int(note.get("done", 0)):
                note["failed"] = 0
            note["done"] = status.done
            return status
        if not status.passes:
            raise InvalidArgument("snapshot", f"{order.kind} of shard {order.item} on {node}: {status.error}",
                                  got=order.item)
        self._note_failure(key, status.error)
        return None

    def _note_failure(self, key: str, error: str) -> None:
        note = self.notes[key]
        note["failed"] = int(note.get("failed", 0)) + 1
        note["avoid"] = [*note.get("avoid", []), note["node"]]
        note["node"] = ""
        if note["failed"] >= MOST_FAILURES:
            raise InvalidArgument("snapshot", f"shard {key} was tried {MOST_FAILURES} times: {error}", got=key)
        self.context.tell("info", "backup_work_waits", job=self.job.id, item=key, error=error[:300])

    @property
    def room(self) -> int:
        return AT_ONCE - sum(bool(one["node"]) for one in self.notes.values())

    def pick(self, wishes: Sequence[str]) -> str | None:
        """The first of these nodes with the least to do that has room for one more."""
        busy = Counter(str(one["node"]) for one in self.notes.values())
        free = [node for node in wishes if busy[node] < ON_A_NODE and self.context.heard_s(node) <= UNHEARD_S]
        return free[0] if free else None


def call_of(context: Context) -> Call:
    """For something that is asked of a node."""
    return Call(deadline=context.clock.monotonic() + ASK_S)


async def stop_everywhere(job: Job, context: Context, backups: BackupsOf) -> None:
    """As far as nodes answer; what is left of a job that has ended a node deletes with the next one."""

    async def stop(node: str) -> None:
        with suppress(VecdbError):
            await backups(node).stop(job.id, call_of(context))

    await asyncio.gather(*(stop(name) for name, node in context.state().nodes.items()
                           if node.state is not NodeState.LEFT and context.heard_s(name) <= UNHEARD_S))


def able(state: ControlState) -> list[NodeEntry]:
    """Nodes that hold replicas, or may."""
    return [one for one in state.nodes.values() if one.state is not NodeState.LEFT and one.role.holds]


async def givers(context: Context, group: int, before: str, avoid: Sequence[str]) -> list[str]:
    """Nodes to save a shard from: who gave it the last time, since his files are there already; else followers; who
    leads it where nobody else can.  It is better to wait for these than to take another.
    """
    status = await context.leader(group)
    if status is None:
        raise Unavailable(f"shard {group} has no leader", group=group)
    heard = [node for node in map(node_of, status.voters) if context.heard_s(node) <= UNHEARD_S]
    able = [node for node in heard if node not in avoid]
    if before in able:
        return [before]
    followers = [node for node in able if node != node_of(status.me)]
    return followers or able or sorted(heard, key=avoid.count)


async def patiently(job: Job, step: Awaitable[Step]) -> Step:
    """A step whose place may not answer for a while: but for the first, which is to tell that it is a wrong one."""
    try:
        return await step
    except StorageError as error:
        if not job.phase:
            raise
        raise Unavailable(error.message, path=error.fields.get("path", "")) from error


async def ignoring(work: Awaitable[object]) -> None:
    """What is tidied up, and may be left."""
    with suppress(VecdbError):
        await work
