"""How far the newest log was synced, kept beside it, so that a log that lost its end is not taken for one that ended.

RocksDB takes a log that is cut, emptied or gone for one that stopped there, and the acknowledged records behind
are missing without a word.  After each sync the file ``SYNCED`` is told the log's name and the size it had when the
sync began: at least so much is on the disk, and it ends with a record, for nobody writes while the size is read.  The
note itself is not synced, which would double the cost of a write: a killed process leaves it in the kernel's hands, and
after a power cut it is at worst older, so it never claims too much.  A log the MANIFEST no longer needs may be shorter
or gone; a note that is missing or broken demands nothing.  What looks like a torn end (:mod:`vecdb.storage.torn`) and
was synced is none.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import xxhash

from vecdb.core.errors import DataCorrupted
from vecdb.storage.wal import LOG_NAME

SYNCED_NAME = "SYNCED"
SETTLED_NS = 1_000_000_000
"""A directory that has not changed for so long is listed as it will be until it changes."""
_NOTE = re.compile(r"(\d+)\.log (\d+) ([0-9a-f]{16})\n")


def check_synced(directory: Path, oldest_needed: Callable[[], int | None]) -> None:
    """Raise :class:`DataCorrupted` if a log that is still needed is shorter than it had been synced."""
    note = _read(directory)
    if note is None:
        return
    number, size = note
    log = directory / f"{number:06d}.log"
    try:
        there = log.stat().st_size
    except FileNotFoundError:
        there = -1
    if there >= size:
        return
    oldest = oldest_needed()
    if oldest is None or number < oldest:  # None: the tables are damaged as well, which opening will say
        return
    what = "is missing" if there < 0 else f"ends at byte {there}"
    raise DataCorrupted(f"{log} {what}, and {size} bytes of it or more had been synced", path=str(log), region="log",
                        offset=max(there, 0))


def check_torn(directory: Path, log: Path, offset: int) -> None:
    """Raise :class:`DataCorrupted` if what looks like a torn end of ``log``, from ``offset`` on, had been synced."""
    note = _read(directory)
    if note is not None and note[0] == int(log.stem) and offset < note[1]:
        raise DataCorrupted(f"{log} cannot be read from byte {offset} on, and {note[1]} bytes of it or more had been "
                            "synced", path=str(log), region="log", offset=offset)


class SyncNote:
    """The note of one open store; :meth:`newest` before a sync, :meth:`tell` after it, by one thread at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = os.fspath(directory)
        self._handle = -1
        self._length = 0
        self._listed: tuple[int, int] | None = None
        """When the directory had last changed as it was listed, and the newest log's number."""

    def newest(self) -> tuple[int, int] | None:
        """Number and size of the log being written; None if there is none."""
        with contextlib.suppress(OSError):
            changed = os.stat(self._directory).st_mtime_ns
            if self._listed is None or self._listed[0] != changed:
                newest = max((int(found[1]) for found in map(LOG_NAME.fullmatch, os.listdir(self._directory)) if found),
                             default=None)
                if newest is None:
                    return None
                # A file that comes within the same tick of the kernel's clock does not change the time again.
                self._listed = (changed if abs(time.time_ns() - changed) > SETTLED_NS else -1, newest)
            number = self._listed[1]
            return number, os.stat(f"{self._directory}/{number:06d}.log").st_size
        self._listed = None
        return None

    def tell(self, log: tuple[int, int] | None) -> None:
        """Note what is synced.  Never fails: the older note stays true."""
        with contextlib.suppress(OSError):
            if log is None or log[1] == 0:
                self.forget()
                return
            line = f"{log[0]:06d}.log {log[1]}"
            text = f"{line} {xxhash.xxh3_64_hexdigest(line.encode())}\n".encode()
            if self._handle < 0:
                self._handle = os.open(f"{self._directory}/{SYNCED_NAME}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC,
                                       0o644)
                self._length = os.fstat(self._handle).st_size
            os.pwrite(self._handle, text, 0)
            if len(text) < self._length:
                os.ftruncate(self._handle, len(text))
            self._length = len(text)

    def forget(self) -> None:
        """Demand nothing, before the log is cut on purpose or once it is empty."""
        self.close()
        Path(self._directory, SYNCED_NAME).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)


def _read(directory: Path) -> tuple[int, int] | None:
    try:
        found = _NOTE.fullmatch((directory / SYNCED_NAME).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    if found is None:
        return None
    number, size, seal = found.groups()
    whole = xxhash.xxh3_64_hexdigest(f"{number}.log {size}".encode()) == seal
    return (int(number), int(size)) if whole else None
