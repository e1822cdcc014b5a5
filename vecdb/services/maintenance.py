"""Keeping a shard in shape: linking the graph, sealing, merging, rebuilding what was damaged.

All of it changes how records are kept and never which; so a job may be killed at any step and done again.
A new segment is written beside the old ones, under a name no manifest knows; one batch makes it part of the
shard and takes the others out.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vecdb.core.calls import Call, check
from vecdb.core.errors import DataCorrupted, Overloaded, StorageError, StorageReadOnly, VecdbError
from vecdb.ports.clock import Clock
from vecdb.ports.compute import Compute
from vecdb.segment.build import build_sealed, rebuild_index
from vecdb.segment.files import from_os_error, sync_directory
from vecdb.segment.growing import GrowingView
from vecdb.segment.sealed import INDEX, RebuiltRecord, SealedSegment, SealedView, open_sealed
from vecdb.services.jobs import Job, JobCancelled, JobRunner
from vecdb.services.recovery import segment_directory
from vecdb.services.settings import EngineSettings
from vecdb.services.shard import ShardService
from vecdb.shard import rows
from vecdb.shard.upkeep import Rewrite, UpkeepPolicy, full_rewrite, next_rewrite
from vecdb.shard.view import SegmentView

RETRY_S = 60.0
"""How long a job that failed waits before it is tried again: a full disk does not empty in a moment."""

MAX_FROZEN = 4
"""Full segments that may wait to be sealed: each holds its vectors in memory."""
HOLD_S = 30.0
"""Longest a writer is made to wait for that before it is refused."""
LOOK_AGAIN_S = 0.25
"""How long such a writer sleeps at once: a sealed segment wakes it, but not all that may end its wait does."""
SLOWED_BYTES_S = 4 << 20
"""At which commands of a log are applied then: less than is sealed, so that it ends."""
COMPACT_BYTES = 64 << 20
"""Vectors a rewrite must have moved for the store to be asked at once for their space; less waits for its own time."""

Progress = Callable[[str, int, int], None]
Run = Callable[[Sequence[Callable[[], None]]], None]


class Maintainer:
    """Jobs of one shard.  One of them runs at a time: ``_turn`` is held meanwhile.

    Jobs run on ``upkeep``, which gives way to queries and writes; what somebody waits for, on ``compute``.
    """

    def __init__(self, shard: ShardService, jobs: JobRunner, compute: Compute, upkeep: Compute,
                 clock: Clock, settings: EngineSettings, memory_used: Callable[[], int]) -> None:
        self._shard = shard
        self._jobs = jobs
        self._compute = compute
        self._upkeep_pool = upkeep
        self._clock = clock
        self._settings = settings
        self._memory_used = memory_used
        self._turn = threading.Lock()
        self._sealed = threading.Condition()
        self._failed_at: dict[str, float] = {}
        self._policy = UpkeepPolicy(shard.machine.seal_records, settings.merge_factor, settings.max_segment_records,
                                    settings.dead_fraction)
        self._name = shard.schema.name
        if settings.background and not settings.read_only:
            shard.on_change = self.queue_due
            shard.before_write = self.hold_back
            shard.before_apply = self.slow_down
            shard.check_room = self.check_room
            self.queue_due()

    def queue_due(self) -> None:
        """Queue what has become worth doing.  Called after every write, so it only compares numbers."""
        if self._shard.closed:
            return
        self._freeze_if_full()
        for kind, work in self._due():
            self._jobs.submit(kind, self._name, (_lane(kind), id(self)), self._guarded(_lane(kind), work))

    def _freeze_if_full(self) -> None:
        shard = self._shard
        if shard.machine.wants_seal:
            with shard.writing():
                if shard.machine.wants_seal:
                    shard.machine.freeze()

    def _due(self) -> Iterator[tuple[str, Callable[[Job], None]]]:
        """What is worth doing now."""
        machine = self._shard.machine
        if machine.growing.wants_graph and self._may("graph"):
            yield "graph", self._link
        if self._may("index") and any(isinstance(view, SealedView) and view.segment.damage.rebuild_index
                                      for view in machine.view.segments):
            yield "index", self._rebuild
        if self._may("rewrite") and (todo := next_rewrite(machine.view.segments, self._policy)) is not None:
            yield todo.kind, self._upkeep

    def tend(self) -> str | None:
        """Carry out the first thing that is due, in the calling thread; which.  For those without background jobs."""
        self._freeze_if_full()
        for kind, work in self._due():
            self._guarded(_lane(kind), work)(Job(kind, self._name, (_lane(kind), id(self))))
            return kind
        return None

    def hold_back(self, call: Call | None = None) -> None:
        """Let a writer wait while too much waits to be sealed: memory is bounded by slowing writes, not by luck.

        Raises what ends ``call``.
        """
        if self._frozen() <= MAX_FROZEN:
            return
        give_up = self._clock.monotonic() + HOLD_S
        with self._sealed:
            while (self._frozen() > MAX_FROZEN and self._may("rewrite") and not self._shard.closed
                   and self._clock.monotonic() < give_up):
                self._sealed.wait(LOOK_AGAIN_S)
                check(call)
        self.check_room()

    def check_room(self) -> None:
        """Raise ``Overloaded`` while too much waits to be sealed."""
        if self._frozen() > MAX_FROZEN and not self._shard.closed:
            why = "sealing is slower than writing" if self._may("rewrite") else "sealing fails: see the jobs"
            self.queue_due()
            raise Overloaded(f"{self._frozen()} segments wait to be sealed; {why}", retry_after_s=HOLD_S / 10)

    def slow_down(self, bytes_: int) -> None:
        """Let a command of the log, which cannot be refused, wait its share of time while too much waits to be sealed.

        What a replica has not applied waits on its disk.  Whoever leads refuses before it comes to this.
        """
        if self._frozen() <= MAX_FROZEN + 1:
            return
        with self._sealed:
            self._sealed.wait_for(lambda: self._frozen() <= MAX_FROZEN + 1 or not self._may("rewrite")
                                  or self._shard.closed, bytes_ / SLOWED_BYTES_S)

    def optimize(self, on_progress: Progress | None, call: Call | None = None) -> None:
        """Seal and merge in the calling thread: everything there is at the call, once.

        Raises what ends ``call``, looked at between the steps of every stage; segments written by then stay.
        """
        if self._settings.read_only:
            raise StorageReadOnly("the database was opened read-only", path=str(self._shard.directory))
        check(call)
        report, run = _watched(on_progress, self._compute.run, call)
        try:
            with self._taking_turn(call):
                with self._shard.writing():
                    self._shard.machine.freeze()
                self._rebuild_all(report, run)
                for todo in full_rewrite(self._shard.view.segments, self._policy):
                    self._rewrite(todo, report, run)
                self._compact(0, self._shard.machine.state.next_rid, report)
        finally:
            if self._settings.background:
                self.queue_due()

    @contextmanager
    def _taking_turn(self, call: Call | None) -> Iterator[None]:
        """Wait until no job of the shard runs, and keep others from beginning; raises what ends ``call``."""
        while not self._turn.acquire(timeout=LOOK_AGAIN_S):
            check(call)
        try:
            yield
        finally:
            self._turn.release()

    def _frozen(self) -> int:
        return sum(isinstance(view, GrowingView) for view in self._shard.view.segments) - 1

    def _may(self, kind: str) -> bool:
        failed = self._failed_at.get(kind)
        return failed is None or self._clock.monotonic() - failed > RETRY_S

    def _guarded(self, kind: str, work: Callable[[Job], None]) -> Callable[[Job], None]:
        def run(job: Job) -> None:
            if not self._turn.acquire(blocking=False):
                return  # optimize is at it, and queues what is left when it is done
            try:
                if not self._shard.closed:
                    work(job)
                self._failed_at.pop(kind, None)
            except JobCancelled:
                raise
            except Exception:
                self._failed_at[kind] = self._clock.monotonic()
                raise
            finally:
                self._turn.release()
                with self._sealed:
                    self._sealed.notify_all()
            if self._settings.background:
                self.queue_due()
        return run

    # --- jobs -------------------------------------------------------------------------------------

    def _link(self, job: Job) -> None:
        growing = self._shard.machine.growing
        while growing.wants_graph and not growing.frozen:
            total = growing.count
            growing.grow_graph(self._upkeep_pool.run, total, lambda done: job.report("linking", done, total))  # noqa: B023

    def _upkeep(self, job: Job) -> None:
        todo = next_rewrite(self._shard.view.segments, self._policy)
        if todo is not None:
            self._rewrite(todo, job.report, self._upkeep_pool.run)

    def _rebuild(self, job: Job) -> None:
        self._rebuild_all(job.report, self._upkeep_pool.run)

    def _rebuild_all(self, report: Progress, run: Run) -> None:
        for view in self._shard.view.segments:
            if isinstance(view, SealedView) and view.segment.damage.rebuild_index:
                ann = rebuild_index(view.segment, run, report, self._budget((view,)))
                ann.write(view.segment.directory / INDEX)
                view.segment.replace_index(ann)

    def _rewrite(self, todo: Rewrite, report: Progress, run: Run) -> None:
        """Carry out a rewrite and wake the writers that wait for it; of a dropped collection it ends as such."""
        try:
            self._replace(todo, report, run)
        except (VecdbError, OSError):
            self._shard.check_open()  # files vanish under a drop: that, not damage, is what happened
            raise
        finally:
            with self._sealed:
                self._sealed.notify_all()

    def _replace(self, todo: Rewrite, report: Progress, run: Run) -> None:
        """Write one segment out of ``todo.views``, put it in their place, delete them.

        Once the batch that names the new segment was attempted, its folder stays whatever happens: the batch may
        have landed, and the next opening knows.
        """
        shard = self._shard
        with shard.writing():
            machine = shard.machine
            segment_id = machine.take_segment_id()
            views = tuple(view for view in machine.view.segments
                          if any(view.segment is old.segment for old in todo.views))
        if not views:
            return
        target = segment_directory(shard.directory, segment_id)
        attempted = False
        try:
            new = self._write_segment(target, views, report, run)
            with shard.writing():
                if shard.machine is not machine:
                    raise StorageError("the shard was recovered meanwhile; ask again", path=str(shard.directory))
                mutations, show = machine.replacement(views, new)
                attempted = True
                shard.write_rows(mutations)
                show()
            shard.settle()
        except BaseException:
            if not attempted:
                shutil.rmtree(target, ignore_errors=True)
            raise
        for view in views:
            if isinstance(view, SealedView):
                shutil.rmtree(view.segment.directory, ignore_errors=True)
        if sum(view.count for view in views) * views[0].segment.space.row_bytes >= COMPACT_BYTES:
            self._compact(views[0].rid_range[0], views[-1].rid_range[1], report)

    def _compact(self, first_rid: int, stop_rid: int, report: Progress) -> None:
        """Give back the space of vector rows that files have replaced."""
        report("compacting", 0, 1)
        self._shard.compact(rows.vector_row(first_rid), rows.vector_row(stop_rid))
        report("compacting", 1, 1)

    def _budget(self, views: Sequence[SegmentView]) -> int | None:
        """Bytes the segment that replaces ``views`` may take."""
        if self._settings.memory_bytes is None:
            return None
        replaced = sum(sum(view.segment.memory_bytes().values()) for view in views)
        return max(0, self._settings.memory_bytes - self._memory_used() + replaced)

    def _write_segment(self, target: Path, views: Sequence[SegmentView], report: Progress,
                       run: Run) -> SealedSegment | None:
        """Build, sync and read back; None if no record of ``views`` lives."""
        if not any(view.live_count for view in views):
            return None
        folder = target.parent
        scratch = folder / f"{target.name}.tmp"
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            if not folder.exists():
                folder.mkdir(parents=True)
                sync_directory(folder.parent)
            scratch.mkdir()
            build_sealed(scratch, self._shard.schema, views, run, report, self._budget(views))
            os.rename(scratch, target)
            sync_directory(folder)
        except OSError as error:
            raise from_os_error(error, target, "writing a segment to") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        new = open_sealed(int(target.name), target, self._shard.schema, _no_records, _no_rids, verify=True,
                          run=run)
        if new.damage.messages:
            raise DataCorrupted(f"what was just written does not read back: {new.damage.messages[0]}",
                                path=str(target))
        return new


def _lane(kind: str) -> str:
    """What fails and waits together."""
    return kind if kind in ("graph", "index") else "rewrite"


def _watched(on_progress: Progress | None, run: Run, call: Call | None) -> tuple[Progress, Run]:
    """The two through which a build passes at every step, made to raise what ends ``call``.

    What a build works on is its own until it is done, so it may be left anywhere.
    """
    report = on_progress or (lambda stage, done, total: None)
    if call is None:
        return report, run

    def watched_report(stage: str, done: int, total: int) -> None:
        check(call)
        report(stage, done, total)

    def watched(thunk: Callable[[], None]) -> Callable[[], None]:
        def step() -> None:
            check(call)
            thunk()
        return step

    return watched_report, lambda thunks: run([watched(thunk) for thunk in thunks])


def _no_records(rids: npt.NDArray[np.int64]) -> list[RebuiltRecord | None]:
    return [None] * len(rids)


def _no_rids() -> npt.NDArray[np.int64]:
    return np.empty(0, np.int64)
