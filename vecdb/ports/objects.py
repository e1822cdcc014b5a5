"""Where backups go: named objects that are written whole, read in ranges, and never changed.

Keys are relative paths of plain ASCII (``objects/ab/ab12``).  Everything blocks, and any thread may ask.  Errors are
``StorageError`` (with its kinds) where the store refuses or cannot be reached, ``PermissionDenied`` where it knows who
asks and forbids, and ``DataCorrupted`` where an object that must be there is not.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol


class ObjectInfo(NamedTuple):
    """``modified_s``: when it was written, by the store's own clock: compare it with nothing else."""

    key: str
    bytes: int
    modified_s: float


class Objects(Protocol):
    """Whoever writes an object is told of it once it is whole and durable; nobody ever sees a part of one."""

    @property
    def url(self) -> str:
        """For people and logs: no secret is in it."""
        ...

    def put(self, key: str, data: bytes, *, new: bool = False) -> bool:
        """Write a small object; with ``new`` only where there is none, and False where there is: of two that write at
        once one is told so.
        """
        ...

    def upload(self, key: str, pieces: Iterable[bytes], size: int) -> None:
        """Write a large one of ``size`` bytes, in parts; what ``pieces`` raises is raised, and nothing was written."""
        ...

    def get(self, key: str) -> bytes | None:
        """All of a small object, None where there is none."""
        ...

    def read(self, key: str, offset: int, length: int) -> bytes:
        """``length`` bytes of it, less at its end."""
        ...

    def stat(self, key: str) -> ObjectInfo | None: ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Everything below ``prefix``, which ends with a slash or is empty; in no order."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Those that are there."""
        ...
