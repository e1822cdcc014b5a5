"""Reading what lies on the medium, and not what the page cache remembers of it."""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from vecdb.segment.files.errors import from_os_error
from vecdb.segment.files.layout import BLOCK_BYTES, PAGE_BYTES, damaged

_DIRECT: Final = getattr(os, "O_DIRECT", 0)


class MediumReader:
    """Reads of one file past the page cache, which keeps what it has for those who answer from it.

    Where the file system knows no such reads (``tmpfs``, systems without ``O_DIRECT``) they are plain ones: then what
    is in the cache is what is checked.  ``between`` is called before each read of at most a MiB, and may raise or wait.
    """

    def __init__(self, between: Callable[[], None] = lambda: None) -> None:
        self._between = between
        self._buffer = mmap.mmap(-1, BLOCK_BYTES + 2 * PAGE_BYTES)  # begins with a page, as direct reads demand
        self._begun = False

    def __call__(self, path: Path, handle: int, piece: memoryview, at: int) -> None:
        """Fill ``piece`` with the bytes of the file from ``at`` on; errors as of plain reading."""
        try:
            if not self._begun:
                self._begun = True
                with suppress(OSError):
                    _set_direct(handle, _DIRECT)
            done = 0
            while done < len(piece):
                self._between()
                found = self._some(handle, at + done, min(len(piece) - done, BLOCK_BYTES))
                if not found:
                    raise damaged(path, "end", "the file was cut short", (at + done, at + len(piece)))
                piece[done : done + len(found)] = found
                done += len(found)
        except OSError as error:
            raise from_os_error(error, path, "reading") from error

    def _some(self, handle: int, at: int, wanted: int) -> memoryview:
        """Bytes from ``at`` on, at most ``wanted``; none at the end of the file.  Good until the next read."""
        skip = at % PAGE_BYTES
        whole = memoryview(self._buffer)[: -(-(skip + wanted) // PAGE_BYTES) * PAGE_BYTES]
        try:
            count = os.preadv(handle, [whole], at - skip)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _set_direct(handle, 0)  # a medium of other units
            count = os.preadv(handle, [whole], at - skip)
        return whole[skip : min(count, skip + wanted)] if count > skip else whole[:0]


def _set_direct(handle: int, flag: int) -> None:
    fcntl.fcntl(handle, fcntl.F_SETFL, fcntl.fcntl(handle, fcntl.F_GETFL) & ~_DIRECT | flag)
