"""RocksDB says everything in a string; here the strings become typed errors.

``rocksdict`` raises bare ``Exception`` with the text of RocksDB's status, and ``OSError`` for the little
it does to files itself.  The table below is ordered: a full disk met while writing a log is "IO error"
as well, so the particular comes before the general.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path

from vecdb.core.errors import (
    DatabaseClosed,
    DatabaseLocked,
    DataCorrupted,
    StorageError,
    StorageFull,
    StorageReadOnly,
    VecdbError,
)
from vecdb.segment.files.errors import from_os_error

_LOCKED = ("lock hold by", "While lock file", "No locks available", "Resource temporarily unavailable")
_FULL = ("No space left on device", "Disk quota exceeded", "File too large", "NoSpace", "Space limit reached",
         "Max allowed space was reached")
_READ_ONLY = ("Read-only file system", "Permission denied", "Operation not permitted",
              "Not supported operation in read only mode")
_DAMAGED = ("Corruption", "No such file or directory", "Input/output error", "Missing files", "mismatch")
"""A file RocksDB knows of and does not find, or cannot read, is as lost as one with flipped bytes."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_FILE = re.compile(r"/(\d+\.(?:sst|log|blob)|MANIFEST-\d+|CURRENT|OPTIONS-\d+|IDENTITY)\b")


def from_rocksdb(error: BaseException, path: Path | str, doing: str) -> VecdbError:
    """Return the typed error for ``error`` that rocksdict raised while ``doing`` something to the store at ``path``."""
    if isinstance(error, VecdbError):
        return error
    text = str(error)
    if isinstance(error, OSError):
        numbered = _OS_ERROR.search(text)
        if error.errno is None and numbered:  # made by Rust: the number is in the text only
            error = OSError(int(numbered.group(1)), os.strerror(int(numbered.group(1))))
        told = from_os_error(error, path, doing)
        return _full(told.message, path, doing) if isinstance(told, StorageFull) else told
    if type(error).__name__ == "DbClosedError":
        return DatabaseClosed(f"the store at {path} is closed")
    message = f"{doing} the store at {path}: {text}"
    if any(sign in text for sign in _LOCKED):
        return DatabaseLocked(message, path=str(path))
    if any(sign in text for sign in _FULL):
        return _full(message, path, doing)
    if any(sign in text for sign in _READ_ONLY):
        return StorageReadOnly(message, path=str(path))
    if any(sign in text for sign in _DAMAGED):
        found = _FILE.search(text)
        return DataCorrupted(message, path=str(Path(path, found.group(1)) if found else path), region="store")
    return StorageError(message, path=str(path))


def _full(message: str, path: Path | str, doing: str) -> StorageFull:
    """Say first what the matter is, then how much room there is, then what can be done meanwhile."""
    free: int | None = None
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(next(one for one in (Path(path), *Path(path).parents) if one.exists())).free
    room = "" if free is None else f" ({free} bytes free)"
    advice = "; free some space, or open it with read_only=True to read what is there" if doing == "opening" else ""
    return StorageFull(f"the disk is full or a quota reached{room}{advice}: {message}", path=str(path), free_bytes=free)
