"""What a node does for snapshots of its cluster: saves shards it holds, loads shards into groups, verifies shards.

A shard that is saved is noted at the place itself (``jobs/WORK/GROUP.json``), where whoever runs the job finds it,
whatever became of the process that saved it.  A shard that is loaded is fetched into a folder first, which is found
again after a restart; then its batches go to the groups as pieces on :data:`LANES` lanes, batch ``n`` on lane
``n % LANES`` with the number ``n // LANES``: the same for everybody who ever loads it.
"""

import asyncio
import hashlib
import shutil
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import orjson

from vecdb.cluster.control import ControlState
from vecdb.core.calls import Call
from vecdb.core.errors import (
    Cancelled,
    CollectionNotFound,
    DataCorrupted,
    DeadlineExceeded,
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    StorageError,
    Unavailable,
    VecdbError,
)
from vecdb.ports.backups import INSTALL, LOAD, SAVE, VERIFY, BackupOrder, BackupStatus
from vecdb.ports.clock import Clock
from vecdb.ports.copies import CopyTarget
from vecdb.ports.stores import OpenStore
from vecdb.ports.tell import Tell, tell_nobody
from vecdb.services.backup.fetching import fetch_shard, fetch_state
from vecdb.services.backup.manifest import CollectionManifest, ShardRef
from vecdb.services.backup.reading import Batch, ShardReader, check_state, is_read
from vecdb.services.backup.repository import Repository
from vecdb.services.backup.saving import ShardFacts, Watch, save_shard
from vecdb.services.backup.verifying import verify_shard
from vecdb.services.copying import Propose, Splitter
from vecdb.services.snapshots import ShardSnapshot
from vecdb.services.threads import held
from vecdb.shard import codec
from vecdb.shard.imports import Import

T = TypeVar("T")
LANES: Final = 3
"""Part of what makes a piece the same whoever sends it: change it only with a format."""
SOURCES: Final = 1 << 62
"""From here on numbers are of shards of snapshots, and of no groups."""
WORKERS: Final = 4
MOST_KEPT: Final = 256
PROPOSE_S: Final = 10.0
PAUSE_S: Final = 0.05
BEHIND_S: Final = 30.0
"""How long a replica that is saved may take to apply what others have."""
PLAN: Final = "plan"
_AGAIN: Final = (Unavailable, OutcomeUnknown, DeadlineExceeded, Overloaded, Cancelled)
_PASSES: Final = (*_AGAIN, StorageError)


def work_of(snapshot: str, job: int) -> str:
    return f"{snapshot}.{job}"


def note_key(work: str, name: str | int) -> str:
    """Where what is noted of some work stands."""
    return f"jobs/{work}/{name}.json"


class Held(Protocol):
    """A replica: :class:`vecdb.services.replica.ShardReplica`.  Blocks."""

    def snapshot(self) -> ShardSnapshot: ...

    def gather(self, sha256: str, fetch: Callable[[Path], None]) -> Path: ...


class OpenRepository(Protocol):
    def __call__(self, url: str, *, create: bool = False) -> Repository:
        """Blocks; raises what opening raises, ``InvalidArgument`` for a place that this node must not use."""
        ...


class BackupWork:
    """Meets :class:`vecdb.ports.backups.Backups`; belongs to one event loop.

    ``replica``: this node's of a group, or ``Unavailable``; ``folder``: for what is fetched;
    ``caught_up(group, seconds)`` returns once this node's replica has applied what was committed at the call, and
    raises ``Unavailable`` where that takes longer.
    """

    def __init__(self, me: str, state: Callable[[], ControlState], replica: Callable[[int], Held], propose: Propose,
                 open_repository: OpenRepository, open_store: OpenStore, folder: Path, clock: Clock,
                 caught_up: Callable[[int, float], Awaitable[None]], *,
                 executor: Executor | None = None, tell: Tell = tell_nobody) -> None:
        self.me = me
        self.state = state
        self.replica = replica
        self.propose = propose
        self.open_repository = open_repository
        self.open_store = open_store
        self.folder = folder
        self.clock = clock
        self.caught_up = caught_up
        self.tell = tell
        self._executor = executor or ThreadPoolExecutor(WORKERS, "backups")
        self._tasks: dict[tuple[int, str, str, int], _Task] = {}

    async def start(self, order: BackupOrder, call: Call) -> BackupStatus:
        key = order.job, order.kind, order.collection, order.item
        known = self._tasks.get(key)
        if known is not None:
            status = known.status()
            if status.state == "failed":  # told once: asked again it is another attempt
                del self._tasks[key]
            return status
        kind = {SAVE: _Save, LOAD: _Load, VERIFY: _Verify, INSTALL: _Install}.get(order.kind)
        if kind is None:
            raise InvalidArgument("kind", "is nothing that is done for snapshots", got=order.kind[:40],
                                  limit=[SAVE, LOAD, VERIFY, INSTALL])
        for ended in [one for one, task in self._tasks.items() if task.ended][: max(0, len(self._tasks) - MOST_KEPT)]:
            del self._tasks[ended]
        task = self._tasks[key] = kind(self, order)
        task.start()  # nothing is waited for before: who asks may go, and the next one would find what never began
        return task.status()

    async def stop(self, job: int, call: Call) -> None:
        gone = [key for key in self._tasks if key[0] == job]
        await asyncio.gather(*(self._tasks.pop(key).stop() for key in gone))
        await self.thread(_forget_folders, self.folder, f"{job}-")

    async def close(self) -> None:
        """End everything; what was fetched stays."""
        tasks, self._tasks = list(self._tasks.values()), {}
        await asyncio.gather(*(task.stop() for task in tasks))
        await asyncio.get_running_loop().run_in_executor(None, partial(self._executor.shutdown, cancel_futures=True))

    async def thread(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, partial(work, *args, **named))

    async def held(self, let_go: Callable[[T], object], take: Callable[..., T], *args: Any) -> T:
        """:func:`~vecdb.services.threads.held`."""
        return await held(self._executor, let_go, take, *args)


