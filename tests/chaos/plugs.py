"""Disks whose plug can be pulled: ext4 on a loop device, ended by the kernel's own shutdown of a file system.

``FS_IOC_SHUTDOWN`` without flushing the log is what file systems are tested with: from that moment nothing reaches the
device, pages that were not written back are gone, and mounting again plays ext4's journal.  All writes are caught,
mapped ones too; less is lost than a stricter file system may lose (:mod:`tests.chaos.forgetting`).  Needs root, loop
devices and ``mkfs.ext4``.
"""

import fcntl
import functools
import os
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path

_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2


class Plug:
    """A file system of ``size`` bytes in the file ``image``, mounted on ``path``."""

    def __init__(self, path: Path, image: Path, size: int) -> None:
        self.path, self._image = path, image
        path.mkdir(parents=True, exist_ok=True)
        with image.open("wb") as file:
            file.truncate(size)
        _do("mkfs.ext4", "-q", "-F", str(image))
        self._mount()

    def _mount(self) -> None:
        _do("mount", "-o", "loop", str(self._image), str(self.path))

    def pull(self) -> None:
        """Nobody may have files open there."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(handle)
        self._unmount()
        self._mount()

    def _unmount(self) -> None:
        for _ in range(100):
            done = subprocess.run(["umount", str(self.path)], capture_output=True, text=True)
            if done.returncode == 0:
                return
            time.sleep(0.1)
        raise PermissionError(done.stderr.strip())

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], capture_output=True)
        self._image.unlink(missing_ok=True)


def _do(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise PermissionError(f"there is no {command[0]}") from error
    if done.returncode:
        raise PermissionError(done.stderr.strip())


@functools.cache
def missing() -> str:
    """Why there can be none here; empty where there can."""
    if not shutil.which("mkfs.ext4"):
        return "there is no mkfs.ext4"
    with tempfile.TemporaryDirectory() as folder:
        try:
            plug = Plug(Path(folder, "disk"), Path(folder, "image"), 16 << 20)
        except PermissionError as error:
            return str(error)
        try:
            plug.pull()
        except OSError as error:
            return f"the file system cannot be shut down: {error}"
        finally:
            plug.close()
    return ""
