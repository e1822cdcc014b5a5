"""A disk that forgets what was not synced: the ``Store`` port in memory."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random

from vecdb.core.errors import DataCorrupted, StorageError
from vecdb.shard.mutations import Mutations


class MemoryStore:
    """Rows in memory; ``crash`` loses a random number of the latest unsynced batches, each as a whole.

    That is what RocksDB promises, with its log and without: a batch is there or not, and none without those before it.
    """

    def __init__(self, found: Iterable[tuple[bytes, bytes]] = (), damaged: Iterable[bytes] = ()) -> None:
        """``found``: rows that are on the disk already; ``damaged``: those of them that cannot be read."""
        self._rows: dict[bytes, bytes] = dict(found)
        self._keys: list[bytes] = sorted(self._rows)
        self._unsynced: list[Mutations] = []
        self._synced: dict[bytes, bytes] = dict(self._rows)
        self.damaged: list[bytes] = list(damaged)
        """Rows that cannot be read, until they are written anew or deleted."""
        self.syncs = 0
        self.failing = False
        """Refuse writes and syncs."""

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        for key in keys if self.damaged else ():
            self._check_readable(key, key + b"\0")
        return [self._rows.get(key) for key in keys]

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        self._check_readable(start, stop)
        keys = self._keys[bisect_left(self._keys, start):bisect_left(self._keys, stop)]
        rows = self._rows
        return iter([(key, rows[key]) for key in keys])

    def write(self, batch: Mutations) -> None:
        self._check()
        self._apply(batch)
        if self.damaged:
            self.damaged = [key for key in self.damaged if not _touches(batch, key)]
        # What is in the columns is immutable, the columns are the caller's.
        self._unsynced.append(Mutations(list(batch.ranges), list(batch.deletes), list(batch.puts)))

    def sync(self) -> None:
        self._check()
        for batch in self._unsynced:
            _apply(self._synced, batch)
        self._unsynced = []
        self.syncs += 1

    def compact(self, start: bytes, stop: bytes) -> None:
        """There is nothing to give back."""

    def checkpoint(self, target: Path) -> None:
        raise StorageError("a store in memory makes no files", path=str(target))

    def close(self) -> None:
        """Everything stays as it is."""

    def crash(self, random: Random) -> int:
        """The power goes; returns how many batches are lost."""
        return self.lose(len(self._unsynced) - random.randint(0, len(self._unsynced)))

    def lose(self, batches: int | None = None) -> int:
        """Forget the latest unsynced batches, all of them unless told how many; the others are on the disk."""
        lost = len(self._unsynced) if batches is None else batches
        for batch in self._unsynced[:len(self._unsynced) - lost]:
            _apply(self._synced, batch)
        self._unsynced = []
        self._rows = dict(self._synced)
        self._keys = sorted(self._rows)
        return lost

    def copy(self) -> "MemoryStore":
        """The same, on a disk of its own."""
        other = MemoryStore(self._synced.items(), self.damaged)
        for batch in self._unsynced:
            other.write(batch)
        return other

    def rows(self) -> list[tuple[bytes, bytes]]:
        """Everything that was written, in order."""
        return [(key, self._rows[key]) for key in self._keys]

    def flip(self, random: Random, start: bytes, stop: bytes) -> bytes | None:
        """Flip a bit of a row of the range, so that nothing below notices; which."""
        key = self._some(random, start, stop)
        if key is None:
            return None
        value = bytearray(self._rows[key])
        value[random.randrange(len(value))] ^= 1 << random.randrange(8)
        self._rows[key] = self._synced[key] = bytes(value)
        return key

    def spoil(self, random: Random, start: bytes = b"", stop: bytes = b"\xff") -> bytes | None:
        """Let a row of the range be unreadable, as a block is whose checksum fails; which."""
        key = self._some(random, start, stop)
        if key is not None:
            self.damaged.append(key)
        return key

    def _some(self, random: Random, start: bytes, stop: bytes) -> bytes | None:
        keys = self._keys[bisect_left(self._keys, start):bisect_left(self._keys, stop)]
        return random.choice(keys) if keys else None

    def durable(self, key: bytes) -> bytes | None:
        """A row as a power cut would leave it: for judges."""
        return self._synced.get(key)

    def _check(self) -> None:
        if self.failing:
            raise StorageError("the simulated disk refuses")

    def _check_readable(self, start: bytes, stop: bytes) -> None:
        for key in self.damaged:
            if start <= key < stop:
                raise DataCorrupted("a block of the simulated store does not match its checksum",
                                    path=f"row {key.hex()}")

    def _apply(self, batch: Mutations) -> None:
        for start, stop in batch.ranges:
            low, high = bisect_left(self._keys, start), bisect_left(self._keys, stop)
            for key in self._keys[low:high]:
                del self._rows[key]
            del self._keys[low:high]
        for key in batch.deletes:
            if self._rows.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]
        for key, value in batch.puts:
            if key not in self._rows:
                insort(self._keys, key)
            self._rows[key] = value


def _touches(batch: Mutations, key: bytes) -> bool:
    return key in batch.deletes or any(key == put for put, _ in batch.puts) \
        or any(start <= key < stop for start, stop in batch.ranges)


def _apply(rows: dict[bytes, bytes], batch: Mutations) -> None:
    for start, stop in batch.ranges:
        for key in [key for key in rows if start <= key < stop]:
            del rows[key]
    for key in batch.deletes:
        rows.pop(key, None)
    rows.update(batch.puts)
