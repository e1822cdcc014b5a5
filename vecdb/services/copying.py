"""Copying a shard into others while it is written: the copier, and those of a node.

A copier reads a replica of the source (:mod:`vecdb.services.following`) and proposes what it reads to the targets'
groups as pieces that are applied once (:mod:`vecdb.shard.imports`): first the records of the moment it began, some
pieces at a time on lanes of their own; then what writes the source remembers; then every command that changed the
source, one piece after another, split by hashes as routers split it, with what it did under its key.  A filter is
passed on as it is: the targets have exactly the source's records at that place, so what of these it matches in all of
them is what it matched there.  With a shard key a record may get another value in the source, and so another target
than the one that has it: the record as a whole goes to that one, and every other is told to delete what it has of the
id, of the source's hashes.

It ends in no way but by being stopped or by failing.  It fails where it cannot go on: its replica was closed, replaced
or is damaged, the source changes faster than it is copied, a target is gone, or another copier has written to it.
Whatever else a proposal comes back with is tried again with the same piece, and told meanwhile: a target whose disk is
full is waited for.  A limit that is below what changes the source is told as well, by what came in the last seconds.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from vecdb.cluster.routing import Ring, split
from vecdb.core.calls import Call
from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
)
from vecdb.core.records import DeleteIds, DeleteWhere, UpdateMetadata, UpsertBatch
from vecdb.ports.copies import NEVER, CopyOrder, CopyStatus, CopyTarget
from vecdb.ports.tell import Tell, tell_nobody
from vecdb.services.following import Follow, Taken
from vecdb.services.threads import held
from vecdb.shard import codec
from vecdb.shard.imports import Import, Memory

T = TypeVar("T")

PIECE_BYTES: Final = 1 << 20
LANES: Final = 3
"""Pieces of records on their way to one target."""
WRITES_AT_ONCE: Final = 4_096
"""Remembered writes of one piece."""
LOOK_S: Final = 0.01
"""Between two looks for changes where there was none."""
PAUSE_S: Final = 0.05
"""Before a proposal is made again."""
PROPOSE_S: Final = 10.0
WINDOW_S: Final = 10.0
"""Over which it is measured what comes."""
MOST_KEPT: Final = 256
"""Copiers of a node, those that have ended among them."""

_AGAIN: Final = (Unavailable, OutcomeUnknown, DeadlineExceeded, Overloaded, Cancelled)


class Followed(Protocol):
    """A replica that can be followed: :class:`vecdb.services.replica.ShardReplica`.  Blocks."""

    def follow(self, *, moving: bool = False) -> Follow:
        """``moving``: metadata that is replaced is told with the vectors."""
        ...


class Propose(Protocol):
    """Proposes to a group, whoever leads it."""

    async def __call__(self, target: CopyTarget, command: bytes, seconds: float) -> object:
        """Commit a command within ``seconds``; raises what a proposal raises, ``CollectionNotFound`` where the group
        is no more.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Other:
    """Hashes that are none of the targets'."""

    lo: int
    hi: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class _Share:
    """What one target gets, encoded, and how many records that are."""

    target: CopyTarget
    command: bytes
    records: int = 0


