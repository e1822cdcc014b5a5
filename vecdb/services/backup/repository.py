"""The snapshots at one place: what is there, what is added, and what nobody needs any more."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final

from vecdb.core.backups import SnapshotRemoval, check_snapshot_name
from vecdb.core.errors import (
    DataCorrupted,
    FormatMismatch,
    InvalidArgument,
    SnapshotExists,
    SnapshotNotFound,
    Unavailable,
)
from vecdb.ports.objects import Objects
from vecdb.services.backup.manifest import ShardManifest, ShardRef, Snapshot

MARKER: Final = "vecdb.backups"
MARK: Final = b"vecdb backups 1\n"
LEASE_S: Final = 300.0
"""A lease that was not renewed for so long is of one who is dead."""
SAVE, READ, SWEEP = "save", "read", "sweep"
DELETE_AT_ONCE: Final = 1_000
FEW: Final = 64
"""Objects that are looked for one by one sooner than by listing all."""
_OBJECT: Final = re.compile(r"objects/[0-9a-f]{2}/([0-9a-f]{64})")
_WHO: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,255}")
_SNAPSHOT: Final = re.compile(r"snapshots/([^/]+)\.json")


def object_key(sha256: str) -> str:
    return f"objects/{sha256[:2]}/{sha256}"


def snapshot_key(name: str) -> str:
    return f"snapshots/{check_snapshot_name(name)}.json"


class Repository:
    """See the package.  Blocks; any thread may ask.  Errors are the objects' and ``DataCorrupted``."""

    def __init__(self, objects: Objects, *, create: bool = False) -> None:
        """Raises ``FormatMismatch`` where something else is.  ``create``: begin one where nothing is."""
        self.objects = objects
        found = objects.get(MARKER)
        if found is None and create and not objects.put(MARKER, MARK, new=True):
            found = objects.get(MARKER)
        if found not in (None, MARK):
            raise FormatMismatch(f"{objects.url} is of another version, or is no place of snapshots", path=objects.url,
                                 got=repr(found)[:60], limit=MARK.decode().strip())

    @property
    def url(self) -> str:
        return self.objects.url

    # --- snapshots --------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Of all snapshots, sorted."""
        found = (_SNAPSHOT.fullmatch(one.key) for one in self.objects.list("snapshots/"))
        return sorted(one[1] for one in found if one is not None)

    def load(self, name: str) -> Snapshot:
        """Raises ``SnapshotNotFound``."""
        key = snapshot_key(name)
        found = self.objects.get(key)
        if found is None:
            raise SnapshotNotFound(name, self.url)
        snapshot = Snapshot.from_bytes(found, key)
        if snapshot.name != name:
            raise DataCorrupted(f"{key} is of the snapshot {snapshot.name!r}", path=key, region="backup")
        return snapshot

    def check_new(self, name: str) -> None:
        """Raise ``SnapshotExists`` if there is one of that name."""
        if self.objects.stat(snapshot_key(name)) is not None:
            raise SnapshotExists(name, self.url)

    def shard(self, ref: ShardRef) -> ShardManifest:
        """The manifest of a shard, checked against its checksum and against what the snapshot says of it."""
        key = object_key(ref.sha256)
        found = self.objects.get(key)
        if found is None or hashlib.sha256(found).hexdigest() != ref.sha256:
            raise DataCorrupted(f"{key}, a shard of a snapshot, is {'missing' if found is None else 'damaged'} at "
                                f"{self.url}", path=key, region="backup")
        shard = ShardManifest.from_bytes(found, key)
        if (shard.records, shard.digest, shard.lo, shard.hi) != (ref.records, ref.digest, ref.lo, ref.hi):
            raise DataCorrupted(f"{key} is not the shard that its snapshot means", path=key, region="backup")
        return shard

    def add_shard(self, shard: ShardManifest) -> str:
        """Have its manifest be there; its checksum."""
        body = shard.to_bytes()
        sha256 = hashlib.sha256(body).hexdigest()
        self.objects.put(object_key(sha256), body)
        return sha256

    def has(self, sha256: str, size: int) -> bool:
        """Whether the content is there, by its size: whether it is whole, ``verify`` knows."""
        found = self.objects.stat(object_key(sha256))
        return found is not None and found.bytes == size

    def commit(self, snapshot: Snapshot, lease: "Lease") -> None:
        """Let the snapshot be there, if all it needs is.  Raises ``SnapshotExists``; ``Unavailable`` if something
        was swept meanwhile, or is being swept: save it again.
        """
        lease.renew()
        lease.check_no_sweep()
        try:
            missing = self._missing(self.needed([snapshot]))
        except DataCorrupted as error:  # a shard's manifest
            missing = [str(error.fields["path"])]
        if not lease.renew():
            raise Unavailable(f"to look for the objects of {snapshot.name!r} took so long that others may have swept "
                              "them: it has to be done again", snapshot=snapshot.name)
        if missing:
            raise Unavailable(f"{len(missing)} objects of the snapshot {snapshot.name!r} are gone from {self.url}: "
                              "they have to be saved again", snapshot=snapshot.name, objects=missing[:8])
        if not self.objects.put(snapshot_key(snapshot.name), snapshot.to_bytes(), new=True):
            raise SnapshotExists(snapshot.name, self.url)

    def _missing(self, needed: Mapping[str, int]) -> list[str]:
        if len(needed) <= FEW:
            return [one for one, size in needed.items() if not self.has(one, size)]
        there = dict(self._stored())
        return [one for one, size in needed.items() if there.get(one) != size]

    def _stored(self) -> Iterator[tuple[str, int]]:
        for one in self.objects.list("objects/"):
            match = _OBJECT.fullmatch(one.key)
            if match is not None:
                yield match[1], one.bytes

    def needed(self, snapshots: Iterable[Snapshot], read: Callable[[], object] = lambda: None) -> dict[str, int]:
        """Checksums of every object of these snapshots, with the sizes; each shard's manifest is read, of which
        ``read`` is told.
        """
        found: dict[str, int] = {}
        for snapshot in snapshots:
            for collection in snapshot.collections:
                for ref in collection.shards:
                    if ref.sha256 not in found:
                        shard = self.shard(ref)
                        read()
                        found |= {ref.sha256: len(shard.to_bytes()), **shard.objects}
        return found

    def latest(self) -> Snapshot | None:
        """The one that was written last, if any can be read."""
        found = sorted((one.modified_s, match[1]) for one in self.objects.list("snapshots/")
                       if (match := _SNAPSHOT.fullmatch(one.key)) is not None)
        for _, name in reversed(found):
            with suppress(DataCorrupted, FormatMismatch, SnapshotNotFound):
                return self.load(name)
        return None

    # --- leases and what nobody needs -------------------------------------------------------------

    def lease(self, kind: str, who: str) -> "Lease":
        """Say that somebody is at work: ``who`` comes back under the same name after a kill.

        ``Unavailable`` for who saves, while another sweeps.
        """
        lease = Lease(self.objects, kind, who)
        lease.renew()
        if kind == SAVE:
            try:
                lease.check_no_sweep()
            except Unavailable:
                lease.release()
                raise
        return lease

    def remove(self, name: str, who: str) -> SnapshotRemoval:
        """Delete a snapshot and what of it no other needs; raises ``SnapshotNotFound``."""
        key = snapshot_key(name)
        if self.objects.stat(key) is None:
            raise SnapshotNotFound(name, self.url)
        self.objects.delete([key])
        return self.sweep(name, who)

    def sweep(self, name: str, who: str) -> SnapshotRemoval:
        """Delete the objects that no snapshot needs, unless somebody is at work.

        If any snapshot cannot be read nothing is deleted, since it may need anything, and the error is raised.  Whoever
        was stopped for so long that others took him for dead deletes nothing more: they may have saved what needs it.
        """
        lease = Lease(self.objects, SWEEP, who)
        lease.renew()
        manifests = itertools.count(1)
        try:
            others = lease.others()
            if others:
                return SnapshotRemoval(name, withheld=f"{others[0]} is at work at {self.url}: its objects are deleted "
                                       "with the next snapshot's")
            needed = self.needed(map(self.load, self.names()), lambda: next(manifests) % FEW or lease.renew())
            gone = [(one, size) for one, size in self._stored() if one not in needed]
            for at in range(0, len(gone), DELETE_AT_ONCE):
                if not lease.renew() or lease.others():
                    return SnapshotRemoval(name, at, sum(size for _, size in gone[:at]), "it took so long that others "
                                           f"may be at work at {self.url}: what is left is deleted with the next "
                                           "snapshot's")
                self.objects.delete(object_key(one) for one, _ in gone[at : at + DELETE_AT_ONCE])
            return SnapshotRemoval(name, len(gone), sum(size for _, size in gone))
        finally:
            lease.release()


