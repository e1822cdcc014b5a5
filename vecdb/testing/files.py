"""A node's disk with folders on it: real files, and stores in memory that stand for RocksDB's.

A power cut loses batches of stores that were not flushed, and of files what :mod:`~vecdb.testing.synced` says; it may
come before any step of what a thread does (:meth:`Disk.cut_within`).  A store's folder may be moved and linked like one
of RocksDB's: what it is known by stands in it.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import xxhash

from vecdb.core.errors import DatabaseClosed, DataCorrupted, InvalidArgument, StorageError, StorageReadOnly, VecdbError
from vecdb.shard.mutations import Mutations
from vecdb.storage.paths import make_directory
from vecdb.testing.disk import MemoryStore
from vecdb.testing.synced import Renamed, Synced, below

MARK: Final = "IN_MEMORY"
"""In a store's folder: its number among the stores of its disk."""
TABLES: Final = ("000001.sst", "000002.sst")
"""What a checkpoint is made of."""
ROT: Final = 0.02
"""How likely a write meets damage in the tables below it."""
_LENGTH: Final = 4
_HASH: Final = 8


@dataclass(slots=True)
class _Image:
    """A disk as it was at some step."""

    folder: Path
    stores: dict[int, MemoryStore]
    files: dict[str, int]
    folders: dict[str, list[str]]
    renamed: list[Renamed]


class Disk:
    """Everything of one node that outlives its process: the folder ``root``, and stores."""

    def __init__(self, root: Path, synced: Synced) -> None:
        self.root = root
        self.synced = synced
        self.failing = False
        """Refuse writes to stores, and syncs."""
        self.chance: Random | None = None
        """Whether a store with damaged rows refuses a write, for it has met them while it rewrote its tables."""
        self._stores: dict[int, MemoryStore] = {}
        self._open: dict[int, SimStore] = {}
        self._steps = 0
        self._cut_at = -1
        self._image: _Image | None = None
        self._renamed: list[Renamed] = []
        root.mkdir(parents=True)
        synced.trust(root)

    # --- stores -----------------------------------------------------------------------------------

    def open_store(self, path: Path, *, read_only: bool = False, wal: bool = True) -> "SimStore":
        """The :class:`~vecdb.ports.stores.OpenStore` of this disk."""
        number = self._number_in(path)
        if number is None:
            number = self._new(path, read_only)
        if number in self._open:
            raise StorageError("the simulated store is open already", path=str(path))
        store = self._stores[number]
        if not wal:
            store.lose()  # what a handle before this one wrote and did not flush has died with its memory
        self._open[number] = SimStore(self, number, store, path, read_only)
        return self._open[number]

    def _number_in(self, path: Path) -> int | None:
        try:
            number = int((path / MARK).read_text())
        except FileNotFoundError:
            return None
        return number

    def _new(self, path: Path, read_only: bool) -> int:
        found = _read_tables(path)
        if read_only and found is None:
            raise StorageError(f"there is no store at {path}", path=str(path))
        make_directory(path)
        number = len(self._stores) + 1
        self._stores[number] = found or MemoryStore()
        (path / MARK).write_text(str(number))
        for table in TABLES:
            (path / table).unlink(missing_ok=True)
        self.synced.trust(path)
        return number

    def closed(self, number: int) -> None:
        self._open.pop(number, None)

    def stores_below(self, folder: Path) -> list[MemoryStore]:
        """Stores whose folders are ``folder`` or below it."""
        if not folder.is_dir():
            return []
        return [self._stores[int(path.read_text())] for path in below(folder) if path.name == MARK]

    # --- power ------------------------------------------------------------------------------------

    def step(self) -> None:
        """Something is about to happen that a power cut may come before, or that a full disk refuses."""
        self._steps += 1
        if self._steps == self._cut_at:
            self._image = self._take()
        if self.failing:
            raise OSError(28, "the simulated disk is full")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """A thread of this node does something: what is synced meanwhile is on this disk."""
        synced = self.synced
        before = synced.at_step, synced.renamed
        synced.at_step, synced.renamed = self.step, self._renamed
        try:
            yield
        finally:
            synced.at_step, synced.renamed = before

    def cut_within(self, work: Callable[[], Any], steps: int) -> bool:
        """Do ``work`` until the power goes before its ``steps``-th step, or to its end if it has fewer; which.

        It is carried out whole, on a disk that then turns out to be as it was at that step: so no line of it, not even
        one that cleans up, has run after the cut.
        """
        self._cut_at = self._steps + steps
        try:
            with self.at_work():
                work()
        except (VecdbError, OSError):
            pass  # the process is gone: nobody is told
        finally:
            self._cut_at = -1
        image, self._image = self._image, None
        if image is not None:
            self._restore(image)
        return image is not None

    def crash(self, random: Random) -> tuple[int, list[str]]:
        """The power goes; how many batches of stores are lost, and which files and folders are gone or torn."""
        for handle in list(self._open.values()):
            handle.die()
        batches = 0
        for store in self._stores.values():
            batches += store.lose() if random.random() < 0.5 else store.crash(random)
        lost = self.synced.undo(self._renamed, random) + self.synced.lose(self.root, random)
        self.synced.trust(self.root)
        return batches, [os.path.relpath(path, self.root) for path in lost]

    def _take(self) -> _Image:
        folder = self.root.with_name(f"{self.root.name}.image")
        shutil.copytree(self.root, folder)
        return _Image(folder, {number: store.copy() for number, store in self._stores.items()},
                      *self.synced.told(self.root), list(self._renamed))

    def _restore(self, image: _Image) -> None:
        for handle in list(self._open.values()):
            handle.die()
        shutil.rmtree(self.root)
        image.folder.rename(self.root)
        self._stores = image.stores
        self._renamed[:] = image.renamed
        self.synced.know(self.root, image.files, image.folders)


