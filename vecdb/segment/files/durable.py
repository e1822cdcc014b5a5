"""Names that are there after a power cut."""

import os
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make the names in ``path`` durable; raises ``OSError``."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