def _forget_ended(folder: Path, state: ControlState) -> None:
    """What was fetched for jobs that ended while this node was away."""
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            number = path.name.partition("-")[0]
            job = state.jobs.get(int(number)) if number.isdecimal() else None
            if number.isdecimal() and int(number) < state.next_job and (job is None or job.state.ended):
                shutil.rmtree(path, ignore_errors=True)


def _forget_folders(folder: Path, prefix: str) -> None:
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(prefix):
                shutil.rmtree(path, ignore_errors=True)


class _Task:
    """One order's.  ``passes``: errors after which another attempt, or another node, may succeed."""

    passes: tuple[type[VecdbError], ...] = _PASSES

    def __init__(self, work: BackupWork, order: BackupOrder) -> None:
        self.work = work
        self.order = order
        self.watch = Watch(work.clock, order.bytes_per_s or None)
        self.records = 0
        self.after, self.batches = order.after, order.batches
        self.problems: tuple[str, ...] = ()
        self._error: BaseException | None = None
        self._done = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._live())

    async def stop(self) -> None:
        self.watch.stop()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait((self._task,))

    @property
    def ended(self) -> bool:
        return self._task is not None and self._task.done()

    def status(self) -> BackupStatus:
        watch, error = self.watch, self._error
        text = "" if error is None else f"{type(error).__name__}: {getattr(error, 'message', error)}"[:1_000]
        state = "done" if self._done else "running" if error is None else "failed"
        return BackupStatus(state, watch.done, watch.total, watch.moved, self.records, self.after, self.batches, text,
                            isinstance(error, self.passes), self.problems)

    async def _live(self) -> None:
        try:
            await self.work.thread(_forget_ended, self.work.folder, self.work.state())
            await self.run()
            self._done = True
        except asyncio.CancelledError:
            self._error = Cancelled("it was stopped")
            raise
        except Exception as error:  # whatever it is, the job finds it in the status
            self._error = error
            self.work.tell("warning", "backup_work_failed", job=self.order.job, kind=self.order.kind,
                           item=self.order.item, error=self.status().error)

    async def run(self) -> None:
        raise AssertionError("a kind of work")

    async def _open(self) -> Repository:
        return await self.work.thread(self.work.open_repository, self.order.url)

    async def _source(self) -> tuple[Repository, CollectionManifest, ShardRef]:
        """What of the snapshot the order is about."""
        repository = await self._open()
        snapshot = await self.work.thread(repository.load, self.order.snapshot)
        for collection in snapshot.collections:
            if collection.name == self.order.collection and self.order.item < len(collection.shards):
                return repository, collection, collection.shards[self.order.item]
        raise InvalidArgument("item", f"the snapshot {snapshot.name!r} has no such shard", got=self.order.item)

    def _folder(self) -> Path:
        order = self.order
        named = hashlib.sha256(f"{order.url} {order.snapshot} {order.collection}".encode()).hexdigest()[:16]
        return self.work.folder / f"{order.job}-{named}-{order.kind}-{order.item}"


