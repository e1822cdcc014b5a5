"""Replication in an event loop: the host's shell over asyncio and threads, and the ``Replicator`` port.

One driver a process, for all its groups: one timer ticks them all, so that the heartbeats two nodes owe each other
leave as one frame; proposals of one turn of the loop share its batch and its messages; one thread syncs the log; a
small pool applies, a thread a group at a time, and another does what takes long.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from vecdb.core.errors import DeadlineExceeded, InvalidArgument, OutcomeUnknown, Unavailable, VecdbError
from vecdb.ports.frames import Frames
from vecdb.ports.replicator import Committed, ReplicaStatus, StateMachine
from vecdb.ports.store import Store
from vecdb.ports.tell import Tell, tell_nobody
from vecdb.raft.host import Host
from vecdb.raft.log import Batch, LogStore
from vecdb.raft.membership import Change, check_replica
from vecdb.raft.replica import Replica
from vecdb.raft.settings import RaftSettings
from vecdb.raft.workers import Workers

T = TypeVar("T")
Threads = Workers | Executor


@dataclass(slots=True)
class _Job:
    work: Callable[[], Any]
    done: Callable[[Any, BaseException | None], None]


class _Shell:
    """The :class:`~vecdb.raft.host.Shell` of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, frames: Frames, workers: int,
                 threads: Callable[[int, str], Threads]) -> None:
        self._loop = loop
        self._frames = frames
        self._log = threads(1, "raft-log")
        self._apply = threads(workers, "raft-apply")
        # Checkpoints and snapshots take seconds: nobody's commands wait behind them.
        self._slow = threads(workers, "raft-slow")
        self._lanes: dict[str, deque[_Job]] = {}
        self._ended = asyncio.Event()
        """Set whenever something that threads did has ended."""
        self._closed = False

    def send(self, node: str, frame: bytes, *, bulk: bool = False) -> None:
        self._frames.send(node, frame, bulk=bulk)

    def store(self, batch: Batch, done: Callable[[BaseException | None], None]) -> None:
        self._submit(self._log, batch.write, lambda _, error: done(error))

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        def now() -> None:
            if not self._closed:
                act()

        self._loop.call_later(seconds, now)

    def run(self, lane: str, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        jobs = self._lanes.setdefault(lane, deque())
        jobs.append(_Job(work, done))
        if len(jobs) == 1:
            self._start(lane, jobs)

    def _start(self, lane: str, jobs: deque[_Job]) -> None:
        def ended(result: Any, error: BaseException | None) -> None:
            job = jobs.popleft()
            if jobs:
                self._start(lane, jobs)
            else:
                del self._lanes[lane]
            job.done(result, error)

        self._submit(self._apply if lane.startswith("apply/") else self._slow, jobs[0].work, ended)

    def _submit(self, pool: Threads, work: Callable[[], Any],
                done: Callable[[Any, BaseException | None], None]) -> None:
        def told(result: Any, error: BaseException | None) -> None:  # in the worker's thread
            if not self._closed:
                with suppress(RuntimeError):  # a loop that was closed before its driver hears nothing any more
                    self._loop.call_soon_threadsafe(back, result, error)

        def ended(future: "Future[Any]") -> None:
            error = future.exception()
            told(None if error is not None else future.result(), error)

        def back(result: Any, error: BaseException | None) -> None:
            if not self._closed:
                done(result, error)
                self._ended.set()

        if isinstance(pool, Workers):
            pool.post(work, told)
        else:
            pool.submit(work).add_done_callback(ended)

    async def quiet(self, group: int, writing: Callable[[int], bool]) -> None:
        """Return once no thread does anything for the group."""
        while writing(group) or any(lane.endswith(f"/{group}") for lane in self._lanes):
            self._ended.clear()
            await self._ended.wait()

    def close(self) -> None:
        self._closed = True

    def join(self) -> None:
        self._log.shutdown()
        self._apply.shutdown()
        self._slow.shutdown()


class Driver:
    """All groups of this node.  Make it, use it and close it in one event loop."""

    def __init__(self, node: str, store: Store, frames: Frames, *, seed: int, settings: RaftSettings | None = None,
                 tell: Tell = tell_nobody, workers: int = 2,
                 threads: Callable[[int, str], Threads] = Workers) -> None:
        """``store`` is the log's own, opened and closed by the caller; ``seed`` from the process's entropy; ``threads``
        makes a pool of so many of that name.
        """
        self._loop = asyncio.get_running_loop()
        self._shell = _Shell(self._loop, frames, workers, threads)
        self.host = Host(node, LogStore(store), self._shell, clock=self._loop.time, random=Random(seed),  # noqa: S311
                         settings=settings, tell=tell)
        self._period = self.host.settings.heartbeat_s / 2
        self._turn_comes = False
        self._closed = False
        frames.listen(self._received, self._gone)
        self._timer = self._loop.call_later(self._period, self._tick)

    def add(self, group: int, machine: StateMachine, *, number: int, voters: tuple[str, ...] = (),
            existing: bool = False, afresh: bool = False) -> "GroupReplicator":
        """Take up a group: see :meth:`vecdb.raft.host.Host.add`."""
        self._check()
        replica = self.host.add(group, machine, number=number, voters=voters, existing=existing, afresh=afresh)
        self.soon()
        return GroupReplicator(self, replica)

    async def remove(self, group: int, *, forget: bool = False) -> None:
        """Let go of a group; ``forget``: and of its log.  Who waits is told that the outcome is unknown.

        Once this returns no thread uses the machine any more, and the group may be added again.
        """
        self._check()
        self.host.remove(group, forget=forget)
        await self._shell.quiet(group, self.host.store.writing)

    def forget(self, group: int) -> None:
        """Delete the log of a group that is not taken up, if there is one."""
        self._check()
        self.host.forget(group)

    def logs(self) -> list[int]:
        """Groups that have a log on this disk, taken up or not."""
        self._check()
        return [group for group, _ in self.host.store.groups()]

    @property
    def failure(self) -> BaseException | None:
        """What ended all replicas: the logs' disk refused.  Only a new driver, over a store opened anew, goes on."""
        return self.host.failure

    def fail(self, error: BaseException) -> None:
        """End all replicas: somebody else has found out that the store of the logs takes no more writes."""
        self.host.fail(error)

    def close(self) -> None:
        """End all groups, and the threads once what they do is done."""
        self.end()
        self.join()

    def end(self) -> None:
        """End all groups; threads finish what they do, for :meth:`join`."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        for group in list(self.host.replicas):
            self.host.remove(group)
        self._shell.close()

    def join(self) -> None:
        """Return once no thread does anything any more; snapshots and disks that hang take long.  For any thread."""
        self._shell.join()

    def soon(self) -> None:
        """Let a turn come once this one of the loop is over."""
        if not self._turn_comes:
            self._turn_comes = True
            self._loop.call_soon(self._turn)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def _check(self) -> None:
        if self._closed:
            raise Unavailable("replication was closed")

    def _turn(self) -> None:
        self._turn_comes = False
        if not self._closed:
            self.host.turn()

    def _received(self, node: str, frame: bytes | memoryview) -> None:
        if not self._closed:
            self.host.receive(node, frame)

    def _gone(self, node: str) -> None:
        if not self._closed:
            self.host.gone(node)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._period, self._tick)
        self.host.tick()


class GroupReplicator:
    """The :class:`~vecdb.ports.replicator.Replicator` of one group."""

    def __init__(self, driver: Driver, replica: Replica) -> None:
        self._driver = driver
        self._replica = replica

    async def propose(self, command: bytes, deadline: float | None) -> Committed:
        log_index, result = await self._asked(
            lambda done: self._replica.core.propose(command, done), deadline,
            OutcomeUnknown("the deadline passed before the write was known to be committed"))
        return Committed(log_index, result)

    async def read_index(self, deadline: float | None) -> int:
        log_index, _ = await self._asked(self._replica.read_index, deadline)
        return log_index

    async def wait_applied(self, log_index: int, deadline: float | None) -> None:
        if log_index < 0:
            raise InvalidArgument("log_index", "is negative", got=log_index)
        replica = self._replica
        if replica.core.applied >= log_index:
            return
        waits: list[int] = []
        try:
            await self._asked(lambda done: waits.append(
                replica.wait_applied(log_index, lambda error: done(log_index, None, error))), deadline)
        finally:
            for wait in waits:
                replica.wait_no_more(wait)

    async def change_members(self, add: str | None, remove: str | None, deadline: float | None, *,
                             observe: bool = False) -> None:
        change = Change(None if add is None else check_replica(add), remove, join=not observe)
        await self._asked(lambda done: self._replica.core.change(change, done), deadline,
                          OutcomeUnknown("the deadline passed before the change was known to be committed"))

    async def transfer(self, to: str | None, deadline: float | None) -> None:
        await self._asked(lambda done: self._replica.core.transfer(to, done), deadline)

    def status(self) -> ReplicaStatus:
        return self._replica.status()

    async def _asked(self, ask: Callable[[Callable[[int, object, VecdbError | None], None]], None],
                     deadline: float | None, late: VecdbError | None = None) -> tuple[int, object]:
        loop = self._driver.loop
        if self._replica.halted or self._driver.host.replicas.get(self._replica.group) is not self._replica:
            why = f": {self._replica.error}" if self._replica.error else ""
            raise Unavailable(f"this replica is {self._replica.state}{why}", error=self._replica.error)
        if deadline is not None and loop.time() >= deadline:
            raise DeadlineExceeded("the deadline passed before anything was done")
        future: asyncio.Future[tuple[int, object]] = loop.create_future()

        def done(log_index: int, result: object, error: VecdbError | None) -> None:
            if future.done():
                return  # nobody waits any more
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result((log_index, result))

        ask(done)
        self._driver.soon()
        try:
            async with asyncio.timeout_at(deadline):
                return await future
        except TimeoutError:
            raise late or DeadlineExceeded("the deadline passed before the work was done") from None
