"""What the operating system refuses, in vecdb's words."""

import errno
from pathlib import Path

from vecdb.core.errors import DataCorrupted, InvalidArgument, StorageError, StorageFull, StorageReadOnly, VecdbError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_NAME = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EINVAL})


def from_os_error(error: OSError, path: Path | str, doing: str) -> VecdbError:
    """Return the typed error for ``error`` met while ``doing`` something to ``path``.

    No space, quota and file-size limits are :class:`StorageFull`; refused permission and read-only media
    :class:`StorageReadOnly`; names the file system cannot hold :class:`InvalidArgument`; a medium that
    cannot give its bytes back (``EIO``) is :class:`DataCorrupted`; anything else :class:`StorageError`.
    """
    reason = error.strerror or str(error) or type(error).__name__
    message = f"{doing} {path}: {reason}"
    number = error.errno
    if number in _FULL:
        return StorageFull(message, path=str(path))
    if number in _READ_ONLY:
        return StorageReadOnly(message, path=str(path))
    if number in _NAME:
        return InvalidArgument("path", message, got=str(path), limit="a usable directory")
    if number == errno.EIO:
        return DataCorrupted(message, path=str(path), region="medium")
    return StorageError(message, path=str(path))