class SimStore:
    """One opening of a store, with the manners of RocksDB's: after a refusal it takes no more writes."""

    def __init__(self, disk: Disk, number: int, store: MemoryStore, path: Path, read_only: bool) -> None:
        self._disk = disk
        self._number = number
        self._store = store
        self._path = path
        self._read_only = read_only
        self._closed = False
        self._failure: VecdbError | None = None

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self._check_open()
        return self._store.multi_get(keys)

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._check_open()
        return self._store.scan(start, stop)

    def write(self, batch: Mutations) -> None:
        with self._changing():
            self._store.write(batch)

    def sync(self) -> None:
        with self._changing():
            self._store.sync()

    flush = sync

    def compact(self, start: bytes, stop: bytes) -> None:
        with self._changing():
            self._store.compact(start, stop)

    def checkpoint(self, target: Path) -> None:
        """Two tables, synced, in a folder that must not exist."""
        with self._changing():
            if target.exists():
                raise InvalidArgument("target", f"{target} exists already", got=str(target), limit="a new folder")
            self._store.sync()
            make_directory(target)
            rows = self._store.rows()
            middle = len(rows) // 2
            for name, part in zip(TABLES, (rows[:middle], rows[middle:]), strict=True):
                (target / name).write_bytes(_table(part, self._store.damaged))
            self._disk.synced.trust(target)

    def close(self) -> None:
        """Flushed, if the disk takes it; a second call does nothing."""
        if self._closed:
            return
        try:
            if self._failure is None and not self._read_only:
                self.sync()
        finally:
            self.die()

    def die(self) -> None:
        """The process is gone."""
        self._closed = True
        self._disk.closed(self._number)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self._check_open()
        if self._read_only:
            raise StorageReadOnly("the store was opened read-only", path=str(self._path))
        if self._failure is not None:
            raise self._failure
        if self._store.damaged and self._disk.chance is not None and self._disk.chance.random() < ROT:
            self._failure = DataCorrupted("the simulated store has met a damaged block", path=str(self._path))
            raise self._failure
        try:
            self._disk.step()
            yield
        except OSError as error:
            self._failure = StorageError("the simulated disk refuses", path=str(self._path))
            raise self._failure from error

    def _check_open(self) -> None:
        if self._closed:
            raise DatabaseClosed("the simulated store is closed", path=str(self._path))


def _table(rows: Sequence[tuple[bytes, bytes]], damaged: Sequence[bytes]) -> bytes:
    """Rows as a file: lengths, keys, values, a checksum a row; that of a damaged one does not match."""
    parts: list[bytes] = []
    for key, value in rows:
        checksum = xxhash.xxh3_64_intdigest(key + value) ^ (key in damaged)
        parts += [len(key).to_bytes(_LENGTH, "big"), len(value).to_bytes(_LENGTH, "big"),
                  checksum.to_bytes(_HASH, "big"), key, value]
    return b"".join(parts)


def _read_tables(path: Path) -> MemoryStore | None:
    """What a checkpoint holds; None where there is none."""
    if not (path / TABLES[0]).exists():
        return None
    rows: list[tuple[bytes, bytes]] = []
    damaged: list[bytes] = []
    for table in TABLES:
        try:
            data = (path / table).read_bytes()
        except FileNotFoundError as error:
            raise DataCorrupted("a table of the simulated store is missing", path=str(path / table)) from error
        at = 0
        while at < len(data):
            start = at + 2 * _LENGTH + _HASH
            key_length, value_length, checksum = (int.from_bytes(data[low:high], "big") for low, high in (
                (at, at + _LENGTH), (at + _LENGTH, at + 2 * _LENGTH), (at + 2 * _LENGTH, start)))
            key, value = data[start:start + key_length], data[start + key_length:start + key_length + value_length]
            at = start + key_length + value_length
            if at > len(data):
                raise DataCorrupted("a table of the simulated store is cut short", path=str(path / table))
            if xxhash.xxh3_64_intdigest(key + value) != checksum:
                damaged.append(key)
            rows.append((key, value))
    return MemoryStore(rows, damaged)
