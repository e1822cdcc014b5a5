"""How much memory and disk there is, as far as this process may use it.

In a container the machine's figures lie: the control group's limit is where the kernel kills.  Both versions of the
interface are read, along the whole path from the process's group to the root, and the smallest limit holds.
"""

import ctypes
import os
import resource
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vecdb.segment.files import from_os_error

_UNLIMITED = 1 << 60
"""Version 1 says "no limit" by a number near 2**63."""

MAPPED_FROM: Final = 8 << 20
"""Bytes of one piece from which the C library maps it anew each time, and gives it back at once."""
SPARE_BYTES: Final = 64 << 20
"""Free at the end of a heap before the C library gives it back."""
HEAPS: Final = 4
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of glibc's malloc.h."""


def reuse_freed() -> bool:
    """Have glibc keep what is freed for what comes next, at most ``HEAPS * SPARE_BYTES`` of it; whether it does.

    Left alone it maps pieces of a megabyte anew or trims its heaps behind them, so each batch of a write found its
    memory unmapped: a fault and a cleared page for every 4 KB of each of its copies.  Measured, batches of 1 MB on
    three nodes: a third of the faults and a twentieth of the CPU less, resident memory within 2 %.  Other C libraries
    are left as they are.
    """
    if sys.platform != "linux":
        return False
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # raises where it is another library
        return all(library.mallopt(what, value) == 1 for what, value in (
            (_M_ARENA_MAX, HEAPS), (_M_MMAP_THRESHOLD, MAPPED_FROM), (_M_TRIM_THRESHOLD, SPARE_BYTES)))
    return False


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: what the process may use at most, what of it is free now, and what it holds resident."""

    total_bytes: int
    available_bytes: int
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Disk:
    total_bytes: int
    free_bytes: int


def memory(root: Path = Path("/")) -> Memory:
    """Measure now.  ``root`` is where ``proc`` and ``sys`` are found; other than ``/`` only in tests."""
    total, available = _machine(root)
    for limit, used in _group_limits(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return Memory(total, available, resident_bytes(root))


def resident_bytes(root: Path = Path("/")) -> int:
    """The process's resident set in bytes."""
    try:
        return int((root / "proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def disk(path: Path | str) -> Disk:
    """Room on the file system of ``path``, as an unprivileged process may use it."""
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        raise from_os_error(error, path, "measuring") from error
    return Disk(usage.total, usage.free)


def _machine(root: Path) -> tuple[int, int]:
    try:
        fields = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines() if ":" in line)
        total = int(fields["MemTotal"].split()[0]) << 10
        return total, int(fields.get("MemAvailable", fields["MemFree"]).split()[0]) << 10
    except (OSError, KeyError, ValueError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total


def _group_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, bytes that cannot be reclaimed) of every control group the process stands in that has a limit."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    limits: list[tuple[int, int]] = []
    for line in lines:
        number, controllers, group = line.split(":", 2)
        if number == "0" and not controllers:
            limits += _walk(root / "sys/fs/cgroup", group, "memory.max", "memory.current", "inactive_file")
            limits += _walk(root / "sys/fs/cgroup/unified", group, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            limits += _walk(root / "sys/fs/cgroup/memory", group, "memory.limit_in_bytes", "memory.usage_in_bytes",
                            "total_inactive_file")
    return limits


def _walk(mount: Path, group: str, limit_name: str, used_name: str, reclaimable_name: str) -> list[tuple[int, int]]:
    found = []
    parts = [part for part in group.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        folder = mount.joinpath(*parts[:depth])
        limit = _number(folder / limit_name)
        if limit is not None and limit < _UNLIMITED:
            used = (_number(folder / used_name) or 0) - _statistic(folder / "memory.stat", reclaimable_name)
            found.append((limit, max(0, used)))
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no number: no limit
        return None


def _statistic(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        return 0
    return 0


def held_bytes(root: Path = Path("/")) -> int:
    """Resident bytes that only the process itself can give back: mapped files are the kernel's to drop."""
    try:
        fields = (root / "proc/self/statm").read_text().split()
        return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return resident_bytes(root)