class Lease:
    """See the package."""

    def __init__(self, objects: Objects, kind: str, who: str) -> None:
        self._objects = objects
        if not _WHO.fullmatch(who):
            raise InvalidArgument("who", "is no name for a lease", got=who[:80], limit=_WHO.pattern)
        self._key = f"leases/{kind}-{who}"
        self._renewed_s = 0.0
        self._kept = True

    def renew(self) -> bool:
        """Whether, since it was first written, nobody can have taken it for that of one who is dead: by the store's
        clock.
        """
        self._objects.put(self._key, b"")
        found = self._objects.stat(self._key)
        before, self._renewed_s = self._renewed_s, 0.0 if found is None else found.modified_s
        self._kept &= found is not None and (not before or self._renewed_s < before + LEASE_S)
        return self._kept

    def release(self) -> None:
        self._objects.delete([self._key])

    def others(self, kind: str = "") -> list[str]:
        """Who else is at work, by the store's clock of this lease."""
        mine = self._objects.stat(self._key)
        if mine is None:
            raise Unavailable(f"the lease {self._key} is gone from {self._objects.url}", path=self._key)
        return sorted(one.key.removeprefix("leases/") for one in self._objects.list("leases/")
                      if one.key != self._key and one.key.startswith(f"leases/{kind}")
                      and one.modified_s > mine.modified_s - LEASE_S)

    def check_no_sweep(self) -> None:
        """Raise ``Unavailable`` while somebody deletes objects."""
        sweepers = self.others(SWEEP)
        if sweepers:
            raise Unavailable(f"{sweepers[0]} is deleting objects at {self._objects.url}", retry_after_s=2.0)
