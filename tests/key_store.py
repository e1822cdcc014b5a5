"""A disk that loses what was not synced and refuses when told to, and a clock that is set, for rings of API keys."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vecdb.core.errors import StorageFull
from vecdb.shard.mutations import Mutations


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Disk:
    """What is durable, what is only written, and what fails next: "write", "landed write" or "sync"."""

    durable: dict[bytes, bytes] = field(default_factory=dict)
    pending: list[Mutations] = field(default_factory=list)
    fails: str = ""
    writes: int = 0

    def open(self, path: Path, *, read_only: bool = False, wal: bool = True) -> "DiskStore":
        path.mkdir(exist_ok=True)
        return DiskStore(self)

    def crash(self, survive: int) -> None:
        """Lose all but the first ``survive`` batches that were not synced."""
        for batch in self.pending[:survive]:
            _apply(self.durable, batch)
        self.pending.clear()


class DiskStore:
    """As the real one: after a refusal it takes nothing more."""

    def __init__(self, disk: Disk) -> None:
        self.disk, self.failed = disk, False

    def rows(self) -> dict[bytes, bytes]:
        rows = dict(self.disk.durable)
        for batch in self.disk.pending:
            _apply(rows, batch)
        return rows

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        rows = self.rows()
        return [rows.get(key) for key in keys]

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        yield from sorted((key, value) for key, value in self.rows().items() if start <= key < stop)

    def write(self, batch: Mutations) -> None:
        self._fail_if("write")
        self.disk.writes += 1
        self.disk.pending.append(batch)
        self._fail_if("landed write")

    def sync(self) -> None:
        self._fail_if("sync")
        self.disk.crash(len(self.disk.pending))

    def _fail_if(self, what: str) -> None:
        if self.disk.fails == what:
            self.failed, self.disk.fails = True, ""
        if self.failed:
            raise StorageFull("no space")

    def compact(self, start: bytes, stop: bytes) -> None:
        return None

    def checkpoint(self, target: Path) -> None:
        return None

    def close(self) -> None:
        return None


def _apply(rows: dict[bytes, bytes], batch: Mutations) -> None:
    for key in batch.deletes:
        rows.pop(key, None)
    rows.update(batch.puts)
