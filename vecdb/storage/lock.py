"""One process, and one handle in it, per database directory.

The lock is ``flock`` on ``vecdb.lock``: the kernel lets go of it when the process ends, however it ends, so
no stale lock is ever left to clean up.  What the file says (process id, since when, which command) is only
for the message of the one who comes second.  It belongs to the open file, not to the process, so a second
handle in the same process is refused too, and a forked child would keep it alive: children close
their copy.
"""

import contextlib
import errno
import fcntl
import os
import sys
import threading
import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import orjson

from vecdb.core.errors import DatabaseLocked, StorageReadOnly
from vecdb.segment.files.errors import from_os_error
from vecdb.storage.paths import make_directory

LOCK_NAME = "vecdb.lock"
_BUSY = frozenset({errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN})


class DirectoryLock:
    """The right to use a database's directory, held from construction until ``close``.

    ``read_only`` shares it with other readers and needs no permission to write; where the directory cannot be
    written to and holds no lock file there can be no writer, and nothing is locked.
    Raises :class:`DatabaseLocked` saying who holds it, :class:`StorageReadOnly` or another :class:`StorageError`.
    """

    def __init__(self, directory: Path | str, *, read_only: bool = False) -> None:
        self._path = Path(directory).absolute() / LOCK_NAME
        self._guard = threading.Lock()
        self._handle: int | None = self._open(read_only)
        if self._handle is None:
            return
        try:
            self._acquire(self._handle, read_only)
            if not read_only:
                self._sign(self._handle)
        except BaseException:
            self.close()
            raise
        _held.add(self)

    @property
    def path(self) -> Path:
        return self._path

    def close(self) -> None:
        """Let go; a second call does nothing."""
        with self._guard:
            handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, read_only: bool) -> int | None:
        try:
            if read_only:
                return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            make_directory(self._path.parent)
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError as error:
            if read_only:
                return None
            raise from_os_error(error, self._path, "locking") from error
        except OSError as error:
            raise from_os_error(error, self._path, "locking") from error

    def _acquire(self, handle: int, read_only: bool) -> None:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _BUSY:
                raise from_os_error(error, self._path, "locking") from error
            holder = _read_holder(handle)
            raise DatabaseLocked(
                f"the database at {self._path.parent} is in use by {_describe(holder)}; close it there first",
                path=str(self._path.parent), holder=holder) from None

    def _sign(self, handle: int) -> None:
        note = orjson.dumps({"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds"),
                             "command": " ".join(sys.argv[:3])[:200]})
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, note, 0)
        except OSError as error:
            failure = from_os_error(error, self._path, "locking")
            if isinstance(failure, StorageReadOnly):
                raise failure from error
            # A full disk must not keep a database from being opened and read: the lock holds without a note.

    def _forget(self) -> None:
        """In a forked child: the parent's lock must not live on in our copy of its file."""
        self._guard = threading.Lock()
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(OSError):
                os.close(handle)


_held: "weakref.WeakSet[DirectoryLock]" = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_held):
        lock._forget()


os.register_at_fork(after_in_child=_after_fork)


def _read_holder(handle: int) -> dict[str, Any]:
    try:
        note = orjson.loads(os.pread(handle, 4096, 0))
    except (OSError, orjson.JSONDecodeError):
        return {}
    return note if isinstance(note, dict) else {}


def _describe(holder: dict[str, Any]) -> str:
    pid = holder.get("pid")
    if pid is None:
        return "another process"
    who = "another handle in this process" if pid == os.getpid() else f"process {pid} ({holder.get('command', '?')})"
    return f"{who} since {holder.get('since', '?')}"
