"""Damaged folders out of the way: kept for those who want to look, never in the way of a new start."""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from vecdb.core.errors import StorageError

KEPT: Final = 2
"""Damaged folders of one name that are kept, the newest."""


_NAME = re.compile(r".+\.damaged-\d+")


def kept(directory: Path) -> dict[str, int]:
    """What lies set aside in a data directory: ``folders``, and the ``bytes`` they take."""
    folders: list[Path] = []
    total = 0
    for place in (directory, directory / "collections"):
        with suppress(OSError):
            folders += [one for one in place.iterdir() if _NAME.fullmatch(one.name) and one.is_dir()]
    for folder in folders:
        for inner, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):  # the next that is set aside may push it out just now
                    total += os.lstat(os.path.join(inner, name)).st_size
    return {"folders": len(folders), "bytes": total}


def set_aside(folder: Path) -> Path | None:
    """Rename ``folder`` to ``<folder>.damaged-<n>`` and keep the newest few of those; None if there is no such folder.

    Raises ``StorageError``.
    """
    pattern = re.compile(re.escape(folder.name) + r"\.damaged-(\d+)")
    try:
        if not folder.is_dir():
            return None
        numbered = sorted((int(match[1]), path) for path in folder.parent.iterdir()
                          if (match := pattern.fullmatch(path.name)))
        target = folder.with_name(f"{folder.name}.damaged-{numbered[-1][0] + 1 if numbered else 1}")
        folder.rename(target)
    except OSError as error:
        raise StorageError(f"{folder} is damaged and cannot be set aside: {error}", path=str(folder)) from error
    for _, path in numbered[:max(0, len(numbered) + 1 - KEPT)]:
        with suppress(OSError):
            shutil.rmtree(path)
    return target
