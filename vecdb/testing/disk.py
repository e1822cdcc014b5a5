"""A disk that forgets what was not synced: the ``Store`` port in memory, and files beside it."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random

from vecdb.core.errors import StorageError
from vecdb.shard.mutations import Mutations


class MemoryStore:
    """Rows in memory; ``crash`` loses a random number of the latest unsynced batches, each as a whole.

    That is what RocksDB promises: a batch is there or not, and none without those before it.
    """

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        self._unsynced: list[Mutations] = []
        self._synced: dict[bytes, bytes] = {}
        self.syncs = 0
        self.failing = False
        """Refuse writes and syncs."""

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._rows.get(key) for key in keys]

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        keys = self._keys[bisect_left(self._keys, start):bisect_left(self._keys, stop)]
        rows = self._rows
        return iter([(key, rows[key]) for key in keys])

    def write(self, batch: Mutations) -> None:
        self._check()
        self._apply(batch)
        self._unsynced.append(deepcopy(batch))

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
        kept = random.randint(0, len(self._unsynced))
        lost = len(self._unsynced) - kept
        for batch in self._unsynced[:kept]:
            _apply(self._synced, batch)
        self._unsynced = []
        self._rows = dict(self._synced)
        self._keys = sorted(self._rows)
        return lost

    def flip(self, random: Random, start: bytes, stop: bytes) -> bytes | None:
        """Flip a bit of a row of the range; which."""
        keys = self._keys[bisect_left(self._keys, start):bisect_left(self._keys, stop)]
        if not keys:
            return None
        key = random.choice(keys)
        value = bytearray(self._rows[key])
        value[random.randrange(len(value))] ^= 1 << random.randrange(8)
        self._rows[key] = self._synced[key] = bytes(value)
        return key

    def durable(self, key: bytes) -> bytes | None:
        """A row as a power cut would leave it: for judges."""
        return self._synced.get(key)

    def _check(self) -> None:
        if self.failing:
            raise StorageError("the simulated disk refuses")

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


def _apply(rows: dict[bytes, bytes], batch: Mutations) -> None:
    for start, stop in batch.ranges:
        for key in [key for key in rows if start <= key < stop]:
            del rows[key]
    for key in batch.deletes:
        rows.pop(key, None)
    rows.update(batch.puts)
