"""Opening stores: what the engine needs of the outside to come to life."""

from pathlib import Path
from typing import Protocol

from vecdb.ports.store import Store


class OpenStore(Protocol):
    def __call__(self, path: Path, *, read_only: bool = False) -> Store:
        """Open (and unless ``read_only`` create) the store in the folder ``path``."""
        ...
