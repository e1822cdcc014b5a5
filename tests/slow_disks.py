"""Disks of single nodes of one process that are slow, or hang: what nodes sync below their folders waits."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vecdb.storage.rocksdict import RocksStore


class SlowDisks:
    """By the folder of a node: seconds that each sync takes more, or for ever, until it is :meth:`well`."""

    def __init__(self) -> None:
        self._slow: dict[Path, float] = {}
        self._changed = threading.Condition()
        self.waited = 0
        """Syncs that had to wait."""

    def slow(self, folder: Path, seconds: float = float("inf")) -> None:
        with self._changed:
            self._slow[folder.resolve()] = seconds

    def well(self) -> None:
        with self._changed:
            self._slow.clear()
            self._changed.notify_all()

    def slower(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method of stores that waits first."""
        def waiting(store: RocksStore, *args: Any) -> Any:
            self.wait(store.path)
            return method(store, *args)

        return waiting

    def wait(self, path: Path) -> None:
        begun = time.monotonic()
        with self._changed:
            def left() -> float:
                more = next((one for folder, one in self._slow.items() if path.is_relative_to(folder)), 0.0)
                return begun + more - time.monotonic()

            self.waited += left() > 0
            while (seconds := left()) > 0:
                self._changed.wait(min(seconds, 1.0))


@contextmanager
def slow_disks() -> Iterator[SlowDisks]:
    """As long as it lasts, stores of this process wait for disks that are said to be slow."""
    disks = SlowDisks()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("sync", "flush", "checkpoint"):
            patch.setattr(RocksStore, name, disks.slower(getattr(RocksStore, name)))
        try:
            yield disks
        finally:
            disks.well()
