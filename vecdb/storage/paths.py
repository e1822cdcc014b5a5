"""Folders that are there after a power cut."""

import os
from pathlib import Path
from typing import Final

from vecdb.core.errors import InvalidArgument
from vecdb.segment.files.durable import sync_directory
from vecdb.segment.files.errors import from_os_error


def check_path(path: Path | str) -> Path:
    """Return ``path`` absolute, or raise :class:`InvalidArgument` if no file system could hold it."""
    try:
        absolute = Path(os.path.abspath(os.path.expanduser(path)))
        text = os.fspath(absolute)
        text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise InvalidArgument("path", f"{path!r} is no usable path: {error}", got=type(path).__name__,
                              limit="a directory's path in UTF-8") from None
    if "\0" in text:
        raise InvalidArgument("path", "holds a NUL byte", got=repr(text), limit="a directory's path in UTF-8")
    return absolute


PRIVATE: Final = 0o700


def make_directory(path: Path | str, mode: int = 0o777) -> Path:
    """Make ``path`` and its parents where missing, each recorded durably in its parent; return it absolute.

    ``mode``: of ``path`` itself, less the umask; one that is there keeps its own.
    """
    target = check_path(path)
    try:
        missing: list[Path] = []
        folder = target
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        if not folder.is_dir():
            raise InvalidArgument("path", f"{folder} is no directory", got=str(folder), limit="a directory")
        for folder in reversed(missing):
            folder.mkdir(mode if folder == target else 0o777, exist_ok=True)
            sync_directory(folder.parent)
    except OSError as error:
        raise from_os_error(error, target, "creating") from error
    return target


def replace_file(path: Path, text: str) -> None:
    """Have ``text`` (ASCII) be the file's content, on stable storage: what is read there is the old text or the new."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_directory(path.parent)
    except OSError as error:
        raise from_os_error(error, path, "writing") from error
