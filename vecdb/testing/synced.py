"""What of real files is on stable storage, by what the operating system was asked for, and what a power cut leaves.

:class:`Synced` takes the place of ``os.fsync`` and of the calls that name and unname files while a simulation runs.
Nothing is really synced.  Of a file it is known how many bytes were synced, of a folder with which names it was: POSIX
promises no more, so a name whose folder was not synced since may be forgotten, and what was not synced of a file be
missing, or zeros.  Renaming is atomic, and of several the later ones are undone first: whole files under their old
names come back.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Renamed:
    """``overwritten``: the file whose name was taken; None if there was none."""

    source: str
    target: str
    overwritten: bytes | None


class Synced:
    """Knows, of every file and folder, what a power cut cannot take; use it in a ``with``."""

    def __init__(self) -> None:
        self.at_step: Callable[[], None] = lambda: None
        """Called before everything that a power cut may come before; raises what the disk refuses with."""
        self.syncs = 0
        self.renamed: list[Renamed] = []
        """Of the disk that is at work: what a power cut may undo, oldest first."""
        self._bytes: dict[Identity, int] = {}
        self._names: dict[Identity, dict[str, Identity]] = {}
        self._real: dict[str, Any] = {}

    def __enter__(self) -> Self:
        for name, ours in (("fsync", self._fsync), ("rename", self._rename), ("replace", self._replace),
                           ("unlink", self._unlink), ("remove", self._unlink), ("rmdir", self._rmdir)):
            self._real[name] = getattr(os, name)
            setattr(os, name, ours)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)

    # --- in place of the operating system's -------------------------------------------------------

    def _fsync(self, handle: Any) -> None:
        self.at_step()
        self.syncs += 1
        number = handle if isinstance(handle, int) else handle.fileno()
        found = os.fstat(number)
        if stat.S_ISDIR(found.st_mode):
            self._names[_identity(found)] = _names(number)
            settled = [at for at, one in enumerate(self.renamed) if _is(os.path.dirname(one.target), found)]
            del self.renamed[:settled[-1] + 1 if settled else 0]
        else:
            self._bytes[_identity(found)] = found.st_size

    def _rename(self, source: Any, target: Any, **where: Any) -> None:
        self._move("rename", source, target, where)

    def _replace(self, source: Any, target: Any, **where: Any) -> None:
        self._move("replace", source, target, where)

    def _move(self, how: str, source: Any, target: Any, where: dict[str, Any]) -> None:
        self.at_step()
        overwritten = None
        if os.path.isfile(target):
            with open(target, "rb") as file:
                overwritten = file.read()
        self._forget(target, where.get("dst_dir_fd"))
        self._real[how](source, target, **where)
        self.renamed.append(Renamed(os.path.abspath(source), os.path.abspath(target), overwritten))

    def _unlink(self, path: Any, **where: Any) -> None:
        self._forget(path, where.get("dir_fd"))
        self._real["unlink"](path, **where)

    def _rmdir(self, path: Any, **where: Any) -> None:
        self._forget(path, where.get("dir_fd"))
        self._real["rmdir"](path, **where)

    def _forget(self, path: Any, folder: int | None) -> None:
        """What is at ``path`` goes; its number may soon be another file's."""
        try:
            found = os.stat(path, dir_fd=folder, follow_symlinks=False)
        except OSError:
            return
        if found.st_nlink <= 1 or stat.S_ISDIR(found.st_mode):
            self._bytes.pop(_identity(found), None)
            self._names.pop(_identity(found), None)

    # --- what is known ----------------------------------------------------------------------------

    def trust(self, folder: Path) -> None:
        """Take ``folder`` for synced, with everything below."""
        for path in [folder, *below(folder)]:
            found = path.stat()
            if stat.S_ISDIR(found.st_mode):
                self._names[_identity(found)] = _names(path)
            else:
                self._bytes[_identity(found)] = found.st_size

    def told(self, root: Path) -> tuple[dict[str, int], dict[str, list[str]]]:
        """Of files below ``root`` how many bytes were synced, of folders with which names they were; by path."""
        files: dict[str, int] = {}
        folders: dict[str, list[str]] = {}
        for path in [root, *below(root)]:
            found, name = path.stat(), str(path.relative_to(root))
            if stat.S_ISDIR(found.st_mode):
                now = _names(path)
                folders[name] = [one for one, what in self._names.get(_identity(found), {}).items()
                                 if now.get(one) == what]
            else:
                files[name] = self._bytes.get(_identity(found), 0)
        return files, folders

    def know(self, root: Path, files: Mapping[str, int], folders: Mapping[str, Sequence[str]]) -> None:
        """Take it that of what is below ``root`` so much was synced: see :meth:`told`."""
        for name, size in files.items():
            self._bytes[_identity((root / name).stat())] = size
        for name, names in folders.items():
            path = root / name
            now = _names(path)
            self._names[_identity(path.stat())] = {one: now[one] for one in names}

    # --- power ------------------------------------------------------------------------------------

    def undo(self, renamed: list[Renamed], random: Random) -> list[Path]:
        """The power goes: some of the latest renames have not happened; which names are gone by that.

        Those that have are on stable storage from now on.
        """
        kept = random.randint(0, len(renamed))
        undone, renamed[kept:] = renamed[kept:], []
        lost: list[Path] = []
        for one in reversed(undone):
            if os.path.exists(one.source) or not os.path.exists(one.target) or not os.path.isdir(
                    os.path.dirname(one.source)):
                continue  # it was deleted since, or something else took its name
            self._real["rename"](one.target, one.source)
            lost.append(Path(one.target))
            if one.overwritten is not None:
                Path(one.target).write_bytes(one.overwritten)
                self._trust_name(one.target)
                self._bytes[_identity(os.stat(one.target))] = len(one.overwritten)
        for one in renamed:
            if os.path.exists(one.target):
                self._trust_name(one.target)
        renamed.clear()
        return lost

    def _trust_name(self, name: str) -> None:
        found = os.stat(name)
        folder = _identity(os.stat(os.path.dirname(name)))
        self._names.setdefault(folder, {})[os.path.basename(name)] = _identity(found)

    def lose(self, folder: Path, random: Random) -> list[Path]:
        """The power goes; returns what of the unsynced names and bytes below ``folder`` is gone or torn by it.

        After :meth:`undo`.
        """
        lost: list[Path] = []
        known = self._names.get(_identity(folder.stat()), {})
        forgetful = random.random() < 0.5
        for name in sorted(os.listdir(folder)):
            path = folder / name
            found = path.stat()
            is_folder = stat.S_ISDIR(found.st_mode)
            if forgetful and known.get(name) != _identity(found):
                lost.append(path)
                shutil.rmtree(path) if is_folder else path.unlink()
            elif is_folder:
                lost += self.lose(path, random)
            elif self._bytes.get(_identity(found)) != found.st_size and random.random() < 0.5:
                lost.append(path)
                _tear(path, min(self._bytes.get(_identity(found), 0), found.st_size), found.st_size, random)
        return lost


def below(folder: Path) -> Iterator[Path]:
    """Everything below a folder, in one order."""
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir():
            yield from below(path)


def _identity(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


def _is(path: str, found: os.stat_result) -> bool:
    try:
        return _identity(os.stat(path)) == _identity(found)
    except OSError:
        return False


def _names(folder: Path | int) -> dict[str, Identity]:
    with os.scandir(folder) as entries:
        return {entry.name: _identity(entry.stat(follow_symlinks=False)) for entry in entries}


def _tear(path: Path, synced: int, size: int, random: Random) -> None:
    """Cut a file somewhere behind what of it was synced, or leave zeros there."""
    with open(path, "r+b") as file:
        file.truncate(random.randint(synced, size))
        if random.random() < 0.5:
            file.truncate(size)
