"""Who was stopped for so long that others took him for dead deletes nothing and writes no snapshot."""

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.engine.test_backup_local import CLOCK, SCHEMA, backups, objects_of, open_with, repository
from vecdb.core.cluster import HASH_SPACE
from vecdb.core.errors import Unavailable
from vecdb.ports.objects import ObjectInfo
from vecdb.services.backup.manifest import CollectionManifest, Snapshot
from vecdb.services.backup.repository import FEW, LEASE_S, SAVE, Repository, snapshot_key
from vecdb.services.backup.saving import ShardFacts, Watch, save_shard
from vecdb.storage.objects import DirectoryObjects


class _Asleep(DirectoryObjects):
    """Whose user is stopped while he lists objects, for longer than others believe that he lives: from then on what is
    written is so much later.
    """

    def __init__(self, root: Path, meanwhile: Callable[[Repository], object] | None = None, ahead_s: float = 0.0
                 ) -> None:
        super().__init__(root)
        self._folder = root
        self._meanwhile = meanwhile
        self._ahead_s = ahead_s

    def put(self, key: str, data: bytes, *, new: bool = False) -> bool:
        made = super().put(key, data, new=new)
        path = self._folder / key
        os.utime(path, (path.stat().st_mtime + self._ahead_s,) * 2)
        return made

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from super().list(prefix)
        if prefix == "objects/" and self._meanwhile is not None:
            meanwhile, self._meanwhile, self._ahead_s = self._meanwhile, None, LEASE_S + 1
            meanwhile(Repository(_Asleep(self._folder, ahead_s=self._ahead_s)))


def test_who_was_taken_for_dead_sweeps_nothing(tmp_path: Path) -> None:
    """A snapshot was made meanwhile, of objects that were there and no other needed."""
    place = repository(tmp_path / "place")
    database = open_with(tmp_path / "a", 300)
    try:
        backups(database).create(place, "one")
        place.objects.delete([snapshot_key("one")])
        slow = Repository(_Asleep(tmp_path / "place", lambda other: backups(database).create(other, "two")))
        assert "so long" in slow.sweep("one", "job").withheld
        assert backups(database).verify(place, "two").whole
        place.remove("two", "job")
        assert objects_of(place) == set()
    finally:
        database.close()


def test_who_was_taken_for_dead_writes_no_snapshot(tmp_path: Path) -> None:
    """What it needs was there when that was looked for, and was swept then."""
    place = repository(tmp_path / "place")
    database = open_with(tmp_path / "a", 300)
    try:
        slow = Repository(_Asleep(tmp_path / "place", lambda other: other.sweep("none", "job")))
        lease = slow.lease(SAVE, "one")
        held = database.snapshot("docs")
        edges = [*range(FEW + 1), HASH_SPACE]  # so many objects that they are listed
        refs = [save_shard(slow, held, ShardFacts(SCHEMA, 0, lo, hi, held.records, held.digest), Watch(CLOCK))
                for lo, hi in pairwise(edges)]
        held.release()
        snapshot = Snapshot("one", 1.0, "", "1", (CollectionManifest(SCHEMA, 1, None, tuple(refs)),))
        with pytest.raises(Unavailable, match="again"):
            slow.commit(snapshot, lease)
        assert place.names() == []
    finally:
        database.close()
