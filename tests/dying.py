"""What processes of an engine are given to do, in a module that is quickly imported: each is a new one."""

import os
import signal
from pathlib import Path

from vecdb.core.errors import InvalidArgument


def die_once(path: Path) -> int:
    """The first to come for a path is killed."""
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def die(path: Path) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def refuse(path: Path) -> int:
    raise InvalidArgument("file", f"{path} is none", got="x", limit="y", row=7)