class _Save(_Task):
    # Damage is this replica's; of a shard that is no more there will be no order.
    passes = (*_PASSES, DataCorrupted, CollectionNotFound)

    async def run(self) -> None:
        work, order = self.work, self.order
        entry = work.state().shards.get(order.item)
        if entry is None:
            raise Unavailable(f"this node knows of no group {order.item}", group=order.item)
        repository = await self._open()
        key = work_of(order.snapshot, order.job)
        if await work.thread(repository.objects.get, note_key(key, PLAN)) is None:
            raise InvalidArgument("url", f"on {work.me} {order.url} is another place than where this snapshot is made: "
                                  "a folder must be one that all nodes have mounted", got=order.url, node=work.me)
        await work.caught_up(order.item, BEHIND_S)
        held = await work.held(ShardSnapshot.release, work.replica(order.item).snapshot)
        try:
            facts = ShardFacts(entry.schema, entry.group, entry.lo, entry.hi, held.records, held.digest, work.me)
            ref = await work.thread(save_shard, repository, held, facts, self.watch)
        finally:
            await asyncio.shield(asyncio.ensure_future(work.thread(held.release)))
        self.records = ref.records
        await work.thread(repository.objects.put, note_key(key, order.item), orjson.dumps(ref.to_json()))


class _Verify(_Task):
    async def run(self) -> None:
        repository, collection, ref = await self._source()
        self.records, told = await self.work.thread(verify_shard, repository, collection, ref, self._folder(),
                                                    self.work.open_store, self.watch, {})
        self.problems = tuple(told)


class _Install(_Task):
    """Only the fetching; when it becomes the replica's state, the log says."""

    async def run(self) -> None:
        repository, collection, ref = await self._source()
        if not self.order.targets:
            raise InvalidArgument("targets", "names no shard to fetch for", got=0, limit=1)
        replica = self.work.replica(self.order.targets[0].group)

        def fetch(folder: Path) -> None:
            fetch_state(repository, collection.schema, ref, folder, self.watch)

        folder = await self.work.thread(replica.gather, ref.sha256, fetch)
        await self.work.thread(check_state, collection.schema, ref, folder, self.work.open_store)
        self.records = ref.records


class _Load(_Task):
    async def run(self) -> None:
        work, folder = self.work, self._folder()
        repository, collection, ref = await self._source()
        manifest = await work.thread(repository.shard, ref)
        await work.thread(fetch_shard, repository, manifest, folder, self.watch, wanted=is_read)
        reader = await work.held(ShardReader.close, ShardReader, manifest.schema, folder, work.open_store)
        try:
            await self._send_all(reader.batches(self.after), ref, collection.shard_key or "")
        finally:
            await asyncio.shield(asyncio.ensure_future(work.thread(reader.close)))
        await work.thread(shutil.rmtree, folder, ignore_errors=True)

    async def _send_all(self, batches: Iterator[Batch], ref: ShardRef, shard_key: str) -> None:
        """Every batch to all targets, at most one on each lane at a time."""
        splitter = Splitter(self.order.targets, shard_key)
        under_way: deque[tuple[asyncio.Task[None], Batch]] = deque()
        number = self.batches
        try:
            while True:
                batch = await self.work.thread(next, batches, None)
                while under_way and (batch is None or len(under_way) == LANES):
                    await self._settle(*under_way.popleft())
                if batch is None:
                    return
                task = asyncio.ensure_future(self._send_batch(splitter, ref, shard_key, number, batch))
                under_way.append((task, batch))
                number += 1
        finally:
            for task, _ in under_way:
                task.cancel()
            if under_way:
                await asyncio.wait([task for task, _ in under_way])

    async def _settle(self, task: "asyncio.Task[None]", batch: Batch) -> None:
        """In the order of the batches, so all before the one that is noted are there."""
        await task
        self.after, self.batches = batch.last, self.batches + 1
        self.records += len(batch.records.ids)

    async def _send_batch(self, splitter: Splitter, ref: ShardRef, shard_key: str, number: int, batch: Batch) -> None:
        """A piece to every target, an empty one too: so each sees every number."""
        shares = await self.work.thread(splitter.records, batch.records)
        if sum(share.records for share in shares) != len(batch.records.ids):
            raise DataCorrupted(f"records of {self.order.collection!r} have hashes that are not of their shard",
                                path=self.order.url, region="backup")
        lane, sequence = number % LANES + 1, number // LANES + 1
        await asyncio.gather(*(self._send(target, Import(
            SOURCES + self.order.item, self.order.job, lane, sequence, ref.lo, ref.hi - 1, shard_key,
            tuple(share.command for share in shares if share.target is target))) for target in self.order.targets))

    async def _send(self, target: CopyTarget, piece: Import) -> None:
        data = codec.encode(piece)
        while True:
            try:
                done = await self.work.propose(target, data, PROPOSE_S)
                if isinstance(done, VecdbError):
                    raise done
                return
            except _AGAIN as error:
                self.watch.check()
                self.work.tell("debug", "piece_again", group=target.group, error=error.message)
            await asyncio.sleep(PAUSE_S)