class Splitter:
    """What each target gets of a command."""

    def __init__(self, targets: Sequence[CopyTarget], shard_key: str) -> None:
        """``targets``: ranges that follow each other."""
        lo, hi = min(one.lo for one in targets), max(one.hi for one in targets)
        around = [_Other(begin, end) for begin, end in ((0, lo), (hi, HASH_SPACE)) if begin < end]
        self._ring: Ring[CopyTarget | _Other] = Ring([*targets, *around])
        self._targets = tuple(targets)
        self._shard_key = shard_key or None

    def shares(self, data: bytes) -> list[_Share]:
        """Of an encoded command; without its key, as what was done under that is told by who did it."""
        command, token = codec.decode(data)
        if not isinstance(command, UpsertBatch | DeleteIds | DeleteWhere | UpdateMetadata):
            raise InvalidArgument("command", "changes no records", got=type(command).__name__, limit="a write")
        if isinstance(command, UpsertBatch) and self._shard_key is not None and len(self._targets) > 1:
            return self._moved(command)
        parts = split(self._ring, command, self._shard_key)
        return [_Share(part.shard, data if part.command is command and token is None else codec.encode(part.command))
                for part in parts if isinstance(part.shard, CopyTarget)]

    def _moved(self, batch: UpsertBatch) -> list[_Share]:
        """Of records that may have been another target's."""
        parts = {part.shard.group: part for part in split(self._ring, batch, self._shard_key)}
        shares = []
        for target in self._targets:
            part = parts.get(target.group)
            mine = set(part.command.ids) if part is not None and isinstance(part.command, UpsertBatch) else set()
            others = tuple([one for one in batch.ids if one not in mine])
            shares += [_Share(target, codec.encode(one)) for one in (
                *([part.command] if part is not None else []), *([DeleteIds(others)] if others else []))]
        return shares

    def records(self, batch: UpsertBatch) -> list[_Share]:
        """Of records."""
        return [_Share(part.shard, codec.encode(part.command), len(part.command.ids))
                for part in split(self._ring, batch, self._shard_key)
                if isinstance(part.shard, CopyTarget) and isinstance(part.command, UpsertBatch)]


