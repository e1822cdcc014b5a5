"""Opening stores: what the engine needs of the outside to come to life."""

from pathlib import Path
from typing import Protocol

from vecdb.ports.store import Store


class OpenStore(Protocol):
    def __call__(self, path: Path, *, read_only: bool = False, wal: bool = True) -> Store:
        """Open (and unless ``read_only`` create) the store in the folder ``path``.

        ``wal=False``: without a log of its own.  A crash may lose its latest batches, but none without those after it,
        and none from before the last ``sync``.
        """
        ...
