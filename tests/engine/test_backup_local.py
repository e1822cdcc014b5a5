"""Snapshots of an embedded database: incremental, verified, restored under any name, swept without harm."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.faults import ROOT
from vecdb.app import open_embedded, open_store
from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import (
    Cancelled,
    CollectionExists,
    CollectionNotFound,
    DataCorrupted,
    FormatMismatch,
    SnapshotExists,
    SnapshotNotFound,
    Unavailable,
)
from vecdb.core.records import DeleteIds, UpsertBatch
from vecdb.core.schema import CollectionSchema
from vecdb.runtime.clock import SystemClock
from vecdb.services.backup.local import RESTORING, LocalBackups
from vecdb.services.backup.manifest import CollectionManifest, ShardRef, Snapshot
from vecdb.services.backup.repository import LEASE_S, READ, SAVE, SWEEP, Repository, object_key
from vecdb.services.backup.saving import ShardFacts, Watch, save_shard
from vecdb.services.local import LocalDatabase
from vecdb.shard import codec
from vecdb.shard.seal import Seal
from vecdb.storage.objects import open_objects

SCHEMA = CollectionSchema(name="docs", dim=24)
CLOCK = SystemClock()


def batch(schema: CollectionSchema, first: int, count: int) -> UpsertBatch:
    rows = np.random.default_rng(first).standard_normal((count, schema.dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids = tuple(number if number % 3 else f"id-{number}" for number in range(first, first + count))
    return UpsertBatch(ids, rows, tuple(b'{"n":%d}' % number for number in range(first, first + count)))


def open_with(path: Path, records: int = 900) -> LocalDatabase:
    """Sealed segments, a growing one, and records that died."""
    database = open_embedded(path, threads=1, seal_records=300, background=False)
    database.create_collection(SCHEMA)
    for first in range(0, records, 100):
        database.upsert("docs", batch(SCHEMA, first, 100))
    database.optimize("docs")
    database.upsert("docs", batch(SCHEMA, records, 57))
    database.delete("docs", DeleteIds(tuple(batch(SCHEMA, 40, 30).ids)))
    return database


def state_of(database: LocalDatabase, name: str = "docs") -> tuple[int, str]:
    found = database.verify(name)
    assert found["equal"]
    return found["records"], found["computed"]


def backups(database: LocalDatabase) -> LocalBackups:
    return LocalBackups(database, open_store, CLOCK, version="1")


def repository(path: Path) -> Repository:
    return Repository(open_objects(f"file://{path}"), create=True)


def objects_of(place: Repository) -> set[str]:
    return {one.key for one in place.objects.list("objects/")}


def test_there_and_back_into_another_directory(tmp_path: Path) -> None:
    place = repository(tmp_path / "place")
    database = open_with(tmp_path / "a")
    try:
        then = state_of(database)
        info = backups(database).create(place, "one")
        assert info.collections[0].records == then[0] == 927
        assert info.collections[0].digest == then[1]
        assert 0 < info.added_bytes <= info.bytes
        assert place.load("one").info() == info
        database.upsert("docs", batch(SCHEMA, 5_000, 10))
        assert state_of(database) != then
    finally:
        database.close()
    assert not (tmp_path / "a" / "snapshots").exists() or os.listdir(tmp_path / "a" / "snapshots") == []
    other = open_embedded(tmp_path / "b", threads=1)
    try:
        done = backups(other).restore(place, "one")
        assert [(one.name, one.records, one.digest) for one in done] == [("docs", *then)]
        assert state_of(other) == then
        assert other.schema("docs") == SCHEMA
        other.upsert("docs", batch(SCHEMA, 0, 100))
        assert state_of(other)[0] == 927 + 30
        assert not (tmp_path / "b" / RESTORING).exists()
    finally:
        other.close()
    again = open_embedded(tmp_path / "b", threads=1)
    try:
        assert state_of(again)[0] == 957
    finally:
        again.close()


def test_under_another_name_beside_the_first(tmp_path: Path) -> None:
    place = repository(tmp_path / "place")
    database = open_with(tmp_path / "a", 300)
    try:
        backups(database).create(place, "one")
        with pytest.raises(CollectionExists):
            backups(database).restore(place, "one")
        backups(database).restore(place, "one", {"docs": "copy"})
        assert state_of(database, "copy") == state_of(database)
        with pytest.raises(CollectionNotFound):
            backups(database).restore(place, "one", {"nothing": "x"})
        with pytest.raises(SnapshotNotFound):
            backups(database).restore(place, "two")
        assert database.list_collections() == ["copy", "docs"]
    finally:
        database.close()


def test_a_second_snapshot_takes_what_is_new(tmp_path: Path) -> None:
    place = repository(tmp_path / "place")
    database = open_with(tmp_path / "a", 3_000)
    try:
        first = backups(database).create(place, "one")
        same = backups(database).create(place, "same")
        assert same.added_bytes < first.bytes / 20
        database.upsert("docs", batch(SCHEMA, 9_000, 20))
        third = backups(database).create(place, "three")
        assert 0 < third.added_bytes < first.bytes / 2
        with pytest.raises(SnapshotExists):
            backups(database).create(place, "three")
        assert place.names() == ["one", "same", "three"]
        assert all(backups(database).verify(place, name).whole for name in place.names())
    finally:
        database.close()


def test_deleting_one_leaves_the_others_whole(tmp_path: Path) -> None:
    place = repository(tmp_path / "place")
    database = open_with(tmp_path / "a")
    try:
        backups(database).create(place, "one")
        database.upsert("docs", batch(SCHEMA, 9_000, 200))
        database.optimize("docs")
        backups(database).create(place, "two")
        needed = {object_key(one) for one in place.needed([place.load("two")])}
        removed = place.remove("one", "job-1")
        assert removed.objects > 0
        assert not removed.withheld
        assert objects_of(place) == needed
        assert backups(database).verify(place, "two").whole
        with pytest.raises(SnapshotNotFound):
            place.remove("one", "job-2")
        place.remove("two", "job-3")
        assert objects_of(place) == set()
        assert [*place.objects.list("leases/")] == []
    finally:
        database.close()


def test_nothing_is_swept_while_somebody_is_at_work(tmp_path: Path) -> None:
    place = repository(tmp_path / "place")
    database = open_with(tmp_path / "a", 300)
    try:
        backups(database).create(place, "one")
        for kind in (SAVE, READ, SWEEP):
            other = place.lease(kind, "other")
            before = objects_of(place)
            assert kind in place.sweep("one", "job").withheld
            assert objects_of(place) == before
            other.release()
        dead = place.lease(SAVE, "dead")
        path = tmp_path / "place" / "leases" / "save-dead"
        os.utime(path, (path.stat().st_mtime - LEASE_S - 1,) * 2)
        assert place.remove("one", "job").objects > 0
        dead.release()
    finally:
        database.close()


def test_who_saves_waits_for_who_sweeps(tmp_path: Path) -> None:
    place = repository(tmp_path / "place")
    sweeper = place.lease(SWEEP, "job-1")
    with pytest.raises(Unavailable, match="deleting"):
        place.lease(SAVE, "one")
    assert [one.key for one in place.objects.list("leases/")] == ["leases/sweep-job-1"]
    sweeper.release()
    place.lease(SAVE, "one").release()


def test_a_snapshot_is_not_written_if_an_object_of_it_is_gone(tmp_path: Path) -> None:
    place = repository(tmp_path / "place")
    database = open_with(tmp_path / "a", 300)
    try:
        lease = place.lease(SAVE, "one")
        held = database.snapshot("docs")
        ref = save_shard(place, held, ShardFacts(SCHEMA, 0, 0, HASH_SPACE, held.records, held.digest), Watch(CLOCK))
        held.release()
        snapshot = Snapshot("one", 1.0, "", "1", (CollectionManifest(SCHEMA, 1, None, (ref,)),))
        victim = next(iter(place.shard(ref).objects))
        place.objects.delete([object_key(victim)])
        with pytest.raises(Unavailable, match="saved again"):
            place.commit(snapshot, lease)
        assert place.names() == []
    finally:
        database.close()


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_verify_finds_any_damaged_object(tmp_path: Path, damage: str) -> None:
    place = repository(tmp_path / "place")
    database = open_with(tmp_path / "a")
    try:
        backups(database).create(place, "one")
        whole = backups(database).verify(place, "one")
        assert (whole.problems, whole.shards, whole.records) == ((), 1, 927)
        assert whole.objects == len(objects_of(place))
        for key in sorted(objects_of(place)):
            path = tmp_path / "place" / key
            content = path.read_bytes()
            if damage == "flip":
                path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            elif damage == "cut":
                path.write_bytes(content[: len(content) // 2])
            else:
                path.unlink()
            found = backups(database).verify(place, "one")
            assert not found.whole, key
            assert "'docs'" in found.problems[0]
            path.write_bytes(content)
        assert backups(database).verify(place, "one").whole
    finally:
        database.close()


def test_damage_is_never_restored(tmp_path: Path) -> None:
    place = repository(tmp_path / "place")
    database = open_with(tmp_path / "a")
    try:
        backups(database).create(place, "one")
        largest = max(place.objects.list("objects/"), key=lambda one: one.bytes)
        path = tmp_path / "place" / largest.key
        content = path.read_bytes()
        path.write_bytes(content[:-9] + b"x" + content[-8:])
        with pytest.raises(DataCorrupted):
            backups(database).restore(place, "one", {"docs": "copy"})
        assert database.list_collections() == ["docs"]
        path.write_bytes(content)
        backups(database).restore(place, "one", {"docs": "copy"})
        assert state_of(database, "copy") == state_of(database)
    finally:
        database.close()


def test_a_damaged_manifest_stops_the_sweep(tmp_path: Path) -> None:
    place = repository(tmp_path / "place")
    database = open_with(tmp_path / "a", 300)
    try:
        for name in ("one", "two"):
            backups(database).create(place, name)
        path = tmp_path / "place" / "snapshots" / "two.json"
        path.write_bytes(path.read_bytes().replace(b'"records":3', b'"records":4', 1))
        before = objects_of(place)
        with pytest.raises(DataCorrupted):
            place.load("two")
        with pytest.raises(DataCorrupted):
            place.remove("one", "job")
        assert objects_of(place) == before
    finally:
        database.close()


def test_places_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "vecdb.backups").write_bytes(b"vecdb backups 9\n")
    with pytest.raises(FormatMismatch):
        repository(tmp_path)
    empty = Repository(open_objects(f"file://{tmp_path}/empty"))
    assert empty.names() == []
    assert [*empty.objects.list("")] == []


def shards_into_one(place: Repository, databases: list[LocalDatabase]) -> None:
    """A snapshot of one collection that is divided over several databases."""
    refs: list[ShardRef] = []
    width = HASH_SPACE // len(databases)
    for number, database in enumerate(databases):
        lo, hi = number * width, HASH_SPACE if number == len(databases) - 1 else (number + 1) * width
        held = database.snapshot("docs")
        refs.append(save_shard(place, held, ShardFacts(SCHEMA, number + 7, lo, hi, held.records, held.digest),
                               Watch(CLOCK)))
        held.release()
    lease = place.lease(SAVE, "many")
    place.commit(Snapshot("many", 1.0, "", "1", (CollectionManifest(SCHEMA, 2, None, tuple(refs)),)), lease)
    lease.release()


def test_several_shards_become_one(tmp_path: Path) -> None:
    place = repository(tmp_path / "place")
    databases = [open_embedded(tmp_path / str(one), threads=1, seal_records=300, background=False) for one in range(3)]
    try:
        for number, database in enumerate(databases):
            database.create_collection(SCHEMA)
            for first in range(0, 600, 200):
                database.upsert("docs", batch(SCHEMA, 10_000 * number + first, 200))
            if number:
                database.optimize("docs")
        shards_into_one(place, databases)
    finally:
        for database in databases:
            database.close()
    target = open_embedded(tmp_path / "target", threads=1, seal_records=500)
    try:
        done = backups(target).restore(place, "many")
        assert done[0].records == 1_800
        assert state_of(target) == (1_800, done[0].digest)
        assert target.count("docs") == 1_800
    finally:
        target.close()


def test_a_shard_that_was_sealed_is_restored_open(tmp_path: Path) -> None:
    from tests.replicas import open_replicas

    source = open_replicas(tmp_path / "a")
    place = repository(tmp_path / "place")
    try:
        source.host(SCHEMA, "g00000001")
        replica = source.replica("docs")
        replica.apply(1, 1, codec.encode(batch(SCHEMA, 0, 50)))
        replica.apply(2, 1, codec.encode(Seal(5, 1)))
        held = replica.snapshot()
        ref = save_shard(place, held, ShardFacts(SCHEMA, 1, 0, HASH_SPACE, held.records, held.digest), Watch(CLOCK))
        held.release()
        assert (ref.records, ref.log_index) == (50, 2)
    finally:
        source.close()
    lease = place.lease(SAVE, "one")
    place.commit(Snapshot("one", 1.0, "", "1", (CollectionManifest(SCHEMA, 1, None, (ref,)),)), lease)
    target = open_embedded(tmp_path / "b", threads=1)
    try:
        backups(target).restore(place, "one")
        target.upsert("docs", batch(SCHEMA, 100, 50))
        assert state_of(target)[0] == 100
    finally:
        target.close()


def test_stopping_is_clean(tmp_path: Path) -> None:
    place = repository(tmp_path / "place")
    database = open_with(tmp_path / "a", 300)
    try:
        watch = Watch(CLOCK)
        watch.stop()
        with pytest.raises(Cancelled):
            backups(database).create(place, "one", watch=watch)
        assert place.names() == []
        assert [*place.objects.list("leases/")] == []
        backups(database).create(place, "one")
        with pytest.raises(Cancelled):
            backups(database).restore(place, "one", {"docs": "copy"}, watch)
        assert database.list_collections() == ["docs"]
    finally:
        database.close()


def test_a_pace_is_kept() -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def wall(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += seconds

    clock = Clock()
    watch = Watch(clock, 1_000.0)
    for _ in range(50):
        watch.passed(100, moved=True)
    assert 4.0 <= clock.now <= 5.5
    for _ in range(50):
        watch.passed(100, moved=False)
    assert clock.now <= 5.5
    assert (watch.moved, watch.done) == (5_000, 10_000)


KILLED = """
import os, sys
from pathlib import Path
from tests.engine.test_backup_local import backups, batch, open_with, repository, SCHEMA
from vecdb.app import open_embedded
from vecdb.services.backup.saving import Watch
work, place, steps = sys.argv[1], repository(Path(sys.argv[2])), int(sys.argv[3])

