"""A shard's files into a repository: what is missing there, at a pace, and again from where it was interrupted."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from vecdb.core.errors import Cancelled, DataCorrupted
from vecdb.core.schema import CollectionSchema
from vecdb.ports.clock import Clock
from vecdb.ports.replicator import Position, Snapshot, SnapshotFile
from vecdb.services.backup.manifest import INLINE_BYTES, FilePart, ShardManifest, ShardRef
from vecdb.services.backup.repository import Repository, object_key

READ_BYTES: Final = 1 << 20
FILES_AT_ONCE: Final = 3
BURST_S: Final = 0.25


class Watch:
    """How far the copying is, at what pace, and whether it is to stop; any thread asks.

    ``bytes_s``: of bytes that go over the line; None: no limit.  Who is to stop finds ``Cancelled``.
    """

    def __init__(self, clock: Clock, bytes_s: float | None = None) -> None:
        self._clock = clock
        self._bytes_s = bytes_s
        self._lock = threading.Lock()
        self._due = 0.0
        self._stopped = False
        self.total = 0
        self.done = 0
        """Bytes of ``total`` that are where they should be."""
        self.moved = 0
        """Of these, bytes that went over the line."""

    def stop(self) -> None:
        self._stopped = True

    def check(self) -> None:
        if self._stopped:
            raise Cancelled("the copying was stopped")

    def expect(self, size: int) -> None:
        with self._lock:
            self.total += size

    def passed(self, size: int, *, moved: bool) -> None:
        """So much is done; waits until more may be."""
        with self._lock:
            self.done += size
            wait = 0.0
            if moved:
                self.moved += size
                if self._bytes_s:
                    now = self._clock.monotonic()
                    self._due = max(self._due, now - BURST_S) + size / self._bytes_s
                    wait = self._due - now
        while wait > 0.0:
            self.check()
            self._clock.sleep(min(wait, BURST_S))
            wait -= BURST_S
        self.check()


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What a shard is, beside its files."""

    schema: CollectionSchema
    group: int
    lo: int
    hi: int
    records: int
    digest: str
    node: str = ""


def save_shard(repository: Repository, snapshot: Snapshot, facts: ShardFacts, watch: Watch) -> ShardRef:
    """Have everything of a shard be in the repository but the snapshot that names it; under a lease of the caller's.

    Raises ``DataCorrupted`` if a file changes while it is read, ``Cancelled``, and what the repository raises.
    """
    watch.expect(sum(one.bytes for one in snapshot.files))
    before = watch.moved
    with ThreadPoolExecutor(FILES_AT_ONCE, "backup") as pool:
        tasks = [pool.submit(_save_file, repository, snapshot, place, watch) for place in range(len(snapshot.files))]
        try:
            files = tuple(task.result() for task in tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
    position: Position = snapshot.position
    shard = ShardManifest(facts.schema, facts.lo, facts.hi, position.log_index, position.term, facts.records,
                          facts.digest, tuple(sorted(files, key=lambda one: one.name)))
    return ShardRef(repository.add_shard(shard), facts.group, facts.lo, facts.hi, position.log_index, facts.records,
                    facts.digest, shard.size, facts.node, watch.moved - before)


def _save_file(repository: Repository, snapshot: Snapshot, place: int, watch: Watch) -> FilePart:
    file: SnapshotFile = snapshot.files[place]
    if file.bytes <= INLINE_BYTES:
        content = snapshot.read(place, 0, file.bytes)
        watch.passed(file.bytes, moved=False)
        return FilePart(file.name, len(content), hashlib.sha256(content).hexdigest(), content)
    hasher = hashlib.sha256()
    for piece in _pieces(snapshot, place):
        hasher.update(piece)
        watch.check()
    sha256 = hasher.hexdigest()
    if repository.has(sha256, file.bytes):
        watch.passed(file.bytes, moved=False)
    else:
        repository.objects.upload(object_key(sha256), _checked(snapshot, place, sha256, watch), file.bytes)
    return FilePart(file.name, file.bytes, sha256)


def _pieces(snapshot: Snapshot, place: int) -> Iterator[bytes]:
    size, at = snapshot.files[place].bytes, 0
    while at < size:
        piece = snapshot.read(place, at, min(READ_BYTES, size - at))
        if not piece:
            break
        yield piece
        at += len(piece)


def _checked(snapshot: Snapshot, place: int, sha256: str, watch: Watch) -> Iterator[bytes]:
    """The file; raises before its end is sent if that is not the content it is to be an object of."""
    hasher = hashlib.sha256()
    held = b""
    for piece in _pieces(snapshot, place):
        hasher.update(piece)
        if held:
            yield held
        held = piece
        watch.passed(len(piece), moved=True)
    if hasher.hexdigest() != sha256:
        name = snapshot.files[place].name
        raise DataCorrupted(f"{name} gave other bytes when it was read again", path=name, region="backup")
    yield held