class Copier:
    """One source's, for one attempt of one job; belongs to one event loop.  ``run``: a number nobody else has."""

    def __init__(self, order: CopyOrder, run: int, source: Followed, propose: Propose, executor: Executor | None,
                 tell: Tell) -> None:
        self.order = order
        self._run = run
        self._source = source
        self._propose = propose
        self._executor = executor
        self._tell = tell
        self._splitter = Splitter(order.targets, order.shard_key)
        self._follow: Follow | None = None
        self._state = "copying"
        self._error = ""
        self._stands: dict[int, str] = {}
        """Why targets took nothing when they were last asked."""
        self._records = self._bytes = self._total = self._copied_to = self._applied = 0
        self._sequences = dict.fromkeys((one.group for one in order.targets), 0)
        self._rate = order.bytes_per_s
        self._repaced = asyncio.Event()
        self._free_at = 0.0
        self._come: deque[tuple[float, int]] = deque()
        """When it was asked how far this is, and how many bytes of changes there had been."""
        self._taken = self._passed_on = 0
        """Bytes of changes, and of the pieces that they became."""
        self._task: asyncio.Task[None] | None = None

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._live())

    async def stop(self) -> None:
        """Return once it has let go of everything."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait((self._task,))
        if self._state != "failed":
            self._state = "stopped"

    @property
    def ended(self) -> bool:
        return self._state in ("failed", "stopped")

    def pace(self, bytes_per_s: int) -> None:
        """What waits by the pace before waits by this one from here on."""
        if bytes_per_s == self._rate:
            return
        now = asyncio.get_running_loop().time()
        waits = max(0.0, self._free_at - now) * self._rate
        self._free_at = now + (waits / bytes_per_s if bytes_per_s else 0.0)
        self._rate = bytes_per_s
        self._repaced.set()
        self._repaced = asyncio.Event()

    def _behind(self) -> str:
        """That the limit is below what changes the source, where it was so for a while."""
        follow, rate, now = self._follow, self._rate, asyncio.get_running_loop().time()
        if follow is None or not rate:
            self._come.clear()
            return ""
        self._come.append((now, follow.come_bytes))
        while len(self._come) > 2 and now - self._come[1][0] >= WINDOW_S:
            self._come.popleft()
        since, before = self._come[0]
        if now - since < WINDOW_S:
            return ""
        come = (follow.come_bytes - before) / (now - since) * (self._passed_on / self._taken if self._taken else 1.0)
        return f"writes come at {come:,.0f} bytes/s, the limit is {rate:,}: {NEVER}" if come >= rate else ""

    def status(self) -> CopyStatus:
        order, follow = self.order, self._follow
        applied = self._applied if follow is None else follow.seen
        return CopyStatus(order.job, order.fence, order.source, self._state, self._records, self._total, self._bytes,
                          self._copied_to, applied, self._error or next(iter(self._stands.values()), "")
                          or self._behind())

    async def _live(self) -> None:
        try:
            self._follow = follow = await held(self._executor, Follow.close, self._begin)
            self._total, self._copied_to = follow.records, 0
            await self._copy_records(follow)
            await self._copy_memories(follow)
            self._copied_to, self._state = follow.log_index, "following"
            while True:
                await self._copy_changes(follow)
        except asyncio.CancelledError:
            self._state = "stopped"
            raise
        except Exception as error:  # whatever it is, the job finds it in the status
            self._state = "failed"
            self._error = f"{type(error).__name__}: {getattr(error, 'message', error)}"[:1_000]
            self._tell("warning", "copy_failed", job=self.order.job, source=self.order.source, error=self._error)
        finally:
            await self._let_go()

    def _begin(self) -> Follow:
        return self._source.follow(moving=bool(self.order.shard_key) and len(self.order.targets) > 1)

    async def _let_go(self) -> None:
        follow, self._follow = self._follow, None
        if follow is not None:
            self._applied = follow.seen
            await asyncio.shield(asyncio.ensure_future(self._thread(follow.close)))

    async def _thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *args)

    # --- phases -----------------------------------------------------------------------------------

    async def _copy_records(self, follow: Follow) -> None:
        """The records of the moment, each target's on lanes 1 to :data:`LANES`."""
        targets = self.order.targets
        queues: dict[int, asyncio.Queue[_Share | None]] = {one.group: asyncio.Queue(1) for one in targets}

        async def carry(target: CopyTarget, lane: int) -> None:
            sequence, queue = 0, queues[target.group]
            while (share := await queue.get()) is not None:
                sequence += 1
                await self._send(target, lane, sequence, (share.command,))
                self._records += share.records

        async def read() -> None:
            chunks = follow.chunks(PIECE_BYTES * len(targets))
            while shares := await self._thread(self._next, chunks):
                for share in shares:
                    await queues[share.target.group].put(share)
            for queue in queues.values():
                for _ in range(LANES):
                    await queue.put(None)

        await _all([read(), *(carry(target, lane) for target in targets for lane in range(1, LANES + 1))])

    def _next(self, chunks: Iterator[UpsertBatch]) -> list[_Share]:
        """Empty only at the end."""
        for chunk in chunks:
            if shares := self._splitter.records(chunk):
                return shares
        return []

    async def _copy_memories(self, follow: Follow) -> None:
        """What writes the source remembers, to every target: nobody knows which of them were for which."""
        order = self.order
        # Be there nothing to remember: from then on the targets know that they are filled, and by what shard key.
        await _all([self._next_piece(target, ()) for target in order.targets])
        for memory in await self._thread(follow.memories, order.source, order.lo, order.hi):
            for at in range(0, len(memory.writes), WRITES_AT_ONCE):
                part = Memory(memory.origin, memory.writes[at:at + WRITES_AT_ONCE])
                await _all([self._next_piece(target, (), (part,)) for target in order.targets])

    async def _copy_changes(self, follow: Follow) -> None:
        """What changed the source, as far as it is known, in order."""
        taken, shares = await self._thread(self._take, follow)
        order = self.order
        writes = tuple(one.write.within(order.lo, order.hi - 1) for one in taken.changes if one.write is not None)
        memories = (Memory(order.source, writes),) if writes else ()
        before = self._bytes
        await _all([self._next_piece(target, tuple(share.command for share in shares if share.target is target),
                                     memories)
                    for target in order.targets if memories or any(share.target is target for share in shares)])
        self._copied_to = taken.upto
        self._taken += sum(one.size for one in taken.changes)
        self._passed_on += self._bytes - before
        if not taken.changes:
            await asyncio.sleep(LOOK_S)

    def _take(self, follow: Follow) -> tuple[Taken, list[_Share]]:
        taken = follow.take(PIECE_BYTES)
        return taken, [share for one in taken.changes for command in one.commands
                       for share in self._splitter.shares(command)]

    # --- pieces -----------------------------------------------------------------------------------

    async def _next_piece(self, target: CopyTarget, commands: tuple[bytes, ...],
                          memories: tuple[Memory, ...] = ()) -> None:
        """The next of lane 0."""
        self._sequences[target.group] += 1
        await self._send(target, 0, self._sequences[target.group], commands, memories)

    async def _send(self, target: CopyTarget, lane: int, sequence: int, commands: tuple[bytes, ...],
                    memories: tuple[Memory, ...] = ()) -> None:
        """Return once a piece is at its target."""
        order = self.order
        data = codec.encode(Import(order.source, self._run, lane, sequence, order.lo, order.hi - 1, order.shard_key,
                                   commands, memories))
        await self._paced(len(data))
        while True:
            try:
                await self._propose(target, data, PROPOSE_S)
                self._bytes += len(data)
                self._stands.pop(target.group, None)
                return
            except _AGAIN as error:
                self._stands[target.group] = f"shard {target.group} takes nothing: {error.message}"[:1_000]
            await asyncio.sleep(PAUSE_S)

    async def _paced(self, size: int) -> None:
        """Wait for this piece's turn."""
        if not self._rate:
            return
        now = asyncio.get_running_loop().time()
        begin = max(now, self._free_at)
        self._free_at = begin + size / self._rate
        ahead = (begin - now) * self._rate
        while ahead > 0 and self._rate:
            rate, repaced, now = self._rate, self._repaced, asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(ahead / rate):
                    await repaced.wait()
            except TimeoutError:
                return
            ahead -= (asyncio.get_running_loop().time() - now) * rate


