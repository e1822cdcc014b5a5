"""What a node saves of a shard is what was acknowledged before it was asked, however far behind its replica is."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from tests.replicas import DIM, SCHEMA, replica_at
from vecdb.app import open_store
from vecdb.core.calls import Call
from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import CollectionNotFound, StaleShardMap
from vecdb.core.records import UpsertBatch
from vecdb.ports.backups import SAVE, BackupOrder
from vecdb.runtime.clock import SystemClock
from vecdb.services.backup.repository import Repository
from vecdb.services.backup.work import PLAN, WORKERS, BackupWork, note_key, work_of
from vecdb.shard import codec
from vecdb.storage.objects import open_objects

GROUP, NOW = 3, Call()


def _work(tmp_path: Path, place: Repository, replica: object, caught_up: Any) -> BackupWork:
    place.objects.put(note_key(work_of("one", 1), PLAN), b"{}")
    entry = SimpleNamespace(schema=SCHEMA, group=GROUP, lo=0, hi=HASH_SPACE)
    state: Any = SimpleNamespace(shards={GROUP: entry}, jobs={}, next_job=1)

    async def propose(target: object, command: bytes, seconds: float) -> object:
        raise AssertionError("nothing is proposed")

    return BackupWork("n1", lambda: state, lambda group: replica, propose,  # type: ignore[arg-type,return-value]
                      lambda url, create=False: place, open_store, tmp_path / "scratch", SystemClock(), caught_up)


def _order(place: Repository) -> BackupOrder:
    return BackupOrder(1, SAVE, GROUP, place.url, "one", 0)


def test_a_replica_that_is_behind_catches_up_before_it_is_saved(tmp_path: Path) -> None:
    place = Repository(open_objects(f"file://{tmp_path / 'place'}"), create=True)

    async def run(replica: Any) -> None:
        def apply(log_index: int) -> None:
            batch = UpsertBatch((log_index,), np.ones((1, DIM), np.float32), (b"{}",))
            replica.apply(log_index, 1, codec.encode(batch))

        async def caught_up(group: int, seconds: float) -> None:
            assert group == GROUP
            while replica.position().log_index < 5:
                await asyncio.sleep(0.01)

        for at in range(1, 4):
            apply(at)
        work = _work(tmp_path, place, replica, caught_up)
        try:
            await work.start(_order(place), NOW)
            for at in range(4, 7):
                await asyncio.sleep(0.2)
                apply(at)
            async with asyncio.timeout(60):
                while (status := await work.start(_order(place), NOW)).state == "running":
                    await asyncio.sleep(0.02)
            assert status.state == "done", status
        finally:
            await work.close()
        raw = place.objects.get(note_key(work_of("one", 1), GROUP))
        assert raw is not None
        assert orjson.loads(raw)["log_index"] >= 5
        assert orjson.loads(raw)["records"] >= 5

    with replica_at(tmp_path / "n1") as replica:
        asyncio.run(run(replica))


@pytest.mark.parametrize("error", [StaleShardMap("others took its place", collection="c", shard=GROUP, epoch=1),
                                   CollectionNotFound("c")])
def test_of_a_shard_that_is_no_more_the_job_may_plan_anew(tmp_path: Path, error: Exception) -> None:
    place = Repository(open_objects(f"file://{tmp_path / 'place'}"), create=True)

    async def run(replica: Any) -> None:
        async def caught_up(group: int, seconds: float) -> None:
            raise error

        work = _work(tmp_path, place, replica, caught_up)
        try:
            async with asyncio.timeout(60):
                while (status := await work.start(_order(place), NOW)).state == "running":
                    await asyncio.sleep(0.02)
            assert (status.state, status.passes) == ("failed", True)
        finally:
            await work.close()

    with replica_at(tmp_path / "n1") as replica:
        asyncio.run(run(replica))


async def _ended(work: BackupWork, place: Repository) -> str:
    async with asyncio.timeout(60):
        while (status := await work.start(_order(place), NOW)).state == "running":
            await asyncio.sleep(0.02)
    return status.state


async def _at_once(group: int, seconds: float) -> None:
    """It has everything."""


def test_an_order_whose_asker_has_gone_is_begun_all_the_same(tmp_path: Path) -> None:
    place = Repository(open_objects(f"file://{tmp_path / 'place'}"), create=True)

    async def run(replica: Any) -> None:
        work, free = _work(tmp_path, place, replica, _at_once), threading.Event()
        threads = [asyncio.ensure_future(work.thread(free.wait, 60)) for _ in range(WORKERS)]
        try:
            asking = asyncio.ensure_future(work.start(_order(place), NOW))
            for _ in range(5):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait((asking,))
            free.set()
            assert await _ended(work, place) == "done"
        finally:
            free.set()
            await asyncio.gather(*threads)
            await work.close()

    with replica_at(tmp_path / "n1") as replica:
        asyncio.run(run(replica))


def test_what_is_taken_for_work_that_was_stopped_meanwhile_is_let_go_of(tmp_path: Path) -> None:
    """It kept the files of its moment on the disk until the next start."""
    place = Repository(open_objects(f"file://{tmp_path / 'place'}"), create=True)
    taking, go_on = threading.Event(), threading.Event()

    async def run(replica: Any) -> None:
        def snapshot() -> object:
            taking.set()
            go_on.wait(60)
            return replica.snapshot()

        work = _work(tmp_path, place, SimpleNamespace(snapshot=snapshot), _at_once)
        try:
            await work.start(_order(place), NOW)
            await asyncio.get_running_loop().run_in_executor(None, taking.wait, 60)
            await work.stop(1, NOW)
        finally:
            go_on.set()
            await work.close()

    with replica_at(tmp_path / "n1") as replica:
        asyncio.run(run(replica))
        assert taking.is_set()
        assert list(replica.home.snapshots.glob("*")) == []
