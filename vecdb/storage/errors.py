"""RocksDB says everything in a string; here the strings become typed errors.

``rocksdict`` raises bare ``Exception`` with the text of RocksDB's status, and ``OSError`` for the little
it does to files itself.  The table below is ordered: a full disk met while writing a log is "IO error"
as well, so the particular comes before the general.
"""

import os
import re
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
        return from_os_error(error, path, doing)
    if type(error).__name__ == "DbClosedError":
        return DatabaseClosed(f"the store at {path} is closed")
    message = f"{doing} the store at {path}: {text}"
    if any(sign in text for sign in _LOCKED):
        return DatabaseLocked(message, path=str(path))
    if any(sign in text for sign in _FULL):
        return StorageFull(message, path=str(path))
    if any(sign in text for sign in _READ_ONLY):
        return StorageReadOnly(message, path=str(path))
    if any(sign in text for sign in _DAMAGED):
        found = _FILE.search(text)
        return DataCorrupted(message, path=str(Path(path, found.group(1)) if found else path), region="store")
    return StorageError(message, path=str(path))