async def _all(running: Sequence[Awaitable[None]]) -> None:
    """Return once all have ended; the first error ends the others."""
    tasks = [asyncio.ensure_future(one) for one in running]
    if not tasks:
        return
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class Copying:
    """The copiers of a node, as :class:`~vecdb.ports.copies.Copies`; belongs to one event loop.

    ``replica``: this node's of a group, or ``Unavailable``; ``draw``: a number nobody has drawn.
    """

    def __init__(self, replica: Callable[[int], Followed], propose: Propose, *, draw: Callable[[], int],
                 executor: Executor | None = None, tell: Tell = tell_nobody) -> None:
        self._replica = replica
        self._propose = propose
        self._draw = draw
        self._executor = executor
        self._tell = tell
        self._copiers: dict[tuple[int, int], Copier] = {}

    async def start(self, order: CopyOrder, call: Call) -> CopyStatus:
        key = order.job, order.source
        known = self._copiers.get(key)
        if known is not None:
            if order.fence < known.order.fence:
                raise InvalidArgument("fence", f"attempt {order.fence} of job {order.job} was given up",
                                      got=order.fence, limit=known.order.fence)
            if order.fence == known.order.fence:
                known.pace(order.bytes_per_s)
                return known.status()
            del self._copiers[key]
            await known.stop()
            if key in self._copiers:  # somebody else was quicker
                return await self.start(order, call)
        copier = Copier(order, self._draw(), self._replica(order.source), self._propose, self._executor, self._tell)
        self._make_room()
        self._copiers[key] = copier
        copier.start()
        return copier.status()

    def _make_room(self) -> None:
        for key in [key for key, one in self._copiers.items() if one.ended]:
            if len(self._copiers) >= MOST_KEPT:
                del self._copiers[key]
        if len(self._copiers) >= MOST_KEPT:
            raise Overloaded(f"{MOST_KEPT} shards are copied by this node", got=MOST_KEPT, limit=MOST_KEPT)

    async def status(self, job: int, source: int, call: Call) -> CopyStatus | None:
        found = self._copiers.get((job, source))
        return None if found is None else found.status()

    async def stop(self, job: int, source: int, call: Call) -> None:
        found = self._copiers.pop((job, source), None)
        if found is not None:
            await found.stop()

    async def close(self) -> None:
        """Stop them all."""
        copiers, self._copiers = list(self._copiers.values()), {}
        for one in copiers:
            await one.stop()
