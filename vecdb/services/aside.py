"""Damaged folders out of the way: kept for those who want to look, never in the way of a new start."""

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from vecdb.core.errors import StorageError

KEPT: Final = 2
"""Damaged folders of one name that are kept, the newest."""


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
