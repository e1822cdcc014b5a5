"""The ordered key-value store a shard keeps its rows in."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from vecdb.shard.mutations import Mutations


class Store(Protocol):
    """Keys sort bytewise.  Errors are :class:`vecdb.core.errors.StorageError` (full, read-only) or ``DataCorrupted``.

    After a failed ``write`` or ``sync`` the outcome of that batch is unknown until the store is opened anew.
    """

    def multi_get(self, keys: Sequence[bytes]) -> list[bytes | None]: ...

    def scan(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows of ``[start, stop)`` in key order, from a snapshot taken at the first step."""
        ...

    def write(self, batch: Mutations) -> None:
        """Apply atomically; visible at once to this handle, durable after the next ``sync``."""
        ...

    def sync(self) -> None:
        """Return once every earlier write is on stable storage.  Concurrent calls share one fsync; the GIL is free."""
        ...

    def compact(self, start: bytes, stop: bytes) -> None:
        """Give back the space of what was deleted in ``[start, stop)``; slow, and free of the GIL."""
        ...

    def checkpoint(self, target: Path) -> None:
        """A consistent copy of all that was written, by hard links, in a folder that must not exist; durable."""
        ...

    def close(self) -> None: ...