class Deadly(Watch):
    def passed(self, size, *, moved):
        super().passed(size, moved=moved)
        global steps
        steps -= 1
        if steps <= 0:
            os._exit(9)

database = open_embedded(Path(sys.argv[4]), threads=1, background=False)
from vecdb.runtime.clock import SystemClock
if work == "create":
    backups(database).create(place, "one", watch=Deadly(SystemClock()))
else:
    backups(database).restore(place, "one", watch=Deadly(SystemClock()))
"""


def run_killed(work: str, place: Path, steps: int, directory: Path) -> int:
    return subprocess.run([sys.executable, "-c", KILLED, work, str(place), str(steps), str(directory)], cwd=ROOT,
                          timeout=120, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode


def until_done(work: Callable[[int], int], steps: int) -> int:
    """Kills until it comes through; how many."""
    kills = 0
    while (code := work(steps)) == 9:
        kills += 1
        steps = steps * 6 + 1
        assert kills < 20
    assert code == 0
    return kills


def test_killed_anywhere_it_goes_on(tmp_path: Path) -> None:
    database = open_with(tmp_path / "a", 600)
    then = state_of(database)
    database.close()
    place = tmp_path / "place"
    assert until_done(lambda steps: run_killed("create", place, steps, tmp_path / "a"), 2) > 0
    assert repository(place).names() == ["one"]
    assert until_done(lambda steps: run_killed("restore", place, steps, tmp_path / "b"), 2) > 0
    restored = open_embedded(tmp_path / "b", threads=1)
    try:
        assert state_of(restored) == then
        assert backups(restored).verify(repository(place), "one").whole
    finally:
        restored.close()
