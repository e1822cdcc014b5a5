"""Where a replica's state lives, so that another can take its place in one step.

::

    g00000001/STATE             names the folder of the state in use
    g00000001/00000007/         a state: rows/ and segments/
    g00000001/incoming/         what has come of a snapshot
    g00000001/snapshots/3/      hard links for others to read
    g00000001/adopting/         files of a state that is to be adopted
    g00000001.damaged-2/        a state that was set aside

``STATE`` is replaced by a rename.  A folder it does not name is what a killed install left or is about to name, and
goes at the next opening, as do snapshots: who was reading them asks again.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import xxhash

from vecdb.core.errors import DataCorrupted, StorageError
from vecdb.segment.files import from_os_error, sync_directory
from vecdb.services.aside import set_aside

POINTER: Final = "STATE"
INCOMING: Final = "incoming"
SNAPSHOTS: Final = "snapshots"
ADOPTING: Final = "adopting"
_POINTER = re.compile(r"(\d{8}) ([0-9a-f]{16})\n")
_DAMAGED = re.compile(r"(.+)\.damaged-\d+")
_GROUP = re.compile(r"g(\d{8,})")


def folder_of(group: int) -> str:
    """The name of the folder of a group's replica."""
    return f"g{group:08d}"


def group_of(folder: str) -> int | None:
    """The group that a folder is of; None if it is none of ours."""
    found = _GROUP.fullmatch(folder)
    return None if found is None else int(found[1])


class Home:
    """The folder of one replica; one caller changes it at a time.  Errors are ``StorageError`` or ``DataCorrupted``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.incoming = folder / INCOMING
        self.snapshots = folder / SNAPSHOTS
        self.adopting = folder / ADOPTING

    def found(self, fill: Callable[[Path], None]) -> None:
        """Make the folder with its first state, which ``fill`` makes durable; what stood there goes."""
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            for folder in (self.folder.parent, self.folder):  # the first replica's finds no parent
                folder.mkdir(exist_ok=True)
                sync_directory(folder.parent)
        except OSError as error:
            raise from_os_error(error, self.folder, "creating") from error
        state = self.fresh()
        fill(state)
        self.switch(state)

    def state(self) -> Path:
        """The state in use; ``DataCorrupted`` if the folder does not tell."""
        pointer = self.folder / POINTER
        try:
            text = pointer.read_text(encoding="ascii")
        except FileNotFoundError:
            raise DataCorrupted(f"{pointer} is missing", path=str(pointer), region="state") from None
        except ValueError:
            text = ""
        except OSError as error:
            raise from_os_error(error, pointer, "reading") from error
        found = _POINTER.fullmatch(text)
        if found is None or _sealed(found.group(1)) != found.group(2):
            raise DataCorrupted(f"{pointer} cannot be understood", path=str(pointer), region="state")
        state = self.folder / found.group(1)
        if not state.is_dir():
            raise DataCorrupted(f"{state} is missing", path=str(state), region="state")
        return state

    def is_founded(self) -> bool:
        """Whether the folder names a state, whatever that is worth."""
        try:
            return self.state().is_dir()
        except (DataCorrupted, StorageError):
            return False

    def clean(self) -> None:
        """Remove states that are not in use, and snapshots; what has come of one for us, or is to be adopted, stays."""
        keep = {POINTER, INCOMING, ADOPTING, self.state().name}
        for path in self.folder.iterdir():
            if path.name not in keep:
                _remove(path)

    def fresh(self) -> Path:
        """The path of a state that never was; nothing is made."""
        numbers = [int(name) for folder in (self.folder, *self.damaged()) for name in os.listdir(folder)
                   if name.isdigit()]
        return self.folder / f"{max(numbers, default=0) + 1:08d}"

    def switch(self, state: Path) -> None:
        """Let ``state``, which is whole and durable, be the one in use: in one step, durable when this returns."""
        pointer = self.folder / POINTER
        partial = self.folder / f"{POINTER}.partial"
        try:
            with open(partial, "w", encoding="ascii") as file:
                file.write(f"{state.name} {_sealed(state.name)}\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, pointer)
            sync_directory(self.folder)
        except OSError as error:
            raise from_os_error(error, pointer, "writing") from error

    def set_aside(self) -> Path | None:
        """Move all of it to ``<folder>.damaged-<n>``, of which the newest two are kept; where it is now."""
        return set_aside(self.folder)

    def damaged(self) -> list[Path]:
        """States set aside."""
        if not self.folder.parent.is_dir():
            return []
        return [path for path in self.folder.parent.iterdir() if set_aside_of(path.name) == self.folder.name]

    def remove(self) -> None:
        """Delete everything, what was set aside too."""
        for path in (self.folder, *self.damaged()):
            shutil.rmtree(path, ignore_errors=True)


def set_aside_of(name: str) -> str | None:
    """The folder of which the folder ``name`` was set aside, None if it was not."""
    found = _DAMAGED.fullmatch(name)
    return None if found is None else found.group(1)


def _sealed(name: str) -> str:
    return xxhash.xxh3_64_hexdigest(name.encode("ascii"))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
